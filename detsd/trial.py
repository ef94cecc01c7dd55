"""What a trial and a checkpoint say of themselves; imports no library that takes long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detsd.sources import DICT_FILE
from detsd.utils.errors import UserError

METADATA = "metadata.json"


def _cluster_info() -> Any:
    import determined as det  # late: a third of a second, which looking at a concept need not wait

    return det.get_cluster_info()


def on_cluster() -> bool:
    """Whether this process is a task of a Determined trial (a notebook task is not)."""
    info = _cluster_info()
    return info is not None and info.task_type == "TRIAL"


def cluster_hyperparameters() -> dict[str, Any]:
    """The trial's hyperparameters, as the searcher chose them."""
    return _cluster_info().trial.hparams


def cluster_experiment() -> dict[str, Any]:
    """The configuration of the trial's experiment, as the master completed it."""
    # The harness keeps it private, since its shape may change with the version; ours is pinned.
    return _cluster_info().trial._config


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
