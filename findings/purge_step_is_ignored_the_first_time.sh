#!/usr/bin/env bash
# TensorBoard shows the repeated steps of a resumed run twice, in spite of `purge_step`.
#
# Versions: tensorboard 2.21.0 with `--load_fast=false`, as `det tensorboard` of determined 0.38.1
#   starts it, and as it runs where tensorboard-data-server is missing; written by torch 2.13.0's
#   SummaryWriter.
# Behaviour: `SummaryWriter(purge_step=60)` of a resumed run marks that the earlier events from step
#   60 on are obsolete. This loader takes the first such mark of a run for the run's beginning, not
#   for a restart: the old values stay, and the curve goes back and forth. If the first writer had
#   given a `purge_step` as well, the second one's works. The default loader keeps one value a step,
#   with and without a mark.
# Why it matters here: on a cluster, a trial that crashes or is preempted repeats the steps since
#   its last checkpoint.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe tensorboard==2.21.0 tensorboard-data-server==0.7.2 absl-py==2.5.1 grpcio==1.85.3 \
    Markdown==3.11.3 protobuf==7.36.2 Werkzeug==3.1.9 <<'PROGRAM'
import json
import logging
import time
from urllib.request import urlopen

from tensorboard import program
from torch.utils.tensorboard import SummaryWriter

RUNS = {"no purge_step": (None, None), "purge_step 60": (None, 60), "0, then 60": (0, 60)}
for run, (first, second) in RUNS.items():
    with SummaryWriter(f"logs/{run}", purge_step=first) as writer:
        for step in range(20, 101, 20):
            writer.add_scalar("loss", 1.0, step)
    time.sleep(1.1)  # a file's name has its second
    with SummaryWriter(f"logs/{run}", purge_step=second) as writer:  # from its checkpoint at 40 on
        for step in range(60, 141, 20):
            writer.add_scalar("loss", 2.0, step)

logging.getLogger("werkzeug").setLevel(logging.ERROR)
logging.getLogger("tensorboard").setLevel(logging.ERROR)
for options in ((), ("--load_fast=false",)):
    board = program.TensorBoard()
    board.configure(argv=["tensorboard", "--logdir=logs", "--host=localhost", "--port=0", *options])
    url = board.launch()

    def get(path):
        with urlopen(f"{url}data/plugin/scalars/{path}") as answer:
            return json.load(answer)

    until = time.monotonic() + 60  # the server reads the runs one by one
    while set(get("tags")) < set(RUNS) and time.monotonic() < until:
        time.sleep(0.5)
    time.sleep(3)
    print(*options or ["default loader"])
    for run in RUNS:
        points = get(f"scalars?tag=loss&run={run.replace(' ', '%20')}")
        print(f"  {run}:", *(step for _, step, _ in points))
PROGRAM

expect <<'LINES'
default loader
  no purge_step: 20 40 60 80 100 120 140
  purge_step 60: 20 40 60 80 100 120 140
  0, then 60: 20 40 60 80 100 120 140
--load_fast=false
  no purge_step: 20 40 60 80 100 60 80 100 120 140
  purge_step 60: 20 40 60 80 100 60 80 100 120 140
  0, then 60: 20 40 60 80 100 120 140
LINES
