#!/usr/bin/env bash
# Heun, PNDM, LMS and others sample a zero-SNR model at the wrong noise levels.
#
# Versions: diffusers 0.42.1; also 0.38.0.
# Behaviour: `rescale_betas_zero_snr` in a scheduler's configuration means that the model's last
#   timestep is pure noise. DDIM, Euler, DPM++ 2M, UniPC and LCM adjust their noise levels to it.
#   Heun, PNDM, LMS, DEIS and KDPM2 made from the same configuration do not know the key: they keep
#   it in their configuration, log nothing, and have the levels of a model trained without it, at
#   every timestep. With Heun and DEIS, a perfect model, which predicts v exactly, leaves noise on
#   its picture; with the samplers that know the key, it leaves none.
# Why it matters here: `ztsnr` files of Stable Diffusion XL and several fine-tunes of 2.x are such
#   models, and one setting changes the sampler.
# Observed on 2026-11-30; the output is at the end. (LMS needs scipy; it leaves noise, too.)
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import diffusers
import torch
from tiny import NOISE

KNOW = ("DDIM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep", "LCM")
OTHERS = ("HeunDiscrete", "DEISMultistep", "PNDM", "KDPM2Discrete")
options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
options |= {"timestep_spacing": "trailing", "clip_sample": False}
trained = diffusers.DDPMScheduler(**NOISE, **options)
alphas = trained.alphas_cumprod.double()
picture = torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, 1, 8, 8)


def perfect(x, t):
    alpha = alphas[int(t)]
    noise = (x - alpha.sqrt() * picture) / (1 - alpha).sqrt()
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * picture


print(f"trained: the last alpha is {alphas[-1]:.4f}")
for kind in KNOW + OTHERS:
    sampler = getattr(diffusers, f"{kind}Scheduler").from_config(trained.config)
    known = f"{kind}: {sampler.alphas_cumprod[-1]:.4f}"
    if kind in ("PNDM", "KDPM2Discrete"):  # inexact, or between timesteps, with any model
        print(known)
        continue
    sampler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(picture.shape, generator=generator, dtype=torch.float64)
    x *= sampler.init_noise_sigma
    for t in sampler.timesteps:
        noisy = sampler.scale_model_input(x, t)
        x = sampler.step(perfect(noisy, t), t, x)[0]
    print(f"{known}, noise left by a perfect model {(x - picture).std():.3f}")
PROGRAM

expect <<'LINES'
trained: the last alpha is 0.0000
DDIM: 0.0000, noise left by a perfect model 0.000
EulerDiscrete: 0.0000, noise left by a perfect model 0.000
DPMSolverMultistep: 0.0000, noise left by a perfect model 0.000
UniPCMultistep: 0.0000, noise left by a perfect model 0.000
LCM: 0.0000, noise left by a perfect model 0.000
HeunDiscrete: 0.0047, noise left by a perfect model 0.014
DEISMultistep: 0.0047, noise left by a perfect model 0.048
PNDM: 0.0047
KDPM2Discrete: 0.0047
LINES
