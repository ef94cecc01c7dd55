#!/usr/bin/env bash
# With the same timestep_spacing, DPM++ 2M and UniPC have other timesteps than DDIM and Euler.
#
# Versions: diffusers 0.42.1; also 0.38.0.
# Behaviour: with "leading" and N steps of 1000 timesteps, DDIM, Euler and Heun take every (1000 //
#   N)th timestep, down to 1. With the same configuration, DPMSolverMultistepScheduler and
#   UniPCMultistepScheduler take every (1000 // (N + 1))th and omit the last: with 4 steps 801 to
#   201 instead of 751 to 1, with 20 steps 941 to 48 instead of 951 to 1. If N + 1 divides 1000,
#   they are the first N of the N + 1 steps of the others. With "linspace" they omit timestep 0.
# Why it matters here: changing only the sampler changes the noise levels, including the first.
#   Another tool has these levels with one step more, or with no number of steps.
# Observed on 2026-11-29; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import diffusers
from tiny import NOISE

KINDS = ("DDIM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep")
for spacing, steps in (("leading", 4), ("leading", 19), ("leading", 20), ("linspace", 4)):
    print(f"{spacing}, {steps} steps, first, second and last timestep:")
    for kind in KINDS:
        make = getattr(diffusers, f"{kind}Scheduler")
        sampler = make(**NOISE, timestep_spacing=spacing, steps_offset=1)
        sampler.set_timesteps(steps)
        first, second, *_, last = (round(float(t)) for t in sampler.timesteps)
        print(f"  {kind}: {first}, {second}, {last}")
PROGRAM

expect <<'LINES'
leading, 4 steps, first, second and last timestep:
  DDIM: 751, 501, 1
  EulerDiscrete: 751, 501, 1
  DPMSolverMultistep: 801, 601, 201
  UniPCMultistep: 801, 601, 201
leading, 19 steps, first, second and last timestep:
  DDIM: 937, 885, 1
  EulerDiscrete: 937, 885, 1
  DPMSolverMultistep: 951, 901, 51
  UniPCMultistep: 951, 901, 51
leading, 20 steps, first, second and last timestep:
  DDIM: 951, 901, 1
  EulerDiscrete: 951, 901, 1
  DPMSolverMultistep: 941, 894, 48
  UniPCMultistep: 941, 894, 48
linspace, 4 steps, first, second and last timestep:
  DDIM: 999, 666, 0
  EulerDiscrete: 999, 666, 0
  DPMSolverMultistep: 999, 749, 250
  UniPCMultistep: 999, 749, 250
LINES
