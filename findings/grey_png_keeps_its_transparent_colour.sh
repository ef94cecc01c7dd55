#!/usr/bin/env bash
# Pillow leaves the transparent colour of grey PNG files of 2 and 4 bits opaque.
#
# Versions: pillow 12.3.0.
# Behaviour: a tRNS chunk names one grey of such a file as transparent. Pillow widens samples of 2
#   and 4 bits to 8 bits, but compares them with the unscaled number in the chunk (a 2-bit 3 is 255
#   by then), so no pixel is transparent. Files of 1 and 8 bits are read correctly. Nothing is
#   raised or logged.
# Why it matters here: ImageMagick writes a grey logo with a transparent background as such a file
#   without being asked; with a mask from alpha, the whole picture would be trained on.
# Observed on 2026-11-29; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import io
import struct
import zlib

from PIL import Image


def chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(bits, left, right, transparent):
    """Return a file of two grey pixels, with one value marked as transparent."""
    row = (left << bits | right) << max(0, 8 - 2 * bits)
    line = row.to_bytes(max(1, 2 * bits // 8), "big")
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(">H", transparent))
        + chunk(b"IDAT", zlib.compress(b"\0" + line))
        + chunk(b"IEND", b"")
    )


for bits in (1, 2, 4, 8):
    top = 2**bits - 1
    image = Image.open(io.BytesIO(png(bits, 0, top, top)))
    alpha = image.convert("RGBA").getchannel("A")
    print(f"{bits} bits: alpha of black and of the transparent white", list(alpha.tobytes()))
PROGRAM

expect <<'LINES'
1 bits: alpha of black and of the transparent white [255, 0]
2 bits: alpha of black and of the transparent white [255, 255]
4 bits: alpha of black and of the transparent white [255, 255]
8 bits: alpha of black and of the transparent white [255, 0]
LINES
