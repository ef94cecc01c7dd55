"""Facts of TIFF and PSD files that Pillow does not use: which value is white, how wide a plane is.

findings/README.md lists the scripts that show each.
"""

from pathlib import Path
from typing import BinaryIO

from PIL import Image

BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF


def is_unsigned(image: Image.Image) -> bool:
    """Return whether a TIFF file's integers are unsigned: Pillow reads them as signed."""
    return image.format == "TIFF" and image.tag_v2.get(SAMPLE_FORMAT, (1,))[0] == 1


def is_negative(image: Image.Image) -> bool:
    """Return whether zero is white: Pillow inverts values of up to 8 bits, but no wider ones."""
    return image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0


def white_of_16(image: Image.Image) -> int:
    """Return the value of white in a grey picture of 16 bits: in a TIFF file it may have 12."""
    bits = image.tag_v2.get(BITS, (16,))[0] if image.format == "TIFF" else 16
    return 2**bits - 1


def mend_planes(image: Image.Image) -> None:
    """Give the decoder of an opened TIFF file the width of its values.

    If each channel is stored on its own, without compression, Pillow takes 16-bit values for 8-bit
    ones, and shows noise.
    """
    tags = image.tag_v2
    if tags.get(PLANAR) != 2 or set(tags.get(BITS, ())) != {16} or len(image.getbands()) == 1:
        return
    order = "B" if tags.prefix == b"MM" else "L"
    for n, tile in enumerate(image.tile):
        codec, extents, offset, (band, *rest) = tile
        if codec == "raw":
            if band not in ("R", "G", "B", "A"):
                raise ValueError(
                    f"16-bit channels of {image.mode}, each stored on its own, cannot be read; "
                    "save it as RGB"
                )
            image.tile[n] = type(tile)(codec, extents, offset, (f"{band};16{order}", *rest))


def psd_is_transparent(path: Path) -> bool:
    """Return whether the fourth channel of an RGB file in PSD's format is its transparency.

    Otherwise it is a saved selection. The sign of the number of layers tells them apart.
    """

    def skip(file: BinaryIO) -> int:
        size = int.from_bytes(file.read(4), "big")
        return file.seek(size, 1)

    with path.open("rb") as file:
        file.seek(26)  # the header; then the palette and the resources
        skip(file), skip(file)
        layers, in_layers = (int.from_bytes(file.read(4), "big") for _ in range(2))
        return bool(layers and in_layers) and int.from_bytes(file.read(2), "big", signed=True) < 0
