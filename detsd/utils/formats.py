"""The formats of pictures that are opened. Imports no library that takes long to load."""

import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image

try:  # HEIC and HEIF, which phones write, if a reader for them is installed
    from pillow_heif import register_heif_opener
except ImportError:
    register_heif_opener = None

# Only formats with pure decoders: EPS would start another program, others load more files.
FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PSD", "AVIF", "HEIF",
    "ICO", "ICNS", "TGA", "PPM", "PCX", "SGI", "QOI", "DDS",
)  # fmt: skip

# What Pillow only warns about is read.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def extensions() -> set[str]:
    """Return the file name extensions of the pictures that are read."""
    formats()
    return {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}


def formats() -> list[str]:
    """Return those of `FORMATS` that this Pillow has."""
    if register_heif_opener:
        register_heif_opener()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def open_picture(source: Path | BinaryIO) -> Image.Image:
    """Open a picture of a known format without decoding it.

    Raises:
        OSError, SyntaxError, ValueError and others, as Pillow does, for a file that is no picture.
    """
    try:
        return Image.open(source, formats=formats())
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(f"it has more than {limit:,} pixels; scale it down") from None
