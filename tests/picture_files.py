"""Small pictures of many kinds, with the pixels that training sees: the table of docs/pictures.md.

    PYTHONPATH=. python tests/picture_files.py

prints the table. Every picture has 8 x 8 pixels: one colour at the lower left, another at the upper
right.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from detsd.utils.colors import ADOBE_RGB, ADOBE_RGB_GAMMA, matrix_profile

RED, BLUE, BLACK, WHITE, GREY = (200, 40, 30), (0, 0, 255), (0,) * 3, (255,) * 3, (77,) * 3
LOWER_LEFT, UPPER_RIGHT = (1, 6), (6, 1)

# x, y of white, red, green, blue.
DISPLAY_P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
PROPHOTO = (0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)

# Lower left (or left) and right half in OpenJPEG 2.5.4's files: white and red, white and grey.
JPEG_2000 = {
    "rgb10.jp2": """
AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAACAAAAAgAAwkHAAAAAAAPY29scgEAAAAA
ABAAAADhanAyY/9P/1EALwAAAAAACAAAAAgAAAAAAAAAAAAAAAgAAAAIAAAAAAAAAAAAAwkBAQkBAQkBAf9SAAwAAAABAQAEBAAB
/1wABEBQ/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAAAaQAB/5PPzLgUAEp2wsIZZzAAAC/E
5dUbVp+xHNh+bD82IQlZJMBgQU9pR5sQhKySYDAgp7SjwfUGACaJDPNLj+T+AYSEv9+wuCc1DvNLj+T+AYSEv/dccAADCPUH8f9/
/9k=""",
    "rgb12lossy.jp2": """
AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAACAAAAAgAAwsHAAAAAAAPY29scgEAAAAA
ABAAAADFanAyY/9P/1EALwAAAAAACAAAAAgAAAAAAAAAAAAAAAgAAAAIAAAAAAAAAAAAAwsBAQsBAQsBAf9SAA0BAgABAQAEBAAA
iP9cAAVCYAD/ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAABLAAH/k8+k+BQASnbCwhX6+AYS
C7XQAAAAMea8+Nq0/Yjmw/Nh+bDH3hAmiQzzS1e84s+kaCc1DvNLj+T+AYSEv1//2Q==""",
    "la16.jp2": """
AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAACAAAAAgAAg8HAAAAAAAPY29scgEAAAAA
ABEAAADWanAyY/9P/1EALAAAAAAACAAAAAgAAAAAAAAAAAAAAAgAAAAIAAAAAAAAAAAAAg8BAQ8BAf9SAAwAAAABAAAEBAAB/1wA
BECA/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAAAYQAB/5PP/DEYFABKdsLCGWcwAAAvxOXV
G1afsRzYfmw/NiEJWSTAYEFPaUebEISskmAwIKe0o82IQl7EYgABficuqNq0/Yjmw/Nh+bEIS8/8MBQUAFyvh//Z""",
    "grey12.jp2": """
AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAACAAAAAgAAQsHAAAAAAAPY29scgEAAAAA
ABEAAAC1anAyY/9P/1EAKQAAAAAACAAAAAgAAAAAAAAAAAAAAAgAAAAIAAAAAAAAAAAAAQsBAf9SAAwAAAABAAAEBAAB/1wABEBg
/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAAAQwAB/5PP5MgUAEp2wsIZZzAAAC/E5dUbVp+x
HNh+bD82IQlZJMBgQU9pR5sQhKySYDAgp7SjzYhCX//Z""",
}


def halves(left, right, mode: str = "RGB") -> Image.Image:
    """Return 8 x 8 pixels of two colours side by side."""
    image = Image.new(mode, (8, 8), left)
    image.paste(right, (4, 0, 8, 8))
    return image


def pillow(mode: str, left, right, **options) -> Callable[[Path], None]:
    """Return a function that writes two colours in the format of the file's name."""
    return lambda path: halves(left, right, mode).save(path, **options)


def array(dtype, left, right, **options) -> Callable[[Path], None]:
    """Write two values of a grey picture of more than 8 bits."""
    values = np.full((8, 8), left, dtype)
    values[:, 4:] = right
    return lambda path: Image.fromarray(values).save(path, **options)


