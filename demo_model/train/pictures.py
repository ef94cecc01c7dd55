"""Pictures to train on: sets that are drawn once and kept, and a window of new ones."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from demo_model import world
from demo_model.captions import caption, lies, vague_caption
from demo_model.scenes import Scene, sample

if TYPE_CHECKING:  # torch takes the processes that draw two seconds each, and they do not need it
    import torch

CAPTIONS_PER_PICTURE = 4
HELD_OUT = 512  # pictures of another seed, for validation


def draw_captioned(job: tuple[str, int, int, int]) -> tuple[np.ndarray, list[list[str]]]:
    """Draw pictures `start` to `stop` of the world of a kind and seed, with captions.

    Returns:
        The pictures (N, 64, 64, 3), and of each its true captions, then `captions.lies`.
    """
    kind, seed, start, stop = job
    images, captions = [], []
    for index in range(start, stop):
        image, text, scene = world.picture(seed, index, kind)
        images.append(np.asarray(image))
        rng = np.random.default_rng((seed, index, 7))
        true = [text] + [caption(scene, rng) for _ in range(CAPTIONS_PER_PICTURE - 1)]
        captions.append(true + lies(scene, rng))
    return np.stack(images), captions


def load_pictures(args: argparse.Namespace, name: str) -> tuple[np.ndarray, list[list[str]]]:
    """Load a picture set (N, 64, 64, 3) with captions for each; draw it at the first call.

    The first CAPTIONS_PER_PICTURE captions are true, the others are `captions.lies`. Sets are
    "rich" and "core", and, from another seed, "held-rich" and "held".
    """
    images, captions = (args.work_dir / f"{name}.{suffix}" for suffix in ("npy", "json"))
    if not captions.exists():
        held, kind = name.startswith("held"), "rich" if name.endswith("rich") else "core"
        count = HELD_OUT if held else args.pictures // 3 if kind == "rich" else args.pictures
        jobs = [(kind, int(held), k, min(k + 500, count)) for k in range(0, count, 500)]
        began = time.time()
        if args.workers > 1:
            with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
                drawn = pool.map(draw_captioned, jobs, chunksize=1)
        else:
            drawn = [draw_captioned(job) for job in jobs]
        np.save(images, np.concatenate([pictures for pictures, _ in drawn]))
        captions.write_text(json.dumps([texts for _, lists in drawn for texts in lists]))
        print(f"{count} pictures of the {kind} world in {time.time() - began:.0f} s", flush=True)
    return np.load(images, mmap_mode="r"), json.loads(captions.read_text())


def shows_logo(captions: list[list[str]]) -> torch.Tensor:
    """Tell the pictures (N,) that show a logo, by their captions."""
    import torch

    return torch.tensor(["logo" in texts[0] for texts in captions])


def to_tensor(images: np.ndarray, device: str) -> torch.Tensor:
    """Turn uint8 (B, H, W, 3) into float (B, 3, H, W) in [-1, 1]."""
    import torch

    pixels = torch.from_numpy(np.array(images)).to(device)  # a copy: the file is mapped read-only
    return pixels.permute(0, 3, 1, 2) / 127.5 - 1


# ---- ever new pictures ---------------------------------------------------------------------------

CHUNK = 128  # pictures
DRAWN = 4  # times, on average, that a picture is sampled from the window


def fresh_scenes(seed: int, chunk: int) -> Iterator[tuple[Scene, list[str]]]:
    """Yield the scenes of a chunk and their true captions; a logo's last one is vague."""
    for index in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        rng = np.random.default_rng((seed, index, 8))
        scene = sample(rng)
        captions = [caption(scene, rng) for _ in range(CAPTIONS_PER_PICTURE - 1)]
        vague = vague_caption(scene, rng)
        yield scene, [*captions, vague or caption(scene, rng)]


def draw_chunk(seed: int, chunk: int) -> tuple[np.ndarray, list[list[str]], list[bool]]:
    """Draw a chunk: pictures (CHUNK, 64, 64, 3), true captions of each, and if they show a logo."""
    scenes, captions = zip(*fresh_scenes(seed, chunk), strict=True)
    images = np.stack([np.asarray(world.render(scene)) for scene in scenes])
    return images, list(captions), [scene.figure == "logo" for scene in scenes]


class FreshChunks:
    """Chunks of new pictures, drawn ahead by other processes if there are several."""

    def __init__(self, seed: int, workers: int):
        self.seed, self.workers = seed, workers
        self.ahead: dict[int, Future] = {}
        if workers > 1:
            spawn = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(workers, spawn, initializer=_ignore_signals)

    def draw(self, chunk: int) -> tuple[np.ndarray, list[list[str]], list[bool]]:
        """Return `draw_chunk` of this seed; callers ask for chunks in ascending order."""
        if self.workers < 2:
            return draw_chunk(self.seed, chunk)
        for k in range(chunk, chunk + 2 * self.workers):
            if k not in self.ahead:
                self.ahead[k] = self.pool.submit(draw_chunk, self.seed, k)
        return self.ahead.pop(chunk).result()

    def close(self) -> None:
        """End the other processes."""
        if self.workers > 1:
            self.pool.shutdown(cancel_futures=True)


def _ignore_signals() -> None:
    """Let the trainer save at Ctrl-C, which the terminal sends to its workers too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def chunks_of(samples: int, window: int) -> range:
    """Return the numbers of the chunks in the window after `samples` samples.

    They hold `window` pictures; a new chunk replaces the oldest one.
    """
    first = samples // (DRAWN * CHUNK)
    return range(first, first + window // CHUNK)
