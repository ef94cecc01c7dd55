#!/usr/bin/env bash
# gather_object and gather_for_metrics of accelerate return the keys of a dict, without its values.
#
# Versions: accelerate 1.15.0 with gloo and two processes.
# Behaviour: with several processes, `gather_object(x)` joins the ranks' objects as if each were a
#   list: of a dict it returns the keys, of a string the letters, of a tuple its entries. Its
#   documentation names dictionaries. `gather_for_metrics` does the same with anything that holds
#   something else than tensors. With one process, the object itself is returned, so a test on one
#   process sees no difference. `gather` of a dict of tensors is right.
# Why it matters here: a script that gathers {prompt: score} from each GPU loses all scores.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import os
import socket

import torch
import torch.multiprocessing


def work(rank, ranks, port):
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from accelerate import Accelerator
    from accelerate.utils import gather_object

    accelerator = Accelerator(cpu=True)
    score = {f"prompt {rank}": 0.5 + rank}
    found = {
        "gather_object(dict)": gather_object(score),
        "gather_object([dict])": gather_object([score]),
        "gather_object(str)": gather_object(f"r{rank}"),
        "gather_for_metrics(dict of str)": accelerator.gather_for_metrics({"name": f"r{rank}"}),
        "gather(dict of tensors)": accelerator.gather({"loss": torch.tensor([0.5 + rank])}),
    }
    if rank == 0:
        for what, value in found.items():
            print(f"{ranks} process{'es' * (ranks > 1)}, {what}: {value}")
    accelerator.end_training()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for ranks in (1, 2):
        torch.multiprocessing.spawn(work, (ranks, port), ranks)
PROGRAM

expect <<'LINES'
1 process, gather_object(dict): {'prompt 0': 0.5}
1 process, gather_object([dict]): [{'prompt 0': 0.5}]
1 process, gather_object(str): r0
1 process, gather_for_metrics(dict of str): {'name': 'r0'}
1 process, gather(dict of tensors): {'loss': tensor([0.5000])}
2 processes, gather_object(dict): ['prompt 0', 'prompt 1']
2 processes, gather_object([dict]): [{'prompt 0': 0.5}, {'prompt 1': 1.5}]
2 processes, gather_object(str): ['r', '0', 'r', '1']
2 processes, gather_for_metrics(dict of str): ['name', 'name']
2 processes, gather(dict of tensors): {'loss': tensor([0.5000, 1.5000])}
LINES
