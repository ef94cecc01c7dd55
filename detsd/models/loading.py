"""Load and freeze a base model: its text encoders, VAE, UNet and noise scheduler.

Constants (scaling factor, betas, prediction type, image size, text widths) are read from the model,
so the bundled one, Stable Diffusion 1.x, 2.x, XL and their relatives differ only by a path.
`BaseModel.encode_prompts` handles the differences of XL, which has two text encoders and whose UNet
also takes the pooled states of the second and the image's time ids.
"""

from collections.abc import Iterable

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel, __version__
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.utils.logging import disable_progress_bar
from packaging.version import Version
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils.logging import disable_progress_bar as disable_transformers_progress_bar

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.vocabulary import Vocabulary, check_fit
from detsd.config import ModelConfig
from detsd.models.base import BaseModel
from detsd.models.mapped import load_part
from detsd.models.single_file import infer_prediction_type, read_single_file
from detsd.models.spec import loading, read_json, read_spec, resolve_model, tokenizer_for
from detsd.models.support import INDEX
from detsd.models.vae import load_external_vae, load_vae
from detsd.utils.errors import UserError

disable_progress_bar()  # of loading, which would show even for a model that loads in seconds
disable_transformers_progress_bar()

ENCODERS = (CLIPTextModel, CLIPTextModelWithProjection)  # the first and the second text encoder

PICKLED = "pytorch_model.bin"

NO_CHECKER = "model.safety_checker: false makes images without it"

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def pick_dtype(precision: str, device: torch.device, training: bool = False) -> torch.dtype:
    """Return the dtype of the frozen weights: as configured, or the fastest that is exact enough.

    bf16 has the range of float32, which gradients need. fp16 is more precise: its images are nine
    times closer to those in float32 (dev/LOG.md).
    """
    if precision not in (known := ("auto", *DTYPES)):  # in a script, not in a configuration
        raise UserError(f"precision is {precision!r} but must be one of {', '.join(known)}")
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
        concepts: those that will be added; their fit is checked first.
        training: whether gradients will flow through the model.
    """
    name = config.pretrained_model_name_or_path
    dtype = pick_dtype(config.precision, device, training)
    source = resolve_model(config)
    spec = read_spec(source)
    if not 0 <= config.clip_skip <= spec.max_clip_skip:
        raise UserError(
            f"model.clip_skip is {config.clip_skip}, but {name} has only enough layers for 0 to "
            f"{spec.max_clip_skip}; A1111's 'Clip skip: 2' is 1 here"
        )
    for concept in concepts:
        check_fit(concept, spec.widths, name)
    vae, vae_name, vae_file = None, None, None
    if config.vae:
        vae, vae_name, vae_file = load_external_vae(config.vae, source, spec, dtype)
    source.fetch(*spec.tokenizers, *spec.text_encoders, "unet", *(() if vae else ("vae",)))

    with loading(name):
        tokenizers = [tokenizer_for(source, part) for part in spec.tokenizers]
        vae = vae or load_vae(source, source, "vae", spec.vae_dtype(dtype))
        if source.single:
            encoders, unet = read_single_file(source, tokenizers, dtype, vae)
        else:
            classes = zip(ENCODERS, spec.text_encoders, strict=False)
            encoders = [load_part(cls, source, part, dtype) for cls, part in classes]
            unet = load_part(UNet2DConditionModel, source, "unet", dtype)
        for part in (*encoders, vae, unet):
            part.requires_grad_(False).eval().to(device)
        fix_sample_size(unet)
        sampler = spec.sampler
        if source.single:
            sampler = infer_prediction_type(sampler, unet)
        scheduler = DDPMScheduler.from_config(sampler)
    texts = [part for side in zip(tokenizers, encoders, strict=True) for part in side]
    return BaseModel(
        name=name,
        vocabulary=Vocabulary(*texts, model=name),
        vae=vae,
        unet=unet,
        scheduler=scheduler,
        sampling_scheduler_config=sampler,
        device=device,
        dtype=dtype,
        force_zeros_for_empty_prompt=spec.force_zeros_for_empty_prompt,
        commit=source.commit,
        clip_skip=config.clip_skip,
        vae_name=vae_name,
        vae_file=vae_file,
    )


def fix_sample_size(unet: UNet2DConditionModel) -> None:
    """Correct the sample size of old models as diffusers' pipeline does, before anything uses it.

    The files of the first Stable Diffusion models, written before diffusers 0.9, say 32, not 64.
    """
    written = Version(unet.config.get("_diffusers_version", __version__)).release
    if written < (0, 9) and unet.config.sample_size < 64:
        unet.register_to_config(sample_size=64)


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
            use_safetensors=safe,  # else a pickle; tensors only, if PyTorch can
            variant=source.variant("safety_checker"),
        )
        processor = CLIPImageProcessor.from_pretrained(source.folder, subfolder="feature_extractor")
    return checker.requires_grad_(False).eval().to(dtype=dtype).to(device), processor
