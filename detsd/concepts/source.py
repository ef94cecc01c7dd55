"""Parse where a concept lies: a file, a folder of a checkpoint or run, or a cluster's checkpoint.

Imports no library that takes long, so that a mistake is reported before any is loaded.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from detsd.runs.folder import DICT_FILE, RunFolder
from detsd.utils.errors import UserError
from detsd.utils.paths import looked

LAYOUTS = ("diffusers", "a1111", "kohya", "sdxl", "onetrainer", "detsd")  # that can be written

SUFFIXES = (".safetensors", ".pt", ".bin", ".pth", ".ckpt", ".png")  # that a concept file may have

HINT = "name a concept file, a checkpoint or a run folder"

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class ConceptSource:
    """A path, or a checkpoint of a cluster, and the word for its only concept.

    Attributes:
        path: concept file, checkpoint's folder, or run's folder.
        word: "" for the word that the file has.
        uuid: the checkpoint, in place of a path; else "".
    """

    path: Path
    word: str = ""
    uuid: str = ""

    @classmethod
    def parse(cls, source: str | Path | ConceptSource) -> ConceptSource:
        """Parse `path`, `path=word`, `uuid`, `uuid=word`, or one of the last two after `uuid:`."""
        if isinstance(source, ConceptSource):
            return source
        text = str(source)
        uuid, _, word = text.removeprefix("uuid:").partition("=")
        if text.startswith("uuid:") or (UUID.fullmatch(uuid) and not os.path.exists(text)):
            return cls(Path(), word.strip(), uuid)
        if not os.path.exists(text):
            path, _, word = text.rpartition("=")
            if path and word.strip() and _is_path(path):
                return cls(Path(path), word.strip())
        return cls(Path(text))

    @classmethod
    def looks_like(cls, text: str) -> bool:
        """Return whether a text names a file or folder, there or missing, and is no phrase."""
        return _is_path(text) or bool((source := cls.parse(text)).word and not source.uuid)

    def __str__(self) -> str:
        where = f"uuid:{self.uuid}" if self.uuid else str(self.path)
        return f"{where}={self.word}" if self.word else where

    @property
    def file(self) -> Path:
        """The concept file; for a run's folder that of the best checkpoint, else of the newest.

        A checkpoint of a cluster is downloaded once.
        """
        path = self.path
        if self.uuid:
            from detsd.runs.download import cached_checkpoint  # late: it imports determined

            path = cached_checkpoint(self.uuid)
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
    def located(self) -> ConceptSource:
        """The source with its file in place of a folder."""
        return dataclasses.replace(self, path=self.file, uuid="")

    def problems(self, key: str, beside: Path | None = None) -> list[str]:
        """Return what is wrong with the path; the content of its file is not read."""
        try:
            _ = self.uuid or self.file  # a checkpoint is not downloaded for this
        except UserError as error:
            there = os.path.exists(self.path)  # False also for names too long for a file
            return [f"{key}: {error}" + ("" if there else looked(str(self), beside))]
        return []


def _is_path(text: str) -> bool:
    """Return whether a text names a file or folder, there or missing."""
    return os.path.exists(text) or Path(text).suffix.lower() in SUFFIXES


def is_word(name: str, tokens: Container[str]) -> bool:
    """Return whether a concept's name is one token of a base model's vocabulary, as `cat` is."""
    return name in tokens or f"{name.lower()}</w>" in tokens


def word_problem(name: str, tokens: Container[str]) -> str | None:
    """Return why `name` cannot be a concept beside the vocabulary `tokens`, None if it can."""
    if not name.strip() or name != name.strip():
        return f"concept {name!r} is empty or has spaces around it; give it a word"
    if is_word(name, tokens):
        return (
            f"concept {name!r} is already a word of the tokenizer and would lose its meaning; "
            f"choose a new word such as {name + '-concept'!r}"
        )
    return None
