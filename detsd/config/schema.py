"""Fields with help texts and bounds, and the parser of mappings into dataclasses of such fields.

A scalar counts as a list of one, so that Determined's searchers can vary any field. All problems
are reported together.
"""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import field
from pathlib import Path
from typing import Any, Literal


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    path: Callable[[str, Path | None], str] | None = None,
) -> Any:
    """Declare a field with its help text and bounds: `low` and `high` are allowed, `above` is not.

    A value above `high` can only be a mistake, which would fill the memory before it is noticed.
    `path` resolves a path: `find`, which looks beside the configuration first, or a like function.
    """
    meta = {"help": help, "low": low, "above": above, "high": high, "path": path}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=meta)
    return field(default=default, metadata=meta)


REQUIRED = dataclasses.MISSING
MAX_SEED = 2**32 - 1  # PyTorch uses only 32 bits
MAX_SIDE = 8192  # pixels of an image
MAX_FILE_NAME = 255  # bytes, in every file system in use
MAX_UNKNOWN = 20  # unknown keys of a section in a message; each suggestion takes a millisecond


class Section:
    """A part of a configuration: a frozen dataclass whose fields are `setting`s."""

    def completed(self) -> Any:
        """Return the section with values derived where its fields leave them open."""
        return self

    def problems(self) -> list[str]:
        """Return what is wrong beyond the types and bounds of single fields."""
        return []


class Source(str):
    """A concept's source, as `detsd.concepts.source` reads it; in YAML also `{path: word}`."""


SchedulerName = Literal[
    "ddim",
    "pndm",
    "lms-discrete",
    "euler",
    "euler-ancestral",
    "dpmsolver++",
    "dpmsolver++-karras",
    "dpmsolver++-sde",
    "dpmsolver++-sde-karras",
    "unipc",
    "heun",
    "lcm",
]

SpacingName = Literal["leading", "trailing", "linspace"]

LCM_STEPS = 50  # at most: the number that latent consistency models are distilled with

# Help texts of settings that several sections have.
GUIDANCE_INTERVAL_HELP = (
    "[start, stop]: the fractions of the steps between which guidance is applied; the other steps "
    "take half the time; null: guide every step; [0.2, 0.8]"
)
SPACING_HELP = "spacing of the timesteps (lcm has its own); null: the model's own"
PROMPT_WEIGHTS_HELP = (
    "read (word:1.3), [word], BREAK and prompts of any length as A1111 does; false: brackets are "
    "text, and everything beyond 77 tokens is cut off"
)
LINEUP_HELP = (
    "folders of look-alike images, one for each look-alike, to measure how often a sample is "
    "closer to the training images than to any of these"
)


def sampling_problems(
    section: str, interval: list[float] | None, schedulers: list[str], steps: list[int]
) -> list[str]:
    """Return what is wrong with a guidance interval, or with the steps of a sampler."""
    problems = []
    if interval is not None and not (len(interval) == 2 and 0 <= interval[0] < interval[1] <= 1):
        problems.append(
            f"{section}.guidance_interval is {interval} but must be [start, stop] with "
            "0 <= start < stop <= 1"
        )
    if "lcm" in schedulers and max(steps, default=0) > LCM_STEPS:
        problems.append(
            f"{section}.num_inference_steps is {max(steps)}, but the lcm sampler takes at most "
            f"{LCM_STEPS}; use 4 to 8"
        )
    return problems


def repeated(values: Collection[Any]) -> list[Any]:
    """Return the values that occur more than once, in order."""
    return sorted(value for value, times in Counter(values).items() if times > 1)


def closest_key(key: str, kind: type) -> str:
    """Suggest a key of `kind` for an unknown one."""
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    inside = {  # keys of sections, which users may write outside them
        f.name: f"{name}.{f.name}"
        for name in known
        if dataclasses.is_dataclass(hints[name])
        for f in dataclasses.fields(hints[name])
    }
    if close := difflib.get_close_matches(key, inside, n=1, cutoff=0.8):
        return f"did you mean {inside[close[0]]!r}?"
    if close := difflib.get_close_matches(key, known, n=1, cutoff=0.5):
        return f"did you mean {close[0]!r}?"
    return "known keys: " + ", ".join(known)


def closest_choice(value: Any, choices: Collection[Any]) -> str:
    """Suggest a choice for a misspelled one, or for a sampler's name in other programs."""
    known = {choice: choice for choice in map(str, choices)}
    if "euler" in known:
        from detsd.utils.png import SAMPLERS  # late: Pillow's formats

        known |= {other.lower(): name for name, other in SAMPLERS.items()}
    text = str(value)[:MAX_FILE_NAME].lower().replace("_", "-")
    close = difflib.get_close_matches(text, known, n=1, cutoff=0.7)
    return f"; did you mean {known[close[0]]!r}?" if close else ""


class YamlWords(reprlib.Repr):
    """A `reprlib.Repr` that writes null, true and false, also inside of lists."""

    def repr_NoneType(self, value: None, level: int) -> str:  # found by the type's name
        """Return YAML's word for None."""
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:
        """Return YAML's word for a truth value."""
        return str(value).lower()


def shown(value: Any, cut: bool = True) -> str:
    """Return a value for a message, in YAML's words (null, true, false), cut to a usual length."""
    words = YamlWords()
    if not cut:
        for name in ("maxlist", "maxdict", "maxstring", "maxlong", "maxother", "maxlevel"):
            setattr(words, name, sys.maxsize)
    return words.repr(value)


