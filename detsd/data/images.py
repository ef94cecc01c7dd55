"""Training images: read, cropped, resized, and their masks."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps

from detsd.config import ConceptsConfig
from detsd.data.folder import ImageFolder, mask_of, no_images
from detsd.data.prefetch import prefetch
from detsd.models.base import TimeIds
from detsd.utils.errors import UserError

logger = logging.getLogger("detsd")


@dataclass(frozen=True)
class CroppedImage:
    """An image of a folder, cut to the shape that is trained on."""

    path: Path
    image: Image.Image  # RGB
    frame: TimeIds
    mask: Image.Image | None = None  # L, of the whole picture: what of it trains


def to_rgb(image: Image.Image, behind: str = "white") -> Image.Image:
    """Return the first frame, upright, as 8-bit RGB; transparency shows the colour `behind`."""
    return to_rgb_and_alpha(image, behind)[0]


def to_rgb_and_alpha(image: Image.Image, behind: str) -> tuple[Image.Image, Image.Image]:
    """Return the same with its alpha channel, opaque where it has none."""
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
    if not image.has_transparency_data:
        return image.convert("RGB"), Image.new("L", image.size, 255)
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, ImageColor.getrgb(behind))
    return Image.alpha_composite(ground, image).convert("RGB"), image.getchannel("A")


def target_size(size: int, aspect: float) -> tuple[int, int]:
    """Return width and height of an aspect, of about as many pixels as a square of `size` a side.

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
    """Return an image of `shape` pixels: the centre crop, or the whole image squeezed."""
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
) -> Iterator[CroppedImage]:
    """Read all readable images of a folder, cut to one shape.

    Unreadable ones are named and skipped. Several are decoded at once, and only a few are held.

    Args:
        key: what the configuration calls the folder.
    """
    yield from read_listed(ImageFolder.scan(folder, key), config, size, key)


def read_listed(
    folder: ImageFolder, config: ConceptsConfig, size: int, key: str, masks: bool = False
) -> Iterator[CroppedImage]:
    """Read the images of a folder as `read_images` does, with their masks where asked for."""
    if folder.passed_over:
        logger.warning("%s", folder.passed_over)
    shape = target_size(size, config.img_aspect)

    def read(path: Path) -> CroppedImage | Exception:
        try:
            with Image.open(path) as image:
                rgb, alpha = to_rgb_and_alpha(image, config.transparency_color)
        except Exception as error:  # broken files raise a dozen classes, struct.error among them
            return error
        cropped = crop_or_resize(rgb, shape, config.center_crop)
        mask = None
        if masks and config.mask != "none":
            mask = alpha if config.mask == "alpha" else read_mask(path, rgb.size)
        return CroppedImage(path, cropped, frame(*rgb.size, shape, config.center_crop), mask)

    count = 0
    threads = min(8, os.cpu_count() or 1)
    for path, found in zip(folder.images, prefetch(read, folder.images, threads), strict=True):
        if isinstance(found, Exception):
            logger.warning("%s cannot be read and is skipped (%s)", path, found)
            continue
        count += 1
        yield found
    if not count:
        raise UserError(f"{key}: {no_images(folder)}")


def read_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """Read the mask file of a picture of `size` pixels."""
    source = mask_of(path)
    try:
        with Image.open(source) as image:
            mask = to_rgb(image, "black").convert("L")
    except Exception as error:  # as of pictures
        raise UserError(f"{source} cannot be read as a mask ({error}); save it again") from None
    if mask.size != size:
        raise UserError(
            f"{source} is {mask.width} x {mask.height} pixels, but its picture {path.name} is "
            f"{size[0]} x {size[1]}; make the mask as large as the picture"
        )
    return mask


def mask_tensor(
    image: CroppedImage, config: ConceptsConfig, shape: tuple[int, int]
) -> torch.Tensor | None:
    """Return how much of each latent trains: (1, h, w) in [0, 1]; None without a mask.

    Cut out as the picture is. A latent counts by the share of its pixels that do.

    Args:
        shape: latents across and down.
    """
    if image.mask is None:
        return None
    mask = crop_or_resize(image.mask, shape, config.center_crop, Image.Resampling.BOX)
    if not mask.getbbox():
        by_file = config.mask == "files"
        source = mask_of(image.path) if by_file else image.path
        raise UserError(
            f"{source} is {'black' if by_file else 'transparent'} all over what is trained on, so "
            "that nothing of the picture would train; mend it, or leave the picture out"
        )
    return torch.from_numpy(np.asarray(mask).copy())[None].float() / 255


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1
