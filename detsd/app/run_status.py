"""The status of a fine-tuning that the page has started, read from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detsd.config import FinetuneConfig, load_config
from detsd.runs.folder import RunFolder
from detsd.sampling.jobs import sample_jobs

CONFIG, LOG, PICTURES = "finetune.yaml", "log.txt", "training_pictures"

SAMPLES = {
    "object": ("a photo of a {}", "a watercolor painting of a {} on a night sky"),
    "style": ("a cat in the style of {}", "a house on a night sky in the style of {}"),
}


@dataclass(frozen=True)
class RunStatus:
    """How far a fine-tuning is, as its folder and process tell."""

    folder: Path
    word: str
    running: bool
    complete: bool
    step: int
    steps: int
    loss: float | None
    val_loss: float | None  # at the last validation
    phrase_loss: float | None  # of the phrase that it started from
    samples_per_second: float
    seconds_left: float | None
    problem: str  # why it ended before its time; "" where it did not
    sampled: tuple[int, ...]  # steps at which there are samples, rising
    checkpoint: Path | None

    def samples(self, step: int) -> list[tuple[Path, str]]:
        """The samples of a step, with captions."""
        return [
            (path, f"step {step}: {job.prompt}, seed {job.seed}")
            for path, job in zip(
                RunFolder(self.folder).samples(step), _jobs(self.folder), strict=False
            )
        ]


def _jobs(folder: Path) -> list:
    return sample_jobs(_config(folder).inference, 0)


def _config(folder: Path) -> FinetuneConfig:
    return load_config(folder / CONFIG)
