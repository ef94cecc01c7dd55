"""Textual inversion (arXiv 2208.01618): a fine-tuning and its loop, which reads like the paper.

    Trainer(config, run).train()

Only the concepts' vectors train. Every rank holds the frozen model and takes its share of each
step's samples; the gradients of the vectors are averaged, and nothing else is synchronised.
"""

import contextlib
import dataclasses
import itertools
import logging
import math
import time
from typing import Any

import torch

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.prompts import prompt_warnings
from detsd.concepts.reading import read_concepts
from detsd.concepts.source import ConceptSource
from detsd.config import FinetuneConfig, flat, refuse
from detsd.data.dataset import Batch, TrainingData
from detsd.data.prefetch import prefetch
from detsd.evaluate.encoders import ImageEncoder, load_encoders
from detsd.models.base import BaseModel
from detsd.models.loading import load_base_model, pick_dtype
from detsd.models.spec import fetch_vocabulary
from detsd.models.vae import pinned
from detsd.runs.folder import read_metadata
from detsd.runs.ranks import package_versions
from detsd.runs.run import Run
from detsd.sampling.stock import check_steps
from detsd.train.checkpoint import Checkpoints, latest_concepts, samples_per_step
from detsd.train.initializers import add_concepts
from detsd.train.phrases import add_found
from detsd.train.preflight import word_problems
from detsd.train.report import Report
from detsd.train.resume import digests_of_paths, layout_line, resumed_layout
from detsd.train.samples import SampleMetrics, Samples
from detsd.train.step import TrainStep, learning_rate, wants_compiler
from detsd.train.validation import Validation, on_plateau
from detsd.utils.errors import UserError
from detsd.utils.plurals import counted
from detsd.utils.progress import Bar, Phase, spinner

logger = logging.getLogger("detsd")


