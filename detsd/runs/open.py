"""Open the run of this process: in the trial that it belongs to, or in a folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from determined import core

from detsd.runs.determined import determined_run
from detsd.runs.local import LocalRun
from detsd.runs.ranks import AcceleratedRanks, Ranks, check_gpus, distributed_context, fail_together
from detsd.runs.run import Run
from detsd.runs.task import on_cluster


@contextlib.contextmanager
def open_run(
    output_dir: Path, warm_start: Path | None = None, *, accelerate: bool = False
) -> Iterator[Run]:
    """Open the run of this process: in the trial it belongs to, else in `output_dir`.

    On a cluster `output_dir` and `warm_start` are not used: the trial's own checkpoint, or the one
    that its experiment names as a source, is restored on every node.

    Args:
        accelerate: connect the ranks with Accelerate, for a training, instead of Core API. Only a
            training restores the pictures packed in a checkpoint.
    """
    check_gpus()
    with contextlib.ExitStack() as stack:
        if on_cluster():
            run = stack.enter_context(determined_run(accelerate))
        else:
            if accelerate:
                ranks: Ranks = AcceleratedRanks()
            else:
                context = distributed_context() or core.DummyDistributedContext()
                ranks = Ranks(stack.enter_context(contextlib.closing(context)))
            stack.enter_context(fail_together())
            run = LocalRun(ranks, output_dir, warm_start)
            stack.enter_context(contextlib.closing(run))
        yield run
        run.ranks.allgather(None)  # no rank leaves while another is still at work
    # Not after an error: waiting for the other ranks could take forever.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
