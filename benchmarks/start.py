"""Process start-up compared with another version of detsd, in turns.

    git worktree add --detach OLD 62df2d7
    python -m benchmarks --only start --against OLD

A run is timed up to the event that a user waits for: the first stored image, or the first step's
report.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import medians_of_pairs

HEAD = ["until", "before", "now", "ratio", "of the processor, before", "now", "ratio"]
EVERY_STEP = "--set training.metric_report_freq=1"
COMMANDS = {
    "the end of `show`": "show learned_embeddings_dict_demo.pt",
    "the first image of `generate_demo.yaml`": "generate generate_demo.yaml --output-dir OUT",
    "the first step of `finetune_demo.yaml`": f"finetune finetune_demo.yaml --output-dir OUT "
    f"{EVERY_STEP}",
}
LAUNCHED = "the same by the launcher, with a stand-in for the master"
# Runs in each version's folder, whose own stand-in starts it as a container does.
TRIAL = """
import sys, time; sys.path[:0] = ["tests", "."]
from pathlib import Path
from standin import Master, experiment_of
experiment = experiment_of(Path("finetune_demo.yaml"))
experiment["hyperparameters"]["training"]["metric_report_freq"] = 1
with Master(Path(sys.argv[1])) as master:
    trial = master.launch(experiment)
    print(trial.pid, flush=True)
    while trial.poll() is None and not any(key[2] == "training" for key in list(master._rows)):
        time.sleep(0.01)
    print("done", flush=True)
    sys.stdin.read()
"""


def rows(before: Path, now: Path, pairs: int) -> Iterator[list[object]]:
    """Yield medians of both versions and of the pairs' ratios; a pair's runs are consecutive."""
    for name in (*COMMANDS, LAUNCHED):
        found = [(_measure(name, before), _measure(name, now)) for _ in range(pairs)]
        yield [name, *medians_of_pairs(found)]


def _measure(name: str, root: Path) -> tuple[float, float]:
    """Return the seconds of a run: wall time and CPU time."""
    with TemporaryDirectory() as place:
        out = Path(place) / "out"
        if name == LAUNCHED:
            return _launched(root, place)
        command = [sys.executable, "-m", "detsd", *COMMANDS[name].replace("OUT", str(out)).split()]
        began = time.perf_counter()
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=root, stdout=quiet, stderr=quiet)
        if "OUT" not in COMMANDS[name]:
            _, code, used = os.wait4(process.pid, 0)
            if code:
                raise RuntimeError(f"{command} in {root} ended with {code}")
            return time.perf_counter() - began, used.ru_utime + used.ru_stime
        seconds = _until(lambda: _there(out), process, began), _processor(process.pid)
        process.kill()
        process.wait()
        return seconds


def _there(out: Path) -> bool:
    """Return whether a run has stored an image, or reported a step."""
    report = out / "metrics.jsonl"
    stepped = report.is_file() and '"training"' in report.read_text()
    return stepped or any(out.glob("images/*.png"))


def _launched(root: Path, place: str) -> tuple[float, float]:
    """Return the same times up to a trial's first step, for all its processes together."""
    command, pipe = [sys.executable, "-c", TRIAL, place], subprocess.PIPE
    with subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, text=True) as master:
        trial = int(master.stdout.readline())
        began = time.perf_counter()
        master.stdout.readline()
        seconds = time.perf_counter() - began, _processor(trial)
        os.killpg(trial, signal.SIGKILL)
        master.stdin.close()
    return seconds


def _until(done: Callable[[], bool], process: subprocess.Popen, began: float) -> float:
    while not done():
        time.sleep(0.005)
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode}")
    return time.perf_counter() - began


def _processor(root: int) -> float:
    """Return the CPU seconds of a process and its descendants."""
    found: dict[int, tuple[int, int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        found[int(path.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    below = {root}
    while more := {p for p, (parent, _) in found.items() if parent in below} - below:
        below |= more
    return sum(found[p][1] for p in below if p in found) / os.sysconf("SC_CLK_TCK")