class Trainer:
    """The model, data, vectors and optimizer of one fine-tuning.

    Attributes:
        phases: this rank's work of each kind, done and left; costs in passes of the UNet.
        version: the best checkpoint's version in the cluster's registry, after the end; else "".
    """

    def __init__(self, config: FinetuneConfig, run: Run):
        self.run = run
        run.assert_equal_across_ranks(
            configuration=flat(dataclasses.asdict(config)),
            package_versions=package_versions(),
            precision={"dtype": str(pick_dtype(config.model.precision, run.ranks.device, True))},
        )
        metadata = read_metadata(run.latest) if run.latest and run.latest_is_own else {}
        earlier = latest_concepts(run, config.concepts.concept_strs) if run.latest else []
        self.config = self._resumed_layout(config, metadata)
        t = self.config.training
        self.samples_per_step = t.train_batch_size * t.gradient_accumulation_steps * run.ranks.size
        # Only the chief loads the evaluators; the other ranks receive its metrics.
        measures = config.measure.num_samples and run.is_chief
        self.model, encoders, seconds = _load(config, run, metadata, earlier, bool(measures))
        size = config.concepts.img_size or self.model.image_size
        started = time.monotonic()
        crops = {} if encoders else None  # decoded once, for training and measuring
        self.data = TrainingData(
            config.concepts, self.model, t.train_seed, t.max_validation_images, crops,
            self.samples_per_step,
        )  # fmt: skip
        encoded = time.monotonic() - started
        add_found(config.concepts, self.model, self.data, run, earlier)
        self.step = TrainStep(self.model, t, run.ranks)
        self._set_resolutions(earlier if run.latest_is_own else [])
        step = self.model.bucket_step
        metrics = SampleMetrics(config, encoders, size, crops, step) if encoders else None
        self.samples = Samples(config, self.model, run, size, metrics)
        digests = self.data.digests
        self.start = {
            "seconds_loading": seconds,  # including the download from the hub
            "seconds_encoding": encoded,
            "images_encoded": len(digests),
        }
        run.assert_equal_across_ranks(
            training_images=digests,
            base_model={"commit": self.model.commit, "vae": self.model.vae_name},
        )
        if t.gradient_checkpointing:
            self.model.unet.enable_gradient_checkpointing()
        self.samples.set_vae_aside()  # all images are encoded
        self._examine_prompts()
        facts = {"samples_per_step": self.samples_per_step}
        if run.is_chief and run.folder_is_kept:
            source = None if run.latest_is_own else run.latest
            facts["digests"] = metadata.get("digests") or digests_of_paths(config, source)
        self.checkpoints = Checkpoints(config, run, self.step, digests, encoders, metrics, facts)
        self.state = self.checkpoints.restore(earlier, self.samples_per_step)
        before = metadata.get("config", {}).get("inference", {})
        self._new_samples = self.samples.differ_from(before)
        self._first_sample = self.state.samples_seen
        # Drawn by another thread during the computation.
        self.batches = prefetch(self.next_batch, itertools.count(), 1)
        if wants_compiler(t, self.model.device):
            self.step.compile(self.next_batch(0))
        self.validation = Validation(self.model, self.data, t.num_validation_timesteps, run)
        bar = Bar({"validation": self.validation.phase}, "validating the initializer", leave=False)
        with bar, self.model.vocabulary.using(self.step.initial_vectors):
            self.initial_val_loss = self.validation.loss(bar)
        if not math.isfinite(self.initial_val_loss):
            raise UserError(
                f"{config.model.pretrained_model_name_or_path} gives no finite loss even before "
                "training; set model.precision to fp32, or use another base model"
            )
        steps, self.version, self._gone = self.state.steps_completed, "", ""
        initial = steps > 0 and not self._new_samples
        self.phases = _phases(self.config, steps, self.samples, self.validation, initial)
        run.begin()
        self.samples.restart(steps, self._new_samples)
        self.checkpoints.keep_best(self.state)  # from the checkpoint that the run resumes from

    def _resumed_layout(self, config: FinetuneConfig, metadata: dict[str, Any]) -> FinetuneConfig:
        """Return the configuration with which a resumed run keeps its samples per step."""
        run, t = self.run, config.training
        left = metadata.get("steps_completed", t.num_sgd_steps) < t.num_sgd_steps
        samples = samples_per_step(run.latest, metadata) if left else None
        before = metadata.get("config", {}).get("training", {})
        layout = resumed_layout(t, before, samples, run.ranks.size)
        if layout != t:
            run.print(layout_line(layout, samples, run.ranks.size))
        return dataclasses.replace(config, training=layout)

    def _set_resolutions(self, own: list[LearnedConcept]) -> None:
        """Give the concepts the shape of their images; those of a resumed run keep their `own`."""
        found, run = self.data.resolutions, self.run
        found |= {concept.name: concept.resolution for concept in own}  # square in older versions
        for name in self.model.vocabulary.names:
            self.model.vocabulary.set_resolution(name, found[name])
        if self.config.concepts.img_aspect == "buckets":
            for name, shapes in self.data.shapes.items():
                said = ", ".join(f"{n} of {w} x {h}" for (w, h), n in shapes.most_common())
                run.print(f"{name}: images in {counted(len(shapes), 'bucket')}: {said}")

    def _examine_prompts(self) -> None:
        """Tokenize the training prompts once, and warn about anything odd in any prompt."""
        vocabulary, training_images = self.model.vocabulary, self.data.images + self.data.validation
        vocabulary.remember(prompt for image in training_images for prompt in image.prompts)
        if not self.run.is_chief:
            return
        for prompt in self.config.inference.inference_prompts:
            if not vocabulary.rewrite.words_in(prompt):
                logger.warning(
                    "inference.inference_prompts has %r, which names none of this run's concepts "
                    "(%s): its samples will not show what is learned",
                    prompt,
                    ", ".join(vocabulary.names),
                )
        misread, told = [], set()
        written = self.config.concepts.use_caption_files  # captions may misspell, templates do not
        for prompt in sorted({p for image in training_images for p in image.prompts}):
            name = "caption" if written else "training prompt"
            misread += prompt_warnings(prompt, vocabulary, written, False, name, told)
        for problem in misread[:5]:
            logger.warning("%s", problem)
        if len(misread) > 5:
            more = counted(len(misread) - 5, "more training prompt")
            logger.warning("and %s with such problems", more)

    def next_batch(self, micro: int) -> Batch:
        """Return this rank's samples of a micro-batch, counted from the start of this process."""
        size, ranks = self.config.training.train_batch_size, self.run.ranks
        first = self._first_sample + (micro * ranks.size + ranks.rank) * size
        samples = [self.data.sample(i) for i in range(first, first + size)]
        return Batch.of(samples).pinned(self.model.device)

    @property
    def plateaued(self) -> bool:
        """True once val_loss has levelled off, if the run is configured to end then."""
        t = self.config.training
        losses = [self.initial_val_loss, *(v["val_loss"] for v in self.state.validations.values())]
        return on_plateau(losses, t.stop_on_plateau, t.plateau_ratio)

    @property
    def complete(self) -> bool:
        """True if nothing is left to train."""
        return self.state.steps_completed >= self.config.training.num_sgd_steps or self.plateaued

    @property
    def best_uuid(self) -> str:
        """The checkpoint to use next: that of the best step, else the newest. Chief only."""
        return ("" if self._gone else self.state.best_uuid) or self.run.stored_uuid

    @property
    def best_line(self) -> str:
        """A line on the best step, its metrics and its checkpoint on a cluster. Chief only."""
        where = ", ".join(filter(None, (f"checkpoint {self.best_uuid}", self.version)))
        if self._gone:
            where = f"{self._gone}; the newest is {where}"
        return f"{self.checkpoints.best_line(self.state, self.initial_val_loss)}; {where}"

    def train(self) -> bool:
        """Train to the end; return False if stopped before it, with a checkpoint saved."""
        if not self.complete:
            total = counted(self.config.training.num_sgd_steps, "step")
            text = f"{self.state.steps_completed}/{total}"
            with Bar(self.phases, text) as bar, contextlib.closing(self.batches):
                self._train(bar)
        if self.complete:
            self.run.report_progress(1.0)
            self.version = self.checkpoints.register(self.state)
            if self.run.is_chief and self.state.best_uuid:
                newer = sum(step > self.state.best for step in self.state.validations)
                newer = 0 if self.version else newer  # a version keeps its checkpoint
                self._gone = self.run.deletes(self.state.best_uuid, newer)
        return self.complete

    def _train(self, bar: Bar) -> None:
        t, run, state = self.config.training, self.run, self.state
        run.report(state.steps_completed, self.start, "start")
        report = Report(self.config, run, self.step, state, self.data, self.initial_val_loss, bar)
        initial = state.steps_completed == 0 or self._new_samples
        while not self.complete:
            lr = learning_rate(state.steps_completed, t, self.samples_per_step)
            report.add(self.step(self.batches, lr), self.samples_per_step)
            last = state.steps_completed == t.num_sgd_steps
            if last or state.steps_completed % t.metric_report_freq == 0:
                report.flush(lr)
            if initial:
                # After a step, so that if a step does not fit into memory, no sampling is lost.
                with report.pause(), self.model.vocabulary.using(self.step.initial_vectors):
                    if state.steps_completed == 1:
                        self.samples.log_training_images(self.data.pictures)
                    self._sample(0, bar)
                initial = False
            stop = run.should_stop()  # collective: every rank, every step
            due = last or state.steps_completed % t.checkpoint_freq == 0
            if due:
                with report.pause():
                    self._evaluate(report, bar)
            if self.complete and state.window:  # plateaued between two reports
                report.flush(lr)
            if due or stop:
                with report.pause():
                    self._save(report, bar)
            if stop:
                break

    def _evaluate(self, report: Report, bar: Bar) -> None:
        """Validate, make samples, and keep the best vectors so far."""
        state, loss = self.state, self._validate(report, bar)
        measured = self._sample(state.steps_completed, bar)
        if loss is None:
            return
        state.validations[state.steps_completed] = {"val_loss": loss} | measured
        if state.best == state.steps_completed:
            state.best_vectors = tuple(v.detach().cpu().clone() for v in self.step.vectors)
        report.validation(state.validations[state.steps_completed], self.plateaued)

    def _sample(self, step: int, bar: Bar) -> dict[str, float]:
        """Make the samples of a step; return their metrics."""
        measured = self.samples.make(step, bar)
        bar.done("decoding")
        return measured

    def _validate(self, report: Report, bar: Bar) -> float | None:
        """Return the validation loss; None if it is beyond the range of fp16."""
        bar.draw(note="validating")
        loss = self.validation.loss(bar)
        if not math.isfinite(loss):
            report.skipped_validation()
            return None
        return loss

    def _save(self, report: Report, bar: Bar) -> None:
        """Draw the progress at the end, and store a checkpoint unless the run has diverged."""
        if self.complete:
            bar.draw(note="drawing")
            self.samples.draw_progress(self.state.steps_completed, self.data.pictures)
            bar.done("drawing", self.phases["drawing"].left)
        if self.step.diverged:  # since the last report
            report.diverge()
        self.checkpoints.save(self.state, self.complete, self.plateaued)
        bar.done("saving")


