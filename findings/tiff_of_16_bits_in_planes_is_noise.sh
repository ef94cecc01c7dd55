#!/usr/bin/env bash
# Pillow reads a 16-bit RGB TIFF file as noise if its channels are stored one after the other.
#
# Versions: pillow 12.3.0, tifffile 2026.3.3.
# Behaviour: a TIFF file may hold its channels pixel by pixel or in planes ("PlanarConfiguration
#   2"). For uncompressed planes of 16 bits, Pillow decodes each plane as 8 bits per value: two
#   pixels come from each value, and the lower half of the plane is lost. Nothing is raised. With
#   compression, with 8 bits, or pixel by pixel, the values are right.
# Why it matters here: microscopes, scanners and scientific software write such files; the picture
#   is trained on as stripes.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe tifffile==2026.3.3 <<'PROGRAM'
import numpy as np
import tifffile
from PIL import Image

ramp = np.linspace(0, 1, 32 * 48).reshape(32, 48)
picture = np.stack([ramp, ramp[::-1], 1 - ramp])
for order in "<>":
    for bits in (8, 16):
        values = (picture * (2**bits - 1)).round().astype(f"u{bits // 8}")
        for planes in (False, True):
            for compression in (None, "zlib"):
                tifffile.imwrite(
                    "picture.tif",
                    values if planes else np.moveaxis(values, 0, -1),
                    photometric="rgb",
                    planarconfig="separate" if planes else "contig",
                    compression=compression,
                    byteorder=order,
                )
                found = np.moveaxis(np.asarray(Image.open("picture.tif")), -1, 0)
                error = abs(found - picture * 255).max()
                if error > 1:
                    where = "in planes" if planes else "by pixel"
                    print(f"{bits} bits {where}, {compression}, {order}: off by up to {error:.0f}")
print("all others: right")
PROGRAM

expect <<'LINES'
16 bits in planes, None, <: off by up to 233
16 bits in planes, None, >: off by up to 233
all others: right
LINES
