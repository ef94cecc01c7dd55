#!/usr/bin/env bash
# `clip_skip` in diffusers holds for the prompt and not for the negative prompt.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0.
# Behaviour: `encode_prompt` takes the prompt's states from the earlier layer, and the negative
#   prompt's from the usual one, so guidance goes from one layer's states to another's. The same
#   text as prompt and negative prompt is not the same. A1111 and ComfyUI take both from one layer.
#   (Seen for Stable Diffusion XL, since 1.x raises with transformers 5: clip_skip_raises.sh.)
# Why it matters here: models that need clip skip are used with long negative prompts, and their
#   images differ from those of the other programs.
# Seen on 2026-11-29: the lines at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import torch
from tiny import pipeline_xl

pipe = pipeline_xl(add_watermarker=False)
for skip in (None, 1):
    prompt, negative, *_ = pipe.encode_prompt(
        "a dog", negative_prompt="a dog", do_classifier_free_guidance=True, clip_skip=skip
    )
    print(f"clip_skip={skip}: one text as both, equal states: {torch.equal(prompt, negative)}")
PROGRAM

expect <<'LINES'
clip_skip=None: one text as both, equal states: True
clip_skip=1: one text as both, equal states: False
LINES
