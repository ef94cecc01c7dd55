#!/usr/bin/env bash
# A word with a capital letter keeps only the first of its vectors in diffusers.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0. With transformers 4.57.6 (and diffusers
#   0.38.0) all vectors are used.
# Behaviour: transformers 5 hands an added token back in lower case ("detlogo"). diffusers looks it
#   up among the added tokens in the spelling it was loaded with ("DetLogo"), does not find it, and
#   leaves the prompt as it is: one token of the three. Nothing is raised or logged. A word of one
#   vector, or in lower case, is whole.
# Why it matters here: detsd's words may have capitals, and its exports are read by diffusers and
#   by what stands on it (compel, for one). A concept of four vectors then is a concept of one.
# Seen on 2026-11-28: the lines at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import torch
from tiny import pipeline

for word in ("DetLogo", "ISO-tag", "det_logo", "det-logo"):
    pipe = pipeline()
    pipe.load_textual_inversion({word: torch.randn(3, 16)})
    prompt = pipe.maybe_convert_prompt(word, pipe.tokenizer)
    ids = pipe.tokenizer(prompt, add_special_tokens=False).input_ids
    print(f"{word}: 3 vectors loaded, prompt becomes {prompt!r}, {len(ids)} used")
PROGRAM

expect <<'LINES'
DetLogo: 3 vectors loaded, prompt becomes 'DetLogo', 1 used
ISO-tag: 3 vectors loaded, prompt becomes 'ISO-tag', 1 used
det_logo: 3 vectors loaded, prompt becomes 'det_logo det_logo_1 det_logo_2', 3 used
det-logo: 3 vectors loaded, prompt becomes 'det-logo det-logo_1 det-logo_2', 3 used
LINES
