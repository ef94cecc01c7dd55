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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from detsd.checks import images_problem, learned_from
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.prompts import PromptRewriter
from detsd.concepts.reading import read_concepts
from detsd.concepts.source import checkpoints_of, locate, split_source
from detsd.concepts.vocabulary import check_fit
from detsd.config import (
    ConceptsConfig,
    EvaluateConfig,
    GenerateConfig,
    GridConfig,
    TrainingConfig,
    flat,
)
from detsd.data.dataset import Batch, TrainingData
from detsd.data.images import read_images, shape_of
from detsd.data.templates import EDITS, PLAIN
from detsd.generate.grid import Generator
from detsd.generate.sheets import Page
from detsd.measure import Eye, Yardstick, load_eyes
from detsd.models.base import Conditioning
from detsd.models.objective import denoising_error
from detsd.models.spec import examine, find_model
from detsd.runs.download import downloaded
from detsd.runs.folder import DICT_FILE, finetuning_of
from detsd.runs.run import Run
from detsd.sampling.jobs import Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.show import describe_rows
from detsd.utils import contact_sheets, png
from detsd.utils.errors import UserError
from detsd.utils.progress import waiting

FIGURES = "evaluation.json"
NOISE_LEVELS = 5  # parts of equal length that the timesteps of the denoising error are told in
SHOWN = 8  # images in a row of the picture of samples


@dataclass(frozen=True)
class Ground:
    """What a concept was learned from, and how: what its samples are held against.

    Attributes:
        name: the concept's word in its training prompts.
        folder: of its training images.
        concepts, seed, most_held_out: of its fine-tuning, so that the same images are held out.
    """

    name: str
    phrase: str
    folder: str
    concepts: ConceptsConfig
    seed: int
    most_held_out: int

    @property
    def kind(self) -> str:
        """object or style."""
        return self.concepts.learnable_properties[self.concepts.concept_strs.index(self.name)]


@dataclass(frozen=True)
class Block:
    """The samples of a concept, or of a phrase: what they are of, and their jobs."""

    label: str
    ground: Ground
    jobs: list[Job]
    concept: LearnedConcept | None = None  # under the word of its prompts; None: the phrase
    source: str = ""


def _files(config: EvaluateConfig) -> list[tuple[str, str]]:
    """What is evaluated, as `path` or `path=word`, and what an image is to call it."""
    found = []
    for source in config.concepts.files:
        path, word = split_source(source)
        every = checkpoints_of(path) if config.evaluation.all_checkpoints else []
        for file in map(str, every or [split_source(locate(source))[0]]):
            found.append((f"{file}={word}" if word else file, file))
    for source in config.concepts.uuids:
        uuid, equals, word = source.partition("=")
        found.append((locate(f"{downloaded(uuid)}{equals}{word}"), f"uuid:{uuid}"))
    return found


def _ground(concept: LearnedConcept, file: Path, images_dir: str | None) -> Ground:
    """What a concept of a file is held against.

    Raises:
        UserError: its training images are not known, or not here.
    """
    config = finetuning_of(file).get("config", {})
    known = {f.name for f in dataclasses.fields(ConceptsConfig)}
    given = {k: v for k, v in config.get("concepts", {}).items() if k in known}
    names = given.get("concept_strs", [concept.name])
    place = names.index(concept.name) if concept.name in names else 0  # else under another word
    folders = [images_dir] * len(names) if images_dir else learned_from(file)
    if problem := images_problem(concept.name, folders[place : place + 1]):
        raise UserError(f"{file}: {problem}")
    phrase = concept.initializer or "thing"  # as Vocabulary.plain has it
    lists = {
        "concept_strs": names,
        "initializer_strs": [phrase] * len(names),
        "img_dirs": folders,
        "learnable_properties": given.get("learnable_properties", ["object"]),
        "num_vectors": [None],  # of no concern here: runs that differ in it are compared
    }
    if images_dir:  # which are of this concept alone
        lists = {key: values[place : place + 1] for key, values in lists.items()}
    training = config.get("training", {})
    return Ground(
        names[place],
        phrase,
        folders[place],
        ConceptsConfig(**given | lists),
        training.get("train_seed", TrainingConfig.train_seed),
        training.get("max_validation_images", TrainingConfig.max_validation_images),
    )


def find_blocks(config: EvaluateConfig) -> list[Block]:
    """The samples to be made: of the phrase of each ground, then of each concept on it.

    Raises:
        UserError: a source without a concept, or without training images.
    """
    found = []
    for named, source in _files(config):
        file, given = split_source(named)
        for concept in read_concepts(named):
            ground = _ground(concept, file, config.evaluation.images)
            found.append((concept, (source, given), _title(file), ground))
    groups: list[list[Block]] = []
    for number, (concept, (source, given), title, ground) in enumerate(found):
        alike = [(c.steps, t) for c, _, t, _ in found if c.name == concept.name]
        # One name may stand for many states: each gets a word of its own.
        steps = concept.steps if [k for k, _ in alike].count(concept.steps) == 1 else None
        word = f"{concept.name}-{f'no-{number + 1}' if steps is None else steps}"
        word = word if len(alike) > 1 else concept.name
        label = title if len({t for _, t in alike}) > 1 else concept.name
        label += "" if concept.steps is None else f", {concept.steps} steps"
        block = Block(
            label,
            ground,
            _jobs(config, ground, word),
            dataclasses.replace(concept, name=word),
            f"{source}={word}" if given or word != concept.name else source,
        )
        group = next((g for g in groups if g[0].ground == ground), None)
        if group is None:
            group = [Block("the phrase", ground, _jobs(config, ground, ground.phrase))]
            groups.append(group)
        group.append(block)
    return [block for group in groups for block in group]


