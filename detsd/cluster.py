"""Where a run keeps what it makes and whom it tells: a Determined cluster, or a folder.

The only module that imports `determined.core`. `open_run` decides once; everything else is handed a
`Run`. Its ranks speak over Core API in a grid of images, and over Accelerate in a fine-tuning.
Every method marked "collective" is called by all ranks, in the same order.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import determined as det
import google_crc32c
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, check_cuda_p2p_ib_support, gather_object
from determined import core
from determined.common.api import errors as api_errors
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer import record_writer
from torch.utils.tensorboard import SummaryWriter

from detsd.trial import (
    METADATA,
    cluster_experiment,
    is_whole,
    latest_checkpoint,
    on_cluster,
    read_metadata,
)
from detsd.utils import progress
from detsd.utils.errors import UserError, one_line
from detsd.watch import check_gpus, together

logger = logging.getLogger("detsd")

JUDGING_SEARCHERS = ("adaptive_asha",)  # those that end a trial that is still running
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "detsd" / "checkpoints"
# One rank downloads while the others wait: longer than the libraries' ten minutes at times.
PATIENCE = timedelta(hours=2)


def masked_crc32c(data: bytes) -> int:
    """The checksum of TensorBoard's records, in C: its own takes 70 ms for an image of 450 KB."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


record_writer.masked_crc32c = masked_crc32c


class Ranks:
    """The processes of a run as Core API connects them, without a process group of torch.

    Attributes:
        rank: of this process; 0 is the chief.
        size: how many there are.
        local_rank: of this process on its machine.
        device: the GPU of the local rank, or what there is.
        waiting: whether this process waits for the others.
    """

    def __init__(self, context: core.DistributedContext):
        self.context = context
        self.rank, self.size, self.local_rank = context.rank, context.size, context.local_rank
        self.waiting = False
        if torch.cuda.is_available():
            self.device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("mps" if torch.backends.mps.is_available() else "cpu")

    def allgather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of the ranks. Collective."""
        self.waiting = True
        try:
            return self.context.allgather(value)
        finally:
            self.waiting = False

    def any(self, value: bool) -> bool:
        """Whether it is true on any rank. Collective."""
        return any(self.allgather(value))

    @contextlib.contextmanager
    def local_chief_first(self) -> Iterator[None]:
        """One rank of each machine goes through the block before its others. Collective."""
        if self.local_rank == 0:
            try:
                yield
            finally:
                self.context.broadcast_local(None)
        else:
            self.context.broadcast_local(None)
            yield


class AcceleratedRanks(Ranks):
    """The processes of a run as Accelerate connects them, by NCCL or gloo."""

    def __init__(self):
        cpu = not torch.cuda.is_available() and "LOCAL_RANK" in os.environ
        options = InitProcessGroupKwargs(timeout=PATIENCE)
        if cpu:
            options.backend = "gloo"
            # Else Accelerate chooses a number of threads itself, and warns of it at every start.
            os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
            if int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1:
                # gloo takes the address of the host's own name, which is 127.0.0.1 on many.
                name = os.environ.get("DET_INTER_NODE_NETWORK_INTERFACE")
                name = name or interface_towards(os.environ["MASTER_ADDR"])
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        if torch.cuda.is_available() and not check_cuda_p2p_ib_support():
            # Cards of the RTX 40 series under an older driver, which Accelerate refuses, also for
            # one process on one of several, unless told what its own launcher would tell it.
            os.environ |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
        self.accelerator = Accelerator(cpu=cpu, kwargs_handlers=[options])
        self.rank, self.size = self.accelerator.process_index, self.accelerator.num_processes
        self.local_rank = self.accelerator.local_process_index
        self.device = self.accelerator.device
        self.waiting = False  # a rank that is gone shows in an error here
        self._asked: Callable[[], bool] = lambda: False  # the answer to the last call of `any`

    def allgather(self, value):
        return gather_object([value]) if self.size > 1 else [value]

    def any(self, value):
        """Whether it is true here; of several ranks, whether it was at the call before.

        A GPU answers when it is done with what it was given. So it is given the next step first.
        """
        if self.size == 1:
            return value
        before, self._asked = self._asked(), self._ask(value)
        return before

    def _ask(self, value: bool) -> Callable[[], bool]:
        on_gpu = self.device.type == "cuda"
        share = self.mean(torch.full((), float(value), device=self.device))
        answer = torch.empty((), pin_memory=on_gpu)
        answer.copy_(share, non_blocking=True)
        if not on_gpu:
            return lambda: bool(answer > 0)
        there = torch.cuda.Event()
        there.record()
        return lambda: there.synchronize() or bool(answer > 0)

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean of every rank's tensor. Collective."""
        return self.accelerator.reduce(tensor, "mean") if self.size > 1 else tensor

    def local_chief_first(self):
        return self.accelerator.local_main_process_first()


