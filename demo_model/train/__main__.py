"""Train the bundled model: pictures, VAE, CLIP, UNet and text tower, CLIP again, export.

    python -m demo_model.train                         # every stage that is not done, then export
    python -m demo_model.train --start-from demo_model # the same from the weights of an export
    python -m demo_model.train --stage unet --start-from demo_model --steps 47000
    python -m demo_model.train --stage export --start-from demo_model

Each stage resumes from its own checkpoint in `--work-dir`, on the CPU or a GPU, and can move
between them. Step k's batch, noise and timesteps are a function of (seed, k), so an interrupted run
ends with the same weights as an uninterrupted one. The learning rate is constant after its warm-up
and falls to zero over the last part. A finished run continues if you raise `--steps`.

An export alone is also enough to continue: its `training.json` holds step, seed and rate (`--rate`
overrides it), and a new warm-up replaces the optimizer's moments.

The stages:

vae      the autoencoder
clip     text and pictures, contrastively
unet     the UNet and the text tower, on pictures that are always new
decoder  the VAE's decoder alone, on latents with a little noise
judge    CLIP without its text tower, against the current text tower
export   demo_model/ from the work folder
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from demo_model.train.clip import train_clip, train_judge
from demo_model.train.export import export
from demo_model.train.loop import Stop
from demo_model.train.networks import MODEL
from demo_model.train.unet import train_unet
from demo_model.train.vae import train_decoder, train_vae

STAGES = {
    "vae": train_vae,
    "clip": train_clip,
    "unet": train_unet,
    "decoder": train_decoder,
    "judge": train_judge,
    "export": export,
}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--stage", choices=(*STAGES, "all"), default="all")
    add("--work-dir", type=Path, default=MODEL / "work")
    add("--steps", type=int, default=0, help="total steps of the chosen stage")
    add("--seed", type=int, default=0, help="seed of the UNet's pictures, batches and noise")
    add("--batch", type=int, default=32, help="batch size of the UNet, by which its window moves")
    add("--rate", type=float, help="peak learning rate of the UNet")
    add("--every", type=int, default=500, help="steps after which the UNet is tested and saved")
    add("--pictures", type=int, default=32_000, help="number of pictures for the VAE and CLIP")
    add("--window", type=int, default=4096, help="new pictures that a step of the UNet draws from")
    add("--workers", type=int, default=os.cpu_count(), help="processes that draw pictures")
    add("--start-from", type=Path, help="an exported model to start from")
    add("--export-to", type=Path, default=MODEL)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--bf16", action="store_true", help="bfloat16, as on a GPU; a sixth faster on a CPU with it"
    )
    args = parser.parse_args()
    if args.seed in (1, 2):
        parser.error(
            "--seed 1 draws the held-out pictures and 2 those of demo_model.evaluate; use another"
        )
    return args


def main() -> None:
    """Run the stages."""
    args = parse()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)  # denormals make CPU convolutions many times slower
    try:
        for name, stage in STAGES.items():
            if args.stage in (name, "all"):
                stage(args)
    except Stop as stop:
        raise SystemExit(str(stop)) from None


if __name__ == "__main__":
    main()
