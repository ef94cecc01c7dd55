"""JPEG 2000 files of several channels and more than 8 bits, which Pillow misreads.

Pillow 12.3 rounds such values to 8 bits without clipping: the brightest become 256, which is stored
as 0, so that white turns black. Where a channel is 0, a second decoding at half the contrast tells
the two apart.
"""

import io

from PIL import Image, ImageChops

SIZ, COD, QCD, QCC, FIRST_TILE = 0x51, 0x52, 0x5C, 0x5D, 0x90  # markers (ISO 15444-1, A.2)


def markers(data: bytes) -> list[tuple[int, int]]:
    """Return the markers of a file's main header and where their segments begin."""
    at = data.find(b"\xff\x4f\xff\x51") + 2
    found = []
    while at >= 2 and data[at : at + 1] == b"\xff" and data[at + 1] != FIRST_TILE:
        found.append((data[at + 1], at + 2))
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return found


def depth(data: bytes) -> int:
    """Return the bits of the deepest channel."""
    return max((data[k] & 0x7F) + 1 for k in _depths(data))


def levels(data: bytes) -> int:
    """Return how many times a file can be halved in size while it is decoded."""
    return min((data[at + 7] for marker, at in markers(data) if marker == COD), default=0)


def profile(data: bytes) -> bytes | None:
    """Return the ICC profile of a file (ISO 15444-1, I.5.3.3), which Pillow does not expose."""
    header = data[: max(0, data.find(b"\xff\x4f\xff\x51"))]
    at = header.find(b"colr")
    if at < 4 or header[at + 4 : at + 5] not in (b"\2", b"\3"):  # restricted, or any
        return None
    return header[at + 7 : at - 4 + int.from_bytes(header[at - 4 : at], "big")]


def mend_white(image: Image.Image, data: bytes, reduce: int) -> Image.Image:
    """Return a loaded image of more than 8 bits and several channels with its white restored."""
    with Image.open(io.BytesIO(_at_half_contrast(data)), formats=("JPEG2000",)) as other:
        other.reduce = reduce
        pairs = zip(image.split(), other.split(), strict=True)
        channels = []
        for channel, half in pairs:
            # At half the contrast around the middle, black is 64, white 192. Accurate to 1.5 levels
            # in 120 combinations of depth, channels, loss and size.
            white = half.point(lambda v: 255 * (v > 127))
            zero = channel.point(lambda v: 255 * (v == 0))
            mended = channel.copy()
            mended.paste(255, mask=ImageChops.darker(white, zero))
            channels.append(mended)
    return Image.merge(image.mode, channels)


def _depths(data: bytes) -> range:
    """Return the positions of the channels' depths."""
    at = next(at for marker, at in markers(data) if marker == SIZ)
    channels = int.from_bytes(data[at + 36 : at + 38], "big")
    return range(at + 38, at + 38 + 3 * channels, 3)


def _at_half_contrast(data: bytes) -> bytes:
    """Declare one bit more than the file has.

    In lossy files the quantization step depends on the depth and would double: one guard bit less
    halves it again.
    """
    changed = bytearray(data)
    for k in _depths(data):
        changed[k] += 1
    several = len(_depths(data)) > 256  # then a channel's number takes two bytes
    for marker, at in markers(data):
        style = at + 2 if marker == QCD else at + 3 + several
        if marker in (QCD, QCC) and changed[style] & 0x1F:
            changed[style] -= 0x20
    return bytes(changed)
