"""Measure how samplers change the samples of a concept: python -m dev.sampler_curves [--draw]

It uses the measures and things of `dev.curves`: every sampler at several numbers of steps, and some
also with other seeds. The model and CLIP are loaded once; figures are kept. It takes forty minutes
on one CPU core (OMP_NUM_THREADS=1). `--draw` writes the tables of docs/curves.md, below the text
under "Samplers".
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from detsd.config import (
    EvaluateConfig,
    EvaluationConfig,
    EvaluatorConfig,
    LearnedConceptsConfig,
    ModelConfig,
)
from detsd.data.images import read_images
from detsd.evaluate.encoders import load_encoders
from detsd.evaluate.metrics import ConceptMetrics
from detsd.evaluate.samples import edits, find_sample_sets
from detsd.sampling.jobs import Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from dev import curves
from dev.curves import GUIDANCE, MEASURES, OUT, SAMPLERS, SEEDS, SHOWN, learned, lookalikes
from dev.pictures import CONCEPT, DOCS


@dataclass(frozen=True)
class Sampling:
    """A sampler, and where it evaluates and guides; the fields are those of a Job."""

    scheduler_name: str
    num_inference_steps: int
    guidance_interval: tuple[float, float] | None = None
    spacing: str | None = None

    def __str__(self) -> str:
        told = [f"{self.scheduler_name}, {self.num_inference_steps}", self.spacing]
        told += [f"guided in {list(self.guidance_interval)}"] if self.guidance_interval else []
        return ", ".join(filter(None, told))


FILE = OUT / "samplers.json"
THINGS = curves.THINGS | curves.STYLES
FULL = Sampling("euler-ancestral", 25)  # its passes are 100 %
NAMED = ("euler-ancestral", "dpmsolver++-karras", "unipc", "dpmsolver++", "heun", "ddim")
COUNTS = (12, 9, 6, 18, 25)  # of steps, the interesting ones first
OF_HEUN = {25: 13, 18: 9, 12: 7, 9: 5, 6: 4}  # steps of about as many passes
MOST = (0.2, 0.8)
SAMPLINGS = [
    Sampling(name, OF_HEUN[steps] if name == "heun" else steps)
    for steps in COUNTS
    for name in NAMED
]
SAMPLINGS[3 * len(NAMED) : 3 * len(NAMED)] = [
    *(Sampling(name, 12, spacing="trailing") for name in NAMED[1:3]),
    *(Sampling(FULL.scheduler_name, steps, MOST) for steps in (12, 25)),
]
AGAIN = [  # also with other seeds, to measure chance
    FULL,
    Sampling(FULL.scheduler_name, 12),
    *(Sampling(FULL.scheduler_name, steps, spacing="trailing") for steps in (12, 10)),
    Sampling(FULL.scheduler_name, 15),
    Sampling(FULL.scheduler_name, 9),
]
SEED_SETS = 3


class SamplerMeter:
    """A thing's concept, for which samples of any sampler are measured."""

    def __init__(self, pipeline, encoders: dict, name: str):
        thing = THINGS[name]
        file = CONCEPT if name == "det-logo" else str(learned(name, SEEDS[0], {}))
        lineup = lookalikes(thing.case)
        options = EvaluationConfig(
            images=thing.folder, lineup=lineup, num_samples=24, guidance_scale=GUIDANCE
        )
        config = EvaluateConfig(
            ModelConfig("demo_model"), LearnedConceptsConfig(files=[file]), evaluation=options
        )
        phrase, self.of_concept = find_sample_sets(config)
        self.pipeline, reference, size = pipeline, phrase.reference, pipeline.model.image_size
        pipeline.add([self.of_concept.concept], name, name)
        images, *others = [
            [image.image for image in read_images(Path(folder), reference.concepts, size, name)]
            for folder in (thing.folder, *lineup)
        ]
        prompts = edits(config, reference)
        self.metrics = ConceptMetrics(encoders, images, prompts, others, options.num_samples)
        self.baselines = self.metrics.fit_baselines(self.samples(phrase.jobs, FULL, 0))[0]

    def samples(self, jobs: list[Job], sampling: Sampling, seeds: int) -> list[Image.Image]:
        """Make jobs with another sampler and other seeds."""
        changed = dataclasses.asdict(sampling)
        jobs = [replace(job, seed=job.seed + 1000 * seeds, **changed) for job in jobs]
        return [made.image for made in self.pipeline.make(jobs, max_batch_size=9)]

    def figures(self, sampling: Sampling, seeds: int) -> dict[str, float]:
        """Return the figures, and the UNet passes per image."""
        job = replace(self.of_concept.jobs[0], **dataclasses.asdict(sampling))
        passes = sum(1 + guided for guided in self.pipeline.guided_calls(job))
        samples = self.samples(self.of_concept.jobs, sampling, seeds)
        return self.metrics.figures(samples, self.baselines) | {"passes": passes}


