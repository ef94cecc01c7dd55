"""Faults at random points, for as long as wanted: python -m tests.soak --minutes 60 --seed 1

A fine-tuning and a grid with a tiny model are killed, interrupted, deprived of disk space or of one
of their processes, or started twice in one folder. Then the same command runs again, and everything
in its folder is compared bit for bit with an undisturbed run: vectors, optimizer, metrics, pixels,
contact sheets, manifests, TensorBoard's events. No hidden file may be left.

Every process is a fork of this one, which has loaded the libraries, so a trial takes seconds. Trial
number k of seed S is the first trial of seed S + k. A full disk is a tmpfs with a limit on bytes or
files, in the trial's own mount namespace; if the system allows none, each file's size is limited
instead (RLIMIT_FSIZE).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import itertools
import json
import logging
import multiprocessing.connection
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # as pytest does

from conftest import ROOT, command  # first: it sets what the libraries read  # noqa: I001
import numpy as np
import psutil
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from forked import FORK, TIMEOUT, Forked
from tiny import save_tiny_model

import detsd.generate.grid
import detsd.train.trainer  # noqa: F401
from detsd.__main__ import main as detsd_main

logging.getLogger("tensorboard").setLevel(logging.ERROR)  # purged events are intended

WORD = "blob-thing"
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir"}
TIMINGS = ("samples_per_second", "images_per_second")
CLONE_NEWNS, CLONE_NEWUSER, MS_REMOUNT, MS_REC, MS_PRIVATE = 0x20000, 0x10000000, 32, 16384, 1 << 18
ROOM = 1 << 30  # bytes and files of a disk that is large enough
TRIAL_SECONDS = 8 * TIMEOUT  # for four starts of two processes each


# ---- what is run, and what it leaves behind ------------------------------------------------------


@dataclass
class Left:
    """Everything that a run has left behind, and how long it took."""

    files: dict[str, bytes]
    events: dict[str, list[tuple[int, float | bytes]]]  # TensorBoard's, by tag: steps and values
    file_events: int
    seconds: float

    @property
    def bytes(self) -> int:
        return sum(map(len, self.files.values()))


@dataclass
class Work:
    """A command on a tiny model."""

    name: str
    arguments: tuple[str, ...]
    undisturbed: dict[int, Left] = field(default_factory=dict)  # by the number of processes

    def to(self, folder: Path) -> list[str]:
        return [*self.arguments, "--output-dir", str(folder)]


def save_work(place: Path) -> list[Work]:
    """Write a fine-tuning of four checkpoints with samples, and a grid of two contact sheets."""
    model = {"pretrained_model_name_or_path": str(save_tiny_model(place / "model"))}
    (place / "photos").mkdir()
    rng = np.random.default_rng(0)
    for k in range(4):
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "photos" / f"on_a_table_{k}.png")
    concepts = {"concept_strs": WORD, "initializer_strs": "red ball",
                "img_dirs": str(place / "photos")}  # fmt: skip
    training = {"num_sgd_steps": 8, "train_batch_size": 2, "checkpoint_freq": 2,
                "metric_report_freq": 1, "max_validation_images": 1,
                "num_validation_timesteps": 1, "learning_rate": 0.01}  # fmt: skip
    samples = {"inference_prompts": f"a photo of a {WORD}", "num_inference_steps": 2,
               "guidance_scale": 1, "seeds": 1}  # fmt: skip
    grid = {"prompts": [f"a photo of a {WORD}", f"a {WORD} at night"], "guidance_scales": [1, 4],
            "num_inference_steps": 2, "seeds": [3, 1, 2]}  # fmt: skip
    finetune = {"concepts": concepts, "training": training, "inference": samples}
    vectors = {"concepts": {"files": str(place / "vectors")}, "grid": grid,
               "output": {"batch_size": 2, "checkpoint_freq": 1}}  # fmt: skip
    found = []
    for name, sections in (("finetune", finetune), ("generate", vectors)):
        path = place / f"{name}.yaml"
        sections = {"model": model} | sections
        path.write_text(yaml.safe_dump({"name": name, "hyperparameters": sections}))
        found.append(Work(name, (name, str(path))))
    with contextlib.redirect_stdout(io.StringIO()):
        assert detsd_main(found[0].to(place / "vectors")) == 0
    return found


def left_in(folder: Path, file_events: int = 0, seconds: float = 0) -> Left:
    """Read a run's folder without its lock, and metrics without measured times."""
    files, tags = {}, {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name == ".lock" or name.startswith("tensorboard/"):
            continue
        # The bytes of a pickle also depend on which equal strings were one object.
        files[name] = _content(torch.load(path)) if path.suffix == ".pt" else path.read_bytes()
    lines = map(json.loads, files.pop("metrics.jsonl", b"").splitlines())
    lines = [line for line in lines if line["group"] != "start" and "images_per_second" not in line]
    for k, line in enumerate(lines):
        metrics = {key: value for key, value in line.items() if key not in TIMINGS}
        files[f"metrics.jsonl:{k}"] = json.dumps(metrics).encode()
    events = EventAccumulator(str(folder / "tensorboard"), {"images": 0, "scalars": 0})
    events.Reload()
    for tag in events.Tags()["images"]:
        tags[tag] = [(e.step, e.encoded_image_string) for e in events.Images(tag)]
    for tag in events.Tags()["scalars"]:
        if not tag.startswith("start/") and tag.rpartition("/")[2] not in TIMINGS:
            tags[tag] = [(e.step, e.value) for e in events.Scalars(tag)]
    return Left(files, tags, file_events, seconds)


def _content(value: object) -> bytes:
    """Return a state's whole content, with every bit of its tensors."""
    if isinstance(value, torch.Tensor):
        return repr((value.dtype, value.shape, value.contiguous().numpy().tobytes())).encode()
    if isinstance(value, dict):
        return b"{%s}" % b", ".join(_content(pair) for pair in value.items())
    if isinstance(value, list | tuple):
        return b"[%s]" % b", ".join(map(_content, value))
    return repr(value).encode()


def hidden(folder: Path) -> list[str]:
    """List what an interrupted write would leave: hidden files and folders besides the lock."""
    found = (str(path.relative_to(folder)) for path in folder.rglob(".*"))
    return sorted(name for name in found if name != ".lock")


def differences(found: Left, whole: Left, stops: bool = False) -> list[str]:
    """List the differences between a run and an undisturbed one.

    Args:
        stops: whether there may be checkpoints of other steps, as stored by a stopped run.
    """
    told = []
    for what, ours, theirs in (
        ("", found.files, whole.files),
        ("TensorBoard's ", found.events, whole.events),
    ):
        more = ours.keys() - theirs.keys()
        if stops:
            more = {name for name in more if not name.startswith("checkpoints/step-")}
        told += [f"{what}{name} is too many" for name in sorted(more)]
        told += [f"{what}{name} is missing" for name in sorted(theirs.keys() - ours.keys())]
        told += [f"{what}{name} differs" for name in sorted(ours.keys() & theirs.keys())
                 if ours[name] != theirs[name]]  # fmt: skip
    return told


# ---- points in a run -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A moment in a process: some seconds after a file's event, or after the start."""

    event: int | None  # of those in the run's folder
    seconds: float

    @staticmethod
    def draw(rng: random.Random, whole: Left, by_event: bool = True) -> Point:
        if by_event and rng.random() < 0.7:
            # In half of the cases right at the event, otherwise during the next write or step.
            delay = rng.choice([0.0, rng.expovariate(1 / 0.003), rng.expovariate(1 / 0.03)])
            return Point(rng.randrange(whole.file_events), delay)
        return Point(None, rng.uniform(0, whole.seconds))

    def __str__(self) -> str:
        moment = f"{1000 * self.seconds:.1f} ms"
        return f"{moment} after file event {self.event}" if self.event is not None else moment


class Watch:
    """A watch that counts file events in a run's folder, and signals this process at a point."""

    def __init__(self, folder: Path, point: Point | None, signals: list[tuple[int, float]]):
        self._folder, self._point, self._signals = str(folder), point, signals
        self._count = itertools.count()
        self.seen = 0
        if point and point.event is None:
            threading.Thread(target=self._send, daemon=True).start()
        sys.addaudithook(self._on_event)

    def _on_event(self, name: str, arguments: tuple) -> None:
        if name not in FILE_EVENTS or not arguments:
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike) or self._folder not in str(path):
            return
        number = next(self._count)
        self.seen = number + 1
        if self._point and number == self._point.event:
            if self._point.seconds:
                threading.Thread(target=self._send, daemon=True).start()
            else:
                self._send()

    def _send(self) -> None:
        time.sleep(self._point.seconds)
        for number, pause in self._signals:
            os.kill(os.getpid(), number)
            if pause:
                time.sleep(pause)


