"""Processes of detsd that need not load the libraries: forks of the test process."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from tqdm.std import TqdmDefaultWriteLock, tqdm

# tqdm's lock is one for all forks. A fork that is killed while it holds the lock never releases it,
# and the others would wait for it forever. Now each process has its own.
TqdmDefaultWriteLock.mp_lock = None
tqdm.set_lock(TqdmDefaultWriteLock())

FORK = multiprocessing.get_context("fork")
TIMEOUT = 240  # seconds; the machine may be busy


def free_port() -> int:
    """Return a free port, outside the range that systems use for outgoing connections."""
    while True:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("", port))
            return port


class Forked:
    """Processes that run `body()` and end with the exit code that it returns, or 0.

    Those left at the end of the block are killed. For several ranks, this process keeps the store,
    as torchrun does; `folder` gets each rank's output.
    """

    def __init__(self, folder: Path, body: Callable[[], object], ranks: int = 1):
        self._logs = [folder / f"rank-{rank}.txt" for rank in range(ranks)]
        for log in self._logs:  # drop the output of an earlier block's ranks
            log.unlink(missing_ok=True)
        self._store = torch.distributed.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
        )
        gc.collect()
        self.processes = [FORK.Process(target=self._run, args=(body, r)) for r in range(ranks)]
        for process in self.processes:
            process.start()

    def _run(self, body: Callable[[], object], rank: int) -> None:
        # Inherited objects stay: those that wait for their own thread when they end, such as stores
        # and process groups, would wait here for a thread that was not forked, or abort.
        gc.freeze()
        # PyTorch recreates its thread pool at the next use, which crashes if several threads do it
        # at once, as in the loading of weights.
        torch.set_num_threads(torch.get_num_threads())
        sys.stdout = sys.stderr = self._logs[rank].open("w", buffering=1)
        for stream in (1, 2):
            os.dup2(sys.stdout.fileno(), stream)
        size = len(self._logs)
        if size > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size), "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port),
                "GLOO_SOCKET_IFNAME": "lo", "TORCHELASTIC_USE_AGENT_STORE": "True",
            }  # fmt: skip
        AcceleratorState._reset_state(True)
        PartialState._reset_state()
        GradientState._reset_state()
        code = body()
        code = code if isinstance(code, int) else 0
        gc.collect()  # ZeroMQ sends its last messages now, since a fork ends without doing so
        sys.exit(code)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_) -> None:
        self.kill()
        for process in self.processes:
            process.join()

    def kill(self) -> None:
        """Send SIGKILL, as when the machine fails."""
        for process in self.processes:
            process.kill()

    @property
    def said(self) -> list[str]:
        """The output of each rank so far."""
        return [log.read_text() if log.exists() else "" for log in self._logs]

    def wait_until(self, there: Callable[[], object]) -> None:
        """Wait until `there()` is true, which must happen before any process ends."""
        until = time.monotonic() + TIMEOUT
        while not there():
            ended = not all(process.is_alive() for process in self.processes)
            assert not ended and time.monotonic() < until, self.said  # noqa: PT018
            time.sleep(0.005)

    def end(self) -> list[int]:
        """Wait until the processes end; return their exit codes."""
        for process in self.processes:
            process.join(TIMEOUT)
        return [process.exitcode for process in self.processes]


def in_two_ranks(folder: Path, body: Callable[[], object]) -> None:
    """Run `body()` on two ranks to its end, without errors."""
    with Forked(folder, body, ranks=2) as ranks:
        assert ranks.end() == [0, 0], (ranks.processes, ranks.said)
