"""A learned concept: a word, its initializer, and its embedding vectors."""

import hashlib
from dataclasses import dataclass

import torch

ENCODERS = ("clip_l", "clip_g")  # the usual names of Stable Diffusion XL's text encoders

FAMILIES = {  # keyed by the row widths, one per text encoder
    (128,): "demo_model, the bundled one",
    (768,): "Stable Diffusion 1.x",
    (1024,): "Stable Diffusion 2.x",
    (768, 1280): "Stable Diffusion XL",
}


@dataclass(frozen=True)
class LearnedConcept:
    """A concept: its word, its initializer, its embedding vectors in float32."""

    name: str
    initializer: str
    embeddings: tuple[torch.Tensor, ...]  # rows (n, D) for each text encoder of the base model
    model: str = ""  # the base model it was learned on; "" if unknown
    model_hash: str = ""  # identifies its weights: hub commit, or another tool's record
    steps: int | None = None  # training steps; None if unknown
    clip_skip: int = 0  # `model.clip_skip` during training; also 0 if unknown
    resolution: tuple[int, int] | None = None  # width, height of samples; None: the model's own

    @property
    def num_vectors(self) -> int:
        """The number of vectors per text encoder, and of the word's tokens in a prompt."""
        return len(self.embeddings[0])

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the text encoders that the vectors fit."""
        return tuple(rows.shape[1] for rows in self.embeddings)

    @property
    def digest(self) -> str:
        """A fingerprint of the vectors."""
        data = b"".join(rows.cpu().float().numpy().tobytes() for rows in self.embeddings)
        return hashlib.sha256(data).hexdigest()[:16]


def family(widths: tuple[int, ...]) -> str:
    """Name the models whose text encoders have these widths."""
    name = "text widths" if widths[1:] else "text width"
    return FAMILIES.get(widths, f"another model ({name} {joined(widths)})")


def joined(widths: tuple[int, ...]) -> str:
    """Join widths for a sentence: "768 and 1280"."""
    return " and ".join(map(str, widths))
