"""Batches distributed over ranks, which are threads here."""

import itertools
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from detsd.generate.work_queue import WorkQueue


class Threads:
    """A stand-in for Core API's DistributedContext, with ranks as threads of one process."""

    def __init__(self, size: int):
        self.size, self.values = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def run(self, rank: int, asked=lambda: False) -> SimpleNamespace:
        def gather(value):
            self.values[rank] = value
            self.barrier.wait()
            everyone = list(self.values) if rank == 0 else None
            self.barrier.wait()
            return everyone

        def broadcast(value):
            if rank == 0:
                self.values[0] = value
            self.barrier.wait()
            value = self.values[0]
            self.barrier.wait()
            return value

        context = SimpleNamespace(gather=gather, broadcast=broadcast)
        ranks = SimpleNamespace(rank=rank, size=self.size, context=context)
        return SimpleNamespace(ranks=ranks, asked_to_stop=asked, stop_signal=None)


def done(files: list) -> Future:
    future = Future()
    future.set_result(files)
    return future


def share(size, todo, make, asked=lambda: False, take=None):
    """Return the batches that each rank made, and the chief's files in order of arrival."""
    threads, came = Threads(size), []

    def keep(files):
        came.extend(files)
        return take is None or take(came)

    def rank(number):
        mine = []
        with WorkQueue(threads.run(number, asked), todo, keep if number == 0 else None) as queue:
            for batch in queue:
                make(batch)
                mine.append(batch)
                queue.submit(done([batch]))
        return mine, queue.stopped

    with ThreadPoolExecutor(size) as pool:
        made = list(pool.map(rank, range(size)))
    return [mine for mine, _ in made], came, {stopped for _, stopped in made}


@pytest.mark.parametrize("size", [1, 4])
def test_every_batch_is_made_once_and_comes_to_the_chief(size):
    todo = list(range(40))
    made, came, stopped = share(size, todo, lambda batch: None)
    assert sorted(itertools.chain(*made)) == sorted(came) == todo
    assert stopped == {False}
    if size == 1:
        assert came == todo


def test_a_slow_batch_holds_nobody_up():
    """One batch lasts until all others arrive: ranks that waited for each other would never end."""
    rest = threading.Event()
    todo = list(range(40))
    made, came, _ = share(
        3,
        todo,
        lambda batch: rest.wait(60) if batch == 0 else None,
        take=lambda came: len(came) < 39 or rest.set() or True,
    )
    assert came[-1] == 0
    assert [mine for mine in made if 0 in mine] == [[0]]
    assert sorted(came) == todo


def test_a_stop_drops_what_is_not_begun_and_nothing_that_is():
    asked = threading.Event()
    made, came, stopped = share(
        2, list(range(1000)), lambda batch: batch < 5 or asked.set(), asked=asked.is_set
    )
    assert sorted(itertools.chain(*made)) == sorted(came)
    assert 5 < len(came) < 1000
    assert stopped == {True}


def test_a_chief_that_is_behind_gets_no_more_until_it_is_not():
    held = []

    def take(came):
        held.append(len(came))
        return len(held) > 4  # for so many rounds, it takes no more

    _, came, _ = share(2, list(range(6)), lambda batch: None, take=take)
    assert held[4] == 0
    assert sorted(came) == list(range(6))


def test_what_goes_wrong_in_the_thread_ends_the_loop():
    def full(came):
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        share(1, [1, 2], lambda batch: None, take=full)


def test_sockets_that_a_thread_still_uses_are_not_closed():
    """If an error ends a rank, ZeroMQ would abort the process, without a sentence."""
    run, closed = Threads(2).run(1), []
    run.ranks.context.close = lambda: closed.append(1)
    with pytest.raises(RuntimeError, match="no disk"), WorkQueue(run, []):
        raise RuntimeError("no disk")
    run.ranks.context.close()
    assert not closed
