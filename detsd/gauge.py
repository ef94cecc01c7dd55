"""What a fine-tuning measures at its checkpoints, on samples of its own.

The figures, their ends and their names are those of `detsd evaluate` (`measure`), on fewer samples:
the plain prompt under a few seeds, and a few edited prompts once. Several concepts are told as one,
by their mean.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import torch
from PIL import Image

from detsd.config import FinetuneConfig
from detsd.data import read_images
from detsd.measure import (
    Anchors,
    Lineup,
    anchors,
    load_eye,
    mean_cosine,
    outlines,
    score,
    text_similarity,
    without_word,
)
from detsd.pipeline import Job
from detsd.templates import EDITS, PLAIN


def edited_prompts(kind: str, count: int) -> list[str]:
    """`count` of the edited prompts of objects or styles, from all over their list."""
    every = EDITS[kind]
    return [every[k * len(every) // count] for k in range(min(count, len(every)))]


def gauge_jobs(config: FinetuneConfig, size: int) -> list[Job]:
    """The samples of each concept, the plain ones first; none where nothing is to be measured."""
    m, i = config.measure, config.inference
    if not m.num_samples:
        return []
    return [
        Job(
            template.format(name),
            seed,
            i.negative_prompt,
            i.guidance_scale,
            i.num_inference_steps,
            i.scheduler_name,
            size,
            size,
        )
        for name, kind in zip(
            config.concepts.concept_strs, config.concepts.learnable_properties, strict=True
        )
        for template, seed in [
            *((PLAIN[kind], k) for k in range(m.num_samples)),
            *((template, 0) for template in edited_prompts(kind, m.num_prompts)),
        ]
    ]


class Gauge:
    """What the samples of `gauge_jobs` are held against.

    Attributes:
        ends: of the scales, for each concept; known from `anchor` on.
    """

    def __init__(self, config: FinetuneConfig, device: torch.device, size: int):
        c, self._config = config.concepts, config.measure
        name = config.model.pretrained_model_name_or_path
        self._eye = load_eye(config.evaluator, name, device)
        self.ends: list[Anchors] = []

        def pictures(folder: str, key: str) -> list[Image.Image]:
            return [image for _, image, _ in read_images(Path(folder), c, size, key)]

        others = [pictures(f, f"measure.lineup[{k}]") for k, f in enumerate(config.measure.lineup)]
        self._real, self._texts, self._lineups = [], [], []
        for k, (folder, kind) in enumerate(zip(c.img_dirs, c.learnable_properties, strict=True)):
            own = pictures(folder, f"concepts.img_dirs[{k}]")
            prompts = edited_prompts(kind, config.measure.num_prompts)
            self._real.append(self._eye.image_features(own))
            self._texts.append(self._eye.text_features([without_word(p) for p in prompts]))
            if others:
                ways = {"clip": self._eye.image_features, "outlines": outlines}
                self._lineups.append(Lineup(ways, [own, *others]))

    def _seen(self, made: list[Image.Image]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Features of each concept's plain samples (N, D) and of its edited ones (P, D)."""
        features = self._eye.image_features(made).chunk(len(self._real))
        n = self._config.num_samples
        return [(each[:n], each[n:]) for each in features]

    def anchor(self, made: list[Image.Image]) -> None:
        """Take the samples of what the concepts started from as the lower ends."""
        self.ends = [
            anchors(real, texts, *seen)
            for real, texts, seen in zip(self._real, self._texts, self._seen(made), strict=True)
        ]

    def figures(self, made: list[Image.Image]) -> dict[str, float]:
        """What is measured on samples of the concepts; the larger, the better."""
        seen = self._seen(made)
        images = [mean_cosine(s[0], real) for s, real in zip(seen, self._real, strict=True)]
        texts = [text_similarity(s[1], told) for s, told in zip(seen, self._texts, strict=True)]
        found = {
            "score": fmean(map(score, images, texts, self.ends)),
            "clip_image_similarity": fmean(images),
            "clip_text_similarity": fmean(texts),
        }
        if self._lineups:
            n, each = self._config.num_samples, len(made) // len(self._lineups)
            shares = [x.share(made[k * each :][:n]) for k, x in enumerate(self._lineups)]
            found["lineup"] = fmean(shares)
        return found
