#!/usr/bin/env bash
# A folder with one picture called on_a_train.png is a dataset of that picture alone.
#
# Versions: datasets 5.2.0, its builder "imagefolder".
# Behaviour: if one of the words train, training, test, testing, val, valid, validation, dev, eval
#   and evaluation is in a file's name, with no letter next to it, it names a split. As soon as one
#   file has such a word, files without one belong to no split: they are left out, and nothing is
#   logged. A metadata.jsonl that lists them does not bring them back. If no file has such a word,
#   files that metadata.jsonl does not list are left out.
# Why it matters here: file names that describe the scene (on_a_train.jpg, a_test_print.jpg) are
#   captions, and diffusers' example scripts read training pictures with this builder.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

export HF_DATASETS_CACHE=$work/cache
observe datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1 dill==0.4.1 multiprocess==0.70.19 \
    xxhash==4.1.0 python-dateutil==4.0.0 tzdata==2026.6 <<'PROGRAM'
import json
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()


def show(folder, *names, listed=()):
    folder = Path(folder)
    folder.mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    if listed:
        lines = [json.dumps({"file_name": name, "text": "a caption"}) for name in listed]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    found = datasets.load_dataset("imagefolder", data_dir=str(folder))
    found = found.cast_column("image", datasets.Image(decode=False))
    splits = {s: [Path(row["image"]["path"]).name for row in found[s]] for s in found}
    print(f"{', '.join(names)}{listed and f', listed {len(listed)}' or ''}: {splits}")


show("plain", "at_sea.png", "on_a_hill.png")
show("train", "at_sea.png", "on_a_train.png")
show("trainers", "at_sea.png", "in_trainers.png")
show("test", "at_sea.png", "a_test_print.png")
show("valid", "at_sea.png", "a valid ticket.png")
show("all-listed", "at_sea.png", "on_a_train.png", listed=("at_sea.png", "on_a_train.png"))
show("one-listed", "at_sea.png", "on_a_hill.png", listed=("at_sea.png",))
PROGRAM

expect <<'LINES'
at_sea.png, on_a_hill.png: {'train': ['at_sea.png', 'on_a_hill.png']}
at_sea.png, on_a_train.png: {'train': ['on_a_train.png']}
at_sea.png, in_trainers.png: {'train': ['at_sea.png', 'in_trainers.png']}
at_sea.png, a_test_print.png: {'test': ['a_test_print.png']}
at_sea.png, a valid ticket.png: {'validation': ['a valid ticket.png']}
at_sea.png, on_a_train.png, listed 2: {'train': ['on_a_train.png']}
at_sea.png, on_a_hill.png, listed 1: {'train': ['at_sea.png']}
LINES
