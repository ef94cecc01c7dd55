"""The `hyperparameters` section as typed, documented, strictly checked objects.

    load_config("finetune_demo.yaml", ["training.num_sgd_steps=200"]) -> FinetuneConfig

Every field carries its help text. A scalar is taken for a list of one, so that Determined's
searchers can vary any field. All problems are reported together.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import reprlib
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import ImageColor

from detsd.utils.errors import UserError, one_line
from detsd.utils.paths import file_name, find


def _knob(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    path: bool = False,
) -> Any:
    """A field with its help text and bounds: `low` and `high` are allowed themselves, not `above`.

    `high` is where a value can only be a mistake, which would fill the memory before it is noticed.
    A `path` is looked for beside the configuration first.
    """
    meta = {"help": help, "low": low, "above": above, "high": high, "path": path}
    if default is dataclasses.MISSING:
        return field(metadata=meta)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=meta)
    return field(default=default, metadata=meta)


REQUIRED = dataclasses.MISSING
LARGEST_SEED = 2**32 - 1  # PyTorch heeds 32 bits
LARGEST_SIDE = 8192  # pixels of an image
LONGEST_FILE_NAME = 255  # bytes, of every file system in use


class Source(str):
    """Where a concept lies, as `detsd.sources` reads it; in YAML also `{path: word}`."""


SchedulerName = Literal["ddim", "pndm", "lms-discrete", "euler", "euler-ancestral", "dpmsolver++"]


@dataclass(frozen=True)
class ModelConfig:
    """The frozen base model."""

    pretrained_model_name_or_path: str = _knob(
        REQUIRED,
        "Stable Diffusion 1.x, 2.x, XL or a fine-tune of these: a folder in the diffusers format, "
        "one .safetensors file, or the name of a model on the Hugging Face hub",
        path=True,
    )
    revision: str | None = _knob(None, "branch, tag or commit of the hub model")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _knob(
        "auto",
        "of the frozen weights; auto: on GPUs bf16 for training (fp16 on older ones) and fp16 for "
        "images, fp32 elsewhere (many CPUs run bf16 a hundred times slower)",
    )
    safety_checker: bool = _knob(
        True, "whether grids go through the model's own safety checker, where it has one"
    )


@dataclass(frozen=True)
class ConceptsConfig:
    """What is learned, and from which images. The lists have one entry per concept."""

    concept_strs: list[str] = _knob(REQUIRED, "the new words, as they are written in prompts")
    initializer_strs: list[str] = _knob(
        REQUIRED,
        "a phrase, or a concept file, checkpoint or run folder of one concept, that each concept "
        "starts from",
        path=True,
    )
    img_dirs: list[str] = _knob(REQUIRED, "folder of training images of each concept", path=True)
    learnable_properties: list[Literal["object", "style"]] = _knob(
        ["object"], "object or style: which templates the training prompts use"
    )
    num_vectors: list[int | None] = _knob(
        [None],
        "embedding rows of each concept; null: as many as its phrase has tokens",
        low=1,
        high=1000,
    )
    img_size: int | None = _knob(
        None,
        "pixels a side of a training image; null: the model's own size",
        low=8,
        high=LARGEST_SIDE,
    )
    img_aspect: float = _knob(
        1.0,
        "width over height of what is cut out, of as many pixels as the square; 1.5 for photos "
        "that lie, 0.67 for those that stand",
        low=0.25,
        high=4,
    )
    center_crop: bool = _knob(
        True, "crop the longer side away; false squeezes the whole image into the shape"
    )
    transparency_color: str = _knob("white", "what shows through transparent pixels")
    mask: Literal["none", "alpha", "files"] = _knob(
        "none",
        "what of a picture trains the word; alpha: what is not transparent; files: what is white "
        "in IMAGE-masklabel.png beside IMAGE.jpg; grey and half transparent pixels count in part",
    )
    horizontal_flip: bool = _knob(
        False, "also train on mirror images; ruins letters, logos and other asymmetric subjects"
    )
    append_file_name_to_text: bool = _knob(
        False, "append the file name's words to the prompt: on_a_beach.jpg -> '... on a beach'"
    )
    file_name_split_char: str = _knob("_", "what separates the words of a file name")
    use_caption_files: bool = _knob(
        False, "where IMAGE.txt lies beside IMAGE.jpg, use it as the prompt; {} marks the concept"
    )
    shuffle_tags: bool = _knob(
        False,
        "say the parts of a training prompt that commas separate in another order every time; "
        "those that name a concept come first",
    )
    tag_drop_out: float = _knob(
        0.0,
        "share of these parts that is left out, others every time; 0.1 to 0.3",
        low=0,
        high=1,
    )
    num_blank_prompts: int = _knob(
        0, "times the bare concept ('{}') is added to the templates", low=0, high=10_000
    )
    num_a_prompts: int = _knob(0, "times 'a {}' is added to the templates", low=0, high=10_000)


@dataclass(frozen=True)
class TrainingConfig:
    """The optimization. Steps are optimizer steps."""

    num_sgd_steps: int = _knob(3000, "optimizer steps; 1000 to 5000 are usual", low=1)
    train_batch_size: int = _knob(4, "images per process and micro-batch", low=1, high=10_000)
    gradient_accumulation_steps: int = _knob(1, "micro-batches per optimizer step", low=1)
    optimizer_name: Literal["adam", "adamw", "sgd"] = _knob("adam", "adam, adamw or sgd")
    learning_rate: float = _knob(5e-4, "peak learning rate; 1e-4 to 5e-3", above=0)
    scale_lr: bool = _knob(
        False,
        "multiply learning_rate by batch size x accumulation x processes; with 2 GPUs and "
        "accumulation 4 that turns 5e-4 into 4e-3, so it is off",
    )
    lr_scheduler: Literal["constant", "linear", "cosine"] = _knob(
        "constant", "after the warm-up: constant, or falling to zero along a line or a cosine"
    )
    lr_warmup_steps: int = _knob(0, "steps over which the rate rises from zero", low=0)
    adam_beta1: float = _knob(0.9, "decay of Adam's first moment", low=0)
    adam_beta2: float = _knob(0.999, "decay of Adam's second moment", low=0)
    adam_epsilon: float = _knob(1e-8, "Adam's epsilon", above=0)
    weight_decay: float = _knob(0.0, "of adamw and sgd, on the new rows", low=0)
    max_grad_norm: float | None = _knob(None, "clip the rows' gradient to this norm", above=0)
    norm_reg_weight: float = _knob(
        0.0, "weight of (row norm - mean norm of the vocabulary)^2; 0.01 to 1", low=0
    )
    hidden_reg_weight: float = _knob(
        0.0,
        "weight of the squared distance between the text encoder's states with the learned rows "
        "and with the initializer's; keeps prompts editable; 0.01 to 1",
        low=0,
    )
    gradient_checkpointing: bool = _knob(
        False, "compute the UNet's activations twice instead of keeping them: less memory, slower"
    )
    min_snr_gamma: float | None = _knob(
        None, "min-SNR loss weighting (arXiv 2303.09556), usually 5; null: the plain loss", above=0
    )
    compile: Literal["auto", "off", "on"] = _knob(
        "auto",
        "compile the models of the training step: it takes a minute or more at the start; auto: on "
        "GPUs, in runs of 5000 steps or more",
    )
    train_seed: int = _knob(2147483647, "of everything random in training", low=0)
    checkpoint_freq: int = _knob(100, "steps between checkpoints, validations and samples", low=1)
    metric_report_freq: int = _knob(10, "steps between reports of the training metrics", low=1)
    max_validation_images: int = _knob(8, "validation images per concept", low=1)
    num_validation_timesteps: int = _knob(
        8, "fixed timesteps per validation image", low=1, high=1000
    )
    stop_on_plateau: int | None = _knob(
        None,
        "validations over which val_loss has to have settled for the run to end before its last "
        "step (DVAR, arXiv 2302.04841); null: never; 3 to 10",
        low=2,
    )
    plateau_ratio: float = _knob(
        0.15,
        "settled is a val_loss whose variance over these validations is this part of its variance "
        "since the phrase, or less; 0.05 to 0.4",
        above=0,
        high=1,
    )
    best_metric: Literal[
        "auto",
        "val_loss",
        "score",
        "clip_image_similarity",
        "clip_text_similarity",
        "dino_image_similarity",
        "lineup",
    ] = _knob(
        "auto",
        "by which the best checkpoint is named, the lowest val_loss or the highest of the others; "
        "auto: score where samples are measured, else val_loss",
    )
    register_model: str | None = _knob(
        None, "on a cluster: the model in its registry that the best checkpoint is a version of"
    )


@dataclass(frozen=True)
class InferenceConfig:
    """The sample images made at every checkpoint."""

    inference_prompts: list[str] = _knob([], "prompts with concepts in them; [] makes no samples")
    negative_prompt: str = _knob("", "what to keep away from")
    num_inference_steps: int = _knob(50, "denoising steps; 25 to 50", low=1)
    guidance_scale: float = _knob(
        7.5, "classifier-free guidance; around 3 for a strong concept", low=0
    )
    scheduler_name: SchedulerName = _knob("ddim", "the sampler")
    seeds: list[int] = _knob(
        [0], "seeds, the same for every prompt and checkpoint", low=0, high=LARGEST_SEED
    )
    img_per_prompt: int = _knob(1, "images per prompt and seed", low=1, high=1000)


@dataclass(frozen=True)
class EvaluatorConfig:
    """What looks at images in order to measure them."""

    clip: str | None = _knob(
        None,
        "a CLIP, as a folder or the name of a model on the hub, such as "
        "openai/clip-vit-large-patch14; null: the clip folder of the base model, which the bundled "
        "one has",
        path=True,
    )
    dino: str | None = _knob(
        None,
        "a DINO or DINOv2 besides, such as facebook/dinov2-small, which sees shapes where CLIP "
        "sees kinds; null: none",
        path=True,
    )


@dataclass(frozen=True)
class MeasureConfig:
    """What is measured on samples at every checkpoint, for a search and the best one to go by."""

    num_samples: int = _knob(
        0,
        "samples of 'a photo of a ...' for each concept, made as `inference` says; 0: nothing is "
        "measured; 4 to 16",
        low=0,
        high=1000,
    )
    num_prompts: int = _knob(
        6, "edited prompts, of which one sample each is measured besides; 4 to 15", low=1, high=15
    )
    lineup: list[str] = _knob(
        [],
        "folders of pictures of look-alikes, one for each: is a sample nearer to the training "
        "images than to all of these?",
        path=True,
    )


@dataclass(frozen=True)
class FinetuneConfig:
    """The whole `hyperparameters` section of a fine-tuning.

    Attributes:
        metrics: what every validation reports, and a searcher can therefore go by.
        measured: what those report besides that measure samples, the larger, the better -> the key
            that has to be given for it, if any.
    """

    metrics = (
        "val_loss",
        "val_gap",
        "val_loss_initializer",
        "sgd_steps",
    )
    measured = types.MappingProxyType(
        {
            "score": None,
            "clip_image_similarity": None,
            "clip_text_similarity": None,
            "dino_image_similarity": "evaluator.dino",
            "lineup": "measure.lineup",
        }
    )

    model: ModelConfig
    concepts: ConceptsConfig
    training: TrainingConfig = field(default_factory=TrainingConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)

    @property
    def best_metric(self) -> str:
        """By which the best checkpoint is named."""
        if self.training.best_metric == "auto":
            return "score" if self.measure.num_samples else "val_loss"
        return self.training.best_metric


@dataclass(frozen=True)
class LearnedConceptsConfig:
    """The concepts that prompts may name; a prompt without any is welcome too."""

    files: list[Source] = _knob(
        [],
        "concept files of any layout, checkpoint folders, or run folders, which stand for their "
        "best checkpoint; {path: word} gives the concept another word",
        path=True,
    )
    uuids: list[Source] = _knob(
        [], "uuids of Determined checkpoints of fine-tunings; {uuid: word} as above"
    )


@dataclass(frozen=True)
class GridConfig:
    """Every list times every other: the jobs, one image each."""

    prompts: list[str] = _knob(REQUIRED, "prompts, with concepts in them")
    negative_prompts: list[str] = _knob([""], "what to keep away from")
    scheduler_names: list[SchedulerName] = _knob(["ddim"], "the samplers")
    num_inference_steps: list[int] = _knob([50], "denoising steps; 25 to 50", low=1)
    guidance_scales: list[float] = _knob(
        [7.5], "classifier-free guidance; around 3 for a strong concept, 1 and less: none", low=0
    )
    seeds: list[int] | None = _knob(
        None,
        "seeds by name; null: num_seeds of them from first_seed on",
        low=0,
        high=LARGEST_SEED,
    )
    first_seed: int = _knob(0, "the first seed, where seeds is null", low=0)
    num_seeds: int = _knob(1, "how many seeds, where seeds is null", low=1, high=10_000_000)
    width: int | None = _knob(
        None, "of the images in pixels; null: the model's own size", low=8, high=LARGEST_SIDE
    )
    height: int | None = _knob(
        None, "of the images in pixels; null: the model's own size", low=8, high=LARGEST_SIDE
    )

    @property
    def all_seeds(self) -> list[int]:
        """`seeds`, or the range that stands for them."""
        if self.seeds is not None:
            return self.seeds
        return list(range(self.first_seed, self.first_seed + self.num_seeds))


@dataclass(frozen=True)
class OutputConfig:
    """How the images are made and kept; none of it shows in them but by rounding."""

    batch_size: int | None = _knob(
        None,
        "images made at once per process; null: as many as fit the device, and no more than its "
        "share",
        low=1,
    )
    fill_batches: bool = _knob(
        False,
        "fill every batch up to batch_size: costs time in small grids, and gives the pixels of a "
        "larger one bit for bit",
    )
    checkpoint_freq: int = _knob(10, "batches per process between checkpoints, on a cluster", low=1)
    tensorboard: Literal["auto", "images", "sheets"] = _knob(
        "auto",
        "every image under a tag of its own besides the contact sheets, or these alone; auto: "
        "images up to 2000 of them, beyond which TensorBoard becomes unusable",
    )


@dataclass(frozen=True)
class GenerateConfig:
    """The whole `hyperparameters` section of a grid of images; `metrics` as above."""

    metrics = ("images",)

    model: ModelConfig
    grid: GridConfig
    concepts: LearnedConceptsConfig = field(default_factory=LearnedConceptsConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True)
class EvaluationConfig:
    """The samples that are made of each concept, and what they are held against."""

    images: str | None = _knob(
        None,
        "folder of the concepts' training images; null: that of the fine-tuning of each source",
        path=True,
    )
    lineup: list[str] = _knob(
        [],
        "folders of pictures of look-alikes, one folder for each; is a sample nearer to the "
        "training images than to all of these?",
        path=True,
    )
    all_checkpoints: bool = _knob(False, "every checkpoint of a run folder instead of its best one")
    prompt_list: Literal["auto", "object", "style", "dreambooth"] = _knob(
        "auto",
        "the edited prompts; auto: object or style, as it was learned; dreambooth: the 25 of that "
        "paper, which the bundled model does not know",
    )
    prompts: list[str] = _knob([], "edited prompts of your own in their place; {} is the concept")
    num_samples: int = _knob(
        16, "samples of 'a photo of a ...' for each concept; the paper took 64", low=1, high=10_000
    )
    num_samples_per_prompt: int = _knob(
        2, "samples of each edited prompt for each concept", low=1, high=1000
    )
    first_seed: int = _knob(
        0,
        "the seed of the first sample, counted on from there",
        low=0,
        high=LARGEST_SEED - 10_000,
    )
    scheduler_name: SchedulerName | None = _knob(None, "the sampler; null: the model's own")
    num_inference_steps: int = _knob(25, "denoising steps; 25 to 50", low=1)
    guidance_scale: float = _knob(4.0, "classifier-free guidance; 7.5 is usual", low=0)
    num_error_timesteps: int = _knob(
        20, "timesteps of the denoising error, for each held-out image", low=5, high=1000
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """The whole `hyperparameters` section of an evaluation; `metrics` as above."""

    metrics = ("images",)

    model: ModelConfig
    concepts: LearnedConceptsConfig = field(default_factory=LearnedConceptsConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


# ---- checking ----------------------------------------------------------------------------------


def _nearest(key: str, kind: type) -> str:
    """What the unknown `key` of `kind` may have been meant to be."""
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if key not in close:  # in a section, though given outside of all?
        below = {
            f.name: f"{name}.{f.name}"
            for name in known
            if dataclasses.is_dataclass(hints[name])
            for f in dataclasses.fields(hints[name])
        }
        inside = difflib.get_close_matches(key, below, n=1, cutoff=0.8)
        close = [below[inside[0]]] if inside else close
    return f"did you mean {close[0]!r}?" if close else "known keys: " + ", ".join(known)


def type_name(kind: Any) -> str:
    """A field's type in words."""
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    names[Source] = "a path, or {path: word}"
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(map(type_name, typing.get_args(kind)))
    if typing.get_origin(kind) is list:
        return f"a list, each {type_name(typing.get_args(kind)[0])}"
    return names.get(kind, "null" if kind is types.NoneType else str(kind))


