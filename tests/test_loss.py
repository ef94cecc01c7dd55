"""The step's pure functions against the papers' formulas."""

import pytest
import torch
from diffusers import DDPMScheduler

from detsd.loss import min_snr_weight, norm_penalty, prediction_target, squared_error


def scheduler(kind):
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=kind,
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_right_prediction_gives_back_the_image(kind):
    s = scheduler(kind)
    x, noise = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 1, 250, 500, 750, 999])
    noisy, said = s.add_noise(x, noise, t), prediction_target(s, x, noise, t)
    a = s.alphas_cumprod[t].view(-1, 1, 1, 1)
    if kind == "epsilon":
        back = (noisy - (1 - a).sqrt() * said) / a.sqrt()
    else:
        back = a.sqrt() * noisy - (1 - a).sqrt() * said
    assert torch.allclose(back, x, atol=1e-4)


def test_min_snr_weights_of_both_targets_weigh_the_image_alike():
    """Both are min(SNR, gamma) times the squared error of x."""
    t = torch.arange(0, 1000, 7)
    alpha = scheduler("epsilon").alphas_cumprod[t]
    snr = alpha / (1 - alpha)
    eps, v = (min_snr_weight(scheduler(k), t, 5.0) for k in ("epsilon", "v_prediction"))
    # An error dx of the image is an error sqrt(snr) dx of the noise, sqrt(snr + 1) dx of v.
    assert torch.allclose(eps * snr, snr.clamp(max=5), rtol=1e-5)
    assert torch.allclose(v * (snr + 1), snr.clamp(max=5), rtol=1e-5)
    assert min_snr_weight(scheduler("epsilon"), t, None).eq(1).all()


def test_squared_error_is_float32_per_sample():
    a = torch.zeros(3, 4, 2, 2, dtype=torch.bfloat16)
    b = torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1).expand(3, 4, 2, 2)
    error = squared_error(a, b)
    assert error.dtype == torch.float32
    assert error.tolist() == [0.0, 1.0, 4.0]


def test_norm_penalty_is_zero_at_the_usual_norm():
    rows = torch.nn.functional.normalize(torch.randn(5, 16), dim=1)
    assert norm_penalty(3 * rows, 3.0) < 1e-10
    assert norm_penalty(3 * rows, 1.0) == pytest.approx(4.0, rel=1e-4)
