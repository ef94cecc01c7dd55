"""The one function that reads pictures: of every kind, upright, in sRGB, with a bound on memory.

docs/pictures.md says how each kind of file is read.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageColor

from detsd.utils import jpeg2000, tiff
from detsd.utils.colors import profile_of, to_srgb
from detsd.utils.formats import open_picture
from detsd.utils.memory import give_back_memory

T = TypeVar("T")

# Memory for decoding, in all threads together: whatever a folder holds, it takes less than 1 GB.
MEMORY = 800e6
# Bytes per pixel while a picture is decoded and converted; some decoders keep several copies.
# Measured, for decoding alone: WebP 16, JPEG 2000 19, AVIF 9, HEIC 7, progressive JPEG 6 always.
BYTES, COSTLY = 12, {"WEBP": 16, "AVIF": 12, "HEIF": 12, "JPEG2000": 28}
MOST = 950e6  # bytes that a single picture of a costly format may take
WHOLE = 2**26  # pixels up to which a picture is decoded in full, whatever it is scaled to
WHOLE_COSTLY = 2**25  # the same for costly formats
# Bytes of a picture after which freed memory is given back at once: eight pictures of
# 12,000 x 12,000 took 1.3 GB without this, and 0.9 with it.
LARGE = 200e6
STRIP = 2**22  # pixels converted at once

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF's orientation

QUARTER_TURNS = {TURNS[k] for k in (5, 6, 7, 8)}

TRNS_SCALE = {"L;2": 85, "L;4": 17}  # Pillow widens the greys of these PNG files, but not tRNS


@dataclass(frozen=True)
class Picture:
    """A picture as trained on and shown: its first frame, upright."""

    rgb: Image.Image  # sRGB, on a background; smaller than `size` if that was allowed
    alpha: Image.Image | None  # L, of the same size; None if nothing is transparent
    size: tuple[int, int]  # width and height of the file's picture
    several: bool = False  # whether the file has more frames or pages


class Budget:
    """A bound on the memory that threads take together; one alone may exceed it."""

    def __init__(self, limit: float):
        self.limit = limit
        self.taken = 0.0
        self._change = threading.Condition()

    @contextlib.contextmanager
    def hold(self, cost: float) -> Iterator[None]:
        """Wait until there is room for `cost` bytes, and hold them."""
        with self._change:
            self._change.wait_for(lambda: not self.taken or self.taken + cost <= self.limit)
            self.taken += cost
        try:
            yield
        finally:
            with self._change:
                self.taken -= cost
                self._change.notify_all()


BUDGET = Budget(MEMORY)


def read_picture(
    path: Path,
    background: str = "white",
    needed: tuple[int, int] | None = None,
    use: Callable[[Picture], T] = lambda picture: picture,
    convert: bool = True,
) -> T:
    """Read a picture; transparency shows the colour `background`.

    Args:
        needed: width and height that it will be scaled down to: a large one may be decoded at a
            smaller size, at least twice this one.
        use: turns the picture into the result, while its memory is accounted for.
        convert: False leaves the numbers as they are, whatever the colour profile.

    Raises:
        Exception: whatever decoders raise for a broken file.
    """
    with open_picture(path) as image:
        factor = 1
        if needed and math.prod(image.size) > (WHOLE_COSTLY if image.format in COSTLY else WHOLE):
            factor = max(1, min(image.size) // (2 * max(needed)))
        halvings = 0
        if image.format == "JPEG2000":
            halvings = min(jpeg2000.levels(path.read_bytes()), factor.bit_length() - 1)
        cost = _cost(image, halvings)
    with BUDGET.hold(cost):  # nothing large may outlive this block
        try:
            return use(_read(path, background, factor, halvings, convert))
        finally:
            if cost > LARGE:
                give_back_memory()


def _read(path: Path, background: str, factor: int, halvings: int, convert: bool) -> Picture:
    """Read a picture at about 1 / `factor` of its size."""
    with open_picture(path) as image:
        size = image.size
        several = image.format not in ("PSD", "MPO") and getattr(image, "is_animated", False)
        image = _decode(image, path, factor, halvings)
        turn = TURNS.get(_orientation(image, path))
        if math.prod(image.size) < math.prod(size):  # the decoder scaled it
            factor = 1
        else:
            size = image.size  # Pillow rotates TIFF files by itself
        profile = profile_of(image) if convert else None
        rgb, alpha = _flatten(image, profile, background, factor)
    if turn is not None:
        rgb = rgb.transpose(turn)
        alpha = alpha and alpha.transpose(turn)
    return Picture(rgb, alpha, size[::-1] if turn in QUARTER_TURNS else size, several)


def _cost(image: Image.Image, halvings: int) -> float:
    """Estimate the bytes that reading a picture takes, at most the whole budget."""
    each = COSTLY.get(image.format, BYTES)
    cost = math.prod(image.size) * each / 4**halvings
    # Pillow rotates a TIFF file while loading it, which takes a second copy.
    turned = image.format == "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) > 1
    if (image.format in COSTLY or turned) and cost > MOST:
        most = int(MOST / each)
        raise ValueError(
            f"it has {math.prod(image.size):,} pixels, but at most {most:,} of such a "
            f"{image.format} file fit into memory; scale it down, or save it upright as JPEG or PNG"
        )
    return min(cost, MEMORY)


def _decode(image: Image.Image, path: Path, factor: int, halvings: int) -> Image.Image:
    """Load a picture, at a smaller size if its decoder can and `factor` allows it."""
    if image.format == "JPEG2000":
        data = path.read_bytes()
        image.reduce = halvings
        image.load()
        if len(image.getbands()) > 1 and jpeg2000.depth(data) > 8:
            image = jpeg2000.mend_white(image, data, halvings)
        if profile := jpeg2000.profile(data):
            image.info["icc_profile"] = profile
        return image
    if factor > 1 and image.format in ("JPEG", "MPO"):
        image.draft(None, tuple(-(-side // factor) for side in image.size))
    if image.format == "PNG" and image.tile:
        raw, key = image.tile[0][3], image.info.get("transparency")
        if raw in TRNS_SCALE and isinstance(key, int):
            image.info["transparency"] = key * TRNS_SCALE[raw]
        elif raw == "RGB;16B" and isinstance(key, tuple):
            image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.format == "TIFF":
        tiff.mend_tiles(image)
    image.load()
    if image.format == "PSD" and image.mode == "RGBA" and not tiff.psd_is_transparent(path):
        return image.convert("RGB")
    return image


def _orientation(image: Image.Image, path: Path) -> int:
    """Return EXIF's orientation of a loaded picture; 1 if it is upright."""
    try:
        # The HEIC reader clears the tag, even if only EXIF had it and nothing was rotated.
        original = image.info.get("original_orientation")
        if original and image.format == "HEIF" and not _heif_turns_itself(path):
            return original
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data can raise anything, but must not cost the picture
        return 1


