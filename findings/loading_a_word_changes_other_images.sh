#!/usr/bin/env bash
# Loading a word changes images of prompts without it, if their seed is the global one.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0; also 0.38.0 with 4.57.6.
# Behaviour: `load_textual_inversion` makes transformers create a larger table, whose rows are drawn
#   at random before they are overwritten. This advances PyTorch's global generator. An image whose
#   noise comes from this generator, after `torch.manual_seed`, changes if a word was loaded in
#   between, and changes again with a word of another length. An image with its own generator does
#   not change.
# Why it matters here: images with and without a concept are compared at the same seed. A training
#   that adds its words after seeding draws other samples for words of other lengths.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import torch
from tiny import pipeline


def image(vectors, generator=None):
    pipe = pipeline()
    torch.manual_seed(7)
    if vectors:
        pipe.load_textual_inversion({"det-logo": torch.zeros(vectors, 16)})
    options = {"num_inference_steps": 3, "output_type": "latent"}
    return pipe("a photo", generator=generator, **options).images


for name, seed in (("torch.manual_seed", None), ("a generator of its own", 7)):
    images = {
        n: image(n, None if seed is None else torch.Generator().manual_seed(seed))
        for n in (0, 1, 3)
    }
    for n in (1, 3):
        same = [k for k in (0, 1) if k < n and torch.equal(images[n], images[k])]
        said = f"as with {' and '.join(map(str, same))}" if same else "another image"
        print(f"{name}, {n} vectors loaded: {said}")
PROGRAM

expect <<'LINES'
torch.manual_seed, 1 vectors loaded: another image
torch.manual_seed, 3 vectors loaded: another image
a generator of its own, 1 vectors loaded: as with 0
a generator of its own, 3 vectors loaded: as with 0 and 1
LINES
