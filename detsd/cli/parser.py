"""The command line: one subcommand per job."""

import argparse
import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from detsd import __version__
from detsd.cli.app import app
from detsd.cli.common import PROG, print_error
from detsd.cli.concepts import download, export, show
from detsd.cli.evaluate import evaluate
from detsd.cli.finetune import finetune
from detsd.cli.generate import generate
from detsd.cli.search import search
from detsd.concepts.source import LAYOUTS
from detsd.utils.paths import BUNDLED

SOURCE = "concept file, checkpoint, run folder, checkpoint uuid or model:NAME in the registry"


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake as all others are: in one sentence, once for all ranks."""

    commands: Mapping[str, argparse.ArgumentParser] = MappingProxyType({})

    def parse_args(self, args=None, namespace=None):
        """Parse as argparse does; for an unknown option, name the closest one of its command."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            command = self.commands.get(found.command, self)
            command.error(_too_much(rest[0], command))
        return found

    def error(self, message: str) -> NoReturn:
        """Print a mistake and end, with exit code 2."""
        more = "" if message.endswith("?") else f"; {self.prog} --help explains the command"
        sys.exit(print_error(f"{message}{more}"))


def _too_much(word: str, command: argparse.ArgumentParser) -> str:
    """Return a sentence on a word of the command line that a command cannot place."""
    if not word.startswith("-"):
        return f"{word!r} is one argument too many; put a text with spaces in quotes"
    option, known = word.partition("=")[0], command._option_string_actions
    close = difflib.get_close_matches(option, known, n=1)
    return f"there is no option {option}" + (f"; did you mean {close[0]}?" if close else "")


def parser() -> Parser:
    """Return the parser of the command line."""
    command_line = Parser(
        prog=PROG, description="Teach Stable Diffusion a new word (Textual Inversion)."
    )
    command_line.add_argument("--version", action="version", version=f"detsd {__version__}")
    command_line.set_defaults(run=None)
    commands = command_line.add_subparsers(dest="command", metavar="COMMAND")
    for add in (_finetune, _generate, _evaluate, _search, _download, _show, _export, _app):
        add(commands)
    command_line.commands = commands.choices
    return command_line


def _home(text: str) -> str:
    """Return a name with `~` expanded, as shells do not in `--model=~/anime`."""
    return os.path.expanduser(_given(text))


def _path(text: str) -> Path:
    """Return a path with `~` expanded."""
    return Path(_home(text))