# ---- a trial -------------------------------------------------------------------------------------


@dataclass
class Trial:
    """One command, its faults and its undisturbed end."""

    work: Work
    place: Path
    rng: random.Random
    faults: Counter = field(default_factory=Counter)  # those that happened
    problems: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)  # of its starts
    stops: bool = False

    def __post_init__(self):
        self.folder = self.place / "out"
        self.folder.mkdir(exist_ok=True)

    def whole(self, ranks: int = 1) -> Left:
        """Return the result of an undisturbed run on `ranks` processes, made at the first call."""
        if ranks not in self.work.undisturbed:
            folder = Path(tempfile.mkdtemp(dir=self.place.parent, prefix="whole-"))
            began = time.monotonic()
            with Forked(
                self.place, self.body(folder / "out", count=folder / "count"), ranks
            ) as run:
                assert set(run.end()) == {0}, run.said
            seconds = time.monotonic() - began
            left = left_in(folder / "out", int((folder / "count").read_text()), seconds)
            self.work.undisturbed[ranks] = left
            shutil.rmtree(folder)
        return self.work.undisturbed[ranks]

    def body(
        self,
        folder: Path,
        point: Point | None = None,
        signals: list[tuple[int, float]] = (),
        rank: int | None = None,
        count: Path | None = None,
        limit: int | None = None,
    ) -> Callable[[], int]:
        """Return the command as a function, with signals at a point of all ranks, or of one."""

        def run() -> int:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
            here = int(os.environ.get("RANK", 0))
            watch = Watch(folder, point if rank in (None, here) else None, signals)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                try:
                    code = detsd_main(self.work.to(folder))
                finally:  # a Ctrl-C from here on would hit code that only forks run at their end
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
            except SystemExit as end:
                code = end.code
            if count and here == 0:
                count.write_text(str(watch.seen))
            return code

        return run

    def start(
        self, ranks: int, body: Callable[[], int], kill_rest: bool = False
    ) -> tuple[list[int | None], str]:
        """Run it to its end, or until a process is killed; return exit codes and output."""
        with Forked(self.place, body, ranks) as run:
            ended = multiprocessing.connection.wait([p.sentinel for p in run.processes], TIMEOUT)
            for process in run.processes:
                if process.sentinel in ended:
                    process.join()
            if -signal.SIGKILL in [process.exitcode for process in run.processes]:
                for process in run.processes:  # as a failing machine does, or torchrun
                    process.kill() if kill_rest else process.terminate()
            codes = run.end()
            said = "\n".join(run.said)
        self.story.append(f"{codes}: {said[-1500:]}")
        if None in codes:
            self.problems.append("a process had to be ended")
        return codes, said

    def expect(self, right: bool, problem: str) -> None:
        if not right:
            self.problems.append(problem)

    def expect_clean(self, said: str) -> None:
        """Check the end of a run that was not killed: no traceback, no hidden files."""
        self.expect("Traceback" not in said, "a traceback")
        self.expect(not hidden(self.folder), f"left at once: {hidden(self.folder)}")

    def finish(self, ranks: int = 1) -> None:
        """Run the same command to its end, and compare."""
        codes, _ = self.start(ranks, self.body(self.folder))
        self.expect(set(codes) == {0}, f"the last start ended with {codes}")
        self.expect(not hidden(self.folder), f"left for ever: {hidden(self.folder)}")
        told = differences(left_in(self.folder), self.whole(ranks), self.stops)
        if told:
            self.problems.append("; ".join(told[:6]) + (" ..." if len(told) > 6 else ""))


