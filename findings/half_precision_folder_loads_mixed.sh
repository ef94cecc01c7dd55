#!/usr/bin/env bash
# A folder saved in half precision loads with its text encoder in half and the rest in float32.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0. With 0.38.0 and 4.57.6 all is float32.
# Behaviour: where no dtype is named, transformers 5 takes that of the files and diffusers takes
#   float32. One pipeline then holds both, and the first image ends in a RuntimeError about two
#   dtypes. With a dtype named, all parts have it.
# Why it matters here: most fine-tunes of Stable Diffusion are handed out in half precision.
# Seen on 2026-11-28: the lines at the end.
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
