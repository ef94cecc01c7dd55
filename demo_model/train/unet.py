"""The training of the UNet, which predicts v (arXiv 2202.00512), together with the text tower.

Every picture is new: samples come from a moving window of 4,096 pictures, each of which is sampled
four times on average.
"""

from __future__ import annotations

import argparse
import functools
import json

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from demo_model.train.growing import grow
from demo_model.train.loop import Stop, fit, lengthening
from demo_model.train.networks import (
    LATENT_SIZE,
    LATENTS,
    load_tokenizer,
    new_clip,
    new_scheduler,
    new_unet,
    new_vae,
)
from demo_model.train.pictures import (
    CAPTIONS_PER_PICTURE,
    CHUNK,
    FreshChunks,
    chunks_of,
    fresh_scenes,
)
from demo_model.train.store import (
    load_clip,
    load_part,
    load_scale,
    read_progress,
    store,
    write_progress,
)
from demo_model.train.tokens import all_ids, compact, spread_out, token_ids
from demo_model.train.vae import NETWORK_BATCH, encode, encode_latents

SAMPLES = 1_500_000
RATE = 8e-4
TEXT_RATE = 3 / 8  # of the UNet's
LOGO_SHARE = 2.5  # times as often as any other picture in the batches
NO_CAPTION = 0.1  # share of samples, for guidance
CHECKED = 256  # pictures of the held-out error