# ---- the faults ----------------------------------------------------------------------------------


def killed(trial: Trial) -> None:
    """Send SIGKILL to all processes, up to three times."""
    ranks = trial.rng.choice([1, 1, 2]) if trial.work.name == "generate" else 1
    for _ in range(trial.rng.randint(1, 3)):
        point = Point.draw(trial.rng, trial.whole(ranks))
        trial.story.append(f"killed {point}, {ranks} ranks")
        body = trial.body(trial.folder, point, [(signal.SIGKILL, 0)], rank=0)
        codes, _ = trial.start(ranks, body, kill_rest=True)
        trial.faults["SIGKILLs"] += -signal.SIGKILL in codes
    trial.finish(ranks)


def interrupted(trial: Trial, times: int) -> None:
    """Send Ctrl-C, once or twice: exit code 130, no hidden files, the same command continues."""
    ranks, trial.stops = trial.rng.choice([1, 1, 1, 2]), True
    for _ in range(trial.rng.randint(1, 2)):
        # Two processes get it at once, as from a terminal: they share only the clock.
        point = Point.draw(trial.rng, trial.whole(ranks), by_event=ranks == 1)
        pause = trial.rng.choice([0.002, trial.rng.expovariate(1 / 0.02)])
        trial.story.append(f"interrupted {times} x {point}, {pause:.3f} s apart, {ranks} ranks")
        body = trial.body(trial.folder, point, [(signal.SIGINT, pause)] * times)
        codes, said = trial.start(ranks, body)
        right = {0, 130} if ranks == 1 else {0, 1, 130}
        trial.expect(set(codes) <= right, f"Ctrl-C ended with {codes}")
        trial.expect_clean(said)
        trial.faults["Ctrl-C"] += 130 in codes
    trial.finish(ranks)


