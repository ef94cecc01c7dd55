#!/usr/bin/env bash
# The same change of sampler gives other timesteps after a pipeline was saved and loaded.
#
# Versions: diffusers 0.42.1; also 0.38.0.
# Behaviour: `from_config(pipe.scheduler.config)` passes on the values that a configuration sets,
#   but not the defaults of its class: DDIM made from an Euler without `timestep_spacing` has DDIM's
#   default, "leading". `save_pretrained` writes defaults and settings alike, so DDIM made from the
#   reloaded Euler has "linspace". The opposite happens, too: Euler made from Stable Diffusion 1.x's
#   own PNDM, whose file names no spacing, has "linspace"; from a saved copy of it, Euler has
#   "leading".
# Why it matters here: fine-tunes and merges are saved with diffusers. With the same sampler, seed
#   and prompt, a copy of a model has other noise levels than the model.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import json
from pathlib import Path

import diffusers
from tiny import NOISE


def read(folder):
    config = json.loads(Path(folder, "scheduler_config.json").read_text())
    return getattr(diffusers, config["_class_name"]).from_pretrained(folder)


def show(name, own, other):
    made = getattr(diffusers, f"{other}Scheduler").from_config(own.config)
    made.set_timesteps(10)
    first = [round(float(t)) for t in made.timesteps[:3]]
    print(f"{name}, {other} from it: {made.config.timestep_spacing}, {first}")


# The hub's file for Stable Diffusion 1.x.
Path("hub").mkdir()
config = {"_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "clip_sample": False}
config |= NOISE | {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
config |= {"trained_betas": None}
Path("hub/scheduler_config.json").write_text(json.dumps(config))
read("hub").save_pretrained("saved")
diffusers.EulerDiscreteScheduler(**NOISE).save_pretrained("euler")

for other in ("EulerDiscrete", "DPMSolverMultistep", "DDIM"):
    show("PNDM of the hub", read("hub"), other)
    show("PNDM, saved", read("saved"), other)
show("Euler, just made", diffusers.EulerDiscreteScheduler(**NOISE), "DDIM")
show("Euler, saved", read("euler"), "DDIM")
PROGRAM

expect <<'LINES'
PNDM of the hub, EulerDiscrete from it: linspace, [999, 888, 777]
PNDM, saved, EulerDiscrete from it: leading, [901, 801, 701]
PNDM of the hub, DPMSolverMultistep from it: linspace, [999, 899, 799]
PNDM, saved, DPMSolverMultistep from it: leading, [901, 811, 721]
PNDM of the hub, DDIM from it: leading, [901, 801, 701]
PNDM, saved, DDIM from it: leading, [901, 801, 701]
Euler, just made, DDIM from it: leading, [900, 800, 700]
Euler, saved, DDIM from it: linspace, [999, 888, 777]
LINES
