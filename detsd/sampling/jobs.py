"""Jobs: the settings that determine the pixels of one image."""

import dataclasses
import itertools
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from detsd.config import GridConfig, InferenceConfig
from detsd.config.schema import MAX_SEED, SpacingName, sampling_problems
from detsd.utils.errors import UserError


@dataclass(frozen=True)
class Job:
    """One image, whose pixels depend only on these fields, the model and the concepts."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    guidance_scale: float = 7.5
    num_inference_steps: int = 50
    scheduler_name: str = "ddim"
    width: int | None = None  # None: the model's own size
    height: int | None = None
    copy: int = 0  # number among images equal in all other fields
    guidance_interval: tuple[float, float] | None = None  # fractions of the steps; None: everywhere
    spacing: str | None = None  # of the timesteps; None: the model's own
    # Parse (word:1.3), BREAK and long prompts with `concepts.weights`; False: plain text, cut off.
    prompt_weights: bool = True

    def __post_init__(self):
        """Convert numpy's numbers and lists: settings are hashed, and written as JSON."""
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())
        if isinstance(self.guidance_interval, list):
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))

    def check(self) -> None:
        """Refuse settings that no image of any model can have."""
        spacings, steps = typing.get_args(SpacingName), self.num_inference_steps
        found = sampling_problems("job", self.guidance_interval, [], [])
        if not (isinstance(self.seed, int) and 0 <= self.seed <= MAX_SEED):
            found.append(f"job.seed is {self.seed} but must be a whole number from 0 to {MAX_SEED}")
        if not (isinstance(steps, int) and steps > 0):
            found.append(f"job.num_inference_steps is {steps} but must be a whole number above 0")
        if self.spacing not in (None, *spacings):
            known = ", ".join(spacings)
            found.append(f"job.spacing is {self.spacing!r} but must be one of {known}, or None")
        for name in ("width", "height"):
            if (side := getattr(self, name)) is not None and (side < 8 or side % 8):
                found.append(f"job.{name} is {side} but must be a multiple of 8")
        if found:
            raise UserError("; ".join(found))

    @property
    def noise_seed(self) -> int:
        """The seed with which any tool makes this image; for copy 0 it is `seed`.

        PyTorch uses only 32 bits of a seed, so those of the other copies are hashed.
        """
        mixed = np.random.SeedSequence((self.seed, self.copy)).generate_state(1)[0]
        return int(mixed) if self.copy else self.seed

    @property
    def generator(self) -> torch.Generator:
        """The source of all noise: on the CPU, so that every device gets the same noise."""
        return torch.Generator().manual_seed(self.noise_seed)

    @property
    def guided(self) -> bool:
        """True if guidance is computed; a scale of 1 or less needs none, as in diffusers."""
        return self.guidance_scale > 1

    @property
    def batch_key(self) -> tuple:
        """The fields that are equal in a batch; prompt and guidance scale may differ."""
        return (
            self.scheduler_name,
            self.num_inference_steps,
            self.width,
            self.height,
            self.guided,
            self.guidance_interval,
            self.spacing,
        )


def product(job: Job, **values: Iterable[Any]) -> list[Job]:
    """Return copies of a job with all combinations of the values; the last field varies fastest."""
    return [
        dataclasses.replace(job, **dict(zip(values, combination, strict=True)))
        for combination in itertools.product(*values.values())
    ]


def grid_jobs(grid: GridConfig, size: int) -> list[Job]:
    """Return the product of the grid's lists; `size` in pixels applies if it names none."""
    return product(
        Job(
            "",
            0,
            width=grid.width or size,
            height=grid.height or size,
            guidance_interval=grid.guidance_interval,
            spacing=grid.spacing,
            prompt_weights=grid.prompt_weights,
        ),
        prompt=grid.prompts,
        negative_prompt=grid.negative_prompts,
        scheduler_name=grid.scheduler_names,
        num_inference_steps=grid.num_inference_steps,
        guidance_scale=grid.guidance_scales,
        seed=grid.all_seeds,
    )


def sample_jobs(config: InferenceConfig, size: int) -> list[Job]:
    """Return a fine-tuning's sample images: prompts x seeds x copies, in this order."""
    job = Job(
        "",
        0,
        config.negative_prompt,
        config.guidance_scale,
        config.num_inference_steps,
        config.scheduler_name,
        size,
        size,
        guidance_interval=config.guidance_interval,
        spacing=config.spacing,
        prompt_weights=config.prompt_weights,
    )
    return product(
        job,
        prompt=config.inference_prompts,
        seed=config.seeds,
        copy=range(config.img_per_prompt),
    )


def batches(jobs: list[Job], size: int, chunks: list[int] | None = None) -> list[list[int]]:
    """Group the numbers of jobs into batches of at most `size`; every job is in one batch.

    Args:
        chunks: the number of chunks of each job's prompts, which is equal in a batch.
    """
    groups: dict[tuple, list[int]] = {}
    for number, job in enumerate(jobs):
        key = (job.batch_key, chunks[number] if chunks else 1)
        groups.setdefault(key, []).append(number)
    return [g[k : k + size] for g in groups.values() for k in range(0, len(g), size)]


@dataclass(frozen=True)
class GeneratedImage:
    """The image of a job."""

    image: Image.Image
    flagged: bool  # the model's safety checker blacked it out
    batch_size: int  # images made at once: other batches may round differently

    @property
    def how(self) -> dict[str, Any]:
        """The facts that its file holds beside the settings of its job."""
        return {"flagged": self.flagged, "batch_size": self.batch_size}


@dataclass(frozen=True)
class StepInfo:
    """The progress of some jobs after a denoising step."""

    numbers: list[int]  # of the jobs being made at once
    step: int  # denoising steps done for these
    steps: int
    timestep: int
    latents: torch.Tensor  # (B, 4, h, w), a row for each of `numbers`
    share: float  # of all jobs' work done so far
