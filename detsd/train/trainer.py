"""Textual inversion (arXiv 2208.01618): state, and the loop, which reads like the paper.

    Trainer(config, run).train()

Only the concepts' rows train. Every rank holds the frozen model, takes its share of each step's
samples, and the rows' gradients are averaged: nothing else has to be synchronised.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.prompts import prompt_warnings
from detsd.concepts.reading import read_concepts
from detsd.concepts.source import ConceptSource
from detsd.concepts.writing import encode, write_concepts
from detsd.config import FinetuneConfig, ModelConfig, flat
from detsd.data.dataset import Batch, TrainingData, changed_images
from detsd.data.prefetch import prefetch
from detsd.evaluate.encoders import ImageEncoder, load_encoders
from detsd.evaluate.metrics import Baselines
from detsd.models.base import BaseModel
from detsd.models.loading import load_base_model, pick_dtype
from detsd.models.spec import fetch_vocabulary
from detsd.runs.folder import DICT_FILE, read_metadata
from detsd.runs.ranks import package_versions
from detsd.runs.run import Run, pack, unpack
from detsd.train.initializers import add_concepts
from detsd.train.preflight import check_finetune
from detsd.train.samples import SampleMetrics, Samples
from detsd.train.step import TrainStep, learning_rate, wants_compiler
from detsd.train.validation import Validation, best_step, on_plateau
from detsd.utils.errors import Diverged, UserError
from detsd.utils.paths import atomic_write
from detsd.utils.progress import Bar, Phase, spinner

logger = logging.getLogger("detsd")

STATE_FILE = "trainer_state.pt"

SAMPLES = "samples.zip"  # in a checkpoint on a cluster: the samples since the start

DIVERGED = 1e9  # reported in place of a loss that is not finite: searchers fail on NaN


class Trainer:
    """Model, data, rows and optimizer of one fine-tuning; complete when constructed."""

    def __init__(self, config: FinetuneConfig, run: Run):
        self.config, self.run = config, run
        t = config.training
        run.assert_equal_across_ranks(
            configuration=flat(dataclasses.asdict(config)),
            package_versions=package_versions(),
            precision={"dtype": str(pick_dtype(config.model.precision, run.ranks.device, True))},
        )
        brought = [s for s in config.concepts.initializer_strs if ConceptSource.looks_like(s)]
        brought += [run.latest] if run.latest and not run.latest_is_own else []
        learned = [concept for source in brought for concept in read_concepts(source)]
        with run.ranks.local_main_process_first():
            fetch_vocabulary(self._model_config())
        check_finetune(config, "the configuration")  # once more, by the words of a hub model
        # Who measures, where anything is; the others are told. Before the base model, so that a
        # mistake in an evaluator's name does not wait for its weights.
        measures = config.measure.num_samples and run.is_chief
        self.encoders = self._load_encoders() if measures else {}
        began = time.monotonic()
        loading = spinner(f"loading {config.model.pretrained_model_name_or_path}")
        # One rank of each node downloads; the others then find the files.
        with loading, run.ranks.local_main_process_first():
            self.model: BaseModel = load_base_model(
                self._model_config(), run.ranks.device, learned, training=True
            )
        if self.model.device.type == "cpu":
            # Several threads add up the gradients of the embedding rows in the order in which
            # they come; Adam makes other pictures of that within a few steps.
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # it only costs time
        self.vocabulary = self.model.vocabulary
        add_concepts(self.vocabulary, config)
        self.step = TrainStep(self.model, t, run.ranks)
        size = config.concepts.img_size or self.model.image_size
        self.metrics = SampleMetrics(config, self.encoders, size) if self.encoders else None
        self.samples = Samples(config, self.model, run, size, self.metrics)
        loaded = time.monotonic()
        self.data = TrainingData(config.concepts, self.model, t.train_seed, t.max_validation_images)
        self.start = {
            "seconds_loading": loaded - began,  # the model, from the hub where it is not here
            "seconds_encoding": time.monotonic() - loaded,
            "images_encoded": len(self.data.digests),
        }
        run.assert_equal_across_ranks(
            training_images=self.data.digests, base_model={"commit": self.model.commit}
        )
        if t.gradient_checkpointing:
            self.model.unet.enable_gradient_checkpointing()
        self.model.vae.to("cpu")  # all images are encoded; it comes back for samples
        training_images = [*self.data.images, *self.data.validation]
        self.vocabulary.remember(prompt for image in training_images for prompt in image.prompts)
        self._warn_of_prompts()
        self.samples_per_step = t.train_batch_size * t.gradient_accumulation_steps * run.ranks.size
        self.steps_completed = 0
        self.samples_seen = 0
        self.window: dict[str, float] = {}  # sums since the last report
        self.validations: dict[int, dict[str, float]] = {}  # what each measured, by step
        self.best_rows: tuple[torch.Tensor, ...] = ()  # of the best step so far
        self.best_uuid = ""  # what a cluster calls its checkpoint
        if run.latest:
            self._restore(run.latest)
        self._seen_at_start = self.samples_seen
        # Drawn by a thread while others compute.
        self.batches = prefetch(self.next_batch, itertools.count(), 1)
        if wants_compiler(t, self.model.device):
            self.step.compile(self.next_batch(0))
        self.validation = Validation(self.model, self.data, t.num_validation_timesteps, run)
        bar = Bar({"validation": self.validation.phase}, "validating the phrase", leave=False)
        with bar as self.bar, self.vocabulary.using(self.step.initial_vectors):
            self.initial_val_loss = self.validation.loss(bar)
        if not math.isfinite(self.initial_val_loss):
            raise UserError(
                f"{config.model.pretrained_model_name_or_path} gives no finite loss even before "
                "training; set model.precision to fp32, or use another base model"
            )
        run.begin()
        self._keep_best()  # of the checkpoint that this goes on from

    def _began(self) -> dict[str, Any]:
        """What the checkpoint that this run goes on from says of itself; {} where there is none."""
        return read_metadata(self.run.latest) if self.run.latest_is_own and self.run.latest else {}

    def _model_config(self) -> ModelConfig:
        """The configured base model, of the hub's at the commit that this run began with."""
        model = self.config.model
        return dataclasses.replace(model, revision=self._began().get("commit") or model.revision)

    def _load_encoders(self) -> dict[str, ImageEncoder]:
        """The evaluators, of the hub's at the commits that the anchors were measured with."""
        name = self.config.model.pretrained_model_name_or_path
        commits = self._began().get("evaluators")
        return load_encoders(self.config.evaluator, name, self.run.ranks.device, commits)

    # ---- the step ----------------------------------------------------------------------------

    def train(self) -> bool:
        """Train to the end. False when stopped before it, with a checkpoint saved."""
        if not self.complete:
            text = f"{self.steps_completed}/{self.config.training.num_sgd_steps} steps"
            self.bar = Bar(self._work(), text)
            with self.bar, contextlib.closing(self.batches):
                self._train()
        if self.complete:
            self.run.report_progress(1.0)
            self._register()
        return self.complete

    @property
    def plateaued(self) -> bool:
        """Whether val_loss has come to rest, where the run is to end on that."""
        t = self.config.training
        losses = [self.initial_val_loss, *(v["val_loss"] for v in self.validations.values())]
        return on_plateau(losses, t.stop_on_plateau, t.plateau_ratio)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train."""
        return self.steps_completed >= self.config.training.num_sgd_steps or self.plateaued

    @property
    def best(self) -> int | None:
        """The step of the best checkpoint so far."""
        return best_step(self.validations, self.config.best_metric)

    def _train(self) -> None:
        t, run, bar = self.config.training, self.run, self.bar
        run.report(self.steps_completed, self.start, "start")
        if self.steps_completed == 0:
            self.samples.log_training_images(self.data.pictures)
            with self.vocabulary.using(self.step.initial_vectors):
                self.samples.make(0, bar)
            bar.note = ""
        self._clock, self._clocked = time.monotonic(), 0
        while not self.complete:
            lr = learning_rate(self.steps_completed, t, self.samples_per_step)
            parts = self.step(self.batches, lr)
            self.steps_completed += 1
            self.samples_seen += self.samples_per_step
            bar.text = f"{self.steps_completed}/{t.num_sgd_steps} steps"
            bar.done("steps")
            for name, value in parts.items():  # tensors: reading one out would wait for the device
                self.window[name] = self.window.get(name, 0.0) + value
            self._clocked += 1
            last = self.steps_completed == t.num_sgd_steps
            if self.steps_completed % t.metric_report_freq == 0 or last:
                self._report()
            stop = run.should_stop()
            due = self.steps_completed % t.checkpoint_freq == 0 or last
            began, note = time.monotonic(), bar.note
            if due:
                loss = self._validate()
                self._conclude(loss, self.samples.make(self.steps_completed, bar))
            self._clock += time.monotonic() - began  # samples per second are of training
            began = time.monotonic()
            if self.complete and self.window:  # settled between two reports
                self._report()
            if self.complete:
                bar.draw(note="drawing")
                self.samples.draw_progress(self.steps_completed, self.data.pictures)
                bar.done("drawing")
            if due or stop:
                if self.step.diverged:  # between two reports
                    self._diverge()
                self._save()
            bar.note = note
            self._clock += time.monotonic() - began
            if stop:
                break

    def _work(self) -> dict[str, Phase]:
        """What this rank has to do, and has done, of each kind; costs in passes of the UNet."""
        t, steps = self.config.training, self.steps_completed
        validations, done = -(-t.num_sgd_steps // t.checkpoint_freq), steps // t.checkpoint_freq
        validating, passes = self.validation.phase, self.validation.passes
        validating.total, validating.done = validations * passes, done * passes
        samples = self.samples.steps
        guided = self.config.inference.guidance_scale > 1
        return {
            # Forward and backward, and the frozen text encoder's share.
            "steps": Phase(
                3 * t.train_batch_size * t.gradient_accumulation_steps, t.num_sgd_steps, steps
            ),
            "validation": validating,
            "samples": Phase(
                1 + guided, (validations + 1) * samples, (done + (steps > 0)) * samples
            ),
            "drawing": Phase(0, 1, seconds=2, seen=1),  # on any device
        }

    def next_batch(self, micro: int) -> Batch:
        """This rank's samples of a micro-batch, counted from the start of this process."""
        size, ranks = self.config.training.train_batch_size, self.run.ranks
        first = self._seen_at_start + (micro * ranks.size + ranks.rank) * size
        examples = [self.data.sample(i) for i in range(first, first + size)]
        return Batch.of(examples).pinned(self.model.device)

    # ---- what is told ------------------------------------------------------------------------

    def _report(self) -> None:
        """Means over the steps since the last report and over ranks."""
        t, run = self.config.training, self.run
        sums = self._gathered_window()
        self.window = {}
        steps = sums.pop("steps")
        metrics = {name: value / steps for name, value in sums.items()} if steps else {}
        for end, rows in zip(("", "_2"), self.step.vectors, strict=False):
            norms = rows.detach().norm(dim=1)
            metrics[f"row_norm_mean{end}"] = float(norms.mean())
            metrics[f"row_norm_max{end}"] = float(norms.max())
        if self.step.diverged:
            self._diverge()
        seconds, self._clock = time.monotonic() - self._clock, time.monotonic()
        metrics["learning_rate"] = learning_rate(self.steps_completed - 1, t, self.samples_per_step)
        clocked, self._clocked = self._clocked, 0  # a resumed window is longer than its clock
        metrics["samples_per_second"] = clocked * self.samples_per_step / max(seconds, 1e-9)
        run.report(self.steps_completed, metrics)
        run.report_progress(self.steps_completed / t.num_sgd_steps)
        loss = metrics.get("loss", math.nan)  # nan: every step since the last report was left out
        if not self.bar.disable:
            self.bar.draw(note=f"loss {loss:.4f}")
        elif run.is_chief:
            speed = f"{metrics['samples_per_second']:.1f} samples/s"
            self.bar.line(f"{self.bar.text}, loss {loss:.4f}, {speed}")

    def _gathered_window(self) -> dict[str, float]:
        """The window's sums, averaged over the ranks."""
        everyone = self.run.gather([{k: float(v) for k, v in self.window.items()}])
        return {name: sum(w[name] for w in everyone) / len(everyone) for name in everyone[0]}

    def _validate(self) -> float | None:
        """The validation loss; None where fp16 has no number for it."""
        self.bar.draw(note="validating")
        loss = self.validation.loss(self.bar)
        if not math.isfinite(loss):
            if not self.step.scaler.is_enabled() or self.step.diverged:
                self._diverge()
            logger.warning(
                "val_loss at step %d is beyond the range of fp16 and is not reported; "
                "model.precision: bf16 or fp32 has more",
                self.steps_completed,
            )
            return None
        return loss

    def _conclude(self, loss: float | None, measured: dict[str, float]) -> None:
        """Report what a validation has found, and what follows from it."""
        if loss is None:
            return
        self.validations[self.steps_completed] = {"val_loss": loss} | measured
        if self.best == self.steps_completed:
            self.best_rows = tuple(rows.detach().cpu().clone() for rows in self.step.vectors)
        # A search counts a run that ends here as one of all its steps, and goes on to another.
        last = self.config.training.num_sgd_steps if self.plateaued else self.steps_completed
        self._report_validation(loss, last, measured)
        told = "".join(f"  {name} {value:.3f}" for name, value in measured.items())
        self.run.print(
            f"step {self.steps_completed}  val_loss {loss:.4f}  "
            f"(initializer {self.initial_val_loss:.4f}{', both masked' * self.data.masked}){told}"
        )
        if self.plateaued and last > self.steps_completed:
            self.run.print(
                f"ending at step {self.steps_completed} of {last}: val_loss has settled "
                "(training.stop_on_plateau)"
            )

    def _report_validation(self, loss: float, sgd_steps: int, measured: dict[str, float]) -> None:
        measured_on = "held_out" if self.data.held_out else "training_images"
        metrics = {
            "val_loss": loss,
            # The same number under a name that says what it was measured on.
            f"val_loss_{measured_on}{'_masked' * self.data.masked}": loss,
            "val_loss_initializer": self.initial_val_loss,
            "val_gap": self.initial_val_loss - loss,
            "sgd_steps": float(sgd_steps),  # the time_metric of a search
            **measured,
        }
        self.run.report(self.steps_completed, metrics, "validation")

    def _diverge(self) -> None:
        """Tell the searcher a large finite value, and end.

        As the value of the last step: adaptive ASHA replaces a trial that it has itself judged and
        stopped, not one that ends of its own accord.
        """
        worst = dict.fromkeys(self.config.measured, -DIVERGED) if self.samples.measured else {}
        self._report_validation(DIVERGED, self.config.training.num_sgd_steps, worst)
        raise Diverged(
            f"the loss is no longer finite at step {self.steps_completed}; lower "
            "training.learning_rate (the last checkpoint is untouched)"
        )

    # ---- checkpoints -------------------------------------------------------------------------

    def _save(self) -> None:
        state = {
            **self.step.state_dict(),
            "window": self._gathered_window(),
            "samples_seen": self.samples_seen,
            "images": self.data.digests,
            "threads": torch.get_num_threads(),
            "validations": self.validations,
            "best_rows": self.best_rows,
            "best_uuid": self.best_uuid,
            "anchors": [dataclasses.asdict(ends) for ends in self.metrics.baselines]
            if self.metrics
            else [],
        }
        metadata = {
            "kind": "finetune",
            "config": dataclasses.asdict(self.config),
            "concepts": self.vocabulary.names,
            "commit": self.model.commit,
            "evaluators": {which: eye.commit for which, eye in self.encoders.items()},
            "complete": self.complete,
            "settled": self.plateaued,
            "best": self.best and {"steps_completed": self.best} | self.validations[self.best],
        }

        def write(folder: Path) -> None:
            write_concepts(self._learned(self.steps_completed), folder)
            torch.save(state, folder / STATE_FILE)
            if not self.run.folder_is_kept:  # pictures come along, so that a resumed run has them
                samples = sorted((self.run.folder / "samples").glob("*.png"))
                pack(folder / SAMPLES, samples, self.run.folder)  # hundreds of small files as one
                for path in self.run.folder.glob("*.*"):
                    shutil.copy(path, folder)

        self.run.flush()  # first: a crash in between repeats these steps, and shows them again
        self._keep_best()
        uuid = self.run.save(self.steps_completed, metadata, write)
        if self.best == self.steps_completed:
            self.best_uuid = uuid

    def _learned(self, steps: int) -> list[LearnedConcept]:
        """The concepts with their rows of now, and where these come from."""
        facts = {"model": self.model.name, "model_hash": self.model.commit or "", "steps": steps}
        return [dataclasses.replace(c, **facts) for c in self.vocabulary.concepts()]

    def _keep_best(self) -> None:
        """The best rows so far as the concept file of the run's folder, which stands for them."""
        if not (self.run.is_chief and self.run.folder_is_kept):
            return
        path = self.run.folder / DICT_FILE
        if not self.best_rows:  # the file, if any, is of steps that are made again
            path.unlink(missing_ok=True)
            return
        with self.vocabulary.using(self.best_rows):
            learned = self._learned(self.best)
        with atomic_write(path) as staging:
            staging.write_bytes(encode(learned, "detsd")[DICT_FILE])

    def _register(self) -> None:
        """Make the best checkpoint a version of the model that the configuration may name."""
        name = self.config.training.register_model
        if name and self.best and self.run.is_chief:
            title = f"{', '.join(self.vocabulary.names)}, step {self.best}"
            figures = {"model": self.model.name} | self.validations[self.best]
            notes = "\n".join(f"- {key}: {value}" for key, value in figures.items())
            self.run.register(name, self.best_uuid, title, notes)

    def _restore(self, checkpoint: Path) -> None:
        """Everything from this run's own checkpoint; the learned rows only from another's."""
        learned = {c.name: c for c in read_concepts(checkpoint)}
        wanted = {c.name: [tuple(r.shape) for r in c.rows] for c in self.vocabulary.concepts()}
        for name, shapes in wanted.items():
            if name not in learned:
                raise UserError(
                    f"{self.run.latest_name} does not hold concept {name!r} but "
                    f"{', '.join(learned)}; name another one, give its concept that word "
                    "(FILE=WORD), or change concepts.concept_strs"
                )
            found = [tuple(r.shape) for r in learned[name].rows]
            if found != shapes:
                raise UserError(
                    f"{self.run.latest_name}: concept {name!r} has rows of shape "
                    f"{' and '.join(map(str, found))}, this run needs "
                    f"{' and '.join(map(str, shapes))}; "
                    "use the same base model, phrase and num_vectors"
                )
        with torch.no_grad():
            for k, rows in enumerate(self.step.vectors):
                rows.copy_(torch.cat([learned[name].rows[k] for name in wanted]))
        if not self.run.latest_is_own:
            self.run.print(f"starting from the rows of {self.run.latest_name}")
            return
        metadata = read_metadata(checkpoint)
        path = checkpoint / STATE_FILE
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.step.load_state_dict(state)
        except Exception as error:
            raise UserError(
                f"{STATE_FILE} of {self.run.latest_name} is damaged ({type(error).__name__}); "
                "delete that checkpoint to go on from the one before"
            ) from None
        # Which image sample number i is of, and which are held out, follows from the whole list.
        changed = changed_images(state.get("images", self.data.digests), self.data.digests)
        if changed:
            raise UserError(
                f"the training images are not those that this run began with ({changed}); put them "
                "back as they were, or begin another run (--warm-start keeps what was learned)"
            )
        if (checkpoint / SAMPLES).is_file():
            unpack(checkpoint / SAMPLES, self.run.folder)
        self.window = dict(state["window"])
        # A run of an earlier version kept none of these: what it goes on to measure counts.
        self.validations = state.get("validations", {})
        self.best_rows = state.get("best_rows", ())
        self.best_uuid = state.get("best_uuid", "")
        anchors = [Baselines(**ends) for ends in state.get("anchors", [])]
        if self.samples.measured and not anchors:
            raise UserError(
                "measure.num_samples: this run began without measuring, so that there is nothing "
                "to hold its samples against; set it to 0, or begin another run (--warm-start "
                "keeps what was learned)"
            )
        if self.metrics:
            self.metrics.baselines = anchors
        self.samples_seen = state["samples_seen"]
        self.steps_completed = metadata["steps_completed"]
        if self.best == self.steps_completed:
            self.best_uuid = self.run.latest_uuid
        self.run.print(f"resuming after step {self.steps_completed}")
        self._report_longer_schedule(metadata.get("config", {}).get("training", {}))
        threads = state.get("threads", torch.get_num_threads())
        if self.model.device.type == "cpu" and threads != torch.get_num_threads():
            logger.warning(
                "this run began on %d CPU threads and goes on on %d: sums are rounded otherwise, "
                "so that its rows will not be those of an undisturbed run; OMP_NUM_THREADS=%d "
                "makes them so",
                threads,
                torch.get_num_threads(),
                threads,
            )

    def _report_longer_schedule(self, before: dict) -> None:
        """What a larger `num_sgd_steps` than the run began with means for the learning rate."""
        t = self.config.training
        old = before.get("num_sgd_steps", t.num_sgd_steps)
        if t.num_sgd_steps <= old:
            return
        said = f"{t.num_sgd_steps} steps instead of {old}: "
        if t.lr_scheduler == "constant":
            self.run.print(f"{said}the same as a run that began with them")
            return
        step = self.steps_completed
        n = self.samples_per_step
        was = learning_rate(step, dataclasses.replace(t, num_sgd_steps=old), n) if step < old else 0
        self.run.print(
            f"{said}from here on the learning rate is that of a {t.lr_scheduler} of "
            f"{t.num_sgd_steps} steps, {learning_rate(step, t, n):.3g} where it was {was:.3g}; a "
            "run that began with them would end elsewhere"
        )

    def _warn_of_prompts(self) -> None:
        if not self.run.is_chief:
            return
        doubts = []
        for prompt in self.config.inference.inference_prompts:
            doubts += prompt_warnings(prompt, self.vocabulary)
            if not self.vocabulary.rewrite.words_in(prompt):
                logger.warning(
                    "inference.inference_prompts has %r, which names none of this run's concepts "
                    "(%s): its samples will not show what is learned",
                    prompt,
                    ", ".join(self.vocabulary.names),
                )
        prompts = {p for image in [*self.data.images, *self.data.validation] for p in image.prompts}
        misread = []
        for prompt in sorted(prompts):
            misread += prompt_warnings(prompt, self.vocabulary, spelling=False)
        for doubt in doubts + misread[:5]:
            logger.warning("%s", doubt)
        if len(misread) > 5:
            logger.warning("and %d more training prompts are misread so", len(misread) - 5)
