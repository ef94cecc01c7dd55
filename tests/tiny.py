"""Tiny random models of every family in the real formats, for tests that need speed, not pictures.

32-pixel images, 8 x 8 latents (vae_scale_factor by 4).
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path

import torch
from conftest import ROOT
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

WORDS = 4_000  # of CLIP's 49,408: reading all takes longer than the rest of such a model
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def save_tiny_model(
    folder: Path, prediction_type: str = "epsilon", width: int = 16, variant: str | None = None
) -> Path:
    """Save a model laid out as Stable Diffusion 1.x, with text width `width`."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    return _save(
        folder,
        variant,
        StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text(tokenizer, width)),
            tokenizer=tokenizer,
            unet=_unet(cross_attention_dim=width),
            scheduler=DDIMScheduler(
                **NOISE,
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                prediction_type=prediction_type,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
    )


def save_tiny_sd2(folder: Path, variant: str | None = None) -> Path:
    """Save one like Stable Diffusion 2.1 at 768: v-prediction, "!" as pad, OpenCLIP, width 24."""
    torch.manual_seed(0)
    tokenizer = _tokenizer("!")
    return _save(
        folder,
        variant,
        StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text(tokenizer, 24, hidden_act="gelu")),
            tokenizer=tokenizer,
            unet=_unet(
                cross_attention_dim=24, attention_head_dim=[2, 4], use_linear_projection=True
            ),
            scheduler=DDIMScheduler(
                **NOISE,
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                prediction_type="v_prediction",
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
    )


def save_tiny_sdxl(
    folder: Path,
    variant: str | None = None,
    eos_token_id: int | None = None,
    force_zeros_for_empty_prompt: bool = True,
) -> Path:
    """Save one like Stable Diffusion XL: text encoders of widths 16 and 24, pooled width 20.

    Args:
        eos_token_id: that of the text encoders' configurations, if it is not the tokenizer's; 2 in
            the real models.
    """
    torch.manual_seed(0)
    tokenizers = _tokenizer(), _tokenizer("!")
    eos_token_id = eos_token_id or tokenizers[0].eos_token_id
    texts = (
        _text(tokenizers[0], 16, num_hidden_layers=2, eos_token_id=eos_token_id),
        _text(
            tokenizers[1], 24, num_hidden_layers=2, eos_token_id=eos_token_id, hidden_act="gelu",
            projection_dim=20,
        ),
    )  # fmt: skip
    return _save(
        folder,
        variant,
        StableDiffusionXLPipeline(
            vae=_vae(force_upcast=True),
            text_encoder=CLIPTextModel(texts[0]),
            text_encoder_2=CLIPTextModelWithProjection(texts[1]),
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            unet=_unet(
                cross_attention_dim=40,
                attention_head_dim=[2, 4],
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=20 + 6 * 8,
            ),
            scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            add_watermarker=False,
        ),
    )


def save_tiny_clip(folder: Path) -> Path:
    """Save a CLIP for 32-pixel images, with its tokenizer and image processor."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    side = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    side |= {"num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    vision = {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=side | text, vision_config=side | vision, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def save_tiny_dino(folder: Path) -> Path:
    """Save a DINOv2 for 28-pixel images, with its image processor."""
    torch.manual_seed(0)
    side = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**side, image_size=28, patch_size=14)).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    BitImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


FAMILIES = {"sd1": save_tiny_model, "sd2": save_tiny_sd2, "sdxl": save_tiny_sdxl}


def _save(folder: Path, variant: str | None, pipe: DiffusionPipeline) -> Path:
    if variant == "fp16":
        pipe.to(dtype=torch.float16)
    pipe.save_pretrained(folder, variant=variant)
    return folder


@functools.cache
def _first_words() -> tempfile.TemporaryDirectory:
    made = tempfile.TemporaryDirectory(prefix="tokenizer-")
    whole, folder = ROOT / "demo_model" / "tokenizer", Path(made.name)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(whole / name, folder)
    ids = json.loads((whole / "vocab.json").read_text())
    first = {word: k for word, k in ids.items() if k < WORDS}
    first |= {"<|startoftext|>": WORDS, "<|endoftext|>": WORDS + 1}
    (folder / "vocab.json").write_text(json.dumps(first))
    merges = (whole / "merges.txt").read_text().splitlines(keepends=True)
    (folder / "merges.txt").write_text("".join(merges[: 1 + WORDS - 2 * 256]))  # beside the bytes
    return made


def vocabulary() -> Path:
    """Return a folder with CLIP's tokenizer, without rare words."""
    return Path(_first_words().name)


def _tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(vocabulary(), pad_token=pad)


def _text(tokenizer: CLIPTokenizer, width: int, **options) -> CLIPTextConfig:
    return CLIPTextConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 77,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        | options
    )


