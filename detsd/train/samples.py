"""What a fine-tuning measures at its checkpoints, on samples of its own.

The figures, their ends and their names are those of `detsd evaluate` (`measure`), on fewer samples:
the plain prompt under a few seeds, and a few edited prompts once. Several concepts are told as one,
by their mean.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from statistics import fmean

from PIL import Image

from detsd.config import FinetuneConfig
from detsd.data.images import read_images
from detsd.data.templates import EDITS, PLAIN
from detsd.evaluate.encoders import ImageEncoder
from detsd.evaluate.metrics import Baselines, ConceptMetrics
from detsd.sampling.jobs import Job, sample_jobs


def edited_prompts(kind: str, count: int) -> list[str]:
    """`count` of the edited prompts of objects or styles, from all over their list."""
    every = EDITS[kind]
    return [every[k * len(every) // count] for k in range(min(count, len(every)))]


def metric_jobs(config: FinetuneConfig, size: int) -> list[Job]:
    """The samples of each concept, the plain ones first; none where nothing is to be measured."""
    c, m, found = config.concepts, config.measure, []
    if not m.num_samples:
        return []
    for name, kind in zip(c.concept_strs, c.learnable_properties, strict=True):
        plain, edited = (PLAIN[kind],), edited_prompts(kind, m.num_prompts)
        for templates, seeds in ((plain, [*range(m.num_samples)]), (edited, [0])):
            given = {"inference_prompts": [template.format(name) for template in templates]}
            given |= {"seeds": seeds, "img_per_prompt": 1}
            found += sample_jobs(dataclasses.replace(config.inference, **given), size)
    return found


class SampleMetrics:
    """What the samples of `metric_jobs` are held against.

    Attributes:
        ends: of the scales, for each concept; known from `anchor` on.
    """

    def __init__(self, config: FinetuneConfig, encoders: dict[str, ImageEncoder], size: int):
        c, m = config.concepts, config.measure
        self.ends: list[Baselines] = []

        def pictures(folder: str, key: str) -> list[Image.Image]:
            return [found.image for found in read_images(Path(folder), c, size, key)]

        others = [pictures(f, f"measure.lineup[{k}]") for k, f in enumerate(m.lineup)]
        # The lists of objects and styles may be of different lengths.
        prompts = [edited_prompts(kind, m.num_prompts) for kind in c.learnable_properties]
        self._counts = [m.num_samples + len(edited) for edited in prompts]
        self._yardsticks = [
            ConceptMetrics(
                encoders, pictures(folder, f"concepts.img_dirs[{k}]"), edited, others, m.num_samples
            )
            for k, (folder, edited) in enumerate(zip(c.img_dirs, prompts, strict=True))
        ]

    def _of_each(self, made: list[Image.Image]) -> list[list[Image.Image]]:
        """The samples of each concept."""
        rest = iter(made)
        return [list(itertools.islice(rest, count)) for count in self._counts]

    def anchor(self, made: list[Image.Image]) -> None:
        """Take the samples of what the concepts started from as the lower ends."""
        each = zip(self._yardsticks, self._of_each(made), strict=True)
        self.ends = [yardstick.fit_baselines(own)[0] for yardstick, own in each]

    def figures(self, made: list[Image.Image]) -> dict[str, float]:
        """What is measured on samples of the concepts; the larger, the better."""
        found = [
            yardstick.figures(own, ends)
            for yardstick, own, ends in zip(
                self._yardsticks, self._of_each(made), self.ends, strict=True
            )
        ]
        return {key: fmean(each[key] for each in found) for key in found[0]}
