"""Find the values of an experiment file that a cluster and detsd read differently.

Determined's master reads YAML 1.1 with go-yaml 2.4.0; `det` and detsd read 1.2 with ruamel.yaml.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from detsd.config.yaml_text import bounded_parser

PLAIN_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?")  # which all read the same way

BOOLEANS = {
    form: value
    for value, words in ((True, "y yes on true"), (False, "n no off false"))
    for word in words.split()
    for form in (word, word.title(), word.upper())
}

NULLS = ("", "~", "null", "Null", "NULL")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
INTEGER = re.compile(
    "([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[oO]([0-7]+)|0[bB]([01]+)|0([0-7]*)|([1-9][0-9]*))"
)
BASES = (16, 8, 2, 8, 10)  # of the groups of INTEGER
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
AFTER_A_DOT = re.compile(r"\.[0-9](_?[0-9])*([eE][-+]?[0-9](_?[0-9])*)?")

NO_VALUE = "no value"


def cluster_value(text: str) -> Any:
    """Return a plain scalar as the master reads it, by `resolve` of go-yaml 2.4.0; dates stay text.

    The master then refuses infinity and NaN, since it continues with JSON.
    """
    if text in BOOLEANS:
        return BOOLEANS[text]
    if text in NULLS:
        return None
    if NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    if re.match("[-+0-9]", text):
        text_or_number = text.replace("_", "")
        if found := INTEGER.fullmatch(text_or_number):
            sign, *digits = found.groups()
            base, given = next((b, d) for b, d in zip(BASES, digits, strict=True) if d is not None)
            value = int(f"{sign}{given or 0}", base)
            if -(2**63) <= value < 2**64:
                return value
    elif AFTER_A_DOT.fullmatch(text):
        text_or_number = text.replace("_", "")
    else:
        return text
    if FLOAT.fullmatch(text_or_number) and math.isfinite(value := float(text_or_number)):
        return value
    return text


def disagreements(text: str) -> list[str]:
    """Return a sentence for each place of a YAML text that a cluster and detsd read differently."""
    yaml = bounded_parser()
    return [*_compared(yaml.compose(text), "", yaml.constructor, text, set())]


def _compared(node: Any, key: str, constructor: Any, text: str, seen: set[int]) -> Iterator[str]:
    """Compare a ruamel node and those below it; `seen` are those with an anchor."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if node.id == "scalar":
        tag = re.match(r"(&\S+\s+)?!", text[node.start_mark.index : node.end_mark.index])
        if not (node.style or tag or PLAIN_NUMBER.fullmatch(node.value)):
            try:
                here = constructor.construct_object(node)
            except Exception:  # from several libraries: a date without a day, a single "="
                here = math.nan
            there = cluster_value(node.value)
            if here != there or isinstance(here, bool) != isinstance(there, bool):
                yield _sentence(key, node.value, here, there)
        return
    below: set[str] = set()  # keys so far
    for place, item in enumerate(node.value):
        if node.id == "sequence":
            yield from _compared(item, f"{key}[{place}]", constructor, text, seen)
            continue
        name, value = item
        inside = f"{key}.{name.value}".lstrip(".")
        if name.value == "<<" and not name.style:
            bases = value.value if value.id == "sequence" else [value]
            merged = {n.value for base in bases if base.id == "mapping" for n, _ in base.value}
            for twice in sorted(below & merged):
                yield (
                    f"{key}.{twice} is replaced by the value from << on a cluster, but not by "
                    "detsd; write << above it"
                )
        else:
            below.add(str(name.value))
            yield from _compared(name, f"the key {inside}", constructor, text, seen)
        yield from _compared(value, inside, constructor, text, seen)


def _sentence(key: str, text: str, here: Any, there: Any) -> str:
    """Describe how each reader understands a scalar, and how to write either meaning."""
    ways = [_meaning(v) for v in (here, there) if isinstance(v, bool | int | float)]
    return (
        f"{key}: {text} is {_meaning(here)} to detsd and {_meaning(there)} to a cluster; write "
        + "".join(f"{way}, or " for way in ways if way != NO_VALUE)
        + f'"{text}" for the string'
    )


def _meaning(value: Any) -> str:
    if isinstance(value, str):
        return "a string"
    if isinstance(value, float) and not math.isfinite(value):
        return NO_VALUE
    simple = value is None or isinstance(value, bool | int | float)
    return json.dumps(value) if simple else "a date"
