#!/usr/bin/env bash
# compel removes a pair of quotation marks from a prompt.
#
# Versions: compel 2.5.1, on which InvokeAI's prompts are built.
# Behaviour: in `a sign that says "open"`, compel takes the quotation marks for its own syntax, in
#   which they enclose the parts of a blend, and encodes `a sign that says open`. A single mark (a
#   12" record), single quotes and typographic ones stay. Nothing is logged.
# Why it matters here: the same prompt with the same word and seed makes another image in diffusers,
#   A1111 and ComfyUI, which encode the marks.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe compel==2.5.1 pyparsing==3.3.3 <<'PROGRAM'
import tiny
import torch
from compel import Compel

pipe = tiny.pipeline()
compel = Compel(tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder)

for prompt in (
    "a sign that says open",
    'a sign that says "open"',
    'a "det-logo" on grass, a "red" ball',
    'a 12" record',
    "a sign that says 'open'",
    "a sign that says “open”",
):
    states = compel(prompt)
    same = []
    for text in (prompt, prompt.replace('"', "")):
        known, _ = pipe.encode_prompt(text, "cpu", 1, False)
        if torch.allclose(states, known, atol=1e-5) and text not in same:
            same.append(text)
    print(f"{prompt} -> {' or '.join(same)}")
PROGRAM

expect <<'LINES'
a sign that says open -> a sign that says open
a sign that says "open" -> a sign that says open
a "det-logo" on grass, a "red" ball -> a det-logo on grass, a red ball
a 12" record -> a 12" record
a sign that says 'open' -> a sign that says 'open'
a sign that says “open” -> a sign that says “open”
LINES
