"""Checkpoints of a fine-tuning: saving them, and resuming or starting a run from one."""

import dataclasses
import logging
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.reading import read_concepts
from detsd.concepts.writing import encode, write_concepts
from detsd.config import FinetuneConfig
from detsd.data.latents import changed_images
from detsd.evaluate.encoders import ImageEncoder
from detsd.evaluate.metrics import Baselines
from detsd.runs.folder import DICT_FILE, RunFolder, damaged, is_number, read_metadata
from detsd.runs.run import Run, pack, unpack
from detsd.train.samples import SampleMetrics
from detsd.train.step import TrainStep, learning_rate
from detsd.train.validation import best_step
from detsd.utils.errors import UserError, one_line
from detsd.utils.paths import atomic_write

logger = logging.getLogger("detsd")

STATE_FILE = "trainer_state.pt"
SAMPLES = "samples.zip"  # on a cluster: the samples since the start


def latest_concepts(run: Run, words: Sequence[str]) -> list[LearnedConcept]:
    """Read the concepts of the checkpoint to resume or start from; `words` must be among them."""
    if run.latest_uuid and not (run.latest / DICT_FILE).is_file():
        raise UserError(
            f"{run.latest_name} holds no concept, like all checkpoints of a grid; name one of a "
            "fine-tuning in searcher.source_checkpoint_uuid"
        )
    try:
        found = read_concepts(run.latest)
    except UserError as error:
        if not run.latest_is_own:
            raise
        raise damaged(run.latest / DICT_FILE, str(error).partition(";")[0], _name(run)) from None
    learned = [concept.name for concept in found]
    for word in words:
        if word not in learned:
            rename = "" if run.latest_uuid else " give its concept that word (FILE=WORD),"
            raise UserError(
                f"{run.latest_name} does not hold concept {word!r} but {', '.join(learned)}; name "
                f"another one,{rename} or change concepts.concept_strs"
            )
    return found


def _name(run: Run) -> str:
    """Return the name of the checkpoint that a run resumes from, if that is not its folder."""
    return run.latest_name if run.latest_uuid else ""


@dataclass
class TrainState:
    """The progress of a run, besides its vectors and its optimizer."""

    best_metric: str  # by which `best` is chosen
    steps_completed: int = 0
    samples_seen: int = 0
    # Sums of the parts of the loss since the last report, kept as tensors, because reading them
    # would wait for the device.
    window: dict[str, Any] = field(default_factory=dict)
    validations: dict[int, dict[str, float]] = field(default_factory=dict)  # metrics by step
    best_vectors: tuple[torch.Tensor, ...] = ()  # those of the best step so far
    best_uuid: str = ""  # the cluster's name for its checkpoint

    @property
    def best(self) -> int | None:
        """The step of the best checkpoint so far."""
        return best_step(self.validations, self.best_metric)

    def add(self, parts: dict[str, torch.Tensor], samples: int) -> None:
        """Count a step with its samples and the parts of its loss."""
        self.steps_completed += 1
        self.samples_seen += samples
        for name, value in parts.items():
            self.window[name] = self.window.get(name, 0.0) + value

    def metric_sums(self, run: Run) -> dict[str, float]:
        """Return the window's sums, averaged over the ranks. Collective."""
        everyone = run.gather([{k: float(v) for k, v in self.window.items()}])
        return {name: sum(w[name] for w in everyone) / len(everyone) for name in everyone[0]}


def samples_per_step(checkpoint: Path, metadata: dict[str, Any]) -> int | None:
    """Return the samples per step of a run, over all processes.

    Earlier versions did not record this number. It is then computed from the samples seen, or None.
    """
    if "samples_per_step" in metadata:
        return metadata["samples_per_step"]
    try:
        seen = int(torch.load(checkpoint / STATE_FILE, weights_only=True)["samples_seen"])
    except Exception:  # a damaged file, which is refused when it is read in full
        return None
    samples, rest = divmod(seen, max(1, metadata["steps_completed"]))
    return None if rest or not samples else samples


def check_state(
    state: TrainState, baselines: list[Baselines], vectors: tuple[torch.Tensor, ...]
) -> None:
    """Check a restored state; raise ValueError, or Python's own error for a value of wrong type."""
    figures = [state.window, *state.validations.values(), *map(vars, baselines)]
    if not all(is_number(n) for each in figures for n in each.values()):
        raise ValueError("a metric is not a number")
    if not all(isinstance(k, int) and "val_loss" in v for k, v in state.validations.items()):
        raise ValueError("a validation has no step or no val_loss")
    shapes = [rows.shape for rows in state.best_vectors]
    if shapes not in ([], [v.shape for v in vectors]):
        raise ValueError("the best vectors have another shape")
    if not isinstance(state.best_uuid, str) or state.samples_seen < 1:
        raise ValueError("it has no uuid or no samples")


