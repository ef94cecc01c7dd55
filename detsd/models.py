"""Load and freeze a base model: tokenizer, text encoder, VAE, UNet, noise scheduler.

Constants (scaling factor, betas, prediction type, image size, text width) are read from the model,
so that the bundled one, Stable Diffusion 1.x and its relatives differ by a path only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.utils.logging import disable_progress_bar
from safetensors import SafetensorError
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar as disable_transformers_progress_bar

from detsd.config import ModelConfig
from detsd.errors import UserError
from detsd.hub import INDEX, KEY, Source, find

disable_progress_bar()  # of loading; it comes up even for a model of seconds
disable_transformers_progress_bar()

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class BaseModel:
    """A frozen latent diffusion model, in evaluation mode on one device."""

    name: str
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler  # of training: adds noise, names the target
    sampling_scheduler_config: dict  # of the model's own sampler
    device: torch.device
    dtype: torch.dtype
    commit: str | None = None  # of the hub, that the weights came from; None for a folder

    @property
    def downsampling(self) -> int:
        """Pixels per latent along a side: 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_size(self) -> int:
        """Pixels a side of the images that the UNet was trained on."""
        return self.unet.config.sample_size * self.downsampling


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of frozen weights: as told, or the fastest that the hardware does well."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def resolve(name: str) -> str:
    """A local path as it is, or beside the package (`demo_model`); else a hub name."""
    beside = Path(__file__).parent.parent / name
    return str(beside) if not Path(name).exists() and beside.exists() else name


def find_model(config: ModelConfig, fetch: bool = True) -> Source:
    """Where the files of the configured base model are.

    Args:
        fetch: whether the hub may be asked; if not, only what was fetched before is found.

    Raises:
        UserError: as `hub.find`.
    """
    return find(resolve(config.pretrained_model_name_or_path), config.revision, fetch)


@contextlib.contextmanager
def _loading(name: str) -> Iterator[None]:
    """What goes wrong in reading a model's files as one sentence."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{KEY}: {name} cannot be loaded; give a complete diffusers folder or a hub model that "
            f"has safetensors weights (reason: {reason})"
        ) from None


def load_token_table(config: ModelConfig, fetch: bool = True) -> tuple[CLIPTokenizer, torch.Tensor]:
    """A base model's tokenizer and its table of embedding rows (V, D), float32; nothing else of it.

    Args:
        fetch: whether the hub may be asked; if not, only what was fetched before is found.

    Raises:
        UserError: as `load_base_model`.
    """
    source = find_model(config, fetch)
    source.fetch("tokenizer", "text_encoder")
    with _loading(config.pretrained_model_name_or_path):
        tokenizer, text_encoder = _text_side(source.folder)
    return tokenizer, text_encoder.get_input_embeddings().weight.detach().float()


def _text_side(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    return (
        CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", use_safetensors=True),
    )


def load_base_model(config: ModelConfig, device: torch.device) -> BaseModel:
    """Load `config.pretrained_model_name_or_path` from a folder or the hub, and freeze it.

    Only safetensors weights are read. The token goes to the hub alone.

    Raises:
        UserError: missing, gated or unreachable model, or a prediction type that is not supported.
    """
    name = config.pretrained_model_name_or_path
    dtype = pick_dtype(config.precision, device)
    source = find_model(config)
    source.fetch("scheduler", weights=False)
    with _loading(name):
        # First, since transformers 4's tokenizer would not say that there is no such model.
        sampler = DDPMScheduler.load_config(source.folder, subfolder="scheduler")
        scheduler = DDPMScheduler.from_config(sampler)
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"{KEY}: {name} predicts {scheduler.config.prediction_type!r}; use a model that "
            "predicts epsilon or v_prediction"
        )
    source.fetch("tokenizer", "text_encoder", "vae", "unet")
    with _loading(name):
        weights = {"use_safetensors": True}
        tokenizer, text_encoder = _text_side(source.folder)
        vae = AutoencoderKL.from_pretrained(source.folder, subfolder="vae", **weights)
        unet = UNet2DConditionModel.from_pretrained(source.folder, subfolder="unet", **weights)
    for part in (text_encoder, vae, unet):
        # Cast after loading: the keyword for it has another name in each library and version.
        part.requires_grad_(False).eval().to(device)
        if part.dtype != dtype:
            part.to(dtype=dtype)
    return BaseModel(
        name, tokenizer, text_encoder, vae, unet, scheduler, dict(sampler), device, dtype,
        source.commit,
    )  # fmt: skip


def load_safety_checker(
    config: ModelConfig, device: torch.device, dtype: torch.dtype
) -> tuple[StableDiffusionSafetyChecker | None, CLIPImageProcessor | None]:
    """The model's own safety checker and the processor of its input; None twice without one.

    Raises:
        UserError: the model names a checker that cannot be loaded.
    """
    source = find_model(config)
    with _loading(config.pretrained_model_name_or_path):
        parts = json.loads((source.folder / INDEX).read_text(encoding="utf-8"))
    if not (parts.get("safety_checker") or [None])[-1]:
        return None, None
    source.fetch("safety_checker", "feature_extractor")
    with _loading(config.pretrained_model_name_or_path):
        checker = StableDiffusionSafetyChecker.from_pretrained(
            source.folder, subfolder="safety_checker", use_safetensors=True
        )
        processor = CLIPImageProcessor.from_pretrained(source.folder, subfolder="feature_extractor")
    return checker.requires_grad_(False).eval().to(device, dtype), processor