def _value(kind: Any, value: Any) -> Any:
    """`value` as `kind`, or ValueError saying what was expected."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        for option in typing.get_args(kind):
            try:
                return _value(option, value)
            except ValueError:
                pass
        raise ValueError(type_name(kind))
    if origin is list:
        values = value if isinstance(value, list) else [value]
        return [_value(typing.get_args(kind)[0], v) for v in values]
    if origin is Literal and value in typing.get_args(kind):
        return value
    if kind is types.NoneType and value is None:
        return None
    if kind is bool and isinstance(value, bool):
        return value
    if kind is Source and isinstance(value, dict) and len(value) == 1:
        ((path, word),) = value.items()
        if isinstance(path, str) and isinstance(word, str):
            return Source(f"{path}={word}")
    if kind in (str, Source) and isinstance(value, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int and is_number and not abs(value) < 2**63:
        raise ValueError("a whole number of at most 18 digits")
    # Whole floats arrive from Determined as int, and the other way round.
    if kind is int and is_number and float(value).is_integer():
        return int(value)
    if kind is float and is_number and abs(value) < sys.float_info.max:
        return float(value)
    raise ValueError(type_name(kind))


def _check_concepts(c: ConceptsConfig, problems: list[str]) -> ConceptsConfig:
    """One entry per concept in every list; a single property or vector count serves all."""
    n = len(c.concept_strs)
    if n == 0:
        problems.append("concepts.concept_strs is empty; name at least one concept")
    stretched = {}
    for name in ("learnable_properties", "num_vectors"):
        values = getattr(c, name)
        stretched[name] = values * n if len(values) == 1 else values
    for name in ("initializer_strs", "img_dirs", "learnable_properties", "num_vectors"):
        length = len(stretched.get(name, getattr(c, name)))
        if length != n:
            problems.append(
                f"concepts.{name} has {length} entries for {n} concept_strs; give one for each"
            )
    for name in sorted({s for s in c.concept_strs if c.concept_strs.count(s) > 1}):
        problems.append(
            f"concepts.concept_strs names {name!r} twice; give every concept its own word"
        )
    files = [file_name(name) for name in dict.fromkeys(c.concept_strs)]
    for name in files:
        if len(f"{name}.safetensors".encode()) > LONGEST_FILE_NAME:
            problems.append(
                f"concepts.concept_strs has a word of {len(name)} characters, which no file can be "
                "named after; shorten it"
            )
    for name in sorted({f for f in files if files.count(f) > 1}):
        problems.append(
            f"concepts.concept_strs has two words that give the file name {name!r}; rename one"
        )
    if c.img_size and c.img_size % 8:
        problems.append(f"concepts.img_size is {c.img_size} but must be a multiple of 8")
    try:
        ImageColor.getrgb(c.transparency_color)
    except ValueError:
        problems.append(
            f"concepts.transparency_color {c.transparency_color!r} is no colour; use a name or "
            "#rrggbb"
        )
    return dataclasses.replace(c, **stretched)


def _check_training(t: TrainingConfig, problems: list[str]) -> None:
    if t.lr_warmup_steps > t.num_sgd_steps:
        problems.append("training.lr_warmup_steps is larger than training.num_sgd_steps; lower it")
    for beta in ("adam_beta1", "adam_beta2"):
        if getattr(t, beta) >= 1:
            problems.append(f"training.{beta} must be less than 1")
    name = t.register_model
    if name is not None and ("/" in name or name.isdigit() or not name.strip()):
        problems.append(
            f"training.register_model is {name!r}, by which a registry finds no model; use words "
            "without a slash"
        )


def _check_finetune(config: FinetuneConfig, problems: list[str]) -> None:
    best = config.best_metric
    key = config.measured.get(best)
    if best != "val_loss" and not config.measure.num_samples:
        problems.append(
            f"training.best_metric is {best}, but nothing is measured; give measure.num_samples 4 "
            "or more"
        )
    elif key and not flat(dataclasses.asdict(config))[key]:
        problems.append(
            f"training.best_metric is {best}, but {key} is empty; name what it is measured against"
        )


def _check_grid(g: GridConfig, problems: list[str]) -> None:
    """A grid of at least one job, all of them different."""
    if g.seeds is not None and (g.first_seed, g.num_seeds) != (0, 1):
        problems.append("grid.seeds and grid.first_seed or num_seeds are both given; keep one way")
    for name in ("prompts", "negative_prompts", "scheduler_names", "num_inference_steps",
                 "guidance_scales", "seeds"):  # fmt: skip
        values = getattr(g, name)
        if values == []:
            problems.append(f"grid.{name} is empty, so there is nothing to make; name at least one")
        for value in sorted({v for v in values or [] if values.count(v) > 1}):
            problems.append(f"grid.{name} has {value!r} twice; the same images would be made twice")
    if g.first_seed + g.num_seeds - 1 > LARGEST_SEED:
        problems.append(f"grid.first_seed + num_seeds go beyond the largest seed, {LARGEST_SEED}")
    for name in ("width", "height"):
        if (getattr(g, name) or 0) % 8:
            problems.append(f"grid.{name} is {getattr(g, name)} but must be a multiple of 8")


def _check_evaluation(e: EvaluationConfig, problems: list[str]) -> None:
    for prompt in e.prompts:
        if "{}" not in prompt:
            problems.append(
                f"evaluation.prompts has {prompt!r}, which names no concept; put {{}} where it goes"
            )
    for folder in sorted({f for f in e.lineup if e.lineup.count(f) > 1}):
        problems.append(f"evaluation.lineup names {folder} twice; name every look-alike once")


def _section(
    kind: type, given: Any, path: str, problems: list[str], beside: Path | None = None
) -> Any:
    """`given` as the dataclass `kind`; what is wrong with it goes into `problems`."""
    before = len(problems)
    if not isinstance(given, dict):
        problems.append(f"{path} must be a mapping of keys to values, not {given!r}")
        return None
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}
    dot = f"{path}." if path else ""
    values = {}
    for key in given:
        if key not in known:
            problems.append(f"{dot}{key} is not a known key; {_nearest(str(key), kind)}")
    for name, spec in known.items():
        required = spec.default is REQUIRED and spec.default_factory is REQUIRED
        nested = dataclasses.is_dataclass(hints[name])
        if name not in given:
            if required:
                problems.append(f"{dot}{name} is missing; {spec.metadata.get('help', 'add it')}")
            continue
        if nested:
            values[name] = _section(hints[name], given[name], f"{dot}{name}", problems, beside)
            continue
        try:
            values[name] = _value(hints[name], given[name])
        except ValueError as expected:
            problems.append(f"{dot}{name} is {reprlib.repr(given[name])} but must be {expected}")
            continue
        if spec.metadata["path"] and (v := values[name]) is not None:
            values[name] = [find(p, beside) for p in v] if isinstance(v, list) else find(v, beside)
        low, above, high = (spec.metadata.get(bound) for bound in ("low", "above", "high"))
        for v in values[name] if isinstance(values[name], list) else [values[name]]:
            if v is not None and low is not None and v < low:
                problems.append(f"{dot}{name} is {v} but must be at least {low}")
            if v is not None and high is not None and v > high:
                problems.append(f"{dot}{name} is {v} but must be at most {high}")
            if v is not None and above is not None and v <= above:
                problems.append(f"{dot}{name} is {v} but must be greater than {above}")
    if len(problems) > before:
        return None
    section = kind(**values)
    if kind is ConceptsConfig:
        return _check_concepts(section, problems)
    if kind is TrainingConfig:
        _check_training(section, problems)
    if kind is FinetuneConfig:
        _check_finetune(section, problems)
    if kind is GridConfig:
        _check_grid(section, problems)
    if kind is EvaluationConfig:
        _check_evaluation(section, problems)
    return section


Config = TypeVar("Config", FinetuneConfig, GenerateConfig, EvaluateConfig)
KINDS = {  # the section by which each is known, what it is, the command
    FinetuneConfig: ("training", "a fine-tuning", "finetune"),
    GenerateConfig: ("grid", "a grid of images", "generate"),
    EvaluateConfig: ("evaluation", "an evaluation", "evaluate"),
}


def parse_config(
    hyperparameters: Any,
    source: str,
    kind: type[Config] = FinetuneConfig,
    beside: Path | None = None,
) -> Config:
    """Check a `hyperparameters` mapping; `source` names it in messages.

    Args:
        beside: the folder in which relative paths are looked for first.

    Raises:
        UserError: listing every problem found.
    """
    problems: list[str] = []
    config = _section(kind, hyperparameters, "", problems, beside)
    refuse(problems, source)
    return config


def refuse(problems: list[str], source: str) -> None:
    """Raise the problems of a configuration, if there are any, as one UserError."""
    if problems:
        lines = "\n  ".join(problems)
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"{source} has {count} under hyperparameters:\n  {lines}")


def check_experiment(experiment: Any, source: str, kind: type) -> None:
    """Whether a cluster could serve `experiment`, whose hyperparameters are of `kind`.

    Sections that are missing besides hyperparameters are left to Determined's defaults.

    Raises:
        UserError: no hyperparameters, no slots, or a searcher without what it goes by.
    """
    hyperparameters = experiment.get("hyperparameters") if isinstance(experiment, dict) else None
    if not hyperparameters or not isinstance(hyperparameters, dict):
        raise UserError(f"{source} has no hyperparameters section; see finetune_demo.yaml for one")
    for section, what, command in KINDS.values():
        if section in hyperparameters and KINDS[kind][0] not in hyperparameters:
            raise UserError(f"{source} describes {what}; run it with {command}")
    for name in ("resources", "searcher"):
        if not isinstance(experiment.get(name) or {}, dict):
            raise UserError(
                f"{source} has {name}: {experiment[name]}, but that is a section with keys of its "
                "own; see finetune_demo.yaml"
            )
    slots = (experiment.get("resources") or {}).get("slots_per_trial")
    if slots is not None and (not isinstance(slots, int) or slots < 1):
        raise UserError(
            f"{source} has resources.slots_per_trial: {slots}, but the launcher starts one process "
            "per slot; give it 1 or more (an agent without a GPU has one slot, too)"
        )
    searcher = experiment.get("searcher") or {"metric": kind.metrics[0]}

    def given_value(name: str) -> Any:
        """Of a hyperparameter; the master writes every value out, as {type: const, val: 270}."""
        section, _, key = name.partition(".")
        value = (hyperparameters.get(section) or {}).get(key)
        return value.get("val") if isinstance(value, dict) else value

    metrics = kind.metrics
    if given_value("measure.num_samples"):
        every = FinetuneConfig.measured.items()
        metrics += tuple(name for name, key in every if key is None or given_value(key))
    asha = searcher.get("name") == "adaptive_asha"
    for key, usual in {"metric": kind.metrics[0], "time_metric": kind.metrics[-1]}.items():
        given = searcher.get(key)
        if given is None and (asha or key == "metric"):
            raise UserError(f"{source} has no searcher.{key}; add {key}: {usual}")
        if given is not None and given not in metrics:
            raise UserError(
                f"{source} has searcher.{key}: {given}, which not every validation reports; use "
                f"one of {', '.join(metrics)}"
            )
    best, metric = given_value("training.best_metric"), searcher["metric"]
    if best in (None, "auto"):
        best = "score" if metrics != kind.metrics else None
    if experiment.get("searcher") and best not in (None, metric):
        raise UserError(
            f"{source} names the best checkpoint by {best} (training.best_metric), but the cluster "
            f"would by searcher.metric: {metric}; give both the same"
        )
    if metric in FinetuneConfig.measured and searcher.get("smaller_is_better", True):
        raise UserError(
            f"{source} has searcher.metric: {metric}, of which the larger is the better; add "
            "smaller_is_better: false"
        )
    if not asha:
        return
    longest = searcher.get("max_time")
    if longest is None:
        raise UserError(f"{source} has no searcher.max_time; add the {usual} of a whole trial")
    if not isinstance(longest, int):
        raise UserError(f"{source} has searcher.max_time: {longest!r}; give a whole number")
    steps = given_value("training.num_sgd_steps")
    # A trial that ends of its own accord is not replaced: the search would stop after the first.
    if isinstance(steps, int) and longest > steps:
        raise UserError(
            f"{source} has searcher.max_time: {longest}, but its trials end at "
            f"training.num_sgd_steps: {steps} and the search would stop early; lower max_time"
        )


def _parsed(text: str) -> Any:
    """YAML as Determined's own commands read it."""
    from determined.common.util import yaml_safe_load  # late: a fifth of a second

    return yaml_safe_load(text)


