#!/usr/bin/env bash
# Unloading a word by name removes only its first vector, and the word cannot be loaded again.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0; also 0.38.0 with 4.57.6.
# Behaviour: `unload_textual_inversion("det-logo")` removes only the token of that name. The tokens
#   det-logo_1 and det-logo_2 stay in the tokenizer, and their rows in the text encoder. Loading the
#   word again raises a ValueError about them. Without a name, everything is unloaded.
# Why it matters here: to compare checkpoints of one concept, you load and unload each.
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import torch
from tiny import pipeline

pipe = pipeline()
rows = len(pipe.text_encoder.get_input_embeddings().weight)
pipe.load_textual_inversion({"det-logo": torch.randn(3, 16)})
pipe.unload_textual_inversion("det-logo")
print("left:", [t for t in pipe.tokenizer.get_added_vocab() if t.startswith("det-logo")])
print("rows more than before:", len(pipe.text_encoder.get_input_embeddings().weight) - rows)
try:
    pipe.load_textual_inversion({"det-logo": torch.randn(3, 16)})
except ValueError as error:
    print("loaded again:", str(error).split(".")[0])
PROGRAM

expect <<'LINES'
left: ['det-logo_1', 'det-logo_2']
rows more than before: 2
loaded again: Multi-vector Token ['det-logo', 'det-logo_1', 'det-logo_2'] already in tokenizer vocabulary
LINES
