#!/usr/bin/env bash
# A tokenizer without its vocabulary loads with two entries, and reads every prompt alike.
#
# Versions: transformers 5.23.0, diffusers 0.42.1. transformers 4.57.6 raises.
# Behaviour: if a tokenizer's folder holds only tokenizer_config.json (after an interrupted copy or
#   download), CLIPTokenizer.from_pretrained makes a tokenizer of the start and the end token.
#   Everything else is the unknown token, which is the end token: all prompts of one length are the
#   same. A pipeline with it loads and makes images. Nothing is raised or logged.
# Why it matters here: the first new word would get id 2 or 3, which belongs to a letter.
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from tiny import pipeline

pipeline().save_pretrained("model")
Path("model/tokenizer/tokenizer.json").unlink()
print("left:", *sorted(path.name for path in Path("model/tokenizer").iterdir()))
pipe = StableDiffusionPipeline.from_pretrained("model")
print("tokens:", sorted(pipe.tokenizer.get_vocab().items()))
cat, sea = (pipe.encode_prompt(p, "cpu", 1, False)[0] for p in ("a cat", "the sea"))
print("two prompts have the same states:", torch.equal(cat, sea))
PROGRAM

expect <<'LINES'
left: tokenizer_config.json
tokens: [('<|endoftext|>', 2), ('<|startoftext|>', 0)]
two prompts have the same states: True
LINES
