"""Training images: read, cropped, resized, and their masks."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps

from detsd.config import ConceptsConfig
from detsd.data.folder import list_images, mask_of, passed_over
from detsd.data.prefetch import prefetch
from detsd.models.base import TimeIds
from detsd.utils.errors import UserError

logger = logging.getLogger("detsd")


# ---- images --------------------------------------------------------------------------------------


def to_rgb(image: Image.Image, behind: str = "white") -> Image.Image:
    """The first frame, upright, as 8-bit RGB; transparency shows the colour `behind`."""
    image.seek(0)
    # A dark picture of 16 bits need not hold a value above 255; older versions of Pillow know such
    # a PNG file by "I" only.
    is_16_bit = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit and float greys: Pillow's own conversion clips instead of scaling.
        values = np.asarray(image, np.float64)
        if image.mode == "F" and values.max() <= 1:
            top = 1.0
        else:
            top = 65535.0 if is_16_bit or values.max() > 255 else 255.0
        image = Image.fromarray((values / top * 255).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, ImageColor.getrgb(behind))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def target_size(size: int, aspect: float) -> tuple[int, int]:
    """Width and height of an aspect, of about as many pixels as a square of `size` a side.

    Multiples of 8, of which a VAE makes whole latents.
    """
    width, height = size * math.sqrt(aspect), size / math.sqrt(aspect)
    return tuple(max(8, round(side / 8) * 8) for side in (width, height))


def crop_or_resize(
    image: Image.Image,
    shape: tuple[int, int],
    center_crop: bool,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """`shape` pixels wide and high: the centre crop, or the whole image squeezed."""
    if center_crop:
        return ImageOps.fit(image, shape, resample)
    return image.resize(shape, resample)


def frame(width: int, height: int, shape: tuple[int, int], center_crop: bool) -> TimeIds:
    """Return the time ids of Stable Diffusion XL for an image that `crop_or_resize` has changed.

    The crop is counted in pixels of the scaled image (arXiv 2307.01952, section 2.2).
    """
    across, down = shape
    if not center_crop:
        return (height, width, 0, 0, down, across)
    scale = max(across / width, down / height)
    left, top = (
        max(0, round((side * scale - kept) / 2)) for side, kept in ((width, across), (height, down))
    )
    return (height, width, top, left, down, across)


def read_images(
    folder: Path, config: ConceptsConfig, size: int, key: str
) -> Iterator[tuple[Path, Image.Image, TimeIds]]:
    """All readable images of a folder, cut to one shape, with their frames.

    Unreadable ones are named and skipped.

    Several are decoded at once, and only a few are held.

    Raises:
        UserError: no such folder, or no readable image in it.
    """
    if not folder.is_dir():
        raise UserError(f"{key}: folder {folder} does not exist; name a folder of images")
    if note := passed_over(folder):
        logger.warning("%s", note)
    shape = target_size(size, config.img_aspect)

    def read(path: Path) -> tuple[Path, Image.Image | Exception, TimeIds | None]:
        try:
            with Image.open(path) as image:
                rgb = to_rgb(image, config.transparency_color)
        except Exception as error:  # broken files raise a dozen classes, struct.error among them
            return path, error, None
        where = frame(*rgb.size, shape, config.center_crop)
        return path, crop_or_resize(rgb, shape, config.center_crop), where

    count = 0
    for path, image, where in prefetch(read, list_images(folder), min(8, os.cpu_count() or 1)):
        if isinstance(image, Exception):
            logger.warning("%s cannot be read and is skipped (%s)", path, image)
            continue
        count += 1
        yield path, image, where
    if not count:
        raise UserError(
            f"{key}: folder {folder} holds no readable image; put JPEG, PNG or WebP files there"
            + (f" ({note})" if note else "")
        )


def read_mask(
    path: Path, where: TimeIds, config: ConceptsConfig, shape: tuple[int, int]
) -> torch.Tensor | None:
    """How much of each latent of a picture trains: (1, h, w) in [0, 1]; None without a mask.

    Cut out as the picture is. A latent counts by the share of its pixels that do.

    Args:
        where: the picture's frame.
        shape: latents across and down.

    Raises:
        UserError: no readable mask, one of another size, or one that leaves nothing.
    """
    if config.mask == "none":
        return None
    source = mask_of(path) if config.mask == "files" else path
    try:
        with Image.open(source) as image:
            if config.mask == "files":
                mask = to_rgb(image, "black").convert("L")
            else:
                image.seek(0)
                mask = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
    except Exception as error:  # as of pictures
        raise UserError(f"{source} cannot be read as a mask ({error}); save it again") from None
    height, width = where[:2]
    if mask.size != (width, height):
        raise UserError(
            f"{source} is {mask.width} x {mask.height} pixels, but its picture {path.name} is "
            f"{width} x {height}; make the mask as large as the picture"
        )
    mask = crop_or_resize(mask, shape, config.center_crop, Image.Resampling.BOX)
    if not mask.getbbox():
        what = "is black" if config.mask == "files" else "is transparent"
        raise UserError(
            f"{source} {what} all over what is trained on, so that nothing of the picture would "
            "train; mend it, or leave the picture out"
        )
    return torch.from_numpy(np.asarray(mask).copy())[None].float() / 255


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1
