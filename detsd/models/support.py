"""Recognise supported models by small files, before any weights are read.

Pure functions of file names, of the JSON files of the diffusers format, and of the names and shapes
of the tensors in a single file. They return a description of an unsupported model.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detsd.config import ModelConfig
from detsd.utils.paths import BUNDLED, looked, resolve

INDEX = "model_index.json"  # marks a folder or repository as a model in the diffusers format

SUPPORTED = "detsd supports Stable Diffusion 1.x, 2.x and XL, and fine-tunes of these"

PIPELINES = {
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLImg2ImgPipeline",
}

# Models whose UNet takes more channels than the latents have, by the number of channels.
CHANNELS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "a model for editing images",
    9: "an inpainting model",
}

PARTS = {  # the parts of a supported model, and the classes they may have
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}


def without_index(files: Iterable[str]) -> str:
    """Describe a folder or repository without model_index.json by the names of its files."""
    names = sorted(files)
    single = [n for n in names if n.endswith(".safetensors") and "/" not in n]
    if "adapter_config.json" in names or any("lora" in n.lower() for n in single):
        return "a LoRA, not a base model"
    if "config.json" in names:
        return "one part of a model, or a model of an unsupported kind (it has no model_index.json)"
    if single:
        return (
            f"not in the diffusers format (it has no model_index.json); if {single[0]} in it is a "
            "whole model, name that file on this machine"
        )
    return "not a model in the diffusers format (it has no model_index.json)"


def unsupported_index(index: Mapping[str, Any]) -> str:
    """Describe a model by its model_index.json if it is not supported; else return ""."""
    classes = {part: (index.get(part) or [None])[-1] for part in PARTS}
    if classes["text_encoder_2"] and not classes["text_encoder"] and classes["unet"]:
        return "the refiner of Stable Diffusion XL"
    name = str(index.get("_class_name", ""))
    if name not in PIPELINES:
        return f"of an unsupported kind ({_spaced(name) or 'its model_index.json names no kind'})"
    for part, known in PARTS.items():
        if classes[part] not in known and (classes[part] or part != "text_encoder_2"):
            return f"of an unsupported kind (its {part} is {classes[part] or 'missing'})"
    return ""


def _spaced(name: str) -> str:
    """Return `StableDiffusion3Pipeline` as `Stable Diffusion 3`."""
    words = name.removesuffix("Pipeline")
    return re.sub(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[A-Z])(?=[A-Z][a-z])", " ", words)


def unsupported_parts(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe a model by its parts' configurations if it is not supported; else return ""."""
    unet, vae, scheduler = configs["unet"], configs["vae"], configs["scheduler"]
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latents:
        what = CHANNELS.get(channels, "of an unsupported kind")
        return f"{what} (its UNet takes {channels} channels, but the latents have {latents})"
    if unet.get("time_cond_proj_dim"):
        return "a consistency model (its UNet takes the guidance scale)"
    if unet.get("class_embed_type") or unet.get("num_class_embeds"):
        return "of an unsupported kind (its UNet takes class labels)"
    if str(scheduler.get("_class_name", "")).startswith("EDM"):
        return "a model in the EDM formulation"
    added, second = unet.get("addition_embed_type"), configs.get("text_encoder_2")
    if added != ("text_time" if second else None):
        return f"of an unsupported kind (its UNet takes {added or 'no size and no pooled text'})"
    if second:
        width = unet.get("projection_class_embeddings_input_dim")
        sizes = 6 * (unet.get("addition_time_embed_dim") or 0)
        if width != second.get("projection_dim", 512) + sizes:
            return "of an unsupported kind (its UNet does not take the pooled text and six sizes)"
    predicted = scheduler.get("prediction_type", "epsilon")
    if predicted not in ("epsilon", "v_prediction"):
        return f"a model that predicts {predicted!r} instead of noise or v"
    return ""


# ---- single files ------------------------------------------------------------------------------

FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"

TEXT = {  # prefixes of a single file's text encoder tensors, which identify its family
    "conditioner.embedders.1.model.": "sdxl",
    "cond_stage_model.model.": "sd2",
    "cond_stage_model.transformer.": "sd1",
}


