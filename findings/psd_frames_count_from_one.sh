#!/usr/bin/env bash
# In Pillow, seeking to the first frame of a PSD file raises, unlike in any other format.
#
# Versions: pillow 12.3.0.
# Behaviour: `Image.seek` counts frames from 0 in every other format, but from 1 in a PSD file.
#   `seek(0)`, with which programs make sure that they read the first frame, raises EOFError, and
#   `tell()` of a newly opened file is 1.
# Why it matters here: a program that takes the first frame of each picture it is given refuses
#   every PSD file.
# Observed on 2026-11-29; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import io
import struct

from PIL import Image

head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 1, 2, 8, 3)  # version 1: RGB, 2 x 1, 8 bits
sections = struct.pack(">III", 0, 0, 0)  # no palette, resources or layers
pixels = struct.pack(">H", 0) + bytes((255, 0)) + bytes((0, 0)) + bytes((0, 255))
gif = io.BytesIO()
Image.new("RGB", (2, 1)).save(gif, "GIF")
for name, file in {"PSD": io.BytesIO(head + sections + pixels), "GIF": gif}.items():
    image = Image.open(file)
    first = image.tell()
    try:
        image.seek(0)
        print(name, "begins at", first, "and goes to frame 0")
    except EOFError as error:
        print(name, "begins at", first, "and raises EOFError:", error)
PROGRAM

expect <<'LINES'
PSD begins at 1 and raises EOFError: attempt to seek outside sequence
GIF begins at 0 and goes to frame 0
LINES
