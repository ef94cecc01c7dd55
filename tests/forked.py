"""Processes of detsd that need not load the libraries: forks of the one that tests it."""

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

FORK = multiprocessing.get_context("fork")
TIMEOUT = 240  # seconds; a machine may be busy


def free_port() -> int:
    """A port that nobody has, out of those that systems give to outgoing connections meanwhile."""
    while True:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("", port))
            return port


class Forked:
    """`body()` in processes of their own, which return their exit code, or end well.

    Whoever is left at the end of the block is killed. This process keeps the store of several
    ranks, as torchrun does; `folder` gets what each of them says.
    """

    def __init__(self, folder: Path, body: Callable[[], object], ranks: int = 1):
        self._logs = [folder / f"rank-{rank}.txt" for rank in range(ranks)]
        for log in self._logs:  # what an earlier block's ranks have said is nothing of ours
            log.unlink(missing_ok=True)
        self._store = torch.distributed.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
        )
        gc.collect()
        self.processes = [FORK.Process(target=self._run, args=(body, r)) for r in range(ranks)]
        for process in self.processes:
            process.start()

    def _run(self, body: Callable[[], object], rank: int) -> None:
        # What is inherited stays: whatever waits for a thread of its own at its end, as stores and
        # processes' groups do, would wait here for one that was not forked, or abort.
        gc.freeze()
        # PyTorch makes its pool of threads anew at the next use, which several threads at once, as
        # in the loading of weights, do not survive.
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
        gc.collect()  # ZeroMQ sends its last messages here, for a fork ends without the chance
        sys.exit(code)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_) -> None:
        self.kill()
        for process in self.processes:
            process.join()

    def kill(self) -> None:
        """SIGKILL, as when the machine goes."""
        for process in self.processes:
            process.kill()

    @property
    def said(self) -> list[str]:
        """What each rank has said so far."""
        return [log.read_text() if log.exists() else "" for log in self._logs]

    def wait_until(self, there: Callable[[], object]) -> None:
        """Until it is true, which it is before any of the processes ends."""
        until = time.monotonic() + TIMEOUT
        while not there():
            ended = not all(process.is_alive() for process in self.processes)
            assert not ended and time.monotonic() < until, self.said  # noqa: PT018
            time.sleep(0.005)

    def end(self) -> list[int]:
        """Wait until they end by themselves; their exit codes."""
        for process in self.processes:
            process.join(TIMEOUT)
        return [process.exitcode for process in self.processes]


def in_two_ranks(folder: Path, body: Callable[[], object]) -> None:
    """`body()` on two ranks, to its end and without a mistake."""
    with Forked(folder, body, ranks=2) as ranks:
        assert ranks.end() == [0, 0], (ranks.processes, ranks.said)
