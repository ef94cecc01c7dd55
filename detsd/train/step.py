"""One optimizer step of a fine-tuning: schedule, optimizer, compiler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.reading import read_concepts
from detsd.concepts.source import ConceptSource
from detsd.concepts.vocabulary import Vocabulary
from detsd.config import FinetuneConfig, TrainingConfig
from detsd.utils.errors import UserError

LONG_RUN = 5000  # steps that are worth the minutes of a compiler (dev/LOG.md)


def learning_rate(step: int, config: TrainingConfig, samples_per_step: int) -> float:
    """The rate of step number `step` (from 0): warm-up, then constant, linear or cosine."""
    peak = config.learning_rate * (samples_per_step if config.scale_lr else 1)
    if step < config.lr_warmup_steps:
        return peak * (step + 1) / config.lr_warmup_steps
    left = config.num_sgd_steps - config.lr_warmup_steps
    done = (step - config.lr_warmup_steps) / max(1, left)
    shapes = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return peak * shapes[config.lr_scheduler]


def wants_compiler(config: TrainingConfig, device: torch.device) -> bool:
    """Whether the step is to be compiled.

    By the configuration and the kind of device alone: resumed, a run takes the same kernels.
    """
    pays = device.type == "cuda" and config.num_sgd_steps >= LONG_RUN
    return config.compile == "on" or (config.compile == "auto" and pays)


def compiled(part: torch.nn.Module) -> Callable[..., Any]:
    """A model as the step calls it, compiled, with shapes that do not change."""
    return torch.compile(part, dynamic=False)


def make_optimizer(rows: tuple[torch.Tensor, ...], config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD over the rows alone."""
    if config.optimizer_name == "sgd":
        return torch.optim.SGD(rows, config.learning_rate, weight_decay=config.weight_decay)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[config.optimizer_name](
        rows,
        config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay if config.optimizer_name == "adamw" else 0.0,
    )


def add_concepts(vocabulary: Vocabulary, config: FinetuneConfig) -> None:
    """Add the configured concepts, each from its phrase or from a concept file of one concept."""
    c = config.concepts
    for k, (name, start, n) in enumerate(
        zip(c.concept_strs, c.initializer_strs, c.num_vectors, strict=True)
    ):
        if ConceptSource.looks_like(start):
            found = read_concepts(start)
            if len(found) != 1:
                raise UserError(f"{start} holds {len(found)} concepts; start from a file of one")
            rows, phrase = found[0].rows, found[0].initializer
            rows = tuple(r[[j % len(r) for j in range(n or len(r))]] for r in rows)
        else:
            if (n or 0) > (window := vocabulary.window):
                raise UserError(
                    f"concepts.num_vectors[{k}] is {n}, but a prompt has room for {window} tokens; "
                    "1 to 16 are usual"
                )
            phrase = " ".join(start.split())
            rows = vocabulary.phrase_rows(phrase, n, f"concepts.initializer_strs[{k}]")
        vocabulary.add(LearnedConcept(name, phrase, *rows))
        if vocabulary.truncated_concepts(f"a photo of a {name}"):
            raise UserError(
                f"concepts.num_vectors[{k}]: {len(rows[0])} rows of {name!r} do not fit into a "
                f"prompt of {vocabulary.window} tokens; 1 to 16 are usual"
            )