def lost(trial: Trial) -> None:
    """Send SIGKILL to one of two processes: the other ends at torchrun's SIGTERM."""
    rank = trial.rng.randrange(2)
    point = Point.draw(trial.rng, trial.whole(2), by_event=rank == 0)
    trial.story.append(f"rank {rank} killed {point}")
    codes, _ = trial.start(2, trial.body(trial.folder, point, [(signal.SIGKILL, 0)], rank))
    if codes[rank] == -signal.SIGKILL:
        trial.faults["lost ranks"] += 1
        # It may have finished already.
        ends = (0, 1, -signal.SIGTERM, 128 + signal.SIGTERM)
        trial.expect(codes[1 - rank] in ends, f"the other ended with {codes[1 - rank]}")
    trial.finish(2)


def lost_under_torchrun(trial: Trial) -> None:
    """Do the same with torchrun's own processes, which load the libraries themselves."""
    whole, rank = trial.whole(2), str(trial.rng.randrange(2))
    loaded = trial.rng.random() < 0.8
    # Longer waits would come after most runs; loading the libraries takes the other ten seconds.
    wait = trial.rng.uniform(0, 0.8 * whole.seconds if loaded else 10)
    trial.story.append(f"rank {rank} killed {wait:.2f} s after {'its lock' * loaded or 'start'}")
    log = trial.place / "torchrun.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            command(*trial.work.to(trial.folder), ranks=2), cwd=ROOT, stdout=file, stderr=file
        )
        try:
            while loaded and process.poll() is None and not (trial.folder / ".lock").exists():
                time.sleep(0.02)
            time.sleep(wait)
            for child in psutil.Process(process.pid).children() if process.poll() is None else []:
                with contextlib.suppress(psutil.Error):
                    if child.environ().get("RANK") == rank:
                        child.kill()
                        trial.faults["lost ranks"] += 1
            code = process.wait(120)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            for child in (
                [*psutil.Process(process.pid).children(recursive=True)]
                if (process.poll() is None)
                else []
            ):
                child.kill()
            process.kill()
            process.wait()
    trial.story.append(f"torchrun ended with {code}: {log.read_text()[-3000:]}")
    trial.expect(code is not None, "torchrun's run never ended")
    trial.finish(2)


