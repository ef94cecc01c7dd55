#!/usr/bin/env bash
# DPM++ 2M, UniPC and DEIS add the most noise at timestep 0 and the least at 999.
#
# Versions: diffusers 0.42.1; also 0.38.0.
# Behaviour: before `set_timesteps` is called, as in training, `add_noise` of these samplers (and of
#   DPMSolverSinglestep) looks up its noise levels in a table that runs the other way round. A
#   sample of timestep 0 is pure noise, and one of timestep 999 has hardly any. DDPM, DDIM, Euler,
#   Heun and LCM have the levels of the timestep. After `set_timesteps`, all of them do. Nothing is
#   logged.
# Why it matters here: a loop that trains a word with `pipe.scheduler.add_noise`, on a model that
#   was saved with DPM++ 2M or UniPC, tells the UNet the opposite of what it shows.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import diffusers
import torch
from tiny import NOISE

trained = diffusers.DDPMScheduler(**NOISE)
one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)


def levels(sampler, times):
    """Return the deviation of the noise over that of the picture, for each timestep."""
    pairs = ((sampler.add_noise(zero, one, t), sampler.add_noise(one, zero, t)) for t in times)
    return "  ".join(f"{(noise / signal).item():6.3f}" for noise, signal in pairs)


times = torch.tensor([0, 100, 500, 999]).view(-1, 1)
KINDS = "DDPM DDIM EulerDiscrete HeunDiscrete LCM DPMSolverMultistep UniPCMultistep DEISMultistep"
for kind in KINDS.split():
    sampler = getattr(diffusers, f"{kind}Scheduler").from_config(trained.config)
    print(f"timesteps 0, 100, 500, 999: {levels(sampler, times)}  {kind}")
sampler = diffusers.DPMSolverMultistepScheduler.from_config(trained.config)
sampler.set_timesteps(20)
times = sampler.timesteps[[0, 10, 19]].view(-1, 1)
print(f"timesteps {times.flatten().tolist()} after set_timesteps:")
print(f"{levels(trained, times)}  DDPM")
print(f"{levels(sampler, times)}  DPMSolverMultistep")
PROGRAM

expect <<'LINES'
timesteps 0, 100, 500, 999:  0.029   0.344   1.618  14.615  DDPM
timesteps 0, 100, 500, 999:  0.029   0.344   1.618  14.615  DDIM
timesteps 0, 100, 500, 999:  0.029   0.344   1.618  14.615  EulerDiscrete
timesteps 0, 100, 500, 999:  0.029   0.344   1.618  14.615  HeunDiscrete
timesteps 0, 100, 500, 999:  0.029   0.344   1.618  14.615  LCM
timesteps 0, 100, 500, 999: 14.615   8.303   1.613   0.029  DPMSolverMultistep
timesteps 0, 100, 500, 999: 14.615   8.303   1.613   0.029  UniPCMultistep
timesteps 0, 100, 500, 999: 14.615   8.303   1.613   0.029  DEISMultistep
timesteps [999, 500, 50] after set_timesteps:
14.615   1.618   0.226  DDPM
14.615   1.618   0.226  DPMSolverMultistep
LINES