def read_experiment(path: Path) -> Any:
    """The experiment file at `path` as Determined reads it (`5e-4` is a number).

    Raises:
        UserError: no such file, or not YAML.
    """
    try:
        return _parsed(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name an experiment file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); name an experiment file") from None
    except Exception as error:  # ruamel's and yaml's parsers share no base class
        reason = one_line(error, None)
        raise UserError(f"{path} is not valid YAML: {reason}") from None


def _constants(value: Any) -> Any:
    """Hyperparameters as a trial would get them: `{type: const, val: x}` is x.

    Raises ValueError for a search range, which needs a searcher to become a value.
    """
    if not isinstance(value, dict):
        return value
    if value.get("type") == "const":
        return value["val"]
    if "type" in value:
        raise ValueError(value["type"])
    return {key: _constants(v) for key, v in value.items()}


def override(hyperparameters: dict[str, Any], overrides: list[str], source: str) -> None:
    """Apply `section.key=value` texts in place; values are YAML.

    Raises:
        UserError: a malformed override.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text} is not KEY=VALUE; write e.g. training.num_sgd_steps=200")
        *sections, last = key.strip().split(".")
        target = hyperparameters
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UserError(f"--set {text}: {section} is a value, not a section of {source}")
        try:
            target[last] = _parsed(value)
            # Nobody writes a comment there, and what follows a # would be lost without a word.
            kept = _parsed(value.replace("#", "¤"))
        except Exception:
            raise UserError(f"--set {text}: {value!r} is not valid YAML; quote it") from None
        as_text = json.dumps(target[last], ensure_ascii=False, default=str)
        if as_text.replace("#", "¤") != json.dumps(kept, ensure_ascii=False, default=str):
            raise UserError(
                f"--set {text}: YAML takes what follows # for a comment; put quotes of YAML's own "
                f"around the text, as in '{key}=\"{value}\"'"
            )


def load_config(
    path: str | Path, overrides: list[str] | None = None, kind: type[Config] = FinetuneConfig
) -> Config:
    """Read the experiment file at `path`, apply `section.key=value` overrides, check it.

    Raises:
        UserError: unreadable file, malformed override, or a problem in the configuration.
    """
    experiment = read_experiment(Path(path))
    check_experiment(experiment, str(path), kind)
    hyperparameters = experiment["hyperparameters"]
    override(hyperparameters, overrides or [], str(path))
    try:
        hyperparameters = _constants(hyperparameters)
    except ValueError as error:
        raise UserError(
            f"{path} holds a search range (type: {error}); submit it with det e create, or give "
            "the value with --set"
        ) from None
    return parse_config(hyperparameters, str(path), kind, Path(path).parent)


def flat(config: dict[str, Any], path: str = "") -> dict[str, Any]:
    """A configuration's `asdict` as "section.key" -> value."""
    found = {}
    for key, value in config.items():
        found |= (
            flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
        )
    return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Which keys differ between two configurations' `asdict`, as "section.key was 1, is 2".

    Keys that there were not yet when the old one was written do not count.
    """
    was, now = flat(old), flat(new)
    changed = (key for key in sorted(was) if was[key] != now.get(key))
    return [f"{key} was {was[key]!r}, is {now.get(key)!r}" for key in changed]
