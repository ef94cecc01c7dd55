"""The networks of the bundled model before training, and its noise schedule and tokenizer."""

from __future__ import annotations

from pathlib import Path

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    UNet2DConditionModel,
)
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from demo_model.world import SIZE

MODEL = Path(__file__).parent.parent  # the export that is bundled
LATENTS = 8  # channels; with Stable Diffusion's 4, thin lines between circles are lost
LATENT_SIZE = SIZE // 4
VAE_GROUPS = 8  # of channels, in its norms
TEXT_WIDTH = 128
LENGTH = 77  # tokens of a prompt


def new_vae() -> AutoencoderKL:
    """Make the VAE: it downsamples by 4, at which two-coloured lines survive; by 8, they blur."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 128),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=VAE_GROUPS,
        sample_size=SIZE,
    )


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Make CLIP, whose text tower is the text encoder."""
    special_tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": LENGTH,
            "projection_dim": 128,
            **special_tokens,
        },
        vision_config={
            "image_size": SIZE,
            "patch_size": 8,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "projection_dim": 128,
        },
        projection_dim=128,
        **special_tokens,
    )
    return CLIPModel(config)


def new_unet() -> UNet2DConditionModel:
    """Make the UNet: wide where width is cheap, with attention at 8 x 8 and 4 x 4."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=(48, 96, 192),
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> EulerAncestralDiscreteScheduler:
    """Make a scheduler with Stable Diffusion's betas and offsets, and v-prediction.

    The sampler draws new noise at every step, which lets a small model correct its shapes.
    """
    options = DDIMScheduler(  # its configuration suits every other sampler, too
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="v_prediction",
    )
    return EulerAncestralDiscreteScheduler.from_config(options.config)


def load_tokenizer() -> CLIPTokenizer:
    """Load CLIP's own tokenizer."""
    return CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
