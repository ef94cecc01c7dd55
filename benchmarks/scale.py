"""A grid of 100,000 images over 64 ranks on one machine, with a stand-in for the denoiser.

    python -m benchmarks.scale [--images 100000] [--ranks 64] [--side 64] [--seconds 60]

Everything but the model is real: the ranks are processes that communicate over Core API, and the
chief writes files, draws contact sheets and stores checkpoints (into a folder). Two grids:

    taking: images are ready at once; measures how many one chief can take.
    mixed:  batches of 20 and of 50 steps take their time; measures what ranks lose by waiting.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import struct
import time
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from detsd.config import GenerateConfig, parse_config
from detsd.generate import grid as grids
from detsd.generate.grid import Grid
from detsd.runs import open as open_runs
from detsd.runs.folder import METADATA
from detsd.runs.local import LocalRun
from detsd.runs.open import open_run
from detsd.sampling.jobs import GeneratedImage
from detsd.utils import png


class StandIn:
    """A pipeline that makes images of noise, in `seconds_per_step` for each step of a batch."""

    seconds_per_step = 0.0
    busy = 0.0  # seconds that this process spent making images

    def __init__(self, side: int):
        self.model = SimpleNamespace(
            image_size=side,
            device=torch.device("cpu"),
            dtype=torch.float32,
            commit=None,
            vae_name=None,
            vocabulary=SimpleNamespace(names=[], is_word=lambda _: True, fits=lambda _: True),
        )
        self.concepts: list[str] = []
        self.warnings = SimpleNamespace(log=lambda *_: None)
        self.sampler = SimpleNamespace(encode_all=lambda *_: None)
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        self.image = Image.fromarray(pixels)
        self.png = png.encode(self.image)

    def from_pretrained(self, *_, **__):
        return self

    def load_concepts(self, *_):
        return []

    def load_from_uuids(self, _):
        return []

    def check(self, *_):
        pass

    def concept_fingerprints(self, _):
        return {}

    def guided_calls(self, job):
        return [job.guided] * job.num_inference_steps

    def settings(self, job):
        return {
            "prompt": job.prompt, "negative_prompt": "", "seed": job.seed, "width": job.width,
            "height": job.height, "guidance_scale": job.guidance_scale, "concepts": {},
            "num_inference_steps": job.num_inference_steps, "scheduler_name": job.scheduler_name,
            "model": {"pretrained_model_name_or_path": "none", "revision": None},
        }  # fmt: skip

    def make(self, jobs, **_):
        seconds = self.seconds_per_step * jobs[0].num_inference_steps
        time.sleep(seconds)
        self.busy += seconds
        return [GeneratedImage(self.image, False, len(jobs))] * len(jobs)

    def encode(self, _, record):
        """Return a PNG file whose pixels were encoded before, since encoding is not measured."""
        text = b"detsd\0" + json.dumps(record).encode()
        chunk = struct.pack(">I", len(text)) + b"tEXt" + text
        chunk += struct.pack(">I", zlib.crc32(b"tEXt" + text))
        return self.png[:33] + chunk + self.png[33:]  # after the header


class FolderRun(LocalRun):
    """A run that stores checkpoints as a cluster does, in a folder."""

    folder_is_kept = False
    keeps = 1000
    storage: Path
    resident: list[tuple[float, int, int]]  # at each checkpoint: time, images, bytes of memory

    def store(self, steps, metadata, write):
        uuid = f"{steps:08d}"
        (self.storage / uuid).mkdir()
        write(self.storage / uuid)
        facts = {"steps_completed": steps, **metadata}
        (self.storage / uuid / METADATA).write_text(json.dumps(facts))
        self.resident.append((time.monotonic(), steps, memory()))
        return uuid

    def fetch(self, uuid, to, wanted=lambda name: True):
        shutil.copytree(
            self.storage / uuid, to, dirs_exist_ok=True,
            ignore=lambda folder, names: [name for name in names if not wanted(name)],
        )  # fmt: skip


def memory() -> int:
    """Return the bytes that this process alone holds, without the libraries' shared code."""
    lines = dict(s.split(":") for s in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["RssAnon"].split()[0])


