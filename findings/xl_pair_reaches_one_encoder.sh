#!/usr/bin/env bash
# One diffusers call loads only the first encoder's rows of a Stable Diffusion XL concept.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0; also 0.38.0 with 4.57.6.
# Behaviour: diffusers' own training script writes two files (learned_embeds.safetensors and
#   learned_embeds_2.safetensors), of which `load_textual_inversion(folder)` loads the first. The
#   second tokenizer still splits the word into pieces; nothing is raised or logged. One file with
#   both (clip_l and clip_g) raises. Two calls work, the second with `text_encoder=` and
#   `tokenizer=` of the second encoder.
# Why it matters here: the second encoder supplies the larger part of the text states, and the
#   pooled state.
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import pipeline_xl

rows, rows_2 = torch.randn(2, 16), torch.randn(2, 24)
Path("pair").mkdir()
save_file({"det-logo": rows}, "pair/learned_embeds.safetensors")
save_file({"det-logo": rows_2}, "pair/learned_embeds_2.safetensors")
save_file({"clip_l": rows, "clip_g": rows_2}, "both.safetensors")


def changed(*calls):
    pipe = pipeline_xl(add_watermarker=False)
    before = pipe.encode_prompt("a det-logo")[0]
    for source, end in calls:
        parts = {f: getattr(pipe, f"{f}{end}") for f in ("tokenizer", "text_encoder")}
        pipe.load_textual_inversion(source, **parts)
    moved = (pipe.encode_prompt("a det-logo")[0] - before).abs().amax((0, 1)) > 0
    return f"states of the first encoder change: {bool(moved[:16].any())}, " + (
        f"of the second: {bool(moved[16:].any())}"
    )


print("the folder, one call:", changed(("pair", "")))
second = "pair/learned_embeds_2.safetensors"
print("the files, two calls:", changed(("pair", ""), (second, "_2")))
try:
    print(changed(("both.safetensors", "")))
except ValueError as error:
    print("one file of both:", str(error).split(":")[0])
PROGRAM

expect <<'LINES'
the folder, one call: states of the first encoder change: True, of the second: False
the files, two calls: states of the first encoder change: True, of the second: True
one file of both: Loaded state dictionary is incorrect
LINES
