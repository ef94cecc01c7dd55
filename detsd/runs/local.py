"""A run off cluster: everything is in one folder."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
from pathlib import Path

from detsd.runs.folder import METADATA, RunFolder, is_complete
from detsd.runs.ranks import Ranks
from detsd.runs.registry import find_version
from detsd.runs.run import Run
from detsd.runs.tensorboard import TensorBoard
from detsd.utils import progress
from detsd.utils.errors import UserError
from detsd.utils.paths import atomic_write

logger = logging.getLogger("detsd")


def _sync(folder: Path) -> None:
    """Flush a folder's files to the disk before its renaming, so that no power cut empties them."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class LocalRun(Run):
    """A run whose `checkpoints/step-00000100/` is renamed into place once it is complete.

    SIGTERM, SIGINT and SIGHUP, of a closed terminal, ask for a stop, as preemption does on a
    cluster.
    """

    folder_is_kept = True
    begin_anew, warm_start = "give --output-dir a new folder", "--warm-start"

    def __init__(self, ranks: Ranks, folder: Path, warm_start: Path | None):
        self.ranks, self.folder = ranks, folder
        self._files = RunFolder(folder)
        self._begun = self._stops_gently = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--output-dir {folder} cannot be created ({error.strerror}); name another folder"
            ) from None
        self._hold_folder()
        self.latest = self._files.latest()
        self._source = str(warm_start.resolve()) if warm_start else None
        if warm_start and not self.latest:  # else `check_resume` compares it
            self.latest, self.latest_is_own = warm_start, False
        ranks.allgather(None)  # no rank writes before all have read
        stops = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
            stops.append(signal.SIGHUP)
        self._handlers = {number: signal.signal(number, self._on_signal) for number in stops}

    def begin(self):
        self._begun = True
        if self.is_chief:
            self._files.remove_unfinished()
            steps = self.own_steps
            self._files.forget_metrics_after(steps)
            self.tensorboard = TensorBoard(self._files.tensorboard, steps + 1)

            if self.models:  # a grid has no checkpoint whose metadata could hold them
                with atomic_write(self._files.models_file) as staging:
                    staging.write_text(json.dumps(dict(self.models), indent=1) + "\n")

    def first_models(self):
        try:
            return json.loads(self._files.models_file.read_text())
        except (OSError, ValueError):
            return {}

    def compare_with_newest(self, model, uuid):
        with contextlib.suppress(UserError):  # without the registry, the run continues as it began
            newest, version = find_version(model)
            if newest != uuid:
                self.print(
                    f"model {model}: checkpoint {uuid}, with which this run began; to use "
                    f"the newer version {version}, checkpoint {newest}, {self.begin_anew}"
                )

    def close(self) -> None:
        """Close the writer, restore the signal handlers, and remove a folder that stayed empty."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.tensorboard:
            self.tensorboard.close()
        if self.is_chief:
            if not self._begun:
                with contextlib.suppress(OSError):
                    if [p.name for p in self.folder.iterdir()] == [".lock"]:
                        (self.folder / ".lock").unlink()
                        self.folder.rmdir()
            self._lock.close()  # releases the lock

    def _hold_folder(self) -> None:
        """Lock the folder for this process until it ends, however it ends."""
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

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGHUP:  # a shell may repeat it, and nobody sees what is written
            signal.signal(number, signal.SIG_IGN)
            progress.discard_output()
        # End at once if asked twice, if idle, or if there is nothing to lose yet.
        now = self.stop_signal is not None or self.ranks.waiting or not self._stops_gently
        if self.is_chief:
            gently = "stopping: storing what has been made; interrupt again to quit at once"
            progress.print_from_signal("stopped" if now else gently)
        if now:
            raise SystemExit(128 + number)
        self.stop_signal = self.ranks.stop_signal = number

    def report(self, steps, metrics, group="training"):
        if self.is_chief:
            self.tensorboard.scalars(steps, metrics, group)
            with self._files.metrics_file.open("a") as f:
                f.write(json.dumps({"group": group, "steps_completed": steps, **metrics}) + "\n")

    def store(self, steps, metadata, write):
        final = self._files.checkpoint(steps)
        if not is_complete(final):
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
                shutil.rmtree(final, ignore_errors=True)  # truncated by a power cut
                os.replace(staging, final)
            except BaseException as error:
                shutil.rmtree(staging, ignore_errors=True)
                # torch.save reports a full disk as RuntimeError; a second signal raises SystemExit.
                if not isinstance(error, OSError | RuntimeError):
                    raise
                raise UserError(
                    f"{final} cannot be written ({error}); make room and run the same command "
                    "again (earlier checkpoints are untouched)"
                ) from None
        return ""

    def register(self, model, uuid, title, notes):
        logger.warning(
            "training.register_model: only a cluster has a model registry; the best checkpoint, "
            "%s, is in %s",
            title,
            self.folder,
        )
        return ""

    def asked_to_stop(self):
        self._stops_gently = True  # by now there is something to lose
        return self.stop_signal is not None
