"""The spread of a fine-tuning's results by rounding (the same samples in other layouts) and seeds.

    python -m benchmarks --only spread [--concepts det-logo ...] [--layouts 1:8x1 ...] [--seeds 1 2]
                                       [--set training.learning_rate=2e-3 ...] [--score 8]

A layout is THREADS:BATCHxACCUMULATION. Two processes of batch 4 equal one that accumulates 4 twice,
bit for bit (docs/how-it-works.md), so `1:4x2` stands for them. Results are kept in
outputs/spread.jsonl and not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.finetune import trainer_of
from detsd.config import FinetuneConfig, flat, load_config
from detsd.train.step import TrainStep, learning_rate
from detsd.train.trainer import Trainer
from detsd.utils.progress import Bar

FILE = "finetune_demo.yaml"
KEPT = Path("outputs/spread.jsonl")
LAYOUTS = tuple(f"{n}:{batch}x{8 // batch}" for n in (1, 2) for batch in (8, 4, 2, 1))
SEEDS = (2147483647, 1, 2)
# The demo's concept, and those that README and docs/own-pictures.md learn with its file.
CONCEPTS: dict[str, list[str]] = {
    "det-logo": [],
    "ring-and-dot": [
        "concepts.concept_strs=ring-and-dot",
        "concepts.initializer_strs=round emblem with a middle",
        "concepts.img_dirs=examples/ring_and_dot",
        "concepts.append_file_name_to_text=false",
    ],
    "glow-style": [
        "concepts.concept_strs=glow-style",
        "concepts.initializer_strs=bright picture",
        "concepts.img_dirs=examples/glow_style",
        "concepts.learnable_properties=style",
    ],
}
HEAD = ["concept", "seed", "layouts", "val_loss", "deviation", "score", "its deviation"]


def layout(text: str) -> str:
    """Return a layout unchanged, or raise an error that argparse turns into a sentence."""
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not THREADS:BATCHxACCUMULATION; write e.g. 1:8x1"
        )
    return text


def configuration(concept: str, seed: int, settings: Sequence[str], score: int) -> FinetuneConfig:
    """Return the demo's fine-tuning of a concept, without samples that are only for viewing."""
    own = [f"training.train_seed={seed}", "inference.inference_prompts=[]",
           f"measure.num_samples={score}"]  # fmt: skip
    return load_config(FILE, [*CONCEPTS[concept], *own, *settings])


def key_of(config: FinetuneConfig, layout: str) -> str:
    """Return a digest of all settings and the layout."""
    text = json.dumps([flat(dataclasses.asdict(config)), layout], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def train(trainer: Trainer, layout: str) -> dict[str, float]:
    """Train from the start in a layout; return the metrics of the last step."""
    threads, batch, accumulated = map(int, layout.replace("x", ":").split(":"))
    torch.set_num_threads(threads)
    t = dataclasses.replace(
        trainer.config.training, train_batch_size=batch, gradient_accumulation_steps=accumulated
    )
    trainer.config = dataclasses.replace(trainer.config, training=t)  # next_batch reads it
    initial = trainer.step.initial_vectors
    with torch.no_grad():
        for vectors, first in zip(trainer.step.vectors, initial, strict=True):
            vectors.copy_(first)
    step = TrainStep(trainer.model, t, trainer.run.ranks)
    batches = map(trainer.next_batch, itertools.count())
    for k in range(t.num_sgd_steps):
        step(batches, learning_rate(k, t, trainer.samples_per_step))
    bar = Bar(trainer.phases, "", leave=False)
    found = {"val_loss": trainer.validation.loss(bar)}
    return found | trainer.samples.make(t.num_sgd_steps, bar)


def measured(
    concepts: Sequence[str],
    layouts: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[str],
    score: int,
) -> Iterator[dict[str, Any]]:
    """Yield the metrics of each concept, seed and layout, measured or read from `KEPT`."""
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    kept = {line["key"]: line for line in map(json.loads, lines)}
    for concept, seed in itertools.product(concepts, seeds):
        config = configuration(concept, seed, settings, score)
        keys = {layout: key_of(config, layout) for layout in layouts}
        yield from (kept[key] for key in keys.values() if key in kept)
        left = [layout for layout in layouts if keys[layout] not in kept]
        if not left:
            continue
        with trainer_of(config) as trainer:
            trainer.samples.make(0, Bar(trainer.phases, "", leave=False))  # the score's lower end
            for layout in left:
                about = {"key": keys[layout], "concept": concept, "seed": seed, "layout": layout}
                line = about | {"settings": list(settings)} | train(trainer, layout)
                KEPT.parent.mkdir(exist_ok=True)
                with KEPT.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                yield line


def rows(lines: Sequence[dict[str, Any]]) -> list[list[object]]:
    """Return a row for each seed of each concept, and one for each concept.

    The concept's deviation is that caused by rounding: the root of the mean variance within a seed.
    """

    def moments(groups: list[list[dict[str, Any]]], key: str) -> list[object]:
        values = [[line[key] for line in group if key in line] for group in groups]
        values = [group for group in values if len(group) > 1]
        if not values:
            return [None, None]
        spread = statistics.fmean(map(statistics.variance, values)) ** 0.5
        return [f"{statistics.fmean(itertools.chain(*values)):.4f}", f"{spread:.4f}"]

    made: list[list[object]] = []
    for concept in dict.fromkeys(line["concept"] for line in lines):
        seeds: dict[object, list[dict[str, Any]]] = {}
        for line in lines:
            if line["concept"] == concept:
                seeds.setdefault(line["seed"], []).append(line)
        for seed, groups in [*((s, [own]) for s, own in seeds.items()), ("all", [*seeds.values()])]:
            figures = (*moments(groups, "val_loss"), *moments(groups, "score"))
            made.append([concept, seed, sum(map(len, groups)), *figures])
    return made