def single_family(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str]:
    """Identify a single file by its tensors: (family, "") if supported, else ("", description)."""
    names = list(shapes)

    def has(*beginnings: str) -> bool:
        return any(name.startswith(beginnings) for name in names)

    if FIRST_CONVOLUTION not in shapes:
        if any("lora" in name or name.endswith(".alpha") for name in names):
            return "", "a LoRA, not a base model"
        if has("double_blocks.", "model.diffusion_model.double_blocks."):
            return "", "of an unsupported kind (Flux)"
        if has("joint_blocks.", "model.diffusion_model.joint_blocks."):
            return "", "of an unsupported kind (Stable Diffusion 3)"
        if has("control_model.", "controlnet_"):
            return "", "a ControlNet"
        if has("first_stage_model.", "encoder.down."):
            return "", "only a VAE"
        if len(names) <= 4:
            return "", "not a base model but perhaps a concept, which belongs under concepts"
        return "", "not a complete Stable Diffusion model in the original layout"
    channels = shapes[FIRST_CONVOLUTION][1]
    if channels != 4:
        what = CHANNELS.get(channels, "of an unsupported kind")
        return "", f"{what} (its UNet takes {channels} channels)"
    if has("embedder.model."):
        return "", "of an unsupported kind (unCLIP)"
    for beginning, family in TEXT.items():
        if has(beginning):
            if has("first_stage_model."):
                return family, ""
            return "", "incomplete (it has no VAE)"
    if has("conditioner.embedders.0.model."):
        return "", "the refiner of Stable Diffusion XL"
    return "", "of an unsupported kind (its text encoder is not CLIP), or has no text encoder"


SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # of weight files

HUB_NAME = r"\w[\w.-]*/[\w.-]+"


def model_problems(config: ModelConfig, beside: Path | None = None) -> list[str]:
    """Return the problems of the base model's and VAE's names; nothing is loaded or fetched."""
    return _name_problems(config, beside) + _vae_problems(config.vae, beside)


def _vae_problems(name: str | None, beside: Path | None) -> list[str]:
    """Return the problems of the name of an external VAE."""
    if name is None or os.path.exists(resolve(name)):
        return []
    if re.fullmatch(rf"{HUB_NAME}(@[\w.-]+)?", name) and not name.endswith(SUFFIXES):
        return []
    return [
        f"model.vae: {name} does not exist{looked(name, beside)}; name a folder, a .safetensors "
        "file, or a model on the hub as OWNER/NAME"
    ]


def _name_problems(config: ModelConfig, beside: Path | None) -> list[str]:
    name = config.pretrained_model_name_or_path
    key = "model.pretrained_model_name_or_path"
    path = Path(resolve(name))
    if os.path.isdir(path):  # not Path.is_dir: a name may be too long for a file
        try:
            index = json.loads((path / INDEX).read_text(encoding="utf-8"))
        except FileNotFoundError:
            found = without_index(f"{p.relative_to(path)}" for p in path.rglob("*"))
            return [f"{key}: {name} is {found}; {SUPPORTED}"]
        except (OSError, ValueError):
            return [f"{key}: {path / INDEX} is damaged; use an intact copy"]
        found = unsupported_index(index) if isinstance(index, dict) else "not a model"
        return [f"{key}: {name} is {found}; {SUPPORTED}"] if found else []
    hub = re.fullmatch(HUB_NAME, name) and path.suffix != ".safetensors"
    if os.path.exists(path) or hub:
        return []
    if name == BUNDLED:
        return [
            f"{key}: the bundled model is not installed with the package; run in the folder of the "
            f"repository, or name its {BUNDLED} folder"
        ]
    return [
        f"{key}: {name} does not exist{looked(name, beside)}; name a folder in the diffusers "
        "format, a .safetensors file, or a model on the hub as OWNER/NAME"
    ]


def vocabulary(config: ModelConfig) -> dict[str, int]:
    """Read a base model's tokens and ids from its tokenizer's file; {} if there is none here.

    For a hub model, the file is read only if it was fetched before.
    """
    name = resolve(config.pretrained_model_name_or_path)
    # Older tokenizers write the first file, newer ones the second.
    for file in ("tokenizer/vocab.json", "tokenizer/tokenizer.json"):
        path: Any = Path(name) / file
        try:
            if not os.path.exists(name) and "/" in name:
                from huggingface_hub import try_to_load_from_cache  # late: a third of a second

                path = try_to_load_from_cache(name, file, revision=config.revision)
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return content["model"]["vocab"] if file.endswith("tokenizer.json") else content
        except (OSError, ValueError, TypeError, KeyError):
            continue  # loading the model will report it
    return {}
