"""Evaluation of concepts: samples compared with training images, prompts and look-alikes.

    Evaluation(config, run).evaluate()

The samples are a grid of images, so they are divided among any number of processes and made once,
however often the evaluation is interrupted. The initializer of each concept is sampled with the
same seeds, and sets the lower end of the scales. In addition to the images, the run's folder (on a
cluster, also the last checkpoint) then holds

    evaluation.json  all figures
    evaluation.png   CLIP-I against CLIP-T, a point for each concept or checkpoint
    samples.png      training images, samples of the initializer and of each concept
    sheets/          a contact sheet of all samples of each
"""

import dataclasses
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from detsd.concepts.prompts import PromptRewriter
from detsd.concepts.vocabulary import check_fit
from detsd.config import EvaluateConfig, GenerateConfig, GridConfig, flat
from detsd.data.dataset import Batch, TrainingData
from detsd.data.folder import lookalikes_of
from detsd.data.images import read_images, target_sizes
from detsd.evaluate.encoders import ImageEncoder, load_encoders
from detsd.evaluate.metrics import ConceptMetrics
from detsd.evaluate.report import FIGURES, SHOWN, overview, plot
from detsd.evaluate.rows import describe_rows
from detsd.evaluate.samples import ConceptReference, SampleSet, edits, find_sample_sets
from detsd.generate.grid import Grid
from detsd.generate.sheets import ContactSheet
from detsd.models.objective import errors_over_timesteps
from detsd.models.spec import read_spec, resolve_model
from detsd.runs.run import Run
from detsd.sampling.jobs import Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.utils import png
from detsd.utils.errors import UserError
from detsd.utils.progress import Bar, Phase, spinner

NOISE_LEVELS = 5  # equal parts of the timesteps, each with its own denoising error


