"""Facts of TIFF and PSD files that Pillow does not use: which value is white, how wide a plane is.

findings/README.md lists the scripts that show most of them.
"""

from pathlib import Path
from typing import BinaryIO

from PIL import Image

BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF

# Pillow's names of big-endian values, and of those in the machine's own order.
SWAPPED = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;16BS": "I;16NS"}


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


def mend_tiles(image: Image.Image) -> None:
    """Tell the decoder of an opened TIFF file how its values are stored, where Pillow errs.

    Pillow takes 16-bit values for 8-bit ones if each channel is stored on its own, without
    compression; it swaps the bytes of big-endian values that libtiff has swapped already. Both give
    noise. Of grey pictures with transparency, it reads only one of two channels on their own.
    """
    tags, count = image.tag_v2, len(image.getbands())
    apart, wide = tags.get(PLANAR) == 2 and count > 1, set(tags.get(BITS, ())) == {16}
    raw = any(tile[0] == "raw" for tile in image.tile)
    if apart and (count == 2 or (wide and raw and image.mode not in ("RGB", "RGBA"))):
        raise ValueError(
            f"channels of {image.mode}, each stored on its own, cannot be read; save the picture "
            "as RGB"
        )
    order = "B" if tags.prefix == b"MM" else "L"
    for n, (codec, extents, offset, (band, *rest)) in enumerate(image.tile):
        if apart and wide and raw:
            band = f"{band};16{order}"
        elif codec == "libtiff":
            band = SWAPPED.get(band, band)
        # A plain tuple in Pillow 10, later a named one.
        made = getattr(type(image.tile[n]), "_make", tuple)
        image.tile[n] = made((codec, extents, offset, (band, *rest)))


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
