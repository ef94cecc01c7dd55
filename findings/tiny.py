"""Tiny random models in diffusers' own formats, made on demand: 32-pixel images, no downloads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

START, END = "<|startoftext|>", "<|endoftext|>"
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def tokenizer(folder: str | Path) -> CLIPTokenizer:
    """Write a byte-level vocabulary as CLIP's files, with a token for each letter, and load it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + n for n in range(256 - len(printable))]
    letters = [chr(code) for code in printable + others]
    words = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "unk_token": END}
    config |= {"bos_token": START, "eos_token": END, "pad_token": END, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder)


def text_config(tokens: CLIPTokenizer, width: int = 16, layers: int = 2, **options):
    return CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        **options,
    )


def vae(**options) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        **options,
    )


def unet(**options) -> UNet2DConditionModel:
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1}
    sizes |= {"attention_head_dim": 2, "norm_num_groups": 4}
    blocks = {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    return UNet2DConditionModel(**sizes | blocks | options)


def pipeline(folder: str | Path = "words", layers: int = 2) -> StableDiffusionPipeline:
    """Return a Stable Diffusion 1.x pipeline: text width 16."""
    torch.manual_seed(0)
    tokens = tokenizer(folder)
    pipe = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(tokens, layers=layers)),
        tokenizer=tokens,
        unet=unet(cross_attention_dim=16),
        scheduler=DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline_xl(folder: str | Path = "words", **options) -> StableDiffusionXLPipeline:
    """Return a Stable Diffusion XL pipeline: text widths 16 and 24, pooled states of width 20."""
    torch.manual_seed(0)
    tokens, tokens_2 = tokenizer(folder), tokenizer(folder)
    pipe = StableDiffusionXLPipeline(
        vae=vae(force_upcast=True),
        text_encoder=CLIPTextModel(text_config(tokens)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokens_2, 24, projection_dim=20)),
        tokenizer=tokens,
        tokenizer_2=tokens_2,
        unet=unet(
            cross_attention_dim=40,
            attention_head_dim=[2, 4],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
        **options,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
