"""Parse the location of a concept: a file, a checkpoint or run folder, or a cluster's checkpoint.

This module imports no library that is slow to load, so mistakes are reported before one loads.
"""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from detsd.runs.folder import DICT_FILE, RunFolder
from detsd.utils.errors import UserError
from detsd.utils.paths import is_description, looked, uuid_problem

LAYOUTS = ("diffusers", "a1111", "kohya", "sdxl", "onetrainer", "detsd")  # for writing

SUFFIXES = (".safetensors", ".pt", ".bin", ".pth", ".ckpt", ".png", ".webp")  # of concept files

MAX_WORD = 100  # characters

HINT = "name a concept file, a checkpoint or a run folder"

UUID = re.compile(r"(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class ConceptSource:
    """A path or a cluster's checkpoint, and a new word for one of its concepts."""

    path: Path  # concept file, checkpoint's folder, or run's folder
    word: str = ""  # the new word for the only concept or `old`; "" keeps the words in the file
    uuid: str = ""  # the checkpoint, instead of a path
    old: str = ""  # the word in the file that `word` replaces; "" for the only one
    model: str = ""  # in the cluster's registry, `name` or `name:version`, instead of a path

    @classmethod
    def parse(cls, source: str | Path | ConceptSource) -> ConceptSource:
        """Parse a path, uuid, `uuid:...` or `model:...`, optionally with `=word` or `=old=word`."""
        if isinstance(source, ConceptSource):
            return source
        text = str(source)
        if os.path.exists(text):
            return cls(Path(text))
        place, _, words = text.partition("=")
        old, _, word = map(str.strip, words.rpartition("="))
        if place in ("model:", "uuid:"):  # without a name, e.g. of an unset shell variable
            return cls(Path(text))
        if place.startswith("model:"):
            return cls(Path(), word, old=old, model=place.removeprefix("model:"))
        if place.startswith("uuid:") or UUID.fullmatch(place):
            # In lower case, like the names of cached checkpoints.
            return cls(Path(), word, place.removeprefix("uuid:").lower(), old)
        path, _, word = text.rpartition("=")  # the path itself may contain a "="
        if word.strip() and _is_path(path):
            return cls(Path(path), word.strip())
        path, _, old = path.rpartition("=")
        if word.strip() and old.strip() and _is_path(path):
            return cls(Path(path), word.strip(), old=old.strip())
        return cls(Path(text))

    @classmethod
    def looks_like(cls, text: str) -> bool:
        """Return whether a text names a file or folder, existing or missing, not a phrase."""
        return not is_description(text) and (
            _is_path(text)
            or _reads_as_path(text)
            or bool((source := cls.parse(text)).word and source.path.name)
        )

    def __str__(self) -> str:
        where = f"uuid:{self.uuid}" if self.uuid else str(self.path)
        where = f"model:{self.model}" if self.model else where
        return "=".join(filter(None, (where, self.old, self.word)))

    @property
    def file(self) -> Path:
        """The concept file; for a run's folder, the best checkpoint's, or else the newest one's.

        A cluster's checkpoint is downloaded once.
        """
        path, uuid = self.path, self.resolved.uuid
        if uuid:
            from detsd.runs.download import cached_checkpoint  # late: it imports determined

            path = cached_checkpoint(uuid)
        if not os.path.exists(path):
            raise UserError(f"{path} does not exist; {HINT}")
        if not path.is_dir():
            return path
        for name in (DICT_FILE, "learned_embeds.safetensors", "learned_embeds.bin"):
            if (path / name).is_file():
                return path / name
        if files := RunFolder(path).concept_files():
            return files[-1]
        what = "a folder without a concept"
        if (path / "model_index.json").is_file():
            what = "a whole model's folder, not a concept's"
        elif [*path.glob("adapter_config.json"), *path.glob("pytorch_lora_weights.*")]:
            what = "a LoRA's folder, not a concept's"
        elif (path / "checkpoints").is_dir() or (path / "metrics.jsonl").is_file():
            what = "a run without a complete checkpoint"
        raise UserError(f"{path} is {what}; {HINT}")

    @property
    def resolved(self) -> ConceptSource:
        """The source with the uuid of a registry model's current version."""
        if not self.model:
            return self
        from detsd.runs.registry import find_version  # late: it imports determined

        return dataclasses.replace(self, uuid=find_version(self.model)[0], model="")

    @property
    def located(self) -> ConceptSource:
        """The source with its concept file as the path."""
        return dataclasses.replace(self, path=self.file, uuid="", model="")

    def problems(self, key: str, beside: Path | None = None) -> list[str]:
        """Return the problems of the path, without reading the file's content."""
        if self.uuid and (problem := uuid_problem(self.uuid)):
            return [f"{key}: {problem}"]
        try:
            _ = self.uuid or self.model or self.file  # nothing is downloaded for this
        except UserError as error:
            there = os.path.exists(self.path)  # also False for names that are too long
            return [f"{key}: {error}" + ("" if there else looked(str(self), beside))]
        return []


def _is_path(text: str) -> bool:
    """Return whether a text names a file or folder, existing or missing."""
    return os.path.exists(text) or Path(text).suffix.lower() in SUFFIXES


def _reads_as_path(text: str) -> bool:
    """Return whether a text almost certainly names a missing folder."""
    if text.startswith(("/", "./", "../", "~")):
        return True
    # `black/white` is a description; `outputs/typo` is a path if `outputs` exists.
    return "/" in text and not re.search(r"\s", text) and os.path.isdir(os.path.dirname(text))


def _is_unseen(character: str) -> bool:
    """Return whether a character is invisible and not needed by words or emoji."""
    if character in " \u200c\u200d":  # joiners: Persian, Hindi, emoji
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs")


def _visible(name: str) -> str:
    """Return a word without invisible characters, and with hyphens for the spaces in it."""
    text = "".join(" " if c.isspace() else c for c in name if c.isspace() or not _is_unseen(c))
    return "-".join(text.split()) or "my-word"


def is_word(name: str, tokens: Container[str]) -> bool:
    """Return whether a concept's name is a single token of a base model, such as `cat`."""
    return name in tokens or f"{name.lower()}</w>" in tokens


def word_problem(name: str, tokens: Container[str] = ()) -> str | None:
    """Return why `name` cannot be a concept beside the vocabulary `tokens`; None if it can.

    The same rule applies to words to be learned, words in files and new words for files.
    """
    if not name.strip() or name != name.strip():
        return f"concept {name[:MAX_WORD]!r} is empty or has spaces around it; give it a word"
    if len(name) > MAX_WORD:
        return (
            f"concept {name[:20]!r} ... has {len(name)} characters, more than {MAX_WORD}; give it "
            "a shorter word"
        )
    if unseen := next(filter(_is_unseen, name), None):
        return (
            f"concept {name!r} has an invisible character, {unseen!a}, which nobody can type in a "
            f"prompt; give it a word such as {_visible(name)!r}"
        )
    if is_word(name, tokens):
        return (
            f"concept {name!r} is already a word of the tokenizer and would lose its meaning; "
            f"choose a new word such as {name + '-concept'!r}"
        )
    return None
