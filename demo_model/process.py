"""The reverse and the forward process of a diffusion model, side by side, for the notebook.

times, reverse, forward = process(pipe, job, picture)
process_strip(times, reverse, forward)
"""

from __future__ import annotations

import dataclasses

import torch
from PIL import Image

from detsd.sampling.denoise import decode
from detsd.sampling.jobs import Job, StepInfo
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.sampling.stock import latent_shape
from detsd.utils import contact_sheets


@torch.no_grad()
def process(
    pipe: DetSDTextualInversionPipeline, job: Job, picture: Image.Image, moments: int = 8
) -> tuple[list[int], list[Image.Image], list[Image.Image]]:
    """Decode both processes at `moments` levels of noise, from most to none.

    The sampler is DDIM: at every step, its latents are as noisy as those of the forward process at
    that timestep.

    Args:
        picture: a training image, for the forward process.

    Returns:
        The timesteps, falling to 0; the job's latents at these, decoded (the reverse process, from
        noise to image); and the picture's latents, mixed with the same noise and decoded (the
        forward process, from which training samples are drawn).
    """
    model, steps = pipe.model, []

    def on_step(now: StepInfo) -> None:
        steps.append((now.timestep, now.latents))

    job = dataclasses.replace(job, scheduler_name="ddim")
    pipe.make([job], on_step=on_step)
    shape = (1, *latent_shape(model, job.width, job.height))
    noise = torch.randn(shape, generator=job.generator).to(steps[0][1])
    times = [timestep for timestep, _ in steps] + [0]
    latents = [noise] + [after for _, after in steps]
    last = len(times) - 1
    moments = min(moments, len(times))
    chosen = [round(k * last / max(1, moments - 1)) for k in range(moments)]
    factor = model.vae_scale_factor
    size = (noise.shape[-1] * factor, noise.shape[-2] * factor)
    images = pipe.diffusers_pipeline.image_processor
    pixels = images.preprocess(picture.resize(size, Image.LANCZOS))
    clean = model.vae.encode(pixels.to(model.vae.device, model.vae.dtype)).latent_dist.mean.float()
    clean = clean * model.vae.config.scaling_factor
    noised = [model.scheduler.add_noise(clean, noise, torch.tensor([times[k]])) for k in chosen]
    noised[-1] = clean

    def decoded(x: torch.Tensor) -> Image.Image:
        return images.postprocess(decode(model.vae, x))[0]

    return (
        [times[k] for k in chosen],
        [decoded(latents[k]) for k in chosen],
        [decoded(x) for x in noised],
    )


def process_strip(
    times: list[int], reverse: list[Image.Image], forward: list[Image.Image]
) -> Image.Image:
    """Draw the reverse process over the forward one, a column for each level of noise."""
    labels = [
        "reverse process, left to right: the model takes noise away, step by step",
        "forward process, right to left: a training image drowns in noise",
    ]
    return contact_sheets.sheet([reverse, forward], labels, [f"t = {t}" for t in times])
