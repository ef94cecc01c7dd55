"""Batches for ranks as they come free, and what they make of them for the chief.

    with WorkQueue(run, todo, chief_takes) as exchange:
        for batch in exchange:
            exchange.hand_in(a future of files)

A thread of each rank speaks with the others', a few times a second and whatever is being made
meanwhile: no rank waits for another one's batch. Whoever runs short of batches gets new ones, so
that neither a slow card nor a batch of many steps holds the others up.
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

PACE = 0.2  # seconds between two rounds, at most

SILENCE = 10.0  # seconds without a round after which the others are gone


@dataclass
class WorkerReport:
    """What a rank tells the chief in a round."""

    files: list[Any]
    finished: int  # batches, since the last round
    waiting: int  # batches that it has not begun
    busy: int  # batches begun and not handed in
    asked: bool  # whether it was asked to stop
    returned: list[Any]  # batches that it was asked to give back


@dataclass
class ChiefReply:
    """What the chief tells all ranks in a round."""

    orders: list[list[Any]]  # further batches of each rank
    give_back: bool = False  # a batch that waits behind another: somebody has none left
    stopping: bool = False
    over: bool = False


class WorkQueue:
    """A rank's end of it; iterating gives the batches that this rank is to make.

    Attributes:
        stopped: whether it ended because a rank was asked to stop.
    """

    def __init__(self, run: Run, todo: list[Any], take: Callable[[list[Any]], bool] | None = None):
        """Begin to speak. Collective.

        Args:
            todo: all batches that are to be made; heeded on the chief, who gives them out in order.
            take: on the chief, called with what was handed in since the last round, by all ranks,
                and at least once a round; False while no more can be taken.
        """
        self.run, self.todo, self.take = run, deque(todo), take
        self.stopped = self.over = self.closed = False
        self.error: BaseException | None = None
        self._own: deque[Any] = deque()  # batches that wait here
        self._returned: list[Any] = []
        self._making = 0
        self._encoding: deque[Future] = deque()
        self._short = True  # whether to speak before the pace says so
        self._heard = time.monotonic()
        self._turn = threading.Condition()
        self._thread = threading.Thread(target=self._speak, name="exchange", daemon=True)

    def __enter__(self) -> WorkQueue:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        with self._turn:
            self.closed = True
            self._turn.notify_all()
        if self.over or self.run.ranks.size == 1:
            self._thread.join()
        # Else an error ends this rank; the thread may wait for one that is gone already.

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
                silent = time.monotonic() - self._heard > SILENCE
                if self.run.stop_signal is not None and silent:
                    raise SystemExit(128 + self.run.stop_signal)
                self._turn.wait(1)
            batch = self._own.popleft()
            self._making += 1
            if not self._own:
                self._short = True
                self._turn.notify_all()
            return batch

    def hand_in(self, files: Future) -> None:
        """The files of the batch that was last begun, as soon as they are there.

        Waits while those of the batch before are not, so that images do not pile up.
        """
        with self._turn:
            before = list(self._encoding)
        for future in before:
            future.exception()
        with self._turn:
            self._making -= 1
            self._encoding.append(files)

    # ---- the thread --------------------------------------------------------------------------

    def _speak(self) -> None:
        ranks = self.run.ranks
        try:
            while not self.over:
                with self._turn:
                    self._turn.wait_for(lambda: self._short or self.closed, PACE)
                    self._short = False
                    if self.closed:
                        return
                    word = self._word()
                words = ranks.context.gather(word)  # None but on the chief
                answer = ranks.context.broadcast(self._answer(words) if words else None)
                with self._turn:
                    self._heard = time.monotonic()
                    self._own.extend(answer.orders[ranks.rank])
                    if answer.give_back and self._making and self._own:
                        self._returned.append(self._own.pop())
                    if answer.stopping:
                        self._own.clear()
                    self.stopped, self.over = answer.stopping, answer.over
                    self._turn.notify_all()
        except BaseException as error:  # the loop raises it
            with self._turn:
                self.error = error
                self._turn.notify_all()

    def _word(self) -> WorkerReport:
        files, finished = [], 0
        while self._encoding and self._encoding[0].done():
            files += self._encoding.popleft().result()
            finished += 1
        busy = self._making + len(self._encoding)
        returned, self._returned = self._returned, []
        return WorkerReport(
            files, finished, len(self._own), busy, self.run.asked_to_stop(), returned
        )

    def _answer(self, words: list[WorkerReport]) -> ChiefReply:
        answer = ChiefReply([[] for _ in words])
        answer.stopping = self.stopped or any(word.asked for word in words)
        takes_more = self.take([file for word in words for file in word.files])
        self.todo.extendleft(batch for word in words for batch in word.returned)
        if not answer.stopping and takes_more:
            if len(self.todo) > len(words):
                # Twice what it made of late, so that it does not run short before the next round.
                wants = [1 + 2 * word.finished - word.waiting for word in words]
            else:  # the last ones to those who have none
                wants = [1 - word.waiting - word.busy for word in words]
            for already in range(max(wants)):
                for orders, want in zip(answer.orders, wants, strict=True):
                    if want > already and self.todo:
                        orders.append(self.todo.popleft())
        at_work = [
            word.waiting or word.busy or bool(o)
            for word, o in zip(words, answer.orders, strict=True)
        ]
        if not self.todo and not all(at_work):
            answer.give_back = True
        answer.over = not any(at_work) and (answer.stopping or not self.todo)
        return answer
