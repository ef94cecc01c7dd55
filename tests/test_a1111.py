"""Our images in A1111 and ComfyUI: the text of the settings, and the resulting noise levels.

The parser below follows A1111's grammar: prompt, negative prompt, and a last line of `key: value`,
where a value with commas is JSON in quotation marks.
"""

import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ROOT

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.writing import write_concepts
from detsd.sampling.a1111 import a1111_fields, file_digest
from detsd.sampling.jobs import Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.sampling.stock import make_scheduler
from detsd.utils import png

RECORD = {
    "prompt": "a cat, sitting",
    "negative_prompt": "",
    "seed": 7,
    "guidance_scale": 7.5,
    "num_inference_steps": 20,
    "scheduler_name": "euler",
    "width": 512,
    "height": 768,
    "model": {"pretrained_model_name_or_path": "models/v1-5-pruned.safetensors"},
    "concepts": {},
    "spacing": None,
}


def fields(text: str) -> dict[str, str]:
    """Parse the fields of A1111's last line, letter by letter."""
    found, rest = {}, text
    while rest:
        key, _, rest = rest.partition(": ")
        if rest.startswith('"'):
            value, end = json.JSONDecoder().raw_decode(rest)
            rest = rest[end:]
        else:
            value = rest.split(",")[0]
            rest = rest[len(value) :]
        assert re.fullmatch(r"\w[\w /-]+", key)
        assert not rest or rest.startswith(", ")
        found[key], rest = value, rest[2:]
    return found


def parse(text: str) -> tuple[str, str, dict[str, str]]:
    """Split a text into prompt, negative prompt and fields, as A1111 does."""
    *lines, last = text.strip().split("\n")
    start = next((k for k, x in enumerate(lines) if x.startswith("Negative prompt:")), len(lines))
    negative = "\n".join(lines[start:]).removeprefix("Negative prompt:").strip()
    return "\n".join(lines[:start]), negative, fields(last)


def test_the_text_is_what_a1111_writes():
    given = {"Schedule type": "DDIM", "SGM noise multiplier": True, "Model hash": "0123456789"}
    assert png.parameters(RECORD, given) == (
        "a cat, sitting\n"
        "Steps: 20, Sampler: Euler, Schedule type: DDIM, CFG scale: 7.5, Seed: 7, Size: 512x768, "
        "Model hash: 0123456789, Model: v1-5-pruned, RNG: CPU, SGM noise multiplier: True"
    )


@pytest.mark.parametrize(
    "name", ["v1-5, pruned", "a: b", 'the "best" one', "x\ny", "plain v1.5", "é"]
)
def test_every_value_comes_back_whole(name):
    changed = RECORD | {"model": {"pretrained_model_name_or_path": f"models/{name}.safetensors"}}
    changed |= {"prompt": "first line\nsecond: 1, 2", "negative_prompt": "ugly, bad: 1\nblurred"}
    changed |= {"prompt_weights": False}
    changed |= {"guidance_interval": [0.2, 0.8], "spacing": "trailing", "guidance_scale": 3}
    given = {"TI hashes": "det-logo: 0123456789ab, other: ba9876543210", "Schedule type": "Simple"}
    prompt, negative, found = parse(png.parameters(changed, given))
    assert (prompt, negative) == (changed["prompt"], changed["negative_prompt"])
    assert found == {
        "Steps": "20", "Sampler": "Euler", "Schedule type": "Simple", "CFG scale": "3", "Seed": "7",
        "Size": "512x768", "Model": name, "RNG": "CPU", "Emphasis": "None",
        "Guidance interval": "0.2 to 0.8",
        "Timestep spacing": "trailing", "TI hashes": given["TI hashes"],
    }  # fmt: skip


def test_hashes_are_those_of_files(tiny_model, tmp_path):
    """They are of a concept's file or, for a checkpoint, of the file that other tools read."""
    model = DetSDTextualInversionPipeline.from_pretrained(str(tiny_model)).model
    write_concepts([LearnedConcept("two, words: x", "", (torch.ones(1, 16),))], tmp_path)
    single = tmp_path / "cat.pt"
    single.write_bytes(b"a file")
    concepts = {"two, words: x": {"source": str(tmp_path)}, "cat": {"source": str(single)}}
    concepts["gone"] = {"source": "uuid:1234"}
    (written,) = tmp_path.glob("*.safetensors")
    of_checkpoint = hashlib.sha256(written.read_bytes()).hexdigest()[:12]
    of_single = hashlib.sha256(b"a file").hexdigest()[:12]
    found = a1111_fields(model, {"scheduler_name": "euler", "spacing": None, "concepts": concepts})
    assert found["TI hashes"] == f"two words x: {of_checkpoint}, cat: {of_single}"
    assert "Model hash" not in found  # the model is a folder
    assert file_digest(single)[:12] == of_single
    assert file_digest(Path("x" * 5000)) == ""


