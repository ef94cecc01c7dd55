"""diffusers' own samplers, by the names of the configuration."""

from __future__ import annotations

import functools
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "lms-discrete": LMSDiscreteScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
}


def _in_float32(scheduler: Any) -> Any:
    """A sampler for the stock pipeline that computes in float32, and draws its noise so.

    PyTorch 2.3 draws normal numbers of half precision from 8 or 11 random bits: none is beyond
    3.3, and far too many are zero.
    """
    step = scheduler.step

    @functools.wraps(step)  # diffusers looks at its signature
    def in_float32(model_output, timestep, sample, *places, **options):
        made = step(model_output.float(), timestep, sample.float(), *places, **options)
        return (made[0].to(sample.dtype), *made[1:])

    scheduler.step = in_float32
    return scheduler
