"""Where a run keeps what it makes and whom it tells: a Determined cluster, or a folder.

The only module that imports `determined.core`. `open_run` decides once; everything else is handed a
`Run`. Ranks exchange objects through torch.distributed, which Accelerate sets up. Every method
marked "collective" is called by all ranks, in the same order.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import determined as det
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from determined import core
from torch.utils.tensorboard import SummaryWriter

from detsd.errors import UserError

logger = logging.getLogger("detsd")

METADATA = "metadata.json"
JUDGING_SEARCHERS = ("adaptive_asha",)  # those that end a trial that is still running


class Run:
    """What a training needs of the outside world.

    Attributes:
        state: Accelerate's view of the processes and this one's device.
        folder: where samples and pictures of this run gather.
        folder_is_kept: whether `folder` outlives the process; if not, checkpoints carry its files.
        latest: folder of the checkpoint to go on from, or None.
        latest_is_own: whether `latest` was written by this very run (resume), or by another
            (warm start: learned rows only).
        latest_uuid: what a cluster calls `latest`.
        latest_name: what a person calls it.
    """

    state: PartialState
    folder: Path
    folder_is_kept: bool
    latest: Path | None = None
    latest_is_own: bool = True
    latest_uuid: str = ""
    writer: SummaryWriter | None = None  # on the chief only

    @property
    def is_chief(self) -> bool:
        return self.state.is_main_process

    @property
    def latest_name(self) -> str:
        return f"checkpoint {self.latest_uuid}" if self.latest_uuid else str(self.latest)

    def gather(self, values: list[Any]) -> list[Any]:
        """All ranks' lists joined in the order of the ranks, on every rank. Collective."""
        return gather_object(values) if self.state.num_processes > 1 else values

    def say(self, text: str) -> None:
        """A line for the person at the terminal or the task's log, once."""
        if self.is_chief:
            print(text, flush=True)

    def log_scalars(self, steps: int, metrics: dict[str, float], group: str) -> None:
        if self.writer:
            for name, value in metrics.items():
                self.writer.add_scalar(f"{group}/{name}", value, steps)

    # The rest differs on and off cluster.

    def report(self, steps: int, metrics: dict[str, float], *, validation: bool = False) -> None:
        """Report metrics of `steps` completed steps. Chief only does anything."""
        raise NotImplementedError

    def report_progress(self, fraction: float) -> None:
        raise NotImplementedError

    def save(self, steps: int, metadata: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Store what `write(folder)` puts into an empty folder, all or nothing. Collective."""
        raise NotImplementedError

    def should_stop(self) -> bool:
        """Whether to save and leave: preempted, or told to by a signal. Collective."""
        raise NotImplementedError

    def flush(self) -> None:
        """Make what `writer` holds visible."""
        if self.writer:
            self.writer.flush()


def read_metadata(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's metadata.

    Raises:
        UserError: the folder is no complete checkpoint.
    """
    try:
        facts = json.loads((checkpoint / METADATA).read_text())
    except (OSError, ValueError):
        facts = None
    if not isinstance(facts, dict):
        raise UserError(
            f"{checkpoint} is not a complete checkpoint (no readable {METADATA}); name another one"
        )
    return facts


def _sync(folder: Path) -> None:
    """Have the disk hold a folder's files before it gets its name: a power cut empties none."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class LocalRun(Run):
    """A run off cluster: everything lies in one folder.

    `checkpoints/step-00000100/` is renamed into place when it is complete, so that what carries the
    name is whole. SIGTERM and SIGINT ask for a stop, as preemption does on a cluster.
    """

    folder_is_kept = True

    def __init__(self, state: PartialState, folder: Path, warm_start: Path | None):
        self.state, self.folder = state, folder
        self.stop_signal: int | None = None
        self._checkpoints = folder / "checkpoints"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--output-dir {folder} cannot be made ({error.strerror}); name another folder"
            ) from None
        self._hold_folder()
        self.latest = next(
            filter(self._is_whole, sorted(self._checkpoints.glob("step-*"))[::-1]), None
        )
        self._source = str(warm_start.resolve()) if warm_start else None
        if self.latest and self._source:
            if read_metadata(self.latest).get("warm_start") != self._source:
                raise UserError(
                    f"--output-dir {folder} already holds another run; give this warm start a new "
                    "folder"
                )
        elif warm_start:
            self.latest, self.latest_is_own = warm_start, False
        state.wait_for_everyone()  # no rank writes before all have looked
        if self.is_chief:
            own = self.latest if self.latest_is_own else None
            steps = read_metadata(own)["steps_completed"] if own else -1
            self._forget_after(steps)
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=steps + 1)
        self._handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }

    def close(self) -> None:
        """Close the writer and give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.writer:
            self.writer.close()
        if self.is_chief:
            self._lock.close()  # and so is given up

    def _hold_folder(self) -> None:
        """Keep other processes out of the folder until this one ends, however it ends.

        Raises:
            UserError: somebody is there already.
        """
        if not self.is_chief:
            return
        self._lock = (self.folder / ".lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return  # a file system without locks
            self._lock.seek(0)
            who = self._lock.read() or "another process"
            raise UserError(
                f"--output-dir {self.folder} is in use by {who}; wait for it, stop it, or name "
                "another folder"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock.flush()

    @staticmethod
    def _is_whole(checkpoint: Path) -> bool:
        try:
            return isinstance(read_metadata(checkpoint).get("steps_completed"), int)
        except UserError:
            return False

    def _forget_after(self, steps: int) -> None:
        """Drop metrics past the checkpoint: the steps they tell of are made again.

        A line that a full disk or a power cut has torn is no line.
        """
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["steps_completed"] <= steps:
                    kept.append(f"{line}\n")
        staging = path.with_name(f".{path.name}")
        staging.write_text("".join(kept))
        os.replace(staging, path)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.stop_signal is not None:  # asked twice: now
            raise SystemExit(128 + number)
        self.stop_signal = number

    def report(self, steps, metrics, *, validation=False):
        if self.is_chief:
            group = "validation" if validation else "training"
            self.log_scalars(steps, metrics, group)
            with (self.folder / "metrics.jsonl").open("a") as f:
                f.write(json.dumps({"group": group, "steps_completed": steps, **metrics}) + "\n")

    def report_progress(self, fraction):
        pass

    def save(self, steps, metadata, write):
        final = self._checkpoints / f"step-{steps:08d}"
        if self.is_chief and not self._is_whole(final):
            staging = final.with_name(f".{final.name}")
            try:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
                write(staging)
                (staging / METADATA).write_text(
                    json.dumps(
                        {"steps_completed": steps, "warm_start": self._source, **metadata}, indent=1
                    )
                )
                _sync(staging)
                shutil.rmtree(final, ignore_errors=True)  # one that a power cut has torn
                os.replace(staging, final)
            except (
                OSError,
                RuntimeError,
            ) as error:  # torch.save reports a full disk as RuntimeError
                shutil.rmtree(staging, ignore_errors=True)
                raise UserError(
                    f"{final} cannot be written ({error}); make room and run the same command "
                    "again, earlier checkpoints are untouched"
                ) from None
        self.state.wait_for_everyone()

    def should_stop(self):
        asked = self.stop_signal is not None
        if self.state.num_processes == 1:
            return asked
        flag = torch.tensor(float(asked), device=self.state.device)
        torch.distributed.all_reduce(flag)
        return bool(flag > 0)


class ClusterRun(Run):
    """A run in a Determined trial, over Core API."""

    folder_is_kept = False

    def __init__(self, state: PartialState, context: core.Context, folder: Path):
        self.state, self.context, self.folder = state, context, folder
        folder.mkdir()
        info = det.get_cluster_info()
        self._trial_id = info.trial.trial_id
        self._uploaded = 0.0
        self._judged = threading.Event()  # set where the searcher has ended this trial
        if self.is_chief and cluster_experiment()["searcher"]["name"] in JUDGING_SEARCHERS:
            threading.Thread(target=self._ask_the_searcher, daemon=True).start()
        if self.is_chief:
            path = context.train.get_tensorboard_path()
            path.mkdir(parents=True, exist_ok=True)
            self.writer = SummaryWriter(str(path))

    def use(self, checkpoint: Path, uuid: str) -> None:
        """Go on from a restored checkpoint; whose it is shows in its metadata."""
        self.latest, self.latest_uuid = checkpoint, uuid
        self.latest_is_own = read_metadata(checkpoint).get("trial_id") == self._trial_id

    def report(self, steps, metrics, *, validation=False):
        if self.is_chief:
            # The harness posts the dict later, from another thread: hand it its own copy.
            if validation:
                self.context.train.report_validation_metrics(steps, dict(metrics))
            else:
                self.context.train.report_training_metrics(steps, dict(metrics))
            self.log_scalars(steps, metrics, "validation" if validation else "training")

    def report_progress(self, fraction):
        if self.is_chief:
            self.context.train.report_progress(min(1.0, fraction))

    def save(self, steps, metadata, write):
        if self.is_chief:
            facts = {"steps_completed": steps, "trial_id": self._trial_id, **metadata}
            with self.context.checkpoint.store_path(facts) as (path, _):
                write(path)
        self.state.wait_for_everyone()

    def should_stop(self):
        # The harness tells the other ranks of a preemption, but not of what we found out ourselves.
        asked = self.is_chief and (self.context.preempt.should_preempt() or self._judged.is_set())
        return self.context.distributed.broadcast(asked)

    def _ask_the_searcher(self) -> None:
        """Look, once a second, whether the searcher has ended this trial.

        Only a pause, a cancel and a kill are signalled. A trial that the searcher is done with is
        marked, and the master waits for it to end by itself. In a thread, since a master that is
        away lets us wait; a question that fails is no reason to end.
        """
        from determined.experimental import client  # here, since few trials need it

        ended = (client.TrialState.STOPPING_COMPLETED, client.TrialState.COMPLETED)
        while not self._judged.wait(1):
            with contextlib.suppress(Exception):  # networks and masters fail in many ways
                if client.get_trial(self._trial_id).state in ended:
                    self._judged.set()

    def flush(self):
        if self.writer:
            self.writer.flush()
            # An upload within a second of the last one is dropped without a word.
            time.sleep(max(0.0, self._uploaded + 1.1 - time.monotonic()))
            self.context.train.upload_tensorboard_files()
            self._uploaded = time.monotonic()


def on_cluster() -> bool:
    """Whether this process is a task of a Determined trial (a notebook task is not)."""
    info = det.get_cluster_info()
    return info is not None and info.task_type == "TRIAL"


def cluster_hyperparameters() -> dict[str, Any]:
    """The trial's hyperparameters, as the searcher chose them."""
    return det.get_cluster_info().trial.hparams


def cluster_experiment() -> dict[str, Any]:
    """The configuration of the trial's experiment, as the master completed it."""
    # The harness keeps it private, since its shape may change with the version; ours is pinned.
    return det.get_cluster_info().trial._config


def _processes() -> PartialState:
    """Accelerate's state, with the ranks connected where there are several."""
    if "LOCAL_RANK" not in os.environ:
        return PartialState()
    # Else Accelerate chooses a number of threads itself, and warns of it at every start.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    # One rank downloads while the others wait: longer than the libraries' ten minutes at times.
    patience = timedelta(hours=2)
    if torch.cuda.is_available():
        return PartialState(timeout=patience)
    return PartialState(cpu=True, backend="gloo", timeout=patience)


@contextlib.contextmanager
def open_run(output_dir: Path, warm_start: Path | None = None) -> Iterator[Run]:
    """The run of this process: in the trial it belongs to, else in `output_dir`.

    On a cluster `output_dir` and `warm_start` are not used: the trial's own checkpoint, or the one
    that its experiment names as a source, is restored on every node.
    """
    state = _processes()
    try:
        if on_cluster():
            for kind in ("shared", "directory"):  # said at every restore, of a whole one too
                logging.getLogger(f"determined.common.storage.{kind}").addFilter(
                    lambda record: "Ignoring partial checkpoint" not in record.getMessage()
                )
            distributed = (
                core.DistributedContext.from_torch_distributed() if "RANK" in os.environ else None
            )
            with contextlib.ExitStack() as stack:
                context = stack.enter_context(
                    core.init(
                        distributed=distributed,
                        preempt_mode=core.PreemptMode.ChiefOnly,
                        tensorboard_mode=core.TensorboardMode.MANUAL,
                    )
                )
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="detsd-")))
                run = ClusterRun(state, context, folder / "run")
                latest = det.get_cluster_info().latest_checkpoint
                if latest:
                    # Copied, and left at once: leaving it is a collective without a time limit, in
                    # which a failing rank would wait for the others for ever.
                    with context.checkpoint.restore_path(latest) as path:
                        shutil.copytree(path, folder / "latest")
                    run.use(folder / "latest", latest)
                yield run
                run.flush()
                if run.writer:
                    run.writer.close()
        else:
            run = LocalRun(state, output_dir, warm_start)
            with contextlib.closing(run):
                yield run
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