class TextToNoise(torch.nn.Module):
    """The UNet and its text tower, which train together."""

    def __init__(self, unet: UNet2DConditionModel, text: torch.nn.Module):
        super().__init__()
        self.unet, self.text = unet, text
        self.alphas = new_scheduler().alphas_cumprod

    def forward(self, noisy, t, tokens) -> torch.Tensor:
        """Predict v (B, C, h, w) from noisy latents, timesteps (B,) and token ids (B, 77)."""
        hidden = self.text(input_ids=tokens).last_hidden_state  # (B, 77, 128)
        return self.unet(noisy, t, hidden).sample.float()

    def error(self, x, noise, t, tokens) -> torch.Tensor:
        """Return the squared error of v per sample (B,); x and noise are (B, C, h, w)."""
        a = self.alphas.to(x)[t].view(-1, 1, 1, 1)
        noisy = (a.sqrt() * x + (1 - a).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        v = a.sqrt() * noise - (1 - a).sqrt() * x
        return (self(noisy, t, tokens) - v).pow(2).mean((1, 2, 3))


class Window:
    """The pictures that a step draws its samples from, as latents and token ids.

    They are a function of (seed, step): a run that continues elsewhere draws them again.
    """

    def __init__(self, args: argparse.Namespace, vae: AutoencoderKL, place: torch.Tensor):
        self.args, self.vae, self.place = args, vae, place
        self.tokenizer = load_tokenizer()
        self.chunks = FreshChunks(args.seed, args.workers)
        self.slots = args.window // CHUNK
        size = CHUNK * self.slots
        shape = (size, 2 * LATENTS, LATENT_SIZE, LATENT_SIZE)
        self.latents = torch.empty(shape, dtype=torch.float16)
        self.ids = torch.empty((size, CAPTIONS_PER_PICTURE, 77), dtype=torch.int32)
        self.share = torch.empty(size)
        self.held: list[int | None] = [None] * self.slots

    def move_to(self, step: int) -> None:
        """Draw this step's missing chunks, in place of old ones."""
        for chunk in chunks_of(step * self.args.batch, self.args.window):
            slot = chunk % self.slots
            if self.held[slot] == chunk:
                continue
            images, captions, logos = self.chunks.draw(chunk)
            rows = slice(slot * CHUNK, (slot + 1) * CHUNK)
            self.latents[rows] = encode(self.vae, images, self.args.device)
            ids = token_ids(self.tokenizer, [text for texts in captions for text in texts])
            ids = self.place[ids.long()]
            if (ids < 0).any():
                raise ValueError("a caption has a word that is not in the vocabulary's captions")
            self.ids[rows] = ids.view(CHUNK, CAPTIONS_PER_PICTURE, -1).int()
            self.share[rows] = torch.where(torch.tensor(logos), LOGO_SHARE, 1.0)
            self.held[slot] = chunk

    def sample(
        self, step: int, rng: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return posterior means and stds (B, C, h, w) and token ids (B, 77) of a step's batch."""
        self.move_to(step)
        # Logos are sampled more often, since they have the most details to get right.
        batch = self.args.batch
        chosen = torch.multinomial(self.share, batch, generator=rng)
        mean, std = self.latents[chosen].float().to(self.args.device).chunk(2, 1)
        which = torch.randint(CAPTIONS_PER_PICTURE, (batch,), generator=rng)
        return mean, std, self.ids[chosen, which].long()


def timesteps(batch: int, rng: torch.Generator) -> torch.Tensor:
    """Draw the timesteps of a batch (B,), one from each of B intervals of equal probability.

    That makes batches similar. Only at the noisier timesteps does the error depend on the kind of
    thing, so these are drawn more often: with a density of t to the 1/3.
    """
    even = (torch.arange(batch) + torch.rand(batch, generator=rng)) / batch
    return (even**0.75 * 1000).long().clamp_(max=999)


@functools.cache
def caption_words() -> list[str]:
    """Return the words in captions of new pictures, and the empty caption."""
    said = {""}
    for chunk in range(4_000 // CHUNK):  # from a separate seed; even a rare word is in dozens
        for _, captions in fresh_scenes(11, chunk):
            said.update(word for text in captions for word in text.split())
    return sorted(said)


def words(tokenizer) -> torch.Tensor:
    """Return the token ids of `caption_words`."""
    return torch.unique(token_ids(tokenizer, caption_words()))


class HeldOut:
    """The error on pictures of another seed, at fixed noise and timesteps."""

    def __init__(self, args, latents, ids, empty, scale: float):
        fixed = torch.Generator().manual_seed(1)
        self.noise = torch.randn((CHECKED, LATENTS, LATENT_SIZE, LATENT_SIZE), generator=fixed)
        self.t = torch.randint(0, 1000, (CHECKED,), generator=fixed)
        self.x = latents[:CHECKED, :LATENTS].float() * scale
        self.captions = {
            "val_right": ids[:CHECKED],
            "val_none": empty.expand(CHECKED, -1),
            "val_wrong": ids[:CHECKED].roll(1, 0),
        }
        self.device = args.device

    @torch.no_grad()
    def __call__(self, model: TextToNoise) -> dict[str, float]:
        """Return the error with the right caption, with none, and with another picture's."""
        result = {}
        for name, tokens in self.captions.items():
            parts = []
            for k in range(0, CHECKED, NETWORK_BATCH):
                rows = slice(k, k + NETWORK_BATCH)
                batch = (self.x[rows], self.noise[rows], self.t[rows], tokens[rows])
                parts.append(model.error(*(b.to(self.device) for b in batch)))
            result[name] = float(torch.cat(parts).mean())
        return result


def train_unet(args: argparse.Namespace) -> None:
    """Train the UNet and the text tower, starting from those of an export if there is one."""
    tokenizer = load_tokenizer()
    vae = new_vae()
    vae.load_state_dict(load_part(args, "vae", "vae"))
    vae.to(args.device).eval()
    clip = new_clip(tokenizer)
    clip.load_state_dict(load_clip(args, "clip"))
    text = clip.text_model
    held, held_ids = encode_latents(args, "held", vae), all_ids(args, tokenizer, "held")[:, 0]
    empty = token_ids(tokenizer, [""])[0]
    table = text.embeddings.token_embedding.weight.detach().clone()
    used, place = compact(text, torch.cat([words(tokenizer), held_ids.flatten()]))
    unet = new_unet()
    if args.start_from or (args.work_dir / "unet.safetensors").exists():
        grow(unet, load_part(args, "unet", "unet"), f"{args.start_from} has no UNet of this kind")
    model = TextToNoise(unet, text).to(args.device)
    model.unet.to(memory_format=torch.channels_last)
    progress = read_progress(args)
    args.seed = progress.get("seed", args.seed)
    rate = args.rate or progress.get("rate", RATE)
    steps, first = args.steps or SAMPLES // args.batch, progress.get("samples", 0) // args.batch
    if first >= steps:
        raise Stop(f"the UNet has been trained for {first} steps; ask for more with --steps")
    window = Window(args, vae, place)
    scale = load_scale(args)
    if scale is None:
        window.move_to(0)
        scale = 1 / float(window.latents[:, :LATENTS].float().std())
    (args.work_dir / "scaling_factor.json").write_text(json.dumps(scale))
    check = HeldOut(args, held, place[held_ids.long()], place[empty.long()], scale)
    empty = place[empty.long()]

    def loss_of(step: int, rng: torch.Generator):
        mean, std, tokens = window.sample(step, rng)
        x = (mean + std * torch.randn(mean.shape, generator=rng).to(mean)) * scale
        tokens[torch.rand(args.batch, generator=rng) < NO_CAPTION] = empty
        t = timesteps(args.batch, rng).to(args.device)
        noise = torch.randn(mean.shape, generator=rng).to(mean)
        # Unweighted: min-SNR would leave a hundredth of the weight to the noisiest third, which
        # decides the shapes in a 16 x 16 latent.
        return model.error(x, noise, t, tokens.to(args.device)).mean(), {}

    def write(model: TextToNoise, step: int) -> None:
        store(args.work_dir / "unet.safetensors", model.unet.state_dict())
        state = {f"text_model.{k}": v for k, v in model.text.state_dict().items()}
        store(args.work_dir / "text.safetensors", spread_out(state, table, used))
        samples = step * args.batch
        progress = {"step": step, "samples": samples, "seed": args.seed, "rate": rate}
        write_progress(args.work_dir, progress)

    rates = {"unet": rate, "text": TEXT_RATE * rate}
    saving = {"every": args.every, "on_save": write}
    averaging = {"ema": lengthening, "first": first}
    try:
        fit("unet", model, loss_of, args, steps, rates, check, **averaging, **saving)
    finally:
        window.chunks.close()
