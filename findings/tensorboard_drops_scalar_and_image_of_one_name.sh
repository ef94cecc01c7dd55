#!/usr/bin/env bash
# TensorBoard shows neither a scalar nor an image if both have the same name and step.
#
# Versions: tensorboard 2.21.0 with tensorboard-data-server 0.7.2 (its default loader), written by
#   torch 2.13.0's SummaryWriter.
# Behaviour: a run's data are stored by name, whatever their kind. If scalar and image have the same
#   steps, they displace each other and the page lists neither. If they have different steps, the
#   first kind is listed and the second is lost. Neither the page nor the server reports it.
# Why it matters here: a metric and the samples of a concept are both named after the concept.
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe tensorboard==2.21.0 tensorboard-data-server==0.7.2 absl-py==2.5.1 grpcio==1.85.3 \
    Markdown==3.11.3 protobuf==7.36.2 Werkzeug==3.1.9 <<'PROGRAM'
import json
import logging
import time
from urllib.request import urlopen

import numpy as np
from tensorboard import program
from torch.utils.tensorboard import SummaryWriter

RUNS = {  # the names of a scalar and an image, and the offset of the image's steps
    "two names": ("det-logo", "det-logo image", 0),
    "one name, one step": ("det-logo", "det-logo", 0),
    "one name, other steps": ("det-logo", "det-logo", 10),
}
for run, (scalar, image, later) in RUNS.items():
    with SummaryWriter(f"logs/{run}") as writer:
        for step in (1, 2):
            writer.add_scalar(scalar, 0.5, step)
            writer.add_image(image, np.zeros((3, 8, 8), np.uint8), step + later)

logging.getLogger("werkzeug").setLevel(logging.ERROR)
board = program.TensorBoard()
board.configure(argv=["tensorboard", "--logdir=logs", "--host=localhost", "--port=0"])
url = board.launch()


def listed(plugin):
    with urlopen(f"{url}data/plugin/{plugin}/tags") as answer:
        return json.load(answer)


until = time.monotonic() + 60  # the server reads the runs one by one
while "two names" not in listed("images") or len(listed("scalars")) < 2:
    if time.monotonic() > until:
        break
    time.sleep(0.5)
time.sleep(2)
for run in RUNS:
    kinds = [kind for kind in ("scalars", "images") if run in listed(kind)]
    print(f"{run}: listed as", " and ".join(kinds) or "nothing")
PROGRAM

expect <<'LINES'
two names: listed as scalars and images
one name, one step: listed as nothing
one name, other steps: listed as scalars
LINES
