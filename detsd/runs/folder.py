"""A run's folder off cluster: the names of its files, its checkpoints and their metadata.

Imports no library that takes long.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detsd.utils.errors import UserError
from detsd.utils.paths import atomic_write

DICT_FILE = "learned_embeddings_dict.pt"
METADATA = "metadata.json"
MANIFEST, IMAGES, SHEETS = "manifest.jsonl", "images.zip", "sheets"  # of a grid


def read_metadata(checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint's metadata; refuse a folder that is no complete checkpoint."""
    try:
        facts = json.loads((checkpoint / METADATA).read_text())
    except (OSError, ValueError):
        facts = None
    if not isinstance(facts, dict):
        raise UserError(
            f"{checkpoint} is not a complete checkpoint (no readable {METADATA}); name another one"
        )
    return facts


def is_complete(checkpoint: Path) -> bool:
    """Return whether a folder is a complete checkpoint."""
    try:
        return isinstance(read_metadata(checkpoint).get("steps_completed"), int)
    except UserError:
        return False


def finetuning_metadata(file: Path) -> dict[str, Any]:
    """Return the metadata of the fine-tuning whose checkpoint or folder holds a concept file.

    For a run's folder, at the best step. {} elsewhere: a grid's checkpoint holds concepts that
    something else has learned.
    """
    newest = RunFolder(file.parent).latest() if file.name == DICT_FILE else None
    try:
        facts = read_metadata(newest or file.parent)
    except UserError:
        return {}
    if newest and facts.get("best"):
        facts["steps_completed"] = facts["best"]["steps_completed"]
    return facts if facts.get("kind") == "finetune" else {}


@dataclass(frozen=True)
class RunFolder:
    """The files of a run off cluster by their names."""

    path: Path

    @property
    def best_file(self) -> Path:
        """The concept file of the best checkpoint so far."""
        return self.path / DICT_FILE

    @property
    def metrics_file(self) -> Path:
        """The metrics, a JSON object on each line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def models_file(self) -> Path:
        """The uuids that models of the registry stand for in this run, as JSON."""
        return self.path / "models.json"

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a step's checkpoint, which need not be there."""
        return self.path / "checkpoints" / f"step-{step:08d}"

    def checkpoints(self) -> list[Path]:
        """Return the complete checkpoints, the newest last."""
        return list(filter(is_complete, sorted(self.path.glob("checkpoints/step-*"))))

    def latest(self) -> Path | None:
        """Return the newest complete checkpoint, or None."""
        newest_first = sorted(self.path.glob("checkpoints/step-*"), reverse=True)
        return next(filter(is_complete, newest_first), None)

    def concept_files(self) -> list[Path]:
        """Return the concept files of all checkpoints, the newest last.

        The folder may also be the one in which the checkpoints lie.
        """
        found = [*self.path.glob("checkpoints/step-*"), *self.path.glob("step-*")]
        return sorted(s / DICT_FILE for s in found if (s / DICT_FILE).is_file())

    def sample(self, step: int, number: int) -> Path:
        """Return the file of a step's sample image, which need not be there."""
        return self.path / "samples" / f"step-{step:08d}-{number:03d}.png"

    def samples(self, step: int | None = None) -> list[Path]:
        """Return the sample images of a step, or of all steps, in order."""
        name = "step-*.png" if step is None else f"step-{step:08d}-*.png"
        return sorted((self.path / "samples").glob(name))

    def sampled_steps(self) -> list[int]:
        """Return the steps that have sample images, in order."""
        return sorted({int(path.name.split("-")[1]) for path in self.samples()})

    def metrics(self) -> list[dict[str, Any]]:
        """Return the reports: `group`, `steps_completed` and the metrics, in order.

        A line that was torn by a full disk or a power cut is left out.
        """
        try:
            lines = self.metrics_file.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                report = json.loads(line)
                if isinstance(report["steps_completed"], int) and report["group"]:
                    found.append(report)
        return found

    def forget_metrics_after(self, steps: int) -> None:
        """Drop the metrics of later steps, which will be repeated."""
        if self.metrics_file.is_file():
            kept = [report for report in self.metrics() if report["steps_completed"] <= steps]
            with atomic_write(self.metrics_file) as staging:
                staging.write_text("".join(f"{json.dumps(report)}\n" for report in kept))

    def remove_unfinished(self) -> None:
        """Remove checkpoints and samples that a killed process was writing.

        Those of steps that no later start stores again would stay for ever.
        """
        for folder in self.path.glob("checkpoints/.step-*"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in self.path.glob("samples/.step-*.png"):
            file.unlink()

    def check_writable(self) -> None:
        """Refuse an `--output-dir` that cannot be made or written to."""
        folder = there = self.path
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise UserError(
                f"--output-dir {folder} cannot be made: {there} is no folder; name another one"
            )
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(
                f"--output-dir {folder}: {there} cannot be written to; name another folder"
            )

    def check_no_finetuning(self) -> None:
        """Refuse a fine-tuning's folder for the images of a grid."""
        if self.latest():
            raise UserError(
                f"--output-dir {self.path} holds a fine-tuning; give the images another folder"
            )