def a_rank(rank: int, args, given: dict, folder: Path, port: int, out, end) -> None:
    """Run one process of the grid; put its times and, for the chief, checkpoints into `out`."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(args.ranks),
        "LOCAL_WORLD_SIZE": str(args.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    open_runs.LocalRun = FolderRun
    FolderRun.storage, FolderRun.resident = folder / "storage", []
    with open_run(folder / "run") as run:
        grid = Grid(parse_config(given, "benchmark", GenerateConfig), run)
        run.ranks.allgather(None)
        began = time.monotonic()
        assert grid.generate()
        stored = [(moment - began, *rest) for moment, *rest in FolderRun.resident]
        out.put((rank, grid.pipeline.busy, time.monotonic() - began, stored))
    end.wait()  # the store that the others read ends with the chief


def run_grid(args, given: dict, folder: Path) -> dict[int, tuple]:
    """Run all ranks of a grid in `folder`; return by rank: seconds making, in all, checkpoints."""
    (folder / "storage").mkdir(parents=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    out, end = fork.SimpleQueue(), fork.Barrier(args.ranks)
    processes = [
        fork.Process(target=a_rank, args=(rank, args, given, folder, port, out, end))
        for rank in range(args.ranks)
    ]
    for process in processes:
        process.start()
    found = {}
    while len(found) < args.ranks:
        if any(process.exitcode for process in processes):  # the others would wait for it forever
            for process in processes:
                process.terminate()
            raise RuntimeError("a process of the grid failed; its error is above")
        if out.empty():
            time.sleep(0.05)
        else:
            rank, *times = out.get()
            found[rank] = times
    for process in processes:
        process.join()
    return found


def a_grid(images_: int, steps: list[int], batch: int, freq: int) -> dict:
    return {
        "model": {"pretrained_model_name_or_path": "none"},
        "grid": {
            "prompts": [f"prompt {k}" for k in range(10)],
            "guidance_scales": [2, 3, 4, 5],
            "num_inference_steps": steps,
            "num_seeds": max(1, images_ // (40 * len(steps))),
        },
        "output": {"batch_size": batch, "checkpoint_freq": freq},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60, help="rough length of the mixed grid")
    args = parser.parse_args()
    grids.DetSDTextualInversionPipeline = StandIn(args.side)
    with TemporaryDirectory() as name:
        folder = Path(name) / "taking"
        given = a_grid(args.images, [20], 16, 5)
        found = run_grid(args, given, folder)
        _, seconds, resident = found[0]
        taking, taken, _ = resident[max(0, len(resident) - 2)]  # the last waits for all sheets
        count = len(list((folder / "run" / "images").glob("*.png")))
        size = sum(p.stat().st_size for p in (folder / "run" / "images").glob("*.png"))
        stored = sum(p.stat().st_size for p in (folder / "storage").rglob("*") if p.is_file())
        print(f"{count} images of {size / count / 1e3:.0f} KB over {args.ranks} ranks")
        print(f"taking: {taken / taking:.0f} images/s until the last checkpoint but one, "
              f"{count / seconds:.0f} until all contact sheets are drawn; "
              f"{len(resident)} checkpoints")  # fmt: skip
        print(f"memory of the chief: {resident[0][-1] / 1e6:.0f} MB at the first, "
              f"{resident[-1][-1] / 1e6:.0f} MB at the last checkpoint")  # fmt: skip
        sheets = sum(p.stat().st_size for p in (folder / "storage").glob("*/sheets/*"))
        print(f"bytes of all checkpoints: {(stored - sheets) / size:.2f} times the images', "
              f"and {sheets / size:.2f} times for contact sheets")  # fmt: skip
        shutil.rmtree(folder / "run")
        open_runs.LocalRun = FolderRun
        FolderRun.storage = folder / "storage"
        with open_run(folder / "run") as run:
            run.latest = max((folder / "storage").iterdir())
            run.latest_uuid = run.latest.name
            began = time.monotonic()
            grid = Grid(parse_config(given, "benchmark", GenerateConfig), run)
            assert len(grid.store.finished) == count
            print(f"resuming: {time.monotonic() - began:.1f} s until the first batch")
        # Enough batches of 20 and of 50 steps, 35 on average, to fill the time.
        StandIn.seconds_per_step = args.seconds / 35 / 20  # a rank makes twenty batches
        given = a_grid(args.ranks * 20 * 4, [20, 50], 4, 5)
        found = run_grid(args, given, Path(name) / "mixed")
        busy, wall = sum(b for b, _, _ in found.values()), max(w for _, w, _ in found.values())
        print(f"mixed steps: {1 - busy / args.ranks / wall:.1%} of the ranks' time lost")


if __name__ == "__main__":
    main()
