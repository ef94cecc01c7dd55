"""Notes on a folder of training images, logged before training: one line per kind of oddity."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from detsd.config import ConceptsConfig
from detsd.data.captions import file_words
from detsd.utils.plurals import counted, verb

if TYPE_CHECKING:
    from detsd.data.latents import TrainingImage

logger = logging.getLogger("detsd.data")


def log_notes(
    folder: Path,
    config: ConceptsConfig,
    images: list[TrainingImage],
    captions: dict[Path, str],
    several: list[str],
) -> None:
    """Log oddities of the training images of a folder.

    Args:
        captions: the captions from files, by image.
        several: names of the files with several frames or pages.
    """
    _log_copies(folder, images)
    if config.use_caption_files:
        found = sum(image.path in captions for image in images)
        level = logging.WARNING if found < len(images) else logging.INFO
        pictures = counted(len(images), "picture")
        logger.log(level, "%s: captions for %d of %s", folder, found, pictures)
    if folder.is_symlink():
        logger.warning(
            "%s is a link, which is an empty folder to a task on a cluster; copy the pictures "
            "into a folder beside the configuration before you submit it",
            folder,
        )
    small, cut = [], []
    for image in images:
        name, (height, width), (across, down) = image.path.name, image.frame[:2], image.shape
        if width < across or height < down:
            small.append(f"{name} is {width} x {height}")
        kept = min(width / across, height / down) ** 2 * across * down / (width * height)
        if config.center_crop and kept < 0.5:
            cut.append(f"{name} keeps {kept:.0%}")
    split = config.file_name_split_char
    unnamed = [
        image.path.name
        for image in images
        if config.append_file_name_to_text
        and image.path not in captions
        and not file_words(image.path.stem, split)
    ]
    shapes = {image.shape for image in images}
    one = "{} x {}".format(*min(shapes)) if len(shapes) == 1 else "bucket"
    remedy = "set concepts.img_aspect to buckets or to the shape of most, or "
    if config.img_aspect == "buckets":  # such images are longer than the longest bucket
        remedy = "crop to the subject yourself, or set "
    are = verb("are", len(small))
    for names, what, rest in (
        (several, "have", "several frames or pages, of which only the first is used"),
        (small, "are", f"smaller than the {one} to train on and {are} enlarged"),
        (cut, "lose", f"more than half in the crop; {remedy}concepts.center_crop to false"),
        (
            unnamed, "are",
            "named after a camera, a date or a hash, which is not appended to the prompt; "
            "rename such files, or set concepts.append_file_name_to_text to false",
        ),
    ):  # fmt: skip
        if names:
            logger.warning(
                "%s: %d of %s %s %s (%s)", folder, len(names),
                counted(len(images), "picture"), verb(what, len(names)), rest, names[0],
            )  # fmt: skip


def _log_copies(folder: Path, images: list[TrainingImage]) -> None:
    """Log how many of the pictures are different, and the first copy."""
    first: dict[str, str] = {}
    copies = []
    for image in images:
        original = first.setdefault(image.pixels, image.path.name)
        if original != image.path.name:
            copies.append(f"{image.path.name} is a copy of {original}")
    if copies:
        count = len(images)
        what = f"only {len(first)} of {count} pictures are different"
        logger.warning(
            "%s: %s (%s); copies are used for training or for validation, but not for both",
            folder,
            what if len(first) > 1 else f"the {count} pictures are identical",
            copies[0],
        )
