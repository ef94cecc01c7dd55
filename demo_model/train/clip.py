"""CLIP: contrastive training on text and pictures (arXiv 2103.00020), with hard negative captions
that are wrong in a colour, a shape, a number or a place (arXiv 2210.01936).
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from transformers import CLIPModel

from demo_model.train.growing import begin
from demo_model.train.loop import fit, steady
from demo_model.train.networks import load_tokenizer, new_clip
from demo_model.train.pictures import CAPTIONS_PER_PICTURE, load_pictures, to_tensor
from demo_model.train.store import load_clip, store
from demo_model.train.tokens import all_ids, compact, spread_out

BATCH = 96  # pictures


def train_clip(args: argparse.Namespace) -> None:
    """Train both towers, starting from those of an export if there is one."""
    clip = new_clip(load_tokenizer())
    begin(args.start_from, "clip", clip)
    steps, rates = args.steps or 400, {"": 5e-4}
    contrast(args, "clip", clip, steps, rates)


def train_judge(args: argparse.Namespace) -> None:
    """Train CLIP without its text tower, against the current text tower.

    The text tower does not change, so the UNet's prompts keep their meaning.
    """
    clip = new_clip(load_tokenizer())
    clip.load_state_dict(load_clip(args, "clip"))
    clip.text_model.requires_grad_(False)
    contrast(args, "judge", clip, args.steps or 600, {"": 1e-3})


def contrast(
    args: argparse.Namespace, name: str, clip: CLIPModel, steps: int, rates: dict[str, float]
) -> None:
    """Train a CLIP on pictures, their captions, and captions that are wrong in one thing.

    Medium, background and colours together distinguish almost any two pictures of a batch, so plain
    contrastive training teaches neither what a fish is nor how to count. Each picture therefore
    also has three captions to reject (`captions.lies`).
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
        """Return unit vectors (B, D) of captions (B, 77)."""
        # The tower is causal and pools at the first end token: cutting the padding changes nothing.
        longest = int((tokens != tokenizer.eos_token_id).sum(1).max()) + 1
        tokens = tokens[:, :longest].long()
        mine = place[tokens].to(args.device)
        states = model.text_model(input_ids=mine).last_hidden_state
        ends = (mine == last).int().argmax(1)
        pooled = states[torch.arange(len(states)), ends]
        return F.normalize(model.text_projection(pooled), dim=-1)

    def compare(model, pictures, tokens, wrong) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, and a mask (B,) of pictures whose own caption is the nearest."""
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
        chosen = torch.randint(len(images), (BATCH,), generator=rng)
        which = torch.randint(CAPTIONS_PER_PICTURE, (BATCH,), generator=rng)
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

    fit(name, clip, loss_of, args, steps, rates, validate, 100, ema=steady(0.98), falling=0.5)
    state = spread_out(clip.state_dict(), table, used)
    store(args.work_dir / f"{name}.safetensors", state)
