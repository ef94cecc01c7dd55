"""The files of a folder of training images.

Imports no library that takes long.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from PIL import Image

from detsd.utils.paths import looked

try:  # HEIC and HEIF, what telephones write, where somebody has installed what reads them
    from pillow_heif import register_heif_opener
except ImportError:
    register_heif_opener = None


HEIF = (".heic", ".heif", ".hif")

MASK = "-masklabel.png"  # IMAGE-masklabel.png is the mask of IMAGE.jpg, as OneTrainer names it

# Beside pictures, and none themselves: captions and what programs leave there.
BESIDE = {".txt", ".json", ".jsonl", ".csv", ".md", ".ini", ".db", ".caption", ".npz"}


def folder_problem(folder: str, beside: Path | None = None) -> str | None:
    """What is wrong with a folder of training images; None where it holds some."""
    path = Path(folder)
    if not path.is_dir():
        what = "is no folder" if path.exists() else f"does not exist{looked(folder, beside)}"
        return f"folder {folder} {what}; name a folder of images"
    if not any(list_images(path)):
        rest = passed_over(path)
        found = f" ({rest})" if rest else ""
        return f"folder {folder} holds no readable image; put JPEG, PNG or WebP files there{found}"
    return None


def mask_of(path: Path) -> Path:
    """The file that is the mask of picture `path`."""
    return path.with_name(f"{path.stem}{MASK}")


def mask_problem(folder: str, kind: str) -> str | None:
    """Which pictures of a folder lack what `concepts.mask` asks for; None where none does."""

    def lacks(path: Path) -> bool:
        if kind == "files":
            return not mask_of(path).is_file()
        try:
            with Image.open(path) as image:
                return not image.has_transparency_data
        except Exception:  # whoever reads them all will say so
            return False

    pictures = list_images(Path(folder)) if kind != "none" else []
    without = [path for path in pictures if lacks(path)]
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
    return f"concepts.mask is {kind}, but {folder}/{name} has no mask: {wanted}{more}"


def list_images(folder: Path) -> list[Path]:
    """Pictures in a folder by name, sorted, so that every rank sees one order; masks are none."""
    if register_heif_opener:
        register_heif_opener()
    known = Image.registered_extensions()
    found = (p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in known)
    return sorted(p for p in found if not p.name.endswith(MASK))


def passed_over(folder: Path) -> str:
    """A sentence on what lies beside the images of a folder and is not looked at; "" for nothing.

    Captions, hidden files and what programs leave beside pictures are not worth one.
    """
    images = set(list_images(folder))
    rest = sorted(
        p
        for p in folder.iterdir()
        if p not in images and not p.name.startswith((".", "_")) and not p.name.endswith(MASK)
    )
    kinds = Counter(p.suffix.lower() or p.name for p in rest if p.is_file())
    said = [f"{n} {kind}" for kind, n in kinds.items() if kind not in BESIDE]
    folders = [p.name for p in rest if p.is_dir() and list_images(p)]
    said += [f"the images in the folder {name} inside it" for name in folders]
    if not said:
        return ""
    heif = (
        ""
        if register_heif_opener or not kinds.keys() & set(HEIF)
        else ("; pip install pillow-heif to read HEIC")
    )
    return f"{folder}: passing over {', '.join(said)}{heif}"
