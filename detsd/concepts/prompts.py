"""Prompts that name concepts: rewriting, misspellings, attention weights."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from detsd.concepts import weights

if TYPE_CHECKING:
    from detsd.concepts.vocabulary import Vocabulary


class PromptRewriter:
    """A function that replaces concept words with their tokens: one pass, longest word first.

    A word matches only if no letter, digit, underscore or hyphen touches it, so `det-logo` is left
    alone inside `det-logo-demo`. Replacements are not searched again.
    """

    def __init__(self, replacements: dict[str, str]):
        self.replacements = dict(replacements)
        words = sorted(self.replacements, key=len, reverse=True)
        self._words = "|".join(map(re.escape, words)) or "(?!)"
        self._pattern = re.compile(rf"(?<![\w-])(?:{self._words})(?![\w-])")

    def __call__(self, prompt: str) -> str:
        return self._pattern.sub(lambda match: self.replacements[match[0]], prompt)

    @functools.cached_property
    def grammar(self) -> re.Pattern:
        """The pattern of weights and these words in prompts."""
        return weights.grammar(self._words)

    def masked(self, prompt: str) -> str:
        """Return the prompt with every character of concepts and escaped brackets as an x."""
        hidden = ("word", "a", "b", "c", "escaped")
        return self.grammar.sub(
            lambda found: "x" * len(found[0]) if found.lastgroup in hidden else found[0], prompt
        )

    def without(self, prompt: str) -> str:
        """Return the prompt with every concept word removed."""
        return self._pattern.sub(" ", prompt)

    def cut_before(self, prompt: str) -> str:
        """Return a prompt from its first concept word on, or all of it if it has none."""
        found = self._pattern.search(prompt)
        return prompt[found.start() :] if found else prompt

    def words_in(self, prompt: str) -> list[str]:
        """Return the concept words that occur in a prompt, in order."""
        return self._pattern.findall(prompt)


def misspelled_concepts(prompt: str, names: list[str], is_word: Callable[[str], bool]) -> list[str]:
    """Return a sentence for each word of a prompt that may be a misspelled concept.

    `names` are those of the loaded concepts; `is_word` recognises words of the base vocabulary.
    """
    rest = PromptRewriter(dict.fromkeys(names, "")).without(prompt)
    rest = re.sub(UNSUPPORTED[0][0], " ", rest)  # the names of LoRAs are not words
    likenesses = []
    for name in names:  # equal except for case, hyphens and spaces
        pattern = r"[\s_-]*".join(map(re.escape, re.split(r"[\s_-]+", name)))
        spelt = rf"(?<![\w-]){pattern}(?![\w-])"
        likenesses += re.findall(spelt, rest, re.IGNORECASE)
        rest = re.sub(spelt, " ", rest, flags=re.IGNORECASE)
    folded = tuple(name.casefold() for name in names)
    for word in re.findall(r"\w+(?:-\w+)*", rest):
        if _is_near(word.casefold(), folded) and not is_word(word):
            likenesses.append(word)
    return [
        f"the prompt {prompt!r} says {word!r}, which is not a loaded concept "
        f"(loaded: {', '.join(names)})"
        for word in dict.fromkeys(likenesses)
    ]


@functools.lru_cache(4096)  # the prompts of a run share most of their words
def _is_near(word: str, names: tuple[str, ...]) -> bool:
    return bool(difflib.get_close_matches(word, names, n=1, cutoff=0.6))


# In training prompts: A1111's `(word:1.3)` and compel's `(word)1.3`, but no ratio like (16:9).
WEIGHTED = re.compile(
    r"\((?=[^()\[\]]*[^\W\d])([^()\[\]:]*)(?::\s*(?:\d?\.\d+|\d)\s*\)|\)\d?\.\d+)"
)


def unweighted(prompt: str) -> str:
    """Remove the weights from a prompt, because the model would read them as words."""
    while (bare := WEIGHTED.sub(r"\1", prompt)) != prompt:  # from the innermost outwards
        prompt = bare
    return prompt


# Syntax of other programs: a pattern, its meaning there, and its effect here.
WORDS, TEXT = "read as words", "read as text"
UNSUPPORTED = (
    (r"<(?!embed:)\w+:[^<>]+>", "a LoRA, another network or a wildcard in other tools", "left out"),
    (r"<embed:[^<>]+>", "an embedding that is not loaded", "left out"),
    (r"(?<![\w-])embedding:[^\s,:()]+", "an embedding of ComfyUI that is not loaded", WORDS),
    (r"\bAND\b", "two prompts at once in A1111", WORDS),
    (r"\bADD(?:COMM|BASE|ROW|COL)\b", "prompts for regions in A1111", WORDS),
    (r"\{[^{}|]*\|[^{}]*\}", "a choice of words in other tools", WORDS),
    (r"\{[^{}|]+\}", "a weight in NovelAI", TEXT),
    (r"__[\w*/-]+?__", "a wildcard in other tools", WORDS),
    (r"\[[^\[\]]*:\s*[0-9.]+\s*\]", "a change of the prompt between steps in A1111", WORDS),
    (r"\[[^\[\]|]*\|[^\[\]]*\]", "words that alternate between steps in A1111", WORDS),
    (
        r"(?<!\w)(?:\w+(?:\+\++|--+)|[^\W\d_]{3,}\+)(?![\w+-])|\)(?:\++|-+)(?![\w+-])",
        "a weight in compel and InvokeAI",
        f"{TEXT}; (word:1.2) is a weight",
    ),
    (r"\)\.(?:and|blend|swap|or)\(", "several prompts at once in compel", WORDS),
    (r"\bwithLora\(", "a LoRA in InvokeAI", WORDS),
    (r"(?<!\S)--[a-z]\S*(?:\s+[\w:.]+)?", "an option of Midjourney", WORDS),
    (r"\w::-?[0-9.]+", "a weight in Midjourney", f"{TEXT}; (word:1.2) is a weight"),
)


def unsupported_syntax(
    prompt: str, names: list[str], weighted: bool = True, name: str = "prompt"
) -> dict[str, str]:
    """Return a sentence for each kind of other programs' syntax in a prompt, keyed by the kind.

    Args:
        names: the loaded concepts, inside which nothing is searched.
        weighted: False for prompts that are read without weights, such as captions.
        name: the term for the prompt in the sentences.
    """
    masked = PromptRewriter(dict.fromkeys(names, "")).masked(prompt)
    found = {}
    for pattern, meaning, effect in UNSUPPORTED:
        spans = [mark.span() for mark in re.finditer(pattern, masked)]
        if spans:
            shown = ", ".join(dict.fromkeys(prompt[a : min(b, a + 40)] for a, b in spans[:3]))
            effect = effect if weighted else effect.replace("left out", WORDS)
            found[meaning] = (
                f"the {name} {_short(prompt)} has {shown} ({meaning}), which detsd does not "
                f"support: it is {effect}"
            )
    return found


def without_syntax(prompt: str) -> str:
    """Remove `BREAK` and all syntax that `unsupported_syntax` reports from a prompt."""
    for pattern in (r"\bBREAK\b", *(pattern for pattern, *_ in UNSUPPORTED)):
        prompt = re.sub(pattern, " ", prompt)
    return prompt


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 80 else f"{prompt[:76]} ...")


def prompt_warnings(
    prompt: str,
    vocabulary: Vocabulary,
    spelling: bool = True,
    weighted: bool = True,
    name: str = "prompt",
    told: set[str] | None = None,
) -> list[str]:
    """Return a sentence for each misspelled concept, unsupported syntax and ignored part.

    Args:
        spelling: False if the spelling of concepts does not matter, or was checked before.
        weighted: False if the prompt is read without weights, and cut off.
        name: the term for the prompt in the sentences.
        told: warnings already reported, which are left out; new ones are added to it.
    """
    names, told = vocabulary.names, set() if told is None else told
    spelt = misspelled_concepts(prompt, names if spelling else [], vocabulary.is_word)
    found = {sentence: sentence for sentence in spelt}
    found |= unsupported_syntax(prompt, names, weighted, name)
    if not weighted:
        if unweighted(prompt) != prompt:
            found["weights"] = f"the {name} {_short(prompt)} has weights, which are ignored here"
        if not vocabulary.fits(prompt):
            lost = vocabulary.truncated_concepts(prompt)
            also = f", concept {', '.join(lost)} among them" if lost else ""
            sentence = (
                f"the {name} {_short(prompt)} has {vocabulary.length(prompt)} tokens but the model "
                f"reads {vocabulary.window}, so its last words are cut off{also}; shorten it"
            )
            found[sentence] = sentence
    elif vocabulary.has_extreme_weights(prompt):
        found["extreme"] = (
            f"the {name} {_short(prompt)} has weights beyond {weights.MAX_WEIGHT:g}, which are "
            "limited to it; images fall apart above about 2"
        )
    new = [sentence for kind, sentence in found.items() if kind not in told]
    told.update(found)
    return new
