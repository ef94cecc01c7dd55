"""Work that threads do before its result is needed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A, B = TypeVar("A"), TypeVar("B")


def prefetch(call: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """Yield `call(item)` for every item, in order, from threads that run a little ahead."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[B]] = deque()
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
