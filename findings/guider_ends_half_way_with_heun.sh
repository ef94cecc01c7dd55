#!/usr/bin/env bash
# In a modular pipeline, guidance ends half way through with Heun's sampler.
#
# Versions: diffusers 0.42.1.
# Behaviour: Heun's sampler calls the UNet twice a step, 2 n - 1 times for n steps. The guider
#   receives the number of the call and n, the number of steps, and so takes its interval to be over
#   from call n on: the remaining calls are made without a negative prompt and without guidance.
#   Nothing is raised or logged. StableDiffusionXLPipeline guides every call.
# Why it matters here: with the same concept, seed and sampler, diffusers' two kinds of pipeline
#   make two different images.
# Observed on 2026-11-28; the output is at the end. (A pass is one image; a guided call has two.)
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
from collections import Counter

from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler
from diffusers.modular_pipelines.stable_diffusion_xl import StableDiffusionXLAutoBlocks
from tiny import NOISE, pipeline_xl

parts = pipeline_xl(add_watermarker=False)
calls = []
parts.unet.register_forward_pre_hook(lambda unet, args: calls.append(len(args[0])))
modular = StableDiffusionXLAutoBlocks().init_pipeline()
modular.update_components(**{k: v for k, v in parts.components.items() if v is not None})
options = {"prompt": "a cat", "num_inference_steps": 5, "width": 32, "height": 32}
for cls in (EulerDiscreteScheduler, HeunDiscreteScheduler):
    scheduler = cls(**NOISE)
    modular.update_components(scheduler=scheduler)
    parts.scheduler = cls(**NOISE)
    for name, pipe in (("modular", modular), ("stock", parts)):
        calls.clear()
        pipe(**options, output_type="latent")
        total = 5 if cls is EulerDiscreteScheduler else 9
        print(f"{cls.__name__}, {name}: {sum(calls)} passes for {total} calls")
PROGRAM

expect <<'LINES'
EulerDiscreteScheduler, modular: 10 passes for 5 calls
EulerDiscreteScheduler, stock: 10 passes for 5 calls
HeunDiscreteScheduler, modular: 14 passes for 9 calls
HeunDiscreteScheduler, stock: 18 passes for 9 calls
LINES
