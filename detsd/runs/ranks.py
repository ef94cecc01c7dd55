"""The processes of one run: collectives, and a watch that ends all processes when one fails.

A rank that raises an error leaves the others in a collective, where NCCL waits for hours and
ignores signals. So it reports the error in the launcher's store, which a thread of every other rank
watches.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, check_cuda_p2p_ib_support, gather_object
from determined import core

from detsd.runs.peers import launcher_store
from detsd.runs.task import on_cluster
from detsd.utils.errors import UserError
from detsd.utils.plurals import counted

KEY = "detsd/failed"
POLL_SECONDS = 0.5
GRACE_SECONDS = 4.0  # for a rank to end itself: gloo raises, or the rank has its own error

# How long the others may take to answer a rank that was asked to stop. When one rank is killed,
# torchrun asks all to stop, and kills them after 30 seconds.
ANSWER_SECONDS = 25.0

# The others wait while one rank downloads, at times longer than the libraries' ten minutes.
TIMEOUT = timedelta(hours=2)


def check_gpus() -> None:
    """Refuse more processes than GPUs, which NCCL would report as a duplicate GPU."""
    wanted = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if 0 < found < wanted:
        raise UserError(
            f"{wanted} processes were started on a machine with {counted(found, 'GPU')}; "
            f"start {found} (--nproc-per-node {found}), or set CUDA_VISIBLE_DEVICES= to use the CPU"
        )


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """End this process soon after another rank has failed within the block, and vice versa.

    An error caused by the end of another rank is not shown: that rank shows its own.
    """
    store = launcher_store(timedelta(minutes=5))
    if store is None:
        yield
        return
    over = threading.Event()
    threading.Thread(target=_watch_peers, args=(store, over), daemon=True).start()
    try:
        yield
    except (UserError, SystemExit, KeyboardInterrupt):
        store.set(KEY, os.environ["RANK"])
        raise
    except BaseException:
        first = os.environ["RANK"]
        with contextlib.suppress(RuntimeError):  # the store may be what broke
            first = store.compare_set(KEY, "", os.environ["RANK"]).decode()
        if first == os.environ["RANK"]:
            raise
        sys.exit(1)
    finally:
        over.set()


def _watch_peers(store: torch.distributed.TCPStore, over: threading.Event) -> None:
    failed = False
    while not failed and not over.wait(POLL_SECONDS):
        try:
            failed = store.check([KEY])
        except RuntimeError:  # the store is gone, and so is the process that held it
            failed = True
    if failed and not over.wait(GRACE_SECONDS):
        # Not an exception: the main thread may be in a call that never returns.
        os._exit(1)


class Ranks:
    """The processes of a run as Core API connects them, without a process group of torch."""

    rank: int  # of this process; 0 is the chief
    size: int  # the number of processes
    local_rank: int  # of this process on its machine
    device: torch.device  # the GPU of the local rank, or another device
    waiting: bool = False  # whether this process waits for the others
    stop_signal: int | None = None  # by which it was asked to stop

    def __init__(self, context: core.DistributedContext):
        self.context = context
        self.rank, self.size, self.local_rank = context.rank, context.size, context.local_rank
        if torch.cuda.is_available():
            self.device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("mps" if torch.backends.mps.is_available() else "cpu")

    def allgather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of the ranks. Collective.

        A rank that was asked to stop is signalled again if the others do not answer in time.
        """
        self.waiting = True  # from here on, one signal is enough to stop
        # ZeroMQ waits forever for a process that is gone. Only a signal to the waiting thread
        # itself interrupts it.
        again = threading.Timer(
            ANSWER_SECONDS, signal.pthread_kill, (threading.get_ident(), self.stop_signal)
        )
        again.daemon = True
        try:
            if self.stop_signal is not None:
                again.start()
            return self.context.allgather(value)
        finally:
            again.cancel()
            self.waiting = False

    def any(self, value: bool) -> bool:
        """Return whether `value` is true on any rank. Collective."""
        return any(self.allgather(value))

    @contextlib.contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """Run the block on one rank of each machine before the others. Collective."""
        if self.local_rank == 0:
            try:
                yield
            finally:
                self.context.broadcast_local(None)
        else:
            self.context.broadcast_local(None)
            yield


class AcceleratedRanks(Ranks):
    """The processes of a run as Accelerate connects them, by NCCL or gloo.

    Here `waiting` stays false: a rank that is gone causes an error.
    """

    def __init__(self):
        cpu = not torch.cuda.is_available() and "LOCAL_RANK" in os.environ
        options = InitProcessGroupKwargs(timeout=TIMEOUT)
        if cpu:
            options.backend = "gloo"
            # Otherwise Accelerate sets the number of threads, and warns of it at every start.
            os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
            if int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1:
                # gloo uses the address of the host's name, which is 127.0.0.1 on many machines.
                name = os.environ.get("DET_INTER_NODE_NETWORK_INTERFACE")
                name = name or interface_towards(os.environ["MASTER_ADDR"])
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        if torch.cuda.is_available() and not check_cuda_p2p_ib_support():
            # Accelerate refuses GPUs of the RTX 40 series with an older driver, even for one
            # process on one of several, unless these are set. Its own launcher sets them.
            os.environ |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
        self.accelerator = Accelerator(cpu=cpu, kwargs_handlers=[options])
        self.rank, self.size = self.accelerator.process_index, self.accelerator.num_processes
        self.local_rank = self.accelerator.local_process_index
        self.device = self.accelerator.device
        self._asked: Callable[[], bool] = lambda: False  # the answer to the last call of `any`

    def allgather(self, value):
        return gather_object([value]) if self.size > 1 else [value]

    def any(self, value):
        """Return `value`; with several ranks, whether it was true on any of them at the last call.

        A GPU answers only once it has done its queued work, so the next step is queued first.
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
        """Return the mean of every rank's tensor. Collective."""
        return self.accelerator.reduce(tensor, "mean") if self.size > 1 else tensor

    def local_main_process_first(self):
        return self.accelerator.local_main_process_first()


def interface_towards(address: str) -> str:
    """Name the network interface by which this machine reaches `address`, which may be its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((address, 9))  # on a datagram socket: sends nothing
        own = s.getsockname()[0]
    return next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if own in (a.address for a in addresses)
    )


def distributed_context() -> core.DistributedContext | None:
    """Connect the processes that torchrun or Determined's launcher started; None if it is alone."""
    if "RANK" not in os.environ:
        return None
    if on_cluster():
        return core.DistributedContext.from_torch_distributed()
    # With Determined's fixed ports, a second grid on this machine would fail. So the chief finds
    # free ones; the launcher's store, which needs no process group, passes them to all ranks.
    store, rank, _ = next(torch.distributed.rendezvous("env://", timeout=TIMEOUT))
    if rank == 0:
        with socket.socket() as one, socket.socket() as other:
            for s in (one, other):
                s.bind(("", 0))
            ports = f"{one.getsockname()[1]} {other.getsockname()[1]}"
        store.set("detsd/ports", ports)
    # `get` waits in C++, where Ctrl-C has no effect: for hours, if the chief is gone.
    until = time.monotonic() + TIMEOUT.total_seconds()
    while not store.check(["detsd/ports"]) and time.monotonic() < until:
        time.sleep(0.02)
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
    context.store = store  # kept alive: without a launcher, it is the chief's own
    return context


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    names = ("torch", "numpy", "diffusers", "transformers", "accelerate")
    return {name: version(name) for name in names}
