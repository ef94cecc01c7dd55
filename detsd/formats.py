"""Concept files: what they hold, reading and writing them.

`learned_embeddings_dict.pt`: `{concept: {"initializer_strs": str, "learned_embeddings": [n, D]}}`.
`<concept>.safetensors`: `{concept: [n, D]}`, which diffusers, A1111 and ComfyUI load.

Embeddings are float32. Nothing that is read may run code: `weights_only=True`, safetensors.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from detsd.errors import UserError

DICT_FILE = "learned_embeddings_dict.pt"


@dataclass(frozen=True)
class LearnedConcept:
    """A concept as it lies in a file: its word, its phrase, its rows (n, D) in float32."""

    name: str
    initializer: str
    embeddings: torch.Tensor


def file_name(concept: str) -> str:
    """A concept's word as a file name: letters, digits, `-`, `_` and `.` stay."""
    return re.sub(r"[^\w.-]+", "_", concept).strip("._") or "concept"


def write_concepts(concepts: list[LearnedConcept], folder: Path) -> None:
    """Write `learned_embeddings_dict.pt` and one safetensors file per concept into `folder`."""
    table = {
        c.name: {
            "initializer_strs": c.initializer,
            "learned_embeddings": c.embeddings.detach().cpu().float().clone(),
        }
        for c in concepts
    }
    torch.save(table, folder / DICT_FILE)
    for c in concepts:
        rows = table[c.name]["learned_embeddings"].contiguous()
        metadata = {"format": "pt", "initializer_strs": c.initializer}
        save_file({c.name: rows}, folder / f"{file_name(c.name)}.safetensors", metadata)


def read_concepts(path: str | Path) -> list[LearnedConcept]:
    """The concepts of a `.pt` dictionary, a `.safetensors` file, or a checkpoint folder.

    Raises:
        UserError: missing, damaged, or of an unknown layout.
    """
    path = Path(path)
    if path.is_dir():
        path = path / DICT_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a concept file or a checkpoint folder")
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(str(path), "pt") as f:
                phrase = (f.metadata() or {}).get("initializer_strs", "")
                found = {name: (phrase, f.get_tensor(name)) for name in f.keys()}  # noqa: SIM118
        else:
            table = torch.load(path, map_location="cpu", weights_only=True)
            if not _is_dictionary(table):
                raise UserError(
                    f"{path} is not laid out as a concept file (expected {DICT_FILE}'s or a "
                    "safetensors' layout); export the concept again"
                )
            found = {
                name: (entry["initializer_strs"], entry["learned_embeddings"])
                for name, entry in table.items()
            }
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, SafetensorError) as error:
        raise UserError(
            f"{path} is damaged or no concept file ({type(error).__name__}); use an intact copy"
        ) from None
    concepts = []
    for name, (phrase, rows) in found.items():
        if not isinstance(rows, torch.Tensor):
            raise UserError(f"{path}: the rows of {name!r} are no tensor; export the concept again")
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or not torch.isfinite(rows).all():
            raise UserError(f"{path}: the rows of {name!r} are not a finite (n, width) matrix")
        concepts.append(LearnedConcept(name, phrase, rows.float()))
    return concepts


def _is_dictionary(table: object) -> bool:
    """Whether a file's content is laid out as ours; other tools have tensors at other places."""
    return isinstance(table, dict) and all(
        isinstance(entry, dict) and {"initializer_strs", "learned_embeddings"} <= entry.keys()
        for entry in table.values()
    )
