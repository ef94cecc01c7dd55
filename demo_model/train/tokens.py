"""Captions as token ids, and a text tower with only the words that they use."""

from __future__ import annotations

import argparse

import torch
from transformers import CLIPTokenizer

from demo_model.train.networks import LENGTH
from demo_model.train.pictures import load_pictures


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Tokenize captions, (N, 77) int32: the largest id, 49407, does not fit 16 signed bits."""
    encoded = tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids.int()


def all_ids(args: argparse.Namespace, tokenizer: CLIPTokenizer, name: str) -> torch.Tensor:
    """Tokenize a picture set's captions, true ones first (N, captions, 77), once."""
    path = args.work_dir / f"{name}.ids"
    if not path.exists():
        captions = load_pictures(args, name)[1]
        ids = token_ids(tokenizer, [text for texts in captions for text in texts])
        torch.save(ids.view(len(captions), -1, LENGTH), path)
    return torch.load(path, weights_only=True)


def compact(text: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep only a text tower's rows of words in `ids`; no other rows train.

    Returns:
        The words' ids, ascending (n,), and every id's place among them (V,), -1 for other ids.
    """
    used = torch.unique(ids).long()
    table = text.embeddings.token_embedding.weight.detach()
    place = torch.full((len(table),), -1)
    place[used] = torch.arange(len(used))
    rows = torch.nn.Embedding.from_pretrained(table[used.to(table.device)].clone(), freeze=False)
    text.embeddings.token_embedding = rows
    return used, place


def spread_out(
    state: dict[str, torch.Tensor], table: torch.Tensor, used: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Put `compact`'s rows back into the whole table, in the weights of a text tower."""
    key = next(k for k in state if k.endswith("token_embedding.weight"))
    table = table.clone()
    table[used] = state[key].to(table)
    return state | {key: table}
