"""A run in a Determined trial, over Core API."""

import contextlib
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import determined as det
from determined import core
from determined.common.api import errors as api_errors
from determined.errors import CheckpointNotFound
from determined.experimental import client

from detsd.runs.download import deleted
from detsd.runs.folder import read_metadata
from detsd.runs.master_watch import MAX_PAUSE, MasterWatch, watch_master
from detsd.runs.ranks import AcceleratedRanks, Ranks, distributed_context, fail_together
from detsd.runs.registry import shorten
from detsd.runs.run import Run
from detsd.runs.task import cluster_experiment, experiment_id
from detsd.runs.tensorboard import TensorBoard
from detsd.utils import progress
from detsd.utils.errors import UserError, one_line

logger = logging.getLogger("detsd")

# Why a trial was signalled to save and leave, by the state of its experiment.
STOPS = {
    "PAUSED": "paused", "STOPPING_CANCELED": "canceled", "CANCELED": "canceled",
    "ACTIVE": "preempted", "RUNNING": "preempted", "QUEUED": "preempted",
}  # fmt: skip

JUDGING_SEARCHERS = ("adaptive_asha",)  # those that end running trials
UPLOADS_APART = 1.1  # seconds: the harness silently drops an upload within a second of the last


class DeterminedRun(Run):
    """A run in a Determined trial, over Core API."""

    folder_is_kept = False
    begin_anew, warm_start = "start a new experiment", "searcher.source_checkpoint_uuid"

    def __init__(self, ranks: Ranks, context: core.Context, folder: Path, master: MasterWatch):
        self.ranks, self.context, self.folder = ranks, context, folder
        self._master = master
        folder.mkdir()
        self._trial_id = det.get_cluster_info().trial.trial_id
        self._uploaded = 0.0
        self.keeps = cluster_experiment()["checkpoint_storage"].get("save_trial_latest", 1)
        self._judged = threading.Event()  # set once the searcher has ended this trial
        if self.is_chief and cluster_experiment()["searcher"]["name"] in JUDGING_SEARCHERS:
            ask = self._ask_the_searcher
            threading.Thread(target=ask, name="searcher", daemon=True).start()
        if self.is_chief:
            progress.watchers.append(self.show)

    def close(self) -> None:
        """Stop what this process left running."""
        self._judged.set()  # ends the asking thread
        progress.watchers.clear()
        if self.tensorboard:
            self.tensorboard.close()

    def resume_from(self, checkpoint: Path, uuid: str) -> None:
        """Resume from a restored checkpoint; its metadata tells whether this trial wrote it."""
        self.latest, self.latest_uuid = checkpoint, uuid
        self.latest_is_own = read_metadata(checkpoint).get("trial_id") == self._trial_id
        self.stored_uuid = uuid if self.latest_is_own else ""

    def open_tensorboard(self) -> None:
        """Open the event file, once it is known at which step this process begins."""
        if self.is_chief:
            path = self.context.train.get_tensorboard_path()
            self.tensorboard = TensorBoard(path, self.own_steps + 1)

    def report(self, steps, metrics, group="training"):
        if self.is_chief:
            # The harness posts the dict later, from another thread, so it gets its own copy. It
            # does not report which posts arrived: after a failed one, the next call ends the
            # process, and a new process resumes from the last checkpoint.
            self.context.train.report_metrics(group, steps, dict(metrics))
            self.tensorboard.scalars(steps, metrics, group)

    def report_progress(self, fraction):
        if self.is_chief:
            with contextlib.suppress(api_errors.BadRequestException):  # nothing depends on it
                self.context.train.report_progress(min(1.0, fraction))

    def show(self, text: str) -> None:
        """Show the status beside the trial in the cluster's page. Chief only."""
        with contextlib.suppress(api_errors.BadRequestException):  # nothing depends on it
            self.context.train.set_status(text)

    def store(self, steps, metadata, write):
        facts = {"steps_completed": steps, "trial_id": self._trial_id, **metadata}
        for pause in (1, 5, 25, None):
            try:
                with self.context.checkpoint.store_path(facts) as (path, uuid):
                    write(path)
                self.stored_uuid = uuid
                return uuid
            except (api_errors.MasterNotFoundException, api_errors.BadRequestException) as error:
                # The harness waits for an unreachable master, but not for one that fails during its
                # response. If that master had received the report, the step gets two checkpoints.
                if pause is None:
                    raise
                logger.warning(
                    "the master's answer to a checkpoint broke off (%s); retrying", error
                )
                time.sleep(pause)

    def register(self, model, uuid, title, notes):
        try:
            try:
                entry = client.get_model(model)
            except api_errors.NotFoundException:
                entry = client.create_model(model)
            for version in entry.list_versions():
                if version.checkpoint.uuid == uuid:  # by this trial, before it was restarted
                    return f"version {version.model_version} of {model}"
            version = entry.register_version(uuid)
            version.set_name(title)
            version.set_notes(notes)
            metadata = version.checkpoint.metadata
            short = shorten(metadata)
            version.checkpoint.add_metadata(short)
            version.checkpoint.remove_metadata([key for key in metadata if key not in short])
        except Exception as error:  # the concepts are already stored
            logger.warning(
                "checkpoint %s (%s) could not be registered as %r (%s); register it with "
                "det model register-version, after det model create if there is no such model",
                *(uuid, title, model, one_line(error)),
            )
            return ""
        found = f"version {version.model_version} of {model}"
        self.print(f"registered as {found}: {title}")
        return found

    def deletes(self, uuid, newer):
        storage = cluster_experiment()["checkpoint_storage"]
        kept = {"save_trial_best": 1, "save_experiment_best": 0}  # Determined's defaults
        kept = {key: storage.get(key, default) for key, default in kept.items()}
        if newer >= self.keeps and not any(kept.values()):
            return f"checkpoint_storage deletes it ({', '.join(f'{k}: {kept[k]}' for k in kept)})"
        with contextlib.suppress(Exception):  # an unreachable master cannot tell
            if client.get_checkpoint(uuid).state is client.CheckpointState.DELETED:
                return "checkpoint_storage has deleted it"
        return ""

    def fetch(self, uuid, to, wanted=lambda name: True):
        alone = core.DownloadMode.NoSharedDownload  # the other mode is collective
        with self.context.checkpoint.restore_path(uuid, alone, selector=wanted) as path:
            # If the storage is a folder, this is the whole checkpoint, whatever is wanted.
            shutil.copytree(
                path, to, dirs_exist_ok=True,
                ignore=lambda folder, names: [name for name in names if not wanted(name)],
            )  # fmt: skip

    def asked_to_stop(self):
        return self.is_chief and (self.context.preempt.should_preempt() or self._judged.is_set())

    def why_stopped(self):
        if self._judged.is_set():
            return "ended by the search"
        # All preemptions send the same signal, so the master is asked why. It may not answer.
        with contextlib.suppress(Exception):
            if not self._master.away.is_set():
                state = client.get_experiment(experiment_id()).state.name
                return STOPS.get(state, "stopped")
        return "stopped"

    def should_stop(self):
        # The harness would signal a preemption to the other ranks, but not the searcher's decision.
        return self.context.distributed.broadcast(self.asked_to_stop())

    def _ask_the_searcher(self) -> None:
        """Ask once a second whether the searcher has ended this trial, which sends no signal."""
        # The master signals only a pause, a cancel and a kill; it waits for a trial that its
        # searcher has ended. A thread asks, since the call blocks while the master is unreachable.
        ended = (client.TrialState.STOPPING_COMPLETED, client.TrialState.COMPLETED)
        pause = 1
        while not self._judged.wait(pause):
            pause = min(2 * pause, MAX_PAUSE)
            if self._master.away.is_set():
                continue
            with contextlib.suppress(Exception):  # networks and masters fail in many ways
                if client.get_trial(self._trial_id).state in ended:
                    self._judged.set()
                pause = 1

    def flush(self):
        if self.tensorboard:
            time.sleep(max(0.0, self._uploaded + UPLOADS_APART - time.monotonic()))
            self.context.train.upload_tensorboard_files()
            self._uploaded = time.monotonic()


