"""The files of a folder of training images.

This module imports no library that is slow to load.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detsd.utils import formats
from detsd.utils.errors import UserError
from detsd.utils.paths import looked

HEIF = (".heic", ".heif", ".hif")  # suffixes, in lower case

MASK = "-masklabel.png"  # IMAGE-masklabel.png is the mask of IMAGE.jpg, as OneTrainer names it

APPLE = "._"  # starts the names of files that macOS adds beside others on foreign disks

CAPTION_ENDS, CAPTION_FOLDER = (".txt", ".caption"), "captions"

# Suffixes of files that are often beside pictures: captions and files that programs leave there.
BESIDE = {".txt", ".json", ".jsonl", ".csv", ".md", ".ini", ".db", ".caption", ".npz"}

LFS = b"version https://git-lfs.github.com/spec/"  # starts a Git LFS pointer


@dataclass(frozen=True)
class ImageFolder:
    """The files of a folder of training images, listed once."""

    path: Path
    images: list[Path]  # sorted by name, so that all ranks see the same order; without masks
    captions: list[Path]  # text files that may be captions, including those in captions/
    passed_over: str  # a sentence about the other files, which are skipped; "" for none

    @staticmethod
    def scan(path: Path, key: str = "img_dirs") -> ImageFolder:
        """List a folder, which the setting `key` names.

        Captions, hidden files and files that programs leave beside pictures are skipped silently.
        """
        if not path.is_dir():
            raise UserError(f"{key}: folder {path} does not exist; name a folder of images")
        entries = sorted(path.iterdir())
        named = _images(entries)
        pointers = [p for p in named if _is_lfs_pointer(p)]
        images = [p for p in named if p not in pointers]
        texts = [p for folder in (path / CAPTION_FOLDER, path) for p in _texts(folder)]
        return ImageFolder(path, images, texts, _passed_over(path, entries, named, pointers))


def _texts(folder: Path) -> list[Path]:
    """Return the text files of a folder; none if it does not exist."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in entries if p.suffix.lower() in CAPTION_ENDS and p.is_file())


def _passed_over(path: Path, entries: list[Path], named: list[Path], pointers: list[Path]) -> str:
    """Return a sentence about the files of a folder that are skipped; "" if there are none."""
    apple = [p for p in entries if p.name.startswith(APPLE)]
    broken = [p for p in entries if p.is_symlink() and not p.exists()]
    rest = [
        p
        for p in sorted(set(entries) - set(named) - set(broken))
        if not p.name.startswith((".", "_")) and not p.name.endswith(MASK)
    ]
    kinds = Counter(p.suffix.lower() or p.name for p in rest if p.is_file())
    said = [f"{n} {kind}" for kind, n in kinds.items() if kind not in BESIDE]
    folders = [p.name for p in rest if p.is_dir() and list_images(p)]
    said += [f"the images in the folder {name} inside it" for name in folders]
    for found, what in (
        (apple, "that macOS left beside the pictures"),
        (broken, "that are broken links"),
        (pointers, "that are Git LFS pointers"),
    ):
        if found:
            said.append(f"{len(found)} {what} ({found[0].name})")
    hints = ["; run git lfs pull to get the pictures"] if pointers else []
    if kinds.keys() & set(HEIF) and not formats.register_heif_opener:
        hints.append("; run pip install pillow-heif to read HEIC")
    return f"{path}: skipping {', '.join(said)}{''.join(hints)}" if said else ""


def _is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is not a picture but a Git LFS pointer to one."""
    try:
        if path.stat().st_size > 1024:  # a pointer has three lines
            return False
        with path.open("rb") as file:
            return file.read(len(LFS)) == LFS
    except OSError:
        return False


def list_images(folder: Path) -> list[Path]:
    """Return the pictures in a folder by name; none if there is no folder."""
    return _images(sorted(folder.iterdir())) if folder.is_dir() else []


def _images(entries: list[Path]) -> list[Path]:
    """Return the pictures among the files of a folder."""
    known = formats.extensions()
    return [
        p
        for p in entries
        if p.suffix.lower() in known
        and not p.name.endswith(MASK)
        and not p.name.startswith(APPLE)
        and p.is_file()
    ]


def mask_of(path: Path) -> Path:
    """Return the mask file of picture `path`."""
    return path.with_name(f"{path.stem}{MASK}")


def folder_problem(folder: str, beside: Path | None = None, mask: str = "none") -> str | None:
    """Describe the problem with a folder of training images or their masks; None if it is fine."""
    if not os.path.exists(folder):
        return f"folder {folder} does not exist{looked(folder, beside)}; name a folder of images"
    if not os.path.isdir(folder):
        return f"folder {folder} is not a folder; name a folder of images"
    found = ImageFolder.scan(Path(folder))
    if not found.images:
        return no_images(found)
    return _mask_problem(found, mask) if mask != "none" else None


def lookalikes_of(own: str, name: str, folders: Sequence[str], key: str) -> list[str]:
    """Return the folders of a concept's look-alikes: all of a line-up except its `own`.

    Concepts that are learned together may be in each other's line-up.
    """
    others = [f for f in folders if os.path.realpath(f) != os.path.realpath(own)]
    if folders and not others:
        raise UserError(
            f"{key} names only {own}, the training images of {name} itself; name folders of "
            "look-alikes"
        )
    return others


def no_images(folder: ImageFolder) -> str:
    """Describe a folder without a readable image."""
    rest = f" ({folder.passed_over})" if folder.passed_over else ""
    if not any(folder.path.iterdir()):
        rest = " (it is empty, as a linked folder is on a cluster; copy the pictures into it)"
    return f"folder {folder.path} holds no readable image; put JPEG, PNG or WebP files there{rest}"


def _mask_problem(folder: ImageFolder, kind: str) -> str | None:
    """Describe the pictures that lack the mask that `concepts.mask` requires; None if none does."""

    def lacks(path: Path) -> bool:
        if kind == "files":
            return not mask_of(path).is_file()
        try:
            with formats.open_picture(path) as image:
                return not image.has_transparency_data
        except Exception:  # reported and skipped when it is read
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
    more = f", and do the same for the others ({len(without)} in all)" if without[1:] else ""
    return f"concepts.mask is {kind}, but {folder.path}/{name} has no mask; {wanted}{more}"
