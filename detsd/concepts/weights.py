"""Parse prompts with weights in A1111's syntax into pieces of text and chunks of tokens.

    (word)        weight 1.1, multiplied for each pair of brackets; [word] divides by 1.1
    (word:1.3)    weight 1.3; also (word)1.3, as in compel
    \\( \\) \\[ \\]  literal brackets; unclosed ones are literal, too
    BREAK         the text after it starts a new chunk

A chunk is the 75 tokens that a text encoder reads at once, not counting start and end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detsd.concepts.prompts import PromptRewriter

Piece = tuple[str, float]  # a text, and its weight
Token = tuple[int, float]

BRACKETS = {"(": 1.1, "[": 1 / 1.1}
MAX_WEIGHT = 10.0  # nested brackets soon exceed the range of half precision
BACKTRACK = 20  # tokens of a phrase after a comma that move into the next chunk, as in A1111

# An embedding's name as marked in SwarmUI, InvokeAI and ComfyUI.
MARKED = (
    r"<embed:(?P<a>{0})>|<(?P<b>{0})>|"
    r"(?<![\w-])embedding:(?P<c>{0})(?:\.(?:safetensors|pt|bin))?(?![\w-])"
)
GRAMMAR = (
    r"(?P<tag><\w+:[^<>]+>)|(?P<escaped>\\[()\[\]\\])|(?P<open>[(\[])"
    r"|:\s*(?P<weight>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*\)"
    r"|\)(?P<after>[0-9]?\.[0-9]+)(?![\w.])|(?P<close>[)\]])|(?P<split>\bBREAK\b)"
)


def grammar(words: str) -> re.Pattern:
    """Return the pattern of all syntax; concepts (`words`, an alternation) take precedence."""
    return re.compile(rf"(?<![\w-])(?P<word>{words})(?![\w-])|{MARKED.format(words)}|{GRAMMAR}")


def parse(prompt: str, rewrite: PromptRewriter) -> list[list[Piece]]:
    """Return the pieces of each section of a prompt between BREAKs, with tokens for concepts.

    Weights of nested brackets multiply. A whole number after a digit and a colon is not a weight:
    times such as (at 10:30) and ratios such as (16:9) are text. Tags such as <lora:name:0.8> are
    left out.
    """
    items: list[str | tuple[str, float | None] | None] = []  # texts, brackets, None for BREAK
    opened: dict[str, list[int]] = {"(": [], "[": []}  # positions of open brackets
    end = 0

    def close(kind: str, factor: float) -> None:
        items[opened[kind].pop()] = (kind, factor)
        items.append((kind, None))

    for found in rewrite.grammar.finditer(prompt):
        text = prompt[end : found.start()]
        items.append(text)
        end, name = found.end(), found.lastgroup
        token, value = found[0], found[name]
        if name in ("word", "a", "b", "c"):
            items.append(rewrite.replacements[value])
        elif name == "open":
            opened[value].append(len(items))
            items.append(value)  # text, unless it is closed
        elif name == "close" and opened["(" if value == ")" else "["]:
            kind = "(" if value == ")" else "["
            close(kind, BRACKETS[kind])
        elif name == "weight" and opened["("]:
            empty = not text.strip() and opened["("][-1] == len(items) - 2  # :-( :3)
            if empty or (value.isdecimal() and text[-1:].isdecimal()):
                opened["("].pop()
                items.append(token)
            else:
                close("(", float(value))
        elif name == "after" and opened["("]:
            close("(", float(value))
        elif name == "split":
            items.append(None)
        elif name == "escaped":
            items.append(token[1:])
        elif name != "tag":
            items.append(token)
    return _weighted([*items, prompt[end:]])


def _weighted(items: list[str | tuple[str, float | None] | None]) -> list[list[Piece]]:
    """Multiply the weights from the outside in, and join texts of equal weight."""
    sections: list[list[tuple[list[str], float]]] = [[]]
    weights = {"(": [1.0], "[": [1.0]}
    for item in items:
        if item is None:
            sections.append([])
        elif isinstance(item, tuple):
            kind, factor = item
            if factor is None:
                weights[kind].pop()
            else:
                weights[kind].append(_bounded(weights[kind][-1] * factor))
        elif item:
            weight = _bounded(weights["("][-1] * weights["["][-1])
            if not sections[-1] or sections[-1][-1][1] != weight:
                sections[-1].append(([], weight))
            sections[-1][-1][0].append(item)
    return [[("".join(texts), weight) for texts, weight in section] for section in sections]


def _bounded(weight: float) -> float:
    return math.copysign(min(abs(weight), MAX_WEIGHT), weight)


def split(
    sections: list[list[Token]], room: int, lengths: Mapping[int, int], comma: int | None
) -> list[list[Token]]:
    """Split tokens into chunks of at most `room`, as A1111 does.

    Tokens that do not fit go into the next chunk, together with those after the last comma if they
    are fewer than `BACKTRACK`. The vectors of a concept stay together.

    Args:
        sections: each starts a new chunk.
        lengths: the number of vectors of each concept, by the id of the first.
        comma: the id of a comma.
    """
    chunks: list[list[Token]] = []
    for tokens in sections:
        now: list[Token] = []
        chunks.append(now)
        last_comma, k = -1, 0
        while k < len(tokens):
            length = lengths.get(tokens[k][0], 1)
            group = tokens[k : k + (length if length <= room else 1)]
            k += len(group)
            if len(now) + len(group) > room:
                phrase = now[last_comma + 1 :]
                moves = last_comma >= 0 and group[0][0] != comma and len(phrase) < BACKTRACK
                if not moves or len(phrase) + len(group) > room:
                    phrase = []
                del now[len(now) - len(phrase) :]
                now, last_comma = phrase, -1
                chunks.append(now)
            if group[0][0] == comma:
                last_comma = len(now)
            now += group
    if len(chunks) > 1 and not chunks[-1]:
        chunks.pop()  # after a BREAK at the end
    return chunks
