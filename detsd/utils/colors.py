"""Convert the colours of a picture to sRGB, by its profile or a substitute for one.

Profiles are applied by LittleCMS (Pillow's ImageCms), relative colorimetric with black point
compensation, as image editors do. Without one, numbers are taken as sRGB.
"""

import functools
import io
import logging
import struct

import numpy as np
from PIL import ExifTags, Image, ImageCms

from detsd.utils.errors import one_line

logger = logging.getLogger("detsd.data")

# Chromaticities x, y of white, red, green, blue.
SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_RGB = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
ADOBE_RGB_GAMMA = 563 / 256

SRGB_GAMMA = 0.45455  # the gAMA of an sRGB PNG file

# The exceptions that a profile of impossible values raises.
IMPOSSIBLE = (
    KeyError, TypeError, ArithmeticError, ValueError, np.linalg.LinAlgError, struct.error,
)  # fmt: skip

# A profile within this many of 255 levels of sRGB counts as sRGB: LittleCMS moves some levels by
# one even from sRGB to sRGB, which would change the digests of pictures.
SAME = 3

BLACK_POINT_COMPENSATION = 0x2000  # in ImageCms.Flags since Pillow 10.3; a cluster's image has 10.2

BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
D50 = np.array([0.9642, 1.0, 0.8249])  # the white of every profile


def profile_of(image: Image.Image) -> bytes | None:
    """Return the ICC profile that says what a picture's numbers mean; None for sRGB.

    If there is none, one is made from a PNG file's gAMA and cHRM chunks (PNG specification,
    11.3.2), from a HEIF file's nclx primaries (ISO 23091-2), or from the mark of Adobe RGB that
    cameras put into EXIF data (DCF 2.0, 6.2.1).
    """
    if profile := image.info.get("icc_profile"):
        return profile
    try:
        if nclx := image.info.get("nclx_profile"):
            return _nclx_profile(nclx)
        if image.format == "PNG" and "srgb" not in image.info:
            return _png_profile(image.info.get("gamma"), image.info.get("chromaticity"))
    except IMPOSSIBLE:
        return None
    return matrix_profile(ADOBE_RGB_GAMMA, ADOBE_RGB) if _is_adobe_rgb(image) else None


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an L, RGB, CMYK or LAB image to RGB, in sRGB.

    A profile that is broken, or for another colour space than the picture's, is ignored with a
    warning; the picture is never lost.
    """
    if profile is None and image.mode != "LAB":
        return image.convert("RGB")
    mode = image.mode
    if mode not in ("L", "CMYK", "LAB") or (mode == "L" and _space(profile) == "RGB"):
        image, mode = image.convert("RGB"), "RGB"
    transform = _transform(profile, mode)
    return ImageCms.applyTransform(image, transform) if transform else image.convert("RGB")


def matrix_profile(gamma: float | None, chromaticities: tuple[float, ...]) -> bytes:
    """Make an ICC profile (version 2.4) of RGB by its exponent and chromaticities.

    Args:
        gamma: light = number ** gamma; None for sRGB's curve.
        chromaticities: x, y of white, red, green, blue.
    """
    xy = np.array(chromaticities).reshape(4, 2)
    white, *primaries = [np.array([x / y, 1, (1 - x - y) / y]) for x, y in xy]
    matrix = np.stack(primaries, 1)
    matrix = matrix * np.linalg.solve(matrix, white)
    scale = np.diag((BRADFORD @ D50) / (BRADFORD @ white))
    matrix = np.linalg.inv(BRADFORD) @ scale @ BRADFORD @ matrix
    number = np.linspace(0, 1, 4096)
    if gamma is None:
        light = np.where(number <= 0.04045, number / 12.92, ((number + 0.055) / 1.055) ** 2.4)
    else:
        light = number**gamma
    table = (light * 65535).round().astype(">u2").tobytes()
    curve = b"curv" + struct.pack(">II", 0, number.size) + table
    tags = {b"wtpt": _xyz(D50)}
    tags |= {name: _xyz(matrix[:, k]) for k, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _icc(tags)


def _icc(tags: dict[bytes, bytes]) -> bytes:
    """Lay out an ICC profile of RGB: header, table of tags, their data."""
    places, body, start = [], b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        places.append(struct.pack(">4sII", name, start + len(body), len(data)))
        body += data
    table = struct.pack(">I", len(tags)) + b"".join(places)
    head = struct.pack(">III", start + len(body), 0, 0x02400000)
    head += b"mntrRGB XYZ " + bytes(12) + b"acsp"
    return (head.ljust(68, b"\0") + _xyz(D50)[8:]).ljust(128, b"\0") + table + body


def _xyz(values: np.ndarray) -> bytes:
    """Write a colour as a tag of a profile."""
    return b"XYZ " + struct.pack(">I3i", 0, *(round(float(v) * 65536) for v in values))


def _png_profile(gamma: float | None, where: tuple[float, ...] | None) -> bytes | None:
    """Make a profile from a PNG file's chunks; None for those of sRGB."""
    if not gamma:
        return None
    exponent = None if abs(gamma - SRGB_GAMMA) <= 0.01 else 1 / gamma
    return matrix_profile(exponent, tuple(where or SRGB)) if where or exponent else None


def _nclx_profile(nclx: dict[str, float]) -> bytes | None:
    """Make a profile from HEIF's primaries; None for those of sRGB and for HDR transfers."""
    if nclx.get("color_primaries") in (1, 2) or nclx.get("transfer_characteristics") in (16, 18):
        return None
    colors = ("white", "red", "green", "blue")
    where = tuple(nclx[f"color_primary_{color}_{axis}"] for color in colors for axis in "xy")
    return matrix_profile(None, where)


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Return whether a camera's JPEG file without a profile says that it is Adobe RGB."""
    if image.format not in ("JPEG", "MPO"):
        return False
    try:
        exif = image.getexif()
        if exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace) == 2:
            return True
        index = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
        return str(index).startswith("R03")
    except Exception:  # damaged EXIF data can raise anything
        return False


def _space(profile: bytes) -> str:
    """Return the colour space of a profile: RGB, GRAY, CMYK; "" for a broken one."""
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError):
        return ""


@functools.lru_cache(16)  # building one takes as long as reading a picture
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion of an image mode to sRGB; None if it would change nothing."""
    try:
        source = ImageCms.createProfile("LAB") if mode == "LAB" else io.BytesIO(profile)
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            BLACK_POINT_COMPENSATION,
        )
    except (OSError, ValueError, ImageCms.PyCMSError) as error:
        logger.warning(
            "a colour profile cannot be used (%s); its pictures are read as sRGB", one_line(error)
        )
        return None
    if mode in ("L", "RGB") and _is_srgb(transform, mode):
        return None
    return transform


def _is_srgb(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether a conversion leaves greys, or colours all over the cube, unchanged."""
    values = np.arange(256, dtype=np.uint8)[None]
    if mode == "RGB":
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        values = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    probe = Image.fromarray(values)
    there = np.asarray(ImageCms.applyTransform(probe, transform), int)
    return abs(there - np.asarray(probe.convert("RGB"), int)).max() <= SAME
