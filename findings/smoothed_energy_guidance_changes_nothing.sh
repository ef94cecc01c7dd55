#!/usr/bin/env bash
# Smoothed energy guidance costs a third UNet pass in each step but one and changes nothing.
#
# Versions: diffusers 0.42.1, in Stable Diffusion XL's modular pipeline.
# Behaviour: the guider adds its blurring to the UNet once it has counted three passes of a step,
#   but it does not count passes. So the third pass repeats the first, and their difference, which
#   the scale multiplies, is zero. Perturbed attention guidance, built in the same way, counts its
#   passes and works.
# Why it matters here: in a comparison of kinds of guidance on a concept, this one gives the result
#   of plain guidance at 1.4 times its cost.
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import torch
from diffusers import (
    ClassifierFreeGuidance,
    LayerSkipConfig,
    PerturbedAttentionGuidance,
    SmoothedEnergyGuidance,
)
from diffusers.hooks import SmoothedEnergyGuidanceConfig
from diffusers.modular_pipelines.stable_diffusion_xl import StableDiffusionXLAutoBlocks
from tiny import pipeline_xl

parts = pipeline_xl(add_watermarker=False)
calls = []
parts.unet.register_forward_pre_hook(lambda unet, args: calls.append(args))
modular = StableDiffusionXLAutoBlocks().init_pipeline()
modular.update_components(**{k: v for k, v in parts.components.items() if v is not None})


def latents(guider):
    calls.clear()
    modular.update_components(guider=guider)
    return modular(
        prompt="a cat", num_inference_steps=5, width=64, height=64, output_type="latent",
        output="latents", generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


where = "down_blocks.0.attentions.0.transformer_blocks"
blur = SmoothedEnergyGuidanceConfig([0], fqn=where)
skip = LayerSkipConfig([0], where, skip_attention=False, skip_attention_scores=True, skip_ff=False)
plain = latents(ClassifierFreeGuidance(guidance_scale=7.5))
print(f"plain guidance: {len(calls)} passes")
for scale in (3, 300):
    made = latents(
        SmoothedEnergyGuidance(7.5, seg_guidance_scale=scale, seg_guidance_config=blur)
    )
    print(f"smoothed energy, scale {scale}: {len(calls)} passes,", end=" ")
    print("the same image" if torch.equal(made, plain) else "another image")
made = latents(
    PerturbedAttentionGuidance(
        7.5, perturbed_guidance_scale=3, perturbed_guidance_start=0.0,
        perturbed_guidance_stop=1.0, perturbed_guidance_config=skip,
    )  # fmt: skip
)
print(f"perturbed attention, scale 3: {len(calls)} passes,", end=" ")
print("the same image" if torch.equal(made, plain) else "another image")
PROGRAM

expect <<'LINES'
plain guidance: 10 passes
smoothed energy, scale 3: 14 passes, the same image
smoothed energy, scale 300: 14 passes, the same image
perturbed attention, scale 3: 14 passes, another image
LINES
