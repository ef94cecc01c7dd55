"""Notes on a folder of training images, made before training: one line per kind of oddity."""

import logging
from pathlib import Path

from detsd.config import ConceptsConfig
from detsd.data.captions import file_words
from detsd.data.folder import ImageFolder
from detsd.data.images import CroppedImage

logger = logging.getLogger("detsd.data")


class Notes:
    """Notes collected while the images of a folder are read."""

    def __init__(self, folder: ImageFolder, config: ConceptsConfig, captions: dict[Path, str]):
        self.folder, self.config, self.captions = folder, config, captions
        self.count = 0
        self.several: list[str] = []
        self.small: list[str] = []
        self.cut: list[str] = []
        self.unnamed: list[str] = []
        self.shapes: set[tuple[int, int]] = set()

    def add(self, image: CroppedImage) -> None:
        """Take note of an image."""
        name, (height, width) = image.path.name, image.frame[:2]
        across, down = image.image.size
        self.count += 1
        self.shapes.add(image.image.size)
        if image.several:
            self.several.append(name)
        if width < across or height < down:
            self.small.append(f"{name} is {width} x {height}")
        kept = min(width / across, height / down) ** 2 * across * down / (width * height)
        if self.config.center_crop and kept < 0.5:
            self.cut.append(f"{name} keeps {kept:.0%}")
        if self.config.append_file_name_to_text and image.path not in self.captions:
            split = self.config.file_name_split_char
            if file_words(image.path.stem, split) == "":
                self.unnamed.append(name)

    def log(self, pixels: dict[Path, str]) -> None:
        """Log a line for each kind; `pixels` are digests, equal for copies."""
        self._copies(pixels)
        if self.config.use_caption_files:
            found = sum(path in self.captions for path in pixels)
            level = logging.WARNING if found < self.count else logging.INFO
            logger.log(
                level, "%s: captions for %d of %d pictures", self.folder.path, found, self.count
            )
        if self.folder.path.is_symlink():
            logger.warning(
                "%s is a link, which is an empty folder to a task on a cluster; copy the pictures "
                "into a folder beside the configuration before you submit it",
                self.folder.path,
            )
        self._say(self.several, "have several frames or pages, of which only the first is used")
        one = "{} x {}".format(*min(self.shapes)) if len(self.shapes) == 1 else "bucket"
        self._say(self.small, f"are smaller than the {one} to train on and are enlarged")
        remedy = "set concepts.img_aspect to buckets or to their shape, or "
        if self.config.img_aspect == "buckets":  # they are longer than the longest bucket
            remedy = "crop them to what they should teach, or set "
        self._say(
            self.cut, f"lose more than half in the crop; {remedy}concepts.center_crop to false"
        )
        self._say(
            self.unnamed,
            "are named after a camera, a date or a hash, which is not appended to the prompt; "
            "rename them, or set concepts.append_file_name_to_text to false",
        )

    def _say(self, names: list[str], what: str) -> None:
        """Log how many pictures something is true of, and the first of them."""
        if names:
            logger.warning(
                "%s: %d of %d pictures %s (%s)",
                self.folder.path, len(names), self.count, what, names[0],
            )  # fmt: skip

    def _copies(self, pixels: dict[Path, str]) -> None:
        """Log which pictures are identical."""
        first: dict[str, str] = {}
        copies = []
        for path, digest in pixels.items():
            if digest in first:
                copies.append(f"{path.name} is a copy of {first[digest]}")
            first.setdefault(digest, path.name)
        if copies:
            logger.warning(
                "%s: only %d of %d pictures are different (%s); copies are used for training or "
                "for validation, but not for both",
                self.folder.path, len(first), len(pixels), copies[0],
            )  # fmt: skip