def test_a_saved_image_has_the_fields(tiny_model, tmp_path):
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(tiny_model))
    job = Job("a photo", 3, num_inference_steps=2, scheduler_name="dpmsolver++", spacing="trailing")
    (path,) = pipe.save([job], pipe.make([job]), tmp_path)
    _, _, found = parse(Image.open(path).text["parameters"])
    assert found["RNG"] == "CPU"
    assert found["Schedule type"] == "Simple"
    assert found["SGM noise multiplier"] == "True"
    assert found["Model"] == tiny_model.name


# ---- noise levels ------------------------------------------------------------------------------


def other_levels(kind: str, steps: int, levels: np.ndarray) -> np.ndarray:
    """Return the noise levels of a schedule of A1111 or ComfyUI, without the last, 0."""

    def at(timesteps):
        return np.exp(np.interp(timesteps, np.arange(1000), np.log(levels)))

    if kind in ("Uniform", "normal"):
        return at(np.linspace(999, 0, steps))
    if kind in ("SGM Uniform", "sgm_uniform"):
        return at(np.linspace(999, 0, steps + 1)[:-1])
    if kind in ("Simple", "simple"):
        return levels[[-1 - int(k * 1000 / steps) for k in range(steps)]]
    if kind in ("DDIM", "ddim_uniform"):
        return levels[1 :: 1000 // steps][::-1]
    ramp = np.linspace(levels[-1] ** (1 / 7), levels[0] ** (1 / 7), steps)
    return ramp**7


def table() -> list[list[str]]:
    text = (ROOT / "docs" / "generating.md").read_text()
    rows = text[text.index("| sampler, spacing |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture(scope="module")
def model():
    return DetSDTextualInversionPipeline.from_pretrained(str(ROOT / "demo_model")).model


@pytest.mark.parametrize("row", table(), ids=lambda row: row[0].replace("`", ""))
def test_the_table_names_settings_with_the_same_noise_levels(row, model):
    """The noise levels and the scale of the first noise agree, for the steps in the table."""
    name, spacing = re.fullmatch(r"`(\S+)`, (\w+)", row[0]).groups()
    spacing = "leading" if spacing == "any" else spacing
    levels = ((1 - model.scheduler.alphas_cumprod) / model.scheduler.alphas_cumprod) ** 0.5
    levels = levels.double().numpy()
    given = png.noise_fields(name, spacing)
    sampler, *settings = row[1].split("; ")
    assert sampler == png.SAMPLERS[name]
    kind = given.get("Schedule type", "DDIM")
    assert settings[:1] == ([kind] if given else [])
    assert ("SGM" in settings) == ("SGM noise multiplier" in given)
    assert ("discard" in settings) == ("Discard penultimate sigma" in given)
    counts = {"divide 1000": (10, 20, 25, 50), "and 1: divide 1000": (9, 19, 24, 49)}
    for steps in counts.get(row[2], (10, 20, 27, 30)):
        scheduler = make_scheduler(model, name, spacing)
        scheduler.set_timesteps(steps)
        if name == "ddim":
            ours = levels[scheduler.timesteps]
        else:
            ours = scheduler.sigmas.numpy()[:-1]
            ours = ours[[0, *range(1, len(ours), 2)]] if name == "heun" else ours
        theirs = other_levels(kind, steps + ("discard" in settings), levels)
        theirs = theirs[:-1] if "discard" in settings else theirs
        # diffusers rounds the timesteps of its DPM solvers, which moves the last levels.
        assert np.allclose(theirs, ours, rtol=0.02 if name.startswith("dpm") else 1e-4), steps
        if name != "ddim":  # DDIM takes unscaled noise in both
            first = (1 + theirs[0] ** 2) ** 0.5 if "SGM" in settings else theirs[0]
            scale = float(scheduler.init_noise_sigma)
            if name.startswith("dpmsolver++"):  # keeps images of variance 1
                scale *= (1 + ours[0] ** 2) ** 0.5
            assert math.isclose(first, scale, rel_tol=1e-4)
        if row[4]:
            _, kind_there = row[4].split(", ")
            theirs = other_levels(kind_there, steps, levels)
            assert np.allclose(theirs, ours, rtol=0.02 if name.startswith("dpm") else 1e-4), steps


def test_a_schedule_is_named_wherever_a1111_would_take_another():
    """There, DPM++ 2M uses Karras' schedule unless the fields name another."""
    for name in png.SAMPLERS:
        for spacing in ("leading", "trailing", "linspace"):
            found = png.noise_fields(name, spacing)
            assert (found == {}) == (name in ("ddim", "pndm", "unipc", "lcm"))
            assert (found.get("Schedule type") == "Karras") == name.endswith("karras")
