"""Batches handed to ranks as they become free, and results sent to the chief.

    with WorkQueue(run, todo, add) as queue:
        for batch in queue:
            queue.submit(a future of files)

While batches are made, a thread on each rank talks to those on the others a few times a second, so
that no rank waits for another's batch. Ranks that run short of batches get new ones, so neither a
slow GPU nor a batch with many steps holds up the others.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from detsd.runs.run import Run

POLL_SECONDS = 0.2  # between two rounds, at most

TIMEOUT_SECONDS = 10.0  # without a round before the other ranks count as gone


@dataclass
class WorkerReport:
    """A rank's message to the chief in a round."""

    files: list[Any]
    finished: int  # batches, since the last round
    waiting: int  # batches that it has not begun
    busy: int  # batches begun and not submitted
    asked: bool  # to stop
    returned: list[Any]  # batches that it was asked to give back


@dataclass
class ChiefReply:
    """The chief's message to all ranks in a round."""

    orders: list[list[Any]]  # further batches of each rank
    give_back: bool = False  # waiting batches: some rank has none left
    stopping: bool = False
    over: bool = False


class WorkQueue:
    """A rank's end of the queue; iterating yields the batches that this rank is to make.

    Attributes:
        stopped: True if the queue ended because a rank was asked to stop.
    """

    def __init__(self, run: Run, todo: list[Any], add: Callable[[list[Any]], bool] | None = None):
        """Collective.

        Args:
            todo: on the chief, all batches to be made, in the order to hand them out.
            add: on the chief, called at least once a round with the files that all ranks have
                submitted since the last one; returns False while no more can be stored.
        """
        self.run, self.todo, self._add = run, deque(todo), add
        self.stopped = self.over = self.closed = False
        self.error: BaseException | None = None
        self._own: deque[Any] = deque()  # batches that wait here
        self._returned: list[Any] = []
        self._making = 0
        self._encoding: deque[Future] = deque()
        self._short = True  # running out of batches: begin a round at once
        self._heard = time.monotonic()
        self._turn = threading.Condition()
        self._thread = threading.Thread(target=self._talk, name="work queue", daemon=True)

    def __enter__(self) -> WorkQueue:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        with self._turn:
            self.closed = True
            self._turn.notify_all()
        if self.over or self.run.ranks.size == 1:
            self._thread.join()
        else:
            # An error ends this rank; its thread may be waiting for a rank that is gone. ZeroMQ
            # aborts a process that closes a socket while another thread is using it.
            self.run.ranks.context.close = lambda: None

    def __iter__(self) -> Iterator[Any]:
        while (batch := self._next()) is not None:
            yield batch

    def _next(self) -> Any | None:
        with self._turn:
            while True:
                if self.error:
                    raise self.error
                if self._own:
                    break
                if self.over:
                    return None
                silent = time.monotonic() - self._heard > TIMEOUT_SECONDS
                if self.run.stop_signal is not None and silent:
                    raise SystemExit(128 + self.run.stop_signal)
                self._turn.wait(1)
            batch = self._own.popleft()
            self._making += 1
            if not self._own:
                self._short = True
                self._turn.notify_all()
            return batch

    def submit(self, files: Future) -> None:
        """Submit the files of the batch that was begun last, as soon as they are ready.

        Waits for the files of the previous batch, so that images do not pile up.
        """
        with self._turn:
            before = list(self._encoding)
        for future in before:
            future.exception()
        with self._turn:
            self._making -= 1
            self._encoding.append(files)

    # ---- the thread --------------------------------------------------------------------------

    def _talk(self) -> None:
        ranks = self.run.ranks
        try:
            while not self.over:
                with self._turn:
                    self._turn.wait_for(lambda: self._short or self.closed, POLL_SECONDS)
                    self._short = False
                    if self.closed:
                        return
                    report = self._report()
                reports = ranks.context.gather(report)  # None except on the chief
                reply = ranks.context.broadcast(self._reply(reports) if reports else None)
                with self._turn:
                    self._heard = time.monotonic()
                    self._own.extend(reply.orders[ranks.rank])
                    if reply.give_back and self._making and self._own:
                        self._returned.append(self._own.pop())
                    if reply.stopping:
                        self._own.clear()
                    self.stopped, self.over = reply.stopping, reply.over
                    self._turn.notify_all()
        except BaseException as error:  # the loop raises it
            with self._turn:
                self.error = error
                self._turn.notify_all()

    def _report(self) -> WorkerReport:
        files, finished = [], 0
        while self._encoding and self._encoding[0].done():
            files += self._encoding.popleft().result()
            finished += 1
        busy = self._making + len(self._encoding)
        returned, self._returned = self._returned, []
        return WorkerReport(
            files, finished, len(self._own), busy, self.run.asked_to_stop(), returned
        )

    def _reply(self, reports: list[WorkerReport]) -> ChiefReply:
        reply = ChiefReply([[] for _ in reports])
        reply.stopping = self.stopped or any(report.asked for report in reports)
        takes_more = self._add([file for report in reports for file in report.files])
        self.todo.extendleft(batch for report in reports for batch in report.returned)
        if not reply.stopping and takes_more:
            if len(self.todo) > len(reports):
                # Twice what it made recently, so that it does not run short before the next round.
                # With 64 ranks and batches of 20 and 50 steps, 2.5 % of their time is lost.
                wants = [1 + 2 * report.finished - report.waiting for report in reports]
            else:  # the last ones go to ranks without any
                wants = [1 - report.waiting - report.busy for report in reports]
            for already in range(max(wants)):
                for orders, want in zip(reply.orders, wants, strict=True):
                    if want > already and self.todo:
                        orders.append(self.todo.popleft())
        at_work = [
            report.waiting or report.busy or bool(orders)
            for report, orders in zip(reports, reply.orders, strict=True)
        ]
        if not self.todo and not all(at_work):
            reply.give_back = True
        reply.over = not any(at_work) and (reply.stopping or not self.todo)
        return reply
