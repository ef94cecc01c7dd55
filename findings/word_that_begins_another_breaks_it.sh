#!/usr/bin/env bash
# If one word begins another, diffusers breaks the longer one in the same prompt.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0; the replacement also in 0.38.0 with 4.57.6.
# Behaviour: diffusers replaces the text of a word with its tokens wherever it occurs. "det-logo" is
#   replaced inside "det-logo-demo", none of whose own vectors is used then; "cat" is replaced
#   inside "category". The words of a prompt are replaced in the order of a Python set, which
#   differs between processes. So do the tokens, and the image of a given seed. Nothing is raised or
#   logged.
# Why it matters here: people often name a series this way (det-logo, det-logo-demo).
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import os
import subprocess
import sys

import torch
from tiny import pipeline


def added(prompt, *words):
    pipe = pipeline()
    for word in words:
        pipe.load_textual_inversion({word: torch.randn(2, 16)})
    prompt = pipe.maybe_convert_prompt(prompt, pipe.tokenizer)
    names = pipe.tokenizer.get_added_vocab()
    return " ".join(token for token in pipe.tokenizer.tokenize(prompt) if token in names)


both = "det-logo-demo beside det-logo", "det-logo", "det-logo-demo"
if sys.argv[1:]:
    print(added(*both))
    sys.exit()
print("alone:", added("det-logo-demo", "det-logo-demo"))
print("in a longer word:", added("a category", "cat"))
orders = set()
for number in range(2):
    done = subprocess.run(
        [sys.executable, __file__, "both"],
        env=os.environ | {"PYTHONHASHSEED": str(number)},
        capture_output=True,
        text=True,
        check=True,
    )
    orders.add(done.stdout.strip())
print("both, in two processes:", *sorted(orders), sep="\n  ")
PROGRAM

expect <<'LINES'
alone: det-logo-demo det-logo-demo_1
in a longer word: cat cat_1
both, in two processes:
  det-logo det-logo_1 det-logo det-logo_1
  det-logo det-logo_1 det-logo det-logo_1 det-logo det-logo_1
LINES
