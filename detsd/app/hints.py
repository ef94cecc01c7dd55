"""ModelVocabulary that the bundled model knows, and example prompts made of them."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from detsd.utils.paths import resolve

logger = logging.getLogger("detsd")

EXAMPLES = (
    "a photo of a {} on a white background",
    "a watercolor painting of a {} on a night sky",
    "an oil painting of a {} on ocean waves",
    "a neon picture of a {} on a brick wall",
)

STYLE_EXAMPLES = (
    "a cat in the style of {}",
    "a red star in the style of {}",
    "a house on a night sky in the style of {}",
    "a tree on a white background in the style of {}",
)

VOCABULARY = "vocabulary.json"


# ---- what a model can draw -----------------------------------------------------------------------


@dataclass(frozen=True)
class ModelVocabulary:
    """The words that a model's captions were made of, as its folder's `vocabulary.json` lists."""

    words: frozenset[str]
    lists: dict[str, list[str]]  # media, objects, colors, grounds, compositions, as far as told

    @staticmethod
    def of(model: str) -> ModelVocabulary | None:
        """Those of a model's folder; None where it tells none, as models of the hub."""
        path = Path(resolve(model)) / VOCABULARY
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            lists = {name: list(map(str, words)) for name, words in table.items()}
        except (FileNotFoundError, NotADirectoryError):  # of the hub, or a single file
            return None
        except (OSError, ValueError, AttributeError, TypeError) as error:
            logger.warning("%s cannot be read and is left out (%s)", path, error)
            return None
        return ModelVocabulary(frozenset(w.lower() for w in lists.pop("words", [])), lists)

    def unknown(self, text: str) -> list[str]:
        """The words of a text that are in no caption, each once."""
        if not self.words:
            return []
        found = dict.fromkeys(re.findall(r"[^\W\d_]+(?:[-'’][^\W_]+)*", text.lower()))
        return [
            word
            for word in found
            if word not in self.words and not set(word.split("-")) <= self.words
        ]
