"""The arguments of a call to diffusers' own pipeline, with concepts and weights in its prompts."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from detsd.models.base import BaseModel, Conditioning
from detsd.sampling.stock import latent_shape

Prompts = str | list[str] | None

# The positional arguments of a call, as in `StableDiffusionPipeline`.
POSITIONAL = ("height", "width", "num_inference_steps", "timesteps", "sigmas", "guidance_scale")


def call_arguments(
    model: BaseModel, prompt: Prompts, negative: Prompts, given: Sequence[Any], options: dict
) -> dict[str, Any]:
    """Return all arguments of a call.

    Args:
        prompt, negative: as `StableDiffusionPipeline.__call__` takes them.
        given: positional arguments.
        options: keyword arguments.
    """
    options |= dict(zip(POSITIONAL, given, strict=False))  # XL's pipeline has another order
    if options.get("latents") is None and model.dtype != torch.float32:
        # The noise that diffusers would draw, but in float32.
        many = prompt if isinstance(prompt, list) else options.get("prompt_embeds", [None])
        count = len(many) * options.get("num_images_per_prompt", 1)
        shape = (count, *latent_shape(model, options.get("width"), options.get("height")))
        noise = randn_tensor(shape, options.get("generator"), model.device, torch.float32)
        options["latents"] = noise.to(model.dtype)
    texts, negatives = as_list(prompt), as_list(negative)
    second = options.get("prompt_2") or options.get("negative_prompt_2")
    own_skip = model.clip_skip and "clip_skip" not in options
    plain = not own_skip and all(map(model.vocabulary.is_plain, texts + negatives))
    if not texts or second or plain:
        return options | {
            "prompt": _rewritten(model, prompt), "negative_prompt": _rewritten(model, negative)
        }  # fmt: skip
    skip = (options.get("clip_skip") or 0) if "clip_skip" in options else None
    return options | _embeddings(model, texts, negatives, skip)


def as_list(prompts: Prompts) -> list[str]:
    """Return one prompt, several or none as a list."""
    return prompts if isinstance(prompts, list) else [] if prompts is None else [prompts]


def _rewritten(model: BaseModel, prompt: Prompts) -> Prompts:
    """Replace the concepts in prompts with their tokens."""
    texts = [model.vocabulary.text(text) for text in as_list(prompt)]
    return texts if isinstance(prompt, list) else (texts or [None])[0]


@torch.no_grad()
def _embeddings(
    model: BaseModel, prompts: list[str], negative: list[str], clip_skip: int | None
) -> dict[str, torch.Tensor]:
    """Encode the prompts of one call, each padded to as many chunks as the longest has."""
    chunks = max(map(model.vocabulary.chunk_count, prompts + negative))

    def encoded(texts: list[str]) -> Conditioning:
        return Conditioning.cat(
            [model.encode_weighted_prompt(t, None, chunks, clip_skip) for t in texts]
        )

    negatives = negative if len(negative) > 1 else (negative or [""]) * len(prompts)
    found = {"": encoded(prompts), "negative_": model.as_negative(encoded(negatives), negatives)}
    arguments = {f"{sign}prompt_embeds": cond.prompt_embeds for sign, cond in found.items()}
    for sign, cond in found.items():
        if cond.added_cond_kwargs:
            arguments[f"{sign}pooled_prompt_embeds"] = cond.added_cond_kwargs["text_embeds"]
    return arguments
