"""YAML as Determined's own commands parse it, within bounds of size, depth and aliases.

A few hundred bytes of nested aliases can stand for more values than fit into memory, and a list may
contain itself: both are refused during parsing, before anything walks through the values.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 16 * 2**20  # of a file; the parser takes 3 s per MB
MAX_DEPTH = 64  # of nested lists and sections; an experiment has 5
MAX_VALUES = 2**18  # with aliases expanded; a list of 20,000 seeds has 20,001


def read_text(path: Path) -> str:
    """Read a file of bounded size.

    Raises:
        OSError, UnicodeDecodeError: for a file that is not text.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise OSError("it is a folder")
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:  # a device is endless
        raise OSError(f"it is not a file of at most {MAX_BYTES // 2**20} MB")
    return path.read_text()


def parse_yaml(text: str) -> Any:
    """Parse a text; `5e-4` is a number.

    Raises:
        ValueError and others: for text that is not YAML, or exceeds the bounds.
    """
    return bounded_parser().load(text)


def as_yaml(text: str) -> str:
    """Return a text as YAML: in quotes only if it would be read as something else without them."""
    try:
        plain = parse_yaml(text) == text
    except Exception:  # the same ones as `parse_yaml`
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)


def bounded_parser() -> Any:
    """Return a parser like that of Determined's `yaml_safe_load`, but with the bounds."""
    from ruamel.yaml import YAML, composer, events  # late: it takes a fifth of a second

    class Composer(composer.Composer):
        """A composer that refuses what is too deep, too large or endless."""

        def compose_document(self) -> Any:
            self._level, self._count, self._sizes = 0, 0, {}
            return super().compose_document()

        def compose_node(self, parent: Any, index: Any) -> Any:
            alias = self.parser.check_event(events.AliasEvent)
            before, self._level, self._count = self._count, self._level + 1, self._count + 1
            if self._level > MAX_DEPTH:
                raise ValueError(f"lists and sections are nested more than {MAX_DEPTH} deep")
            node = super().compose_node(parent, index)
            if alias and id(node) not in self._sizes:
                raise ValueError("an alias refers to a list or section that contains it")
            self._count += self._sizes.get(id(node), 0)
            if self._count > MAX_VALUES:
                raise ValueError(f"it has more than {MAX_VALUES:,} values with aliases expanded")
            self._level -= 1
            self._sizes[id(node)] = self._sizes.get(id(node), self._count - before)
            return node

    parser = YAML(typ="safe", pure=True)
    parser.Composer = Composer
    return parser
