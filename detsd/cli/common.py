"""Parts of several commands: the configuration, the end of a run, the next commands."""

import argparse
import contextlib
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from detsd.config import Config, FinetuneConfig, check_experiment, parse_config
from detsd.runs import task
from detsd.runs.folder import RunFolder
from detsd.runs.task import cluster_experiment, cluster_hyperparameters
from detsd.utils import progress
from detsd.utils.errors import printable
from detsd.utils.plurals import counted

# As the user called it: the installed command, or the module.
PROG = "detsd" if Path(sys.argv[0]).stem == "detsd" else "python -m detsd"


def configuration(
    args: argparse.Namespace, kind: type[Config], check: Callable[..., None], named: Callable
) -> tuple[Config, Path]:
    """Return a command's checked configuration, and its folder off cluster.

    Args:
        named: off cluster, returns for `args` the configuration, its source and its name.
    """
    if task.on_cluster():
        source = "the experiment's configuration"
        check_experiment(cluster_experiment(), source, kind)
        config = parse_config(cluster_hyperparameters(), source, kind)
        check(config, source)
        return config, Path()
    config, source, name = named(args)
    folder = args.output_dir or Path("outputs") / name
    beside = None if getattr(args, "source", None) else Path(source).parent  # not beside an image
    check(config, source, beside)
    RunFolder(folder).check_writable()
    if kind is not FinetuneConfig:
        RunFolder(folder).check_no_finetuning()
    return config, folder


def stopped(run, after: str) -> int:
    """Print that a run was stopped after `after`; return 0 or, off cluster, a shell's exit code."""
    if task.on_cluster():
        if run.is_chief:
            run.print(f"{run.why_stopped()} after {after}, saved as checkpoint {run.stored_uuid}")
        return 0
    run.print("stopped; the same command continues from here")
    return 128 + (run.stop_signal or 0)


def images_done(grid) -> str:
    """Return the number of stored images as text; only the chief knows it, and only it prints."""
    count = len(grid.store.finished) if grid.store else 0
    return f"{count} of {counted(len(grid.jobs), 'image')}"


def print_commands(commands: dict[str, list]) -> None:
    """Print each command below its purpose."""
    progress.say("next:")
    for what, words in commands.items():
        program, *rest = map(str, words)
        progress.say(f"  {what}:\n    {program} {shlex.join(rest)}")


def print_stored(run, what: str) -> None:
    """Print the checkpoint that holds a finished trial's results, and the next commands."""
    if run.is_chief:
        progress.say(f"{what}: checkpoint {run.stored_uuid}")
        print_commands(cluster_commands(run.stored_uuid))


def cluster_commands(uuid: str) -> dict[str, list]:
    """Return the commands that are useful after any trial, by their purpose."""
    return {
        "download it to your own computer": ["python", "-m", "detsd", "download", uuid],
        "view its metrics and images": ["det", "tensorboard", "start", task.experiment_id()],
    }


def tensorboard(folder: Path) -> list[str]:
    """Return the command that shows a run's metrics and images beside its neighbours'.

    Without its last option, TensorBoard shows only ten images per tag.
    """
    beside = folder.parent if folder.parent.name == "outputs" else folder
    return ["tensorboard", "--logdir", str(beside), "--samples_per_plugin", "images=100"]


def is_first_to_warn(record: logging.LogRecord) -> bool:
    """Return whether no other process of the run prints this warning; each reads the same files."""
    from detsd.runs.peers import is_first_to_print  # late: torch

    return is_first_to_print(record.getMessage())


def print_error(sentence: str) -> int:
    """Print an error, once for all ranks that have the same; return the exit code."""
    # Texts quoted from a file may contain control sequences for the terminal.
    sentence = printable(sentence, also="\n")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from detsd.runs.peers import is_first_to_print  # late: torch, for several processes

        if not is_first_to_print(sentence):
            return 2
    _leave_for_torchrun(sentence)
    if "DET_ALLOCATION_ID" in os.environ:
        # On one line, which the experiment files' `log_policies` match and the master repeats.
        first, *rest = sentence.split("\n  ")
        sentence = f"{first} {'; '.join(rest)}".strip()
    print(f"detsd: {sentence}", file=sys.stderr, flush=True)
    return 2


def _leave_for_torchrun(sentence: str) -> None:
    """Write an error where torchrun looks for it: its own forty lines then end with it."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        when = {"timestamp": str(int(time.time())), "py_callstack": f"detsd: {sentence}"}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": {"message": sentence, "extraInfo": when}}))
