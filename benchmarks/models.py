"""Base models of Stable Diffusion's sizes with random weights, which suffice to measure speed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from detsd.models.single_file import CONFIGS
from detsd.utils.paths import resolve

# For a smoke test: the same parts, each as small as possible.
SMALL_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
}
SMALL_VAE = {"block_out_channels": [32] * 4, "layers_per_block": 1, "sample_size": 128}
SMALL_UNET = {"layers_per_block": 1, "attention_head_dim": 2, "sample_size": 16}
SMALLER = {
    "sd1": {"block_out_channels": [32] * 4, "cross_attention_dim": 32},
    "sdxl": {
        "block_out_channels": [32] * 3,
        "cross_attention_dim": 64,
        "transformer_layers_per_block": 1,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
    },
}


def save_random(family: str, folder: Path, device: torch.device, dtype: torch.dtype, small: bool):
    """Write a base model of a family, `sd1` or `sdxl`, as a diffusers folder.

    The weights are made on `device`; on a GPU this takes seconds.
    """
    torch.manual_seed(0)
    shutil.copytree(CONFIGS / family, folder)
    tokenizer = CLIPTokenizer.from_pretrained(resolve("demo_model"), subfolder="tokenizer")
    kinds = {
        "unet": (UNet2DConditionModel, SMALL_UNET | SMALLER[family]),
        "vae": (AutoencoderKL, SMALL_VAE),
        "text_encoder": (CLIPTextModel, SMALL_TEXT),
        "text_encoder_2": (CLIPTextModelWithProjection, SMALL_TEXT),
    }
    for part, (kind, smaller) in kinds.items():
        path = CONFIGS / family / part / "config.json"
        if not path.exists():  # the second text encoder is XL's
            continue
        config: dict[str, Any] = json.loads(path.read_text()) | (smaller if small else {})
        with device:
            if part.startswith("text"):
                made = kind(CLIPTextConfig(**config))
                tokenizer.save_pretrained(folder / part.replace("text_encoder", "tokenizer"))
            else:
                made = kind.from_config(config)
        made.to(dtype).save_pretrained(folder / part)
