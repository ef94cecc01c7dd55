#!/usr/bin/env bash
# In diffusers with transformers 5, `clip_skip` raises for Stable Diffusion 1.x.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0. It works in 0.38.0 with 4.57.6.
# Behaviour: the pipeline applies `text_encoder.text_model.final_layer_norm` to the states of an
#   earlier layer. In transformers 5, CLIPTextModel no longer has a `text_model`, so any value
#   raises an AttributeError, even 0. Stable Diffusion XL uses the hidden states as they are and
#   works.
# Why it matters here: anime models are used with clip skip 2, and concepts learned in A1111 may
#   have been learned with it.
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
from tiny import pipeline, pipeline_xl

for name, pipe in (("1.x", pipeline()), ("XL", pipeline_xl(add_watermarker=False))):
    for skip in (None, 0, 1):
        try:
            pipe("a", num_inference_steps=1, clip_skip=skip)
            print(f"{name}, clip_skip={skip}: an image")
        except AttributeError as error:
            print(f"{name}, clip_skip={skip}: {error}")
PROGRAM

expect <<'LINES'
1.x, clip_skip=None: an image
1.x, clip_skip=0: 'CLIPTextModel' object has no attribute 'text_model'
1.x, clip_skip=1: 'CLIPTextModel' object has no attribute 'text_model'
XL, clip_skip=None: an image
XL, clip_skip=0: an image
XL, clip_skip=1: an image
LINES