def _heif_turns_itself(path: Path) -> bool:
    """Return whether a HEIF file has a property that rotates or mirrors its picture."""
    with path.open("rb") as file:
        data = file.read(2**22)
    at = data.find(b"ipco")  # the box of properties, preceded by its length
    properties = data[at : at + int.from_bytes(data[max(0, at - 4) : max(0, at)], "big")]
    return b"irot" in properties or b"imir" in properties


def _strips(image: Image.Image, factor: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Yield a loaded picture in strips small enough that copies of one cost little."""
    width, height = image.size
    rows = max(1, STRIP // (width * factor)) * factor
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(height, top + rows)))


def _flatten(
    image: Image.Image, profile: bytes | None, background: str, factor: int
) -> tuple[Image.Image, Image.Image | None]:
    """Convert a loaded picture to sRGB on a background, and to its alpha channel.

    In strips: copies of a whole picture would take several times its memory.
    """
    transparent = image.has_transparency_data
    if image.mode == "RGB" and not (profile or transparent) and factor == 1:
        return image, None
    size = tuple(-(-side // factor) for side in image.size)
    rgb = Image.new("RGB", size)
    alpha = Image.new("L", size) if transparent else None
    wide = image.mode.startswith("I") or image.mode == "F"
    top_value = _top_value(image) if wide else 0.0
    for top, strip in _strips(image, factor):
        if wide:
            colors, opaque = _narrow(strip, image, top_value, profile)
        else:
            colors, opaque = _split_alpha(strip, profile, transparent)
        if opaque:
            # Pillow blends with the background, in sRGB numbers.
            colors.putalpha(opaque)
            behind = Image.new("RGBA", colors.size, ImageColor.getrgb(background))
            colors = Image.alpha_composite(behind, colors).convert("RGB")
        if factor > 1:
            colors, opaque = colors.reduce(factor), opaque and opaque.reduce(factor)
        rgb.paste(colors, (0, top // factor))
        if opaque:
            alpha.paste(opaque, (0, top // factor))
    return rgb, alpha


def _split_alpha(
    strip: Image.Image, profile: bytes | None, transparent: bool
) -> tuple[Image.Image, Image.Image | None]:
    """Convert 8-bit colours to sRGB; return them and their alpha channel."""
    if not transparent:
        return to_srgb(strip, profile), None
    full = strip.convert("RGBA")
    colors = strip.convert("L") if profile and strip.mode in ("L", "LA") else full.convert("RGB")
    return to_srgb(colors, profile), full.getchannel("A")


def _values(strip: Image.Image, image: Image.Image) -> np.ndarray:
    """Return the values of a strip of a picture of 16 or 32 bits; none is NaN."""
    values = np.asarray(strip)
    if image.mode == "I" and tiff.is_unsigned(image):
        values = values.view(np.uint32)
    return np.nan_to_num(values) if image.mode == "F" else values


def _top_value(image: Image.Image) -> float:
    """Return the value of white in a grey picture of 16 or 32 bits.

    It is the smallest usual one that no value exceeds: 16-bit pictures may be stored in 32 bits.
    """
    if image.mode.startswith("I;16"):
        return tiff.white_of_16(image)
    largest = max(float(_values(strip, image).max()) for _, strip in _strips(image))
    if image.mode == "F" and largest <= 1:
        return 1.0
    # A dark one need not hold a value above 255; older versions of Pillow call such a PNG "I".
    least = 2**16 - 1 if image.format in ("PNG", "PPM") else 255
    whites = (255, 2**16 - 1, 2**32 - 1 if tiff.is_unsigned(image) else 2**31 - 1)
    return next((w for w in whites if w >= max(largest, least)), largest)


def _narrow(
    strip: Image.Image, image: Image.Image, top_value: float, profile: bytes | None
) -> tuple[Image.Image, Image.Image | None]:
    """Scale grey values of 16 or 32 bits to 8, which Pillow would clip; convert them to sRGB."""
    values = _values(strip, image)
    key = image.info.get("transparency")
    opaque = None if key is None else Image.fromarray(np.uint8(255) * (values != key))

    def scaled(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float64) / top_value * 255
        if tiff.is_negative(image):
            values = 255 - values
        if profile:
            ramp = to_srgb(Image.fromarray(np.arange(256, dtype=np.uint8)[None]), profile)
            values = np.interp(values, np.arange(256), np.asarray(ramp)[0, :, 1])
        return values.round().clip(0, 255).astype(np.uint8)

    # 16-bit values are looked up in a table: it took 11 s, float arithmetic 39.
    small = values.dtype.itemsize == 2
    grey = scaled(np.arange(2**16))[values] if small else scaled(values)
    return Image.fromarray(grey).convert("RGB"), opaque
