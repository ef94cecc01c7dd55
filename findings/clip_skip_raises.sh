#!/usr/bin/env bash
# `clip_skip` of Stable Diffusion 1.x raises in diffusers with transformers 5.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0. Works in 0.38.0 with 4.57.6.
# Behaviour: the pipeline applies `text_encoder.text_model.final_layer_norm` to an earlier layer's
#   states, and CLIPTextModel has no `text_model` any more in transformers 5: AttributeError, for
#   any value, 0 too. Stable Diffusion XL takes the hidden states as they are and works.
# Why it matters here: models drawn in the style of animation are used with clip skip 2, and
#   concepts learned in A1111 may have been learned with it.
# Seen on 2026-11-28: the lines at the end.
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
