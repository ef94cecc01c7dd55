"""A run's folder off cluster: the names of its files, its checkpoints and their metadata.

Imports no library that takes long.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from detsd.utils.errors import UserError

DICT_FILE = "learned_embeddings_dict.pt"
METADATA = "metadata.json"
MANIFEST, IMAGES, SHEETS = "manifest.jsonl", "images.zip", "sheets"  # of a grid


def read_metadata(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's metadata.

    Raises:
        UserError: the folder is no complete checkpoint.
    """
    try:
        facts = json.loads((checkpoint / METADATA).read_text())
    except (OSError, ValueError):
        facts = None
    if not isinstance(facts, dict):
        raise UserError(
            f"{checkpoint} is not a complete checkpoint (no readable {METADATA}); name another one"
        )
    return facts


def finetuning_of(file: Path) -> dict[str, Any]:
    """What the fine-tuning's checkpoint that a concept file lies in says of itself; else {}.

    Of a run's folder, that of the best step. A grid's checkpoint holds concepts that something else
    has learned.
    """
    newest = latest_checkpoint(file.parent) if file.name == DICT_FILE else None
    try:
        facts = read_metadata(newest or file.parent)
    except UserError:
        return {}
    if newest and facts.get("best"):
        facts["steps_completed"] = facts["best"]["steps_completed"]
    return facts if facts.get("kind") == "finetune" else {}


def is_whole(checkpoint: Path) -> bool:
    """Whether a folder is a complete checkpoint."""
    try:
        return isinstance(read_metadata(checkpoint).get("steps_completed"), int)
    except UserError:
        return False


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder off cluster, or None."""
    return next(filter(is_whole, sorted(folder.glob("checkpoints/step-*"), reverse=True)), None)


def check_output(folder: Path) -> None:
    """Whether `--output-dir` can be made and written to.

    Raises:
        UserError: it cannot.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(
            f"--output-dir {folder} cannot be made: {there} is no folder; name another one"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--output-dir {folder}: {there} cannot be written to; name another folder")


def check_grid_folder(folder: Path) -> None:
    """Whether a grid's images may gather in `folder`.

    Raises:
        UserError: a fine-tuning lies there.
    """
    if latest_checkpoint(folder):
        raise UserError(
            f"--output-dir {folder} holds a fine-tuning; give the images another folder"
        )
