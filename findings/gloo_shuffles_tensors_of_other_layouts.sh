#!/usr/bin/env bash
# broadcast and all_reduce of torch.distributed permute the values of a channels-last tensor.
#
# Versions: torch 2.13.0 with gloo, accelerate 1.15.0.
# Behaviour: both send the memory of a tensor as it lies there. If it is laid out in one way on one
#   rank and in another on the next (channels-last, transposed), the values arrive at other places,
#   and sums add values of different places. The receiver's shape is right, and nothing is raised.
#   With a strided view such as x[..., ::2], even equal layouts are wrong: the values between are
#   overwritten. accelerate's `broadcast` and `reduce` pass tensors on as they are; all_gather and
#   accelerate's `gather` are right.
# Why it matters here: a model in channels-last memory on one rank only, or latents that a library
#   returned transposed, are averaged into another picture.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing

PICTURE = torch.arange(24.0).view(1, 2, 3, 4)


def channels_last(x):
    return x.clone(memory_format=torch.channels_last)


def transposed(x):
    return x.mT.contiguous().mT


def every_other(x):
    return torch.zeros(1, 2, 3, 8)[..., ::2].copy_(x)


def work(rank, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from accelerate import Accelerator
    from accelerate.utils import broadcast

    accelerator = Accelerator(cpu=True)  # begins with gloo

    def show(what, found):
        if rank == 1:
            print(f"{what}: {'right' if torch.equal(found, PICTURE) else 'other values'}")

    for kind in (channels_last, transposed, every_other):
        name = f"{kind.__name__} on rank 0"
        sent = kind(PICTURE) if rank == 0 else torch.zeros(1, 2, 3, 4)
        dist.broadcast(sent, 0)
        show(f"broadcast, {name}", sent)
        summed = kind(PICTURE) if rank == 0 else torch.zeros(1, 2, 3, 4)
        dist.all_reduce(summed)
        show(f"all_reduce, {name}", summed)
        parts = [torch.empty(1, 2, 3, 4) for _ in range(2)]
        dist.all_gather(parts, kind(PICTURE) if rank == 0 else torch.zeros(1, 2, 3, 4))
        show(f"all_gather, {name}", parts[0])
    sent = every_other(PICTURE if rank == 0 else torch.zeros(1, 2, 3, 4))
    dist.broadcast(sent, 0)
    show("broadcast, every_other on both ranks", sent)
    mine = channels_last(PICTURE) if rank == 0 else PICTURE
    show("accelerate's broadcast, channels_last on rank 0", broadcast(mine.clone()))
    show("accelerate's reduce, channels_last on rank 0", accelerator.reduce(mine, "mean"))
    show("accelerate's gather, channels_last on rank 0", accelerator.gather(mine)[:1])
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port,), 2)
PROGRAM

expect <<'LINES'
broadcast, channels_last on rank 0: other values
all_reduce, channels_last on rank 0: other values
all_gather, channels_last on rank 0: right
broadcast, transposed on rank 0: other values
all_reduce, transposed on rank 0: other values
all_gather, transposed on rank 0: right
broadcast, every_other on rank 0: other values
all_reduce, every_other on rank 0: other values
all_gather, every_other on rank 0: right
broadcast, every_other on both ranks: other values
accelerate's broadcast, channels_last on rank 0: other values
accelerate's reduce, channels_last on rank 0: other values
accelerate's gather, channels_last on rank 0: right
LINES
