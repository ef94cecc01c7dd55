"""Parse where a concept is: a file, a folder of a checkpoint or run, or a cluster's checkpoint.

Imports no library that takes long to load, so that a mistake is reported before any is.
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

LAYOUTS = ("diffusers", "a1111", "kohya", "sdxl", "onetrainer", "detsd")  # that can be written

SUFFIXES = (".safetensors", ".pt", ".bin", ".pth", ".ckpt", ".png", ".webp")  # of concept files

MAX_WORD = 100  # characters

HINT = "name a concept file, a checkpoint or a run folder"

UUID = re.compile(r"(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class ConceptSource:
    """A path, or a checkpoint of a cluster, and the word for its only concept."""

    path: Path  # concept file, checkpoint's folder, or run's folder
    word: str = ""  # the new word, for the only concept or for `old`; "" for the words in the file
    uuid: str = ""  # the checkpoint, in place of a path
    old: str = ""  # the word in the file that `word` replaces; "" for the only one
    model: str = ""  # of the cluster's registry, `name` or `name:version`, in place of a path

    @classmethod
    def parse(cls, source: str | Path | ConceptSource) -> ConceptSource:
        """Parse a path, uuid, `uuid:...` or `model:...`, with `=word`, `=old=word` or without."""
        if isinstance(source, ConceptSource):
            return source
        text = str(source)
        if os.path.exists(text):
            return cls(Path(text))
        place, _, words = text.partition("=")
        old, _, word = map(str.strip, words.rpartition("="))
        if place.startswith("model:"):
            return cls(Path(), word, old=old, model=place.removeprefix("model:"))
        if place.startswith("uuid:") or UUID.fullmatch(place):
            # In lower case, as checkpoints are cached here.
            return cls(Path(), word, place.removeprefix("uuid:").lower(), old)
        path, _, word = text.rpartition("=")  # the path itself may have a "="
        if word.strip() and _is_path(path):
            return cls(Path(path), word.strip())
        path, _, old = path.rpartition("=")
        if word.strip() and old.strip() and _is_path(path):
            return cls(Path(path), word.strip(), old=old.strip())
        return cls(Path(text))

    @classmethod
    def looks_like(cls, text: str) -> bool:
        """Return whether a text names a file or folder, existing or missing, and is no phrase."""
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
        """The concept file; for a run's folder, that of the best checkpoint, or else of the newest.

        A checkpoint of a cluster is downloaded once.
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
        """The source with the uuid that a model of the registry stands for now."""
        if not self.model:
            return self
        from detsd.runs.registry import find_version  # late: it imports determined

        return dataclasses.replace(self, uuid=find_version(self.model)[0], model="")

    @property
    def located(self) -> ConceptSource:
        """The source with its file in place of a folder."""
        return dataclasses.replace(self, path=self.file, uuid="", model="")

    def problems(self, key: str, beside: Path | None = None) -> list[str]:
        """Return what is wrong with the path; the content of its file is not read."""
        if self.uuid and (problem := uuid_problem(self.uuid)):
            return [f"{key}: {problem}"]
        try:
            _ = self.uuid or self.model or self.file  # nothing is downloaded for this
        except UserError as error:
            there = os.path.exists(self.path)  # False also for names too long for a file
            return [f"{key}: {error}" + ("" if there else looked(str(self), beside))]
        return []


def _is_path(text: str) -> bool:
    """Return whether a text names a file or folder, existing or missing."""
    return os.path.exists(text) or Path(text).suffix.lower() in SUFFIXES


def _reads_as_path(text: str) -> bool:
    """Return whether a text can hardly be anything but the name of a missing folder."""
    if text.startswith(("/", "./", "../", "~")):
        return True
    # `black/white` describes; `outputs/typo`, in a folder that exists, does not.
    return "/" in text and not re.search(r"\s", text) and os.path.isdir(os.path.dirname(text))


def _is_unseen(character: str) -> bool:
    """Return whether a character is invisible and none that words or emoji need."""
    if character in " \u200c\u200d":  # joiners: Persian, Hindi, emoji
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs")


def _visible(name: str) -> str:
    """Return a word without its invisible characters; between parts, they become hyphens."""
    text = "".join(" " if c.isspace() else c for c in name if c.isspace() or not _is_unseen(c))
    return "-".join(text.split()) or "my-word"


def is_word(name: str, tokens: Container[str]) -> bool:
    """Return whether a concept's name is one token of a base model's vocabulary, as `cat` is."""
    return name in tokens or f"{name.lower()}</w>" in tokens


def word_problem(name: str, tokens: Container[str] = ()) -> str | None:
    """Return why `name` cannot be a concept beside the vocabulary `tokens`; None if it can.

    The same rule holds for words to be learned, words in files and words given to files.
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
