"""Write docs/configuration.md from the configuration's classes: python -m dev.configuration"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import yaml

from detsd.config import KINDS, REQUIRED, type_name

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration

Written by `python -m dev.configuration` from the classes in `detsd/config.py`; a test keeps it so.

Everything here stands under `hyperparameters` of an experiment file, so that Determined's searchers
can vary any of it. Off cluster `--set section.key=value` changes a value on the command line.
Where a list is asked for, a single value is taken for a list of one. Unknown keys are refused, with
the nearest known one.
"""


def reference() -> str:
    """The page: a table per section of every kind of experiment."""
    lines = [HEAD]
    for kind, (_, _, command) in KINDS.items():
        lines += [f"## python -m detsd {command}", ""]
        hints = typing.get_type_hints(kind)
        for section in dataclasses.fields(kind):
            lines += _table(f"{command}: {section.name}", hints[section.name])
    return "\n".join(lines).rstrip() + "\n"


def _table(title: str, section: type) -> list[str]:
    lines = [f"### {title}", "", section.__doc__.split("\n")[0], ""]
    lines += ["| key | value | default | |", "|---|---|---|---|"]
    hints = typing.get_type_hints(section)
    for spec in dataclasses.fields(section):
        cells = [f"`{spec.name}`", _kind(hints[spec.name], spec.metadata), _default(spec)]
        lines.append("| " + " | ".join([*cells, spec.metadata["help"]]) + " |")
    return [*lines, ""]


def _kind(kind: typing.Any, bounds: typing.Mapping) -> str:
    text = type_name(kind)
    if bounds["low"] is not None:
        text += f", {bounds['low']:g} at least"
    if bounds["high"] is not None:
        text += f", {bounds['high']} at most"
    if bounds["above"] is not None:
        text += f", more than {bounds['above']:g}"
    return text


def _default(spec: dataclasses.Field) -> str:
    if spec.default_factory is not REQUIRED:
        value = spec.default_factory()
    elif spec.default is REQUIRED:
        return "must be given"
    else:
        value = spec.default
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return f"`{text.removesuffix(chr(10)).removesuffix('...').strip()}`"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
