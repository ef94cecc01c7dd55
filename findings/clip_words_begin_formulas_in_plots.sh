#!/usr/bin/env bash
# matplotlib reads words of CLIP's vocabulary as formulas: a label with one may not be drawn.
#
# Versions: matplotlib 3.11.2; the vocabulary of OpenAI's CLIP, from open_clip_torch 3.3.0.
# Behaviour: matplotlib reads a label with an even number of dollar signs as a formula. Nine words
#   of the vocabulary have dollar signs. The parser rejects `$$` as a formula: savefig raises a
#   ValueError. If a label has two words with one sign each, the signs and the space between the
#   words are lost, with no message. With text.parse_math off, labels are drawn as they are written.
# Why it matters here: a plot of the words nearest to a learned vector can contain any word of the
#   vocabulary.
# Observed on 2026-11-29; the output is at the end.
source "$(dirname "$0")/common.sh"

observe matplotlib==3.11.2 open_clip_torch==3.3.0 contourpy==1.3.3 cycler==0.12.1 \
    fonttools==4.68.0 kiwisolver==1.5.1 packaging==26.3 pyparsing==3.3.3 \
    python-dateutil==2.9.0.post0 six==1.17.0 <<'PROGRAM'
import gzip
import html
import io
import re
from importlib.util import find_spec
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

folder = Path(find_spec("open_clip").origin).parent  # its code is not imported
merges = gzip.decompress((folder / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode()
entries = {"".join(line.split()).removesuffix("</w>") for line in merges.splitlines()[1:48895]}
words = sorted(entry for entry in entries if "$" in entry)
print("words:", *words)
matplotlib.rcParams["svg.fonttype"] = "none"


def drawn(label):
    figure, file = Figure(), io.BytesIO()
    figure.text(0.1, 0.5, label)
    try:
        figure.savefig(file, format="svg")
    except ValueError:
        return "a ValueError"
    body = file.getvalue().decode().partition("<g id=\"text_1\">")[2].partition("</g>")[0]
    pieces = re.findall(r">([^<]*)<", body)  # those of a formula are on separate lines
    return html.unescape("".join(map(str.strip, pieces)))


for parse in (True, False):
    matplotlib.rcParams["text.parse_math"] = parse
    print("formulas", "on" if parse else "off")
    for label in ("money 0.3", "$$ 0.3", "-$ 0.3, :$ 0.2"):
        print(f"  {label} -> {drawn(label)}")
PROGRAM

expect <<'LINES'
words: $$ $$$ $) $. ($ ($) -$ /$ :$
formulas on
  money 0.3 -> money 0.3
  $$ 0.3 -> a ValueError
  -$ 0.3, :$ 0.2 -> -0.3,:0.2
formulas off
  money 0.3 -> money 0.3
  $$ 0.3 -> $$ 0.3
  -$ 0.3, :$ 0.2 -> -$ 0.3, :$ 0.2
LINES
