"""The sample images of a fine-tuning's checkpoints, and the metrics of some of them.

The metrics, their baselines and their names are those of `detsd evaluate`, on fewer samples: the
plain prompt with a few seeds, and a few edited prompts once. With several concepts, the mean over
them is used.
"""

import dataclasses
import itertools
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from detsd.config import FinetuneConfig
from detsd.data.folder import lookalikes_of
from detsd.data.images import read_images
from detsd.data.templates import EDITS, PLAIN
from detsd.evaluate.encoders import ImageEncoder
from detsd.evaluate.metrics import Baselines, ConceptMetrics
from detsd.models.base import BaseModel
from detsd.runs.folder import SAMPLE, RunFolder
from detsd.runs.run import Run
from detsd.runs.tensorboard import image_tags
from detsd.sampling.jobs import GeneratedImage, Job, batches, sample_jobs
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.utils import contact_sheets, png
from detsd.utils.memory import give_back_memory
from detsd.utils.paths import atomic_write
from detsd.utils.progress import Bar

MAX_BATCH = 4  # samples made at once

MAX_TAG = 80  # characters of a prompt in TensorBoard


def edited_prompts(kind: str, count: int) -> list[str]:
    """Return `count` edited prompts for objects or styles, spread over their whole list."""
    every = EDITS[kind]
    return [every[k * len(every) // count] for k in range(min(count, len(every)))]


def metric_jobs(config: FinetuneConfig, size: int) -> list[Job]:
    """Return the jobs of the samples to measure, by concept, plain prompts first; may be empty."""
    c, m, found = config.concepts, config.measure, []
    if not m.num_samples:
        return []
    for name, kind in zip(c.concept_strs, c.learnable_properties, strict=True):
        plain, edited = (PLAIN[kind],), edited_prompts(kind, m.num_prompts)
        for templates, seeds in ((plain, [*range(m.num_samples)]), (edited, [0])):
            given = {"inference_prompts": [template.format(name) for template in templates]}
            given |= {"seeds": seeds, "img_per_prompt": 1}
            found += sample_jobs(dataclasses.replace(config.inference, **given), size)
    return found


class SampleMetrics:
    """The images, look-alikes and prompts that samples of `metric_jobs` are compared with."""

    def __init__(
        self,
        config: FinetuneConfig,
        encoders: dict[str, ImageEncoder],
        size: int,
        images: dict[str, list[Image.Image]],
        step: int = 8,
    ):
        """Measure the training `images`, and the look-alikes, read with `size` and `step`."""
        c, m = config.concepts, config.measure
        # One for each concept; in a new run, none before `fit_baselines`.
        self.baselines: list[Baselines] = []

        def pictures(folder: str, key: str) -> list[Image.Image]:
            return [found.image for found in read_images(Path(folder), c, size, key, step)]

        others = {f: pictures(f, f"measure.lineup[{k}]") for k, f in enumerate(m.lineup)}
        # The lists of objects and styles may differ in length.
        prompts = [edited_prompts(kind, m.num_prompts) for kind in c.learnable_properties]
        self._counts = [m.num_samples + len(edited) for edited in prompts]
        self._metrics = []
        for name, own, edited in zip(c.concept_strs, c.img_dirs, prompts, strict=True):
            sets = [others[f] for f in lookalikes_of(own, name, m.lineup, "measure.lineup")]
            metrics = ConceptMetrics(encoders, images[name], edited, sets, m.num_samples)
            self._metrics.append(metrics)

    def _by_concept(self, images: list[Image.Image]) -> list[list[Image.Image]]:
        """Split the samples by their concepts."""
        rest = iter(images)
        return [list(itertools.islice(rest, count)) for count in self._counts]

    def fit_baselines(self, images: list[Image.Image]) -> None:
        """Set the baselines from samples of the concepts' initializers."""
        each = zip(self._metrics, self._by_concept(images), strict=True)
        self.baselines = [metrics.fit_baselines(own)[0] for metrics, own in each]

    def measure(self, images: list[Image.Image]) -> dict[str, float]:
        """Return the metrics of samples of the concepts; larger is better."""
        each = zip(self._metrics, self._by_concept(images), self.baselines, strict=True)
        found = [metrics.figures(own, baselines) for metrics, own, baselines in each]
        return {key: fmean(each[key] for each in found) for key in found[0]}


class Samples:
    """The sample images of a run: made by all ranks, kept and measured by the chief."""

    def __init__(
        self,
        config: FinetuneConfig,
        model: BaseModel,
        run: Run,
        size: int,
        metrics: SampleMetrics | None,
    ):
        """Prepare the jobs; `size`, in pixels, applies to concepts without a resolution.

        Only the chief has `metrics`, and only if samples are to be measured.
        """
        self._model, self._run, self._metrics = model, run, metrics
        self._config = config.inference
        # Without a safety checker, because only the owner of the run sees these samples, and a
        # blacked-out one would look like a failure.
        self._pipeline = DetSDTextualInversionPipeline(model)
        self._shown, measured = sample_jobs(config.inference, size), metric_jobs(config, size)
        names = [("samples", j.prompt, f"seed {j.seed}-{j.copy}") for j in self._shown]
        self._tags = image_tags(names, MAX_TAG)
        self._jobs, self.measured = [], len(measured)  # on all ranks together
        for job in self._shown + measured:  # each in the shape of its concept
            width, height = model.vocabulary.resolution(job.prompt) or (size, size)
            self._jobs.append(dataclasses.replace(job, width=width, height=height))
        self._pipeline.warnings.log(self._jobs, section="inference", shown=run.is_chief)
        # This rank's share, in batches that depend only on the jobs.
        self._own = batches(self._jobs, MAX_BATCH)[run.ranks.rank :: run.ranks.size]
        own = [self._jobs[k] for batch in self._own for k in batch]
        # Denoising steps for the samples of one checkpoint.
        self.steps = sum(len(self._pipeline.guided_calls(job)) for job in own)
        self._files = RunFolder(run.folder)

    def make(self, step: int, bar: Bar) -> dict[str, float]:
        """Make the samples of a step with the current vectors; return their metrics. Collective.

        Those to be shown are written and logged. At step 0, with the initializers' vectors, the
        others become the baselines of the metrics, and no metrics are returned.
        """
        if not self._jobs:
            return {}
        bar.draw(note="samples")
        own = []
        self._model.vae.to(self._model.device)
        for numbers in self._own:
            made = self._pipeline.make(
                [self._jobs[k] for k in numbers],
                on_step=lambda now: bar.done("samples", len(now.numbers)),
            )
            own += zip(numbers, made, strict=True)
        self.set_vae_aside()
        by_job = dict(self._run.gather(own))
        images = [by_job[k].image for k in range(len(self._jobs))]
        if self._run.is_chief:
            self._keep(step, [by_job[k] for k in range(len(self._shown))])
        found: dict[str, float] = {}
        if self._metrics and step == 0 and not self._metrics.baselines:
            self._metrics.fit_baselines(images[len(self._shown) :])
        elif self._metrics and step:
            found = self._metrics.measure(images[len(self._shown) :])
        return self._run.ranks.allgather(found)[0]

    def set_vae_aside(self) -> None:
        """Move the VAE off the device until it decodes samples; drop it if there are none."""
        self._model.vae.to("cpu" if self._jobs else "meta")
        give_back_memory()

    def differ_from(self, before: dict[str, Any]) -> bool:
        """Return whether an earlier `inference` section gives other samples."""
        now = vars(self._config)
        if any(now.get(key) != value for key, value in before.items()):
            return True
        is_plain = self._model.vocabulary.is_plain
        texts = [*self._config.inference_prompts, self._config.negative_prompt]
        # Versions without prompt weights read these prompts as text.
        old = bool(before) and "prompt_weights" not in before
        return old and self._config.prompt_weights and not all(map(is_plain, texts))

    def restart(self, step: int, changed: bool) -> None:
        """Move earlier samples aside if a run resumes from a step with other prompts or seeds.

        A changed run that ends before its next checkpoint leaves samples of steps that will be
        repeated. If the run is changed back, its old samples are restored.
        """
        folder = self._run.folder / "samples"
        apart = folder / f"before-step-{step:08d}"
        if not self._run.is_chief or not (changed or apart.is_dir()):
            return
        if apart.is_dir():
            for path in self._files.samples():
                path.unlink()
        source, target = (folder, apart) if changed else (apart, folder)
        target.mkdir(parents=True, exist_ok=True)
        for path in filter(lambda path: SAMPLE.fullmatch(path.name), source.glob("step-*.png")):
            path.rename(target / path.name)
        if not changed:
            apart.rmdir()

    def _keep(self, step: int, made: list[GeneratedImage]) -> None:
        vectors = self._files.vectors_of_sample(step)  # of the checkpoint that is written next
        self._pipeline.sources = dict.fromkeys(self._model.vocabulary.names, vectors)
        for k, (tag, image) in enumerate(zip(self._tags, made, strict=True)):
            path = self._files.sample(step, k)
            path.parent.mkdir(exist_ok=True)
            # No file holds the initializers' vectors; the name of a cluster's checkpoint is not
            # known yet.
            if step and self._run.folder_is_kept:
                record = self._pipeline.settings(self._jobs[k]) | image.how
                content = self._pipeline.encode(image, record)
            else:
                content = png.encode(image.image)
            with atomic_write(path) as staging:
                staging.write_bytes(content)
            self._run.log_image(tag, content, step)

    def log_training_images(self, pictures: dict[str, list[Image.Image]]) -> None:
        """Show a few training images of each concept in TensorBoard."""
        tags = image_tags([("training images", name) for name in pictures])
        for tag, (name, images) in zip(tags, pictures.items(), strict=True):
            if self._run.is_chief:
                sheet = contact_sheets.sheet(contact_sheets.padded([images]), [name])
                self._run.log_image(tag, png.encode(sheet))

    def draw_progress(self, step: int, pictures: dict[str, list[Image.Image]]) -> None:
        """Draw a time-lapse of all checkpoints, and before/after with training `pictures`."""
        if not self._run.is_chief or not self._shown:
            return
        frames = []
        for at in self._files.sampled_steps():
            images = [png.read(self._files.sample(at, k)) for k in range(len(self._shown))]
            if all(images):  # a truncated file gives None
                frames.append((at, images))
        if len(frames) < 2:
            return
        prompts = [job.prompt for job in self._shown]
        initializers = map(self._model.vocabulary.with_initializers, prompts)
        picture = contact_sheets.before_after(
            frames[0][1], frames[-1][1], prompts, [*initializers], pictures
        )
        path = self._run.folder / "before_after.png"
        png.save(picture, path)
        self._run.log_image("before_after", path.read_bytes(), step)
        contact_sheets.time_lapse(frames, prompts, self._run.folder)
