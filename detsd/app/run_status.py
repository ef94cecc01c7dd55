"""The status of a fine-tuning that the page has started, read from its folder."""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from detsd.concepts.reading import read_concepts
from detsd.config import load_config
from detsd.runs.folder import RunFolder, read_metadata
from detsd.sampling.jobs import Job, sample_jobs
from detsd.utils import contact_sheets, png
from detsd.utils.paths import AUTO

CONFIG, LOG, PICTURES = "finetune.yaml", "log.txt", "training_pictures"

MAX_FRAMES = 24  # of a time-lapse, which is redrawn often

WARNING, MAX_NOTES = "WARNING: ", 8

# A line of a fine-tuning's bar, which counts validations, samples and drawing as well.
LEFT = re.compile(r"\d+/\d+ steps, (?:.*, )?(?:(\d+):)?(\d+):(\d+) left")


@dataclass(frozen=True)
class RunStatus:
    """The progress of a fine-tuning."""

    folder: Path
    word: str
    running: bool
    complete: bool
    step: int
    steps: int
    loss: float | None
    val_loss: float | None  # at the last validation
    phrase_loss: float | None  # of the initializer
    phrase: str  # the initializer; with `auto`, "" until a checkpoint has it
    samples_per_second: float
    seconds_left: float | None  # None if unknown, or if it takes longer than estimated
    problem: str  # why it ended early; "" if it did not
    notes: tuple[str, ...]  # its warnings: pictures that are skipped, and the like
    sampled: tuple[int, ...]  # steps that have samples, ascending
    checkpoint: Path | None

    @property
    def jobs(self) -> list[Job]:
        """The jobs of a step's samples."""
        return sample_jobs(load_config(self.folder / CONFIG).inference, 0)

    def samples(self, step: int) -> list[tuple[Path, str]]:
        """Return the samples of a step, with captions."""
        return [
            (path, f"step {step}: {job.prompt}, seed {job.seed}")
            for path, job in zip(RunFolder(self.folder).samples(step), self.jobs, strict=False)
        ]


def read_status(folder: Path, running: bool, failed: bool) -> RunStatus:
    """Return the status of a run.

    Args:
        failed: whether its process ended unexpectedly; its log then says why.
    """
    config, files = load_config(folder / CONFIG), RunFolder(folder)
    t, last = config.training, {report["group"]: report for report in files.metrics()}
    training, validation = last.get("training", {}), last.get("validation", {})
    step = max((report["steps_completed"] for report in last.values()), default=0)
    latest = files.latest()
    phrase = config.concepts.initializer_strs[0]
    if phrase == AUTO:
        phrase = read_concepts(latest)[0].initializer if latest else ""
    complete = latest == files.checkpoint(t.num_sgd_steps)
    if latest and not complete:
        complete = read_metadata(latest).get("settled", False)
    # A step's samples are written one after the other.
    count = len(config.inference.inference_prompts) * len(config.inference.seeds)
    return RunStatus(
        folder=folder,
        word=config.concepts.concept_strs[0],
        running=running,
        complete=complete,
        step=step,
        steps=t.num_sgd_steps,
        loss=training.get("loss"),
        val_loss=validation.get("val_loss"),
        phrase_loss=validation.get("val_loss_initializer"),
        phrase=phrase,
        samples_per_second=training.get("samples_per_second", 0.0),
        seconds_left=_seconds_left(folder / LOG) if running else None,
        problem=_problem(folder / LOG) if failed else "",
        notes=_notes(folder),
        sampled=tuple(s for s in files.sampled_steps() if len(files.samples(s)) >= count),
        checkpoint=latest,
    )


def _log_lines(log: Path) -> list[str]:
    """Return the lines of a process's log."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return [line for line in text.splitlines() if line.strip()]


def _seconds_left(log: Path) -> float | None:
    """Return the time left by the last line of a process's bar, minus the time since then."""
    found = [match for line in _log_lines(log) if (match := LEFT.fullmatch(line))]
    if not found:
        return None
    hours, minutes, seconds = (int(number or 0) for number in found[-1].groups())
    passed = max(0.0, time.time() - log.stat().st_mtime)
    left = 3600 * hours + 60 * minutes + seconds - passed
    return left if left > 0 else None


def _notes(folder: Path) -> tuple[str, ...]:
    """Return the first warnings of a process, with its pictures by their names alone."""
    found = [line for line in _log_lines(folder / LOG) if line.startswith(WARNING)]
    place = str((folder / PICTURES).resolve())  # as in the configuration
    said = (line.removeprefix(WARNING).replace(f"{place}/", "") for line in found)
    return tuple(line.replace(place, "the pictures") for line in said)[:MAX_NOTES]


def _problem(log: Path) -> str:
    """Return why a process ended, according to its log."""
    lines = _log_lines(log)
    errors = [line.removeprefix("detsd: ") for line in lines if line.startswith("detsd: ")]
    last = lines[-1] if lines else "without any output"
    return "\n".join(errors) or f"it ended unexpectedly: {last}"


def time_lapse(status: RunStatus, folder: Path) -> Path | None:
    """Draw the time-lapse of the samples so far into `folder`; None before there are two."""
    finished = status.folder / "time_lapse.gif"
    if status.complete and finished.is_file():
        return finished
    frames = []
    every = -(-len(status.sampled) // MAX_FRAMES) or 1
    for step in status.sampled[::-every][::-1]:  # including the last one
        images = [png.read(path) for path in RunFolder(status.folder).samples(step)]
        if all(images):  # a truncated file gives None
            frames.append((step, images))
    if len(frames) < 2:
        return None
    folder = folder / f"{status.folder.name}-{frames[-1][0]}-{time.time_ns()}"
    folder.mkdir(parents=True)
    contact_sheets.time_lapse(frames, [job.prompt for job in status.jobs], folder)
    return folder / "time_lapse.gif"
