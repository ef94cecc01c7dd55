"""A learned concept: a word, its initializer, and its embedding vectors."""

import hashlib
from dataclasses import dataclass

import torch

ENCODERS = ("clip_l", "clip_g")  # the field's names of Stable Diffusion XL's text encoders

FAMILIES = {  # by the widths of the rows, one per text encoder
    (128,): "demo_model, the bundled one",
    (768,): "Stable Diffusion 1.x",
    (1024,): "Stable Diffusion 2.x",
    (768, 1280): "Stable Diffusion XL",
}


@dataclass(frozen=True)
class LearnedConcept:
    """A concept: its word, its initializer, its embedding vectors in float32.

    Attributes:
        embeddings: the vectors for each text encoder of the base model, as rows (n, D).
        model: the base model it was learned on; "" if unknown.
        model_hash: which weights of that name: the hub commit, or what another tool recorded.
        steps: of training; None if unknown.
        clip_skip: `model.clip_skip` of the training; also 0 if unknown.
        resolution: width and height of its samples in pixels; None: the model's own square.
    """

    name: str
    initializer: str
    embeddings: tuple[torch.Tensor, ...]
    model: str = ""
    model_hash: str = ""
    steps: int | None = None
    clip_skip: int = 0
    resolution: tuple[int, int] | None = None

    @property
    def num_vectors(self) -> int:
        """The number of vectors per text encoder, and so of the word's tokens in a prompt."""
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
    return FAMILIES.get(widths, f"another model (text width {joined(widths)})")


def joined(widths: tuple[int, ...]) -> str:
    """Return widths in words for a sentence: "768 and 1280"."""
    return " and ".join(map(str, widths))
