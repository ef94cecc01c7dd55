"""The hyperparameters of a fine-tuning."""

from __future__ import annotations

import dataclasses
import types
from dataclasses import dataclass, field
from typing import Literal

from PIL import ImageColor

from detsd.config.model import ModelConfig
from detsd.config.schema import (
    GUIDANCE_INTERVAL_HELP,
    LINEUP_HELP,
    MAX_FILE_NAME,
    MAX_SEED,
    MAX_SIDE,
    PROMPT_WEIGHTS_HELP,
    REQUIRED,
    SPACING_HELP,
    SchedulerName,
    Section,
    SpacingName,
    flat,
    repeated,
    sampling_problems,
    setting,
)
from detsd.utils.paths import AUTO, file_name, find, find_start


@dataclass(frozen=True)
class ConceptsConfig(Section):
    """The concepts to learn and their training images. The lists have one entry per concept."""

    concept_strs: list[str] = setting(REQUIRED, "the new words, as you will write them in prompts")
    initializer_strs: list[str] = setting(
        REQUIRED,
        "what each concept starts from: a description, or a concept file, checkpoint or run folder "
        "that holds one concept; auto: the phrase with which the model denoises the images best",
        path=find_start,
    )
    img_dirs: list[str] = setting(
        REQUIRED, "folder of training images of each concept; 5 to 50 images", path=find
    )
    learnable_properties: list[Literal["object", "style"]] = setting(
        ["object"], "object or style: selects the templates of the training prompts"
    )
    num_vectors: list[int | Literal["auto"] | None] = setting(
        [None],
        "embedding vectors of each concept; null: one per token of its initializer; auto: the "
        "same, but 8 if it has fewer than 5 tokens, since a few vectors cannot hold much",
        low=1,
        high=1000,
    )
    img_size: int | None = setting(
        None,
        "height and width of a training image in pixels; null: the model's own size",
        low=8,
        high=MAX_SIDE,
    )
    img_aspect: float | Literal["buckets"] = setting(
        1.0,
        "width / height of the crop, which has as many pixels as the square one: 1.5 for landscape "
        "photos, 0.67 for portrait ones; buckets: crop each image to the nearest of several shapes",
        low=0.25,
        high=4,
    )
    center_crop: bool = setting(
        True, "crop the longer side; false: squeeze the whole image into the target size"
    )
    transparency_color: str = setting("white", "the colour behind transparent pixels")
    mask: Literal["none", "alpha", "files"] = setting(
        "none",
        "the parts of an image that count in the loss; alpha: those that are not transparent; "
        "files: those that are white in IMAGE-masklabel.png beside IMAGE.jpg; grey and "
        "half-transparent pixels count partly",
    )
    horizontal_flip: bool = setting(
        False, "also train on mirror images; bad for letters, logos and other asymmetric subjects"
    )
    append_file_name_to_text: bool = setting(
        False,
        "append the file name's words to the prompt: on_a_beach.jpg -> '... on a beach'; camera "
        "names, dates and hashes are left out",
    )
    file_name_split_char: str = setting("_", "the character between the words of a file name")
    use_caption_files: bool = setting(
        False,
        "use captions as the prompts if there are any: IMAGE.txt or IMAGE.caption beside "
        "IMAGE.jpg, captions/IMAGE.txt, or metadata.jsonl or .csv; {} or [name] is the concept",
    )
    shuffle_tags: bool = setting(
        False,
        "shuffle the comma-separated parts of the training prompt anew for every sample; parts "
        "that name a concept come first",
    )
    tag_drop_out: float = setting(
        0.0,
        "share of the comma-separated parts to leave out, at random for every sample; 0.1 to 0.3",
        low=0,
        high=1,
    )
    num_blank_prompts: int = setting(
        0, "how often the concept alone ('{}') is added to the templates", low=0, high=10_000
    )
    num_a_prompts: int = setting(
        0, "how often 'a {}' is added to the templates", low=0, high=10_000
    )

    def completed(self) -> ConceptsConfig:
        """Return the section with a single property, vector count or `auto` for each concept."""

        def each(values: list) -> list:
            return values * len(self.concept_strs) if len(values) == 1 else values

        starts = [AUTO if s.strip().lower() == AUTO else s for s in self.initializer_strs]
        return dataclasses.replace(
            self,
            initializer_strs=each(starts) if starts == [AUTO] else starts,
            learnable_properties=each(self.learnable_properties),
            num_vectors=each(self.num_vectors),
        )

    def problems(self) -> list[str]:
        """Return what is wrong: lists of unequal length, words that clash, sizes, colours."""
        problems = []
        n = len(self.concept_strs)
        if n == 0:
            problems.append("concepts.concept_strs is empty; name at least one concept")
        for name in ("initializer_strs", "img_dirs", "learnable_properties", "num_vectors"):
            length = len(getattr(self, name))
            if length != n:
                problems.append(
                    f"concepts.{name} has {length} entr{'y' if length == 1 else 'ies'} for {n} "
                    "concept_strs; give one for each"
                )
        for name in repeated(self.concept_strs):
            problems.append(
                f"concepts.concept_strs names {name!r} twice; give every concept its own word"
            )
        files = [file_name(name) for name in dict.fromkeys(self.concept_strs)]
        for name in files:
            if len(f"{name}.safetensors".encode()) > MAX_FILE_NAME:
                problems.append(
                    f"concepts.concept_strs has a word of {len(name)} characters, which is too "
                    "long for a file name; shorten it"
                )
        for name in repeated(files):
            problems.append(
                f"concepts.concept_strs has two words with the same file name {name!r}; rename one"
            )
        if self.img_size and self.img_size % 8:
            problems.append(f"concepts.img_size is {self.img_size} but must be a multiple of 8")
        try:
            ImageColor.getrgb(self.transparency_color)
        except ValueError:
            problems.append(
                f"concepts.transparency_color {self.transparency_color!r} is not a colour; use a "
                "name or #rrggbb"
            )
        return problems


