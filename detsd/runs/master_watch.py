"""Watch for a master that does not answer: a line when it stops, and one when it is back."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

import determined as det
from determined.common import api
from determined.common.api import certs
from determined.common.api import errors as api_errors

from detsd.utils import progress

# Both retry unanswered requests, and log each retry with a traceback or an address.
LOGGERS = ("urllib3.connectionpool", "determined.core")

MAX_PAUSE = 5.0  # seconds between two requests to an unreachable master
TIMEOUT = 5  # seconds for its answer


class MasterWatch(logging.Filter):
    """A filter that replaces the harness's many lines about a silent master with two."""

    def __init__(self):
        super().__init__()
        self.away = threading.Event()  # set while the master does not answer
        self._asking = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop a line about the master, and ask whether it is there; pass all others."""
        if not _is_about_master(record):
            return True
        # Other ranks print nothing: the chief has noticed it as well.
        if progress.is_first() and self._asking.acquire(blocking=False):
            threading.Thread(target=self._ask_until_back, name="master", daemon=True).start()
        return False

    def _ask_until_back(self) -> None:
        """Ask until the master answers; print a line only if the first request fails."""
        began, pause = time.monotonic(), 1.0
        try:
            while not _answers():
                if not self.away.is_set():
                    self.away.set()
                    progress.say("the master does not answer; reports to it wait until it does")
                time.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE)
            if self.away.is_set():
                progress.say(f"the master answers again, after {time.monotonic() - began:.0f} s")
        finally:
            self.away.clear()
            self._asking.release()


def _is_about_master(record: logging.LogRecord) -> bool:
    error = record.exc_info and record.exc_info[1]
    if error:  # from the harness's question whether to pause, which it retries itself
        refused = isinstance(error, api_errors.APIException) and error.status_code < 500
        return record.name == "determined.core" and not refused
    return "Retrying (" in record.getMessage() and "/api/v1/" in record.getMessage()


def _answers() -> bool:
    """Ask the master once, without the retries that the harness makes."""
    url = det.get_cluster_info().master_url
    session = api.UnauthSession(url, certs.default_load(url), max_retries=0)
    try:
        session.get("/api/v1/master", timeout=TIMEOUT)
    except Exception:  # networks and masters fail in many ways
        return False
    return True


@contextlib.contextmanager
def watch_master() -> Iterator[MasterWatch]:
    """Filter the libraries' lines about the master until the block is over."""
    watch = MasterWatch()
    for name in LOGGERS:
        logging.getLogger(name).addFilter(watch)
    try:
        yield watch
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(watch)
