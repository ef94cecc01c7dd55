"""Samples per second of fine-tuning, beside a textbook loop, in one run.

    python -m benchmarks.finetune [--model demo_model] [--batch 8] [--steps 20]

The textbook loop is the one of most tutorials: the VAE encodes every image in every step, and the
optimizer holds the whole token table, of which all rows but the new ones are put back afterwards.
Both get the same model, images, batch size, precision and device; they take turns, and the best of
three rounds counts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F

from detsd import cluster
from detsd.config import parse_config
from detsd.data import read_images, to_tensor
from detsd.loss import prediction_target
from detsd.models import load_base_model
from detsd.trainer import Trainer


def textbook(config, device: torch.device):
    """A function that makes one step of the textbook loop."""
    model = load_base_model(config.model, device)
    side = model.vocabulary.sides[0]
    tokenizer, text = side.tokenizer, side.encoder
    text.set_input_embeddings(side.embedding.base)  # as it comes
    phrase = tokenizer(config.concepts.initializer_strs[0], add_special_tokens=False).input_ids
    words = [f"<word{k}>" for k in range(len(phrase))]
    first = len(tokenizer)
    tokenizer.add_tokens(words)
    text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = text.get_input_embeddings().weight
    with torch.no_grad():
        table[first:] = table[phrase]
    table.requires_grad_(True)
    frozen = table.detach()[:first].clone()
    optimizer = torch.optim.Adam([table], config.training.learning_rate)
    size = config.concepts.img_size or model.image_size
    folder = Path(config.concepts.img_dirs[0])
    images = [to_tensor(i) for _, i, _ in read_images(folder, config.concepts, size, "img_dirs")]
    batch, rng = config.training.train_batch_size, torch.Generator().manual_seed(0)

    def step() -> None:
        chosen = torch.randint(len(images), (batch,), generator=rng).tolist()
        pixels = torch.stack([images[k] for k in chosen]).to(device, model.dtype)
        with torch.no_grad():
            x = model.vae.encode(pixels).latent_dist.sample() * model.vae.config.scaling_factor
        noise = torch.randn_like(x)
        t = torch.randint(0, model.scheduler.config.num_train_timesteps, (batch,), device=device)
        ids = tokenizer(
            [f"a photo of a {' '.join(words)}"] * batch, padding="max_length", return_tensors="pt"
        ).input_ids.to(device)
        hidden = text(ids).last_hidden_state
        said = model.unet(model.scheduler.add_noise(x, noise, t), t, hidden).sample
        target = prediction_target(model.scheduler, x, noise, t)
        F.mse_loss(said.float(), target.float()).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            table[:first] = frozen

    return step


def timed(step, count: int, device: torch.device) -> float:
    """Seconds of `count` steps."""
    began = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo_model")
    parser.add_argument("--images", default="det_logos")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    config = parse_config(
        {
            "model": {"pretrained_model_name_or_path": args.model},
            "concepts": {
                "concept_strs": ["word-word"],
                "initializer_strs": ["brain logo, sharp lines"],
                "img_dirs": [args.images],
            },
            "training": {"train_batch_size": args.batch, "learning_rate": 1e-3},
        },
        "benchmark",
    )
    with TemporaryDirectory() as folder, cluster.open_run(Path(folder), accelerate=True) as run:
        device = run.ranks.device
        trainer = Trainer(config, run)

        def ours() -> None:
            trainer._step()
            trainer.samples_seen += trainer.samples_per_step

        loops = {"textbook loop": textbook(config, device), "detsd": ours}
        best = dict.fromkeys(loops, float("inf"))
        for step in loops.values():
            timed(step, 3, device)
        for _ in range(3):
            for name, step in loops.items():
                best[name] = min(best[name], timed(step, args.steps, device))
    print(f"{args.model}, batch {args.batch}, {device}, {trainer.model.dtype}")
    for name, seconds in best.items():
        print(f"{name:>14}: {args.batch * args.steps / seconds:8.1f} samples/s")
    print(f"{'ratio':>14}: {best['textbook loop'] / best['detsd']:8.2f}")


if __name__ == "__main__":
    main()
