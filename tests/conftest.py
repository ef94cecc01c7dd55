from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

# Set before the libraries read them. One thread per process: sums are reproducible, and two ranks
# do not compete for cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import detsd  # first: it sets what torch reads when it is imported  # noqa: F401, I001
import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
SAMPLES = {"inference_prompts": ["a photo of a blob-thing"]}  # of an experiment with samples


# The libraries hold a million objects, which the garbage collector would traverse every second.
def pytest_sessionstart():
    gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.set_threshold(20_000)  # a model has thousands of objects
    gc.enable()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    from tiny import save_tiny_model  # here: the process that distributes the tests needs no torch

    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_v_model(tmp_path_factory) -> Path:
    from tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny-v"), "v_prediction")


@pytest.fixture(scope="session")
def model(tiny_model):
    """Return the tiny model, loaded, for tests that do not change it."""
    import torch

    from detsd.config import ModelConfig
    from detsd.models.loading import load_base_model

    return load_base_model(ModelConfig(str(tiny_model)), torch.device("cpu"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Write twelve small images whose names describe them."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k in range(12):
        pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)  # squares, which PNG packs fast
        photo = Image.fromarray(pixels).resize((48, 40), Image.Resampling.NEAREST)
        photo.save(folder / f"on_a_table_{k}.png")
    return folder


@pytest.fixture
def experiment(tmp_path, tiny_model, photos):
    """Return a function that writes an experiment file for the tiny model, with given keys."""

    def write(name: str = "experiment.yaml", **sections) -> Path:
        hyperparameters = {
            "model": {"pretrained_model_name_or_path": str(tiny_model)},
            "concepts": {
                "concept_strs": ["blob-thing"],
                "initializer_strs": ["red ball"],
                "img_dirs": [str(photos)],
            },
            "training": {
                "num_sgd_steps": 8,
                "train_batch_size": 4,
                "learning_rate": 0.01,
                "checkpoint_freq": 4,
                "metric_report_freq": 2,
                "max_validation_images": 2,
                "num_validation_timesteps": 2,
            },
            "inference": {
                "inference_prompts": [],
                "num_inference_steps": 2,
                "seeds": [0, 1],
            },
        }
        for section, values in sections.items():
            hyperparameters[section] = hyperparameters.get(section, {}) | values
        path = tmp_path / name
        path.write_text(yaml.safe_dump({"name": "test", "hyperparameters": hyperparameters}))
        return path

    return write


@pytest.fixture
def measuring(experiment, tmp_path):
    """Write an experiment that measures its samples in every way, also with the bundled CLIP."""
    from tiny import save_tiny_dino

    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / name).mkdir()
        for k in range(3):
            Image.new("RGB", (40, 40), tuple(c + 9 * k for c in colour)).save(
                tmp_path / name / f"{k}.png"
            )
    path = experiment(
        training={"checkpoint_freq": 2, "learning_rate": 0.1},
        inference={"num_inference_steps": 1, "guidance_scale": 1},
    )
    given = yaml.safe_load(path.read_text())
    given["hyperparameters"] |= {
        "measure": {
            "num_samples": 3,
            "num_prompts": 2,
            "lineup": [str(tmp_path / name) for name in ("red", "blue")],
        },
        "evaluator": {
            "clip": str(ROOT / "demo_model" / "clip"),
            "dino": str(save_tiny_dino(tmp_path / "dino")),
        },
    }
    path.write_text(yaml.safe_dump(given))
    return path


def command(*args: str | Path, ranks: int = 1) -> list[str]:
    """Return the command line of detsd, under torchrun for several ranks."""
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    return [*start, "detsd", *map(str, args)]


def run_detsd(*args: str | Path, ranks: int = 1, **env: str) -> subprocess.CompletedProcess:
    """Run detsd as a user would, in a new process."""
    return subprocess.run(
        command(*args, ranks=ranks),
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=240,
    )
