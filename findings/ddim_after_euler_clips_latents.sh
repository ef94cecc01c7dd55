#!/usr/bin/env bash
# Changing the sampler from Euler to DDIM clips every latent at 1 and -1.
#
# Versions: diffusers 0.42.1; also 0.38.0.
# Behaviour: `DDIMScheduler.from_config(pipe.scheduler.config)` takes `clip_sample` from the
#   configuration. A configuration of Euler, DPM++ or UniPC has no such key, and DDIM's own default
#   is True: the latents that it predicts are clipped to [-1, 1] at every step, and nothing is
#   logged. With `clip_sample=False`, DDIM gives the result of Euler, which is the same method.
# Why it matters here: latents of Stable Diffusion have a standard deviation of about 1, so a third
#   of their numbers are clipped. A comparison of samplers is a loop over from_config.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import diffusers
import torch
from tiny import NOISE

picture = torch.linspace(-4, 4, 64, dtype=torch.float64).view(1, 1, 8, 8)
euler = diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="trailing")
dpm = diffusers.DPMSolverMultistepScheduler(**NOISE, timestep_spacing="trailing")
alphas = euler.alphas_cumprod.double()


def largest(sampler):
    """Return the largest latent of a sample whose model predicts the picture's noise exactly."""
    sampler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(picture.shape, generator=generator, dtype=torch.float64)
    x *= sampler.init_noise_sigma
    for t in sampler.timesteps:
        noisy, alpha = sampler.scale_model_input(x, t), alphas[int(t)]
        x = sampler.step((noisy - alpha.sqrt() * picture) / (1 - alpha).sqrt(), t, x)[0]
    return f"{x.max():.1f}"


DDIM = diffusers.DDIMScheduler.from_config
print("the picture's largest latent:", f"{picture.max():.1f}")
print("Euler:", largest(euler))
print("DDIM from Euler's configuration:", largest(DDIM(euler.config)))
print("DDIM from DPM++'s configuration:", largest(DDIM(dpm.config)))
print("DDIM, clip_sample=False:", largest(DDIM(euler.config, clip_sample=False)))
PROGRAM

expect <<'LINES'
the picture's largest latent: 4.0
Euler: 4.0
DDIM from Euler's configuration: 1.0
DDIM from DPM++'s configuration: 1.0
DDIM, clip_sample=False: 4.0
LINES