def png(depth: int, color: int, left, right, **chunks: bytes) -> Callable[[Path], None]:
    """Write a PNG file by hand: sample values of `depth` bits, PNG's color type, further chunks."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    samples = [*np.atleast_1d(left)] * 4 + [*np.atleast_1d(right)] * 4
    bits = "".join(f"{value:0{depth}b}" for value in samples)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    head = struct.pack(">IIBBBBB", 8, 8, depth, color, 0, 0, 0)
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    whole += b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    whole += chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")
    return lambda path: path.write_bytes(whole)


def trns(*values: int) -> bytes:
    """Return a PNG chunk that makes one colour transparent."""
    return struct.pack(f">{len(values)}H", *values)


def psd(mode: int, left, right, layers: bytes = b"") -> Callable[[Path], None]:
    """Write a flattened PSD file; mode 3 is RGB, 4 is CMYK."""
    planes = [[a] * 4 + [b] * 4 for a, b in zip(left, right, strict=True)]
    head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, len(planes), 8, 8, 8, mode)
    body = b"\0" * 8 + struct.pack(">I", len(layers)) + layers
    body += b"\0\0" + b"".join(bytes(plane) * 8 for plane in planes)
    return lambda path: path.write_bytes(head + body)


# One empty layer; the sign of the number says that the fourth channel is the transparency.
TRANSPARENT = struct.pack(">Ih16xH8s4BII", 36, -1, 0, b"8BIMnorm", 255, 0, 0, 0, 0, 0)


def tiff(planes: list[bytes], bits: int, photometric: int) -> Callable[[Path], None]:
    """Write a TIFF file by hand, with a strip for each channel."""
    count, body, at = len(planes), b"".join(planes), 8
    starts = [at + n * len(planes[0]) for n in range(count)]
    tags = {256: [8], 257: [8], 258: [bits] * count, 259: [1], 262: [photometric], 273: starts}
    tags |= {277: [count], 278: [8], 279: [len(plane) for plane in planes], 284: [1 + (count > 1)]}
    entries = b""
    for tag, values in tags.items():
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed, body = struct.pack("<I", at + len(body)), body + packed
        entries += struct.pack("<HHI", tag, 4, len(values)) + packed
    head = struct.pack("<2sHI", b"II", 42, at + len(body))
    body += struct.pack("<H", len(tags)) + entries + b"\0" * 4
    return lambda path: path.write_bytes(head + body)


def halves_of(left: int, right: int, bits: int) -> bytes:
    """Return eight rows of values of 16 bits, or of 12 bits, which are packed."""
    values = [left] * 4 + [right] * 4
    packed = int("".join(f"{value:012b}" for value in values), 2) if bits == 12 else 0
    return (packed.to_bytes(12, "big") if bits == 12 else struct.pack("<8H", *values)) * 8


def tiff_u32(left: int, right: int) -> Callable[[Path], None]:
    """Write a TIFF file of unsigned integers of 32 bits."""

    def write(path: Path) -> None:
        values = np.full((8, 8), left, np.uint32)
        values[:, 4:] = right
        Image.fromarray(values.view(np.int32)).save(path)
        signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, sign, 0) for sign in (2, 1))
        data = path.read_bytes()
        assert data.count(signed) == 1
        path.write_bytes(data.replace(signed, unsigned))

    return write


def jpeg_2000(path: Path) -> None:
    path.write_bytes(base64.b64decode(JPEG_2000[path.name]))


def jpeg_2000_of(profile: bytes, left, right) -> Callable[[Path], None]:
    """Write a JPEG 2000 file with a profile instead of a declared colour space."""

    def write(path: Path) -> None:
        halves(left, right).save(path)
        data = path.read_bytes()
        head, place = data.index(b"jp2h"), data.index(b"colr")
        end = place - 4 + int.from_bytes(data[place - 4 : place], "big")
        box = struct.pack(">I4sBBB", 11 + len(profile), b"colr", 2, 0, 0) + profile
        longer = len(box) - (end - place + 4)
        size = int.from_bytes(data[head - 4 : head], "big") + longer
        data = data[: place - 4] + box + data[end:]
        path.write_bytes(data[: head - 4] + struct.pack(">I", size) + data[head:])

    return write


def exif(orientation: int = 1, adobe_rgb: bool = False) -> Image.Exif:
    """Return EXIF data with an orientation, or a camera's mark of Adobe RGB."""
    data = Image.Exif()
    data[0x0112] = orientation
    if adobe_rgb:
        data.get_ifd(0x8769)[0xA001] = 65535  # uncalibrated
        data.get_ifd(0x8769)[0xA005] = {1: "R03"}
    return data


