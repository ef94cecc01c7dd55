"""How good concepts are: their samples against training images, prompts and look-alikes.

    Evaluation(config, run).evaluate()

The samples are a grid of images (`generator`), and so are shared over any number of processes and
made once, however often the evaluation is interrupted. Beside those of each concept there are those
of the phrase that it started from, under equal seeds: the lower end of what is measured. In the
run's folder, and in the last checkpoint on a cluster, lie besides the images

    evaluation.json  all figures
    evaluation.png   image against text similarity, a point for each concept or checkpoint
    samples.png      training images, samples of the phrase and of each concept
    sheets/          a sheet of all samples of each
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from detsd.concepts.prompts import PromptRewriter
from detsd.concepts.vocabulary import check_fit
from detsd.config import EvaluateConfig, GenerateConfig, GridConfig, flat
from detsd.data.dataset import Batch, TrainingData
from detsd.data.images import read_images, target_size
from detsd.evaluate.encoders import ImageEncoder, load_encoders
from detsd.evaluate.metrics import ConceptMetrics
from detsd.evaluate.report import FIGURES, _line, plot
from detsd.evaluate.rows import describe_rows
from detsd.evaluate.samples import Block, Ground, edits, find_blocks
from detsd.generate.grid import Grid
from detsd.generate.sheets import ContactSheet
from detsd.models.objective import errors_over_timesteps
from detsd.models.spec import read_spec, resolve_model
from detsd.runs.run import Run
from detsd.sampling.jobs import Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.utils import contact_sheets, png
from detsd.utils.errors import UserError
from detsd.utils.progress import spinner

NOISE_LEVELS = 5  # parts of equal length that the timesteps of the denoising error are told in

SHOWN = 8  # images in a row of the picture of samples


class Evaluation:
    """The samples of several concepts, and what is measured on them; complete when constructed.

    Attributes:
        result: what `evaluation.json` holds; on the chief, once it is finished.
    """

    def __init__(self, config: EvaluateConfig, run: Run):
        self.config, self.run = config, run
        run.assert_equal_across_ranks(evaluation=flat(dataclasses.asdict(config)))
        self.blocks = find_blocks(config)
        self.grounds = [block.ground for block in self.blocks if not block.concept]
        with run.ranks.local_main_process_first():
            widths = read_spec(resolve_model(config.model)).widths
        for block in self.blocks:
            if block.concept:
                check_fit(block.concept, widths, config.model.pretrained_model_name_or_path)
        self.encoders: dict[str, ImageEncoder] = {}
        if run.is_chief:  # who measures
            self.encoders = load_encoders(
                config.evaluator, config.model.pretrained_model_name_or_path, run.ranks.device
            )
        grid = GenerateConfig(
            config.model,
            GridConfig([job.prompt for block in self.blocks for job in block.jobs]),
            # What else is in a batch may show in the last bits, and the number of ranks must not.
            output=dataclasses.replace(config.output, fill_batches=True),
        )
        self.generator = Grid(grid, run, self._prepare, self._pages)
        self.model = self.generator.pipeline.model
        with spinner("measuring the denoising error"):
            self.errors = self._errors()
        if self.generator.album:
            self.generator.album.conclude = self._conclude
        self.result: dict[str, Any] = {}

    def evaluate(self) -> bool:
        """Make what is missing, and measure. False when stopped before the end."""
        return self.generator.generate()

    # ---- samples -----------------------------------------------------------------------------

    def _prepare(self, pipeline: DetSDTextualInversionPipeline) -> list[Job]:
        """Put the concepts into the pipeline; the jobs of all blocks, as the model has it."""
        for block in self.blocks:
            if block.concept:
                pipeline.add([block.concept], block.source, block.source)
        sampler = self.config.evaluation.scheduler_name or pipeline.own_scheduler
        jobs = []
        for block in self.blocks:
            aspect = block.ground.concepts.img_aspect
            width, height = target_size(pipeline.model.image_size, aspect)
            own = {"width": width, "height": height, "scheduler_name": sampler}
            jobs += [dataclasses.replace(job, **own) for job in block.jobs]
        return jobs

    def _pages(self, jobs: list[Job]) -> list[ContactSheet]:
        """A contact sheet for each block: of the plain prompt first, then several prompts a row."""
        e, found, start = self.config.evaluation, [], 0
        for block in self.blocks:
            numbers = list(range(start, start := start + len(block.jobs)))
            rows = [numbers[: e.num_samples][k : k + SHOWN] for k in range(0, e.num_samples, SHOWN)]
            edited = numbers[e.num_samples :]
            wide = max(1, SHOWN // e.num_samples_per_prompt) * e.num_samples_per_prompt
            rows += [edited[k : k + wide] for k in range(0, len(edited), wide)]
            labels = ["  |  ".join(dict.fromkeys(jobs[n].prompt for n in row)) for row in rows]
            found.append(ContactSheet(block.label, labels, [], rows, len(numbers)))
        return found

    # ---- the denoising error -----------------------------------------------------------------

    @torch.no_grad()
    def _errors(self) -> list[list[float]]:
        """Of each block, the mean denoising error of held-out images at each of the timesteps.

        Each is computed by one rank. Collective.
        """
        ranks, data, found = self.run.ranks, {}, []
        for k in range(ranks.rank, len(self.blocks), ranks.size):
            block = self.blocks[k]
            place = self.grounds.index(block.ground)
            if place not in data:
                g = block.ground
                data[place] = TrainingData(g.concepts, self.model, g.seed, g.most_held_out)
            found.append((k, self._error(block, data[place]).tolist()))
        return [errors for _, errors in sorted(self.run.gather(found))]

    def _error(self, block: Block, data: TrainingData) -> torch.Tensor:
        """The denoising error at each timestep (T,), a mean over a ground's held-out images."""
        word = block.concept.name if block.concept else block.ground.phrase
        rewrite = PromptRewriter({block.ground.name: word})
        n, total, count = self.config.evaluation.num_error_timesteps, torch.zeros(()), 0
        for k, shot in enumerate(data.validation):
            if shot.path.parent != Path(block.ground.folder):  # of the run's other concepts
                continue
            examples = data.validation_examples(k, n)
            cond = self.model.encode_prompts([rewrite(examples[0].prompt)], [examples[0].frame])
            batch = Batch.of(examples).on(self.model.device)
            errors = errors_over_timesteps(self.model, *batch.noising, cond, batch.mask)
            total, count = total + errors.cpu(), count + 1
        return total / count

    def _told_errors(self, block: Block) -> dict[str, float]:
        """A block's denoising error, in all and by the level of noise."""
        errors = torch.tensor(self.errors[self.blocks.index(block)])
        top = self.model.scheduler.config.num_train_timesteps
        ends = [top * k // NOISE_LEVELS for k in range(NOISE_LEVELS + 1)]
        parts = errors.tensor_split(NOISE_LEVELS)
        return {"denoising_error": float(errors.mean())} | {
            f"denoising_error_{a}_{b}": float(part.mean())
            for (a, b), part in zip(itertools.pairwise(ends), parts, strict=True)
        }

    # ---- figures -----------------------------------------------------------------------------

    def _conclude(self) -> None:
        """Measure the samples, all of which are there, and write what was found. Chief only."""
        run, folder = self.run, self.run.folder
        with spinner("measuring the samples"):
            pictures = [self._pictures(g.folder, g, "evaluation.images") for g in self.grounds]
            self.result = {
                "model": self.model.name,
                "commit": self.model.commit,
                "dino": None,
                **{key: eye.name for key, eye in self.encoders.items()},
                **{f"{key}_commit": eye.commit for key, eye in self.encoders.items()},
                "evaluation": dataclasses.asdict(self.config.evaluation),
                "concepts": list(map(self._measured, self.grounds, pictures)),
            }
        text = json.dumps(self.result, ensure_ascii=False, indent=1)
        (folder / FIGURES).write_text(f"{text}\n", encoding="utf-8")
        plot(self.result, folder / "evaluation.png")
        png.save(self._overview(pictures), folder / "samples.png")
        if not run.folder_is_kept and self.generator.album.begun_with == len(self.generator.jobs):
            return  # restarted after its end: the last checkpoint has told it all
        for name in ("evaluation", "samples"):
            run.log_image(name, (folder / f"{name}.png").read_bytes())
        states = [state for concept in self.result["concepts"] for state in concept["states"]]
        for k, state in enumerate(states, 1):
            numbers = {key: value for key, value in state.items() if isinstance(value, float)}
            run.report(k, numbers, "evaluation")

    def _pictures(self, folder: str, ground: Ground, key: str) -> list[Image.Image]:
        """The pictures of a folder, cut as those of the ground's training."""
        found = read_images(Path(folder), ground.concepts, self.model.image_size, key)
        return [image for _, image, _ in found]

    def _samples(self, block: Block, most: int | None = None) -> list[Image.Image]:
        """The images of a block's jobs, or the first of them.

        Raises:
            UserError: the safety checker has blacked one out.
        """
        album, place = self.generator.album, self.blocks.index(block)
        start = sum(len(b.jobs) for b in self.blocks[:place])
        numbers = range(start, start + len(block.jobs))
        if any(album.finished[number]["flagged"] for number in numbers):
            raise UserError(
                f"the model's safety checker has blacked out samples of {block.label}, on which "
                "nothing can be measured; set model.safety_checker to false, and name a new "
                "--output-dir"
            )
        return [album.image(number) for number in numbers[:most]]

    def _measured(self, ground: Ground, pictures: list[Image.Image]) -> dict[str, Any]:
        """All figures of the concepts on a ground, as JSON takes them."""
        e, prompts = self.config.evaluation, edits(self.config, ground)
        lookalikes = [self._pictures(folder, ground, "evaluation.lineup") for folder in e.lineup]
        yardstick = ConceptMetrics(self.encoders, pictures, prompts, lookalikes, e.num_samples)
        phrase, *states = (block for block in self.blocks if block.ground == ground)
        ends, of_phrase = yardstick.anchors(self._samples(phrase))
        tables = [
            (s.tokenizer, s.embedding.weight.float()) for s in self.model.vocabulary.text_encoders
        ]
        tables = [(tokenizer, table.cpu()) for tokenizer, table in tables]
        told = [
            {"label": block.label, "source": block.source, "word": block.concept.name}
            | {"steps": block.concept.steps}
            | yardstick.figures(self._samples(block), ends)
            | self._told_errors(block)
            | {"text_encoders": describe_rows(block.concept, tables)["text_encoders"]}
            for block in states
        ]
        lineup = yardstick.lineup
        return {
            "concept": ground.name,
            "images": ground.folder,
            "prompts": prompts,
            "anchors": dataclasses.asdict(ends),
            "lineup": lineup and {"judge": lineup.judge, "chance": lineup.chance},
            "training_images": yardstick.of_pictures(ends),
            "phrase": {"label": phrase.label, "phrase": ground.phrase}
            | of_phrase
            | self._told_errors(phrase),
            "states": told,
            "best": max(told, key=lambda state: state["score"])["label"],
        }

    def _overview(self, pictures: list[list[Image.Image]]) -> Image.Image:
        """Training images, and what each phrase and concept makes of the plain prompt."""
        rows, labels, size = [], [], (self.model.image_size,) * 2
        for ground, own, told in zip(self.grounds, pictures, self.result["concepts"], strict=True):
            step = -(-len(own) // SHOWN)
            rows.append([ImageOps.pad(picture, size) for picture in own[::step]])
            labels.append(_line(f"training images: {ground.folder}", told["training_images"]))
            states = [told["phrase"], *told["states"]]
            blocks = (block for block in self.blocks if block.ground == ground)
            for block, state in zip(blocks, states, strict=True):
                n = min(SHOWN, self.config.evaluation.num_samples)
                rows.append([ImageOps.pad(image, size) for image in self._samples(block, n)])
                named = block.label if block.concept else f"the phrase: {ground.phrase}"
                labels.append(_line(named, state))
        return contact_sheets.sheet(rows, labels)
