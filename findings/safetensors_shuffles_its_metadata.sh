#!/usr/bin/env bash
# Saving the same tensors and metadata twice with safetensors makes two different files.
#
# Versions: safetensors 0.8.0.
# Behaviour: tensors are written in a fixed order, but the entries of the metadata in a random
#   order, which changes from call to call. So the files differ in their bytes and in their SHA-256.
#   Without metadata, or with a single entry, they are equal.
# Why it matters here: A1111 and others identify a file by its SHA-256, and write it into images. If
#   a concept is exported again, the images made with it no longer match the file.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import hashlib

import torch
from safetensors.torch import load, save

tensors = {"det-logo": torch.arange(12.0).view(3, 4), "another": torch.ones(2)}
keys = ("title", "author", "architecture", "resolution", "date", "usage_hint", "trigger_phrase")
for count in (0, 1, len(keys)):
    metadata = {f"modelspec.{key}": "as it is" for key in keys[:count]}
    files = [save(tensors, metadata) for _ in range(10)]
    assert all(torch.equal(load(file)["det-logo"], tensors["det-logo"]) for file in files)
    hashes = {hashlib.sha256(file).hexdigest() for file in files}
    print(f"{count} entries, saved 10 times: {'one file' if len(hashes) == 1 else 'several files'}")
PROGRAM

expect <<'LINES'
0 entries, saved 10 times: one file
1 entries, saved 10 times: one file
7 entries, saved 10 times: several files
LINES
