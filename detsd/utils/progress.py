"""Progress on a terminal or in a log: lines, and below them a bar with the time left.

Off a terminal, there are only the lines.
"""

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from tqdm import tqdm

from detsd.utils import imports

LINE = 10.0  # seconds between two lines off a terminal

watchers: list[Callable[[str], None]] = []  # called with every line of progress


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line above the bar, if there is one; to the standard output by default.

    If the reader of the lines is gone, the process is asked to stop, so that it stores its results.
    """
    stream = stream or sys.stdout
    try:
        tqdm.write(text, file=stream)
        stream.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        discard_output(stream)
        signal.raise_signal(signal.SIGTERM)


def say_once(text: str) -> None:
    """Print a line in the first of a run's processes only; they need not be connected yet."""
    if is_first():
        say(text)


def discard_output(broken: TextIO | None = None) -> None:
    """Discard the output of this process from now on, because nobody can read it.

    Args:
        broken: the stream whose reader or terminal is gone. The other stream is discarded as well
            if it leads to the same place. None: all streams to a terminal, which has been closed.
    """
    with open(os.devnull, "w") as nowhere:
        for number in (1, 2):
            if os.isatty(number) if broken is None else _same(number, broken):
                os.dup2(nowhere.fileno(), number)


def _same(number: int, stream: TextIO) -> bool:
    """Return whether a stream writes to the file with this descriptor, or to the same pipe."""
    return os.path.sameopenfile(number, stream.fileno())


def print_from_signal(text: str) -> None:
    """Call `say` from a signal handler, in a thread: the signal may have interrupted a print."""
    threading.Thread(target=say, args=(text,)).start()


def status(text: str, stream: TextIO | None = None) -> None:
    """Print a line of progress, and pass it to the watchers."""
    say(text, stream)
    for watcher in watchers:
        watcher(text.strip())


class LogHandler(logging.Handler):
    """A handler that logs to the standard error, above any bar."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), sys.stderr)


@dataclass
class Phase:
    """One kind of work: how much of it there is, and how long a unit has taken so far."""

    # A guess at a unit's cost relative to other kinds, in UNet passes over an image; 0 for work
    # that takes the same time on any device.
    cost: float
    total: int = 0
    done: int = 0
    seconds: float = 0.0  # of the units seen, with more weight on later ones
    seen: float = 0.0

    def record(self, seconds: float, units: int) -> None:
        """Record that `units` more are done, in `seconds`."""
        fade = 0.97**units  # about 30 units count: the first are slower, and the load changes
        self.seconds, self.seen = self.seconds * fade + seconds, self.seen * fade + units
        self.done += units

    @property
    def left(self) -> int:
        return max(0, self.total - self.done)


def seconds_left(kinds: dict[str, Phase]) -> float | None:
    """Estimate the time that all remaining work takes, each kind at its own speed.

    A kind not seen yet is estimated from its cost; None if nothing was seen at all.
    """
    cost = sum(w.seen * w.cost for w in kinds.values())
    if not cost:
        return None
    usual = sum(w.seconds for w in kinds.values() if w.cost) / cost
    return sum(w.left * (w.seconds / w.seen if w.seen else w.cost * usual) for w in kinds.values())


class LockedTqdm(tqdm):
    """A bar or clock whose first and last drawing no printed line can interrupt."""

    def __init__(self, **options: Any):
        with self.get_lock():
            super().__init__(**options)

    def close(self) -> None:
        """Close it, as tqdm does."""
        with self.get_lock():
            super().close()


class Bar(LockedTqdm):
    """A bar over work of several kinds; `done("steps")` after each unit advances it.

    Off a terminal there is a line every ten seconds instead. Only the first rank shows anything.
    """

    def __init__(self, kinds: dict[str, Phase], text: str, *, leave: bool = True):
        self.kinds = kinds
        self.text, self.note = text, ""  # after the bar, such as "50/300 steps", and at the end
        self._clock = self._drawn = time.monotonic()
        super().__init__(
            total=sum(w.cost * w.total for w in kinds.values()) or 1,
            initial=sum(w.cost * w.done for w in kinds.values()),
            bar_format="{percentage:3.0f}%|{bar}| {text} [{elapsed}<{left}{note}]",
            disable=None if is_first() else True,  # None: only on a terminal
            dynamic_ncols=True,
            leave=leave,
        )

    @property
    def format_dict(self) -> dict[str, Any]:
        """tqdm's values for the bar's format, and our own."""
        return {
            **super().format_dict,
            "text": self.text,
            "left": self._left() or "?",
            "note": f", {self.note}" if self.note else "",
        }

    def _left(self) -> str | None:
        """Return the time left, minus the time since the last unit was counted."""
        left = seconds_left(self.kinds)
        passed = time.monotonic() - self._clock
        return None if left is None else self.format_interval(max(0, left - passed))

    def done(self, kind: str, units: int = 1, show: bool = True) -> None:
        """Count units of a kind, which took the time since the last call.

        Args:
            show: whether to draw the bar; False if a line about it follows.
        """
        now = time.monotonic()
        self.kinds[kind].record(now - self._clock, units)
        self._clock = now
        self.n = sum(w.cost * min(w.done, w.total) for w in self.kinds.values())
        if show and now - self._drawn > (LINE if self.disable else 0.1):
            self.draw()

    def draw(self, text: str | None = None, note: str | None = None) -> None:
        """Show the bar as it is now, with another text or note."""
        self.text = self.text if text is None else text
        self.note = self.note if note is None else note
        if not self.disable:
            self._drawn = time.monotonic()
            self.refresh()
        elif is_first():
            with self.get_lock():  # several threads may draw at once
                due = time.monotonic() - self._drawn > LINE
                self._drawn = time.monotonic() if due else self._drawn
            if due:
                self.line(f"{self.text}, {self.note}" if self.note else self.text)

    def line(self, text: str) -> None:
        """Print a line of progress and time left; the next is due in ten seconds."""
        self._drawn = time.monotonic()
        left = self._left()
        status(f"{text}, {left} left" if left else text)


@contextlib.contextmanager
def every(call: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function in a thread, every `seconds` seconds, until the block is over."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def spinner(text: str, log: bool = True) -> Iterator[None]:
    """Announce what takes time; on a terminal, a clock runs until the block is over.

    Args:
        log: whether to announce it off a terminal, too.
    """
    if not is_first() or not sys.stderr.isatty():
        if is_first() and log:
            status(f"{text} ...")
        yield
        return
    with (
        LockedTqdm(bar_format="{desc} {elapsed}", desc=f"{text} ...", leave=False) as clock,
        every(clock.refresh, 0.5),
    ):
        yield


@contextlib.contextmanager
def importing_libraries() -> Iterator[None]:
    """Let Ctrl-C end the process at once during the imports, which take seconds.

    Nothing has been made yet, and an exception would be raised inside the libraries' C++ code,
    which aborts or drops it.
    """

    def stop(*_: object) -> None:
        if is_first():
            print("\nstopped" if sys.stderr.isatty() else "stopped", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)

    # Any other handler, or an ignored signal (as in background jobs), is there for a reason.
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ours = usual and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, stop)
    try:
        with spinner("loading the libraries", log=False), imports.only_what_is_used():
            yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def is_first() -> bool:
    """Return whether this process is the one that prints; launchers number them in RANK."""
    return int(os.environ.get("RANK", 0)) == 0
