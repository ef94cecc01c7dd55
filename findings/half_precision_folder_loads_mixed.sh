#!/usr/bin/env bash
# A half-precision folder loads with its text encoder in half precision and the rest in float32.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0. With 0.38.0 and 4.57.6 all parts are float32.
# Behaviour: if no dtype is given, transformers 5 uses that of the files and diffusers uses float32.
#   One pipeline then holds both, and the first image raises a RuntimeError about two dtypes. If a
#   dtype is given, all parts have it.
# Why it matters here: most fine-tunes of Stable Diffusion are distributed in half precision.
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import torch
from diffusers import StableDiffusionPipeline
from tiny import pipeline

pipeline().to(torch.float16).save_pretrained("half")
for options in ({}, {"torch_dtype": torch.float32}):
    pipe = StableDiffusionPipeline.from_pretrained("half", **options)
    parts = ("text_encoder", "unet", "vae")
    print(options or "no dtype named:", [str(getattr(pipe, part).dtype) for part in parts])
    try:
        pipe("a photo", num_inference_steps=1)
        print("an image")
    except RuntimeError as error:
        print(error)
PROGRAM

expect <<'LINES'
no dtype named: ['torch.float16', 'torch.float32', 'torch.float32']
mat1 and mat2 must have the same dtype, but got Half and Float
{'torch_dtype': torch.float32} ['torch.float32', 'torch.float32', 'torch.float32']
an image
LINES
