"""What shows in a process of its own only: starting up, and threads that wait beside other work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.finetune import bare_unet
from benchmarks.measure import timed
from benchmarks.start import LINES
from detsd.config import ModelConfig
from detsd.models import load_base_model

ROOT = Path(__file__).parent.parent
SPINS = ("as GNU OpenMP has it", "0", "100", "300", "1000", "3000", "10000", "passive")
BUSY = "while True: pass"


def start_rows() -> list[list[object]]:
    """Seconds from the start of a process to what it is started for, and those of the imports."""
    with TemporaryDirectory() as place:
        tune = "finetune finetune_demo.yaml --set training.num_sgd_steps=1 "
        make = "generate generate_demo.yaml --set grid.seeds=[0] --set grid.guidance_scales=[4] "
        commands = {
            "Python alone": ["-c", ""],
            "import torch": ["-c", "import torch"],
            "import detsd.trainer": ["-c", "import detsd.trainer"],
            **{f"detsd {line}": ["-m", "detsd", *line.split()] for line in LINES},
            "detsd show of a concept": ["-m", "detsd", "show", "learned_embeddings_dict_demo.pt"],
            "detsd finetune, with one step, no samples": [
                "-m", "detsd", *tune.split(), "--set", "inference.inference_prompts=[]",
                "--output-dir", f"{place}/tuned",
            ],
            "detsd generate, with one image of one step": [
                "-m", "detsd", *make.split(), "--set", "grid.prompts=a red star",
                "--set", "grid.num_inference_steps=1", "--output-dir", f"{place}/made",
            ],
        }  # fmt: skip
        made = []
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=False)
            made.append([name, time.perf_counter() - began])
    return made


def spin_rows(count: int) -> list[list[object]]:
    """Samples and images a second under each spin count: alone, and beside one busy process."""
    made = [[spin] for spin in SPINS]
    for beside in (False, True):
        busy = subprocess.Popen([sys.executable, "-c", BUSY]) if beside else None
        try:
            best = [[0.0, 0.0] for _ in SPINS]
            for _ in range(3):  # in turn
                for k, spin in enumerate(SPINS):
                    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
                    free = {n: v for n, v in os.environ.items() if n not in names}
                    if spin == "passive":
                        free["OMP_WAIT_POLICY"] = "PASSIVE"
                    else:  # what is unset, detsd sets: so GNU OpenMP's own count is written out
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
    """Samples a second of the demo's UNet, forward and backward at batch 8, and forward alone."""
    device = torch.device("cpu")
    model = load_base_model(ModelConfig("demo_model"), device)
    step = bare_unet(model, 8)
    size = model.unet.config.sample_size
    x, t = torch.randn(8, model.unet.config.in_channels, size, size), torch.tensor(500)

    @torch.no_grad()
    def forward() -> None:
        told = model.conditioning(["a photo"] * 8)
        model.unet(x, t, told.hidden)

    timed(step, 2, device)
    return 8 / timed(step, count, device), 8 / timed(forward, 2 * count, device)


if __name__ == "__main__":
    print(*_rates(int(sys.argv[1])))
