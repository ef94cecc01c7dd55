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
    precision: Literal["auto", "fp64", "fp32", "bf16", "fp16"] = setting(
        "auto",
        "precision of the frozen weights; auto: on GPUs bf16 for training (fp16 on older ones) and "
        "fp16 for images, fp32 elsewhere (many CPUs run bf16 a hundred times slower); fp64: "
        "fine-tuning on CPUs ends with the same vectors for any layout (docs/how-it-works.md)",
    )
    clip_skip: int = setting(
        0,
        "number of final text-encoder layers to skip, as diffusers counts them; 1 for models "
        "trained that way, such as many anime models (2 in A1111)",
        low=0,
        high=31,
    )
    vae: str | None = setting(
        None,
        "a VAE in place of the model's own: a folder, a .safetensors file, or a hub model "
        "(OWNER/NAME@REVISION for one revision); null: the model's own",
        path=find,
    )
    safety_checker: bool = setting(
        True, "run the model's own safety checker on the images of a grid, if the model has one"
    )
