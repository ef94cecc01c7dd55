"""Images per second of a grid, beside a plain loop over the stock diffusers pipeline, in one run.

    python -m benchmarks.generate [--model demo_model] [--images 24] [--steps 20]

The plain loop is what a tutorial shows: one prompt at a time, saved when it is there. Both make the
same images (same model, concept, prompts, guidance scales, seeds, precision and device) and write
them as PNG files; the time is from the first prompt to the last file, models loaded before.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from detsd import cluster
from detsd.config import GenerateConfig, parse_config
from detsd.formats import read_concepts, write_concepts
from detsd.generator import Generator
from detsd.models import resolve


def plain_loop(generator: Generator, concept: Path, folder: Path) -> float:
    """Seconds of the stock pipeline for the generator's jobs."""
    model = generator.pipeline.model
    stock = StableDiffusionPipeline.from_pretrained(resolve(model.name), torch_dtype=model.dtype)
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)  # as the grid's jobs have
    stock.to(model.device).set_progress_bar_config(disable=True)
    for file in sorted(concept.glob("*.safetensors")):
        stock.load_textual_inversion(str(file))
    stock("warm up", num_inference_steps=2)
    began = time.perf_counter()
    for number, job in enumerate(generator.jobs):
        image = stock(
            job.prompt,
            guidance_scale=job.guidance_scale,
            num_inference_steps=job.num_inference_steps,
            width=job.width,
            height=job.height,
            generator=job.generator,
        ).images[0]
        image.save(folder / f"{number}.png")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo_model")
    parser.add_argument("--concept", default="learned_embeddings_dict_demo.pt")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    (concept,) = read_concepts(args.concept)
    given = {
        "model": {"pretrained_model_name_or_path": args.model},
        "concepts": {"files": args.concept},
        "grid": {
            "prompts": [
                f"a photo of a {concept.name}",
                f"a watercolor painting of a {concept.name}",
            ],
            "guidance_scales": [3, 5],
            "num_inference_steps": args.steps,
            "num_seeds": max(1, args.images // 4),
        },
    }
    with TemporaryDirectory() as name, cluster.open_run(Path(name) / "grid") as run:
        folder = Path(name)
        generator = Generator(parse_config(given, "benchmark", GenerateConfig), run)
        generator.pipeline.make(generator.jobs[:1])
        began = time.perf_counter()
        generator.generate()
        ours = time.perf_counter() - began
        (folder / "concept").mkdir()
        (folder / "plain").mkdir()
        write_concepts([concept], folder / "concept")
        plain = plain_loop(generator, folder / "concept", folder / "plain")
        apart = max(
            np.abs(
                np.asarray(Image.open(generator.album.path(n)), int)
                - np.asarray(Image.open(folder / "plain" / f"{n}.png"), int)
            ).max()
            for n in range(len(generator.jobs))
        )
        count, model = len(generator.jobs), generator.pipeline.model
        size = len(generator.batches[0])
    print(f"{args.model}, {args.steps} steps, batches of {size}, {model.device}, {model.dtype}")
    for title, seconds in (("plain loop", plain), ("detsd", ours)):
        print(f"{title:>10}: {count / seconds:7.2f} images/s")
    print(f"{'ratio':>10}: {plain / ours:7.2f}, images at most {apart} of 255 apart")


if __name__ == "__main__":
    main()
