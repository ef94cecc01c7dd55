"""Load and freeze a base model: tokenizer, text encoder, VAE, UNet, noise scheduler.

Constants (scaling factor, betas, prediction type, image size, text width) are read from the model,
so that the bundled one, Stable Diffusion 1.x and its relatives differ by a path only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.utils.logging import disable_progress_bar
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from safetensors import SafetensorError
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer

from detsd.config import ModelConfig
from detsd.errors import UserError

disable_progress_bar()  # of loading; it comes up even for a model of seconds

PLACEHOLDER_TOKEN = "YOUR_HF_AUTH_TOKEN_HERE"
KEY = "model.pretrained_model_name_or_path"
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
    revision: str | None = None

    @property
    def commit(self) -> str | None:
        """The hub's commit that the weights came from; None for a folder."""
        return getattr(self.text_encoder.config, "_commit_hash", None)

    @property
    def downsampling(self) -> int:
        """Pixels per latent along a side: 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_size(self) -> int:
        """Pixels a side of the images that the UNet was trained on."""
        return self.unet.config.sample_size * self.downsampling


def hub_token() -> str | None:
    """HF_AUTH_TOKEN or HF_TOKEN, if one is set; the configs' placeholder counts as none."""
    for name in ("HF_AUTH_TOKEN", "HF_TOKEN"):
        token = os.environ.get(name, "").strip()
        if token and token != PLACEHOLDER_TOKEN:
            return token
    return None


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


def _hub_options(name: str, revision: str | None) -> dict:
    """Where to look for a hub model: the hub, or without one the files fetched before.

    The hub is asked once, with a short patience: the loaders themselves would retry for minutes.

    Raises:
        GatedRepoError, RepositoryNotFoundError: as the hub answers.
    """
    options = {"revision": revision, "token": hub_token()}
    try:
        HfApi().model_info(name, revision=revision, token=options["token"], timeout=10)
    except (GatedRepoError, RepositoryNotFoundError):
        raise
    except HfHubHTTPError:
        pass  # the hub is there, but out of order; the files may be had all the same
    except Exception:  # no connection, in one of a dozen classes of the HTTP libraries
        options["local_files_only"] = True
    return options


@contextlib.contextmanager
def _source(config: ModelConfig, fetch: bool = True) -> Iterator[tuple[str, dict]]:
    """A model's path or hub name, and options for loading it; what goes wrong as one sentence."""
    name = config.pretrained_model_name_or_path
    path = resolve(name)
    try:
        options = {"revision": config.revision, "local_files_only": True}
        if Path(path).is_dir():
            options = {}
        elif fetch:
            options = _hub_options(path, config.revision)
        yield path, options
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        # transformers wraps the hub's errors; gated is a kind of not found, so it comes first.
        causes = (error, error.__cause__)
        if any(isinstance(e, GatedRepoError) for e in causes):
            raise UserError(
                f"{KEY}: {name} is gated; accept its licence on its hub page and set "
                "HF_AUTH_TOKEN to a token of that account"
            ) from None
        if any(isinstance(e, RepositoryNotFoundError) for e in causes):
            raise UserError(
                f"{KEY}: {name} is neither a folder here nor a hub model that this token can see; "
                "check the spelling, or set HF_AUTH_TOKEN"
            ) from None
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{KEY}: {name} cannot be loaded; give a complete diffusers folder or a hub model that "
            f"can be reached ({reason})"
        ) from None


def load_token_table(config: ModelConfig, fetch: bool = True) -> tuple[CLIPTokenizer, torch.Tensor]:
    """A model's tokenizer and its table of token embeddings (V, D), float32, and no more of it.

    Args:
        fetch: whether the hub may be asked; if not, only what was fetched before is found.

    Raises:
        UserError: as `load_base_model`.
    """
    with _source(config, fetch) as (path, hub):
        tokenizer, text_encoder = _text_side(path, hub)
    return tokenizer, text_encoder.get_input_embeddings().weight.detach().float()


def _text_side(path: str, hub: dict) -> tuple[CLIPTokenizer, CLIPTextModel]:
    return (
        CLIPTokenizer.from_pretrained(path, subfolder="tokenizer", **hub),
        CLIPTextModel.from_pretrained(path, subfolder="text_encoder", use_safetensors=True, **hub),
    )


def load_base_model(config: ModelConfig, device: torch.device) -> BaseModel:
    """Load `config.pretrained_model_name_or_path` from a folder or the hub, and freeze it.

    Only safetensors weights are read. The token goes to the hub alone.

    Raises:
        UserError: missing, gated or unreachable model, or a prediction type that is not supported.
    """
    name = config.pretrained_model_name_or_path
    dtype = pick_dtype(config.precision, device)
    with _source(config) as (path, hub):
        weights = {"use_safetensors": True, **hub}
        # First, since transformers 4's tokenizer would not say that there is no such model.
        sampler = DDPMScheduler.load_config(path, subfolder="scheduler", **hub)
        tokenizer, text_encoder = _text_side(path, hub)
        vae = AutoencoderKL.from_pretrained(path, subfolder="vae", **weights)
        unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet", **weights)
    scheduler = DDPMScheduler.from_config(sampler)
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"{KEY}: {name} predicts {scheduler.config.prediction_type!r}; use a model that "
            "predicts epsilon or v_prediction"
        )
    for part in (text_encoder, vae, unet):
        # Cast after loading: the keyword for it has another name in each library and version.
        part.requires_grad_(False).eval().to(device)
        if part.dtype != dtype:
            part.to(dtype=dtype)
    return BaseModel(
        name, tokenizer, text_encoder, vae, unet, scheduler, dict(sampler), device, dtype,
        config.revision,
    )  # fmt: skip


def load_safety_checker(
    config: ModelConfig, device: torch.device, dtype: torch.dtype
) -> tuple[StableDiffusionSafetyChecker | None, CLIPImageProcessor | None]:
    """The model's own safety checker and the processor of its input; None twice without one.

    Raises:
        UserError: the model names a checker that cannot be loaded.
    """
    with _source(config) as (path, hub):
        parts = DiffusionPipeline.load_config(path, **hub)
        if not (parts.get("safety_checker") or [None])[-1]:
            return None, None
        checker = StableDiffusionSafetyChecker.from_pretrained(
            path, subfolder="safety_checker", use_safetensors=True, **hub
        )
        processor = CLIPImageProcessor.from_pretrained(path, subfolder="feature_extractor", **hub)
    return checker.requires_grad_(False).eval().to(device, dtype), processor
