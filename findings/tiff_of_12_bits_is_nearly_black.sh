#!/usr/bin/env bash
# Pillow reads a grey TIFF file of 12 bits as 16-bit values without scaling: white is 4095.
#
# Versions: pillow 12.3.0, tifffile 2026.3.3 with imagecodecs 2026.3.6.
# Behaviour: the picture has the mode `I;16`, in which white is 65535 for every other format and
#   depth (Pillow scales PGM files of 12 bits). Nothing but the file's tag tells a program that
#   white is 4095. Converted to 8 bits, or divided by 65535, it is nearly black: 15 of 255.
# Why it matters here: scanners and cameras of microscopes have 12 bits.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe tifffile==2026.3.3 imagecodecs==2026.3.6 <<'PROGRAM'
import io

import numpy as np
import tifffile
from PIL import Image

row = np.array([[0, 2048, 4095]], np.uint16)
tifffile.imwrite("grey.tif", row, photometric="minisblack", bitspersample=12)
files = {
    "TIFF, 12 bits": "grey.tif",
    "PGM, 12 bits": io.BytesIO(b"P5 3 1 4095\n" + row.astype(">u2").tobytes()),
}
for name, file in files.items():
    image = Image.open(file)
    print(f"{name}: mode {image.mode}, values", *np.asarray(image)[0])
PROGRAM

expect <<'LINES'
TIFF, 12 bits: mode I;16, values 0 2048 4095
PGM, 12 bits: mode I, values 0 32776 65535
LINES
