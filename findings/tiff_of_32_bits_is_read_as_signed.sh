#!/usr/bin/env bash
# Pillow reads an unsigned 32-bit TIFF file as signed: white is -1.
#
# Versions: pillow 12.3.0 (numpy 2.4.6).
# Behaviour: a grey 32-bit TIFF file whose SampleFormat is unsigned opens in mode "I", which is
#   signed: numbers above 2^31 - 1 become negative. Converting to "L" clips: a quarter of the range
#   is already white, and half of it and all of it are black. Nothing is raised or logged.
# Why it matters here: microscopes and renderers write such files. Scaled by their largest number,
#   they would train as different pictures.
# Observed on 2026-11-29; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import io
import struct

import numpy as np
from PIL import Image

values = (0, 2**30, 2**31, 2**32 - 1)
tags = {  # width, height, bits, compression, photometric, offset, samples, rows, bytes, format
    256: (3, len(values)), 257: (3, 1), 258: (3, 32), 259: (3, 1), 262: (3, 1), 273: (4, 8),
    277: (3, 1), 278: (3, 1), 279: (4, 4 * len(values)), 339: (3, 1),
}
data = struct.pack("<4I", *values)
entries = b"".join(struct.pack("<HHII", tag, kind, 1, v) for tag, (kind, v) in tags.items())
directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
file = struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory
image = Image.open(io.BytesIO(file))
print("written:", *values)
print("read, mode", image.mode + ":", *np.asarray(image)[0])
print("as L:", *np.asarray(image.convert("L"))[0])
PROGRAM

expect <<'LINES'
written: 0 1073741824 2147483648 4294967295
read, mode I: 0 1073741824 -2147483648 -1
as L: 0 255 0 0
LINES
