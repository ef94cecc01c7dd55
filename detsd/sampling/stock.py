"""diffusers' own samplers, by the names of the configuration."""

import functools
import inspect
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from detsd.config.schema import LCM_STEPS, closest_choice
from detsd.models.base import BaseModel
from detsd.utils.errors import UserError

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "lms-discrete": LMSDiscreteScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
    "dpmsolver++-karras": DPMSolverMultistepScheduler,
    "dpmsolver++-sde": DPMSolverMultistepScheduler,
    "dpmsolver++-sde-karras": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "heun": HeunDiscreteScheduler,
    "lcm": LCMScheduler,
}

KARRAS, SDE = {"use_karras_sigmas": True}, {"algorithm_type": "sde-dpmsolver++"}

# These override the model's configuration.
OPTIONS: dict[str, dict[str, Any]] = {
    "dpmsolver++-karras": KARRAS,
    "dpmsolver++-sde": SDE,
    "dpmsolver++-sde-karras": KARRAS | SDE,
}


def make_scheduler(model: BaseModel, name: str, spacing: str | None = None) -> Any:
    """Return a sampler by its short name, configured like the model's own.

    Args:
        spacing: of the timesteps: leading, trailing or linspace; None: the model's.
    """
    if name not in SCHEDULERS:
        known, close = ", ".join(SCHEDULERS), closest_choice(name, SCHEDULERS)
        raise UserError(f"scheduler {name!r} is unknown; use one of {known}{close}")
    # Latents have no bounds to clip to. diffusers sets both when it loads a pipeline.
    options = {**model.sampling_scheduler_config, "clip_sample": False, "steps_offset": 1}
    if name == "pndm":
        options.setdefault("skip_prk_steps", True)  # as in Stable Diffusion's own PNDM
    if spacing:
        options["timestep_spacing"] = spacing
    zero_snr, cls = "rescale_betas_zero_snr", SCHEDULERS[name]
    if options.get(zero_snr) and zero_snr not in inspect.signature(cls).parameters:
        # PNDM, LMS and Heun would ignore this setting, and sample at other noise levels than the
        # model was trained on.
        options["trained_betas"] = _zero_snr_betas(model.scheduler)
    return _with_exact_steps(cls.from_config(options | OPTIONS.get(name, {})))


def _with_exact_steps(scheduler: Any) -> Any:
    """Make a sampler take exactly the steps asked for, beginning with the first.

    With trailing spacing, rounding gives 61, 103, 121 and some other numbers of steps one timestep
    more, -1, which DDIM and PNDM take for the noisiest one: the image is noise. Karras' noise
    levels for zero SNR begin with two steps at timestep 999, of which the sampler would find the
    second.
    """
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)  # diffusers inspects its signature
    def exact(*args, **options):
        set_timesteps(*args, **options)
        extra = int((scheduler.timesteps < 0).sum())  # Heun has each of its timesteps twice
        if extra:
            scheduler.timesteps = scheduler.timesteps[:-extra]
            if hasattr(scheduler, "sigmas"):
                kept = scheduler.sigmas[: -extra - 1], scheduler.sigmas[-1:]
                scheduler.sigmas = torch.cat(kept)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)

    scheduler.set_timesteps = exact
    return scheduler


def _zero_snr_betas(scheduler: DDPMScheduler) -> list[float]:
    """Return the betas of a schedule that ends in pure noise, for samplers that divide by alphas.

    The last alpha is 2^-24 instead of 0, as in diffusers' Euler.
    """
    betas = scheduler.betas.clone()
    betas[-1] = 1 - 2**-24 / scheduler.alphas_cumprod[-2]
    return betas.tolist()


def key_of(section: str) -> str:
    """Return how the keys of a section begin in messages; "" outside a configuration."""
    return f"{section}." if section else ""


def check_steps(model: BaseModel, name: str, steps: int, section: str = "") -> None:
    """Refuse more steps than a sampler can make; `section` is that of the configuration.

    With as many steps as the model has timesteps, diffusers' samplers, which look one timestep
    ahead, run out of noise levels.
    """
    most = model.scheduler.config.num_train_timesteps
    if steps >= most:
        raise UserError(
            f"{key_of(section)}num_inference_steps: {steps} must be less than the {most} timesteps "
            f"of {model.name}; use 25 to 50"
        )
    if name == "lcm" and steps > LCM_STEPS:
        raise UserError(
            f"{key_of(section)}num_inference_steps: {steps} is more than the {LCM_STEPS} of the "
            "lcm sampler; use 4 to 8"
        )


def steps_warning(
    model: BaseModel, name: str, steps: int, spacing: str | None = None, section: str = ""
) -> str:
    """Return a warning if so few steps of a sampler give noise or a flat colour; else "".

    Measured on all samplers and spacings: dev/LOG.md.
    """
    scheduler = make_scheduler(model, name, spacing)
    scheduler.set_timesteps(steps)
    most, times = model.scheduler.config.num_train_timesteps, scheduler.timesteps.tolist()
    # Of two steps, Heun's second goes from nearly no noise to none, and keeps that of the first.
    if times[0] > most / 100 and not (steps == 2 and scheduler.order == 2 and times[-1] < 2):
        return ""
    key = key_of(section)
    return (
        f"{key}num_inference_steps: {steps} gives noise with the {name} sampler, whose last step "
        f"is at timestep {times[-1]:.0f} of {most}; use 20 or more, or {key}spacing: trailing"
    )


def in_float32(scheduler: Any) -> Any:
    """Make a sampler of diffusers' pipeline compute, and draw its noise, in float32.

    PyTorch 2.3 draws half-precision normal numbers from 8 or 11 random bits: none exceeds 3.3, and
    far too many are zero.
    """
    step = scheduler.step

    @functools.wraps(step)  # diffusers inspects its signature
    def float32_step(model_output, timestep, sample, *args, **options):
        result = step(model_output.float(), timestep, sample.float(), *args, **options)
        return (result[0].to(sample.dtype), *result[1:])

    scheduler.step = float32_step
    return scheduler


def latent_shape(
    model: BaseModel, width: int | None = None, height: int | None = None
) -> tuple[int, int, int]:
    """Return (C, h, w) of the latents of an image; None: the model's own size in pixels."""
    size, factor = model.image_size, model.vae_scale_factor
    return model.unet.config.in_channels, (height or size) // factor, (width or size) // factor