def _vae(**options) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.5,
        **options,
    )


def _unet(**options) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        }
        | options
    )


# ---- one file, as the original code of Stable Diffusion names the tensors ----------------------


def save_single_file(folder: Path, path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Save a model folder's weights as one safetensors file in the original layout."""
    xl = (folder / "text_encoder_2").is_dir()
    cls = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    pipe = cls.from_pretrained(folder, local_files_only=True)
    tensors = {f"model.diffusion_model.{k}": v for k, v in _ldm_unet(pipe.unet).items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in ldm_vae(pipe.vae).items()}
    text = {
        k if k.startswith("text_model.") else f"text_model.{k}": v
        for k, v in pipe.text_encoder.state_dict().items()
    }
    if xl:
        tensors |= {f"conditioner.embedders.0.transformer.{k}": v for k, v in text.items()}
        second = _open_clip(pipe.text_encoder_2.state_dict())
        tensors |= {f"conditioner.embedders.1.model.{k}": v for k, v in second.items()}
    elif pipe.tokenizer.pad_token == "!":
        tensors |= {f"cond_stage_model.model.{k}": v for k, v in _open_clip(text).items()}
    else:
        tensors |= {f"cond_stage_model.transformer.{k}": v for k, v in text.items()}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path, metadata)
    return path


def _renamed(key: str, *pairs: tuple[str, str]) -> str:
    for new, old in pairs:
        key = key.replace(new, old)
    return key


def _ldm_unet(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """Rename the UNet's layers: diffusers counts per block, the original code continuously."""
    deep, layers = len(unet.config.block_out_channels), unet.config.layers_per_block
    places = [
        ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
        ("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1"),
        ("mid_block.resnets.1", "middle_block.2"),
    ]  # fmt: skip
    for b in range(deep):
        for k in range(layers):
            n = 1 + b * (layers + 1) + k
            places.append((f"down_blocks.{b}.resnets.{k}", f"input_blocks.{n}.0"))
            places.append((f"down_blocks.{b}.attentions.{k}", f"input_blocks.{n}.1"))
        n = (b + 1) * (layers + 1)
        places.append((f"down_blocks.{b}.downsamplers.0.conv", f"input_blocks.{n}.0.op"))
        for k in range(layers + 1):
            n = b * (layers + 1) + k
            places.append((f"up_blocks.{b}.resnets.{k}", f"output_blocks.{n}.0"))
            places.append((f"up_blocks.{b}.attentions.{k}", f"output_blocks.{n}.1"))
        attends = "CrossAttn" in unet.config.up_block_types[b]
        n = f"{b * (layers + 1) + layers}.{2 if attends else 1}"
        places.append((f"up_blocks.{b}.upsamplers.0.conv", f"output_blocks.{n}.conv"))
    found = {}
    for key, value in unet.state_dict().items():
        here, there = next(p for p in places if key.startswith(f"{p[0]}."))
        rest = key.removeprefix(here)
        if "resnets" in here:
            rest = _renamed(
                rest, ("norm1", "in_layers.0"), ("conv1", "in_layers.2"),
                ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
                ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection"),
            )  # fmt: skip
        found[there + rest] = value
    return found


def ldm_vae(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    last = len(vae.config.block_out_channels) - 1
    found = {}
    for key, value in vae.state_dict().items():
        key = _renamed(
            key, ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"),
            ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0", "mid.attn_1"), ("group_norm", "norm"), ("to_q", "q"),
            ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
            ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"), ("resnets", "block"),
        )  # fmt: skip
        for b in range(last + 1):
            key = _renamed(key, (f"down_blocks.{b}.", f"down.{b}."))
            key = _renamed(key, (f"up_blocks.{b}.", f"up.{last - b}."))
        if "attn_1" in key and "norm" not in key and value.ndim == 2:
            value = value[..., None, None]  # a convolution in that layout
        found[key] = value
    return found


def _open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert CLIP to OpenCLIP: query, key, value in one matrix, the projection transposed."""
    found = {}
    for key, value in state.items():
        if ".k_proj." in key or ".v_proj." in key or key.endswith("position_ids"):
            continue
        if ".q_proj." in key:
            others = [state[key.replace("q_proj", kind)] for kind in ("k_proj", "v_proj")]
            value = torch.cat([value, *others])
        if key == "text_projection.weight":
            key, value = "text_projection", value.T
        key = _renamed(
            key, ("text_model.encoder.layers", "transformer.resblocks"), ("layer_norm", "ln_"),
            ("self_attn.q_proj.", "attn.in_proj_"), ("self_attn.", "attn."),
            ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
            ("text_model.final_ln_", "ln_final"),
            ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
            ("text_model.embeddings.token_embedding", "token_embedding"),
        )  # fmt: skip
        found[key] = value
    return found
