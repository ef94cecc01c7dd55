"""The hyperparameters of a grid of images, and of an evaluation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from detsd.config.finetune import EvaluatorConfig
from detsd.config.model import ModelConfig
from detsd.config.schema import (
    GUIDANCE_INTERVAL_HELP,
    LINEUP_HELP,
    MAX_SEED,
    MAX_SIDE,
    PROMPT_WEIGHTS_HELP,
    REQUIRED,
    SPACING_HELP,
    SchedulerName,
    Section,
    Source,
    SpacingName,
    repeated,
    sampling_problems,
    setting,
)
from detsd.utils.paths import find, uuid_problem


@dataclass(frozen=True)
class LearnedConceptsConfig(Section):
    """The concepts that prompts may name. Prompts without a concept are allowed."""

    files: list[Source] = setting(
        [],
        "concept files of any layout, checkpoint folders, or run folders (their best checkpoint); "
        "{path: word} gives its only concept another word, {path: {old: word}} one of several",
        path=find,
    )
    uuids: list[Source] = setting(
        [], "uuids of Determined checkpoints of fine-tunings; {uuid: word} as above"
    )
    models: list[Source] = setting(
        [],
        "models in Determined's registry: name (its latest version) or name:version; {name: word} "
        "as above",
    )

    def problems(self) -> list[str]:
        """Return a sentence for each invalid uuid; uuids become folder names."""
        uuids = [text.removeprefix("uuid:").partition("=")[0] for text in self.uuids]
        found = ((k, uuid_problem(uuid)) for k, uuid in enumerate(uuids))
        return [f"concepts.uuids[{k}]: {problem}" for k, problem in found if problem]


@dataclass(frozen=True)
class GridConfig(Section):
    """The jobs: all combinations of the lists, one image each."""

    prompts: list[str] = setting(REQUIRED, "prompts, with or without concepts")
    negative_prompts: list[str] = setting([""], "what the images should not show")
    scheduler_names: list[SchedulerName] = setting(["ddim"], "the samplers")
    num_inference_steps: list[int] = setting([50], "denoising steps; 25 to 50", low=1)
    guidance_scales: list[float] = setting(
        [7.5], "classifier-free guidance; around 3 for a strong concept; 1 or less: none", low=0
    )
    guidance_interval: list[float] | None = setting(None, GUIDANCE_INTERVAL_HELP)
    spacing: SpacingName | None = setting(None, SPACING_HELP)
    prompt_weights: bool = setting(True, PROMPT_WEIGHTS_HELP)
    seeds: list[int] | None = setting(
        None,
        "list of seeds; null: num_seeds seeds, starting with first_seed",
        low=0,
        high=MAX_SEED,
    )
    first_seed: int = setting(0, "the first seed, if seeds is null", low=0)
    num_seeds: int = setting(1, "number of seeds, if seeds is null", low=1, high=10_000_000)
    width: int | None = setting(
        None, "width of the images in pixels; null: the model's own size", low=8, high=MAX_SIDE
    )
    height: int | None = setting(
        None, "height of the images in pixels; null: the model's own size", low=8, high=MAX_SIDE
    )

    @property
    def all_seeds(self) -> list[int]:
        """`seeds`, or the range that stands for them."""
        if self.seeds is not None:
            return self.seeds
        return list(range(self.first_seed, self.first_seed + self.num_seeds))

    def problems(self) -> list[str]:
        """Return the reasons why the grid is empty or repeats a job."""
        problems = sampling_problems(
            "grid", self.guidance_interval, self.scheduler_names, self.num_inference_steps
        )
        if self.seeds is not None and (self.first_seed, self.num_seeds) != (0, 1):
            problems.append(
                "grid.seeds is given together with grid.first_seed or num_seeds; remove one of them"
            )
        for name in ("prompts", "negative_prompts", "scheduler_names", "num_inference_steps",
                     "guidance_scales", "seeds"):  # fmt: skip
            values = getattr(self, name)
            if values == []:
                problems.append(
                    f"grid.{name} is empty, so there is nothing to make; name at least one"
                )
            for value in repeated(values or []):
                problems.append(
                    f"grid.{name} has {value!r} twice, which would make the same images twice; "
                    "remove one"
                )
        if self.first_seed + self.num_seeds - 1 > MAX_SEED:
            problems.append(
                f"grid.first_seed + num_seeds exceeds the largest seed, {MAX_SEED}; lower one"
            )
        for name in ("width", "height"):
            if (getattr(self, name) or 0) % 8:
                problems.append(f"grid.{name} is {getattr(self, name)} but must be a multiple of 8")
        return problems


@dataclass(frozen=True)
class OutputConfig(Section):
    """Batching and storage. These settings change pixels only by rounding."""

    batch_size: int | None = setting(
        None,
        "images made at once per process; null: as many as fit on the device, at most the "
        "process's share of the grid",
        low=1,
    )
    fill_batches: bool = setting(
        False,
        "fill every batch up to batch_size, which takes longer in small grids and makes the pixels "
        "bit-identical to those of a larger grid",
    )
    checkpoint_freq: int = setting(
        10, "batches per process between checkpoints, on a cluster", low=1
    )
    checkpoint_seconds: float = setting(
        60, "seconds between checkpoints, on a cluster, if that comes first", low=1
    )
    tensorboard: Literal["auto", "images", "sheets"] = setting(
        "auto",
        "images: every image under its own tag, and the contact sheets; sheets: the contact sheets "
        "only; auto: images up to 2000 of them, since TensorBoard becomes unusable with more",
    )


@dataclass(frozen=True)
class GenerateConfig(Section):
    """The whole `hyperparameters` section of a grid of images."""

    metrics = ("images",)  # that a searcher can go by

    model: ModelConfig
    grid: GridConfig
    concepts: LearnedConceptsConfig = field(default_factory=LearnedConceptsConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """The samples of each concept, and the references to compare them with."""

    images: str | None = setting(
        None,
        "folder of the concepts' training images; null: the folder that each concept was learned "
        "from",
        path=find,
    )
    lineup: list[str] = setting([], LINEUP_HELP, path=find)
    all_checkpoints: bool = setting(
        False, "evaluate all checkpoints of a run folder, not only the best"
    )
    prompt_list: Literal["auto", "object", "style", "dreambooth"] = setting(
        "auto",
        "the edited prompts; auto: object or style, as the concept was learned; dreambooth: the "
        "25 of that paper, whose words the bundled model does not know",
    )
    prompts: list[str] = setting([], "your own edited prompts instead; {} is the concept")
    num_samples: int = setting(
        16, "samples of 'a photo of a ...' for each concept; the paper used 64", low=1, high=10_000
    )
    num_samples_per_prompt: int = setting(
        2, "samples of each edited prompt for each concept", low=1, high=1000
    )
    first_seed: int = setting(
        0,
        "seed of the first sample; the following ones count up from it",
        low=0,
        high=MAX_SEED - 10_000,
    )
    scheduler_name: SchedulerName | None = setting(None, "the sampler; null: the model's own")
    num_inference_steps: int = setting(25, "denoising steps; 25 to 50", low=1)
    guidance_scale: float = setting(4.0, "classifier-free guidance; 7.5 is usual", low=0)
    guidance_interval: list[float] | None = setting(None, GUIDANCE_INTERVAL_HELP)
    spacing: SpacingName | None = setting(None, SPACING_HELP)
    num_error_timesteps: int = setting(
        20, "timesteps of the denoising error for each held-out image", low=5, high=1000
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the prompts and look-alikes."""
        problems = sampling_problems(
            "evaluation",
            self.guidance_interval,
            [self.scheduler_name or ""],
            [self.num_inference_steps],
        )
        for prompt in self.prompts:
            if "{}" not in prompt:
                problems.append(
                    f"evaluation.prompts has {prompt!r}, which names no concept; put {{}} where "
                    "the concept goes"
                )
            elif re.search(r"[\w-]\{\}|\{\}[\w-]", prompt):
                problems.append(
                    f"evaluation.prompts has {prompt!r}, where a letter, digit, hyphen or "
                    "underscore touches {}, so that the concept is not found; put a space between"
                )
        for folder in repeated(self.lineup):
            problems.append(f"evaluation.lineup names {folder} twice; name every look-alike once")
        return problems


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """The whole `hyperparameters` section of an evaluation."""

    metrics = ("images",)  # that a searcher can go by

    model: ModelConfig
    concepts: LearnedConceptsConfig = field(default_factory=LearnedConceptsConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
