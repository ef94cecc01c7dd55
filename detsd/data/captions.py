"""Captions of training images, in all common layouts, and words from file names.

The caption of IMAGE.jpg is in IMAGE.txt, IMAGE.jpg.txt or the same with .caption, in the image
folder or its subfolder captions/ (kohya, OneTrainer, ai-toolkit); or all captions are in one
metadata.jsonl or metadata.csv with the columns file_name and text (Hugging Face's image folders).
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from detsd.data.folder import CAPTION_ENDS, ImageFolder
from detsd.utils.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")
MARKS = re.compile(r"\{\}|\[(?:name|trigger)\]")  # where the concept goes
FILE_WORDS = "[filewords]"  # A1111's mark for the words of the file name

# Names that cameras, phones, messengers and screenshots give files.
CAMERA = re.compile(
    r"(?i)ima?ge?|dsc[nf]?|dji|gopr|gp|pxl|mv|mg|vid|pano|burst|photo|picture|pic|foto|bild|screenshot"
    r"|bildschirmfoto|scan|untitled|file|signal|whatsapp|wa|fb|received|snapchat|instagram|telegram"
    r"|sam|kimg|cimg|mvimg|e|p|um|hdr|mp"
)
# These, too, but only beside a number, because they may be plain words.
BESIDE_NUMBERS = re.compile(r"(?i)at|am|pm|copy|edit|edited|portrait|cover|night")
SHOT = re.compile(
    r"(?i)(?<![^\W_])_?(?:img|imag|dsc[nf]?|dji|gopr|gp|pxl|mvimg|mg|vid|pano|sam|kimg|cimg|p)"
    r"[-_]?e?\d{3,}(?!\d)"
)
DATE = re.compile(
    r"(?<!\d)(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])(?!\d)"
    r"(?:[-_.T ]*(?:at[-_. ]*)?\d\d?[-_.:h ]?\d\d(?:[-_.:m ]?\d\d)?(?!\d))?"
)
UUID = re.compile(r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Long numbers, and hexadecimal strings that include a digit and so are not words.
HASH = re.compile(
    r"(?i)(?<![^\W_])(?:\d{5,}|(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{8,})(?![^\W_])"
)


def find_captions(folder: ImageFolder) -> dict[Path, str]:
    """Return the captions of the images that have one, as written.

    White space becomes single spaces. A caption file takes precedence over a line of metadata.
    """
    found = _metadata(folder)
    places: list[dict[tuple[str, str], Path]] = [{}, {}]  # beside the images, in captions/
    for path in folder.captions:
        places[path.parent != folder.path].setdefault((path.stem, path.suffix.lower()), path)
    for image in folder.images:
        names = [(name, end) for end in CAPTION_ENDS for name in (image.stem, image.name)]
        paths = [place[name] for place in places for name in names if name in place]
        if paths:
            text = " ".join(_read(paths[0]).split())
            if not text:
                raise UserError(f"{paths[0]} is empty; write a caption, or delete it")
            found[image] = text
    return found


def caption_problem(folders: list[ImageFolder]) -> str | None:
    """Describe the problem if none of the folders has a caption; None if one does."""
    if any(map(find_captions, folders)):
        return None
    image = folders[0].images[0]
    return (
        f"concepts.use_caption_files is true, but no picture in {folders[0].path} has a caption; "
        f"write {image.stem}.txt for {image.name}, add a metadata.jsonl with file_name and text, "
        "or set concepts.use_caption_files to false"
    )


def fill_in(caption: str, name: str, image: Path, split: str) -> str:
    """Replace the marks in a caption with the concept's word and the words of the file name."""
    return MARKS.sub(lambda _: name, caption).replace(FILE_WORDS, file_words(image.stem, split))


def file_words(stem: str, split: str) -> str:
    """Return the words of a file name; "" for a camera's name, a hash or a date.

    `split` separates words; if it is "", a descriptive name is left as it is.
    """
    text = stem
    for pattern in (UUID, DATE, SHOT, HASH):
        text = pattern.sub(" ", text)
    numbered = re.search(r"\d", stem)
    parts = re.findall(r"[^\W\d_]+", text)
    if all(CAMERA.fullmatch(p) or (numbered and BESIDE_NUMBERS.fullmatch(p)) for p in parts):
        return ""
    kept = stem if text == stem else text
    words = kept.replace(split, " ") if split else kept
    return words if text == stem else " ".join(words.strip(" -_.").split())


def _read(path: Path) -> str:
    """Read a text file."""
    try:
        # "-sig": some editors begin a file with a byte order mark, which would become three tokens.
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path} cannot be read as UTF-8 text; save it again") from None


def _metadata(folder: ImageFolder) -> dict[Path, str]:
    """Read the captions of a folder's metadata file."""
    found = {}
    by_name = {image.name: image for image in folder.images}
    for path in filter(Path.is_file, (folder.path / name for name in METADATA)):
        for number, row in _rows(path):
            if "file_name" not in row or "text" not in row:
                raise UserError(
                    f"{path}, line {number} has {', '.join(map(str, row)) or 'nothing'}; give each "
                    "caption a `file_name` and a `text`"
                )
            name, text = row["file_name"], row["text"]
            image = by_name.get(str(name).removeprefix("./"))
            if image is None or text is None:  # in another folder, or without a caption
                continue
            if not isinstance(text, str):
                raise UserError(f"{path}, line {number}: text is {text!r}; write it in quotes")
            if not text.strip():
                raise UserError(f"{path}, line {number}: text is empty; write a caption")
            found.setdefault(image, " ".join(text.split()))
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield the rows of a metadata file with the numbers of their lines."""
    text = _read(path)
    try:
        if path.suffix == ".csv":
            reader = csv.DictReader(io.StringIO(text, newline=""))
            for row in reader:
                yield reader.line_num, row
            return
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object in braces")
                yield number, row
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); correct the line") from None
