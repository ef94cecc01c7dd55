"""Train the bundled model: pictures, VAE, CLIP, UNet and text tower, CLIP again, export.

    python -m demo_model.train                         # every stage that is not done, then export
    python -m demo_model.train --start-from demo_model # the same from the weights of an export
    python -m demo_model.train --stage unet --steps 20000
    python -m demo_model.train --stage export          # write demo_model/ from the work folder

Each stage resumes from its own checkpoint in `--work-dir`, on the CPU or a GPU, and can be moved
between them. Step k's batch, noise and timesteps are a function of (seed, k), so an interrupted run
ends where an uninterrupted one does. The learning rate is constant after its warm-up and falls to
zero over the last part: raising `--steps` later continues a run whose decay was not the end.

The stages:

vae      an autoencoder that everything else looks through (arXiv 2112.10752)
clip     text and pictures by contrast (arXiv 2103.00020), with captions to reject that are wrong in
         a colour, a shape, a number or a place (arXiv 2210.01936)
unet     a UNet that predicts v (arXiv 2202.00512) from cached latents, and the text tower with it
decoder  the decoder alone, on latents with a little noise, which is how a UNet leaves them
judge    CLIP's other half alone, against the text tower as it is now
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
from collections.abc import Callable
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
from demo_model.captions import caption, lies, vocabulary

HERE = Path(__file__).parent
SEED = 0
CAPTIONS_PER_PICTURE = 4
HELD_OUT = 512  # pictures of another seed, for validation
TEXT_FILE = "../text_encoder/model.safetensors"  # as seen from clip/
LOGO_SHARE = 2.5  # of a logo in the UNet's batches, beside any other picture
LATENTS = 8  # channels; with the 4 of Stable Diffusion a thin line between circles is lost
GROUPS = 8  # of channels, in the norms of the VAE
NETWORK_BATCH = 64  # pictures at a time where no gradient is needed


# ---- the networks ------------------------------------------------------------------------------


def new_vae() -> AutoencoderKL:
    """Downsampling by 4: thin two-coloured lines of a 64-pixel picture survive; by 8 they melt."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 128),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=GROUPS,
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
        in_channels=LATENTS,
        out_channels=LATENTS,
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
    """The stage cannot go on: SIGTERM or SIGINT arrived, and it has saved; or a wrong start."""