def two_at_once(trial: Trial) -> None:
    """Start two processes in one folder: one is refused with a sentence, or runs afterwards."""
    kill = trial.rng.random() < 0.4
    point = Point.draw(trial.rng, trial.whole())
    body = trial.body(trial.folder, *([point, [(signal.SIGKILL, 0)]] if kill else []))
    wait = trial.rng.choice([0, trial.rng.uniform(0, trial.whole().seconds)])
    trial.story.append(f"the second after {wait:.2f} s, the first killed {point if kill else '-'}")
    (trial.place / "second").mkdir()
    with Forked(trial.place, body) as first:
        time.sleep(wait)
        with Forked(trial.place / "second", trial.body(trial.folder)) as second:
            codes, said = first.end() + second.end(), [*first.said, *second.said]
    trial.story.append(f"{codes}: {said}")
    trial.faults["pairs"] += 1
    for code, text in zip(codes, said, strict=True):
        if code == 2:
            trial.expect("is in use by" in text, "refused for another reason")
            trial.expect("Traceback" not in text, "a traceback")
    trial.expect(set(codes) <= {0, 2, *([-signal.SIGKILL] if kill else [])}, f"ended with {codes}")
    trial.expect(kill or 0 in codes, "both were refused")
    trial.finish()


def full(trial: Trial) -> None:
    """Limit the disk's bytes or files: the run ends with a sentence, and continues with more."""
    whole = trial.whole()
    with _own_disk(trial.folder) as resize:
        for _ in range(trial.rng.randint(1, 2)):
            kind = trial.rng.choice(["size", "size", "nr_inodes"]) if resize else "file"
            most = 3 * len(whole.files) if kind == "nr_inodes" else 1.5 * whole.bytes
            if kind == "file":
                most = max(map(len, whole.files.values()))
            room = int(trial.rng.uniform(0, most))
            trial.story.append(f"a disk with room for {kind} {room}")
            if resize:
                disk = os.statvfs(trial.folder)
                used = disk.f_files - disk.f_ffree
                if kind == "size":
                    used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
                resize(kind, used + max(room, 1))
            body = trial.body(trial.folder, limit=None if resize else room)
            (code,), said = trial.start(1, body)
            trial.expect(code in (0, 2), f"a full disk ended with {code}")
            if code == 2:
                trial.expect("detsd: " in said, "no sentence on a full disk")
            trial.expect_clean(said)
            trial.faults["full disks"] += code == 2
            if resize:
                resize("size", ROOM)
        trial.finish()


@contextlib.contextmanager
def _own_disk(folder: Path) -> Iterator[Callable[[str, int], None] | None]:
    """Mount a private tmpfs; yield a function that resizes it, None if not allowed here."""
    libc = ctypes.CDLL(None, use_errno=True)
    ids = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNS) and libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0:
        Path("/proc/self/setgroups").write_text("deny")
        for name, number in zip(("uid_map", "gid_map"), ids, strict=True):
            Path(f"/proc/self/{name}").write_text(f"{number} {number} 1")
    path = str(folder).encode()

    def mount(options: str, flags: int = 0) -> bool:
        return libc.mount(b"tmpfs", path, b"tmpfs", flags, options.encode()) == 0

    def resize(kind: str, number: int) -> None:
        other = "nr_inodes" if kind == "size" else "size"
        if not mount(f"{kind}={number},{other}={ROOM}", MS_REMOUNT):
            raise OSError(ctypes.get_errno(), "the tmpfs cannot be resized")

    libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
    there = mount(f"size={ROOM}")
    try:
        yield resize if there else None
    finally:
        if there:
            libc.umount2(path, 2)  # even if a handle is open


# The scenarios, and their relative frequencies.
SCENARIOS: dict[str, tuple[Callable[[Trial], None], float]] = {
    "killed": (killed, 6),
    "full disk": (full, 4),
    "lost rank": (lost, 2),
    "Ctrl-C": (lambda trial: interrupted(trial, 1), 2),
    "Ctrl-C twice": (lambda trial: interrupted(trial, 2), 3),
    "two at once": (two_at_once, 2),
    "torchrun": (lost_under_torchrun, 0.2),
}
ON_TWO = {"lost rank", "Ctrl-C", "Ctrl-C twice", "torchrun"}
NAMES = [f"{work} {name}" for work in ("finetune", "generate") for name in SCENARIOS]


