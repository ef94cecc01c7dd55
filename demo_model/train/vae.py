"""The training of the autoencoder (arXiv 2112.10752), and of its decoder alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from demo_model import logo, world
from demo_model.train.growing import begin, channels_kept
from demo_model.train.loop import fit
from demo_model.train.networks import LATENTS, new_vae
from demo_model.train.pictures import load_pictures, shows_logo, to_tensor
from demo_model.train.store import load_part, store

NETWORK_BATCH = 64  # pictures at a time if no gradient is needed


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the differences of neighbours, along rows and along columns."""
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of images in [-1, 1], averaged over pictures."""
    error = ((a.clamp(-1, 1) - b).pow(2).mean((1, 2, 3)) / 4).clamp_min(1e-10)
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def vae_quality(vae: AutoencoderKL, pictures: np.ndarray, device: str) -> float:
    """Return the PSNR in dB of the reconstruction from the posterior's mean."""
    x = to_tensor(pictures, device)
    return psnr(vae.decode(vae.encode(x).latent_dist.mode()).sample.float(), x)


def train_vae(args: argparse.Namespace) -> None:
    """Train the VAE, starting from that of an export if there is one."""
    images, captions = load_pictures(args, "rich")
    # Thin lines of one colour between circles of another are the hardest thing in this world, and
    # the logo consists of them: half of every batch shows them.
    logos = shows_logo(captions).nonzero().flatten()
    vae = new_vae()
    begin(args.start_from, "vae", vae)
    vae.to(args.device, memory_format=torch.channels_last)
    # If the UNet continues, too, the latents that it knows must stay the same.
    before = args.start_from and AutoencoderKL.from_pretrained(args.start_from / "vae").float()
    steps = args.steps or 4000

    def loss_of(step: int, rng: torch.Generator):
        # Crops give four times as many pictures for the same work; the last tenth uses whole ones.
        whole = step > 0.9 * steps
        batch = 10 if whole else 24
        chosen = torch.randint(len(images), (batch // 2,), generator=rng)
        drawn = logos[torch.randint(len(logos), (batch // 2,), generator=rng)]
        x = to_tensor(images[torch.cat([chosen, drawn]).numpy()], args.device)
        if not whole:
            at = torch.randint(0, world.SIZE // 2 + 1, (batch, 2), generator=rng).tolist()
            half = world.SIZE // 2
            crops = [p[:, i : i + half, j : j + half] for p, (i, j) in zip(x, at, strict=True)]
            x = torch.stack(crops)
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng).to(x)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        loss, parts = picture_loss(y, x)
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        parts |= {"kl": kl.detach()}
        loss = loss + 1e-3 * kl
        if before:
            with torch.no_grad():
                old = before.to(args.device).encode(x).latent_dist.mode()
            kept = posterior.mean[:, channels_kept(old.shape[1], LATENTS)]
            moved = (kept - old).pow(2).mean()
            parts |= {"moved": moved.detach()}
            loss = loss + 0.05 * moved
        return loss, parts

    fit("vae", vae, loss_of, args, steps, {"": 1.5e-3}, vae_checks(args), falling=0.5)
    store(args.work_dir / "vae.safetensors", vae.state_dict())
    for stale in args.work_dir.glob("*.latents"):
        stale.unlink()


def picture_loss(y: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """Measure a reconstruction (B, 3, H, W) against its picture, counting outlines twice."""
    square = (y - x).pow(2).mean()
    outline = sum((a - b).abs().mean() for a, b in zip(_edges(y), _edges(x), strict=True))
    loss = (y - x).abs().mean() + 2 * square + 0.5 * outline
    return loss, {"mse": square.detach(), "edge": outline.detach()}


def vae_checks(args: argparse.Namespace) -> Callable[[AutoencoderKL], dict[str, float]]:
    """Return a function that measures a VAE on held-out pictures and on the logo."""
    held, _ = load_pictures(args, "held-rich")
    logos = np.stack([np.asarray(logo.picture(k)[0]) for k in range(len(logo.SCENES))])
    return lambda vae: {
        "psnr": vae_quality(vae, held[:128], args.device),
        "psnr_logo": vae_quality(vae, logos, args.device),
    }


def train_decoder(args: argparse.Namespace) -> None:
    """Train the decoder alone, on latents with a little noise, such as a UNet leaves.

    The encoder does not change, so the UNet's latents stay the same.
    """
    images, captions = load_pictures(args, "core")
    logos = shows_logo(captions).nonzero().flatten()
    vae = new_vae()
    vae.load_state_dict(load_part(args, "vae", "vae"))
    latents = encode_latents(args, "core", vae.to(args.device).eval())
    vae.to(args.device, memory_format=torch.channels_last).requires_grad_(False)
    vae.decoder.requires_grad_(True)
    spread = float(latents[:4096, :LATENTS].float().std())

    def loss_of(step: int, rng: torch.Generator):
        chosen = torch.randint(len(images), (6,), generator=rng)
        drawn = logos[torch.randint(len(logos), (6,), generator=rng)]
        chosen = torch.cat([chosen, drawn])
        x = to_tensor(images[chosen.numpy()], args.device)
        z = latents[chosen, :LATENTS].float()
        strength = 0.15 * spread * torch.rand(len(z), 1, 1, 1, generator=rng)
        z = (z + strength * torch.randn(z.shape, generator=rng)).to(args.device)
        return picture_loss(vae.decode(z).sample, x)

    rates = {"decoder": 1e-3}
    fit("decoder", vae, loss_of, args, args.steps or 1500, rates, vae_checks(args), falling=0.7)
    store(args.work_dir / "decoder.safetensors", vae.state_dict())


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray, device: str) -> torch.Tensor:
    """Return posterior means and stds of pictures, (N, 2 C, h, w) in half precision."""
    parts = []
    for k in range(0, len(images), NETWORK_BATCH):
        q = vae.encode(to_tensor(images[k : k + NETWORK_BATCH], device)).latent_dist
        parts.append(torch.cat([q.mean, q.std], 1).float().cpu())
    return torch.cat(parts).half().contiguous()


def encode_latents(args: argparse.Namespace, name: str, vae: AutoencoderKL) -> torch.Tensor:
    """Encode a picture set, as `encode` does, once."""
    path = args.work_dir / f"{name}.latents"
    if not path.exists():
        save_file({"latents": encode(vae, load_pictures(args, name)[0], args.device)}, path)
    return load_file(path)["latents"]
