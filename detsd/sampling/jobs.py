"""Jobs: the settings that the pixels of one image are a function of."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from detsd.config import GridConfig, InferenceConfig


def grid_jobs(grid: GridConfig, size: int) -> list[Job]:
    """The product of the grid's lists, seeds fastest; `size` in pixels where it names none."""
    return [
        Job(
            prompt, seed, negative, scale, steps, scheduler, grid.width or size, grid.height or size
        )
        for prompt, negative, scheduler, steps, scale, seed in itertools.product(
            grid.prompts,
            grid.negative_prompts,
            grid.scheduler_names,
            grid.num_inference_steps,
            grid.guidance_scales,
            grid.all_seeds,
        )
    ]


@dataclass(frozen=True)
class Job:
    """One image: its pixels are a function of these fields, the model and the concepts alone."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    guidance_scale: float = 7.5
    num_inference_steps: int = 50
    scheduler_name: str = "ddim"
    width: int | None = None  # None: the model's own size
    height: int | None = None
    copy: int = 0  # of several images that agree in all else

    @property
    def noise_seed(self) -> int:
        """The seed that makes this image as copy 0, which is what any tool makes of a seed.

        PyTorch heeds only 32 bits of a seed, so those of the other copies are hashed.
        """
        mixed = np.random.SeedSequence((self.seed, self.copy)).generate_state(1)[0]
        return int(mixed) if self.copy else self.seed

    @property
    def generator(self) -> torch.Generator:
        """Of all noise: on the CPU, so that every device starts from the same."""
        return torch.Generator().manual_seed(self.noise_seed)

    @property
    def batch_key(self) -> tuple:
        """Jobs that agree in this can be made at once; prompt and guidance scale may differ."""
        return (
            self.scheduler_name,
            self.num_inference_steps,
            self.width,
            self.height,
            self.guidance_scale > 1,  # else no guidance is computed, as diffusers has it
        )


def sample_jobs(config: InferenceConfig, size: int) -> list[Job]:
    """A fine-tuning's sample images: prompts x seeds x copies, in this order."""
    return [
        Job(
            prompt,
            seed,
            config.negative_prompt,
            config.guidance_scale,
            config.num_inference_steps,
            config.scheduler_name,
            size,
            size,
            copy,
        )
        for prompt in config.inference_prompts
        for seed in config.seeds
        for copy in range(config.img_per_prompt)
    ]


def batches(jobs: list[Job], size: int) -> list[list[int]]:
    """Numbers of the jobs to be made at once, at most `size` of them; every job in one batch."""
    groups: dict[tuple, list[int]] = {}
    for number, job in enumerate(jobs):
        groups.setdefault(job.batch_key, []).append(number)
    return [g[k : k + size] for g in groups.values() for k in range(0, len(g), size)]


@dataclass(frozen=True)
class GeneratedImage:
    """The image of a job."""

    image: Image.Image
    flagged: bool  # the model's safety checker blacked it out
    batch_size: int  # images made at once: other batches may round otherwise


@dataclass(frozen=True)
class StepInfo:
    """Where the making of several jobs stands after a denoising step."""

    numbers: list[int]  # of the jobs that are being made at once
    step: int  # denoising steps done of these
    steps: int
    timestep: int
    latents: torch.Tensor  # (B, 4, h, w), a row for each of `numbers`
    share: float  # of all jobs' work that is done
