"""Concept files: what they hold, reading and writing them.

`learned_embeddings_dict.pt`: `{concept: {"initializer_strs": str, "learned_embeddings": [n, D]}}`,
and `"learned_embeddings_2": [n, D2]` beside them for a model of two text encoders.
`<concept>.safetensors`: `{concept: [n, D]}`, which diffusers, A1111 and ComfyUI load; of two
encoders `{"clip_l": [n, D], "clip_g": [n, D2]}`, as the field has it for Stable Diffusion XL.

Embeddings are float32. Nothing that is read may run code: `weights_only=True`, safetensors.
"""

from __future__ import annotations

import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from detsd.errors import UserError

DICT_FILE = "learned_embeddings_dict.pt"
ENCODERS = ("clip_l", "clip_g")  # the field's names of Stable Diffusion XL's text encoders
FAMILIES = {  # by the widths of the rows, one per text encoder
    (128,): "the bundled model",
    (768,): "Stable Diffusion 1.x",
    (1024,): "Stable Diffusion 2.x",
    (768, 1280): "Stable Diffusion XL",
}


@dataclass(frozen=True)
class LearnedConcept:
    """A concept as it lies in a file: its word, its phrase, its rows in float32.

    Attributes:
        embeddings: rows (n, D) of the base model's text encoder.
        embeddings_2: rows (n, D2) of its second one; None where it has only one.
        model: the base model it was learned on; "" where that is not known.
        model_hash: which weights of that name: the hub's commit, or what another tool noted.
        steps: of training; None where that is not known.
    """

    name: str
    initializer: str
    embeddings: torch.Tensor
    embeddings_2: torch.Tensor | None = None
    model: str = ""
    model_hash: str = ""
    steps: int | None = None

    @property
    def rows(self) -> tuple[torch.Tensor, ...]:
        """The rows (n, D) of every text encoder, in the model's order."""
        two = self.embeddings_2 is not None
        return (self.embeddings, self.embeddings_2) if two else (self.embeddings,)

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the text encoders that the rows fit."""
        return tuple(rows.shape[1] for rows in self.rows)


def family(widths: tuple[int, ...]) -> str:
    """The models whose text encoders have these widths, in words."""
    return FAMILIES.get(widths, f"a model of text width {' and '.join(map(str, widths))}")


def file_name(concept: str) -> str:
    """A concept's word as a file name: letters, digits, `-`, `_` and `.` stay."""
    return re.sub(r"[^\w.-]+", "_", concept).strip("._") or "concept"


def write_concepts(concepts: list[LearnedConcept], folder: Path) -> None:
    """Write `learned_embeddings_dict.pt` and one safetensors file per concept into `folder`."""
    table = {}
    for c in concepts:
        rows = [r.detach().cpu().float().clone().contiguous() for r in c.rows]
        keys = ("learned_embeddings", "learned_embeddings_2")
        table[c.name] = {"initializer_strs": c.initializer, **dict(zip(keys, rows, strict=False))}
        metadata = {"format": "pt", "name": c.name, "initializer_strs": c.initializer}
        tensors = {c.name: rows[0]} if len(rows) == 1 else dict(zip(ENCODERS, rows, strict=True))
        _save(tensors, folder / f"{file_name(c.name)}.safetensors", metadata)
    torch.save(table, folder / DICT_FILE)


def _save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """A safetensors file; a full disk is the OSError that every other writer raises."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if not number:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


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
                facts = f.metadata() or {}
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
            if tensors.keys() == set(ENCODERS):
                tensors = {facts.get("name", path.stem): [tensors[e] for e in ENCODERS]}
            phrase = facts.get("initializer_strs", "")
            found = {n: (phrase, t if isinstance(t, list) else [t]) for n, t in tensors.items()}
        else:
            table = torch.load(path, map_location="cpu", weights_only=True)
            if not _is_dictionary(table):
                raise UserError(
                    f"{path} is not laid out as a concept file (expected {DICT_FILE}'s or a "
                    "safetensors' layout); export the concept again"
                )
            found = {
                name: (
                    entry["initializer_strs"],
                    [
                        entry[k]
                        for k in ("learned_embeddings", "learned_embeddings_2")
                        if k in entry
                    ],
                )
                for name, entry in table.items()
            }
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, SafetensorError) as error:
        raise UserError(
            f"{path} is damaged or no concept file ({type(error).__name__}); use an intact copy"
        ) from None
    concepts = []
    for name, (phrase, matrices) in found.items():
        if not all(isinstance(rows, torch.Tensor) for rows in matrices):
            raise UserError(f"{path}: the rows of {name!r} are no tensor; export the concept again")
        matrices = [rows[None] if rows.ndim == 1 else rows for rows in matrices]
        if any(rows.ndim != 2 or not torch.isfinite(rows).all() for rows in matrices):
            raise UserError(f"{path}: the rows of {name!r} are not a finite (n, width) matrix")
        if len({len(rows) for rows in matrices}) > 1:
            raise UserError(
                f"{path}: the rows of {name!r} are of another number for each text encoder; "
                "export the concept again"
            )
        concepts.append(LearnedConcept(name, phrase, *(rows.float() for rows in matrices)))
    return concepts


def _is_dictionary(table: object) -> bool:
    """Whether a file's content is laid out as ours; other tools have tensors at other places."""
    return isinstance(table, dict) and all(
        isinstance(entry, dict) and {"initializer_strs", "learned_embeddings"} <= entry.keys()
        for entry in table.values()
    )
