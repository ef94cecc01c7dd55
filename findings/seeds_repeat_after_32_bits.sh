#!/usr/bin/env bash
# Seeds that differ by 2^32 make the same image: PyTorch's CPU generator drops the upper half.
#
# Versions: torch 2.13.0 on the CPU, diffusers 0.42.1.
# Behaviour: `torch.Generator().manual_seed` accepts 64 bits and `initial_seed()` returns all of
#   them, but the numbers drawn depend only on the lower 32; -1 is the same as 4294967295.
# Why it matters here: ComfyUI draws seeds of up to 64 bits. Programs that combine several numbers
#   into a seed, such as `seed + (image << 32)`, get the same noise for all images.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import torch
from tiny import pipeline

pipe = pipeline()


def image(seed):
    generator = torch.Generator().manual_seed(seed)
    kept = generator.initial_seed() == seed % 2**64
    made = pipe("a photo", generator=generator, num_inference_steps=2, output_type="latent")
    return kept, made.images


for seed, other in ((7, 8), (7, 7 + 2**32), (7, 7 + 2**63), (-1, 2**32 - 1)):
    (kept, a), (kept_too, b) = image(seed), image(other)
    assert kept and kept_too
    print(f"{seed} and {other}: {'the same image' if torch.equal(a, b) else 'two images'}")
PROGRAM

expect <<'LINES'
7 and 8: two images
7 and 4294967303: the same image
7 and 9223372036854775815: the same image
-1 and 4294967295: the same image
LINES
