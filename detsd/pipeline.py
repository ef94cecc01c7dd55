"""Images from prompts with concepts in them; knows nothing of the cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from PIL import Image

from detsd.concepts import Vocabulary
from detsd.config import InferenceConfig
from detsd.models import BaseModel

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "lms-discrete": LMSDiscreteScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
}


@dataclass(frozen=True)
class SampleJob:
    """One image: its pixels are a function of these fields alone."""

    prompt: str
    seed: int
    copy: int = 0  # of several images with one prompt and seed

    @property
    def generator(self) -> torch.Generator:
        # On the CPU, so that every device starts from the same noise. The first copy is what any
        # other tool makes of the seed; PyTorch heeds only 32 bits of it, so the others are hashed.
        mixed = np.random.SeedSequence((self.seed, self.copy)).generate_state(1)[0]
        return torch.Generator().manual_seed(int(mixed) if self.copy else self.seed)


def sample_jobs(config: InferenceConfig) -> list[SampleJob]:
    """Prompts x seeds x copies, in this order."""
    return [
        SampleJob(prompt, seed, copy)
        for prompt in config.inference_prompts
        for seed in config.seeds
        for copy in range(config.img_per_prompt)
    ]


class Sampler:
    """The base model's stock diffusers pipeline, over the very modules of a training."""

    def __init__(
        self, model: BaseModel, vocabulary: Vocabulary, config: InferenceConfig, size: int
    ):
        self.vocabulary, self.config, self.size = vocabulary, config, size
        options = dict(model.sampling_scheduler_config)
        if config.scheduler_name == "pndm":
            options.setdefault("skip_prk_steps", True)  # as Stable Diffusion's own PNDM has it
        scheduler = SCHEDULERS[config.scheduler_name].from_config(options)
        # No safety checker: the samples of a training in progress are for its owner's eyes, and a
        # blacked-out one is taken for a failure.
        self.pipeline = StableDiffusionPipeline(
            vae=model.vae,
            text_encoder=model.text_encoder,
            tokenizer=model.tokenizer,
            unet=model.unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, job: SampleJob) -> Image.Image:
        """The image of one job: its own batch and generator, so that nothing beside it matters."""
        result = self.pipeline(
            self.vocabulary.rewrite(job.prompt),
            negative_prompt=self.vocabulary.rewrite(self.config.negative_prompt) or None,
            height=self.size,
            width=self.size,
            num_inference_steps=self.config.num_inference_steps,
            guidance_scale=self.config.guidance_scale,
            generator=job.generator,
        )
        return result.images[0]