def _title(file: Path) -> str:
    """What tells a concept file from others: its run's name, or its own."""
    inside = file.parent.parent.name == "checkpoints"
    run = file.parent.parent.parent if inside else file.parent
    return run.name if file.name == DICT_FILE else file.stem


def edits(config: EvaluateConfig, ground: Ground) -> list[str]:
    """The edited prompts of a ground's concepts, with {} in them."""
    e = config.evaluation
    return e.prompts or list(EDITS[ground.kind if e.prompt_list == "auto" else e.prompt_list])


def _jobs(config: EvaluateConfig, ground: Ground, word: str) -> list[Job]:
    """The samples of a word: of the plain prompt, then of each edited one; seeds fastest."""
    e = config.evaluation
    counts = [(PLAIN[ground.kind], e.num_samples)]
    counts += [(template, e.num_samples_per_prompt) for template in edits(config, ground)]
    return [
        Job(
            template.format(word),
            e.first_seed + k,
            guidance_scale=e.guidance_scale,
            num_inference_steps=e.num_inference_steps,
        )
        for template, count in counts
        for k in range(count)
    ]


class Evaluation:
    """The samples of several concepts, and what is measured on them; complete when constructed.

    Attributes:
        result: what `evaluation.json` holds; on the chief, once it is finished.
    """

    def __init__(self, config: EvaluateConfig, run: Run):
        self.config, self.run = config, run
        run.agree(evaluation=flat(dataclasses.asdict(config)))
        self.blocks = find_blocks(config)
        self.grounds = [block.ground for block in self.blocks if not block.concept]
        with run.ranks.local_chief_first():
            widths = examine(find_model(config.model)).widths
        for block in self.blocks:
            if block.concept:
                check_fit(block.concept, widths, config.model.pretrained_model_name_or_path)
        self.eyes: dict[str, Eye] = {}
        if run.is_chief:  # who measures
            self.eyes = load_eyes(
                config.evaluator, config.model.pretrained_model_name_or_path, run.ranks.device
            )
        grid = GenerateConfig(
            config.model,
            GridConfig([job.prompt for block in self.blocks for job in block.jobs]),
            # What else is in a batch may show in the last bits, and the number of ranks must not.
            output=dataclasses.replace(config.output, fill_batches=True),
        )
        self.generator = Generator(grid, run, self._prepare, self._pages)
        self.model = self.generator.pipeline.model
        with waiting("measuring the denoising error"):
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
            width, height = shape_of(pipeline.model.image_size, aspect)
            own = {"width": width, "height": height, "scheduler_name": sampler}
            jobs += [dataclasses.replace(job, **own) for job in block.jobs]
        return jobs

    def _pages(self, jobs: list[Job]) -> list[Page]:
        """A contact sheet for each block: of the plain prompt first, then several prompts a row."""
        e, found, start = self.config.evaluation, [], 0
        for block in self.blocks:
            numbers = list(range(start, start := start + len(block.jobs)))
            rows = [numbers[: e.num_samples][k : k + SHOWN] for k in range(0, e.num_samples, SHOWN)]
            edited = numbers[e.num_samples :]
            wide = max(1, SHOWN // e.num_samples_per_prompt) * e.num_samples_per_prompt
            rows += [edited[k : k + wide] for k in range(0, len(edited), wide)]
            labels = ["  |  ".join(dict.fromkeys(jobs[n].prompt for n in row)) for row in rows]
            found.append(Page(block.label, labels, [], rows, len(numbers)))
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
            told = self.model.conditioning([rewrite(examples[0].prompt)], [examples[0].frame])
            errors = []
            for first in range(0, n, 8):
                batch = Batch.of(examples[first : first + 8]).on(self.model.device)
                same = Conditioning.cat([told] * len(batch.t))
                errors.append(
                    denoising_error(self.model, self.model.unet, *batch.noising, same, batch.mask)
                )
            total, count = total + torch.cat(errors).cpu(), count + 1
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
        with waiting("measuring the samples"):
            pictures = [self._pictures(g.folder, g, "evaluation.images") for g in self.grounds]
            self.result = {
                "model": self.model.name,
                "commit": self.model.commit,
                "dino": None,
                **{key: eye.name for key, eye in self.eyes.items()},
                **{f"{key}_commit": eye.commit for key, eye in self.eyes.items()},
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
        yardstick = Yardstick(self.eyes, pictures, prompts, lookalikes, e.num_samples)
        phrase, *states = (block for block in self.blocks if block.ground == ground)
        ends, of_phrase = yardstick.anchors(self._samples(phrase))
        tables = [(s.tokenizer, s.embedding.weight.float()) for s in self.model.vocabulary.sides]
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


# ---- what is shown -------------------------------------------------------------------------------

COLUMNS = {  # of the table: what it is called, and how it is written
    "clip_image_similarity": ("image", "{:.3f}"),
    "dino_image_similarity": ("dino", "{:.3f}"),
    "clip_text_similarity": ("text", "{:.3f}"),
    "lineup": ("line-up", "{:.0%}"),
    "denoising_error": ("error", "{:.4f}"),
    "high_noise": ("high noise", "{:.4f}"),
    "score": ("score", "{:.3f}"),
}


def _written(figures: dict[str, Any]) -> dict[str, str]:
    """A row of the table, by what its columns are called."""
    errors = [key for key in figures if key.startswith("denoising_error_")]
    figures = figures | ({"high_noise": figures[errors[-1]]} if errors else {})
    return {title: form.format(figures[key]) for key, (title, form) in COLUMNS.items()
            if figures.get(key) is not None}  # fmt: skip


def _line(label: str, figures: dict[str, Any]) -> str:
    told = {k: v for k, v in _written(figures).items() if k in ("image", "text", "line-up")}
    return "   ".join([label, *(f"{k} {v}" for k, v in told.items())])


def table(result: dict[str, Any]) -> str:
    """What was measured, a line for each concept or checkpoint under its anchors."""
    lines = []
    for concept in result["concepts"]:
        rows = [("training images", concept["training_images"])]
        rows += [(row["label"], row) for row in (concept["phrase"], *concept["states"])]
        written = [(label, _written(figures)) for label, figures in rows]
        titles = [title for title, _ in COLUMNS.values() if any(title in w for _, w in written)]
        wide = min(60, max(len(label) for label, _ in written))
        lines += ["", f"{concept['concept']:{wide}}  " + "  ".join(f"{t:>7}" for t in titles)]
        for label, row in written:
            label = label if len(label) <= wide else f"{label[: wide - 3]}..."
            cells = (f"{row.get(title, ''):>{max(7, len(title))}}" for title in titles)
            lines.append(f"{label:{wide}}  " + "  ".join(cells))
        if concept["lineup"]:
            judge, chance = concept["lineup"]["judge"], concept["lineup"]["chance"]
            lines.append(f"line-up: {chance:.0%} by chance; judged by {judge}")
        if len(concept["states"]) > 1:
            lines.append(f"best: {concept['best']}")
    return "\n".join(lines[1:])


def plot(result: dict[str, Any], file: Path) -> None:
    """Draw image against text similarity, a panel for each concept, a point for each state of it.

    Up is more of the concept, to the right more of the prompt, as in figure 10 of arXiv 2208.01618.
    The states of one run are joined; where there are many, the first, last and best are named.
    """
    from matplotlib.figure import Figure  # late, as in `show`

    concepts = result["concepts"]
    figure = Figure(figsize=(7 * len(concepts), 5.5), layout="constrained")
    panels = figure.subplots(1, len(concepts), squeeze=False)[0]
    for axis, concept in zip(panels, concepts, strict=True):
        states, runs = concept["states"], {}

        def place(figures: dict[str, Any]) -> tuple[float, float]:
            return figures["clip_text_similarity"], figures["clip_image_similarity"]

        axis.axhline(concept["anchors"]["image_high"], color="#d9a441", ls="--", lw=1)
        axis.axvline(concept["anchors"]["text_high"], color="#d9a441", ls="--", lw=1)
        for label in ("training_images", "phrase"):
            axis.scatter(*place(concept[label]), color="#8a8a8a", s=45)
            axis.annotate(label.replace("_", " "), place(concept[label]), (7, 5),
                          textcoords="offset points", fontsize=8)  # fmt: skip
        for k, state in enumerate(states):
            best = state["label"] == concept["best"] and len(states) > 1
            runs.setdefault(state["label"].rpartition(", ")[0], []).append(place(state))
            axis.scatter(*place(state), color="#3b6fb6", s=130 if best else 45, zorder=2,
                         marker="*" if best else "o")  # fmt: skip
            if len(states) > 5 and k not in (0, len(states) - 1) and not best:
                continue
            said = state["label"].removeprefix(f"{concept['concept']}, ") + ", best" * best
            axis.annotate(said, place(state), (7, 5 if k % 2 else -11),
                          textcoords="offset points", fontsize=8)  # fmt: skip
        for points in runs.values():
            axis.plot(*zip(*points, strict=True), color="#3b6fb6", lw=0.8, zorder=1)
        axis.set_title(f"{concept['concept']} (dashed: what scores as 1)", loc="left", fontsize=10)
        axis.set_xlabel("similarity of edited samples to their prompts")
        axis.set_ylabel("similarity of samples to the training images")
        axis.margins(0.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
