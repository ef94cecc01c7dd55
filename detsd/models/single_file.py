"""Load Stable Diffusion from one safetensors file in the original code's layout, without the hub.

Such a file holds tensors but no configuration. The configurations of the three families, a few
kilobytes, are in configs/; the vocabulary is the bundled model's, which is CLIP's own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from transformers import CLIPTokenizer

from detsd.models.hub import KEY, ModelFiles, files_of
from detsd.models.support import SUFFIXES, SUPPORTED, single_family
from detsd.utils.errors import UserError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection


CONFIGS = Path(__file__).parent / "configs"

VOCABULARY = Path(__file__).parents[2] / "demo_model" / "tokenizer"


def is_single_file(name: str) -> bool:
    """Return whether a base model's name is that of a file, existing or missing."""
    path = Path(name)
    return os.path.isfile(name) or (path.suffix.lower() in SUFFIXES and not os.path.isdir(name))


def find_single_file(name: str) -> ModelFiles:
    """Find a single file's weights, and its family's configuration."""
    path = Path(name)
    if path.is_file() and not VOCABULARY.is_dir():
        raise UserError(
            f"{KEY}: a single file needs the vocabulary in demo_model/tokenizer, which is missing "
            f"in {VOCABULARY.parent.parent}; run detsd from its repository, or name a folder"
        )
    family, what = single_family(safe_shapes(name, path, KEY))
    if what:
        raise UserError(f"{KEY}: {name} is {what}; {SUPPORTED}")
    return ModelFiles(name, CONFIGS / family, files_of(CONFIGS / family), single=path)


def safe_shapes(name: str, path: Path, key: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a safetensors file; refuse any other file."""
    if not path.is_file():
        raise UserError(f"{key}: {name} does not exist; name a file, a folder or a hub model")
    with path.open("rb") as f:
        start = f.read(9)
    if start[8:] != b"{":
        pickled = start[:2] == b"PK" or start[:1] == b"\x80"
        what = "a pickle, which can run code when read" if pickled else "not a safetensors file"
        raise UserError(
            f"{key}: {name} is {what}; convert it to safetensors on a machine that you can afford "
            "to lose, as docs/models.md describes"
        )
    with safe_open(str(path), "pt") as f:
        return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118


def scheduler_overrides(path: Path) -> dict:
    """Read a file's noise schedule as entries of a diffusers configuration.

    They come from ModelSpec's entries in the metadata, or from the empty tensors that mark variants
    of Stable Diffusion XL.
    """
    with safe_open(str(path), "pt") as f:
        spec, names = f.metadata() or {}, set(f.keys())
    overrides = {"rescale_betas_zero_snr": True} if "ztsnr" in names else {}
    prediction = spec.get("modelspec.prediction_type", "")
    if "v_pred" in names or prediction.startswith("v"):
        return overrides | {"prediction_type": "v_prediction"}
    if prediction.startswith("eps"):
        return overrides | {"prediction_type": "epsilon"}
    return overrides


@torch.no_grad()
def infer_prediction_type(sampler: dict, unet: UNet2DConditionModel) -> dict:
    """Add the UNet's prediction type to a scheduler's configuration, which SD 2.x files lack.

    For an input of pure noise, the noise is the input itself, and v is about minus the picture.
    A1111 distinguishes the two types with the same input and threshold. UNets that predict noise
    were trained on images of 512 pixels.
    """
    if "prediction_type" not in sampler:
        noise = torch.full((1, 4, 8, 8), 0.5, dtype=unet.dtype, device=unet.device)
        states = torch.full((1, 2, unet.config.cross_attention_dim), 0.5).to(noise)
        is_v = float((unet(noise, 999, states).sample - noise).mean()) < -1
        sampler = sampler | {"prediction_type": "v_prediction" if is_v else "epsilon"}
        if not is_v:
            unet.register_to_config(sample_size=64)
    return sampler


def tokenizer_of(source: ModelFiles, part: str) -> CLIPTokenizer:
    """Load the bundled vocabulary with the family's pad token."""
    facts = json.loads((source.folder / part / "tokenizer_config.json").read_text())
    return CLIPTokenizer.from_pretrained(VOCABULARY, pad_token=facts["pad_token"])


def token_tables(files: list[Path]) -> list[torch.Tensor]:
    """Read the tables (V, D), float32, of the text encoders in these files, in order."""
    found = {}
    for path in files:
        with safe_open(str(path), "pt") as f:
            for name in f.keys():  # noqa: SIM118
                if name.endswith("token_embedding.weight"):
                    found[name] = f.get_tensor(name).float()
    return [found[name] for name in sorted(found)]


def read_single_file(
    source: ModelFiles, tokenizers: list[CLIPTokenizer], dtype: torch.dtype, vae: AutoencoderKL
) -> tuple[list[CLIPTextModel | CLIPTextModelWithProjection], UNet2DConditionModel]:
    """Load text encoders and UNet, on the CPU in their final dtype."""
    # Imported late, because token tables are read without them.
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    options = {"config": str(source.folder), "local_files_only": True, "torch_dtype": dtype}
    options |= {"vae": vae, "tokenizer": tokenizers[0]}
    if len(tokenizers) == 1:
        pipe = StableDiffusionPipeline.from_single_file(str(source.single), **options)
        return [pipe.text_encoder], pipe.unet
    options["tokenizer_2"] = tokenizers[1]
    pipe = StableDiffusionXLPipeline.from_single_file(str(source.single), **options)
    return [pipe.text_encoder, pipe.text_encoder_2], pipe.unet
