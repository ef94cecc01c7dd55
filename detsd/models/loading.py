"""Load and freeze a base model: its text encoders, VAE, UNet and noise scheduler.

Constants (scaling factor, betas, prediction type, image size, text widths) are read from the model,
so that the bundled one, Stable Diffusion 1.x, 2.x, XL and their relatives differ only by a path.
What is special to XL is in `BaseModel.encode_prompts`: it has two text encoders, and the second
one's pooled states and the image's time ids are inputs of the UNet as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    ModelMixin,
    UNet2DConditionModel,
    __version__,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.utils.logging import disable_progress_bar
from packaging.version import Version
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils.logging import disable_progress_bar as disable_transformers_progress_bar

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.vocabulary import Vocabulary, check_fit
from detsd.config import ModelConfig
from detsd.models.base import BaseModel
from detsd.models.hub import WHOLE, ModelFiles
from detsd.models.mapped import cast, stored_dtype
from detsd.models.single_file import infer_prediction_type, read_single_file
from detsd.models.spec import (
    ModelSpec,
    loading,
    read_json,
    read_spec,
    resolve_model,
    tokenizer_for,
)
from detsd.models.support import INDEX
from detsd.models.vae import (
    HINT,
    KEY,
    check_vae,
    full_name,
    load_single_vae,
    resolve_vae,
    weights_file,
)
from detsd.utils.errors import UserError

disable_progress_bar()  # of loading; it would appear even for a model that loads in seconds


disable_transformers_progress_bar()


ENCODERS = (CLIPTextModel, CLIPTextModelWithProjection)  # the first and the second text encoder

PICKLED = "pytorch_model.bin"

NO_CHECKER = "model.safety_checker: false makes images without it"

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_dtype(precision: str, device: torch.device, training: bool = False) -> torch.dtype:
    """Return the dtype of the frozen weights: as configured, or the fastest that is exact enough.

    bf16 has the range of float32, which gradients need; fp16 has finer steps, which bring images
    nine times nearer to those in float32 (dev/LOG.md).
    """
    if precision != "auto":
        return DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    has_bf16 = torch.cuda.get_device_capability(device)[0] >= 8
    return torch.bfloat16 if training and has_bf16 else torch.float16


def load_base_model(
    config: ModelConfig,
    device: torch.device,
    concepts: Iterable[LearnedConcept] = (),
    *,
    training: bool = False,
) -> BaseModel:
    """Load `config.pretrained_model_name_or_path`, a folder, file or hub model, and freeze it.

    Only safetensors weights are read. The token is sent only to the hub.

    Args:
        concepts: those that will be added; they are checked first for whether they fit.
        training: whether gradients will flow through the model.
    """
    name = config.pretrained_model_name_or_path
    dtype = pick_dtype(config.precision, device, training)
    source = resolve_model(config)
    kind = read_spec(source)
    if not 0 <= config.clip_skip <= kind.max_clip_skip:
        raise UserError(
            f"model.clip_skip is {config.clip_skip}, but {name} has only enough layers for 0 to "
            f"{kind.max_clip_skip}; A1111's 'Clip skip: 2' is 1 here"
        )
    for concept in concepts:
        check_fit(concept, kind.widths, name)
    vae, vae_source = None, None
    if config.vae:
        vae, vae_source = _external_vae(config.vae, source, kind, dtype)
    parts = [part for side in kind.text_encoders for part in side] + ["unet"]
    source.fetch(*parts, *(() if vae else ("vae",)))

    with loading(name):
        tokenizers = [tokenizer_for(source, part) for part, _ in kind.text_encoders]
        vae = vae or _load_vae(source, source, "vae", kind.vae_dtype(dtype))
        if source.single:
            encoders, unet = read_single_file(source, tokenizers, dtype, vae)
        else:
            encoders = [
                _load(cls, source, part, dtype)
                for cls, (_, part) in zip(ENCODERS, kind.text_encoders, strict=False)
            ]
            unet = _load(UNet2DConditionModel, source, "unet", dtype)
        for part in (*encoders, vae, unet):
            part.requires_grad_(False).eval().to(device)
        fix_sample_size(unet)
        sampler = kind.sampler
        if source.single:
            sampler = infer_prediction_type(sampler, unet)
        scheduler = DDPMScheduler.from_config(sampler)
    texts = [part for side in zip(tokenizers, encoders, strict=True) for part in side]
    return BaseModel(
        name,
        Vocabulary(*texts, model=name),
        vae,
        unet,
        scheduler,
        sampler,
        device,
        dtype,
        kind.force_zeros_for_empty_prompt,
        source.commit,
        config.clip_skip,
        vae_source and full_name(config.vae, vae_source),
        vae_source and weights_file(vae_source),
    )


def _external_vae(
    name: str, source: ModelFiles, kind: ModelSpec, dtype: torch.dtype
) -> tuple[AutoencoderKL, ModelFiles]:
    """Load a VAE in place of the base model's, before any of the base model's weights."""
    files = resolve_vae(name)
    config = check_vae(files, read_json(source, "vae/config.json"))
    files.fetch(WHOLE)
    upcast = kind.force_upcast and config.get("force_upcast", True)
    vae_dtype = dataclasses.replace(kind, force_upcast=upcast).vae_dtype(dtype)
    with loading(name, HINT, KEY):
        return _load_vae(files, source, WHOLE, vae_dtype), files


def _load_vae(
    files: ModelFiles, source: ModelFiles, part: str, dtype: torch.dtype
) -> AutoencoderKL:
    """Load a VAE; if it is a single file, by the configuration in `source`."""
    if files.single:
        return load_single_vae(files.single, source.folder, dtype)
    return _load(AutoencoderKL, files, part, dtype)


def fix_sample_size(unet: UNet2DConditionModel) -> None:
    """Correct the sample size of old models as diffusers' pipeline does, before anything uses it.

    The files of the first Stable Diffusion models, written before diffusers 0.9, say 32 for 64.
    """
    written = Version(unet.config.get("_diffusers_version", __version__)).release
    if written < (0, 9) and unet.config.sample_size < 64:
        unet.register_to_config(sample_size=64)


def _load(cls: type, source: ModelFiles, part: str, dtype: torch.dtype):
    """Load one part; raise ValueError if the libraries would draw missing weights at random."""
    files = [source.folder / name for name in source.weights(part)]
    # transformers renames this keyword between versions, and does not need it.
    stored = {"torch_dtype": stored_dtype(files) or dtype} if issubclass(cls, ModelMixin) else {}
    model, info = cls.from_pretrained(
        source.folder,
        subfolder=None if part == WHOLE else part,
        use_safetensors=True,
        variant=source.variant(part),
        output_loading_info=True,
        **stored,
    )
    if missing := sorted(info["missing_keys"]):
        reason = f"the weights of {part} lack {len(missing)} of its tensors, first {missing[0]}"
        if info["unexpected_keys"]:
            reason += "; another version of transformers seems to have saved them, so use that one"
        raise ValueError(reason)
    return cast(model, dtype, files)


def load_safety_checker(
    config: ModelConfig, device: torch.device, dtype: torch.dtype
) -> tuple[StableDiffusionSafetyChecker | None, CLIPImageProcessor | None]:
    """Load the model's own safety checker and its image processor; (None, None) without one."""
    source = resolve_model(config)
    if source.single:
        return None, None
    with loading(source.name):
        index = read_json(source, INDEX)
    if not (index.get("safety_checker") or [None])[-1]:
        return None, None
    safe = bool(source.weights("safety_checker"))
    if safe:
        source.fetch("safety_checker")
    else:
        source.fetch("safety_checker", weights=False)
        source.fetch_files(f"safety_checker/{PICKLED}")
    source.fetch("feature_extractor")
    with loading(f"the safety checker of {source.name}", NO_CHECKER):
        checker = StableDiffusionSafetyChecker.from_pretrained(
            source.folder,
            subfolder="safety_checker",
            use_safetensors=safe,  # else only tensors from a pickle, if PyTorch can
            variant=source.variant("safety_checker"),
        )
        processor = CLIPImageProcessor.from_pretrained(source.folder, subfolder="feature_extractor")
    return checker.requires_grad_(False).eval().to(dtype=dtype).to(device), processor
