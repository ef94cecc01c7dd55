"""From noise to images: pure functions of the model's parts, a sampler and each image's own noise.

Latents are kept in float32 whatever the models compute in, and all noise is drawn in float32 on the
CPU: an image starts from the same noise, and gets the same on its way, on every device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from detsd.models.base import Conditioning


def starting_noise(
    generators: Sequence[torch.Generator], shape: tuple[int, int, int]
) -> torch.Tensor:
    """Draw normal numbers (B, C, h, w), float32 on the CPU, each image's from its generator."""
    return torch.cat([torch.randn((1, *shape), generator=g) for g in generators])


@torch.no_grad()
def denoise(
    unet: UNet2DConditionModel,
    scheduler: Any,
    steps: int,
    noise: torch.Tensor,
    positive: Conditioning,
    negative: Conditioning | None,
    guidance: torch.Tensor,
    generators: Sequence[torch.Generator],
    on_step: Callable[[int, int, torch.Tensor], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> torch.Tensor | None:
    """Denoise latents (B, C, h, w), float32, from noise of the same shape.

    Args:
        scheduler: one of diffusers' samplers, used by nobody else at the same time.
        negative: the negative prompts; None for no guidance (arXiv 2207.12598).
        guidance: the scale of each image (B,).
        generators: each image's own, for samplers that add noise on the way.
        on_step: called after each step with its number (from 0), its timestep and the latents.
        should_stop: asked before each step; True ends the loop, and None is returned.
    """
    scheduler.set_timesteps(steps)  # on the CPU, where samplers look up their noise levels
    device = positive.prompt_embeds.device
    text = positive if negative is None else Conditioning.cat([negative, positive])
    scale = guidance.to(device, torch.float32).view(-1, 1, 1, 1)
    options = {"return_dict": False}
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = list(generators)
    latents = noise.to(device) * scheduler.init_noise_sigma
    # All timesteps go to the device at once: each transfer is a synchronization.
    on_device = scheduler.timesteps.to(device)
    for k, t in enumerate(scheduler.timesteps):
        if should_stop is not None and should_stop():
            return None
        scaled = scheduler.scale_model_input(latents, t).to(text.prompt_embeds.dtype)
        prediction = unet(
            scaled if negative is None else torch.cat([scaled, scaled]),
            on_device[k],
            encoder_hidden_states=text.prompt_embeds,
            added_cond_kwargs=text.added_cond_kwargs,
            return_dict=False,
        )[0].float()
        if negative is not None:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + scale * (conditional - unconditional)
        latents = scheduler.step(prediction, t, latents, **options)[0]
        if on_step is not None:
            on_step(k, int(t), latents)
    return latents


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents (B, C, h, w) to pixels (B, 3, H, W), float32 in about [-1, 1]."""
    scaled = latents / vae.config.scaling_factor
    return vae.decode(scaled.to(vae.dtype), return_dict=False)[0].float()
