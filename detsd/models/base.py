"""A frozen latent diffusion model and the conditioning of its UNet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from detsd.concepts.vocabulary import Vocabulary

# Height and width of the whole image, top and left of its crop, height and width of the result.
TimeIds = tuple[int, int, int, int, int, int]


@dataclass(frozen=True)
class BaseModel:
    """A frozen latent diffusion model, in evaluation mode on one device."""

    name: str
    vocabulary: Vocabulary  # its tokenizers and text encoders, and the concepts added to them
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler  # for training: adds noise, defines the target
    sampling_scheduler_config: dict  # of the model's own sampler
    device: torch.device
    dtype: torch.dtype  # of text encoders and UNet
    force_zeros_for_empty_prompt: bool = False  # as negative prompt
    commit: str | None = None  # hub commit of the weights; None for a folder
    clip_skip: int = 0  # last layers of the text encoders left out, counted as in diffusers
    vae_name: str | None = None  # of an external VAE, with its hub commit
    vae_file: Path | None = None  # that VAE's weights

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along a side: 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that load this model again, apart from precision and safety checker."""
        known = {"pretrained_model_name_or_path": self.name, "revision": self.commit}
        own = {"clip_skip": self.clip_skip, "vae": self.vae_name}
        return known | {key: value for key, value in own.items() if value}

    @property
    def image_size(self) -> int:
        """Pixels per side of the images that the UNet was trained on."""
        return self.unet.config.sample_size * self.vae_scale_factor

    @property
    def bucket_step(self) -> int:
        """The step of the sides of aspect buckets in pixels: 64 for Stable Diffusion.

        For a smaller model, the factor by which its VAE and UNet downsample: 16 for the bundled
        one.
        """
        step = self.vae_scale_factor * 2 ** (len(self.unet.config.down_block_types) - 1)
        return step if self.image_size < 512 else math.lcm(step, 64)

    def encode_prompts(
        self,
        prompts: list[str],
        frames: Sequence[TimeIds] | torch.Tensor | None = None,
        encoders: Sequence[Callable[..., Any]] | None = None,
    ) -> Conditioning:
        """Encode prompts with concepts in them for the UNet.

        Args:
            frames: time ids of each prompt's image, an input of Stable Diffusion XL (arXiv
                2307.01952); default: whole images of the model's own size.
            encoders: compiled text encoders, instead of the model's own.
        """
        texts = [self.vocabulary.text(prompt) for prompt in prompts]
        ids = [side.ids(texts) for side in self.vocabulary.text_encoders]
        states, pooled = self._states(ids, encoders)
        return self._conditioning(states, pooled, len(prompts), frames)

    def encode_weighted_prompt(
        self,
        prompt: str,
        frame: TimeIds | None = None,
        chunks: int = 1,
        clip_skip: int | None = None,
    ) -> Conditioning:
        """Encode a prompt of any length with weights, as `concepts.weights` parses it.

        A weight moves the states of a word away from those of the empty prompt at the same
        position, or towards them, as ComfyUI does, and compel for weights above 1. (A1111
        multiplies the states and rescales them to their old mean. In small models this mean is
        near 0, and the states may grow fivefold: dev/LOG.md.) The pooled states are those of the
        first chunk, without weights, as in A1111 and ComfyUI.

        Args:
            chunks: pad to this number of chunks with chunks of the empty prompt.
            clip_skip: replaces the model's.
        """
        frames = frame and [frame]
        if chunks == 1 and clip_skip is None and self.vocabulary.is_plain(prompt):
            return self.encode_prompts([prompt], frames)
        parts = self.vocabulary.chunks(prompt)
        empty = [side.ids([""]) for side in self.vocabulary.text_encoders]
        nothing, _ = self._states(empty, clip_skip=clip_skip)
        found, pooled = [[] for _ in parts], None
        # One by one, so that a prompt whose weights are all 1 gets exactly a plain prompt's states.
        for k in range(len(parts[0][0])):
            ids = [ids[k : k + 1] for ids, _ in parts]
            states, chunk_pooled = self._states(ids, clip_skip=clip_skip)
            pooled = chunk_pooled if k == 0 else pooled
            for side, (_, weights) in enumerate(parts):
                w, none = weights[k][None, :, None], nothing[side].float()  # (1, 77, 1)
                moved = (none + w * (states[side].float() - none)).to(states[side].dtype)
                found[side].append(torch.where(w == 1, states[side], moved))
        states = [
            torch.cat(rows + [none] * (chunks - len(rows)), dim=1)  # (1, 77 n, D)
            for rows, none in zip(found, nothing, strict=True)
        ]
        return self._conditioning(states, pooled, 1, frames)

    def _states(
        self,
        ids: list[torch.Tensor],
        encoders: Sequence[Callable[..., Any]] | None = None,
        clip_skip: int | None = None,
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Return the states (B, 77, D) of each text encoder, and XL's pooled states (B, P)."""
        own = [side.encoder for side in self.vocabulary.text_encoders]
        encoders, skip = encoders or own, self.clip_skip if clip_skip is None else clip_skip
        if len(ids) == 1 and not skip:
            return [encoders[0](ids[0]).last_hidden_state], None
        found = [
            encode(i, output_hidden_states=True) for encode, i in zip(encoders, ids, strict=True)
        ]
        if len(ids) == 1:
            norm = getattr(own[0], "text_model", own[0]).final_layer_norm  # moved in transformers 5
            return [norm(found[0].hidden_states[-1 - skip])], None
        # For XL, diffusers counts `clip_skip` from the second-to-last layer.
        return [f.hidden_states[-2 - skip] for f in found], found[-1].text_embeds

    def _conditioning(
        self,
        states: list[torch.Tensor],
        pooled: torch.Tensor | None,
        count: int,
        frames: Sequence[TimeIds] | torch.Tensor | None,
    ) -> Conditioning:
        """Return the states of `count` prompts as conditioning."""
        if pooled is None:
            return Conditioning(states[0])
        size = self.image_size
        if frames is None:
            frames = [(size, size, 0, 0, size, size)] * count
        return Conditioning(
            torch.cat(states, dim=-1),
            {
                "text_embeds": pooled,  # (B, P)
                "time_ids": torch.as_tensor(frames, dtype=torch.float32, device=self.device),
            },
        )

    def as_negative(self, cond: Conditioning, prompts: list[str]) -> Conditioning:
        """Return the conditioning for use as negative prompts: in XL, zeros for empty ones."""
        if not self.force_zeros_for_empty_prompt:
            return cond
        none = torch.tensor([not p for p in prompts], device=self.device)
        pooled = cond.added_cond_kwargs["text_embeds"].masked_fill(none[:, None], 0)
        return Conditioning(
            cond.prompt_embeds.masked_fill(none[:, None, None], 0),
            cond.added_cond_kwargs | {"text_embeds": pooled},
        )

    def stock_pipeline(
        self, scheduler: Any, safety_checker: Any = None, feature_extractor: Any = None
    ) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
        """Return the diffusers pipeline with the same parts."""
        first, *second = self.vocabulary.text_encoders
        parts = {
            "vae": self.vae,
            "unet": self.unet,
            "scheduler": scheduler,
            "tokenizer": first.tokenizer,
            "text_encoder": first.encoder,
            "feature_extractor": feature_extractor,
        }
        if second:
            return StableDiffusionXLPipeline(
                **parts,
                tokenizer_2=second[0].tokenizer,
                text_encoder_2=second[0].encoder,
                force_zeros_for_empty_prompt=self.force_zeros_for_empty_prompt,
                add_watermarker=False,
            )
        if not hasattr(first.encoder, "text_model"):
            # For `clip_skip`, diffusers takes the final norm from `text_model`, which transformers
            # 5 removed. Setting it to the encoder itself would create a reference cycle.
            first.encoder.text_model = SimpleNamespace(
                final_layer_norm=first.encoder.final_layer_norm
            )
        return StableDiffusionPipeline(
            **parts,
            safety_checker=safety_checker,
            requires_safety_checker=safety_checker is not None,
        )


@dataclass(frozen=True)
class Conditioning:
    """The text conditioning of a batch of prompts."""

    prompt_embeds: torch.Tensor  # (B, 77, D), states of the text encoder
    added_cond_kwargs: dict[str, torch.Tensor] | None = None  # (B, ...) each, of XL

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join several batches into one, in order."""
        added = None
        if parts[0].added_cond_kwargs is not None:
            added = {
                k: torch.cat([p.added_cond_kwargs[k] for p in parts])
                for k in parts[0].added_cond_kwargs
            }
        return Conditioning(torch.cat([p.prompt_embeds for p in parts]), added)
