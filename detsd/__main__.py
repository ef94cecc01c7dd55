# PYTHON_ARGCOMPLETE_OK
"""The command line: python -m detsd finetune | generate | evaluate ...

On a cluster, the configuration and the latest checkpoint come from the trial; elsewhere, from the
experiment file named on the command line. A mistake ends with one sentence and exit code 2.
"""

import contextlib
import logging
import os
import signal
import sys

from detsd.cli.common import is_first_to_warn, print_error
from detsd.cli.parser import parser
from detsd.utils import progress
from detsd.utils.errors import DISK_ERRORS, PATH_ERRORS, UserError


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a caller's own stream
            stream.reconfigure(errors="replace")  # for terminals that support only ASCII
    if sys.platform == "win32":
        return print_error("detsd runs on Linux and macOS; on Windows, run it in WSL")
    command_line = parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell requests completions
        import argcomplete

        argcomplete.autocomplete(command_line)
    args = command_line.parse_args(argv)
    if args.run is None:
        command_line.print_help()
        return 0
    handler = progress.LogHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if not progress.is_first():  # every process reads the same pictures
        logging.getLogger("detsd.data").setLevel(logging.ERROR)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        handler.addFilter(is_first_to_warn)
    try:
        code = args.run(args)
        sys.stdout.flush()  # here, so that a closed pipe causes no traceback
        return code
    except BrokenPipeError:  # as in `... | head`
        progress.discard_output(sys.stdout)
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        if progress.is_first():
            print("stopped", file=sys.stderr)
        return 130
    except UserError as error:
        return print_error(str(error))
    except OSError as error:
        if error.errno not in DISK_ERRORS + PATH_ERRORS:
            raise
        return print_error(
            f"{error.filename or 'the output folder'} cannot be used ({error.strerror}); fix this "
            "and run the same command again (what is stored is untouched)"
        )


if __name__ == "__main__":
    sys.exit(main())
