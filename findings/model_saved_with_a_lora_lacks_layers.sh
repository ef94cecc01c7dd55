#!/usr/bin/env bash
# A pipeline that is saved while a LoRA is loaded comes back without the layers that it changes.
#
# Versions: diffusers 0.42.1, peft 0.21.2.
# Behaviour: `save_pretrained` writes the UNet's layers under the names that peft gives them
#   (`to_q.base_layer.weight`), and no adapter file. `from_pretrained` finds none of those layers,
#   logs a warning and returns a model in which they have no values. An image then raises, or, if
#   the LoRA changes only layers without a bias, is made of whatever lies in memory. It makes no
#   difference whether the LoRA was enabled, disabled or fused. The copy is right only after
#   `unload_lora_weights()`; after `fuse_lora()` and that, it has the LoRA's effect.
# Why it matters here: the base model of a word is often a checkpoint with a LoRA merged into it.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe peft==0.21.2 <<'PROGRAM'
import diffusers
import tiny
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

diffusers.logging.set_verbosity_error()  # the warning names all layers, in a random order
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"

for state in ("loaded", "disabled", "fused", "unloaded", "fused, unloaded"):
    pipe = tiny.pipeline()
    clean = pipe.unet.state_dict()[f"{LAYER}.weight"].clone()
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q"])
    pipe.unet.add_adapter(config, "style")
    if "fused" in state:
        pipe.fuse_lora()
        fused = pipe.unet.state_dict()[f"{LAYER}.base_layer.weight"].clone()
    if "disabled" in state:
        pipe.disable_lora()
    if "unloaded" in state:
        pipe.unload_lora_weights()
    pipe.save_pretrained("copy")
    copy, told = UNet2DConditionModel.from_pretrained(
        "copy", subfolder="unet", output_loading_info=True
    )
    weight, kind = copy.state_dict()[f"{LAYER}.weight"], "other values"
    if weight.is_meta:
        kind = "no values"
    elif torch.equal(weight, clean):
        kind = "the model's values"
    elif "fused" in state and torch.equal(weight, fused):
        kind = "the values with the LoRA"
    print(f"saved {state}: {len(told['missing_keys'])} layers missing; to_q has {kind}")
PROGRAM

expect <<'LINES'
saved loaded: 8 layers missing; to_q has no values
saved disabled: 8 layers missing; to_q has no values
saved fused: 8 layers missing; to_q has no values
saved unloaded: 0 layers missing; to_q has the model's values
saved fused, unloaded: 0 layers missing; to_q has the values with the LoRA
LINES
