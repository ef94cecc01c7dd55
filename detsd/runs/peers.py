"""The launcher's store, in which the processes of a run report their errors to each other."""

import hashlib
import os
import time
from datetime import timedelta

from torch.distributed import TCPStore

WAIT = 3.0  # seconds for the chief to print an error that it may share


def launcher_store(timeout: timedelta) -> TCPStore | None:
    """Return a separate connection to the launcher's store; None for a single process."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timeout,
    )


def is_first_to_print(sentence: str) -> bool:
    """Return whether no other rank prints this error; the chief comes before the others."""
    key, rank = f"detsd/printed/{hashlib.sha256(sentence.encode()).hexdigest()}", os.environ["RANK"]
    try:
        store = launcher_store(timedelta(seconds=WAIT))
        until = time.monotonic() + WAIT
        while rank != "0" and time.monotonic() < until and not store.check([key]):
            time.sleep(0.05)
        return store.compare_set(key, "", rank).decode() == rank
    except RuntimeError:  # the process that held the store is gone
        return True
