#!/usr/bin/env bash
# 61 steps with trailing spacing are 62, the last of them at timestep -1.
#
# Versions: diffusers 0.42.1; also 0.38.0.
# Behaviour: `timestep_spacing="trailing"` counts down from 1000 in steps of 1000 / n. For 61, 103,
#   121, 122, 201 and 24 more numbers below 600, rounding leaves a last value of almost 0, from
#   which 1 is subtracted. The UNet is called once more, at timestep -1, which no model was trained
#   on. DDIM, DDPM and PNDM look up its noise level at the end of their table, that of the noisiest
#   timestep. Even a perfect model, which predicts the noise exactly, then leaves noise several times
#   as strong as its picture. Nothing is logged.
# Why it matters here: grids compare numbers of steps, and trailing spacing is the usual one with
#   few steps and for models of zero SNR.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import diffusers
import torch
from tiny import NOISE

options = {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True}
trained = diffusers.DDPMScheduler(**NOISE)
alphas = trained.alphas_cumprod.double()
picture = torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, 1, 8, 8)

ddim = diffusers.DDIMScheduler(**NOISE, **options)
more = []
for steps in range(1, 600):
    ddim.set_timesteps(steps)
    if len(ddim.timesteps) != steps:
        more.append(steps)
print(len(more), "numbers of steps below 600 make one more:", *more[:8], "...")

for kind in ("DDIM", "PNDM", "DDPM", "EulerDiscrete", "DPMSolverMultistep"):
    sampler = getattr(diffusers, f"{kind}Scheduler").from_config(ddim.config, skip_prk_steps=True)
    last, left = [], []
    for steps in (60, 61, 62):
        sampler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(picture.shape, generator=generator, dtype=torch.float64)
        x *= sampler.init_noise_sigma
        for t in sampler.timesteps:
            noisy, alpha = sampler.scale_model_input(x, t), alphas[max(int(t), 0)]
            noise = (noisy - alpha.sqrt() * picture) / (1 - alpha).sqrt()
            x = sampler.step(noise, t, x)[0]
        last.append(int(sampler.timesteps[-1]))
        left.append(f"{(x - picture).std():.1f}")
    print(f"60, 61, 62 steps: last timesteps {last}, noise left", *left, kind)
PROGRAM

expect <<'LINES'
29 numbers of steps below 600 make one more: 61 103 121 122 201 206 217 223 ...
60, 61, 62 steps: last timesteps [16, -1, 15], noise left 0.0 7.9 0.0 DDIM
60, 61, 62 steps: last timesteps [16, -1, 15], noise left 0.0 33.8 0.0 PNDM
60, 61, 62 steps: last timesteps [16, -1, 15], noise left 0.0 7.9 0.0 DDPM
60, 61, 62 steps: last timesteps [16, -1, 15], noise left 0.0 0.0 0.0 EulerDiscrete
60, 61, 62 steps: last timesteps [16, -1, 15], noise left 0.0 0.0 0.0 DPMSolverMultistep
LINES
