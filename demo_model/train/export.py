"""Write the model in the diffusers format, half precision."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPTextModel

from demo_model.captions import vocabulary
from demo_model.train.loop import Stop
from demo_model.train.networks import (
    MODEL,
    load_tokenizer,
    new_clip,
    new_scheduler,
    new_unet,
    new_vae,
)
from demo_model.train.store import load_clip, load_part, load_scale, read_progress, write_progress

TEXT_FILE = "../text_encoder/model.safetensors"  # as seen from clip/


def export(args: argparse.Namespace) -> None:
    """Write the latest weights of each part to `--export-to`, to try them at any time.

    Parts that the work folder lacks come from the export that the training started from.
    """
    tokenizer = load_tokenizer()
    clip = new_clip(tokenizer)
    clip.load_state_dict(load_clip(args, "judge", "clip"))
    vae, unet = new_vae(), new_unet()
    vae.load_state_dict(load_part(args, "vae", "decoder", "vae"))
    unet.load_state_dict(load_part(args, "unet", "unet"))
    scale = load_scale(args)
    if scale is None:
        raise Stop(f"{args.work_dir} has a VAE but no scaling factor; run the stage unet")
    vae.register_to_config(scaling_factor=round(scale, 5))
    tokenizer_files = {p.name: p.read_bytes() for p in (MODEL / "tokenizer").iterdir()}
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(clip.config.text_config),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(args.export_to, max_shard_size="14MB")
    # The tokenizer keeps the four files that every version of transformers reads.
    shutil.rmtree(args.export_to / "tokenizer")
    (args.export_to / "tokenizer").mkdir()
    for name, content in tokenizer_files.items():
        (args.export_to / "tokenizer" / name).write_bytes(content)
    _export_clip(clip, args.export_to)
    known = json.dumps(vocabulary(), indent=1)
    (args.export_to / "vocabulary.json").write_text(known + "\n")
    if progress := read_progress(args):
        write_progress(args.export_to, progress)
    print(f"exported to {args.export_to}")


def _export_clip(clip: CLIPModel, target: Path) -> None:
    """Write the text tower as the text encoder, and the rest of CLIP to `clip/`.

    Keys have the prefix `text_model.`, as in Stable Diffusion's own files: transformers 4 and 5
    both read that. The index of `clip/` points to the text encoder's file, so that the vocabulary's
    table is stored once.
    """
    weights = {k: v.half().contiguous() for k, v in clip.state_dict().items()}
    text = {k: v for k, v in weights.items() if k.startswith("text_model.")}
    rest = {k: v for k, v in weights.items() if k not in text}
    folder = target / "clip"
    clip.config.save_pretrained(folder)
    save_file(text, target / "text_encoder" / "model.safetensors", {"format": "pt"})
    save_file(rest, folder / "vision.safetensors", {"format": "pt"})
    files = {k: "vision.safetensors" if k in rest else TEXT_FILE for k in weights}
    size = sum(v.nbytes for v in weights.values())
    # The files are in half precision but used in single: transformers 5 would load what they say,
    # and the UNet, which diffusers loads in single, would get half-precision states.
    for config in (target / "text_encoder" / "config.json", folder / "config.json"):
        facts = json.loads(config.read_text())
        for section in (facts, facts.get("text_config", {}), facts.get("vision_config", {})):
            section.pop("torch_dtype", None)
            section["dtype"] = "float32"
        config.write_text(json.dumps(facts, indent=1) + "\n")
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