def grey_profile() -> bytes:
    """Return a grey profile with linear light."""
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": b"curv" + bytes(8)})


def cmyk_profile() -> bytes:
    """Return a CMYK profile in which magenta and yellow make `RED`, but only together."""
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )  # fmt: skip
    light, a, b = ImageCms.applyTransform(Image.new("RGB", (1, 1), RED), to_lab).getpixel((0, 0))
    table = b""
    for node in range(16):  # C, M, Y, K from the slowest to the fastest
        c, m, y, k = (node >> 3 & 1, node >> 2 & 1, node >> 1 & 1, node & 1)
        made = (0, 128, 128) if c or k else (light, a, b) if m and y else (255, 128, 128)
        table += bytes(made)
    unity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + unity + ramp * 4 + table + ramp * 3
    return _profile(b"CMYK", b"Lab ", {b"A2B0": lut, b"A2B1": lut}, b"prtr")


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes], kind=b"mntr") -> bytes:
    """Return an ICC profile of version 2.4 with a white point."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"wtpt": b"XYZ " + bytes(4) + white, **tags}
    start = 132 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s", start + len(body), 0x02400000, kind, space, connection,
                       b"acsp")  # fmt: skip
    return (head.ljust(68, b"\0") + white).ljust(128, b"\0") + table + body


@dataclass(frozen=True)
class Kind:
    """A kind of picture: the writer of its files, and the pixels that training sees."""

    title: str
    file: str
    write: Callable[[Path], object]
    holds: str  # lower left and upper right in the file
    lower_left: tuple[int, int, int]
    upper_right: tuple[int, int, int]
    tolerance: int = 0  # levels of 255, for formats that are lossy or round
    opaque: tuple[int, int] | None = None  # of the alpha channel at the two places


def frames(path: Path) -> None:
    halves(RED, WHITE).save(path, save_all=True, append_images=[halves(BLUE, BLUE)])


S_RGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3 = matrix_profile(None, DISPLAY_P3)
ADOBE = matrix_profile(ADOBE_RGB_GAMMA, ADOBE_RGB)
GAMMA_1 = struct.pack(">I", 100_000)
P3_CHRM = struct.pack(">8I", *(round(v * 100_000) for v in DISPLAY_P3))

KINDS = [
    Kind("PNG, RGB, 8 bits", "a.png", pillow("RGB", RED, BLUE),
         "200 40 30, 0 0 255", RED, BLUE),
    Kind("PNG, RGB, 16 bits", "a.png", png(16, 2, [v * 257 for v in RED], [0, 0, 65535]),
         "51400 10280 7710, 0 0 65535", RED, BLUE),
    Kind("PNG, grey, 1 bit", "a.png", png(1, 0, 0, 1), "0, 1", BLACK, WHITE),
    Kind("PNG, grey, 2 bits", "a.png", png(2, 0, 1, 3), "1, 3", (85,) * 3, WHITE),
    Kind("PNG, grey, 4 bits", "a.png", png(4, 0, 3, 15), "3, 15", (51,) * 3, WHITE),
    Kind("PNG, grey, 8 bits", "a.png", pillow("L", 77, 255), "77, 255", GREY, WHITE),
    Kind("PNG, grey, 16 bits", "a.png", array(np.uint16, 77 * 257, 65535),
         "19789, 65535", GREY, WHITE),
    Kind("PNG, palette", "a.png", lambda p: halves(RED, BLUE).quantize(2).save(p),
         "indices", RED, BLUE, 2),
    Kind("JPEG, RGB", "a.jpg", pillow("RGB", RED, WHITE, quality=98), "RGB", RED, WHITE, 4),
    Kind("JPEG, grey", "a.jpg", pillow("L", 77, 255, quality=98), "77, 255", GREY, WHITE, 2),
    Kind("JPEG, CMYK without a profile", "a.jpg",
         pillow("CMYK", (0, 255, 255, 0), (0, 0, 0, 0), quality=98), "MY, no ink",
         (255, 0, 0), WHITE, 6),
    Kind("WebP", "a.webp", pillow("RGB", RED, BLUE, lossless=True), "RGB", RED, BLUE),
    Kind("AVIF", "a.avif", pillow("RGB", RED, WHITE, quality=100), "RGB", RED, WHITE, 4),
    Kind("GIF", "a.gif", pillow("RGB", RED, BLUE), "indices", RED, BLUE, 2),
    Kind("BMP", "a.bmp", pillow("RGB", RED, BLUE), "RGB", RED, BLUE),
    Kind("TGA", "a.tga", pillow("RGB", RED, BLUE), "RGB", RED, BLUE),
    Kind("PPM", "a.ppm", pillow("RGB", RED, BLUE), "RGB", RED, BLUE),
    Kind("PGM, 16 bits", "a.pgm", array(np.uint16, 77 * 257, 65535), "19789, 65535", GREY, WHITE),
    Kind("ICO", "a.ico", pillow("RGBA", (*RED, 255), (*BLUE, 255), sizes=[(8, 8)]), "RGBA",
         RED, BLUE, 0, (255, 255)),
    Kind("TIFF, RGB", "a.tiff", pillow("RGB", RED, BLUE), "RGB", RED, BLUE),
    Kind("TIFF, grey, 16 bits", "a.tiff", array(np.uint16, 77 * 257, 65535),
         "19789, 65535", GREY, WHITE),
    Kind("TIFF, grey, 32 bits, unsigned", "a.tiff", tiff_u32(77 * 16843009, 2**32 - 1),
         "1296911693, 4294967295", GREY, WHITE),
    Kind("TIFF, grey, 32 bits, signed", "a.tiff", array(np.int32, 77 * 8421504, 2**31 - 1),
         "648455808, 2147483647", GREY, WHITE),
    Kind("TIFF, grey, 16 bits' values in 32", "a.tiff", array(np.int32, 77 * 257, 65535),
         "19789, 65535", GREY, WHITE),
    Kind("TIFF, grey, float", "a.tiff", array(np.float32, 77 / 255, 1), "0.302, 1", GREY, WHITE),
    Kind("TIFF, RGB, 16 bits, a plane for each channel", "a.tiff",
         tiff([halves_of(a * 257, b * 256, 16) for a, b in zip(RED, BLUE, strict=True)], 16, 2),
         "51400 10280 7710, 0 0 65280", RED, BLUE),
    Kind("TIFF, grey, 12 bits", "a.tiff", tiff([halves_of(1237, 4095, 12)], 12, 1),
         "1237, 4095", GREY, WHITE),
    Kind("TIFF, grey, 16 bits, zero is white", "a.tiff",
         array(np.uint16, 65535 - 77 * 257, 0, tiffinfo={262: 0}), "45746, 0", GREY, WHITE),
    Kind("TIFF, grey, float, zero is white", "a.tiff",
         array(np.float32, 1 - 77 / 255, 0, tiffinfo={262: 0}), "0.698, 0", GREY, WHITE),
    Kind("TIFF, CIELAB", "a.tiff", pillow("LAB", (255, 128, 128), (0, 128, 128)),
         "L 100, L 0", WHITE, BLACK, 1),
    Kind("PSD, RGB", "a.psd", psd(3, RED, BLUE), "RGB", RED, BLUE),
    Kind("PSD, RGB with a saved selection", "a.psd", psd(3, (*RED, 255), (*BLUE, 0)),
         "RGB, selection", RED, BLUE),
    Kind("PSD, RGB with transparency", "a.psd", psd(3, (*RED, 255), (*BLUE, 0), TRANSPARENT),
         "opaque red, transparent blue", RED, WHITE, 0, (255, 0)),
    Kind("PSD, grey", "a.psd", psd(1, (77,), (255,)), "77, 255", GREY, WHITE),
    Kind("PSD, CMYK without a profile", "a.psd", psd(4, (255, 0, 0, 255), (255,) * 4),
         "MY, no ink", (255, 0, 0), WHITE),
    Kind("JPEG 2000, RGB, 8 bits", "a.jp2", pillow("RGB", RED, BLUE), "RGB", RED, BLUE),
    Kind("JPEG 2000, RGB, 10 bits", "rgb10.jp2", jpeg_2000,
         "1023 1023 1023, 802 160 120", WHITE, RED, 1),
    Kind("JPEG 2000, RGB, 12 bits, with a loss", "rgb12lossy.jp2", jpeg_2000,
         "4095 4095 4095, 3212 642 482", WHITE, RED, 2),
    Kind("JPEG 2000, grey, 12 bits", "grey12.jp2", jpeg_2000, "4095, 1237", WHITE, GREY, 1),
    Kind("JPEG 2000, grey and alpha, 16 bits", "la16.jp2", jpeg_2000,
         "65535, 19789", WHITE, GREY, 1, (255, 255)),
    Kind("PNG, RGBA", "a.png", pillow("RGBA", (*RED, 255), (*RED, 0)),
         "opaque red, transparent red", RED, WHITE, 0, (255, 0)),
    Kind("PNG, RGBA, half transparent", "a.png", pillow("RGBA", (*RED, 255), (0, 0, 0, 128)),
         "opaque red, black at 128", RED, (127,) * 3, 0, (255, 128)),
    Kind("PNG, grey and alpha", "a.png", pillow("LA", (77, 255), (77, 0)),
         "opaque 77, transparent 77", GREY, WHITE, 0, (255, 0)),
    Kind("PNG, palette, transparent", "a.png",
         lambda p: halves(RED, BLUE).quantize(2).save(p, transparency=1), "indices 0, 1",
         RED, WHITE, 2, (255, 0)),
    Kind("PNG, RGB, 8 bits, tRNS", "a.png", png(8, 2, RED, BLUE, tRNS=trns(*BLUE)),
         "200 40 30, 0 0 255 is transparent", RED, WHITE, 0, (255, 0)),
    Kind("PNG, RGB, 16 bits, tRNS", "a.png",
         png(16, 2, (51400, 0, 0), (0x1234,) * 3, tRNS=trns(*(0x1234,) * 3)),
         "51400 0 0, 4660 4660 4660 is transparent", (200, 0, 0), WHITE, 0, (255, 0)),
    Kind("PNG, grey, 1 bit, tRNS", "a.png", png(1, 0, 0, 1, tRNS=trns(0)),
         "0 is transparent, 1", WHITE, WHITE, 0, (0, 255)),
    Kind("PNG, grey, 2 bits, tRNS", "a.png", png(2, 0, 1, 2, tRNS=trns(2)),
         "1, 2 is transparent", (85,) * 3, WHITE, 0, (255, 0)),
    Kind("PNG, grey, 4 bits, tRNS", "a.png", png(4, 0, 3, 5, tRNS=trns(5)),
         "3, 5 is transparent", (51,) * 3, WHITE, 0, (255, 0)),
    Kind("PNG, grey, 8 bits, tRNS", "a.png", png(8, 0, 77, 5, tRNS=trns(5)),
         "77, 5 is transparent", GREY, WHITE, 0, (255, 0)),
    Kind("PNG, grey, 16 bits, tRNS", "a.png", png(16, 0, 77 * 257, 5, tRNS=trns(5)),
         "19789, 5 is transparent", GREY, WHITE, 0, (255, 0)),
    Kind("sRGB profile", "a.png", pillow("RGB", RED, BLUE, icc_profile=S_RGB),
         "200 40 30, 0 0 255", RED, BLUE),
    Kind("Display P3", "a.png", pillow("RGB", (234, 51, 35), (80, 158, 81), icc_profile=P3),
         "234 51 35, 80 158 81", (255, 0, 0), (40, 160, 70), 1),
    Kind("Display P3, JPEG", "a.jpg",
         pillow("RGB", (234, 51, 35), WHITE, icc_profile=P3, quality=100, subsampling=0),
         "234 51 35, 255 255 255", (255, 0, 0), WHITE, 8),
    Kind("Display P3, JPEG 2000", "a.jp2", jpeg_2000_of(P3, (234, 51, 35), (80, 158, 81)),
         "234 51 35, 80 158 81", (255, 0, 0), (40, 160, 70), 1),
    Kind("Adobe RGB", "a.png", pillow("RGB", (219, 0, 0), (255,) * 3, icc_profile=ADOBE),
         "219 0 0, 255 255 255", (255, 0, 0), WHITE, 1),
    Kind("Adobe RGB by a camera's EXIF mark", "a.jpg",
         pillow("RGB", (219, 0, 0), WHITE, exif=exif(adobe_rgb=True), quality=100, subsampling=0),
         "219 0 0, 255 255 255", (255, 0, 0), WHITE, 8),
    Kind("ProPhoto RGB", "a.png",
         pillow("RGB", (134, 61, 32), (255,) * 3, icc_profile=matrix_profile(1.8, PROPHOTO)),
         "134 61 32, 255 255 255", RED, WHITE, 2),
    Kind("Linear grey profile", "a.png", pillow("L", 64, 255, icc_profile=grey_profile()),
         "64, 255", (137,) * 3, WHITE, 1),
    Kind("Linear grey profile, 16 bits", "a.png",
         array(np.uint16, 64 * 257, 65535, icc_profile=grey_profile()),
         "16448, 65535", (137,) * 3, WHITE, 1),
    Kind("CMYK profile", "a.tiff",
         pillow("CMYK", (0, 255, 255, 0), (0, 0, 0, 0), icc_profile=cmyk_profile()),
         "MY, no ink", RED, WHITE, 3),
    Kind("gAMA 1.0 without a profile", "a.png", png(8, 0, 64, 255, gAMA=GAMMA_1),
         "64, 255", (137,) * 3, WHITE, 1),
    Kind("gAMA and cHRM of linear Display P3", "a.png",
         png(8, 2, (211, 8, 4), (255,) * 3, gAMA=GAMMA_1, cHRM=P3_CHRM),
         "211 8 4, 255 255 255", (255, 0, 0), WHITE, 3),
    Kind("gAMA 0.45455, as of sRGB", "a.png",
         png(8, 2, RED, BLUE, gAMA=struct.pack(">I", 45_455)), "200 40 30, 0 0 255", RED, BLUE),
    Kind("sRGB chunk beside gAMA 1.0", "a.png",
         png(8, 2, RED, BLUE, sRGB=b"\0", gAMA=GAMMA_1), "200 40 30, 0 0 255", RED, BLUE),
    Kind("Broken profile", "a.png", pillow("RGB", RED, BLUE, icc_profile=b"no profile" * 20),
         "200 40 30, 0 0 255", RED, BLUE),
    Kind("Grey profile in an RGB file", "a.png",
         pillow("RGB", RED, BLUE, icc_profile=grey_profile()), "200 40 30, 0 0 255", RED, BLUE),
    Kind("Display P3 with transparency", "a.png",
         pillow("RGBA", (234, 51, 35, 255), (0, 0, 0, 0), icc_profile=P3),
         "opaque 234 51 35, transparent", (255, 0, 0), WHITE, 1, (255, 0)),
    Kind("JPEG, EXIF orientation 6", "a.jpg",
         pillow("RGB", RED, WHITE, exif=exif(6), quality=98), "left red, right white",
         WHITE, RED, 4),
    Kind("PNG, EXIF orientation 3", "a.png", pillow("RGB", RED, BLUE, exif=exif(3)),
         "left red, right blue", BLUE, RED),
    Kind("WebP, EXIF orientation 6", "a.webp",
         pillow("RGB", RED, BLUE, exif=exif(6), lossless=True), "left red, right blue", BLUE, RED),
    Kind("TIFF, orientation 6", "a.tiff", pillow("RGB", RED, BLUE, exif=exif(6)),
         "left red, right blue", BLUE, RED),
    Kind("Animated GIF", "a.gif", frames, "first frame red and white", RED, WHITE, 2),
    Kind("Animated WebP", "a.webp",
         lambda p: halves(RED, WHITE).save(
             p, save_all=True, append_images=[halves(BLUE, BLUE)], lossless=True),
         "first frame red and white", RED, WHITE),
    Kind("Animated PNG", "a.png", frames, "first frame red and white", RED, WHITE),
    Kind("TIFF of several pages", "a.tiff", frames, "first page red and white", RED, WHITE),
]  # fmt: skip


def table() -> str:
    """Return the kinds as a Markdown table."""
    lines = ["| kind of picture | values in the file | trained on as |", "|---|---|---|"]
    for kind in KINDS:
        a, b = (" ".join(map(str, color)) for color in (kind.lower_left, kind.upper_right))
        masked = f"; mask {kind.opaque[0]}, {kind.opaque[1]}" if kind.opaque else ""
        lines.append(f"| {kind.title} | {kind.holds} | {a}, {b}{masked} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
