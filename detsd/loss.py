"""Pure functions of the training step: tensors in, loss out."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler


def prediction_target(
    scheduler: DDPMScheduler, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """What the UNet should say: the noise (arXiv 2006.11239) or v (arXiv 2202.00512).

    x, noise (B, C, h, w); t (B,). Which one, the scheduler's `prediction_type` names.
    """
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(x, noise, t)
    return noise


def min_snr_weight(scheduler: DDPMScheduler, t: torch.Tensor, gamma: float | None) -> torch.Tensor:
    """Loss weight per sample (B,): min(SNR, gamma) over what the target already weighs.

    Equation 6 of arXiv 2303.09556 for epsilon; for v the target's own weight is SNR + 1. Ones
    without gamma.
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
    """Mean squared error of each sample (B,), in float32 whatever the precision.

    prediction, target (B, C, h, w). With a mask (B, 1, h, w) the mean is weighted by it: where it
    is zero nothing counts, and a small subject weighs as much as a large one.
    """
    error = (prediction.float() - target.float()).pow(2)
    if mask is None:
        return error.mean((1, 2, 3))
    return (error.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def norm_penalty(rows: torch.Tensor, usual_norm: float) -> torch.Tensor:
    """Mean of (|row| - usual norm)^2: keeps rows (N, D) as long as the vocabulary's."""
    return (rows.norm(dim=1) - usual_norm).pow(2).mean()


def hidden_penalty(hidden: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of encoder states (B, 77, D) from those with the initializer's rows."""
    return (hidden.float() - reference.float()).pow(2).mean()