@dataclass(frozen=True)
class TrainingConfig(Section):
    """The optimization. Steps are optimizer steps."""

    num_sgd_steps: int = setting(3000, "optimizer steps; 1000 to 5000 are usual", low=1)
    train_batch_size: int = setting(4, "images per process and micro-batch", low=1, high=10_000)
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step", low=1)
    optimizer_name: Literal["adam", "adamw", "sgd"] = setting("adam", "adam, adamw or sgd")
    learning_rate: float = setting(5e-4, "peak learning rate; 1e-4 to 5e-3", above=0)
    scale_lr: bool = setting(
        False,
        "multiply learning_rate by batch size x accumulation steps x processes; off, since a batch "
        "size of 1 on 2 GPUs with 4 accumulation steps would turn 5e-4 into 4e-3",
    )
    lr_scheduler: Literal["constant", "linear", "cosine"] = setting(
        "constant", "after the warm-up: constant, or falling to zero linearly or as a cosine"
    )
    lr_warmup_steps: float = setting(
        0, "steps of linear warm-up; below 1: a share of all steps", low=0
    )
    adam_beta1: float = setting(0.9, "decay of Adam's first moment", low=0)
    adam_beta2: float = setting(0.999, "decay of Adam's second moment", low=0)
    adam_epsilon: float = setting(1e-8, "Adam's epsilon", above=0)
    weight_decay: float = setting(0.0, "weight decay of adamw and sgd, on the new vectors", low=0)
    max_grad_norm: float | None = setting(
        None, "clip the gradient of the vectors to this norm; null: no clipping", above=0
    )
    max_sample_grad_norm: float | None = setting(
        None,
        "clip the gradient of each sample's text states to this norm (per-sample clipping, arXiv "
        "1607.00133); null: no clipping; 0.1 for the bundled model",
        above=0,
    )
    norm_reg_weight: float = setting(
        0.0, "weight of (norm of a vector - mean norm of the vocabulary)^2; 0.01 to 1", low=0
    )
    hidden_reg_weight: float = setting(
        0.0,
        "weight of the squared distance between the text states of the learned vectors and those "
        "of the initializer; keeps prompts editable; 0.01 to 1",
        low=0,
    )
    gradient_checkpointing: bool = setting(
        False, "recompute the UNet's activations instead of keeping them: less memory, slower"
    )
    min_snr_gamma: float | None = setting(
        None, "min-SNR loss weighting (arXiv 2303.09556), usually 5; null: the plain loss", above=0
    )
    compile: Literal["auto", "off", "on"] = setting(
        "auto",
        "compile the models of the training step, which takes a minute or more at the start; "
        "auto: on GPUs, in runs of 5000 steps or more",
    )
    train_seed: int = setting(2147483647, "seed of everything random in training", low=0)
    checkpoint_freq: int = setting(100, "steps between checkpoints, validations and samples", low=1)
    metric_report_freq: int = setting(10, "steps between reports of the training metrics", low=1)
    max_validation_images: int = setting(8, "validation images per concept", low=1)
    num_validation_timesteps: int = setting(
        8, "fixed timesteps per validation image", low=1, high=1000
    )
    stop_on_plateau: int | None = setting(
        None,
        "end the run early once val_loss has levelled off over this many validations (DVAR, arXiv "
        "2302.04841); null: never; 3 to 10",
        low=2,
    )
    plateau_ratio: float = setting(
        0.15,
        "val_loss has levelled off when its variance over these validations is at most this share "
        "of its variance since the initializer; 0.05 to 0.4",
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
    ] = setting(
        "auto",
        "selects the best checkpoint: by the lowest val_loss, or by the highest value of another "
        "metric; auto: score if measure.num_samples is set, else val_loss",
    )
    register_model: str | None = setting(
        None, "model in the cluster's registry; the best checkpoint becomes a version of it"
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the schedule, the optimizer or the name in the registry."""
        problems = []
        if self.lr_warmup_steps > self.num_sgd_steps:
            problems.append(
                "training.lr_warmup_steps is larger than training.num_sgd_steps; lower it"
            )
        if self.lr_warmup_steps > 1 and self.lr_warmup_steps % 1:
            problems.append("training.lr_warmup_steps must be a whole number, or less than 1")
        for beta in ("adam_beta1", "adam_beta2"):
            if getattr(self, beta) >= 1:
                problems.append(f"training.{beta} must be less than 1")
        name = self.register_model
        if name is not None and ("/" in name or name.isdigit() or not name.strip()):
            problems.append(
                f"training.register_model is {name!r}, which is not a valid model name; use "
                "words without a slash"
            )
        return problems


@dataclass(frozen=True)
class InferenceConfig(Section):
    """The sample images made at every checkpoint."""

    inference_prompts: list[str] = setting([], "prompts that name concepts; []: no samples")
    negative_prompt: str = setting("", "what the images should not show")
    num_inference_steps: int = setting(50, "denoising steps; 25 to 50", low=1)
    guidance_scale: float = setting(
        7.5, "classifier-free guidance; around 3 for a strong concept", low=0
    )
    guidance_interval: list[float] | None = setting(None, GUIDANCE_INTERVAL_HELP)
    scheduler_name: SchedulerName = setting("ddim", "the sampler")
    spacing: SpacingName | None = setting(None, SPACING_HELP)
    prompt_weights: bool = setting(True, PROMPT_WEIGHTS_HELP)
    seeds: list[int] = setting(
        [0], "seeds, the same for every prompt and checkpoint", low=0, high=MAX_SEED
    )
    img_per_prompt: int = setting(1, "images per prompt and seed", low=1, high=1000)

    def problems(self) -> list[str]:
        """Return what is wrong with the guidance interval or the steps."""
        return sampling_problems(
            "inference", self.guidance_interval, [self.scheduler_name], [self.num_inference_steps]
        )


@dataclass(frozen=True)
class EvaluatorConfig(Section):
    """The image encoders that measure images."""

    clip: str | None = setting(
        None,
        "a CLIP: a folder or the name of a hub model, such as openai/clip-vit-large-patch14; null: "
        "the clip folder of the base model, which the bundled one has",
        path=find,
    )
    dino: str | None = setting(
        None,
        "an additional DINO or DINOv2, such as facebook/dinov2-small, which distinguishes shapes "
        "where CLIP distinguishes categories; null: none",
        path=find,
    )


@dataclass(frozen=True)
class MeasureConfig(Section):
    """Metrics of samples at every checkpoint, for searches and for the best checkpoint."""

    num_samples: int = setting(
        0,
        "samples of 'a photo of a ...' for each concept, with the settings of `inference`; 0: "
        "none; 4 to 16",
        low=0,
        high=1000,
    )
    num_prompts: int = setting(
        6, "edited prompts, with one more sample for each; 4 to 15", low=1, high=15
    )
    lineup: list[str] = setting([], LINEUP_HELP, path=find)


@dataclass(frozen=True)
class FinetuneConfig(Section):
    """The whole `hyperparameters` section of a fine-tuning."""

    # Metrics that every validation reports, so that a searcher can use them.
    metrics = ("val_loss", "val_gap", "val_loss_initializer", "sgd_steps")
    # Metrics of samples that validations may also report (the larger, the better), and the key that
    # must be set for each, if any.
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
        """The metric by which the best checkpoint is chosen."""
        if self.training.best_metric == "auto":
            return "score" if self.measure.num_samples else "val_loss"
        return self.training.best_metric

    def problems(self) -> list[str]:
        """Return why the best checkpoint cannot be chosen by `best_metric`."""
        problems = []
        best = self.best_metric
        key = self.measured.get(best)
        if best != "val_loss" and not self.measure.num_samples:
            problems.append(
                f"training.best_metric is {best}, but nothing is measured; set "
                "measure.num_samples to 4 or more"
            )
        elif key and not flat(dataclasses.asdict(self))[key]:
            problems.append(
                f"training.best_metric is {best}, which needs {key}; set that key, or choose "
                "another metric"
            )
        return problems
