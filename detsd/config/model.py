"""The base model, as every kind of experiment names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from detsd.config.schema import REQUIRED, Section, setting
from detsd.utils.paths import find


@dataclass(frozen=True)
class ModelConfig(Section):
    """The frozen base model."""

    pretrained_model_name_or_path: str = setting(
        REQUIRED,
        "Stable Diffusion 1.x, 2.x, XL or a fine-tune of these: a folder in the diffusers format, "
        "one .safetensors file, or the name of a model on the Hugging Face hub",
        path=find,
    )
    revision: str | None = setting(None, "branch, tag or commit of the hub model")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        "precision of the frozen weights; auto: on GPUs bf16 for training (fp16 on older ones) and "
        "fp16 for images, fp32 elsewhere (many CPUs run bf16 a hundred times slower)",
    )
    clip_skip: int = setting(
        0,
        "layers of the text encoder to leave out at its end, counted as diffusers does; 1 for "
        "models that were trained so, as many anime models, where A1111 says 2",
        low=0,
        high=31,
    )
    vae: str | None = setting(
        None,
        "another VAE than the model's own: a folder, a .safetensors file, or a hub model, at one "
        "revision as OWNER/NAME@REVISION; null: its own",
        path=find,
    )
    safety_checker: bool = setting(
        True, "run the model's own safety checker on the images of a grid, if the model has one"
    )
