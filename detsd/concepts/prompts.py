"""Prompts that name concepts: rewriting, misspellings, attention weights."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detsd.concepts.vocabulary import Vocabulary


class PromptRewriter:
    """Replaces concept words by their placeholder tokens: one pass, longest word first.

    A word counts only where no letter, digit, underscore or hyphen touches it, so `det-logo` is
    left alone inside `det-logo-demo`. What was put in is not looked at again.
    """

    def __init__(self, replacements: dict[str, str]):
        self.replacements = dict(replacements)
        words = sorted(self.replacements, key=len, reverse=True)
        self._pattern = re.compile(
            r"(?<![\w-])(?:" + "|".join(map(re.escape, words)) + r")(?![\w-])" if words else r"(?!)"
        )

    def __call__(self, prompt: str) -> str:
        return self._pattern.sub(lambda match: self.replacements[match[0]], prompt)

    def without(self, prompt: str) -> str:
        """Return the prompt with every concept word taken out."""
        return self._pattern.sub(" ", prompt)

    def words_in(self, prompt: str) -> list[str]:
        """Return the concept words that occur in a prompt, in order."""
        return self._pattern.findall(prompt)


def misspelled_concepts(prompt: str, names: list[str], is_word: Callable[[str], bool]) -> list[str]:
    """Return a sentence for each word of a prompt that may be a misspelled concept.

    Args:
        names: of the concepts that are loaded.
        is_word: whether the base model's vocabulary has a word.
    """
    rest = PromptRewriter(dict.fromkeys(names, "")).without(prompt)
    likenesses = []
    for name in names:  # but for case, hyphens and spaces
        pattern = r"[\s_-]*".join(map(re.escape, re.split(r"[\s_-]+", name)))
        spelt = rf"(?<![\w-]){pattern}(?![\w-])"
        likenesses += re.findall(spelt, rest, re.IGNORECASE)
        rest = re.sub(spelt, " ", rest, flags=re.IGNORECASE)
    folded = [name.casefold() for name in names]
    for word in re.findall(r"\w+(?:-\w+)*", rest):
        near = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
        if near and not is_word(word):
            likenesses.append(word)
    return [
        f"the prompt {prompt!r} says {word!r}, which is no loaded concept "
        f"(loaded: {', '.join(names)})"
        for word in dict.fromkeys(likenesses)
    ]


# `(word:1.3)` as A1111 has it, and compel's `(word)1.3`; no time of day and no ratio like (16:9).
WEIGHTED = re.compile(
    r"\((?=[^()\[\]]*[^\W\d])([^()\[\]:]*)(?::\s*(?:\d?\.\d+|\d)\s*\)|\)\d?\.\d+)"
)


def unweighted(prompt: str) -> str:
    """Remove the weights of words, which the model would read as words."""
    while (bare := WEIGHTED.sub(r"\1", prompt)) != prompt:  # from the innermost outwards
        prompt = bare
    return prompt


def unsupported_weights(prompt: str) -> list[str]:
    """Return a sentence where a prompt weights words in the syntax of other programs."""
    found = []
    if unweighted(prompt) != prompt:
        found.append(
            f"the prompt {prompt!r} weights words, which detsd does not support: it reads "
            f"{unweighted(prompt)!r}"
        )
    if marks := re.findall(r"\[[^\[\]]+\]|\(\([^()]+\)\)", prompt):
        found.append(
            f"the prompt {prompt!r} has {' '.join(marks)}, which other programs take for a "
            "weight and the model for brackets; leave the brackets out"
        )
    return found


def truncated(prompt: str, vocabulary: Vocabulary, name: str = "prompt") -> list[str]:
    """Return a sentence where a prompt is longer than the 77 tokens that the model reads."""
    if vocabulary.fits_without_tokenizing(prompt):
        return []
    window, length = vocabulary.window, vocabulary.length(prompt)
    if length <= window:
        return []
    lost = vocabulary.truncated_concepts(prompt)
    also = f", concept {', '.join(lost)} among them" if lost else ""
    return [
        f"the {name} {textwrap.shorten(prompt, 80, placeholder=' ...')!r} has {length} tokens "
        f"and the model reads {window}: its last words are cut off{also}; shorten it"
    ]


def prompt_warnings(prompt: str, vocabulary: Vocabulary, spelling: bool = True) -> list[str]:
    """Return a sentence for each misspelled concept, attention weight and truncated end.

    Args:
        spelling: False where the spelling of concepts does not matter, or was checked before.
    """
    names = vocabulary.names if spelling else []
    found = misspelled_concepts(prompt, names, vocabulary.is_word)
    return found + unsupported_weights(prompt) + truncated(prompt, vocabulary)
