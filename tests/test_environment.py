"""A task's environment: its context, its image, the hook that completes the image."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import packaging
from determined.common import context, v1file_utils
from tiny import ROOT

TOKEN = "hf_secretsecretsecret"


def test_the_context_is_small_and_whole(capsys):
    """As `det e create FILE .` reads it; the master takes 95 MiB."""
    files = {f.path: v1file_utils.v1File_size(f) for f in context.read_v1_context(ROOT)}
    assert sum(files.values()) < 60e6
    for name in (
        "finetune_demo.yaml",
        "startup-hook.sh",
        "requirements.txt",
        "detsd/train/trainer.py",
    ):
        assert name in files
    assert "demo_model/unet/diffusion_pytorch_model-00001-of-00002.safetensors" in files
    assert len([name for name in files if name.startswith("det_logos/")]) > 40
    unwanted = (".git", ".venv", ".pytest_cache", "tests", "outputs", "benchmarks", "docs")
    unwanted += ("findings",)
    assert not [name for name in files if name.split("/")[0] in unwanted]


class Image:
    """A container whose image holds the distributions `packages` and a fake pip."""

    def __init__(self, folder: Path, packages: dict[str, str]):
        self.folder = folder
        venv.create(folder / "python", with_pip=False)
        (site,) = (folder / "python").glob("lib/python3*/site-packages")
        (site / "packaging").symlink_to(Path(packaging.__file__).parent)
        for name, version in packages.items():
            info = site / f"{name.replace('-', '_')}-{version}.dist-info"  # as in a wheel
            info.mkdir()
            (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        command = folder / "bin" / "python3"
        command.parent.mkdir()
        command.write_text(f"""#!/bin/bash
            [ "$1 $2" != "-m pip" ] && exec {folder}/python/bin/python3 "$@"
            echo "pip ${{*:3}}; PIP_CONSTRAINT is ${{PIP_CONSTRAINT-unset}}"
            while [ "$1" != -r ]; do shift; done
            cp "$2" {folder}/asked; cp "$4" {folder}/pins
            exit ${{PIP_ENDS:-0}}
        """)
        command.chmod(0o755)

    def start(
        self, folder: Path = ROOT, task: str = ": the task", **env: str
    ) -> subprocess.CompletedProcess:
        """Run the hook in `folder` as Determined does, which then starts the task."""
        return subprocess.run(
            ["bash", "-c", f"set -e -x; source startup-hook.sh; {task}"], cwd=folder, text=True,
            capture_output=True, timeout=60, env=env | {
                "PATH": f"{self.folder}/bin:{os.environ['PATH']}", "PIP_CONSTRAINT": "/image.txt",
                "HF_AUTH_TOKEN": TOKEN, "TMPDIR": str(self.folder),
            },
        )  # fmt: skip

    def lines(self, name: str) -> dict[str, str]:
        """Return the name and version of each line that pip was given."""
        path = self.folder / name
        text = path.read_text() if path.exists() else ""
        return dict(line.partition("==")[::2] for line in text.splitlines())


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_hook_on_an_image_like_the_default_one(tmp_path):
    image = Image(tmp_path, {
        "torch": "2.3.0a0+40ec155e58.nv24.3", "numpy": "1.24.4", "pillow": "10.2.0",
        "tqdm": "4.66.2", "scipy": "1.12.0", "tensorboard": "2.9.0", "pyyaml": "6.0.1",
    })  # fmt: skip
    done = image.start()
    assert done.returncode == 0, done.stderr
    asked, given = image.lines("asked"), image.lines("pins")
    for name in ("diffusers", "transformers", "accelerate", "safetensors", "tensorboard"):
        assert any(line.startswith(name) for line in asked), asked
    for name in ("torch", "numpy", "pillow", "tqdm", "scipy", "pyyaml"):
        assert not any(line.lower().startswith(name) for line in asked), asked
    # Existing packages stay; missing or old ones are installed as tested with such a torch.
    assert given["torch"] == "2.3.0a0+40ec155e58.nv24.3"
    assert given["numpy"] == "1.24.4"
    assert not {"pillow", "tqdm", "scipy"} & set(given)
    for name in ("diffusers", "transformers", "tensorboard"):
        assert given[name] == pins("determined-0.38-image.txt")[name]
    assert "PIP_CONSTRAINT is unset" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    assert done.stderr.rstrip().endswith("+ : the task")  # tracing is on again, as before

    failed = image.start(PIP_ENDS="1")
    assert failed.returncode == 1
    assert "could not install" in failed.stderr
    assert "Dockerfile" in failed.stderr
    assert "the task" not in failed.stderr.splitlines()[-1]


def test_the_hook_sets_what_the_launcher_and_torch_warn_about(tmp_path):
    """One slot keeps its threads; several get one each, as torchrun would set it."""
    shown = "echo $OMP_NUM_THREADS $TORCH_CPP_LOG_LEVEL"
    tested = "tested.txt" if sys.version_info >= (3, 11) else "determined-0.38-image.txt"
    image = Image(tmp_path, {"torch": "2.13.0"} | pins(tested))
    for slots, given, expected in (
        ("[0,1]", {}, "1 ERROR"),
        ("[0]", {}, "ERROR"),
        ("[0,1]", {"OMP_NUM_THREADS": "3", "TORCH_CPP_LOG_LEVEL": "INFO"}, "3 INFO"),
    ):
        task = {"DET_TASK_TYPE": "TRIAL", "DET_SLOT_IDS": slots}
        done = image.start(task=shown, **(task | given))
        assert done.stdout == f"{expected}\n", done.stderr


def test_the_hook_on_a_complete_image_installs_nothing(tmp_path):
    tested = "tested.txt" if sys.version_info >= (3, 11) else "determined-0.38-image.txt"
    complete = {"torch": "2.13.0"} | pins(tested)
    image = Image(tmp_path, complete)
    done = image.start()
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "asked").exists()
    assert TOKEN not in done.stderr

    # A trial without a slot gets an error before the launcher fails.
    zero = image.start(DET_TASK_TYPE="TRIAL", DET_SLOT_IDS="[]")
    assert zero.returncode == 1
    assert "resources.slots_per_trial is 0" in zero.stderr

    # The harness is the cluster's: another version is reported, kept, and pinned for pip.
    image = Image(tmp_path / "older", complete | {"determined": "0.37.0"})
    done = image.start()
    assert "this cluster has determined 0.37.0, tested is determined<0.39,>=0.38.0" in done.stdout
    assert not (tmp_path / "older" / "asked").exists()

    # Without diffusers: only that is installed, in the version tested with this Python.
    del complete["diffusers"]
    image = Image(tmp_path / "less", complete)
    assert image.start().returncode == 0
    (asked,) = image.lines("asked")
    assert asked.startswith("diffusers")
    assert image.lines("pins")["diffusers"] == pins(tested)["diffusers"]
    assert image.lines("pins")["determined"] == complete["determined"]


def test_what_the_dockerfile_copies_is_all_that_its_step_needs(tmp_path):
    """No image can be built here: the test copies its files, and runs its step on them."""
    image, work = Image(tmp_path / "image", {}), tmp_path / "work"
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        words = line.split()
        if words[:1] != ["COPY"]:
            continue
        to = work / words[-1]
        for name in words[1:-1]:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, to)
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, to)
    done = image.start(work)
    assert done.returncode == 0, done.stderr
    assert "diffusers" in done.stdout
    assert image.lines("pins")["diffusers"]
    # It includes the harness, so that containers need not install it again.
    assert any(line.startswith("determined") for line in image.lines("asked"))
    assert image.lines("pins")["determined"] == "0.38.1"


def test_waiting_threads_spin_briefly_unless_somebody_says_otherwise():
    """GNU OpenMP reads it when torch is imported; so nothing of detsd may import torch before."""
    look = (
        "import os, sys, detsd; assert 'torch' not in sys.modules; "
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    free = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    for given, expected in (
        ({}, "700"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
    ):
        told = subprocess.run(
            [sys.executable, "-c", look], cwd=ROOT, env=free | given, capture_output=True, text=True
        )
        assert told.stdout.strip() == expected, told.stderr
