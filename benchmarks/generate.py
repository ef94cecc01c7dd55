"""Images per second of a grid, compared with a loop over the stock pipeline and the UNet alone.

The plain loop is that of a tutorial: one prompt at a time, saved when it is done. Both make the
same images (same model, prompts, guidance scales, seeds, precision and device) and write them as
PNG files. The time runs from the first prompt to the last file, with the models already loaded.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image

from benchmarks.measure import in_turn, medians_of_pairs, peak_memory
from detsd.config import GenerateConfig, load_config, parse_config
from detsd.generate.grid import Grid
from detsd.runs.open import open_run
from detsd.sampling.jobs import grid_jobs
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.sampling.stock import latent_shape
from detsd.utils.paths import resolve

HEAD = [
    "model", "images at once", "dtype", "plain loop", "detsd", "detsd / plain", "bare UNet",
    "detsd / bare", "peak GB", "levels apart",
]  # fmt: skip
SHIPPED = "generate_demo.yaml"
SHIPPED_HEAD = ["the grid of", "with", "as it is", "ratio", "a second of the processor, with",
                "as it is", "ratio"]  # fmt: skip


def shipped_row(others: list[str], pairs: int) -> list[object]:
    """Return images per second of the shipped grid, changed and unchanged; medians of pairs."""
    pipe = DetSDTextualInversionPipeline.from_pretrained("demo_model")
    pipe.load_concepts("learned_embeddings_dict_demo.pt")
    size = pipe.model.image_size
    both = [
        grid_jobs(load_config(resolve(SHIPPED), told, GenerateConfig).grid, size)
        for told in (others, [])
    ]
    found = []
    for jobs in both * (1 + pairs):
        began = time.perf_counter(), time.process_time()
        pipe.make(jobs)
        ended = time.perf_counter(), time.process_time()
        found.append([len(jobs) / (b - a) for a, b in zip(began, ended, strict=True)])
    measured = zip(found[2::2], found[3::2], strict=True)  # the first pair warms up
    return [f"`{SHIPPED}`, {', '.join(others)}", *medians_of_pairs(list(measured))]


def plain_loop(generator: Grid, folder: Path) -> float:
    """Return the stock pipeline's seconds for the generator's jobs."""
    model = generator.pipeline.model
    stock = DiffusionPipeline.from_pretrained(resolve(model.name), torch_dtype=model.dtype)
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)  # as in the jobs
    stock.to(model.device).set_progress_bar_config(disable=True)
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


def row(name: str, base: dict, batch: int, images: int, steps: int) -> list[object]:
    """Return a row of the table."""
    gc.collect()  # frees the previous rows' memory: this row measures its own
    given = {
        "model": base,
        "grid": {
            "prompts": ["a photo of a red star", "a watercolor painting of a blue tree"],
            "guidance_scales": [3, 5],
            "scheduler_names": "ddim",
            "num_inference_steps": steps,
            "num_seeds": max(1, images // 4),
        },
        "output": {"batch_size": batch},
    }
    with TemporaryDirectory() as place, open_run(Path(place) / "grid") as run:
        generator = Grid(parse_config(given, "benchmark", GenerateConfig), run)
        pipe, model, device = generator.pipeline, generator.pipeline.model, run.ranks.device
        first = [generator.jobs[n] for n in generator.batches[0]]
        memory = peak_memory(lambda: pipe.make(first, max_batch_size=len(first)), device)
        # Before the grid, which drops the text encoders.
        cond = model.encode_prompts(["a photo"] * 2 * len(first))
        began = time.perf_counter()
        generator.generate()
        ours = time.perf_counter() - began
        (plain_folder := Path(place) / "plain").mkdir()
        plain = plain_loop(generator, plain_folder)
        apart = max(
            np.abs(
                np.asarray(Image.open(generator.store.path(n)), int)
                - np.asarray(Image.open(plain_folder / f"{n}.png"), int)
            ).max()
            for n in range(len(generator.jobs))
        )
        shape = (2 * len(first), *latent_shape(model, first[0].width, first[0].height))
        x = torch.randn(shape, device=device).to(model.dtype)
        t = torch.tensor(500, device=device)

        @torch.no_grad()
        def bare():
            model.unet(x, t, cond.prompt_embeds, added_cond_kwargs=cond.added_cond_kwargs)

        bound = len(first) / steps / in_turn({"": bare}, min(steps, 5), device)[""]
        count = len(generator.jobs)
    return [
        name, len(first), model.dtype, count / plain, count / ours, plain / ours, bound,
        f"{count / ours / bound:.0%}", memory and memory / 1e9, int(apart),
    ]  # fmt: skip