def _phases(
    config: FinetuneConfig, steps: int, samples: Samples, validation: Validation, initial: bool
) -> dict[str, Phase]:
    """Return a rank's work from the first step on, with the work up to `steps` marked as done.

    Args:
        initial: whether the samples of step 0 already exist.
    """
    t, i = config.training, config.inference
    validations, done = -(-t.num_sgd_steps // t.checkpoint_freq), steps // t.checkpoint_freq
    validation.phase.total = validations * validation.passes
    validation.phase.done = done * validation.passes
    sampled, images = done + initial, len(i.inference_prompts) * len(i.seeds) * i.img_per_prompt
    # Forward and backward, and the frozen text encoder's share.
    cost = 3 * t.train_batch_size * t.gradient_accumulation_steps
    guided = i.guidance_scale > 1
    return {
        "steps": Phase(cost, t.num_sgd_steps, steps),
        "validation": validation.phase,
        "samples": Phase(1 + guided, (validations + 1) * samples.steps, sampled * samples.steps),
        "decoding": Phase(0, validations + 1, sampled),  # and measuring
        # An image of the time-lapse takes 0.05 s on any device.
        "drawing": Phase(0, (validations + 1) * images, seconds=0.05, seen=1),
        "saving": Phase(0, validations, done),
    }


def _load(
    config: FinetuneConfig,
    run: Run,
    metadata: dict[str, Any],
    earlier: list[LearnedConcept],
    measures: bool,
) -> tuple[BaseModel, dict[str, ImageEncoder], float]:
    """Return the base model with its concepts, the encoders, and the model's loading seconds.

    The hub commits are those in the `metadata` of the checkpoint that the run resumes from.
    """
    revision = metadata.get("commit") or config.model.revision
    vae = pinned(config.model.vae, metadata.get("vae"))
    source = dataclasses.replace(config.model, revision=revision, vae=vae)
    name, device = source.pretrained_model_name_or_path, run.ranks.device
    brought = [s for s in config.concepts.initializer_strs if ConceptSource.looks_like(s)]
    learned = [concept for each in brought for concept in read_concepts(each)]
    with run.ranks.local_main_process_first():
        tokens = fetch_vocabulary(source)
    refuse(word_problems(config, tokens), "the configuration")  # now with a hub model's tokens
    # First, so that a wrong evaluator name is found before the base model's weights load.
    commits = metadata.get("evaluators")
    encoders = load_encoders(config.evaluator, name, device, commits) if measures else {}
    started = time.monotonic()
    # One rank of each node downloads; the others then find the files.
    with spinner(f"loading {name}"), run.ranks.local_main_process_first():
        model = load_base_model(source, device, learned + earlier, training=True)
    if device.type == "cpu":
        # Otherwise threads sum the gradients of the vectors in the order of arrival. Adam turns the
        # rounding differences into different pictures within a few steps.
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # it only costs time
    i = config.inference
    if i.inference_prompts or config.measure.num_samples:
        check_steps(model, i.scheduler_name, i.num_inference_steps, "inference")
    # Concepts whose phrase is searched for come last, also in a resumed run.
    add_concepts(model.vocabulary, config.concepts, earlier=earlier)
    return model, encoders, time.monotonic() - started
