"""What keeps several processes of one run together: one that fails ends the others, too.

A rank that raises leaves the others in a collective, where NCCL waits for hours without looking at
a signal. So it says so in the launcher's store, and a thread of every other rank looks there.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta

import torch

from detsd.utils.errors import UserError

KEY = "detsd/failed"
LOOKS_EVERY = 0.5  # seconds
GRACE = 4.0  # seconds for a rank to end by itself: gloo tells it, and it may fail for a reason too


def check_gpus() -> None:
    """Whether there is a GPU for every process that was started on this machine.

    Raises:
        UserError: there is not; NCCL would call it a duplicate GPU.
    """
    wanted = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if 0 < found < wanted:
        raise UserError(
            f"{wanted} processes were started on a machine with {found} GPU{'s' * (found > 1)}; "
            f"start {found} (--nproc-per-node {found}), or set CUDA_VISIBLE_DEVICES= to use the CPU"
        )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """End this process soon after another rank has failed within the block; tell them if we do.

    What breaks here because another rank is gone is not told: that rank tells its own reason.
    """
    store = _store()
    if store is None:
        yield
        return
    over = threading.Event()
    threading.Thread(target=_look, args=(store, over), daemon=True).start()
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


def _store() -> torch.distributed.TCPStore | None:
    """A connection of its own to the launcher's store; None for a process alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    return torch.distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(minutes=5),
    )


def _look(store: torch.distributed.TCPStore, over: threading.Event) -> None:
    failed = False
    while not failed and not over.wait(LOOKS_EVERY):
        try:
            failed = store.check([KEY])
        except RuntimeError:  # the store is gone, and with it who kept it
            failed = True
    if failed and not over.wait(GRACE):
        # Not an exception: the main thread may be in a call that never comes back.
        os._exit(1)
