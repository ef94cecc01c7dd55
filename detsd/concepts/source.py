"""Where a concept comes from: `path`, or `path=word`, which gives its only concept that word.

A path is a concept file, a checkpoint's folder, or a run's, which stands for its best checkpoint,
or where none is known yet for its newest.
Of the standard library alone, so that a mistake is told before anything large is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container
from pathlib import Path

from detsd.runs.folder import DICT_FILE
from detsd.utils.errors import UserError
from detsd.utils.paths import looked

LAYOUTS = ("diffusers", "a1111", "kohya", "sdxl", "onetrainer", "detsd")  # that can be written

SUFFIXES = (".safetensors", ".pt", ".bin", ".pth", ".ckpt", ".png")  # that a concept file may have


def split_source(source: str | Path) -> tuple[Path, str]:
    """The path of `path` or `path=word`, and the word, else ""."""
    text = str(source)
    if not os.path.exists(text):
        path, _, word = text.rpartition("=")
        if path and word.strip() and is_path(path):
            return Path(path), word.strip()
    return Path(text), ""


def is_path(text: str) -> bool:
    """Whether a text names a file or folder, there or missing, rather than being a phrase."""
    return os.path.exists(text) or Path(text).suffix.lower() in SUFFIXES


def is_source(text: str) -> bool:
    """Whether a text names where a concept lies, rather than being a phrase."""
    return is_path(text) or split_source(text)[1] != ""


def is_uuid(text: str) -> bool:
    """Whether a source is a checkpoint of the cluster, perhaps with a word: UUID=WORD."""
    return bool(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(=.+)?", text))


def locate(source: str | Path) -> str:
    """The source with a file in place of a folder: of a run, that of its best checkpoint.

    Raises:
        UserError: nothing there, or a folder without a concept.
    """
    path, word = split_source(source)
    return f"{file_of(path)}={word}" if word else str(file_of(path))


def checkpoints_of(run: Path) -> list[Path]:
    """The concept files of a run folder's checkpoints, the newest last."""
    found = [*run.glob("checkpoints/step-*"), *run.glob("step-*")]  # what carries the name is whole
    return sorted(s / DICT_FILE for s in found if (s / DICT_FILE).is_file())


def file_of(path: Path) -> Path:
    """The concept file that a path stands for.

    Raises:
        UserError: nothing there, or a folder without a concept.
    """
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist; name a concept file, a checkpoint or a run folder")
    if not path.is_dir():
        return path
    for name in (DICT_FILE, "learned_embeds.safetensors", "learned_embeds.bin"):
        if (path / name).is_file():
            return path / name
    if steps := checkpoints_of(path):
        return steps[-1]
    what = "a folder without a concept"
    if (path / "model_index.json").is_file():
        what = "a whole model's folder, not a concept's"
    elif [*path.glob("adapter_config.json"), *path.glob("pytorch_lora_weights.*")]:
        what = "a LoRA's folder, not a concept's"
    elif (path / "checkpoints").is_dir() or (path / "metrics.jsonl").is_file():
        what = "a run without a complete checkpoint"
    raise UserError(f"{path} is {what}; name a concept file, a checkpoint or a run folder")


def is_word(name: str, tokens: Container[str]) -> bool:
    """Whether a concept's name is one token of a base model's vocabulary, as `cat` is."""
    return name in tokens or f"{name.lower()}</w>" in tokens


def word_problem(name: str, tokens: Container[str]) -> str | None:
    """Why `name` cannot be a concept beside the vocabulary `tokens`; None where it can."""
    if not name.strip() or name != name.strip():
        return f"concept {name!r} is empty or has spaces around it; give it a word"
    if is_word(name, tokens):
        return (
            f"concept {name!r} is already a word of the tokenizer and would lose its meaning; "
            f"choose a new word such as {name + '-concept'!r}"
        )
    return None


def source_problems(source: str, key: str, beside: Path | None = None) -> list[str]:
    """What is wrong with where a concept is to come from, short of its file's content."""
    try:
        locate(source)
    except UserError as error:
        there = os.path.exists(split_source(source)[0])  # also of names too long for a file
        return [f"{key}: {error}" + ("" if there else looked(source, beside))]
    return []
