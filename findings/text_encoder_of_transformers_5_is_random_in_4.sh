#!/usr/bin/env bash
# transformers 4 loads a text encoder saved by transformers 5 with random weights.
#
# Versions: saved by transformers 5.23.0, read by 4.57.6.
# Behaviour: transformers 5 writes the tensors of CLIPTextModel without the prefix "text_model.",
#   which transformers 4 expects. Version 4 finds none of them, logs a warning, initializes all 36
#   at random and returns a model, a different one at every load. CLIPTextModelWithProjection (the
#   second encoder of Stable Diffusion XL) keeps the prefix and is read correctly.
# Why it matters here: Determined's default image has transformers 4. A base model saved on a laptop
#   with transformers 5 would be fine-tuned there with a random text encoder.
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import torch
from tiny import text_config, tokenizer
from transformers import CLIPTextModel, CLIPTextModelWithProjection

torch.manual_seed(0)
tokens = tokenizer("words")
ids = torch.tensor([tokens("a photo").input_ids])
states = {}
for cls in (CLIPTextModel, CLIPTextModelWithProjection):
    encoder = cls(text_config(tokens, projection_dim=12))
    encoder.save_pretrained(cls.__name__)
    states[cls.__name__] = encoder(ids)[0]
torch.save((ids, states), "states.pt")
PROGRAM

packages transformers==4.57.6 tokenizers==0.22.2 huggingface_hub==0.36.2
cat >read.py <<'PROGRAM'
import torch
import transformers

ids, states = torch.load("states.pt")
for name, known in states.items():
    for seed in (1, 2):
        torch.manual_seed(seed)
        read = getattr(transformers, name).from_pretrained(name)(ids)[0]
        said = "equal" if torch.equal(read, known) else "others"
        print(f"{name}, seed {seed}: the states are {said}")
PROGRAM
run read.py

expect <<'LINES'
CLIPTextModel, seed 1: the states are others
CLIPTextModel, seed 2: the states are others
CLIPTextModelWithProjection, seed 1: the states are equal
CLIPTextModelWithProjection, seed 2: the states are equal
LINES
