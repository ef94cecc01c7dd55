"""Weights on disk: those of the work folder, or else of the export that a training starts from.

An export and its `training.json` (step, seed, rate) are all that another machine needs to continue.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from demo_model.train.growing import exported
from demo_model.train.loop import Stop

PROGRESS = "training.json"


def store(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write weights to a file."""
    save_file({k: v.detach().contiguous().cpu() for k, v in weights.items()}, path)


def load_part(args: argparse.Namespace, part: str, *names: str) -> dict[str, torch.Tensor]:
    """Load the weights of a part of the model.

    Args:
        part: Folder of an export: "vae", "clip" or "unet".
        names: Files of the work folder, the latest stage first; the export comes after them.

    Raises:
        Stop: There are none yet.
    """
    files = [args.work_dir / f"{name}.safetensors" for name in names]
    for file in files:
        if file.exists():
            return load_file(file)
    if args.start_from is None:
        raise Stop(f"{files[-1]} is missing; run its stage, or name an export with --start-from")
    return exported(args.start_from, part)


def load_clip(args: argparse.Namespace, *names: str) -> dict[str, torch.Tensor]:
    """Load CLIP as `load_part` does, with the text tower that was trained with the UNet."""
    text = args.work_dir / "text.safetensors"
    return load_part(args, "clip", *names) | (load_file(text) if text.exists() else {})


def load_scale(args: argparse.Namespace) -> float | None:
    """Return the latents' scaling factor, if the VAE is the start's own or was measured."""
    path = args.work_dir / "scaling_factor.json"
    if path.exists():
        return json.loads(path.read_text())
    if args.start_from is None or (args.work_dir / "vae.safetensors").exists():
        return None
    config = json.loads((args.start_from / "vae" / "config.json").read_text())
    return config["scaling_factor"]


def read_progress(args: argparse.Namespace) -> dict:
    """Read the progress of the UNet's training: step, seed and rate; empty if none began."""
    for folder in (args.work_dir, args.start_from):
        if folder is not None and (folder / PROGRESS).exists():
            return json.loads((folder / PROGRESS).read_text())
    return {}


def write_progress(folder: Path, progress: dict) -> None:
    """Write the progress for `read_progress`."""
    (folder / PROGRESS).write_text(json.dumps(progress, indent=1) + "\n")
