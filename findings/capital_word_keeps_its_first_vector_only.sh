#!/usr/bin/env bash
# In diffusers, a word with a capital letter keeps only the first of its vectors.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0. With transformers 4.57.6 (and diffusers
#   0.38.0) all vectors are used, or none if only the prompt has the capital.
# Behaviour: transformers 5 returns an added token in lower case ("detlogo"). diffusers looks it up
#   among the added tokens under its original spelling ("DetLogo"), does not find it, and leaves the
#   prompt unchanged: one token of the three. Nothing is raised or logged. A word with one
#   vector, or in lower case, keeps all its vectors, unless the prompt begins a sentence with it:
#   "Det-logo on a mug" has the first vector of det-logo.
# Why it matters here: detsd's words may have capitals, and diffusers and the tools built on it
#   (such as compel) read its exports. A concept of four vectors shrinks to one.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import torch
from tiny import pipeline

for word in ("DetLogo", "ISO-tag", "det_logo", "det-logo"):
    pipe = pipeline()
    pipe.load_textual_inversion({word: torch.randn(3, 16)})
    for text in (word, "Det-logo") if word == "det-logo" else (word,):
        prompt = pipe.maybe_convert_prompt(text, pipe.tokenizer)
        ids = pipe.tokenizer(prompt, add_special_tokens=False).input_ids
        print(f"{word}: 3 vectors loaded, {text} becomes {prompt!r}, {len(ids)} used")
PROGRAM

expect <<'LINES'
DetLogo: 3 vectors loaded, DetLogo becomes 'DetLogo', 1 used
ISO-tag: 3 vectors loaded, ISO-tag becomes 'ISO-tag', 1 used
det_logo: 3 vectors loaded, det_logo becomes 'det_logo det_logo_1 det_logo_2', 3 used
det-logo: 3 vectors loaded, det-logo becomes 'det-logo det-logo_1 det-logo_2', 3 used
det-logo: 3 vectors loaded, Det-logo becomes 'Det-logo', 1 used
LINES
