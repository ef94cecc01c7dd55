#!/usr/bin/env bash
# A single Stable Diffusion XL file marked as predicting v is sampled as if it predicted noise.
#
# Versions: diffusers 0.42.1; also 0.38.0.
# Behaviour: such files hold two empty tensors, `v_pred` and `ztsnr`, which ComfyUI reads, and may
#   have `v` as ModelSpec's `modelspec.prediction_type`. `from_single_file` reads neither: the
#   scheduler has the configuration of the family, with "epsilon" and without zero SNR, and nothing
#   is logged.
# Why it matters here: v is then mistaken for noise at every step of an image, and in training.
# Observed on 2026-11-30; the output is at the end. (The script passes the parts with weights,
#   since the scheduler does not depend on them.)
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file
from tiny import pipeline_xl

pipe = pipeline_xl()
pipe.save_pretrained("family")
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
parts = {name: getattr(pipe, name) for name in PARTS}
weights = {f"first_stage_model.{k}": v.clone() for k, v in pipe.vae.state_dict().items()}
marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
spec = {"modelspec.prediction_type": "v"}
for said, tensors, metadata in (("nothing", {}, {}), ("v", marks, spec)):
    save_file(weights | tensors, "model.safetensors", metadata)
    read = StableDiffusionXLPipeline.from_single_file(
        "model.safetensors", config="family", local_files_only=True, **parts
    )
    config = read.scheduler.config
    print(f"the file says {said}: {config.prediction_type}, {config.rescale_betas_zero_snr}")
PROGRAM

expect <<'LINES'
the file says nothing: epsilon, False
the file says v: epsilon, False
LINES