# ---- the command ---------------------------------------------------------------------------------


@dataclass
class Tally:
    """Trials, faults and problems of one scenario."""

    trials: int = 0
    faults: Counter = field(default_factory=Counter)
    problems: dict[int, list[str]] = field(default_factory=dict)  # by seed

    def line(self, name: str) -> str:
        faults = ", ".join(f"{count} {what}" for what, count in self.faults.items() if count)
        line = f"{name:24} {self.trials:5} trials, {faults or 'nothing'}: "
        if not self.problems:
            return f"{line}no fault"
        seed, told = next(iter(self.problems.items()))
        return (
            f"{line}{len(self.problems)} FAULTS, such as: {', '.join(told)}; "
            f"--only '{name}' --trials 1 --seed {seed}"
        )


def run_trial(name: str, seed: int, works: list[Work], place: Path) -> Trial:
    """Run a trial in a new process, whose mounts and threads end with it."""
    work_name, _, scenario = name.partition(" ")
    (work,) = (w for w in works if w.name == work_name)
    trial = Trial(work, place, random.Random(seed))
    two = scenario in ON_TWO or name == "generate killed"
    for ranks in (1, 2) if two else (1,):
        trial.whole(ranks)  # run here, so that later trials can use it
    ours, theirs = FORK.Pipe()

    def run() -> None:
        try:
            SCENARIOS[scenario][0](trial)
        except Exception as error:
            trial.problems.append(f"{type(error).__name__}: {error}")
        theirs.send((trial.faults, trial.problems, trial.story))

    process = FORK.Process(target=run)
    process.start()
    theirs.close()
    try:
        if ours.poll(TRIAL_SECONDS):
            trial.faults, trial.problems, trial.story = ours.recv()
        else:
            trial.problems.append("the trial had to be ended")
    except EOFError:
        trial.problems.append("the trial itself has died")
    finally:
        for left in [process, *psutil.Process(process.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                left.kill()
        process.join()
    return trial


def soak(names: list[str], seeds: Iterator[int], minutes: float) -> dict[str, Tally]:
    """Run trials until the time is over; Ctrl-C ends it, too."""
    tallies = {name: Tally() for name in names}
    weights = [SCENARIOS[name.partition(" ")[2]][1] for name in names]
    until = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="soak-") as top, contextlib.suppress(KeyboardInterrupt):
        works = save_work(Path(top))
        for seed in seeds:
            if time.monotonic() > until:
                break
            (name,) = random.Random(f"name {seed}").choices(names, weights)
            place = Path(top) / f"trial-{seed}"
            place.mkdir()
            trial = run_trial(name, seed, works, place)
            tally = tallies[name]
            tally.trials += 1
            tally.faults += trial.faults
            if trial.problems:
                tally.problems[seed] = trial.problems
                told = "\n    ".join("\n".join(trial.story).splitlines())
                print(f"{name}, seed {seed}: {'; '.join(trial.problems)}\n    {told}", flush=True)
            shutil.rmtree(place)
    return tallies


def main(argv: list[str] | None = None) -> int:
    """Run trials; return exit code 1 if any of them found a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    parser.add_argument("--trials", type=int, help="at most")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="SCENARIO",
                        help="of: " + ", ".join(NAMES))  # fmt: skip
    args = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    seeds = itertools.count(args.seed)
    if args.trials is not None:
        seeds = itertools.islice(seeds, args.trials)
    tallies = soak(args.only, seeds, args.minutes)
    for name, tally in tallies.items():
        print(tally.line(name))
    count = sum(tally.trials for tally in tallies.values())
    faults = sum((tally.faults for tally in tallies.values()), Counter())
    print(f"{count} trials: {', '.join(f'{n} {what}' for what, n in faults.items())}")
    return int(any(tally.problems for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