@contextlib.contextmanager
def determined_run(accelerate: bool) -> Iterator[Run]:
    for kind in ("shared", "directory"):  # logged at every restore, even of a complete one
        logging.getLogger(f"determined.common.storage.{kind}").addFilter(
            lambda record: "Ignoring partial checkpoint" not in record.getMessage()
        )
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(watch_master())
        context = stack.enter_context(
            core.init(
                distributed=distributed_context(),
                preempt_mode=core.PreemptMode.ChiefOnly,
                tensorboard_mode=core.TensorboardMode.MANUAL,
            )
        )
        ranks = AcceleratedRanks() if accelerate else Ranks(context.distributed)
        stack.enter_context(fail_together())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="detsd-")))
        run = DeterminedRun(ranks, context, folder / "run", master)
        stack.callback(run.close)
        latest = det.get_cluster_info().latest_checkpoint
        if latest:
            if ranks.local_rank == 0:
                try:
                    run.fetch(
                        latest, folder / "latest", lambda n: accelerate or not n.endswith(".zip")
                    )
                except CheckpointNotFound:  # the master accepts a deleted one
                    raise UserError(deleted(latest)) from None
            run.resume_from(context.distributed.broadcast_local(folder / "latest"), latest)
        run.open_tensorboard()
        yield run
        run.flush()