class Evaluation:
    """The samples of several concepts, and the figures computed from them.

    Attributes:
        result: the content of `evaluation.json`; on the chief, at the end.
    """

    def __init__(self, config: EvaluateConfig, run: Run):
        self.config, self.run = config, run
        run.assert_equal_across_ranks(evaluation=flat(dataclasses.asdict(config)))
        self.sample_sets = find_sample_sets(config, run.model_uuids(config.concepts.models))
        self.references = [s.reference for s in self.sample_sets if not s.concept]
        lineup = config.evaluation.lineup
        lineups = [
            lookalikes_of(r.folder, r.name, lineup, "evaluation.lineup") for r in self.references
        ]
        with run.ranks.local_main_process_first():
            widths = read_spec(resolve_model(config.model)).widths
        for sample_set in self.sample_sets:
            if sample_set.concept:
                check_fit(sample_set.concept, widths, config.model.pretrained_model_name_or_path)
        self.encoders: dict[str, ImageEncoder] = {}
        if run.is_chief:  # only the chief measures
            self.encoders = load_encoders(
                config.evaluator, config.model.pretrained_model_name_or_path, run.ranks.device
            )
        grid = GenerateConfig(
            config.model,
            GridConfig([job.prompt for s in self.sample_sets for job in s.jobs]),
            # An image's last bits may depend on the rest of its batch, but not on the rank count.
            output=dataclasses.replace(config.output, fill_batches=True),
        )
        self.result: dict[str, Any] = {}
        self.grid = Grid(grid, run, self._prepare, self._sheets, self._measure)
        self.model = self.grid.pipeline.model
        self.lookalikes = []
        if run.is_chief:  # before the samples, since a folder may hold no readable image
            self.lookalikes = [
                [self._images(folder, reference, "evaluation.lineup") for folder in folders]
                for reference, folders in zip(self.references, lineups, strict=True)
            ]
        self.errors = self._errors()

    def evaluate(self) -> bool:
        """Make the missing samples and measure; return False if stopped before the end."""
        return self.grid.generate()

    # ---- samples -----------------------------------------------------------------------------

    def _prepare(self, pipeline: DetSDTextualInversionPipeline) -> list[Job]:
        """Load the concepts into the pipeline; return the jobs of all sample sets."""
        for sample_set in self.sample_sets:
            if sample_set.concept:
                pipeline.add([sample_set.concept], sample_set.source, sample_set.source)
        sampler = self.config.evaluation.scheduler_name or pipeline.own_scheduler
        jobs = []
        for sample_set in self.sample_sets:
            reference, size = sample_set.reference, pipeline.model.image_size
            shapes = target_sizes(reference.concepts, size)
            one = shapes[0] if len(shapes) == 1 else (size, size)
            width, height = reference.resolution or one
            own = {"width": width, "height": height, "scheduler_name": sampler}
            jobs += [dataclasses.replace(job, **own) for job in sample_set.jobs]
        return jobs

    def _sheets(self, jobs: list[Job]) -> list[ContactSheet]:
        """Lay out a contact sheet for each sample set: the plain prompt first, then the others."""
        e, found, start = self.config.evaluation, [], 0
        for sample_set in self.sample_sets:
            numbers = list(range(start, start := start + len(sample_set.jobs)))
            rows = [numbers[: e.num_samples][k : k + SHOWN] for k in range(0, e.num_samples, SHOWN)]
            edited = numbers[e.num_samples :]
            wide = max(1, SHOWN // e.num_samples_per_prompt) * e.num_samples_per_prompt
            rows += [edited[k : k + wide] for k in range(0, len(edited), wide)]
            labels = ["  |  ".join(dict.fromkeys(jobs[n].prompt for n in row)) for row in rows]
            found.append(ContactSheet(sample_set.label, labels, [], rows))
        return found

    def _samples(self, sample_set: SampleSet, most: int | None = None) -> list[Image.Image]:
        """Return the images of a sample set, or only the first `most`."""
        store, place = self.grid.store, self.sample_sets.index(sample_set)
        start = sum(len(s.jobs) for s in self.sample_sets[:place])
        numbers = range(start, start + len(sample_set.jobs))
        if any(store.finished[number]["flagged"] for number in numbers):
            raise UserError(
                f"the model's safety checker has blacked out samples of {sample_set.label}, which "
                "therefore cannot be measured; set model.safety_checker to false, and "
                f"{self.grid.run.begin_anew}"
            )
        return [store.image(number) for number in numbers[:most]]

    # ---- the denoising error -----------------------------------------------------------------

    @torch.no_grad()
    def _errors(self) -> list[list[float]]:
        """Return each sample set's mean denoising error of held-out images by timestep. Collective.

        One rank computes each set.
        """
        ranks, n = self.run.ranks, self.config.evaluation.num_error_timesteps
        read: dict[str, TrainingData] = {}  # concepts of one run share theirs
        todo = {}
        for k in range(ranks.rank, len(self.sample_sets), ranks.size):
            r = self.sample_sets[k].reference
            settings = repr((r.concepts, r.seed, r.most_held_out))  # a configuration has no hash
            if settings not in read:
                read[settings] = TrainingData(r.concepts, self.model, r.seed, r.most_held_out)
            data = read[settings]
            own = [j for j, image in enumerate(data.validation) if image.concept == r.name]
            todo[k] = data, own
        phase = Phase(1, total=n * sum(len(own) for _, own in todo.values()))
        with Bar({"errors": phase}, "measuring the denoising error", leave=False) as bar:
            found = [(k, self._error(self.sample_sets[k], *of, bar)) for k, of in todo.items()]
        return [errors for _, errors in sorted(self.run.gather(found))]

    def _error(
        self, sample_set: SampleSet, data: TrainingData, own: list[int], bar: Bar
    ) -> list[float]:
        """Return the denoising error at each timestep, a mean over the held-out images `own`."""
        reference = sample_set.reference
        word = sample_set.concept.name if sample_set.concept else reference.initializer
        rewrite, total = PromptRewriter({reference.name: word}), torch.zeros(())
        for number in own:
            examples = data.validation_samples(number, self.config.evaluation.num_error_timesteps)
            cond = self.model.encode_prompts([rewrite(examples[0].prompt)], [examples[0].frame])
            batch = Batch.of(examples).on(self.model.device)
            errors = errors_over_timesteps(
                self.model, *batch.noising, cond, batch.mask, partial(bar.done, "errors")
            )
            total = total + errors.cpu()
        return (total / len(own)).tolist()

    def _error_by_noise(self, sample_set: SampleSet) -> dict[str, float]:
        """Return a sample set's denoising error, overall and by noise level."""
        errors = torch.tensor(self.errors[self.sample_sets.index(sample_set)])
        top = self.model.scheduler.config.num_train_timesteps
        ends = [top * k // NOISE_LEVELS for k in range(NOISE_LEVELS + 1)]
        parts = errors.tensor_split(NOISE_LEVELS)
        return {"denoising_error": float(errors.mean())} | {
            f"denoising_error_{a}_{b}": float(part.mean())
            for (a, b), part in zip(itertools.pairwise(ends), parts, strict=True)
        }

    # ---- figures -----------------------------------------------------------------------------

    def _measure(self) -> None:
        """Measure the complete samples, and write the results. Chief only."""
        run, folder = self.run, self.run.folder
        with spinner("measuring the samples"):
            images = [self._images(r.folder, r, "evaluation.images") for r in self.references]
            self.result = {
                "model": self.model.name,
                "commit": self.model.commit,
                "dino": None,
                **{key: encoder.name for key, encoder in self.encoders.items()},
                **{f"{key}_commit": encoder.commit for key, encoder in self.encoders.items()},
                "evaluation": dataclasses.asdict(self.config.evaluation),
                "concepts": list(map(self._figures, self.references, images, self.lookalikes)),
            }
        text = json.dumps(self.result, ensure_ascii=False, indent=1)
        (folder / FIGURES).write_text(f"{text}\n", encoding="utf-8")
        plot(self.result, folder / "evaluation.png")
        shown = min(SHOWN, self.config.evaluation.num_samples)
        samples = [[self._samples(s, shown) for s in self._of(r)] for r in self.references]
        png.save(overview(self.result["concepts"], images, samples), folder / "samples.png")
        if not run.folder_is_kept and self.grid.store.resumed_count == len(self.grid.jobs):
            return  # restarted after its end: everything has been reported
        for name in ("evaluation", "samples"):
            run.log_image(name, (folder / f"{name}.png").read_bytes())
        states = [state for concept in self.result["concepts"] for state in concept["states"]]
        for k, state in enumerate(states, 1):
            numbers = {key: value for key, value in state.items() if isinstance(value, float)}
            run.report(k, numbers, "evaluation")

    def _images(self, folder: str, reference: ConceptReference, key: str) -> list[Image.Image]:
        """Read the images of a folder, cropped as the reference's training images are."""
        size, step = self.model.image_size, self.model.bucket_step
        found = read_images(Path(folder), reference.concepts, size, key, step)
        return [each.image for each in found]

    def _of(self, reference: ConceptReference) -> list[SampleSet]:
        """Return a reference's sample sets, the initializer's first."""
        return [s for s in self.sample_sets if s.reference == reference]

    def _figures(
        self,
        reference: ConceptReference,
        images: list[Image.Image],
        lookalikes: list[list[Image.Image]],
    ) -> dict[str, Any]:
        """Return all figures of a reference's concepts, ready for JSON."""
        e, prompts = self.config.evaluation, edits(self.config, reference)
        metrics = ConceptMetrics(self.encoders, images, prompts, lookalikes, e.num_samples)
        initializer, *states = self._of(reference)
        baselines, of_initializer = metrics.fit_baselines(self._samples(initializer))
        tables = [
            (t.tokenizer, t.embedding.weight.float().cpu())
            for t in self.model.vocabulary.text_encoders
        ]
        found = [
            {"label": state.label, "source": state.source, "word": state.concept.name}
            | {"steps": state.concept.steps}
            | metrics.figures(self._samples(state), baselines)
            | self._error_by_noise(state)
            | {"text_encoders": describe_rows(state.concept, tables)["text_encoders"]}
            for state in states
        ]
        lineup = metrics.lineup
        return {
            "concept": reference.name,
            "images": reference.folder,
            "prompts": prompts,
            "anchors": dataclasses.asdict(baselines),
            "lineup": lineup and {"judge": lineup.feature, "chance": lineup.chance},
            "training_images": metrics.of_training_images(baselines),
            "phrase": {"label": initializer.label, "phrase": reference.initializer}
            | of_initializer
            | self._error_by_noise(initializer),
            "states": found,
            "best": max(found, key=lambda state: state["score"])["label"],
        }
