"""A run's folder off cluster: the names of its files, its checkpoints and their metadata.

Imports no library that takes long to load.
"""

import json
import logging
import os
import re
import reprlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detsd.utils.errors import UserError
from detsd.utils.paths import atomic_write
from detsd.utils.plurals import counted

logger = logging.getLogger("detsd")

DICT_FILE = "learned_embeddings_dict.pt"
METADATA = "metadata.json"
STEP = re.compile(r"step-(\d{8,})")  # the folder of a checkpoint
SAMPLE = re.compile(r"step-(\d{8,})-\d{3,}\.png")
MANIFEST, IMAGES, SHEETS = "manifest.jsonl", "images.zip", "sheets"  # of a grid

KINDS = {  # types of a checkpoint's metadata; older ones lack some keys
    "steps_completed": int, "config": dict, "digests": dict, "models": dict, "evaluators": dict,
    "concepts": list, "shards": list, "sheets": list, "images": int, "samples_per_step": int,
    "best": dict | None, "commit": str | None, "warm_start": str | None, "source": str,
}  # fmt: skip


def read_metadata(checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint's metadata; refuse a folder that is not a complete checkpoint."""
    facts = _parsed(checkpoint)
    if facts is None:
        raise UserError(
            f"{checkpoint} is not a complete checkpoint (no readable {METADATA}); name another one"
        )
    if problem := _problem(checkpoint, facts):
        raise damaged(checkpoint / METADATA, problem)
    return facts


def vectors_of_image(source: str, image: Path) -> str:
    """Return a concept's source in an image's settings; a training sample's is relative to it."""
    if not source.startswith("../checkpoints/"):
        return source
    # Samples that were moved aside, `restart` in `detsd.train.samples`, are a folder deeper.
    folder = image.absolute().parent
    places = [os.path.normpath(beside / source) for beside in (folder, folder.parent)]
    return next(filter(os.path.exists, [*places, source]), places[0])


def is_complete(checkpoint: Path) -> bool:
    """Return whether a folder is a checkpoint that no power cut has truncated."""
    return _parsed(checkpoint) is not None


def _parsed(checkpoint: Path) -> Any:
    """Return the content of a checkpoint's metadata file; None if it is truncated or missing."""
    try:
        return json.loads((checkpoint / METADATA).read_text())
    except (OSError, ValueError, RecursionError):
        return None


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number of a size that can be printed."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _problem(checkpoint: Path, facts: Any) -> str:
    """Return what is wrong with metadata; "" for nothing."""
    if not isinstance(facts, dict):
        return "it holds no metadata"
    for key, kind in KINDS.items():
        if key in facts and not isinstance(facts[key], kind):
            return f"{key} is {reprlib.repr(facts[key])}"
    config, best = facts.get("config", {}), facts.get("best") or {"steps_completed": 0}
    if not all(isinstance(section, dict) for section in config.values()):
        return "a section of config is not a mapping"
    if not all(map(is_number, best.values())):
        return f"best is {reprlib.repr(best)}"
    if not isinstance(best.get("steps_completed"), int) or facts.get("samples_per_step", 1) < 1:
        return "best has no step, or a step has no samples"
    step = STEP.fullmatch(checkpoint.name)
    if step and facts.get("steps_completed") != int(step[1]):
        return f"steps_completed is {facts.get('steps_completed')}"
    return ""


def damaged(file: Path, why: str, checkpoint: str = "") -> UserError:
    """Return the error for a damaged file of a checkpoint; it suggests the previous one.

    Args:
        checkpoint: its name in the message, if that is not its folder.
    """
    what, instead = str(file), "use an intact copy"
    if checkpoint:
        what = f"{file.name} of {checkpoint}"
        instead = "delete that checkpoint to continue from the one before"
    elif STEP.fullmatch(file.parent.name):
        steps = _by_step(file.parent.parent)
        earlier = steps[: steps.index(file.parent)] if file.parent in steps else []
        before = next(filter(is_complete, reversed(earlier)), None)
        instead = f"delete {file.parent} to "
        instead += f"continue from {before.name}" if before else "start over"
    return UserError(f"{what} is damaged ({why}); {instead}")


def _by_step(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, in the order of their steps, the newest last."""
    found = ((STEP.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return [path for _, path in sorted((int(step[1]), path) for step, path in found if step)]


def title_of(path: Path) -> str:
    """Return a name for a concept file, checkpoint or run's folder: its run's or its own."""
    path = Path(os.path.abspath(path))  # keeps links, removes `..`
    if path.is_file() and path.name != DICT_FILE:
        return path.stem
    folder = path.parent if path.name == DICT_FILE else path
    return (folder.parent.parent if folder.parent.name == "checkpoints" else folder).name


def finetuning_metadata(file: Path) -> dict[str, Any]:
    """Return the metadata of the fine-tuning whose checkpoint or folder holds a concept file.

    For a run's folder, return that of the best step. For other files, return {}: a grid's
    checkpoint holds concepts learned elsewhere.
    """
    newest = RunFolder(file.parent).latest() if file.name == DICT_FILE else None
    try:
        facts = read_metadata(newest or file.parent)
    except UserError:
        return {}
    if newest and facts.get("best"):
        facts["steps_completed"] = facts["best"]["steps_completed"]
    return facts if facts.get("kind") == "finetune" else {}


def _report(line: str) -> dict[str, Any] | None:
    """Return the metrics on a line; None if it is truncated or malformed."""
    try:
        report = json.loads(line)
        numbers = [value for key, value in report.items() if key != "group"]
        right = isinstance(report["group"], str) and isinstance(report["steps_completed"], int)
    except (ValueError, KeyError, AttributeError, RecursionError):
        return None
    return report if right and all(map(is_number, numbers)) else None


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
        """Return the folder of a step's checkpoint, which need not exist."""
        return self.path / "checkpoints" / f"step-{step:08d}"

    def latest(self) -> Path | None:
        """Return the newest complete checkpoint, or None."""
        newest_first = reversed(_by_step(self.path / "checkpoints"))
        return next(filter(is_complete, newest_first), None)

    def concept_files(self) -> list[Path]:
        """Return the concept files of all checkpoints, the newest last.

        The folder may also be the one that holds the checkpoints.
        """
        found = [*_by_step(self.path / "checkpoints"), *_by_step(self.path)]
        return [s / DICT_FILE for s in found if (s / DICT_FILE).is_file()]

    def sample(self, step: int, number: int) -> Path:
        """Return the file of a step's sample image, which need not exist."""
        return self.path / "samples" / f"step-{step:08d}-{number:03d}.png"

    def vectors_of_sample(self, step: int) -> str:
        """Return the file of a step's vectors, relative to its samples: the run may be moved."""
        return os.path.relpath(self.checkpoint(step) / DICT_FILE, self.sample(step, 0).parent)

    def samples(self, step: int | None = None) -> list[Path]:
        """Return the sample images of a step, or of all steps, in order."""
        found = ((SAMPLE.fullmatch(p.name), p) for p in (self.path / "samples").glob("step-*.png"))
        return sorted(path for name, path in found if name and step in (None, int(name[1])))

    def sampled_steps(self) -> list[int]:
        """Return the steps that have sample images, in order."""
        return sorted({int(SAMPLE.fullmatch(path.name)[1]) for path in self.samples()})

    def metrics(self) -> list[dict[str, Any]]:
        """Return the reports: `group`, `steps_completed` and the metrics, in order.

        Lines that a full disk or power cut truncated, or that are no reports, are left out.
        """
        return list(filter(None, map(_report, self._metrics_lines())))

    def _metrics_lines(self) -> list[str]:
        try:
            return self.metrics_file.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def forget_metrics_after(self, steps: int) -> None:
        """Drop the metrics of later steps, which will be repeated."""
        if self.metrics_file.is_file():
            lines = self._metrics_lines()
            reports = list(filter(None, map(_report, lines)))
            if left := len(lines) - len(reports):
                damaged_lines = counted(left, "damaged line")
                logger.warning("%s: removing %s", self.metrics_file, damaged_lines)
            kept = [report for report in reports if report["steps_completed"] <= steps]
            with atomic_write(self.metrics_file) as staging:
                staging.write_text("".join(f"{json.dumps(report)}\n" for report in kept))

    def remove_unfinished(self) -> None:
        """Remove checkpoints and samples that a killed process was writing.

        They would stay forever if no later run stored their steps again.
        """
        for folder in self.path.glob("checkpoints/.step-*"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in self.path.glob("samples/.step-*.png"):
            file.unlink()

    def check_writable(self, option: str = "--output-dir") -> None:
        """Refuse a folder given by an option if it cannot be made or written to."""
        folder = there = self.path
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise UserError(
                f"{option} {folder} cannot be created: {there} is not a folder; name another one"
            )
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"{option} {folder}: {there} is not writable; name another folder")

    def check_no_finetuning(self) -> None:
        """Refuse to put a grid's images into a fine-tuning's folder."""
        if self.latest():
            raise UserError(
                f"--output-dir {self.path} holds a fine-tuning; give the images another folder"
            )
