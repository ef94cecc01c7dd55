"""Training images: read, cropped, resized, and their masks."""

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from detsd.config import ConceptsConfig
from detsd.data.folder import ImageFolder, mask_of, no_images
from detsd.data.prefetch import prefetch
from detsd.models.base import TimeIds
from detsd.utils.errors import UserError
from detsd.utils.pictures import Picture, read_picture

logger = logging.getLogger("detsd.data")

ASPECTS = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4)  # of the buckets, the same as OneTrainer's


@dataclass(frozen=True)
class CroppedImage:
    """An image of a folder, cut to its training shape."""

    path: Path
    image: Image.Image  # RGB
    frame: TimeIds
    mask: Image.Image | None = None  # mode L, as large as the latents: their weight in training
    several: bool = False  # whether its file has more frames or pages


def target_size(size: int, aspect: float, step: int = 8) -> tuple[int, int]:
    """Return width and height for an aspect: multiples of `step`, about size x size pixels."""
    width, height = size * math.sqrt(aspect), size / math.sqrt(aspect)
    return tuple(max(step, round(side / step) * step) for side in (width, height))


def target_sizes(config: ConceptsConfig, size: int, step: int = 8) -> list[tuple[int, int]]:
    """Return the widths and heights that images may be cut to: one, or those of the buckets."""
    if config.img_aspect != "buckets":
        return [target_size(size, config.img_aspect)]
    wide = [target_size(size, aspect, step) for aspect in ASPECTS]
    return sorted({*wide, *(shape[::-1] for shape in wide)})


def bucket_of(size: tuple[int, int], shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the shape to which an image of `size` is cut: the one that keeps most of it.

    Aspects are compared by their ratio. kohya and OneTrainer compare them by their difference,
    which can cut a portrait differently from the same picture turned on its side.
    """
    width, height = size
    return min(shapes, key=lambda shape: abs(math.log(width * shape[1] / (height * shape[0]))))


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


def squared(image: Image.Image) -> Image.Image:
    """Return an image padded to a square with the pixels of its edges; a square one as it is.

    This is for networks that take squares: a centre crop would lose a subject near an edge.
    """
    (width, height), side = image.size, max(image.size)
    if width == height:
        return image
    margins = [((side - s) // 2, side - s - (side - s) // 2) for s in (height, width)]
    return Image.fromarray(np.pad(np.asarray(image), (*margins, (0, 0)), mode="edge"))


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
    folder: Path | ImageFolder,
    config: ConceptsConfig,
    size: int,
    key: str,
    step: int = 8,
    scale: int | None = None,
) -> Iterator[CroppedImage]:
    """Read all readable images of a folder, cut to one shape, or each to that of its bucket.

    Unreadable images are reported and skipped. Several are decoded at once, but only a few are held
    in memory.

    Args:
        folder: the folder; if it is a path, it is listed here.
        key: the setting that names the folder.
        step: the sides of buckets are multiples of this.
        scale: pixels per latent along a side, if masks are to be read.
    """
    if isinstance(folder, Path):
        folder = ImageFolder.scan(folder, key)
    if folder.passed_over:
        logger.warning("%s", folder.passed_over)
    shapes = target_sizes(config, size, step)
    largest = tuple(map(max, zip(*shapes, strict=True)))

    def latents(shape: tuple[int, int]) -> tuple[int, int]:
        return tuple(side // scale for side in shape)

    def crop(path: Path, picture: Picture) -> CroppedImage:
        shape = bucket_of(picture.size, shapes)
        cropped = crop_or_resize(picture.rgb, shape, config.center_crop)
        mask = None
        if scale and config.mask == "alpha":
            whole = picture.alpha or Image.new("L", picture.rgb.size, 255)
            mask = crop_or_resize(whole, latents(shape), config.center_crop, Image.Resampling.BOX)
        where = frame(*picture.size, shape, config.center_crop)
        return CroppedImage(path, cropped, where, mask, picture.several)

    def read(path: Path) -> CroppedImage | Exception:
        try:
            cut = functools.partial(crop, path)
            found = read_picture(path, config.transparency_color, largest, cut)
        except Exception as error:  # broken files raise a dozen classes, including struct.error
            return error
        if scale and config.mask == "files":
            small = latents(found.image.size)
            mask = read_mask(path, found.frame[1::-1], small, config.center_crop)
            found = dataclasses.replace(found, mask=mask)
        return found

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


def read_mask(
    path: Path, size: tuple[int, int], latents: tuple[int, int], center_crop: bool
) -> Image.Image:
    """Read the mask file of a picture of `size` pixels, cut like the picture."""
    source = mask_of(path)

    def cut(mask: Picture) -> tuple[tuple[int, int], Image.Image]:
        grey = mask.rgb.convert("L")
        return mask.size, crop_or_resize(grey, latents, center_crop, Image.Resampling.BOX)

    try:
        found, mask = read_picture(source, "black", latents, cut, convert=False)
    except Exception as error:  # as for pictures
        raise UserError(f"{source} cannot be read as a mask ({error}); save it again") from None
    if found != size:
        raise UserError(
            f"{source} is {found[0]} x {found[1]} pixels, but its picture {path.name} is "
            f"{size[0]} x {size[1]}; make the mask as large as the picture"
        )
    return mask


def mask_tensor(image: CroppedImage, kind: str) -> torch.Tensor | None:
    """Return the weight of each latent in training: (1, h, w) in [0, 1]; None without a mask.

    A weight is the share of the latent's pixels that count.
    """
    if image.mask is None:
        return None
    if not image.mask.getbbox():
        source = mask_of(image.path) if kind == "files" else image.path
        raise UserError(
            f"{source} is {'black' if kind == 'files' else 'transparent'} in the whole area that "
            "is trained on, so the picture would teach nothing; correct it, or remove the picture"
        )
    return torch.from_numpy(np.asarray(image.mask).copy())[None].float() / 255


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1
