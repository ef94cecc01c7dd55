#!/usr/bin/env bash
# In diffusers, `clip_skip` applies to the prompt but not to the negative prompt.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0.
# Behaviour: `encode_prompt` takes the prompt's states from the earlier layer, and the negative
#   prompt's from the usual one, so guidance compares states of two different layers. The same text
#   has different states as prompt and as negative prompt. A1111 and ComfyUI take both from one
#   layer. (Shown with Stable Diffusion XL, since 1.x raises with transformers 5:
#   clip_skip_raises.sh.)
# Why it matters here: models that need clip skip are used with long negative prompts, and their
#   images differ from those of the other programs.
# Observed on 2026-11-29; the output is at the end.
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