def _given(text: str) -> str:
    """Refuse an empty text, such as that of an unset variable, which as a path means `.`."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; give a name")
    return text


def _add(commands: argparse._SubParsersAction, name: str, what: str) -> argparse.ArgumentParser:
    """Add a command that does `what`."""
    return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")


def _add_run_options(command: argparse.ArgumentParser, name: str) -> None:
    """Add the options of commands that read an experiment file and fill a folder."""
    command.add_argument(
        "--set", action="append", metavar="KEY=VALUE",
        help="override a setting, such as training.num_sgd_steps=200; repeatable; "
        "docs/configuration.md lists all",
    )  # fmt: skip
    command.add_argument(
        "--output-dir", type=_path, metavar="DIR", help=f"results; default: outputs/{name}"
    )


def _finetune(commands: argparse._SubParsersAction) -> None:
    command = _add(commands, "finetune", "learn new concepts from images")
    command.add_argument("config", nargs="?", type=_path, help="experiment file (off cluster)")
    _add_run_options(command, "<config's name>")
    command.add_argument(
        "--warm-start", type=_path, metavar="SOURCE", help="start from the vectors of this concept"
    )
    command.set_defaults(run=finetune)


def _generate(commands: argparse._SubParsersAction) -> None:
    command = _add(commands, "generate", "make a grid of images from prompts")
    which = command.add_mutually_exclusive_group()
    which.add_argument("config", nargs="?", type=_path, help="experiment file (off cluster)")
    which.add_argument(
        "--from", type=_path, dest="source", metavar="IMAGE",
        help="make this image again from the settings that detsd, A1111 or ComfyUI stored in it",
    )  # fmt: skip
    _add_run_options(command, "<config's name>")
    command.set_defaults(run=generate)


def _evaluate(commands: argparse._SubParsersAction) -> None:
    command = _add(commands, "evaluate", "measure how good concepts are")
    command.add_argument(
        "sources", nargs="*", type=_given, metavar="SOURCE",
        help=f"{SOURCE}, or SOURCE=WORD; or an experiment file",
    )  # fmt: skip
    command.add_argument(
        "--images", type=_path, metavar="DIR", help="training images; default: those of the run"
    )
    command.add_argument(
        "--lineup", nargs="+", type=_path, metavar="DIR", help="one folder of images per look-alike"
    )
    command.add_argument(
        "--all-checkpoints", action="store_true", help="all checkpoints of a run, not only the best"
    )
    command.add_argument(
        "--model", type=_home, help="base model; default: that of the first run, or the bundled one"
    )
    command.add_argument(
        "--clip", type=_home, metavar="MODEL",
        help="CLIP to measure with; default: the base model's own",
    )  # fmt: skip
    command.add_argument("--dino", type=_home, metavar="MODEL", help="DINO to measure with as well")
    _add_run_options(command, "evaluate-<source's name>")
    command.set_defaults(run=evaluate)


def _search(commands: argparse._SubParsersAction) -> None:
    command = _add(commands, "search", "compare the trials of a search on the cluster")
    command.add_argument(
        "search", type=_given, metavar="ID",
        help="experiment number; or an experiment file, to explain its search settings",
    )  # fmt: skip
    command.set_defaults(run=search)


def _download(commands: argparse._SubParsersAction) -> None:
    what = "download a checkpoint from the cluster, and with it all images of a grid"
    command = _add(commands, "download", what)
    command.add_argument(
        "uuid",
        type=_given,
        metavar="UUID",
        help="checkpoint (det e list-checkpoints), of a grid the newest; or model:NAME in the "
        "registry",
    )
    command.add_argument("--output-dir", type=_path, metavar="DIR", help="default: outputs/UUID")
    command.set_defaults(run=download)


def _show(commands: argparse._SubParsersAction) -> None:
    command = _add(commands, "show", "describe a concept file, checkpoint or run folder")
    command.add_argument("path", type=_given, metavar="SOURCE", help=SOURCE)
    command.add_argument(
        "--model", type=_home, help="base model to compare with; default: the one that fits"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--plot", type=_path, metavar="FILE", help="also draw the vectors' norms and nearest words"
    )
    command.set_defaults(run=show)


def _export(commands: argparse._SubParsersAction) -> None:
    command = _add(commands, "export", "write concepts for another tool")
    command.add_argument(
        "sources", nargs="+", type=_given, metavar="SOURCE", help=f"{SOURCE}, or SOURCE=WORD"
    )
    command.add_argument(
        "--format", required=True, choices=LAYOUTS,
        help="layout of the file; README.md says which tool reads which",
    )  # fmt: skip
    command.add_argument(
        "--output", type=_path, metavar="DIR", help="default: outputs/exported/<format>"
    )
    command.set_defaults(run=export)


def _app(commands: argparse._SubParsersAction) -> None:
    command = _add(commands, "app", "open the interactive demo as a page in a browser")
    command.add_argument(
        "--model",
        type=_home,
        default=BUNDLED,
        help="diffusers folder, .safetensors file or hub model; default: the bundled model",
    )
    command.add_argument(
        "--vae", type=_home, metavar="MODEL", help="VAE in place of the model's own (model.vae)"
    )
    command.add_argument(
        "--clip-skip", type=int, default=0, metavar="N",
        help="final text-encoder layers to skip (model.clip_skip); N + 1 in A1111",
    )  # fmt: skip
    command.add_argument(
        "--concepts", nargs="*", type=_home, metavar="SOURCE",
        help="concept files, checkpoints or run folders; default: the bundled concept",
    )  # fmt: skip
    command.add_argument("--uuid", action="append", help="Determined checkpoint; repeatable")
    command.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen on; 0.0.0.0: reachable from other machines",
    )  # fmt: skip
    command.add_argument("--port", type=int, help="default: the first free port from 7860")
    command.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="additional host name of the page, such as a proxy's; repeatable",
    )  # fmt: skip
    command.add_argument(
        "--auth", metavar="USER:PASSWORD",
        help="login for the page; default: a generated password, if other machines can reach the "
        "page",
    )  # fmt: skip
    command.add_argument("--no-auth", action="store_true", help="do not ask for a password")
    command.set_defaults(run=app)
