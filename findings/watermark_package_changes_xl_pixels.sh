#!/usr/bin/env bash
# Installing invisible-watermark changes the pixels of Stable Diffusion XL's pipeline.
#
# Versions: diffusers 0.42.1, invisible-watermark 0.2.0 (opencv-python-headless 5.0.0.93, PyWavelets
#   1.9.0).
# Behaviour: `add_watermarker` is None by default, which means "if the package is installed". Images
#   of 256 pixels or more then carry a watermark, which no log line reports. With the same seed, two
#   machines make different pixels if only one has a package that nobody imported.
# Why it matters here: pixels are a function of the job (prompt, seed, settings, model, concepts).
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe invisible-watermark==0.2.0 opencv-python-headless==5.0.0.93 PyWavelets==1.9.0 <<'PROGRAM'
import numpy as np
import torch
from tiny import pipeline_xl

stock, without = pipeline_xl(), pipeline_xl(add_watermarker=False)
for size in (128, 256):
    options = {"num_inference_steps": 1, "width": size, "height": size}
    made = [
        np.asarray(pipe("a", generator=torch.Generator().manual_seed(0), **options).images[0])
        for pipe in (stock, without)
    ]
    print(f"{size} pixels: the images are", "equal" if np.array_equal(*made) else "different")

# What it does to a smooth picture (1, 3, 512, 512) in [-1, 1].
ramp = torch.linspace(-0.8, 0.8, 512).expand(512, 512)
picture = torch.stack([ramp, ramp.T, ramp / 2])[None]
marked = stock.watermark.apply_watermark(picture.clone())
before, after = (((p / 2 + 0.5).clamp(0, 1) * 255).round() for p in (picture, marked))
levels = (after - before).abs()
print(f"of a smooth picture {(levels > 0).float().mean():.0%} of the values change,", end=" ")
print(f"by up to {levels.max():.0f} of 255 levels")
PROGRAM

expect <<'LINES'
128 pixels: the images are equal
256 pixels: the images are different
of a smooth picture 10% of the values change, by up to 28 of 255 levels
LINES
