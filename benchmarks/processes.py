"""Measurements in separate processes: start-up, and threads that wait for others."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.finetune import bare
from benchmarks.measure import timed
from detsd.config import ModelConfig
from detsd.models.loading import load_base_model

ROOT = Path(__file__).parent.parent
SPINS = ("as GNU OpenMP has it", *map(str, (0, 100, 300, 500, 700, 1000, 3000, 10_000)), "passive")
BUSY = "while True: pass"
IMPORTING = """
from detsd.utils import progress
with progress.importing_libraries():
    import {}
"""  # as the commands do
IMPORTS = {
    "Python alone": "",
    "import torch": "import torch",
    "import all that trains": IMPORTING.format("detsd.train.trainer"),
    "import all that makes images": IMPORTING.format("detsd.generate.grid"),
}
WELL = (
    "--help",
    "show learned_embeddings_dict_demo.pt",
    "finetune finetune_demo.yaml --output-dir OUT --set training.num_sgd_steps=1 --set "
    "training.max_validation_images=1 --set inference.inference_prompts=[]",
    "generate generate_demo.yaml --output-dir OUT --set grid.prompts=star --set grid.seeds=0 --set "
    "grid.guidance_scales=4 --set grid.num_inference_steps=1",
)
MISTAKES = (
    "finetune gone.yaml",
    "finetune finetune_demo.yaml --set num_sgd_steps=3",
    "finetune finetune_demo.yaml --set concepts.concept_strs=cat",
    "finetune finetune_demo.yaml --set concepts.img_dirs=gone",
    "finetune finetune_demo.yaml --set concepts.concept_strs=cat "
    "--set model.pretrained_model_name_or_path=nobody/never-fetched --output-dir LICENSE/x",
    "generate finetune_demo.yaml",
    "generate generate_demo.yaml --set concepts.files=gone.pt",
    "show gone.pt",
    "app --concepts gone.pt",
)


def start_rows(rounds: int) -> list[list[object]]:
    """Return the seconds from the start of a process to its end: wall time and CPU time.

    Medians of `rounds` starts. Other programs on the machine add to wall time, not to CPU time.
    """
    lines = {f"detsd {line}": (0, ["-m", "detsd", *line.split()]) for line in WELL}
    lines |= {f"detsd {line}": (2, ["-m", "detsd", *line.split()]) for line in MISTAKES}
    lines = {name: (0, ["-c", code]) for name, code in IMPORTS.items()} | lines
    return [[name, *_start(*line, rounds)] for name, line in lines.items()]


def _start(code: int, words: list[str], rounds: int) -> list[float]:
    """Return the medians of both times for a process that ends with exit code `code`."""
    found = []
    for _ in range(rounds):
        with TemporaryDirectory() as place:
            command = [sys.executable, *(word.replace("OUT", f"{place}/out") for word in words)]
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            waited = time.perf_counter() - began
        if done.returncode != code:
            raise RuntimeError(f"{command}: {done.stderr}")
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append((waited, now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime))
    return list(map(statistics.median, zip(*found, strict=True)))


def spin_rows(spins: Sequence[str], count: int, rounds: int) -> list[list[object]]:
    """Return samples per second for each spin count: alone, and beside one busy process."""
    made: list[list[object]] = [[spin] for spin in spins]
    for beside in (False, True):
        busy = subprocess.Popen([sys.executable, "-c", BUSY]) if beside else None
        try:
            best = [[0.0, 0.0] for _ in spins]
            for _ in range(rounds):  # in turn
                for k, spin in enumerate(spins):
                    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
                    free = {n: v for n, v in os.environ.items() if n not in names}
                    if spin == "passive":
                        free["OMP_WAIT_POLICY"] = "PASSIVE"
                    else:  # detsd sets it if it is unset, so GNU OpenMP's own count is given
                        free["GOMP_SPINCOUNT"] = spin if spin.isdigit() else "300000"
                    told = subprocess.run(
                        [sys.executable, "-m", "benchmarks.processes", str(count)],
                        cwd=ROOT, env=free, capture_output=True, text=True, check=True,
                    ).stdout  # fmt: skip
                    best[k] = [max(a, float(b)) for a, b in zip(best[k], told.split(), strict=True)]
        finally:
            if busy:
                busy.kill()
        for row, rates in zip(made, best, strict=True):
            row += rates
    return made


def _rates(count: int) -> tuple[float, float]:
    """Return the demo UNet's samples per second at batch 8: forward and backward, forward alone."""
    device = torch.device("cpu")
    model = load_base_model(ModelConfig("demo_model"), device)
    step = bare(model, 8)
    size = model.unet.config.sample_size
    x, t = torch.randn(8, model.unet.config.in_channels, size, size), torch.tensor(500)

    @torch.no_grad()
    def forward() -> None:
        cond = model.encode_prompts(["a photo"] * 8)
        model.unet(x, t, cond.prompt_embeds)

    timed(step, 2, device)
    return 8 / timed(step, count, device), 8 / timed(forward, 2 * count, device)


if __name__ == "__main__":
    print(*_rates(int(sys.argv[1])))
