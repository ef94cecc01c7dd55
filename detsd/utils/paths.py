"""Names of files, folders and models, as configurations give them.

Imports only the standard library, so that mistakes are reported before anything large is loaded.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

BUNDLED = "demo_model"
DEMO_CONCEPT, DEMO_WORD = "learned_embeddings_dict_demo.pt", "det-logo-demo"
DEMO_IMAGES = "det_logos"  # the images that the concept was learned from

AUTO = "auto"  # in place of an initializer: one is found

# Chunks of a large file that a digest reads, and the bytes of each: 0.05 s for 2 GB, instead of 2 s
# in full.
CHUNKS, CHUNK = 4096, 4096

# Found in folders of runs, checkpoints, models and LoRAs, but not in those of pictures.
LEARNED = (
    "learned_embed*", "checkpoints", "step-*", "metrics.jsonl", "tensorboard", "model_index.json",
    "adapter_config.json", "pytorch_lora_weights.*",
)  # fmt: skip


def file_name(concept: str) -> str:
    """Return a concept's word as a file name: letters, digits, `-`, `_` and `.` stay."""
    return re.sub(r"[^\w.-]+", "_", concept).strip("._") or "concept"


def uuid_problem(uuid: str) -> str | None:
    """Return why a text is not a checkpoint's uuid, by which it is cached; else None."""
    if re.fullmatch(r"[\w-]{1,100}", uuid):
        return None
    return f"{uuid[:100]!r} is not a checkpoint uuid; det e list-checkpoints ID shows them"


def find(name: str, beside: Path | None = None) -> str:
    """Find a path of a configuration, `~` expanded: beside the configuration if it is there.

    Args:
        beside: the configuration's folder. A path not found there stays as it is, relative to the
            working directory; so does a model's name on the hub.
    """
    name = os.path.expanduser(name) if name.startswith("~") else name
    if beside in (None, Path()) or not name or os.path.isabs(name):
        return name
    if os.path.exists(beside / name):  # not Path.exists: a phrase may be too long for a file
        return str(beside / name)
    path, words = name, ""  # a concept under another word: path=word or path=old=word
    while "=" in path:
        path, _, word = path.rpartition("=")
        words = f"={word}{words}"
        if path and os.path.exists(beside / path):
            return f"{beside / path}{words}"
    return name


def is_description(text: str, beside: Path | None = None) -> bool:
    """Return whether a text describes a concept even if a folder has its name.

    `auto` does, and so does the bare name of a folder that holds nothing learned, usually pictures.
    The name of an empty folder does not: it may be that of a run that was killed early.
    """
    if text == AUTO:
        return True
    path = (beside or Path()) / text
    if text != path.name or not os.path.isdir(path):
        return False
    return any(path.iterdir()) and not any(next(path.glob(name), None) for name in LEARNED)


def find_start(text: str, beside: Path | None = None) -> str:
    """Find what a concept starts from, as `find` does; a description stays as it is."""
    return text if is_description(text, beside) else find(text, beside)


def looked(name: str, beside: Path | None = None) -> str:
    """Describe the places where `find` looked for `name`, for the end of a sentence."""
    if os.path.isabs(name):
        return ""
    places = [str(beside.resolve())] if beside not in (None, Path()) else []
    return f" (looked in {' and in '.join([*places, os.getcwd()])})"


def resolve(name: str) -> str:
    """Return a local path as it is or beside the package (`demo_model`), or else a hub name."""
    beside = Path(__file__).parents[2] / name
    return str(beside) if name and not os.path.exists(name) and os.path.exists(beside) else name


def bundled_with(model: str) -> Path | None:
    """Return the repository's folder if a model is the bundled one, by any path; else None."""
    folder = Path(canonical_path(model))
    there = folder.name == BUNDLED and os.path.isfile(folder.parent / DEMO_CONCEPT)
    return folder.parent if there else None


def canonical_path(name: str) -> str:
    """Return a local path in one spelling, without links and `..`, or else a hub name."""
    there = resolve(name)
    return os.path.realpath(there) if os.path.exists(there) else name


def content_digest(path: Path) -> str | None:
    """Return a digest of a file, or of the names and files of a folder; None if there is neither.

    For a file above 16 MiB, its size and evenly spaced chunks count, so that a model takes a
    fraction of a second; no change longer than 1/4096 of the file goes unnoticed. Hidden files do
    not count.
    """
    if not os.path.exists(path):
        return None
    found = hashlib.blake2b(digest_size=16)
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in inside:
        name = file.relative_to(path)
        if file.is_dir() or any(part.startswith(".") for part in name.parts):
            continue
        size = file.stat().st_size
        found.update(f"{name.as_posix()} {size}\0".encode(errors="surrogateescape"))
        with file.open("rb", buffering=0) as opened:
            if size <= CHUNKS * CHUNK:
                found.update(opened.read())
                continue
            for k in range(CHUNKS):
                opened.seek(k * (size - CHUNK) // (CHUNKS - 1))
                found.update(opened.read(CHUNK))
    return found.hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a staging path, renamed to `path` after the block: a file is whole or absent.

    It has the suffix of `path`, from which Pillow infers the format.
    """
    staging = path.with_name(f".{path.name}")
    try:
        yield staging
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
