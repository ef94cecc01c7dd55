#!/usr/bin/env bash
# A word at the end of the 77-token window keeps some of its vectors and loses the others.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0; also 0.38.0 with 4.57.6.
# Behaviour: a word of n vectors is n tokens, and the prompt is cut at 77 tokens, even inside a
#   word. diffusers logs the lost part as text ("word_2word_3"), which does not occur in
#   the user's prompt.
# Why it matters here: part of a concept's vectors is a different concept, and long prompts are
#   common.
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import torch
from tiny import pipeline

pipe = pipeline()
pipe.load_textual_inversion({"word": torch.randn(4, 16)})
seen = []
pipe.text_encoder.register_forward_pre_hook(lambda encoder, args: seen.append(args[0]))
pipe.encode_prompt("a " * 73 + "word", "cpu", 1, False)
tokens = pipe.tokenizer.convert_ids_to_tokens(seen[0][0].tolist())
print("tokens:", len(tokens), "of the word:", [t for t in tokens if t.startswith("word")])
PROGRAM

expect <<'LINES'
tokens: 77 of the word: ['word', 'word_1']
LINES