def type_name(kind: Any) -> str:
    """Describe a field's type in words."""
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    names[Source] = "a string, or {string: word}"  # a path, a uuid or a model's name
    if typing.get_origin(kind) is Literal:
        choices = ", ".join(map(str, typing.get_args(kind)))
        return f"one of {choices}" if typing.get_args(kind)[1:] else choices
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        lists = [option for option in options if typing.get_origin(option) is list]
        if lists:  # last: `or null` would seem to be said of its items
            others = [option for option in options if option not in lists]
            return ", or ".join(map(type_name, [*others, *lists]))
        return " or ".join(map(type_name, options))
    if typing.get_origin(kind) is list:
        return f"a list, each item {type_name(typing.get_args(kind)[0])}"
    return names.get(kind, "null" if kind is types.NoneType else str(kind))


def _whole(text: str) -> str:
    """Join the halves of an emoji that JSON writes as two escapes; refuse a single half."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("a string without half an escaped emoji; write both halves") from None


def _value(kind: Any, value: Any) -> Any:
    """Return `value` as `kind`, or raise ValueError saying what was expected."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        for option in typing.get_args(kind):
            try:
                return _value(option, value)
            except ValueError:
                pass
        raise ValueError(type_name(kind))
    if origin is list:
        (item,) = typing.get_args(kind)
        try:
            return [_value(item, v) for v in (value if isinstance(value, list) else [value])]
        except ValueError as expected:
            if isinstance(value, list):
                raise ValueError(f"a list, each item {expected}") from None
            raise ValueError(f"{expected}, or a list of such in square brackets") from None
    if origin is Literal:
        choices = typing.get_args(kind)
        if value in choices:
            return value
        raise ValueError(type_name(kind) + closest_choice(value, choices))
    if kind is types.NoneType and value is None:
        return None
    if kind is bool and isinstance(value, bool):
        return value
    if kind is Source and isinstance(value, dict) and len(value) == 1:
        ((path, word),) = value.items()
        if isinstance(path, str) and isinstance(word, str):
            return Source(_whole(f"{path}={word}"))
        if isinstance(path, str) and isinstance(word, dict) and len(word) == 1:
            ((old, new),) = word.items()
            if isinstance(old, str) and isinstance(new, str):
                return Source(_whole(f"{path}={old}={new}"))
    if kind in (str, Source) and isinstance(value, str):
        return _whole(value)
    if kind is str and isinstance(value, bool):
        raise ValueError(
            "a string; to a cluster, yes, no, on, off, y and n are true or false without quotes, "
            "and also with quotes if --config was given"
        )
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int and is_number and not abs(value) < 2**63:
        raise ValueError("a whole number of at most 18 digits")
    # Determined delivers whole floats as ints, and the other way round.
    if kind is int and is_number and float(value).is_integer():
        return int(value)
    if kind is float and is_number and abs(value) < sys.float_info.max:
        return float(value)
    raise ValueError(type_name(kind))


def parse_section(
    kind: type, given: Any, path: str = "", beside: Path | None = None
) -> tuple[Any, list[str]]:
    """Return `given` as the dataclass `kind` (None if anything is wrong), and the problems.

    Args:
        path: the section's path, for messages; "" for a whole configuration.
        beside: the folder in which relative paths are looked up first.
    """
    if not isinstance(given, dict):
        name = path or "it"
        return None, [f"{name} must be a mapping of keys to values, not {shown(given)}"]
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}
    dot = f"{path}." if path else ""
    values, problems = {}, []
    for key in [key for key in given if key not in known][:MAX_UNKNOWN]:
        text = str(key)[:MAX_FILE_NAME]
        problems.append(f"{dot}{text} is not a known key; {closest_key(text, kind)}")
    for name, spec in known.items():
        if name not in given:
            required = spec.default is REQUIRED and spec.default_factory is REQUIRED
            inside = []
            if required and dataclasses.is_dataclass(hints[name]):  # name the keys it must have
                _, inside = parse_section(hints[name], {}, f"{dot}{name}", beside)
                problems += inside
            if required and not inside:
                problems.append(f"{dot}{name} is missing; {spec.metadata.get('help', 'add it')}")
            continue
        if dataclasses.is_dataclass(hints[name]):
            values[name], inside = parse_section(hints[name], given[name], f"{dot}{name}", beside)
            problems += inside
            continue
        try:
            values[name] = _value(hints[name], given[name])
        except ValueError as expected:
            problems.append(f"{dot}{name} is {shown(given[name])} but must be {expected}")
            continue
        if (find := spec.metadata["path"]) and (v := values[name]) is not None:
            values[name] = [find(p, beside) for p in v] if isinstance(v, list) else find(v, beside)
        low, above, high = (spec.metadata[bound] for bound in ("low", "above", "high"))
        every = values[name] if isinstance(values[name], list) else [values[name]]
        for v in (v for v in every if isinstance(v, int | float)):
            if low is not None and v < low:
                problems.append(f"{dot}{name} is {v} but must be at least {low}")
            if high is not None and v > high:
                problems.append(f"{dot}{name} is {v} but must be at most {high}")
            if above is not None and v <= above:
                problems.append(f"{dot}{name} is {v} but must be greater than {above}")
    if problems:
        return None, problems
    section = kind(**values).completed()
    return section, section.problems()


def flat(config: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Flatten a configuration's `asdict` to "section.key" -> value."""
    found = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{path}{key}.")
        else:
            found[f"{path}{key}"] = value
    return found


def differences(old: dict[str, Any], new: dict[str, Any], free: Collection[str] = ()) -> list[str]:
    """Return the keys that differ between two `asdict`s, as "section.key was 1, is 2".

    Keys that did not exist when the old one was written do not count, nor do those in `free`.
    """
    was, now = flat(old), flat(new)
    changed = (key for key in sorted(was) if was[key] != now.get(key) and key not in free)
    return [f"{k} was {shown(was[k], False)}, is {shown(now.get(k), False)}" for k in changed]