def fit(
    name: str,
    model: torch.nn.Module,
    loss_of: Callable[[int, torch.Generator], tuple[torch.Tensor, dict[str, float]]],
    args: argparse.Namespace,
    steps: int,
    rates: dict[str, float],
    validate: Callable[[torch.nn.Module], dict[str, float]],
    every: int = 500,
    ema_decay: float = 0.999,
    falling: float = 0.25,
) -> None:
    """Train `model` in place for `steps` steps and leave the EMA of its weights in it.

    `rates` holds the peak learning rate of the parameters whose name begins with its key, with a
    clipping of the gradient's norm for each; the rate falls over the last `falling` of the steps.
    `loss_of(step, rng)` returns the loss of one batch and what to log. State (weights, their EMA,
    the optimizer's moments, the step) is written to `<work>/<name>.pt` every `every` steps and on
    SIGTERM, and read back from there.
    """
    path = args.work_dir / f"{name}.pt"
    log = args.work_dir / f"{name}.log"
    groups, members = [], []
    for prefix, rate in rates.items():
        mine = {k: p for k, p in model.named_parameters() if k.startswith(prefix)}
        mine = {k: p for k, p in mine.items() if p.requires_grad}
        members.append(list(mine.values()))
        matrices = [p for k, p in mine.items() if p.ndim > 1 and "token_embedding" not in k]
        others = [p for k, p in mine.items() if p.ndim <= 1 or "token_embedding" in k]
        groups.append({"params": matrices, "weight_decay": 0.01, "peak": rate})
        groups.append({"params": others, "weight_decay": 0.0, "peak": rate})
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98))
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
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, (step + 1) / 100) * min(1.0, left / falling)
        rng = torch.Generator().manual_seed(
            int(np.random.SeedSequence((SEED, step)).generate_state(1)[0])
        )
        with torch.autocast(
            args.device, torch.bfloat16, enabled=args.bf16 or args.device == "cuda"
        ):
            loss, parts = loss_of(step, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for parameters in members:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
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


def begin(args: argparse.Namespace, part: str, model: torch.nn.Module) -> None:
    """Give a new model the weights of `--start-from`, if there are any of that part.

    A model that is wider than that one, or deeper, begins as the same function of its input, as
    nearly as its norms allow (after arXiv 1511.05641): each group of channels keeps the old ones
    first, what reads the new ones begins at zero, and so does the way out of a new layer.
    """
    if args.start_from is None:
        return
    files = sorted((args.start_from / part).glob("*.safetensors"))
    weights = {k: v.float() for file in files for k, v in load_file(file).items()}
    if part == "clip":  # whose text tower is stored once, as the text encoder
        weights |= load_file(args.start_from / "text_encoder" / "model.safetensors")
    state = model.state_dict()
    if unknown := sorted(weights.keys() - state.keys()):
        raise Stop(f"{args.start_from}: no {part} of this kind, since it holds {unknown[0]}")
    for name, new in state.items():
        old = weights.get(name)
        if old is None:
            new.mul_(0 if ".to_out." in name or ".conv2." in name else 1)
        elif old.shape == new.shape:
            new.copy_(old)
        else:
            places = [_places(*sizes) for sizes in zip(old.shape, new.shape, strict=True)]
            if new.ndim > 1:  # nothing listens to the new channels yet
                new[places[0]] = 0
            new[np.ix_(*places)] = old


def _places(old: int, new: int) -> np.ndarray:
    """Where the channels of a narrower layer are in a wider one: first in each of its groups.

    Of latents each is a group, and their means stay apart from their variances.
    """
    if old == new:
        return np.arange(old)
    groups = min(GROUPS, old)
    return np.arange(new).reshape(groups, -1)[:, : old // groups].ravel()


def store(path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file({k: v.contiguous().cpu() for k, v in weights.items()}, path)


def finish(path: Path, model: torch.nn.Module) -> None:
    store(path, model.state_dict())


# ---- stage 0: pictures -----------------------------------------------------------------------


def _draw(job: tuple[str, int, int, int]) -> tuple[np.ndarray, list[list[str]]]:
    kind, seed, start, stop = job
    images, captions = [], []
    for index in range(start, stop):
        image, text, scene = world.picture(seed, index, kind)
        images.append(np.asarray(image))
        rng = np.random.default_rng((seed, index, 7))
        true = [text] + [caption(scene, rng) for _ in range(CAPTIONS_PER_PICTURE - 1)]
        captions.append(true + lies(scene, rng))
    return np.stack(images), captions


def load_pictures(args: argparse.Namespace, name: str) -> tuple[np.ndarray, list[list[str]]]:
    """A picture set (N, 64, 64, 3) and a list of captions for each; drawn at the first call.

    The first CAPTIONS_PER_PICTURE captions are true, the others are `lies`. Sets are "rich",
    "core", and "held-rich" and "held" of another seed.
    """
    images, captions = (args.work_dir / f"{name}.{suffix}" for suffix in ("npy", "json"))
    if not captions.exists():
        held, kind = name.startswith("held"), "rich" if name.endswith("rich") else "core"
        count = HELD_OUT if held else args.pictures // 3 if kind == "rich" else args.pictures
        jobs = [(kind, int(held), k, min(k + 500, count)) for k in range(0, count, 500)]
        began = time.time()
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
            drawn = pool.map(_draw, jobs, chunksize=1)
        np.save(images, np.concatenate([pictures for pictures, _ in drawn]))
        captions.write_text(json.dumps([texts for _, lists in drawn for texts in lists]))
        print(f"{count} pictures of the {kind} world in {time.time() - began:.0f} s", flush=True)
    return np.load(images, mmap_mode="r"), json.loads(captions.read_text())


def shows_logo(captions: list[list[str]]) -> torch.Tensor:
    """Which pictures (N,) show a logo, by their captions."""
    return torch.tensor(["logo" in texts[0] for texts in captions])


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
    images, captions = load_pictures(args, "rich")
    # Thin lines of one colour between circles of another are the hardest thing in this world and
    # what the logo is made of: half of every batch shows them.
    logos = shows_logo(captions).nonzero().flatten()
    vae = new_vae()
    begin(args, "vae", vae)
    vae.to(args.device, memory_format=torch.channels_last)
    # A UNet that goes on too must find its latents where they were.
    before = args.start_from and AutoencoderKL.from_pretrained(args.start_from / "vae").float()
    steps = args.steps or 4000

    def loss_of(step: int, rng: torch.Generator):
        # Crops are four times as many for the same work; the last tenth sees whole pictures.
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
            kept = posterior.mean[:, _places(old.shape[1], posterior.mean.shape[1])]
            moved = (kept - old).pow(2).mean()
            parts |= {"moved": moved.detach()}
            loss = loss + 0.05 * moved
        return loss, parts

    fit("vae", vae, loss_of, args, steps, {"": 1.5e-3}, vae_checks(args), falling=0.5)
    finish(args.work_dir / "vae.safetensors", vae)
    for stale in args.work_dir.glob("*.latents"):
        stale.unlink()


def picture_loss(y: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """How far a reconstruction (B, 3, H, W) is from its picture, outlines counted twice."""
    square = (y - x).pow(2).mean()
    outline = sum((a - b).abs().mean() for a, b in zip(edges(y), edges(x), strict=True))
    loss = (y - x).abs().mean() + 2 * square + 0.5 * outline
    return loss, {"mse": square.detach(), "edge": outline.detach()}


def vae_checks(args: argparse.Namespace) -> Callable[[AutoencoderKL], dict[str, float]]:
    held, _ = load_pictures(args, "held-rich")
    logos = np.stack([np.asarray(logo.picture(k)[0]) for k in range(len(logo.SCENES))])
    return lambda vae: {
        "psnr": vae_quality(vae, held[:128], args.device),
        "psnr_logo": vae_quality(vae, logos, args.device),
    }


def train_decoder(args: argparse.Namespace) -> None:
    """The encoder stays, so the latents that the UNet learned stay what they are."""
    images, captions = load_pictures(args, "core")
    latents = encode_latents(args, "core")
    logos = shows_logo(captions).nonzero().flatten()
    vae = new_vae()
    vae.load_state_dict(load_file(args.work_dir / "vae.safetensors"))
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
    finish(args.work_dir / "decoder.safetensors", vae)


@torch.no_grad()
def encode_latents(args: argparse.Namespace, name: str) -> torch.Tensor:
    """Posterior means and stds of a picture set, (N, 16, 16, 16) in half precision, cached."""
    path = args.work_dir / f"{name}.latents"
    if not path.exists():
        vae = new_vae()
        vae.load_state_dict(load_file(args.work_dir / "vae.safetensors"))
        vae.to(args.device).eval()
        images, _ = load_pictures(args, name)
        latents = torch.empty(
            (len(images), 2 * LATENTS, world.SIZE // 4, world.SIZE // 4), dtype=torch.float16
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


def compact(text: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Leave a text tower the rows of the words that occur in `ids`, which are all that train.

    Returns:
        The words' ids, ascending (n,), and of every id its place among them (V,).
    """
    used = torch.unique(ids).long()
    table = text.embeddings.token_embedding.weight.detach()
    place = torch.zeros(len(table), dtype=torch.long)
    place[used] = torch.arange(len(used))
    rows = torch.nn.Embedding.from_pretrained(table[used.to(table.device)].clone(), freeze=False)
    text.embeddings.token_embedding = rows
    return used, place


def spread_out(state: dict[str, torch.Tensor], table: torch.Tensor, used: torch.Tensor) -> dict:
    """The weights of a text tower with `compact`'s rows put back into the whole table."""
    key = next(k for k in state if k.endswith("token_embedding.weight"))
    table = table.clone()
    table[used] = state[key].to(table)
    return state | {key: table}


def all_ids(args: argparse.Namespace, tokenizer: CLIPTokenizer, name: str) -> torch.Tensor:
    """Token ids of the captions of a picture set, true ones first (N, captions, 77), cached."""
    path = args.work_dir / f"{name}.ids"
    if not path.exists():
        captions = load_pictures(args, name)[1]
        ids = token_ids(tokenizer, [text for texts in captions for text in texts])
        torch.save(ids.view(len(captions), -1, 77), path)
    return torch.load(path, weights_only=True)


def train_clip(args: argparse.Namespace) -> None:
    clip = new_clip(load_tokenizer())
    begin(args, "clip", clip)
    steps, rates = args.steps or 400, {"": 5e-4}
    contrast(args, "clip", clip, steps, rates)


def train_judge(args: argparse.Namespace) -> None:
    """The text tower stays, so the prompts that the UNet learned stay what they are."""
    clip = new_clip(load_tokenizer())
    weights = load_file(args.work_dir / "clip.safetensors")
    clip.load_state_dict(weights | load_file(args.work_dir / "text.safetensors"))
    clip.text_model.requires_grad_(False)
    contrast(args, "judge", clip, args.steps or 600, {"": 1e-3})


def contrast(
    args: argparse.Namespace, name: str, clip: CLIPModel, steps: int, rates: dict[str, float]
) -> None:
    """Train a CLIP on pictures, their captions, and captions that are wrong in one thing.

    Medium, ground and colours together tell almost any two pictures of a batch apart, so that a
    plain contrast never teaches what a fish is, or how many. Each picture therefore also has three
    captions to reject (`captions.lies`).
    """
    images, _ = load_pictures(args, "core")
    held, _ = load_pictures(args, "held")
    tokenizer = load_tokenizer()
    ids, held_ids = (all_ids(args, tokenizer, kind) for kind in ("core", "held"))
    clip.to(args.device)
    table = clip.text_model.embeddings.token_embedding.weight.detach().clone()
    used, place = compact(clip.text_model, torch.cat([ids.flatten(), held_ids.flatten()]))
    if not clip.text_model.final_layer_norm.weight.requires_grad:
        clip.text_model.embeddings.requires_grad_(False)
    last = int(place[tokenizer.eos_token_id])

    def encode_text(model, tokens: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, D) of captions (B, 77)."""
        # The tower is causal and pools at the first end token: cutting the padding changes nothing.
        longest = int((tokens != tokenizer.eos_token_id).sum(1).max()) + 1
        tokens = tokens[:, :longest].long()
        mine = place[tokens].to(args.device)
        states = model.text_model(input_ids=mine).last_hidden_state
        ends = (mine == last).int().argmax(1)
        pooled = states[torch.arange(len(states)), ends]
        return F.normalize(model.text_projection(pooled), dim=-1)

    def compare(model, pictures, tokens, wrong) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and which pictures (B,) have their own caption nearest of all."""
        pooled = model.vision_model(pixel_values=to_tensor(pictures, args.device)).pooler_output
        seen = F.normalize(model.visual_projection(pooled), dim=-1)
        told = encode_text(model, torch.cat([tokens, wrong.flatten(0, 1)]))
        scale = model.logit_scale.exp()
        own, false = told[: len(seen)], told[len(seen) :].view(len(seen), wrong.shape[1], -1)
        logits = scale * seen @ own.T  # (B, B)
        against = scale * torch.einsum("bd,bkd->bk", seen, false)
        same = torch.arange(len(seen), device=logits.device)
        captions_of = torch.cat([logits, against], 1)
        loss = (F.cross_entropy(captions_of, same) + F.cross_entropy(logits.T, same)) / 2
        return loss, captions_of.argmax(1) == same

    def loss_of(step: int, rng: torch.Generator):
        batch = 96
        chosen = torch.randint(len(images), (batch,), generator=rng)
        which = torch.randint(CAPTIONS_PER_PICTURE, (batch,), generator=rng)
        wrong = ids[chosen, CAPTIONS_PER_PICTURE:]
        loss, right = compare(clip, images[chosen.numpy()], ids[chosen, which], wrong)
        with torch.no_grad():
            clip.logit_scale.clamp_(max=4.2)  # a temperature of 1/66, as CLIP's own cap of 1/100
        return loss, {"right": right.float().mean()}

    @torch.no_grad()
    def validate(model) -> dict[str, float]:
        tokens = held_ids[:256]
        loss, right = compare(model, held[:256], tokens[:, 0], tokens[:, CAPTIONS_PER_PICTURE:])
        return {"val_loss": float(loss), "right_of_256": float(right.float().mean())}

    fit(name, clip, loss_of, args, steps, rates, validate, 100, ema_decay=0.98, falling=0.5)
    state = spread_out(clip.state_dict(), table, used)
    store(args.work_dir / f"{name}.safetensors", state)


# ---- stage 3: the UNet and the text tower ------------------------------------------------------


class TextToNoise(torch.nn.Module):
    """What trains together: the UNet and the tower that reads for it."""

    def __init__(self, unet: UNet2DConditionModel, text: torch.nn.Module):
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, noisy, t, tokens) -> torch.Tensor:
        hidden = self.text(input_ids=tokens).last_hidden_state  # (B, 77, 128)
        return self.unet(noisy, t, hidden).sample.float()


def train_unet(args: argparse.Namespace) -> None:
    latents, held = (encode_latents(args, name) for name in ("core", "held"))
    scale = 1 / float(latents[:4096, :LATENTS].float().std())
    (args.work_dir / "scaling_factor.json").write_text(json.dumps(scale))
    tokenizer = load_tokenizer()
    clip = new_clip(tokenizer)
    clip.load_state_dict(load_file(args.work_dir / "clip.safetensors"))
    text = clip.text_model
    ids = all_ids(args, tokenizer, "core")[:, :CAPTIONS_PER_PICTURE]
    held_ids = all_ids(args, tokenizer, "held")[:, 0]
    empty = token_ids(tokenizer, [""])[0]
    table = text.embeddings.token_embedding.weight.detach().clone()
    used, place = compact(text, torch.cat([ids.flatten(), held_ids.flatten(), empty]))
    ids, held_ids, empty = (place[i.long()] for i in (ids, held_ids, empty))
    unet = new_unet()
    begin(args, "unet", unet)
    model = TextToNoise(unet, text).to(args.device)
    model.unet.to(memory_format=torch.channels_last)
    alphas = new_scheduler().alphas_cumprod.to(args.device)
    batch = 32

    def error(model, x, noise, t, tokens) -> torch.Tensor:
        """Squared error of v per sample (B,); x and noise (B, 8, 16, 16)."""
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = (a.sqrt() * x + (1 - a).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        v = a.sqrt() * noise - (1 - a).sqrt() * x
        return (model(noisy, t, tokens.to(args.device)) - v).pow(2).mean((1, 2, 3))

    # Nothing else has so much to get right at once: a logo is drawn as often as two other figures.
    captions = load_pictures(args, "core")[1]
    share = torch.where(shows_logo(captions), LOGO_SHARE, 1.0)

    def loss_of(step: int, rng: torch.Generator):
        chosen = torch.multinomial(share, batch, generator=rng)
        mean, std = latents[chosen].float().to(args.device).chunk(2, 1)
        x = (mean + std * torch.randn(mean.shape, generator=rng).to(mean)) * scale
        which = torch.randint(CAPTIONS_PER_PICTURE, (batch,), generator=rng)
        tokens = ids[chosen, which].clone()
        tokens[torch.rand(batch, generator=rng) < 0.1] = empty
        # One timestep from each of `batch` intervals of equal probability: low variance between
        # batches. What a thing is decides the error of the noisier timesteps alone (`dev/LOG.md`),
        # so they are drawn more often: with a density of t to the 1/3.
        even = (torch.arange(batch) + torch.rand(batch, generator=rng)) / batch
        t = (even**0.75 * 1000).long().clamp_(max=999).to(args.device)
        noise = torch.randn(mean.shape, generator=rng).to(mean)
        # Unweighted: min-SNR would leave a hundredth of the weight to the noisiest third, where the
        # shape of a 16 x 16 latent is decided.
        return error(model, x, noise, t, tokens).mean(), {}

    fixed = torch.Generator().manual_seed(1)
    held_noise = torch.randn((256, LATENTS, world.SIZE // 4, world.SIZE // 4), generator=fixed)
    held_t = torch.randint(0, 1000, (256,), generator=fixed)

    def write(model: TextToNoise) -> None:
        finish(args.work_dir / "unet.safetensors", model.unet)
        state = {f"text_model.{k}": v for k, v in model.text.state_dict().items()}
        state = spread_out(state, table, used)
        store(args.work_dir / "text.safetensors", state)

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
                x = held[s, :LATENTS].float().to(args.device) * scale
                t, noise = held_t[s].to(args.device), held_noise[s].to(args.device)
                parts.append(error(model, x, noise, t, tokens[s]))
            result[name] = float(torch.cat(parts).mean())
        write(model)  # so that a look is possible at any time
        return result

    rates = {"unet": 8e-4, "text": 3e-4}
    steps = args.steps or 20_000
    fit("unet", model, loss_of, args, steps, rates, validate, ema_decay=0.998, falling=0.4)
    write(model)


# ---- export ------------------------------------------------------------------------------------


def export(args: argparse.Namespace) -> None:
    """Write `demo_model/` in the diffusers format, half precision, from the work folder.

    Keys carry the prefix `text_model.`, as Stable Diffusion's own files do: transformers 4 and 5
    both read that. `clip/` holds the vision tower and the projections; its index points at the text
    tower's file in `text_encoder/`, so that the vocabulary's table is stored once.
    """
    tokenizer = load_tokenizer()
    clip = new_clip(tokenizer)

    # The latest of each part, so that a look is possible at any time.
    def latest(*names: str) -> dict[str, torch.Tensor]:
        files = [args.work_dir / f"{name}.safetensors" for name in names]
        return load_file(next(file for file in files if file.exists()))

    text = args.work_dir / "text.safetensors"
    clip.load_state_dict(latest("judge", "clip") | (load_file(text) if text.exists() else {}))
    vae, unet = new_vae(), new_unet()
    vae.load_state_dict(latest("decoder", "vae"))
    unet.load_state_dict(load_file(args.work_dir / "unet.safetensors"))
    scale = json.loads((args.work_dir / "scaling_factor.json").read_text())
    tokenizer_files = {p.name: p.read_bytes() for p in (HERE / "tokenizer").iterdir()}
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
    for name, content in tokenizer_files.items():
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
    words = json.dumps(vocabulary(), indent=1)
    (args.export_to / "vocabulary.json").write_text(words + "\n")
    print(f"exported to {args.export_to}")


STAGES = {
    "vae": train_vae,
    "clip": train_clip,
    "unet": train_unet,
    "decoder": train_decoder,
    "judge": train_judge,
    "export": export,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--work-dir", type=Path, default=HERE / "work")
    parser.add_argument("--steps", type=int, default=0, help="total steps of the chosen stage")
    parser.add_argument("--pictures", type=int, default=32_000)
    parser.add_argument("--start-from", type=Path, help="an exported model to start from")
    parser.add_argument("--export-to", type=Path, default=HERE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--bf16", action="store_true", help="as on a GPU: a sixth faster on a CPU that has it"
    )
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.set_flush_denormal(True)  # denormals slow CPU convolutions down many times
    try:
        for name, stage in STAGES.items():
            if args.stage in (name, "all"):
                stage(args)
    except Stop as stop:
        raise SystemExit(str(stop)) from None


if __name__ == "__main__":
    main()
