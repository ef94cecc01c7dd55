"""The files of a folder of training images.

Imports no library that takes long.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from detsd.utils import pictures
from detsd.utils.errors import UserError
from detsd.utils.paths import looked

HEIF = (".heic", ".heif", ".hif")  # file names, lower-case

MASK = "-masklabel.png"  # IMAGE-masklabel.png is the mask of IMAGE.jpg, as OneTrainer names it

# Beside pictures, and none themselves: captions and what programs leave there.
BESIDE = {".txt", ".json", ".jsonl", ".csv", ".md", ".ini", ".db", ".caption", ".npz"}


@dataclass(frozen=True)
class ImageFolder:
    """The files of a folder of training images, listed once."""

    path: Path
    images: list[Path]  # by name, so that every rank sees one order; masks are none
    passed_over: str  # a sentence on the files beside them that are not read; "" for none

    @staticmethod
    def scan(path: Path, key: str = "img_dirs") -> ImageFolder:
        """List a folder, which the configuration names under `key`.

        Captions, hidden files and what programs leave beside pictures are passed over in silence.
        """
        if not path.is_dir():
            raise UserError(f"{key}: folder {path} does not exist; name a folder of images")
        entries = sorted(path.iterdir())
        images = _images(entries)
        rest = [
            p
            for p in sorted(set(entries) - set(images))
            if not p.name.startswith((".", "_")) and not p.name.endswith(MASK)
        ]
        kinds = Counter(p.suffix.lower() or p.name for p in rest if p.is_file())
        said = [f"{n} {kind}" for kind, n in kinds.items() if kind not in BESIDE]
        folders = [p.name for p in rest if p.is_dir() and list_images(p)]
        said += [f"the images in the folder {name} inside it" for name in folders]
        if not said:
            return ImageFolder(path, images, "")
        heif = (
            ""
            if pictures.register_heif_opener or not kinds.keys() & set(HEIF)
            else "; pip install pillow-heif to read HEIC"
        )
        return ImageFolder(path, images, f"{path}: passing over {', '.join(said)}{heif}")


def list_images(folder: Path) -> list[Path]:
    """Return the pictures in a folder by name; none where there is no folder."""
    return _images(sorted(folder.iterdir())) if folder.is_dir() else []


def _images(entries: list[Path]) -> list[Path]:
    """Return the pictures among the files of a folder."""
    known = pictures.extensions()
    return [
        p
        for p in entries
        if p.suffix.lower() in known and not p.name.endswith(MASK) and p.is_file()
    ]


def mask_of(path: Path) -> Path:
    """Return the file that is the mask of picture `path`."""
    return path.with_name(f"{path.stem}{MASK}")


def folder_problem(folder: str, beside: Path | None = None, mask: str = "none") -> str | None:
    """Describe what is wrong with a folder of training images; None where nothing is.

    Args:
        mask: `concepts.mask`, which every picture must have.
    """
    path = Path(folder)
    if not path.is_dir():
        what = "is no folder" if path.exists() else f"does not exist{looked(folder, beside)}"
        return f"folder {folder} {what}; name a folder of images"
    found = ImageFolder.scan(path)
    if not found.images:
        return no_images(found)
    return _mask_problem(found, mask) if mask != "none" else None


def no_images(folder: ImageFolder) -> str:
    """Describe a folder without a readable image."""
    rest = f" ({folder.passed_over})" if folder.passed_over else ""
    return f"folder {folder.path} holds no readable image; put JPEG, PNG or WebP files there{rest}"


def _mask_problem(folder: ImageFolder, kind: str) -> str | None:
    """Name the pictures that lack what `concepts.mask` asks for; None where none does."""

    def lacks(path: Path) -> bool:
        if kind == "files":
            return not mask_of(path).is_file()
        try:
            with pictures.open_picture(path) as image:
                return not pictures.has_alpha(image)
        except Exception:  # named and skipped when it is read
            return False

    without = [path for path in folder.images if lacks(path)]
    if not without:
        return None
    name = without[0].name
    wanted = (
        f"put {mask_of(without[0]).name} beside {name}, white where it shows the concept and black "
        "elsewhere"
        if kind == "files"
        else f"make the background of {name} transparent"
    )
    more = f", and the others' likewise ({len(without)} in all)" if without[1:] else ""
    return f"concepts.mask is {kind}, but {folder.path}/{name} has no mask: {wanted}{more}"
