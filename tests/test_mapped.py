"""Weights in another dtype than their files': the same numbers, and never both in memory.

The memory of dropped weights is given back.
"""

import ctypes
import platform
import re
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from forked import Forked
from safetensors.torch import load_file, save_file
from tiny import FAMILIES

from detsd.config import ModelConfig
from detsd.models.loading import load_base_model
from detsd.models.mapped import cast, stored_dtype
from detsd.utils.memory import give_back_memory

M_MMAP_THRESHOLD = -3  # of glibc's mallopt
MEGABYTES = 128  # in float32


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_libraries(family, tmp_path):
    folder = FAMILIES[family](tmp_path)
    model = load_base_model(ModelConfig(str(folder), precision="bf16"), torch.device("cpu"))
    right = UNet2DConditionModel.from_pretrained(
        folder, subfolder="unet", torch_dtype=torch.bfloat16, local_files_only=True
    )
    found, wanted = model.unet.state_dict(), right.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert {p.dtype for part in (model.unet, model.vae) for p in part.parameters()} == {
        torch.bfloat16
    }


def test_weights_of_several_dtypes_are_left_to_the_libraries(tmp_path):
    """In a single dtype, the more precise weights would be rounded twice."""
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2)}, one)
    save_file({"a": torch.ones(3).half()}, two)
    assert stored_dtype([one]) == torch.float32
    assert stored_dtype([two]) == torch.float16
    assert stored_dtype([one, two]) is None


def memory(field: str) -> float:
    """Return this process's memory in megabytes: VmRSS is the current value, VmHWM the peak."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def layers() -> list[torch.nn.Linear]:
    return [torch.nn.Linear(1024, MEGABYTES * 16, bias=False) for _ in range(16)]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="files' pages stay mapped")
def test_a_cast_does_not_hold_the_file_as_well(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights = torch.nn.Sequential(*layers())
    save_file(weights.state_dict(), path)
    assert path.stat().st_size > MEGABYTES << 20

    def grown(files: list[Path]) -> float:
        with torch.device("meta"):
            model = torch.nn.Sequential(*layers())
        model.load_state_dict(load_file(path), assign=True)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = memory("VmHWM")
        cast(model, torch.bfloat16, files)
        grown = memory("VmHWM") - before
        assert torch.equal(model[7].weight, weights[7].weight.bfloat16())
        return grown

    def run(files: list[Path]) -> None:
        print(grown(files))

    said = []
    for files in ([path], []):
        with Forked(tmp_path, lambda files=files: run(files)) as process:
            assert process.end() == [0], process.said
            said += map(float, process.said)
    assert said[0] < 0.75 * MEGABYTES < 1.3 * MEGABYTES < said[1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others keep none")
def test_memory_of_dropped_weights_is_given_back(tmp_path):
    """glibc keeps it while weights at higher addresses, here the last layer's, still exist."""

    def run() -> None:
        # The value that glibc sets itself once tensors of 32 MB have been freed.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 32 << 20)
        model = torch.nn.Sequential(*layers())
        before = memory("VmRSS")
        model[:-1].to("meta")
        print(before - memory("VmRSS"))
        give_back_memory()
        print(before - memory("VmRSS"))

    with Forked(tmp_path, run) as process:
        assert process.end() == [0], process.said
        kept, given = map(float, "".join(process.said).split())
    assert kept < 0.1 * MEGABYTES < 0.9 * MEGABYTES < given