def measure() -> None:
    """Measure the missing samplings, with the model and CLIP loaded once."""
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    pipeline = DetSDTextualInversionPipeline.from_pretrained("demo_model")
    encoders = load_encoders(EvaluatorConfig(), "demo_model", pipeline.model.device)
    meters = {name: SamplerMeter(pipeline, encoders, name) for name in THINGS}
    todo = [(sampling, seeds) for seeds in range(SEED_SETS) for sampling in AGAIN]
    todo += [(sampling, 0) for sampling in SAMPLINGS]
    for sampling, seeds in todo:
        for name, meter in meters.items():
            key = f"{name}: {sampling}: {seeds}"
            if key not in found:
                found[key] = meter.figures(sampling, seeds)
                FILE.write_text(json.dumps(found, indent=1))


# ---- what is shown -------------------------------------------------------------------------------


def samplings() -> dict[Sampling, dict[str, list[dict]]]:
    """Return the figures of each sampling measured for all things: for each, a list by seeds."""
    found, every = json.loads(FILE.read_text()), {}
    for sampling in dict.fromkeys([FULL, *SAMPLINGS, *AGAIN]):
        keys = {name: [f"{name}: {sampling}: {k}" for k in range(SEED_SETS)] for name in THINGS}
        sets = {name: [found[key] for key in own if key in found] for name, own in keys.items()}
        if all(sets.values()):
            every[sampling] = sets
    return every


def tables(every: dict[Sampling, dict[str, list[dict]]]) -> str:
    """Return a table of all samplings with the first seeds, and one of those with several sets."""
    full = next(iter(every[FULL].values()))[0]
    columns = [
        (k, name, key)
        for k, (name, thing) in enumerate(THINGS.items())
        for key in SHOWN
        if thing.case or key != "lineup"
    ]
    head = ["sampler, steps", "passes"]
    head += [f"{name}: {MEASURES[key][0]}" for _, name, key in columns]

    def line(label: str, states: Sequence[dict]) -> str:
        cells = [MEASURES[key][1].format(states[k][key]) for k, _, key in columns]
        return (
            "| " + " | ".join([label, f"{states[0]['passes'] / full['passes']:.0%}", *cells]) + " |"
        )

    def order(sampling: Sampling) -> tuple:
        passes = next(iter(every[sampling].values()))[0]["passes"]
        return NAMED.index(sampling.scheduler_name), -passes

    first, again = [], []
    for sampling in sorted(every, key=order):
        sets = list(zip(*every[sampling].values(), strict=True))
        first.append(line(str(sampling), sets[0]))
        again += [
            line(f"{sampling}: seeds {k + 1}", s) for k, s in enumerate(sets) if len(sets) > 1
        ]
    rule = "|---" * len(head) + "|"
    tables = [["| " + " | ".join(head) + " |", rule, *rows, ""] for rows in (first, again)]
    return "\n".join(itertools.chain(*tables))


def main() -> None:
    """Measure, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="write docs/curves.md")
    if not parser.parse_args().draw:
        measure()
        return
    page = DOCS / "curves.md"
    head, mark, rest = page.read_text(encoding="utf-8").partition(SAMPLERS)
    text = rest.partition("\n| ")[0]
    page.write_text(f"{head}{mark}{text}\n{tables(samplings())}", encoding="utf-8")


if __name__ == "__main__":
    main()
