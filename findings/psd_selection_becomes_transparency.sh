#!/usr/bin/env bash
# Pillow takes a selection that was saved in an RGB file of Photoshop for its transparency.
#
# Versions: pillow 12.3.0.
# Behaviour: the fourth channel of an RGB file in PSD's format is the transparency only if the
#   number of layers in it is negative (Adobe's specification, "Layer count"). Otherwise it is an
#   alpha channel that somebody added, such as a saved selection. Pillow gives every RGB file of
#   four channels the mode RGBA: all that is not selected becomes transparent. The same channel in a
#   grey or CMYK file is left out.
# Why it matters here: on a background, the unselected parts of the picture disappear.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import io
import struct

from PIL import Image


def psd(mode, channels):
    """Return a flattened file of two pixels, without layers."""
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, len(channels), 1, 2, 8, mode)
    no_palette_resources_layers = struct.pack(">III", 0, 0, 0)
    return io.BytesIO(head + no_palette_resources_layers + struct.pack(">H", 0) + b"".join(channels))


selection = bytes((255, 0))  # the left pixel is selected
red = [bytes((200, 200)), bytes((40, 40)), bytes((30, 30))]
FILES = {
    "RGB": (3, red),
    "RGB and a selection": (3, [*red, selection]),
    "grey": (1, red[:1]),
    "grey and a selection": (1, [red[0], selection]),
}
for name, (mode, channels) in FILES.items():
    image = Image.open(psd(mode, channels))
    shown = Image.new("RGBA", image.size, "white")
    shown.alpha_composite(image.convert("RGBA"))
    pixels = [shown.convert("RGB").getpixel((x, 0)) for x in (0, 1)]
    print(f"{name}: mode {image.mode}, on white {pixels}")
PROGRAM

expect <<'LINES'
RGB: mode RGB, on white [(200, 40, 30), (200, 40, 30)]
RGB and a selection: mode RGBA, on white [(200, 40, 30), (255, 255, 255)]
grey: mode L, on white [(200, 200, 200), (200, 200, 200)]
grey and a selection: mode L, on white [(200, 200, 200), (200, 200, 200)]
LINES
