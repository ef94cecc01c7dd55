"""Train the bundled model from nothing: pictures, VAE, CLIP, UNet, export.

    python -m demo_model.train                         # every stage that is not done, then export
    python -m demo_model.train --stage unet --steps 20000
    python -m demo_model.train --stage export          # write demo_model/ from the work folder

Each stage resumes from its own checkpoint in `--work-dir`, on the CPU or a GPU, and can be moved
between them. Step k's batch, noise and timesteps are a function of (seed, k), so an interrupted run
ends where an uninterrupted one does. The learning rate is constant after its warm-up and falls to
zero over the last quarter: raising `--steps` later continues a run whose decay was not the end.

The stages are those of the real model (arXiv 2112.10752): an autoencoder that everything else looks
through; a CLIP (arXiv 2103.00020) whose text tower is then frozen; a UNet that predicts v
(arXiv 2202.00512) from cached latents.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from demo_model import logo, world
from demo_model.media import COLORS

HERE = Path(__file__).parent
SEED = 0
CAPTIONS_PER_PICTURE = 4
HELD_OUT = 512  # pictures of another seed, for validation
TEXT_FILE = "../text_encoder/model.safetensors"  # as seen from clip/
NETWORK_BATCH = 64  # pictures at a time where no gradient is needed


# ---- the networks ------------------------------------------------------------------------------


def new_vae() -> AutoencoderKL:
    """Downsampling by 4: thin two-coloured lines of a 64-pixel picture survive; by 8 they melt."""
    channels = (24, 48, 64)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=world.SIZE,
    )


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 77,
            "projection_dim": 128,
            **ends,
        },
        vision_config={
            "image_size": world.SIZE,
            "patch_size": 8,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "projection_dim": 128,
        },
        projection_dim=128,
        **ends,
    )
    return CLIPModel(config)


def new_unet() -> UNet2DConditionModel:
    """The width where it is cheap: one thin level at 16 x 16, attention at 8 x 8 and 4 x 4."""
    return UNet2DConditionModel(
        sample_size=world.SIZE // 4,
        block_out_channels=(48, 96, 192),
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> EulerAncestralDiscreteScheduler:
    """Stable Diffusion's betas and offsets, with v as the prediction.

    The sampler draws new noise at every step, which lets a small model mend its shapes on the way.
    """
    options = DDIMScheduler(  # its configuration serves every other sampler too
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="v_prediction",
    )
    return EulerAncestralDiscreteScheduler.from_config(options.config)


# ---- the loop that every stage shares ------------------------------------------------------------


class Stop(Exception):
    """SIGTERM or SIGINT arrived; the stage has saved."""


def fit(
    name: str,
    model: torch.nn.Module,
    loss_of: Callable[[int, torch.Generator], tuple[torch.Tensor, dict[str, float]]],
    args: argparse.Namespace,
    steps: int,
    lr: float,
    validate: Callable[[torch.nn.Module], dict[str, float]],
    every: int = 500,
    ema_decay: float = 0.999,
) -> None:
    """Train `model` in place for `steps` steps and leave the EMA of its weights in it.

    `loss_of(step, rng)` returns the loss of one batch and what to log. State (weights, their EMA,
    the optimizer's moments, the step) is written to `<work>/<name>.pt` every `every` steps and on
    SIGTERM, and read back from there.
    """
    path = args.work_dir / f"{name}.pt"
    log = args.work_dir / f"{name}.log"
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.98),
    )
    average = copy.deepcopy(model).eval()
    first = 0
    if path.exists():
        state = torch.load(path, map_location=args.device, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    def save(step: int) -> None:
        state = {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
        }
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: asked.append(n))
    began, seen = time.time(), {}
    model.train()
    for step in range(first, steps):
        left = (steps - step) / steps
        rate = lr * min(1.0, (step + 1) / 100) * min(1.0, left / 0.25)
        for group in optimizer.param_groups:
            group["lr"] = rate
        rng = torch.Generator().manual_seed(
            int(np.random.SeedSequence((SEED, step)).generate_state(1)[0])
        )
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            loss, parts = loss_of(step, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decay + plain, 1.0)
        optimizer.step()
        with torch.no_grad():
            weight = 1 - min(ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)
        for key, value in {"loss": loss.detach(), **parts}.items():
            seen.setdefault(key, []).append(value)
        done = step + 1
        if done % 100 == 0:
            means = {k: round(float(torch.tensor(v).mean()), 5) for k, v in seen.items()}
            pace = (time.time() - began) / (done - first)
            line = {"stage": name, "step": done, "s_per_step": round(pace, 3), **means}
            seen = {}
            if done % every == 0:
                line |= {k: round(v, 5) for k, v in validate(average).items()}
            print(json.dumps(line), flush=True)
            with log.open("a") as f:
                f.write(json.dumps(line) + "\n")
        if done % every == 0 or done == steps or asked:
            save(done)
        if asked:
            raise Stop(f"{name} stopped by a signal after step {done} of {steps}; state saved")
    model.load_state_dict(average.state_dict())
    model.eval()


def finish(path: Path, model: torch.nn.Module) -> None:
    save_file({k: v.contiguous().cpu() for k, v in model.state_dict().items()}, path)


# ---- stage 0: pictures -----------------------------------------------------------------------


def _draw(job: tuple[str, int, int, int]) -> tuple[np.ndarray, list[str]]:
    kind, seed, start, stop = job
    images, captions = [], []
    for index in range(start, stop):
        image, text, scene = world.picture(seed, index, kind)
        images.append(np.asarray(image))
        others = np.random.default_rng((seed, index, 7))
        captions += [text] + [world.caption(scene, others) for _ in range(CAPTIONS_PER_PICTURE - 1)]
    return np.stack(images), captions


def draw_pictures(args: argparse.Namespace, name: str, kind: str, seed: int, count: int) -> None:
    """Draw `count` pictures of world `kind` to `<work>/<name>.npy` (N, 64, 64, 3) and `.json`."""
    if (args.work_dir / f"{name}.json").exists():
        return
    began = time.time()
    jobs = [(kind, seed, k, min(k + 500, count)) for k in range(0, count, 500)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        drawn = pool.map(_draw, jobs, chunksize=1)
    np.save(args.work_dir / f"{name}.npy", np.concatenate([images for images, _ in drawn]))
    captions = [text for _, texts in drawn for text in texts]
    (args.work_dir / f"{name}.json").write_text(json.dumps(captions))
    print(f"{count} pictures of the {kind} world in {time.time() - began:.0f} s", flush=True)


def load_pictures(args: argparse.Namespace, name: str) -> tuple[np.ndarray, list[str]]:
    images = np.load(args.work_dir / f"{name}.npy", mmap_mode="r")
    return images, json.loads((args.work_dir / f"{name}.json").read_text())


def shows_graph(captions: list[str]) -> torch.Tensor:
    """Which pictures (N,) show circles joined by lines, by their `load_pictures` captions."""
    return torch.tensor(["circles" in text for text in captions[::CAPTIONS_PER_PICTURE]])


def to_tensor(images: np.ndarray, device: str) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.array(images)).to(device)  # a copy: the file is mapped read-only
    return pixels.permute(0, 3, 1, 2) / 127.5 - 1


# ---- stage 1: the autoencoder ------------------------------------------------------------------


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], averaged over pictures."""
    error = ((a.clamp(-1, 1) - b).pow(2).mean((1, 2, 3)) / 4).clamp_min(1e-10)
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def vae_quality(vae: AutoencoderKL, pictures: np.ndarray, device: str) -> float:
    """PSNR in dB of the reconstruction from the posterior's mean."""
    x = to_tensor(pictures, device)
    return psnr(vae.decode(vae.encode(x).latent_dist.mode()).sample.float(), x)


def train_vae(args: argparse.Namespace) -> None:
    images, _ = load_pictures(args, "rich")
    # Thin lines of one colour between circles of another are the hardest thing in this world and
    # what the logo is made of: half of every batch shows them.
    core, captions = load_pictures(args, "core")
    graphs = shows_graph(captions).nonzero().flatten()
    held, _ = load_pictures(args, "held-rich")
    logos = np.stack([logo.picture(k)[0] for k in range(len(logo.SCENES))])
    vae = new_vae().to(args.device, memory_format=torch.channels_last)
    steps = args.steps or 6300

    def loss_of(step: int, rng: torch.Generator):
        # Crops are four times as many for the same work; the last tenth sees whole pictures.
        whole = step > 0.9 * steps
        batch = 10 if whole else 24
        chosen = torch.randint(len(images), (batch // 2,), generator=rng).numpy()
        drawn = graphs[torch.randint(len(graphs), (batch // 2,), generator=rng)].numpy()
        x = to_tensor(np.concatenate([images[chosen], core[drawn]]), args.device)
        if not whole:
            at = torch.randint(0, world.SIZE // 2 + 1, (batch, 2), generator=rng).tolist()
            half = world.SIZE // 2
            crops = [p[:, i : i + half, j : j + half] for p, (i, j) in zip(x, at, strict=True)]
            x = torch.stack(crops)
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng).to(x)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        absolute = (y - x).abs().mean()
        square = (y - x).pow(2).mean()
        outline = sum((a - b).abs().mean() for a, b in zip(edges(y), edges(x), strict=True))
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = absolute + 2 * square + 0.5 * outline + 1e-3 * kl
        return loss, {"mse": square.detach(), "edge": outline.detach(), "kl": kl.detach()}

    def validate(model) -> dict[str, float]:
        return {
            "psnr": vae_quality(model, held[:128], args.device),
            "psnr_logo": vae_quality(model, logos, args.device),
        }

    fit("vae", vae, loss_of, args, steps=steps, lr=2e-3, validate=validate)
    finish(args.work_dir / "vae.safetensors", vae)
    for stale in args.work_dir.glob("*.latents"):
        stale.unlink()


@torch.no_grad()
def encode_latents(args: argparse.Namespace, vae: AutoencoderKL, name: str) -> torch.Tensor:
    """Posterior means and stds of a picture set, (N, 8, 16, 16) in half precision, cached."""
    path = args.work_dir / f"{name}.latents"
    if not path.exists():
        images, _ = load_pictures(args, name)
        latents = torch.empty(
            (len(images), 8, world.SIZE // 4, world.SIZE // 4), dtype=torch.float16
        )
        for k in range(0, len(images), NETWORK_BATCH):
            q = vae.encode(to_tensor(images[k : k + NETWORK_BATCH], args.device)).latent_dist
            latents[k : k + NETWORK_BATCH] = torch.cat([q.mean, q.std], 1).half().cpu()
        save_file({"latents": latents}, path)
    return load_file(path)["latents"]


# ---- stage 2: CLIP -----------------------------------------------------------------------------


def load_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(HERE / "tokenizer")


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """(N, 77) int32; the largest id, 49407, does not fit 16 signed bits."""
    encoded = tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids.int()


def one_token_words(tokenizer: CLIPTokenizer, words: Iterable[str]) -> set[int]:
    """The ids of those words that are one token each."""
    ids = (tokenizer(word, add_special_tokens=False).input_ids for word in words)
    return {found[0] for found in ids if len(found) == 1}


def altered(tokens: list[int], choices: set[int], rng: np.random.Generator) -> list[int]:
    """A caption that is wrong in one kind of word, equally long.

    Words of `choices` (ids) that the caption holds change places if there are two or more, every
    other time; else one of them becomes another. Without any, the caption comes back as it was.
    """
    present = sorted(choices.intersection(tokens))
    if not present:
        return tokens
    if len(present) > 1 and rng.uniform() < 0.5:
        change = dict(zip(present, present[1:] + present[:1], strict=True))
    else:
        change = {rng.choice(present): int(rng.choice(sorted(choices.difference(present))))}
    return [change.get(token, token) for token in tokens]


def train_clip(args: argparse.Namespace) -> None:
    images, captions = load_pictures(args, "core")
    held, held_captions = load_pictures(args, "held")
    tokenizer = load_tokenizer()
    ids = token_ids(tokenizer, captions).view(len(images), CAPTIONS_PER_PICTURE, 77)
    held_ids = token_ids(tokenizer, held_captions[::CAPTIONS_PER_PICTURE])
    clip = new_clip(tokenizer).to(args.device)
    # Colours, medium and ground together tell almost any two pictures of a batch apart, so that a
    # plain contrast never teaches what a fish is. Each picture therefore also has captions to
    # reject that differ from its own in the object, or in a colour (arXiv 2210.01936).
    objects = one_token_words(tokenizer, ("graph", *world.KINDS))
    colors = one_token_words(tokenizer, COLORS)
    wrong = (objects, objects, colors)

    def encode_text(model, tokens: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, D) of captions (B, 77)."""
        # The tower is causal and pools at the first end token: cutting the padding changes nothing.
        longest = int((tokens != tokenizer.eos_token_id).sum(1).max()) + 1
        pooled = model.text_model(input_ids=tokens[:, :longest].long().to(args.device))
        return F.normalize(model.text_projection(pooled.pooler_output), dim=-1)

    def contrast(model, pictures, tokens, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and which pictures (B,) have their own caption nearest of all."""
        rng = np.random.default_rng(seed)
        lies = torch.tensor([[altered(row, w, rng) for w in wrong] for row in tokens.tolist()])
        pooled = model.vision_model(pixel_values=to_tensor(pictures, args.device)).pooler_output
        seen = F.normalize(model.visual_projection(pooled), dim=-1)
        told = encode_text(model, torch.cat([tokens, lies.flatten(0, 1)]))
        scale = model.logit_scale.exp()
        own, false = told[: len(seen)], told[len(seen) :].view(len(seen), len(wrong), -1)
        logits = scale * seen @ own.T  # (B, B)
        against = scale * torch.einsum("bd,bkd->bk", seen, false)
        unchanged = (lies == tokens[:, None]).all(-1).to(against.device)
        against = against.masked_fill(unchanged, -torch.inf)
        same = torch.arange(len(seen), device=logits.device)
        captions_of = torch.cat([logits, against], 1)
        loss = (F.cross_entropy(captions_of, same) + F.cross_entropy(logits.T, same)) / 2
        return loss, captions_of.argmax(1) == same

    def loss_of(step: int, rng: torch.Generator):
        batch = 96
        chosen = torch.randint(len(images), (batch,), generator=rng)
        which = torch.randint(CAPTIONS_PER_PICTURE, (batch,), generator=rng)
        seed = int(torch.randint(2**31, (), generator=rng))
        loss, right = contrast(clip, images[chosen.numpy()], ids[chosen, which], seed)
        with torch.no_grad():
            clip.logit_scale.clamp_(max=4.2)  # a temperature of 1/66, as CLIP's own cap of 1/100
        return loss, {"right": right.float().mean()}

    @torch.no_grad()
    def validate(model) -> dict[str, float]:
        loss, right = contrast(model, held[:256], held_ids[:256], 0)
        return {"val_loss": float(loss), "right_of_256": float(right.float().mean())}

    fit("clip", clip, loss_of, args, args.steps or 3200, 1e-3, validate, every=100, ema_decay=0.98)
    finish(args.work_dir / "clip.safetensors", clip)


# ---- stage 3: the UNet -------------------------------------------------------------------------


def train_unet(args: argparse.Namespace) -> None:
    vae = new_vae().to(args.device).eval()
    vae.load_state_dict(load_file(args.work_dir / "vae.safetensors"))
    latents, held = (encode_latents(args, vae, name) for name in ("core", "held"))
    scale = 1 / float(latents[:4096, :4].float().std())
    (args.work_dir / "scaling_factor.json").write_text(json.dumps(scale))
    tokenizer = load_tokenizer()
    text = new_clip(tokenizer).text_model.to(args.device).eval()
    weights = load_file(args.work_dir / "clip.safetensors")
    text.load_state_dict(
        {
            k.removeprefix("text_model."): v
            for k, v in weights.items()
            if k.startswith("text_model.")
        }
    )
    captions = load_pictures(args, "core")[1]
    ids = token_ids(tokenizer, captions).view(-1, CAPTIONS_PER_PICTURE, 77)
    # Circles joined by lines are three pictures in ten and learned early; nineteen kinds of thing
    # share the rest. Half of the graphs' share goes to the things.
    share = torch.where(shows_graph(captions), 0.5, 1.0)
    held_ids = token_ids(tokenizer, load_pictures(args, "held")[1])[::CAPTIONS_PER_PICTURE]
    empty = token_ids(tokenizer, [""])[0]
    unet = new_unet().to(args.device, memory_format=torch.channels_last)
    alphas = new_scheduler().alphas_cumprod.to(args.device)
    batch = 32

    @torch.no_grad()
    def states(tokens: torch.Tensor) -> torch.Tensor:
        return text(input_ids=tokens.long().to(args.device)).last_hidden_state  # (B, 77, 128)

    def error(model, x, noise, t, hidden) -> torch.Tensor:
        """Squared error of v per sample (B,); x and noise (B, 4, 16, 16)."""
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = (a.sqrt() * x + (1 - a).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        v = a.sqrt() * noise - (1 - a).sqrt() * x
        return (model(noisy, t, hidden).sample.float() - v).pow(2).mean((1, 2, 3))

    def loss_of(step: int, rng: torch.Generator):
        chosen = torch.multinomial(share, batch, generator=rng)
        mean, std = latents[chosen].float().to(args.device).chunk(2, 1)
        x = (mean + std * torch.randn(mean.shape, generator=rng).to(mean)) * scale
        which = torch.randint(CAPTIONS_PER_PICTURE, (batch,), generator=rng)
        tokens = ids[chosen, which].clone()
        tokens[torch.rand(batch, generator=rng) < 0.1] = empty
        # One timestep from each of `batch` intervals of equal probability: low variance between
        # batches. What a thing is decides the error of the noisier timesteps alone (`dev/LOG.md`),
        # so they are drawn more often: with a density of t to the 2/3, a tenth lie below 250.
        even = (torch.arange(batch) + torch.rand(batch, generator=rng)) / batch
        t = (even**0.6 * 1000).long().clamp_(max=999).to(args.device)
        noise = torch.randn(mean.shape, generator=rng).to(mean)
        # Unweighted: min-SNR would leave a hundredth of the weight to the noisiest third, where the
        # shape of a 16 x 16 latent is decided.
        return error(unet, x, noise, t, states(tokens)).mean(), {}

    fixed = torch.Generator().manual_seed(1)
    held_noise = torch.randn((256, 4, world.SIZE // 4, world.SIZE // 4), generator=fixed)
    held_t = torch.randint(0, 1000, (256,), generator=fixed)

    @torch.no_grad()
    def validate(model) -> dict[str, float]:
        captions = {
            "val_right": held_ids[:256],
            "val_none": empty.expand(256, -1),
            "val_wrong": held_ids[:256].roll(1, 0),
        }
        result = {}
        for name, tokens in captions.items():
            parts = []
            for k in range(0, 256, NETWORK_BATCH):
                s = slice(k, k + NETWORK_BATCH)
                x = held[s, :4].float().to(args.device) * scale
                t, noise = held_t[s].to(args.device), held_noise[s].to(args.device)
                parts.append(error(model, x, noise, t, states(tokens[s])))
            result[name] = float(torch.cat(parts).mean())
        finish(args.work_dir / "unet.safetensors", model)  # so that a look is possible at any time
        return result

    fit("unet", unet, loss_of, args, args.steps or 22_000, 1e-3, validate)
    finish(args.work_dir / "unet.safetensors", unet)


# ---- export ------------------------------------------------------------------------------------


def export(args: argparse.Namespace) -> None:
    """Write `demo_model/` in the diffusers format, half precision, from the work folder.

    Keys carry the prefix `text_model.`, as Stable Diffusion's own files do: transformers 4 and 5
    both read that. `clip/` holds the vision tower and the projections; its index points at the text
    tower's file in `text_encoder/`, so that the vocabulary's table is stored once.
    """
    tokenizer = load_tokenizer()
    clip = new_clip(tokenizer)
    clip.load_state_dict(load_file(args.work_dir / "clip.safetensors"))
    vae, unet = new_vae(), new_unet()
    vae.load_state_dict(load_file(args.work_dir / "vae.safetensors"))
    unet.load_state_dict(load_file(args.work_dir / "unet.safetensors"))
    scale = json.loads((args.work_dir / "scaling_factor.json").read_text())
    vocabulary = {p.name: p.read_bytes() for p in (HERE / "tokenizer").iterdir()}
    vae.register_to_config(scaling_factor=round(scale, 5))
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
    # The tokenizer stays the four files that every version of transformers reads.
    shutil.rmtree(args.export_to / "tokenizer")
    (args.export_to / "tokenizer").mkdir()
    for name, content in vocabulary.items():
        (args.export_to / "tokenizer" / name).write_bytes(content)
    weights = {k: v.half().contiguous() for k, v in clip.state_dict().items()}
    text = {k: v for k, v in weights.items() if k.startswith("text_model.")}
    rest = {k: v for k, v in weights.items() if k not in text}
    folder = args.export_to / "clip"
    clip.config.save_pretrained(folder)
    save_file(text, args.export_to / "text_encoder" / "model.safetensors", {"format": "pt"})
    save_file(rest, folder / "vision.safetensors", {"format": "pt"})
    files = {k: "vision.safetensors" if k in rest else TEXT_FILE for k in weights}
    size = sum(v.nbytes for v in weights.values())
    # Files in half precision, use in single: transformers 5 would take the files' word for it, and
    # the UNet, which diffusers loads in single, would get half-precision states.
    for config in (args.export_to / "text_encoder" / "config.json", folder / "config.json"):
        facts = json.loads(config.read_text())
        for section in (facts, facts.get("text_config", {}), facts.get("vision_config", {})):
            section.pop("torch_dtype", None)
            section["dtype"] = "float32"
        config.write_text(json.dumps(facts, indent=1) + "\n")
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    print(f"exported to {args.export_to}")


STAGES = {"vae": train_vae, "clip": train_clip, "unet": train_unet, "export": export}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("pictures", *STAGES, "all"), default="all")
    parser.add_argument("--work-dir", type=Path, default=HERE / "work")
    parser.add_argument("--steps", type=int, default=0, help="total steps of the chosen stage")
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--export-to", type=Path, default=HERE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.set_flush_denormal(True)  # denormals slow CPU convolutions down many times
    if args.stage != "export":
        draw_pictures(args, "held-rich", "rich", 1, HELD_OUT)
        draw_pictures(args, "rich", "rich", 0, args.pictures // 3)
        draw_pictures(args, "held", "core", 1, HELD_OUT)
        draw_pictures(args, "core", "core", 0, args.pictures)
    try:
        for name, stage in STAGES.items():
            if args.stage in (name, "all"):
                stage(args)
    except Stop as stop:
        raise SystemExit(str(stop)) from None


if __name__ == "__main__":
    main()
