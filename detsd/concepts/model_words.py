"""The words of a model's captions, as listed in its folder's `vocabulary.json`."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from detsd.utils.paths import resolve

logger = logging.getLogger("detsd")

VOCABULARY = "vocabulary.json"


@dataclass(frozen=True)
class ModelVocabulary:
    """The words of a model's captions, as listed in its folder's `vocabulary.json`."""

    words: frozenset[str]
    lists: dict[str, list[str]]  # media, objects, colors, grounds, compositions, where listed

    @staticmethod
    def of(model: str) -> ModelVocabulary | None:
        """Read the vocabulary in a model's folder; None if it has none, as for hub models."""
        path = Path(resolve(model)) / VOCABULARY
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            lists = {name: list(map(str, words)) for name, words in table.items()}
        except (FileNotFoundError, NotADirectoryError):  # a hub model, or a single file
            return None
        except (OSError, ValueError, AttributeError, TypeError) as error:
            logger.warning("%s cannot be read and is left out (%s)", path, error)
            return None
        return ModelVocabulary(frozenset(w.lower() for w in lists.pop("words", [])), lists)

    def unknown(self, text: str) -> list[str]:
        """Return the words of a text that occur in no caption, each once."""
        found = dict.fromkeys(re.findall(r"[^\W\d_]+(?:[-'’][^\W_]+)*", text.lower()))
        return [w for w in found if self.words and not {w} & self.words
                and not set(w.split("-")) <= self.words]  # fmt: skip
