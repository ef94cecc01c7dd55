"""The training objective in pure functions: tensors in, loss out."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDPMScheduler

from detsd.models.base import BaseModel, Conditioning

MAX_TIMESTEPS = 8  # noised copies of an image that the UNet sees at once


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return half precision as float32, and any other tensor unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def prediction_target(
    scheduler: DDPMScheduler, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """Return the UNet's target: the noise (arXiv 2006.11239) or v (arXiv 2202.00512).

    x, noise (B, C, h, w); t (B,). The scheduler's `prediction_type` says which one.
    """
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(x, noise, t)
    return noise


def min_snr_weight(scheduler: DDPMScheduler, t: torch.Tensor, gamma: float | None) -> torch.Tensor:
    """Return the weight of each sample's loss (B,): min(SNR, gamma) over the target's own weight.

    Equation 6 of arXiv 2303.09556 for epsilon; for v the target's own weight is SNR + 1. Without
    gamma, all weights are 1.
    """
    if gamma is None:
        return torch.ones(len(t), device=t.device)
    alpha = scheduler.alphas_cumprod.to(t.device)[t]
    snr = alpha / (1 - alpha)
    own = snr + 1 if scheduler.config.prediction_type == "v_prediction" else snr
    return snr.clamp(max=gamma) / own


def squared_error(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean squared error of each sample (B,), at least in float32.

    prediction, target (B, C, h, w). A mask (B, 1, h, w) weights the mean: latents where it is zero
    do not count, and a small subject counts as much as a large one.
    """
    error = (at_least_float32(prediction) - at_least_float32(target)).pow(2)
    if mask is None:
        return error.mean((1, 2, 3))
    return (error.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def norm_penalty(rows: torch.Tensor, target_norm: float) -> torch.Tensor:
    """Return the mean of (|row| - target norm)^2: keeps rows (N, D) as long as the vocabulary's."""
    return (rows.norm(dim=1) - target_norm).pow(2).mean()


def hidden_penalty(hidden: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance of encoder states (B, 77, D) from the initializer's."""
    return (at_least_float32(hidden) - at_least_float32(reference)).pow(2).mean()


def denoising_error(
    model: BaseModel,
    unet: Callable[..., Any],
    x: torch.Tensor,
    noise: torch.Tensor,
    t: torch.Tensor,
    cond: Conditioning,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the squared error (B,) of the predictions of a UNet, the model's own or compiled.

    x, noise (B, C, h, w), with x clean and scaled; t (B,); mask (B, 1, h, w) weights the error.
    """
    noisy = model.scheduler.add_noise(x, noise, t).to(model.dtype)
    target = prediction_target(model.scheduler, x, noise, t)
    prediction = unet(noisy, t, cond.prompt_embeds, added_cond_kwargs=cond.added_cond_kwargs).sample
    return squared_error(prediction, target, mask)


@torch.no_grad()
def errors_over_timesteps(
    model: BaseModel,
    x: torch.Tensor,
    noise: torch.Tensor,
    t: torch.Tensor,
    cond: Conditioning,
    mask: torch.Tensor | None = None,
    on_batch: Callable[[int], object] = lambda count: None,
) -> torch.Tensor:
    """Return the squared errors (T,) of one image at fixed timesteps, as validation measures them.

    x, noise (T, C, h, w), the image's latents once for each timestep; t (T,); cond, a batch of one;
    mask (T, 1, h, w). `on_batch` is called with the number of timesteps just completed.
    """
    errors = []
    for k in range(0, len(t), MAX_TIMESTEPS):
        part = slice(k, k + MAX_TIMESTEPS)
        same = Conditioning.cat([cond] * len(t[part]))
        weights = None if mask is None else mask[part]
        errors.append(
            denoising_error(model, model.unet, x[part], noise[part], t[part], same, weights)
        )
        on_batch(len(t[part]))
    return torch.cat(errors)