class Checkpoints:
    """The checkpoints of a run: written by the chief, restored on every rank."""

    def __init__(
        self,
        config: FinetuneConfig,
        run: Run,
        step: TrainStep,
        digests: dict[str, str],
        encoders: dict[str, ImageEncoder],
        metrics: SampleMetrics | None,
        facts: dict[str, Any],
    ):
        """
        Args:
            config: the configuration as given.
            digests: those of the training images.
            encoders, metrics: for measuring samples; only on the chief, and only if configured.
            facts: entries for the metadata of all checkpoints of the run.
        """
        self._facts = facts
        self._config, self._run, self._step, self._digests = config, run, step, digests
        self._encoders, self._metrics = encoders, metrics
        self._vocabulary = step.model.vocabulary

    def save(self, state: TrainState, complete: bool, plateaued: bool) -> None:
        """Store the current state of the run. Collective."""
        run, best = self._run, state.best
        baselines = self._metrics.baselines if self._metrics else []
        stored = {
            **self._step.state_dict(),
            "window": state.metric_sums(run),
            "samples_seen": state.samples_seen,
            "images": self._digests,
            "threads": torch.get_num_threads(),
            "validations": state.validations,
            "best_rows": state.best_vectors,
            "best_uuid": state.best_uuid,
            "anchors": [dataclasses.asdict(b) for b in baselines],
        }
        metadata = {
            "kind": "finetune",
            **self._facts,
            "config": dataclasses.asdict(self._config),
            "concepts": self._vocabulary.names,
            "commit": self._step.model.commit,
            "vae": self._step.model.vae_name,
            "evaluators": {key: encoder.commit for key, encoder in self._encoders.items()},
            "complete": complete,
            "settled": plateaued,
            "best": best and {"steps_completed": best} | state.validations[best],
        }

        def write(folder: Path) -> None:
            write_concepts(self._learned(state.steps_completed), folder)
            torch.save(stored, folder / STATE_FILE)
            if not run.folder_is_kept:  # with the pictures, so that a resumed run has them
                samples = sorted((run.folder / "samples").rglob("*.png"))
                pack(folder / SAMPLES, samples, run.folder)  # hundreds of small files as one
                for path in run.folder.glob("*.*"):
                    shutil.copy(path, folder)

        run.flush()  # first: after a crash in between, these steps are repeated and shown again
        self.keep_best(state)
        uuid = run.save(state.steps_completed, metadata, write)
        if best == state.steps_completed:
            state.best_uuid = uuid

    def _learned(self, steps: int) -> list[LearnedConcept]:
        """Return the concepts with the model's current vectors."""
        model = self._step.model
        facts = {"model": model.name, "model_hash": model.commit or "", "steps": steps}
        facts["clip_skip"] = model.clip_skip
        return [dataclasses.replace(c, **facts) for c in self._vocabulary.concepts()]

    def keep_best(self, state: TrainState) -> None:
        """Write the best vectors so far to the concept file in the run's folder, if it is kept."""
        if not (self._run.is_chief and self._run.folder_is_kept):
            return
        path = RunFolder(self._run.folder).best_file
        if not state.best_vectors:  # the file, if any, is from steps that will be repeated
            path.unlink(missing_ok=True)
            return
        with self._vocabulary.using(state.best_vectors):
            learned = self._learned(state.best)
        with atomic_write(path) as staging:
            staging.write_bytes(encode(learned, "detsd")[DICT_FILE])

    def register(self, state: TrainState) -> str:
        """Register the best checkpoint as a version of the configured model, if one is named.

        Returns "version 1 of NAME", or "".
        """
        name = self._config.training.register_model
        if name and state.best and self._run.is_chief:
            title = f"{', '.join(self._vocabulary.names)}, step {state.best}"
            figures = {"model": self._step.model.name} | state.validations[state.best]
            notes = "\n".join(f"- {key}: {value}" for key, value in figures.items())
            return self._run.register(name, state.best_uuid, title, notes)
        return ""

    def best_line(self, state: TrainState, initial_val_loss: float) -> str:
        """Describe the best step, with its metrics beside the initializer's. Chief only."""
        if not state.best:
            return f"step {state.steps_completed}, without a validation"
        initial = {"val_loss": initial_val_loss}
        if self._metrics:
            baselines = self._metrics.baselines
            initial["clip_image_similarity"] = fmean(b.image_low for b in baselines)
            initial["clip_text_similarity"] = fmean(b.text_high for b in baselines)
        beside = {name: f" (initializer {value:.4f})" for name, value in initial.items()}
        metrics = ", ".join(
            f"{name} {value:.4f}{beside.get(name, '')}"
            for name, value in state.validations[state.best].items()
        )
        return f"step {state.best} of {state.steps_completed} is the best: {metrics}"

    def restore(self, earlier: list[LearnedConcept], samples_per_step: int) -> TrainState:
        """Restore everything from this run's checkpoint, or only the vectors from another's.

        Args:
            earlier: the checkpoint's `latest_concepts`; none without a checkpoint.
            samples_per_step: over all ranks.
        """
        run, checkpoint = self._run, self._run.latest
        state = TrainState(self._config.best_metric)
        if not checkpoint:
            return state
        self._restore_vectors(earlier)
        if not run.latest_is_own:
            run.print(f"starting from the vectors of {run.latest_name}")
            return state
        metadata = read_metadata(checkpoint)
        state.steps_completed = metadata["steps_completed"]
        threads = self._read(checkpoint / STATE_FILE, state)
        if (checkpoint / SAMPLES).is_file():
            unpack(checkpoint / SAMPLES, run.folder, _name(run))
        if state.best == state.steps_completed:
            state.best_uuid = run.latest_uuid
        run.print(f"resuming after step {state.steps_completed}")
        self._report_longer_schedule(state.steps_completed, metadata, samples_per_step)
        self._warn_of_threads(threads)
        return state

    def _restore_vectors(self, earlier: list[LearnedConcept]) -> None:
        learned = {c.name: c for c in earlier}
        wanted = {
            c.name: [tuple(r.shape) for r in c.embeddings] for c in self._vocabulary.concepts()
        }
        for name, shapes in wanted.items():
            found = [tuple(r.shape) for r in learned[name].embeddings]
            if found != shapes:
                raise UserError(
                    f"{self._run.latest_name}: concept {name!r} has vectors of shape "
                    f"{' and '.join(map(str, found))}, but this run needs "
                    f"{' and '.join(map(str, shapes))}; "
                    "use the same base model, initializer and num_vectors"
                )
        with torch.no_grad():
            for k, vectors in enumerate(self._step.vectors):
                vectors.copy_(torch.cat([learned[name].embeddings[k] for name in wanted]))

    def _read(self, path: Path, state: TrainState) -> int:
        """Read state, optimizer and baselines; return the initial number of CPU threads."""
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load does not compare checksums
                if part := archive.testzip():
                    raise ValueError(f"the checksum of {part} is wrong")
            stored = torch.load(path, map_location="cpu", weights_only=True)
            self._step.load_state_dict(stored)
            state.samples_seen, state.window = int(stored["samples_seen"]), dict(stored["window"])
            # Earlier versions stored none of these: only measurements from now on count.
            state.validations = dict(stored.get("validations", {}))
            state.best_vectors = tuple(stored.get("best_rows", ()))
            state.best_uuid = stored.get("best_uuid", "")
            baselines = [Baselines(**ends) for ends in stored.get("anchors", [])]
            threads = int(stored.get("threads", torch.get_num_threads()))
            check_state(state, baselines, self._step.vectors)
            # The image of sample i, and which images are held out, depend on the whole list.
            changed = changed_images(stored.get("images", self._digests), self._digests)
        except Exception as error:  # reading untrusted bytes can fail in any way
            why = f"{type(error).__name__}: {one_line(error, 100)}"
            raise damaged(path, why, _name(self._run)) from None
        if changed:
            raise UserError(
                f"the training images have changed since this run began ({changed}); put them back "
                f"as they were, or {self._anew}"
            )
        if self._config.measure.num_samples and not baselines:
            raise UserError(
                "measure.num_samples: this run began without it, so there is nothing to compare "
                f"its samples with; set it to 0, or {self._anew}"
            )
        if self._metrics:
            self._metrics.baselines = baselines
        return threads

    @property
    def _anew(self) -> str:
        return f"{self._run.begin_anew} ({self._run.warm_start} keeps what was learned)"

    def _report_longer_schedule(self, step: int, metadata: dict, samples_per_step: int) -> None:
        """Report how more steps than the run began with change the learning rate."""
        t = self._config.training
        old = metadata.get("config", {}).get("training", {}).get("num_sgd_steps", t.num_sgd_steps)
        if not isinstance(old, int) or t.num_sgd_steps <= old:
            return
        said = f"{t.num_sgd_steps} steps instead of {old}: "
        if t.lr_scheduler == "constant" and not 0 < t.lr_warmup_steps < 1:
            self._run.print(f"{said}the result equals that of a run with {t.num_sgd_steps} steps")
            return
        before = dataclasses.replace(t, num_sgd_steps=old)
        was = learning_rate(step, before, samples_per_step) if step < old else 0
        self._run.print(
            f"{said}from now on the learning rate follows a {t.lr_scheduler} schedule over "
            f"{t.num_sgd_steps} steps, starting at {learning_rate(step, t, samples_per_step):.3g} "
            f"instead of {was:.3g}; the result differs from that of a run with {t.num_sgd_steps} "
            "steps"
        )

    def _warn_of_threads(self, before: int) -> None:
        now = torch.get_num_threads()
        if self._step.model.device.type == "cpu" and before != now:
            logger.warning(
                "this run began with %d CPU threads and continues with %d, which round sums "
                "differently, so its vectors will differ from those of an uninterrupted run; set "
                "OMP_NUM_THREADS=%d to avoid this",
                before,
                now,
                before,
            )
