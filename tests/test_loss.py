"""The step's pure functions against the papers' formulas."""

import pytest
import torch
from diffusers import DDPMScheduler

from detsd.models.objective import min_snr_weight, norm_penalty, prediction_target, squared_error


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
    assert squared_error(a.double(), b).dtype == torch.float64


def test_norm_penalty_is_zero_at_the_usual_norm():
    rows = torch.nn.functional.normalize(torch.randn(5, 16), dim=1)
    assert norm_penalty(3 * rows, 3.0) < 1e-10
    assert norm_penalty(3 * rows, 1.0) == pytest.approx(4.0, rel=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_what_a_mask_leaves_out_changes_nothing(kind):
    """On another background, the loss is bit-equal, and no gradient comes from there."""
    s, draw = scheduler(kind), torch.Generator().manual_seed(0)
    x, noise, said = torch.randn(3, 2, 4, 8, 8, generator=draw)
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, 2:5, 1:4], mask[1, :, 6:, :] = 1, 0.25
    t = torch.tensor([100, 900])
    losses, gradients = [], []
    for ground in (0.0, 3.0):
        away = mask == 0
        here = (said + ground * away).requires_grad_()
        target = prediction_target(s, x + 5 * ground * away, noise - ground * away, t)
        loss = squared_error(here, target, mask)
        loss.sum().backward()
        losses.append(loss.detach())
        gradients.append(here.grad)
        assert here.grad[away.expand_as(here)].eq(0).all()
        assert here.grad[~away.expand_as(here)].ne(0).all()
    assert torch.equal(*losses)
    assert torch.equal(*gradients)


def test_a_mask_weighs_and_does_not_scale():
    a, b = torch.zeros(1, 4, 2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 4, 2, 2)
    every = squared_error(a, b)
    for weight in (1.0, 0.5):  # equal weights: the plain mean
        mask = torch.full((1, 1, 2, 2), weight)
        assert squared_error(a, b, mask).tolist() == pytest.approx(every.tolist())
    mask = torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]]])
    assert squared_error(a, b, mask).item() == pytest.approx((1 + 0.5 * 4) / 1.5)
