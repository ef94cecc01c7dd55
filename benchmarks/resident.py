"""Peak resident memory of whole commands, compared with other checkouts of this repository.

    python -m benchmarks.resident --precision bf16 CHECKOUT CHECKOUT

Random weights of real size, stored in float32 as most models are: a fine-tuning of one step at
batch 1 with gradient checkpointing, and one image in one step, at the model's own size. Each runs
in its own process, one at a time, and the system reports the peak memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml
from PIL import Image

from benchmarks.models import save_random
from detsd.models.loading import DTYPES

ROOT = Path(__file__).parent.parent
WORD = "blob-thing"
MODELS = ("sd1", "sdxl")
HEAD = ["model", "command", "GB at most"]


def save_commands(place: Path, model: dict[str, object], size: int) -> dict[str, list[str]]:
    """Write a fine-tuning and a grid of one image; return their arguments by name."""
    (place / "photos").mkdir()
    Image.effect_noise((size, size), 99).convert("RGB").save(place / "photos" / "a.png")
    finetune = {
        "model": model,
        "concepts": {"concept_strs": WORD, "initializer_strs": "red ball",
                     "img_dirs": str(place / "photos")},
        "training": {"num_sgd_steps": 1, "checkpoint_freq": 1, "train_batch_size": 1,
                     "max_validation_images": 1, "num_validation_timesteps": 1,
                     "gradient_checkpointing": True},
        "inference": {"inference_prompts": []},
    }  # fmt: skip
    generate = {
        "model": model | {"safety_checker": False},
        "grid": {"prompts": "a photo of a red ball", "num_inference_steps": 1,
                 "guidance_scales": 7, "seeds": 1},
    }  # fmt: skip
    found = {}
    for name, sections in (("finetune", finetune), ("generate", generate)):
        path = place / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"name": name, "hyperparameters": sections}))
        found[name] = [name, str(path)]
    return found


# A process inherits the peak of its parent, which here has made the model.
STARTER = """import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=sys.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)"""


def peak(arguments: list[str], checkout: Path, folder: Path) -> float:
    """Run a command of detsd in a checkout; return its peak resident memory in gigabytes."""
    command = [sys.executable, "-m", "detsd", *arguments, "--output-dir", str(folder)]
    done = subprocess.run(
        [sys.executable, "-c", STARTER, *command], cwd=checkout, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024) / 1e9


def rows(
    names: list[str], precision: str, stored: str, checkouts: list[Path], small: bool
) -> Iterator[list[object]]:
    """Yield model, command and the gigabytes of each checkout, as they are measured."""
    for name in names:
        with TemporaryDirectory(prefix="resident-") as top:
            place = Path(top)
            save_random(name, place / "model", torch.device("cpu"), DTYPES[stored], small)
            model = {"pretrained_model_name_or_path": str(place / "model"), "precision": precision}
            size = 128 if small else {"sd1": 512, "sdxl": 1024}[name]
            for command, arguments in save_commands(place, model, size).items():
                yield [name, command, *(peak(arguments, path, place / f"{command}-{k}")
                                        for k, path in enumerate(checkouts))]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Measure, and print a line for each command as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resident", description=__doc__)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[ROOT])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["sd1"])
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16")
    parser.add_argument("--stored", choices=list(DTYPES), default="fp32", help="dtype in the files")
    args = parser.parse_args(argv)
    for row in rows(args.models, args.precision, args.stored, args.checkouts, small=False):
        print(*row, flush=True)


if __name__ == "__main__":
    main()
