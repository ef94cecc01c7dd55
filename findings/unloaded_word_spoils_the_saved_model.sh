#!/usr/bin/env bash
# A pipeline that is saved after a word was unloaded cannot be loaded again.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0; also 0.38.0 with 4.57.6.
# Behaviour: `load_textual_inversion` increases the text encoder's `vocab_size` by the number of the
#   word's vectors. `unload_textual_inversion` removes the rows from the table but leaves
#   `vocab_size` as it is, and `save_pretrained` writes both. Loading the folder raises a
#   RuntimeError about mismatched sizes. Saved with the word in it, the folder loads.
# Why it matters here: if you try a word, unload it and save the pipeline (with another sampler or
#   in half precision, for example), the saved base model cannot be loaded.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import torch
from diffusers import StableDiffusionPipeline
from tiny import pipeline

pipe = pipeline()


def save(folder):
    encoder = pipe.text_encoder
    rows = len(encoder.get_input_embeddings().weight)
    print(f"{folder}: rows {rows}, vocab_size {encoder.config.vocab_size}")
    pipe.save_pretrained(folder)
    try:
        StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
        print("  loaded")
    except RuntimeError as error:
        print(f"  {type(error).__name__}")


save("before")
pipe.load_textual_inversion({"det-logo": torch.randn(3, 16)})
save("with the word")
pipe.unload_textual_inversion()
save("after")
PROGRAM

expect <<'LINES'
before: rows 514, vocab_size 514
  loaded
with the word: rows 517, vocab_size 517
  loaded
after: rows 514, vocab_size 517
  RuntimeError
LINES