def interface_towards(address: str) -> str:
    """Name of the network interface by which this machine reaches `address`, its own included."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((address, 9))  # of a datagram socket: sends nothing
        own = s.getsockname()[0]
    return next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if own in (a.address for a in addresses)
    )


class Run:
    """What a training needs of the outside world.

    Attributes:
        ranks: the processes, and this one's device.
        folder: where samples and pictures of this run gather.
        folder_is_kept: whether `folder` outlives the process; if not, checkpoints carry its files.
        latest: folder of the checkpoint to go on from, or None.
        latest_is_own: whether `latest` was written by this very run (resume), or by another
            (warm start: learned rows only).
        latest_uuid: what a cluster calls `latest`.
        latest_name: what a person calls it.
    """

    ranks: Ranks
    folder: Path
    folder_is_kept: bool
    keeps: int = 1  # how many of its latest checkpoints outlive an experiment
    stop_signal: int | None = None
    latest: Path | None = None
    latest_is_own: bool = True
    latest_uuid: str = ""
    writer: SummaryWriter | None = None  # on the chief only

    @property
    def is_chief(self) -> bool:
        return self.ranks.rank == 0

    @property
    def latest_name(self) -> str:
        return f"checkpoint {self.latest_uuid}" if self.latest_uuid else str(self.latest)

    def gather(self, values: list[Any]) -> list[Any]:
        """All ranks' lists joined in the order of the ranks, on every rank. Collective."""
        return [value for each in self.ranks.allgather(values) for value in each]

    def say(self, text: str) -> None:
        """A line for the person at the terminal or the task's log, once."""
        if self.is_chief:
            progress.say(text)

    def log_scalars(self, steps: int, metrics: dict[str, float], group: str) -> None:
        if self.writer:
            for name, value in metrics.items():
                self.writer.add_scalar(f"{group}/{name}", value, steps)

    def log_image(self, tag: str, file: bytes, steps: int = 0) -> None:
        """A PNG or JPEG file for TensorBoard, as it is. Chief only."""
        with Image.open(io.BytesIO(file)) as opened:  # which reads its head alone
            width, height = opened.size
        image = Summary.Image(
            encoded_image_string=file,
            width=width,
            height=height,
            colorspace=3,  # RGB
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self.writer.file_writer.add_summary(summary, steps)

    def save(self, steps: int, metadata: dict[str, Any], write: Callable[[Path], None]) -> str:
        """`store`, and all ranks go on when it is done, with what it returned. Collective."""
        uuid = self.store(steps, metadata, write) if self.is_chief else ""
        return self.ranks.allgather(uuid)[0]

    def agree(self, **facts: dict[str, Any]) -> None:
        """Refuse ranks that differ in what must be equal, before they train on it. Collective.

        Args:
            facts: what must be equal, in words -> its parts.

        Raises:
            UserError: naming what differs, and between whom.
        """
        chief, *others = self.ranks.allgather(facts)
        for rank, found in enumerate(others, 1):
            for what, parts in chief.items():
                names = sorted({*parts, *found[what]})
                unequal = [n for n in names if parts.get(n) != found[what].get(n)]
                if unequal:
                    name = unequal[0]
                    more = f", and in {len(unequal) - 1} more" if len(unequal) > 1 else ""
                    raise UserError(
                        f"ranks 0 and {rank} differ in their {what.replace('_', ' ')}: {name} is "
                        f"{parts.get(name)!r} here and {found[what].get(name)!r} there{more}; "
                        "start all of them with the same files, packages and kind of device"
                    )

    # The rest differs on and off cluster.

    def begin(self) -> None:
        """From here on something is written: what could be wrong from the start has been seen."""

    def report(self, steps: int, metrics: dict[str, float], group: str = "training") -> None:
        """Report metrics of `steps` completed steps. Chief only does anything.

        Args:
            group: "training" and "validation" are Determined's own; each has a graph of its own.
        """
        raise NotImplementedError

    def report_progress(self, fraction: float) -> None:
        raise NotImplementedError

    def store(self, steps: int, metadata: dict[str, Any], write: Callable[[Path], None]) -> str:
        """Store what `write(folder)` puts into an empty folder, all or nothing. Chief only.

        `write` may be called again. Returns what a cluster calls the checkpoint.
        """
        raise NotImplementedError

    def register(self, model: str, uuid: str, title: str, notes: str) -> None:
        """Make a stored checkpoint a version of a model in the cluster's registry. Chief only.

        Once, however often it is asked for. The model is made where there is none of that name.
        """
        raise NotImplementedError

    def fetch(self, uuid: str, to: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Copy those files of a stored checkpoint whose names are wanted. On a cluster only."""
        raise NotImplementedError

    def asked_to_stop(self) -> bool:
        """Whether this rank was asked to save and leave."""
        raise NotImplementedError

    def should_stop(self) -> bool:
        """Whether any rank was asked to save and leave. Collective."""
        return self.ranks.any(self.asked_to_stop())

    def flush(self) -> None:
        """Make what `writer` holds visible."""
        if self.writer:
            self.writer.flush()


def pack(archive: Path, files: Iterable[Path], root: Path) -> None:
    """Many files as one, under their names below `root`; pictures are compressed already."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for path in files:
            packed.write(path, path.relative_to(root))


def unpack(archive: Path, root: Path) -> None:
    """Lay the files that `pack` took back below `root`."""
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(root)


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

    def __init__(self, ranks: Ranks, folder: Path, warm_start: Path | None):
        self.ranks, self.folder = ranks, folder
        self._checkpoints = folder / "checkpoints"
        self._begun = self._stops_gently = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--output-dir {folder} cannot be made ({error.strerror}); name another folder"
            ) from None
        self._hold_folder()
        self.latest = latest_checkpoint(folder)
        self._source = str(warm_start.resolve()) if warm_start else None
        if warm_start and not self.latest:  # else it began so: `checks.check_resume`
            self.latest, self.latest_is_own = warm_start, False
        ranks.allgather(None)  # no rank writes before all have looked
        self._handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }

    def begin(self):
        self._begun = True
        if self.is_chief:
            own = self.latest if self.latest_is_own else None
            steps = read_metadata(own)["steps_completed"] if own else -1
            self._forget_after(steps)
            self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=steps + 1)

    def close(self) -> None:
        """Close the writer and give the signals back; a folder that stayed empty goes."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.writer:
            self.writer.close()
        if self.is_chief:
            if not self._begun:
                with contextlib.suppress(OSError):
                    if [p.name for p in self.folder.iterdir()] == [".lock"]:
                        (self.folder / ".lock").unlink()
                        self.folder.rmdir()
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
        # Asked twice, idle, or with nothing to lose yet: now.
        now = self.stop_signal is not None or self.ranks.waiting or not self._stops_gently
        if self.is_chief:
            gently = "stopping: what is made is being stored; ask again to leave at once"
            progress.answer("stopped" if now else gently)
        if now:
            raise SystemExit(128 + number)
        self.stop_signal = number

    def report(self, steps, metrics, group="training"):
        if self.is_chief:
            self.log_scalars(steps, metrics, group)
            with (self.folder / "metrics.jsonl").open("a") as f:
                f.write(json.dumps({"group": group, "steps_completed": steps, **metrics}) + "\n")

    def report_progress(self, fraction):
        pass

    def store(self, steps, metadata, write):
        final = self._checkpoints / f"step-{steps:08d}"
        if not is_whole(final):
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
        return ""

    def register(self, model, uuid, title, notes):
        logger.warning(
            "training.register_model: only a cluster has a model registry; the best checkpoint, "
            "%s, lies in %s",
            title,
            self.folder,
        )

    def asked_to_stop(self):
        self._stops_gently = True  # by now there is something to lose
        return self.stop_signal is not None


class ClusterRun(Run):
    """A run in a Determined trial, over Core API."""

    folder_is_kept = False

    def __init__(self, ranks: Ranks, context: core.Context, folder: Path):
        self.ranks, self.context, self.folder = ranks, context, folder
        folder.mkdir()
        self._trial_id = det.get_cluster_info().trial.trial_id
        self._uploaded = 0.0
        self.keeps = cluster_experiment()["checkpoint_storage"].get("save_trial_latest", 1)
        self._judged = threading.Event()  # set where the searcher has ended this trial
        if self.is_chief and cluster_experiment()["searcher"]["name"] in JUDGING_SEARCHERS:
            ask = self._ask_the_searcher
            threading.Thread(target=ask, name="searcher", daemon=True).start()
        if self.is_chief:
            progress.watchers.append(self.show)
            path = context.train.get_tensorboard_path()
            path.mkdir(parents=True, exist_ok=True)
            self.writer = SummaryWriter(str(path))

    def close(self) -> None:
        """Leave nothing behind in this process."""
        self._judged.set()  # ends the thread that asks
        progress.watchers.clear()
        if self.writer:
            self.writer.close()

    def use(self, checkpoint: Path, uuid: str) -> None:
        """Go on from a restored checkpoint; whose it is shows in its metadata."""
        self.latest, self.latest_uuid = checkpoint, uuid
        self.latest_is_own = read_metadata(checkpoint).get("trial_id") == self._trial_id

    def report(self, steps, metrics, group="training"):
        if self.is_chief:
            # The harness posts the dict later, from another thread: hand it its own copy. It does
            # not say which came through, so a post that fails ends the process, at the next one:
            # what was stored goes on in a new one.
            self.context.train.report_metrics(group, steps, dict(metrics))
            self.log_scalars(steps, metrics, group)

    def report_progress(self, fraction):
        if self.is_chief:
            self._show(self.context.train.report_progress, min(1.0, fraction))

    def show(self, text: str) -> None:
        """Have the cluster show beside the trial what it is at. Chief only."""
        self._show(self.context.train.set_status, text)

    @staticmethod
    def _show(call: Callable[[Any], None], value: Any) -> None:
        with contextlib.suppress(api_errors.BadRequestException):  # nothing hangs on it
            call(value)

    def store(self, steps, metadata, write):
        facts = {"steps_completed": steps, "trial_id": self._trial_id, **metadata}
        for pause in (1, 5, 25, None):
            try:
                with self.context.checkpoint.store_path(facts) as (path, uuid):
                    write(path)
                return uuid
            except (api_errors.MasterNotFoundException, api_errors.BadRequestException) as error:
                # The harness waits for a master that is away, but not where it went while it
                # answered. If it had heard us, there is one checkpoint more of the same step.
                if pause is None:
                    raise
                logger.warning("the master's answer to a checkpoint was cut (%s); again", error)
                time.sleep(pause)

    def register(self, model, uuid, title, notes):
        from determined.experimental import client  # here, since few trials need it

        try:
            try:
                entry = client.get_model(model)
            except api_errors.NotFoundException:
                entry = client.create_model(model)
            if any(v.checkpoint.uuid == uuid for v in entry.list_versions()):
                return  # by this very trial, before it was restarted
            version = entry.register_version(uuid)
            version.set_name(title)
            version.set_notes(notes)
        except Exception as error:  # what was learned is stored
            logger.warning(
                "checkpoint %s (%s) could not be registered as %r (%s); do so with "
                "det model register-version, after det model create where there is no such model",
                *(uuid, title, model, one_line(error)),
            )
        else:
            self.say(f"registered as version {version.model_version} of {model}: {title}")

    def fetch(self, uuid, to, wanted=lambda name: True):
        alone = core.DownloadMode.NoSharedDownload  # the other kind is a collective
        with self.context.checkpoint.restore_path(uuid, alone, selector=wanted) as path:
            # Of storage that is a folder the whole checkpoint is here, whatever is wanted.
            shutil.copytree(
                path, to, dirs_exist_ok=True,
                ignore=lambda folder, names: [name for name in names if not wanted(name)],
            )  # fmt: skip

    def asked_to_stop(self):
        return self.is_chief and (self.context.preempt.should_preempt() or self._judged.is_set())

    def should_stop(self):
        # The harness would tell the other ranks of a preemption, but not of the searcher's word.
        return self.context.distributed.broadcast(self.asked_to_stop())

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


def _distributed() -> core.DistributedContext | None:
    """Core API's connection of as many processes as torchrun or Determined's launcher started.

    None for one alone.
    """
    if "RANK" not in os.environ:
        return None
    if on_cluster():
        return core.DistributedContext.from_torch_distributed()
    # Its fixed ports would let a second grid on this machine fail. The launcher's store, which is
    # there without a process group, tells all ranks which ones the chief has found.
    store, rank, _ = next(torch.distributed.rendezvous("env://", timeout=PATIENCE))
    if rank == 0:
        with socket.socket() as one, socket.socket() as other:
            for s in (one, other):
                s.bind(("", 0))
            ports = f"{one.getsockname()[1]} {other.getsockname()[1]}"
        store.set("detsd/ports", ports)
    pub, pull = map(int, store.get("detsd/ports").decode().split())
    context = core.DistributedContext(
        rank=rank,
        size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
        cross_rank=int(os.environ.get("GROUP_RANK", 0)),
        cross_size=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        chief_ip=os.environ["MASTER_ADDR"],
        pub_port=pub,
        pull_port=pull,
    )
    context.store = store  # lives on: where no launcher keeps one, it is the chief's own
    return context


@contextlib.contextmanager
def open_run(
    output_dir: Path, warm_start: Path | None = None, *, accelerate: bool = False
) -> Iterator[Run]:
    """The run of this process: in the trial it belongs to, else in `output_dir`.

    On a cluster `output_dir` and `warm_start` are not used: the trial's own checkpoint, or the one
    that its experiment names as a source, is restored on every node.

    Args:
        accelerate: connect the ranks by Accelerate, for a training, instead of by Core API. Only a
            training restores what is packed in a checkpoint: pictures.
    """
    check_gpus()
    with contextlib.ExitStack() as stack:
        if on_cluster():
            run = stack.enter_context(_cluster_run(accelerate))
        else:
            if accelerate:
                ranks: Ranks = AcceleratedRanks()
            else:
                context = _distributed() or core.DummyDistributedContext()
                ranks = Ranks(stack.enter_context(contextlib.closing(context)))
            stack.enter_context(together())
            run = LocalRun(ranks, output_dir, warm_start)
            stack.enter_context(contextlib.closing(run))
        yield run
        run.ranks.allgather(None)  # nobody leaves a rank that is still at work
    # Not where something was raised: what waits for the other ranks could wait for ever.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _cluster_run(accelerate: bool) -> Iterator[Run]:
    for kind in ("shared", "directory"):  # said at every restore, of a whole one too
        logging.getLogger(f"determined.common.storage.{kind}").addFilter(
            lambda record: "Ignoring partial checkpoint" not in record.getMessage()
        )
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(
            core.init(
                distributed=_distributed(),
                preempt_mode=core.PreemptMode.ChiefOnly,
                tensorboard_mode=core.TensorboardMode.MANUAL,
            )
        )
        ranks = AcceleratedRanks() if accelerate else Ranks(context.distributed)
        stack.enter_context(together())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="detsd-")))
        run = ClusterRun(ranks, context, folder / "run")
        stack.callback(run.close)
        latest = det.get_cluster_info().latest_checkpoint
        if latest:
            if ranks.local_rank == 0:
                run.fetch(
                    latest, folder / "latest", lambda name: accelerate or not name.endswith(".zip")
                )
            run.use(context.distributed.broadcast_local(folder / "latest"), latest)
        yield run
        run.flush()


def downloaded(uuid: str) -> Path:
    """The folder of a Determined checkpoint, downloaded at the first call and kept.

    Raises:
        UserError: no master, no such checkpoint, or one that cannot be downloaded.
    """
    folder = CACHE / uuid
    if folder.is_dir():
        return folder
    staging = folder.with_name(f".{uuid}-{os.getpid()}")
    download(uuid, staging)
    try:
        os.replace(staging, folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(staging)  # somebody else with the same home was faster
    return folder


def download(uuid: str, to: Path) -> None:
    """Download a Determined checkpoint into an empty folder.

    The master and the login are those of the `det` command line.

    Raises:
        UserError: as `downloaded`.
    """
    from determined.experimental import client  # here, since laptops without a cluster need it not

    try:
        client.get_checkpoint(uuid).download(str(to))
    except api_errors.NotFoundException:
        raise UserError(f"checkpoint {uuid} is unknown to the master; check the uuid") from None
    except api_errors.MasterNotFoundException:
        raise UserError(
            f"checkpoint {uuid} cannot be asked for: no Determined master was found; set DET_MASTER"
        ) from None
    except Exception as error:  # storage back ends raise what they like
        shutil.rmtree(to, ignore_errors=True)
        reason = one_line(error)
        raise UserError(
            f"checkpoint {uuid} cannot be downloaded ({type(error).__name__}: {reason}); try "
            "det checkpoint download, and load its folder"
        ) from None
