"""The demo: its form, its buttons, its endpoints, and the page in a browser."""

import contextlib
import html
import inspect
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import pytest
import torch
from conftest import command
from forked import Forked, free_port
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny import ROOT

from detsd.__main__ import main
from detsd.app import page as pages
from detsd.app import parts, pictures
from detsd.app.api import Endpoints
from detsd.app.backend import Backend, Generation
from detsd.app.concepts_tab import export_for, given
from detsd.app.form import (
    AXES,
    MAX_CELLS,
    ImageSettings,
    axis_values,
    copies,
    grid_jobs,
    make_job,
    parse,
    read_settings,
)
from detsd.app.guard import Address
from detsd.app.learn_tab import LearnTab, progress
from detsd.app.run_status import time_lapse
from detsd.app.training_runs import MAX_PICTURES, TrainingRuns
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.model_words import ModelVocabulary
from detsd.concepts.reading import read_concepts
from detsd.concepts.usage import PROMPTS
from detsd.concepts.writing import write_concepts
from detsd.config import TrainingConfig, load_config
from detsd.data.captions import find_captions
from detsd.data.folder import ImageFolder
from detsd.sampling import engine
from detsd.sampling.jobs import Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.utils.errors import UserError
from detsd.utils.png import CHUNK, read_record
from detsd.utils.progress import Bar, Phase

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync""".split()  # noqa: SIM905
# Proxies that cannot reach this machine's address; gradio reads them at import.
PROXIES = {"http_proxy": "http://127.0.0.1:9", "all_proxy": "socks5://127.0.0.1:9"}
# The phrase of an untrusted concept.
STRANGE = '<img src="http://127.0.0.1:9/x.png"> ![x](http://127.0.0.1:9/y.png) ${1+1} {{value}}'
GOOD = {
    "prompt": " a  blob-thing ",
    "negative_prompt": "",
    "guidance_scale": 3,
    "steps": 2,
    "seed": 5,
    "scheduler": "ddim",
    "width": 32,
    "height": 40,
}


@pytest.fixture(scope="module")
def concept_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concept")
    write_concepts([LearnedConcept("blob-thing", "red ball", (torch.ones(2, 16),))], folder)
    return folder / "blob-thing.safetensors"


@pytest.fixture(scope="module")
def pipe(tiny_model, concept_file):
    made = DetSDTextualInversionPipeline.from_pretrained(str(tiny_model))
    made.load_concepts(concept_file)
    return made


@pytest.fixture
def backend(pipe, tmp_path):
    yield Backend(pipe, tmp_path / "made")
    for name in set(pipe.concepts) - {"blob-thing"}:
        pipe.unload(name)


def good_job(backend: Backend, **change):
    return make_job(backend.pipe, parse(ImageSettings, GOOD | change))


def finished(generation):
    """Return the images of a generation, once it is complete."""
    return list(generation)[-1].images


def checkpoint(folder: Path, concept: LearnedConcept, pictures: Path, kind: str) -> Path:
    """Write the files of a fine-tuning's folder that the page reads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_concepts([concept], folder)
    concepts = {
        "concept_strs": [concept.name],
        "img_dirs": [str(pictures)],
        "learnable_properties": [kind],
    }
    step = int(folder.name.partition("-")[2] or 8)
    facts = {"kind": "finetune", "steps_completed": step, "config": {"concepts": concepts}}
    (folder / "metadata.json").write_text(json.dumps(facts))
    return folder


def test_a_renamed_concept_has_the_pictures_of_its_own(backend, photos, tmp_path, monkeypatch):
    folder = tmp_path / "step-00000008"
    rows = torch.ones(1, 16)
    checkpoint(folder, LearnedConcept("one-thing", "", (rows,)), tmp_path / "none", "object")
    facts = json.loads((folder / "metadata.json").read_text())
    facts["config"]["concepts"] |= {
        "concept_strs": ["one-thing", "two-thing"],
        "img_dirs": [str(tmp_path / "none"), str(photos)],
        "learnable_properties": ["object", "style"],
    }
    (folder / "metadata.json").write_text(json.dumps(facts))
    write_concepts([LearnedConcept(n, "", (rows,)) for n in ("one-thing", "two-thing")], folder)
    whole = folder / "learned_embeddings_dict.pt"
    for source in (f"{whole}=two-thing=foo", f"{folder}/two-thing.safetensors=foo"):
        monkeypatch.setitem(backend.pipe.sources, "foo", source)
        assert backend.facts("foo") == {"img_dirs": str(photos), "learnable_properties": "style"}


# ---- the form ------------------------------------------------------------------------------------


def test_a_form_becomes_jobs(backend):
    jobs = copies(good_job(backend), 2)
    assert [job.seed for job in jobs] == [5, 6]
    assert {(job.prompt, job.width, job.height) for job in jobs} == {("a blob-thing", 32, 40)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": "x" * 9999}, "prompt has 9999 characters"),
        ({"negative_prompt": "x" * 9999}, "negative_prompt has 9999 characters"),
        ({"width": 4096}, "width is 4096 but must be a multiple of 8 from 16 to 64"),
        ({"height": 33}, "height is 33 but must be a multiple of 8 from 16 to 64"),
        ({"height": None}, "height is null but must be a whole number"),
        ({"steps": 100000}, "steps is 100000 but must be at most 200"),
        ({"steps": 0}, "steps is 0 but must be at least 1"),
        ({"guidance_scale": -1}, "guidance_scale is -1.0 but must be at least 0"),
        ({"guidance_scale": 51}, "guidance_scale is 51.0 but must be at most 50"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan but must be a number"),
        ({"seed": -1}, "seed is -1 but must be at least 0"),
        ({"scheduler": "ddpm"}, "scheduler is 'ddpm', which is unknown; use one of ddim"),
    ],
)
def test_forms_that_are_refused(backend, change, message):
    with pytest.raises(UserError, match=message):
        good_job(backend, **change)


def test_long_prompts_and_weights_are_taken_and_the_rest_is_told(backend):
    long = good_job(backend, prompt="very " * 90, negative_prompt="red " * 90)
    assert backend.warnings([long]) == []
    odd = good_job(backend, prompt="a (blob-thing:1.2)", negative_prompt="x AND y", steps=1)
    first, second = backend.warnings([odd])
    assert first.startswith("the prompt 'x AND y' has AND")
    assert second.startswith("num_inference_steps: 1 gives noise")


@pytest.mark.parametrize("count", [0, 9, 1000, 2.5, None, float("nan")])
def test_too_many_images_or_none(backend, count):
    with pytest.raises(UserError, match=f"count is {count} but must be a whole number from 1 to 8"):
        copies(good_job(backend), count)


@pytest.mark.parametrize(
    ("axis", "text", "values"),
    [
        ("nothing", "", [None]),
        ("seed", "1, 3,7", [1, 3, 7]),
        ("seed", "1-4, 9", [1, 2, 3, 4, 9]),
        ("steps", "30-10 (-10)", [30, 20, 10]),
        ("steps", "10-30 [3]", [10, 20, 30]),
        ("guidance scale", "1.5-3 (+0.5)", [1.5, 2.0, 2.5, 3.0]),
        ("guidance scale", "1-2 [3]", [1.0, 1.5, 2.0]),
        ("scheduler", "ddim, euler", ["ddim", "euler"]),
        ("prompt", "a cat, red\n\n a dog ", ["a cat, red", "a dog"]),
        ("words of the prompt", 'ball, "red, shiny", a  cat', ["ball", "red, shiny", "a cat"]),
        ("scheduler", "ddim\neuler", ["ddim", "euler"]),
        ("seed", "1-50 [12]", [1, 5, 9, 14, 18, 23, 27, 32, 36, 41, 45, 50]),
        ("steps", "50-1 [12]", [50, 45, 41, 36, 32, 27, 23, 18, 14, 9, 5, 1]),
    ],
)
def test_values_of_an_axis_as_a1111_writes_them(axis, text, values):
    assert axis_values(axis, text) == values


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (("colour", "1"), ("nothing", ""), "the axis 'colour' is unknown; use one of nothing, "),
        (("seed", " , "), ("nothing", ""), "the axis 'seed' has no values; write e.g. 0-2"),
        (
            ("seed", "one"),
            ("nothing", ""),
            "'seed' has 'one', which is neither a number nor a range",
        ),
        (("steps", "1-9 (+0)"), ("nothing", ""), "neither a number nor a range"),
        (("steps", "1-9 (-1)"), ("nothing", ""), "neither a number nor a range"),
        (("seed", "1, 1-3"), ("nothing", ""), "the axis 'seed' has 1 twice"),
        (("seed", "1"), ("seed", "2"), "both axes are 'seed'"),
        (
            ("seed", "1-999999999"),
            ("nothing", ""),
            f"65 x 1 images, but the page makes at most {MAX_CELLS}",
        ),
        (("seed", "1-999999999 [999999]"), ("nothing", ""), "65 x 1 images"),
        (("seed", "1-9 [0]"), ("nothing", ""), "neither a number nor a range"),
        (("guidance scale", "90"), ("nothing", ""), "guidance_scale is 90.0 but must be at most 5"),
        (("scheduler", "Euler b"), ("nothing", ""), "scheduler is 'Euler b', which is unknown"),
        (("words of the prompt", '"blob'), ("words of the prompt", "blob, a"), "both axes look"),
        (
            ("words of the prompt", "cat, dog"),
            ("nothing", ""),
            "looks for 'cat', which is not in the prompt",
        ),
    ],
)
def test_grids_that_are_refused(backend, x, y, message):
    with pytest.raises(UserError, match=re.escape(message)):
        grid_jobs(backend.pipe, parse(ImageSettings, GOOD), x, y)


def test_a_grid_goes_row_by_row_and_words_are_looked_for_in_whole_prompts(backend):
    given = parse(ImageSettings, GOOD)
    x, y = ("words of the prompt", "red, blue"), ("prompt", "a red ball\na red blob-thing")
    jobs, columns, rows = grid_jobs(backend.pipe, given, x, y)
    assert [j.prompt for j in jobs] == [
        "a red ball", "a blue ball", "a red blob-thing", "a blue blob-thing",
    ]  # fmt: skip
    assert (columns, rows) == (["red", "blue"], ["a red ball", "a red blob-thing"])
    jobs, columns, rows = grid_jobs(
        backend.pipe, given, ("guidance scale", "1.5, 3"), ("seed", "7, 1234567")
    )
    job = good_job(backend)
    assert jobs == [replace(job, guidance_scale=g, seed=s) for s in (7, 1234567) for g in (1.5, 3)]
    assert (columns, rows) == (["guidance 1.5", "guidance 3"], ["seed 7", "seed 1234567"])
    assert grid_jobs(backend.pipe, given, ("steps", "1, 2"), ("nothing", ""))[1] == [
        "1 step",
        "2 steps",
    ]
    for axis, (_, usual) in AXES.items():  # the page's own values can be made
        changed = replace(given, prompt="a photo of a cat")
        assert grid_jobs(backend.pipe, changed, (axis, usual), ("nothing", ""))


def test_two_axes_of_words_and_samplers_by_the_names_people_know(backend):
    """Words are replaced in one pass: one axis does not replace the other's words."""
    given = parse(ImageSettings, GOOD | {"prompt": "a red ball on a blob-thing"})
    x, y = ("words of the prompt", "red, ball"), ("words of the prompt", 'ball, "red, old cat"')
    jobs, columns, rows = grid_jobs(backend.pipe, given, x, y)
    assert [j.prompt for j in jobs] == [
        "a red ball on a blob-thing",
        "a ball ball on a blob-thing",
        "a red red, old cat on a blob-thing",
        "a ball red, old cat on a blob-thing",
    ]
    assert (columns, rows) == (["red", "ball"], ["ball", "red, old cat"])
    names = "DDIM, Euler a, DPM++ 2M, plms, LMS, euler"
    jobs, columns, _ = grid_jobs(backend.pipe, given, ("scheduler", names), ("nothing", ""))
    assert [j.scheduler_name for j in jobs] == [
        "ddim", "euler-ancestral", "dpmsolver++", "pndm", "lms-discrete", "euler",
    ]  # fmt: skip
    assert columns == names.split(", ")


# ---- what a model can draw -----------------------------------------------------------------------


def test_what_a_model_can_draw_is_told_by_its_folder(backend, tmp_path, caplog):
    assert ModelVocabulary.of(str(tmp_path)) is None
    table = {"media": ["ink"], "objects": ["red ball"], "grounds": ["on <i>ice</i>"]}
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(table | {"words": ["A", "red", "ball", "of", "ink", "style", "in",
                                                  "the", "blob", "cat"]}))  # fmt: skip
    backend.hints = ModelVocabulary.of(str(tmp_path))
    assert "<b>objects</b> red ball" in parts.model_hint(backend)
    assert "on &lt;i&gt;ice&lt;/i&gt;" in parts.model_hint(backend)
    assert backend.warnings([Job("a red blob-thing of ink-red, Ink!", 0)]) == []
    assert backend.warnings([Job("a blob-thing and a Dragon’s", 0)]) == [
        "this model was never shown the words “and”, “dragon’s”"
    ]
    # Syntax, and words reported by another sentence, are not listed.
    assert backend.warnings([Job("a red ball BREAK a cat", 0)]) == []
    odd = "a ball AND a cat <lora:tusk:1> {ivory} __horn__ [of:hide:9] --ar 3 break"
    *others, last = backend.warnings([Job(odd, 0)])
    assert last == "this model was never shown the word “break”"
    assert len(others) == 6
    assert all("does not support" in sentence for sentence in others)
    assert backend.examples() != []  # the model knows the words of none of ours, so all are offered
    for broken in ("[1]", "{", '{"words": 3}'):
        path.write_text(broken)
        assert ModelVocabulary.of(str(tmp_path)) is None
        assert "vocabulary.json cannot be read" in caplog.text
        caplog.clear()
    backend = Backend(backend.pipe, tmp_path)  # a model that lists no words
    assert backend.warnings([Job("a dragon", 0)]) == []
    assert parts.model_hint(backend) == ""


# ---- images --------------------------------------------------------------------------------------


def test_images_and_their_plain_twins(backend, monkeypatch):
    """Two batches of two have common progress; files and larger copies hold the settings."""
    monkeypatch.setattr(engine, "fitting_batch_size", lambda *_: 2)
    jobs = copies(good_job(backend), 2)
    last = list(backend.generate(jobs + backend.baselines(jobs), previews=True))[-1]
    shown = last.images
    assert sorted(shown) == [0, 1, 2, 3]
    assert last.share == 1.0
    assert last.text == "denoising step 2 of 2, 4 of 4 images made"
    assert last.preview.size == (512, 8 * 40)  # of two images, large enough to be seen
    assert [one.caption for one in shown.values()] == ["seed 5", "seed 6"] * 2
    records = [read_record(one.path) for one in shown.values()]
    assert [r["prompt"] for r in records] == ["a blob-thing"] * 2 + ["a red ball"] * 2
    assert records[0]["concepts"]["blob-thing"]["source"].endswith("blob-thing.safetensors")
    assert Image.open(shown[0].larger).size == (12 * 32, 12 * 40)
    assert read_record(shown[0].larger) == records[0]
    assert f"{shown[0].larger.name}" in parts.files(list(shown.values()))
    assert backend.no_baseline_reason("a blob-thing") == ""
    assert "names no concept (blob-thing)" in backend.no_baseline_reason("a red ball")


def test_stopped_between_steps_what_is_made_stays(backend, monkeypatch):
    """A visitor who leaves stops their images, and the next one finds the model free."""
    monkeypatch.setattr(engine, "fitting_batch_size", lambda *_: 1)
    jobs = copies(good_job(backend), 3)
    assert not backend.stop()
    save = backend.pipe.save

    def save_and_stop(*args):
        assert backend.stop()
        return save(*args)

    monkeypatch.setattr(backend.pipe, "save", save_and_stop)
    shown = finished(backend.generate(jobs))
    assert list(shown) == [0]
    assert not backend.stop()
    sheet = pictures.sheet(shown, ["a", "b", "c"], [""], "stopped", backend.folder)
    assert Image.open(sheet).width > 3 * 160
    monkeypatch.setattr(backend.pipe, "save", save)
    going = threading.Event()
    monkeypatch.setattr(pictures, "preview", lambda pipe, latents: going.set())
    left = backend.generate([replace(jobs[0], num_inference_steps=200)] * 8, previews=True)
    generation = next(left)
    assert going.wait(60)
    left.close()
    assert len(finished(backend.generate(jobs[:1]))) == 1
    assert generation.share < 1
    assert generation.images == {}


def test_an_image_dropped_fills_the_form(backend, tmp_path, monkeypatch):
    given = parse(ImageSettings, GOOD | {"prompt": "a blob-thing"})
    path = finished(backend.generate([good_job(backend)]))[0].path
    assert read_settings(backend.pipe, path) == (given, [])
    record = read_record(path)

    def dropped(**change):
        file = tmp_path / "dropped.png"
        info = PngInfo()
        info.add_text(CHUNK, json.dumps(record | change))
        Image.new("RGB", (8, 8)).save(file, pnginfo=info)
        return read_settings(backend.pipe, file)

    other = dropped(
        model={"pretrained_model_name_or_path": "another"},
        concepts={
            name: {"source": f"{name}.pt", "sha256": "0"} for name in ("blob-thing", "cube-thing")
        },
    )
    assert other[0] == given
    assert other[1] == [
        f"it was made with the model another; this page uses {backend.pipe.model.name}",
        "its concept blob-thing had different vectors from the one loaded here",
        "its concept cube-thing is not loaded",
    ]
    model = Path(backend.pipe.model.name)
    monkeypatch.chdir(model.parent)
    again = record["model"] | {"pretrained_model_name_or_path": f"./{model.name}"}
    assert dropped(model=again) == (given, [])  # the same one in another spelling
    for name in (5, ["a"], None):  # in a file that somebody else has made
        _, (said,) = dropped(model={"pretrained_model_name_or_path": name})
        assert said.startswith(f"it was made with the model {name}; ")
    part, _ = dropped(guidance_interval=[0.2, 0.8], spacing="trailing")
    assert part == replace(given, guidance_start=0.2, guidance_stop=0.8, spacing="trailing")
    job = make_job(backend.pipe, part)
    assert (job.guidance_interval, job.spacing) == ((0.2, 0.8), "trailing")
    assert make_job(backend.pipe, given).guidance_interval is None
    with pytest.raises(UserError, match="guidance_start is 0.8 but must be less than .*, 0.2"):
        dropped(guidance_interval=[0.8, 0.2])
    with pytest.raises(UserError, match="spacing is 'even', which is unknown; use one of leading"):
        dropped(spacing="even")
    with pytest.raises(UserError, match="steps is 1000000000 but must be at most 200"):
        dropped(num_inference_steps=10**9)
    for key, value in (("seed", "five"), ("prompt", ["a"]), ("width", {}), ("height", 12)):
        with pytest.raises(UserError, match=f"cannot be used here: {key} is "):
            dropped(**{key: value})
    for broken in ({"concepts": 3}, {"model": None}, {"concepts": {"blob-thing": 3}}):
        with pytest.raises(UserError, match="settings that cannot be read"):
            dropped(**broken)
    for key in ("prompt", "seed", "model", "concepts", "num_inference_steps"):
        lacking = {k: v for k, v in record.items() if k != key}
        info = PngInfo()
        info.add_text(CHUNK, json.dumps(lacking))
        Image.new("RGB", (8, 8)).save(tmp_path / "lacking.png", pnginfo=info)
        with pytest.raises(UserError, match="settings that cannot be read"):
            read_settings(backend.pipe, tmp_path / "lacking.png")
    for text in ("[" * 100_000, "null", "{", '{"job": null}'):
        info = PngInfo()
        info.add_text(CHUNK, text)
        Image.new("RGB", (8, 8)).save(tmp_path / "odd.png", pnginfo=info)
        with pytest.raises(UserError, match="holds (no settings of detsd|settings that cannot)"):
            read_settings(backend.pipe, tmp_path / "odd.png")
    plain = tmp_path / "plain.png"
    Image.new("RGB", (8, 8)).save(plain)
    with pytest.raises(UserError, match=f"plain.png holds no settings of {CHUNK}"):
        read_settings(backend.pipe, plain)


# ---- concepts ------------------------------------------------------------------------------------


def test_a_concept_is_taken_to_every_tool_that_reads_it(backend):
    """The page writes the same files and hints as `export`."""
    (concept,) = backend.pipe.vocabulary.concepts()
    for tool, template in PROMPTS.items():
        (path,), said = export_for(backend, concept.name, tool)
        assert path.is_relative_to(backend.folder)
        (found,) = read_concepts(path)
        assert (found.name, found.digest) == (concept.name, concept.digest)
        begins = "<" if tool == "InvokeAI" else template.partition("{")[0]
        assert said.startswith(f"In {tool}, write in a prompt: {begins}blob-th")
    with pytest.raises(UserError, match="no concept is chosen; choose one of the loaded concepts"):
        given(None)
    with pytest.raises(UserError, match="gone-thing is no longer loaded; choose another concept"):
        export_for(backend, "gone-thing", "ComfyUI")


def test_concepts_with_their_pictures_and_prompts_that_fit_a_style(backend, tmp_path, photos):
    blob = backend.concepts()[0]
    assert (blob["name"], blob["vectors"], blob["training_pictures"]) == ("blob-thing", 2, 0)
    backend.image_dirs = {"blob-thing": str(photos)}
    assert len(backend.training_images("blob-thing")) == 12
    assert "a photo of a blob-thing on a white background" in backend.examples()
    folder = tmp_path / "step-00000008"
    checkpoint(folder, LearnedConcept("ink-look", "", (torch.ones(1, 16),)), photos, "style")
    assert backend.load(str(folder), None) == ["ink-look"]
    assert "<b>ink-look</b>: 1 vector" in parts.about(backend)
    ink = backend.concepts()[1]
    assert (ink["kind"], ink["training_pictures"]) == ("style", 12)
    assert ink["source"].startswith(str(folder))
    assert "a cat in the style of ink-look" in backend.examples()
    assert "a blob-thing in the style of ink-look" in backend.examples()
    assert "ink-look: 1 vector, a style, from" in parts.facts(backend, "ink-look")[0]
    assert ", 12 training pictures<" in parts.facts(backend, "ink-look")[0]
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(next(photos.iterdir()), one)
    owl = LearnedConcept("owl-thing", "", (torch.ones(2, 16),))
    backend.load(str(checkpoint(tmp_path / "step-00000001", owl, one, "object")))
    assert "owl-thing: 2 vectors, an object, from" in parts.facts(backend, "owl-thing")[0]
    assert ", 1 training picture<" in parts.facts(backend, "owl-thing")[0]
    backend.unload("owl-thing")
    small = pictures.thumbnails(backend.training_images("ink-look")[:2], backend.folder)
    assert [max(Image.open(path).size) <= 256 for path in small] == [True, True]
    assert backend.load(f"{folder}=other-look") == ["other-look"]
    assert len(backend.training_images("other-look")) == 12
    checkpoint(folder, LearnedConcept("ink-look", "", (torch.ones(3, 16),)), photos, "style")
    assert backend.replace(folder) == ["ink-look"]
    assert backend.concepts()[-1]["vectors"] == 3
    # For a run's folder, its checkpoint has the settings.
    run = tmp_path / "run"
    learned = LearnedConcept("run-look", "", (torch.ones(1, 16),))
    checkpoint(run / "checkpoints" / "step-00000008", learned, photos, "style")
    write_concepts([learned], run)
    assert backend.load(str(run)) == ["run-look"]
    found = backend.concepts()[-1]
    assert (found["name"], found["kind"], found["training_pictures"]) == ("run-look", "style", 12)
    assert "a cat in the style of run-look" in backend.examples()
    for text, file, message in (
        (" ", None, "nothing is named"),
        (None, str(folder / "ink-look.safetensors"), "loaded twice"),
        (str(folder), str(folder), "is named and a file is uploaded; remove one of them"),
    ):
        with pytest.raises(UserError, match=message):
            backend.load(text, file)


# ---- learning ------------------------------------------------------------------------------------


@pytest.fixture
def learning(backend, tmp_path, monkeypatch):
    """Return training runs that record the command line instead of starting a process."""
    made = TrainingRuns(backend.pipe, tmp_path / "outputs")
    process = SimpleNamespace(returncode=None, poll=lambda: process.returncode, signals=[])
    process.send_signal = process.signals.append

    def begin(words, **_):
        process.words, process.returncode, process.room = words, None, len(freed)
        return process

    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    monkeypatch.setattr(subprocess, "Popen", begin)
    made.process = process
    return made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"word": " "}, "the word is empty"),
        ({"word": "cat"}, "the model already knows 'cat'; write a new word such as my-cat"),
        ({"pictures": []}, "there are no pictures"),
        (
            {"pictures": ["a.png"] * 201},
            f"201 pictures, but the page takes at most {MAX_PICTURES}",
        ),
        ({"kind": "face"}, "kind is 'face' but must be object or style"),
        ({"captions": ["a", "b"]}, "2 captions for 1 picture; write one per line"),
        ({"num_sgd_steps": 0}, "training.num_sgd_steps is 0 but must be at least 1"),
        ({"learning_rate": None}, "training.learning_rate is null"),
        ({"pictures": ["/nowhere/a.png"]}, "/nowhere/a.png cannot be read"),
    ],
)
def test_what_cannot_be_learned_leaves_nothing_behind(learning, photos, change, message):
    good = {"word": "my-cat", "phrase": "grey cat", "pictures": [next(photos.iterdir())]}
    with pytest.raises(UserError, match=message):
        learning.start(**good | change)
    assert learning.names() == []
    assert not learning.running


def test_odd_words_stay_what_they_are_and_none_takes_the_pictures_of_another(learning, photos):
    """Only YAML 1.2 reads `1e5` as a number; `my: cat` and `my #cat` would share a folder."""
    given = {"phrase": "grey cat", "pictures": [next(photos.iterdir())]}
    for word in ("1e5", "my: cat"):
        folder = learning.start(word, **given)
        assert load_config(folder / "finetune.yaml").concepts.concept_strs == [word]
        learning.process.returncode = 0
    with pytest.raises(UserError, match="my_cat holds the pictures of 'my: cat'; choose another"):
        learning.start("my #cat", **given)
    assert len(list((folder / "training_pictures").iterdir())) == 1
    assert load_config(folder / "finetune.yaml").concepts.concept_strs == ["my: cat"]
    learning.start("my: cat", **given)


def test_without_a_phrase_one_is_looked_for(learning, photos):
    folder = learning.start("my-cat", " ", [next(photos.iterdir())])
    assert load_config(folder / "finetune.yaml").concepts.initializer_strs == ["auto"]
    assert learning.status().phrase == ""
    checkpoint = folder / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    write_concepts([LearnedConcept("my-cat", "grey cat", (torch.ones(1, 16),))], checkpoint)
    (checkpoint / "metadata.json").write_text('{"steps_completed": 1}')
    report = {"group": "validation", "steps_completed": 1, "val_loss": 0.4}
    report["val_loss_initializer"] = 0.6
    (folder / "metrics.jsonl").write_text(json.dumps(report))
    said = html.unescape(progress(learning.status()))
    assert "validation loss 0.4000, of the phrase 'grey cat' 0.6000" in said


def test_captions_of_the_learn_tab_stand_beside_their_pictures(learning, photos):
    pictures = sorted(photos.iterdir())[:3]
    folder = learning.start("my-cat", "cat", pictures, captions=["{} at  noon", "", "at night", ""])
    c = load_config(folder / "finetune.yaml").concepts
    assert c.use_caption_files
    found = find_captions(ImageFolder.scan(folder / "training_pictures"))
    assert {path.name: text for path, text in found.items()} == {
        pictures[0].name: "{} at noon",
        pictures[2].name: "at night",
    }
    learning.process.returncode = 0
    folder = learning.start("my-dog", "dog", pictures, captions=[""])
    assert not load_config(folder / "finetune.yaml").concepts.use_caption_files


def test_a_learning_from_start_to_end(learning, backend, photos, tmp_path):
    """Its files, its progress while it runs, and the times when it can be started again."""
    assert learning.status() is None
    pictures = [p for p in sorted(photos.iterdir()) for _ in range(2)]  # with clashing names
    folder = learning.start(
        "my-cat", " grey  cat", pictures, "style", num_sgd_steps=8, checkpoint_freq=4,
        train_batch_size=4,
    )  # fmt: skip
    assert learning.process.words[1:4] == ["-m", "detsd", "finetune"]
    assert learning.process.room == 1  # on a GPU: the images' memory has been freed
    assert len(list((folder / "training_pictures").iterdir())) == 24
    assert learning.running
    assert backend.busy() == ""
    busy = Backend(backend.pipe, tmp_path / "made", busy=learning.busy)
    with pytest.raises(UserError, match="is being trained; wait for it, or stop it"):
        finished(busy.generate([good_job(backend)]))
    with pytest.raises(UserError, match="is being trained"):
        learning.resume("my-cat")
    now = learning.status()
    assert (now.word, now.step, now.steps, now.sampled, now.problem) == ("my-cat", 0, 8, (), "")
    lines = [
        {"group": "training", "steps_completed": 4, "loss": 0.5, "samples_per_second": 2.0},
        {"group": "validation", "steps_completed": 4, "val_loss": 0.4, "val_loss_initializer": 0.6},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"group": "trai'  # the last line is incomplete
    (folder / "metrics.jsonl").write_text(text)
    (folder / "samples").mkdir()
    for step in (0, 4):
        for k in range(4 if step == 0 else 3):  # the last one is still being made
            Image.new("RGB", (32, 32)).save(folder / "samples" / f"step-{step:08d}-{k:03d}.png")
    now = learning.status()
    assert (now.step, now.loss, now.val_loss, now.phrase_loss) == (4, 0.5, 0.4, 0.6)
    assert (now.seconds_left, now.sampled) == (None, (0,))
    assert time_lapse(now, tmp_path) is None
    Image.new("RGB", (32, 32)).save(folder / "samples" / "step-00000004-003.png")
    now = learning.status()
    assert now.samples(4)[0][1].startswith("step 4: a cat in the style of my-cat")
    assert time_lapse(now, tmp_path).is_file()
    learning.stop()
    learning.stop()  # asked twice, it would end without a checkpoint
    assert len(learning.process.signals) == 1
    learning.process.returncode = 143
    assert not learning.running
    assert learning.status().problem == ""
    assert learning.take_finished() is None
    cat = LearnedConcept("my-cat", "grey cat", (torch.ones(2, 16),))
    checkpoint(folder / "checkpoints" / "step-00000004", cat, photos, "style")
    assert not learning.status().complete
    with pytest.raises(UserError, match="holds an earlier training of 'my-cat'"):
        learning.start("my-cat", "cat", pictures)
    for call in (learning.resume, learning.status):
        with pytest.raises(
            UserError, match="no run '../x' that a page started; choose one of these: my-cat"
        ):
            call("../x")
    assert TrainingRuns(backend.pipe, learning.root).names() == ["my-cat"]  # a new page
    assert learning.resume("my-cat") == folder
    assert learning.running
    (folder / "log.txt").write_text("loading ...\ndetsd: the disk is full; make room\n")
    learning.process.returncode = 2
    assert learning.status().problem == "the disk is full; make room"
    assert learning.take_finished() is None
    learning.resume("my-cat")
    checkpoint(folder / "checkpoints" / "step-00000008", cat, photos, "style")
    learning.process.returncode = 0
    assert learning.status().complete
    assert learning.take_finished() == folder
    assert learning.take_finished() is None
    assert backend.replace(folder) == ["my-cat"]


def test_the_time_left_is_that_of_the_runs_bar(learning, photos, monkeypatch, capsys):
    """It includes other work than steps: here 2 h of steps, and 90 s of samples."""
    folder = learning.start("my-cat", "cat", [next(photos.iterdir())])
    log = folder / "log.txt"
    assert learning.status().seconds_left is None
    kinds = {
        "steps": Phase(12, 724, 4, seconds=40, seen=4),
        "samples": Phase(2, 30, 0, seconds=60, seen=20),
    }
    with monkeypatch.context() as frozen, Bar(kinds, "4/724 steps") as bar:
        frozen.setattr(time, "monotonic", lambda: bar._clock)
        bar.line("4/724 steps, loss 0.1234, 2.0 samples/s")
        bar.line("4/724 steps")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert all(line.endswith(", 2:01:30 left") for line in said)
    for k, line in enumerate(said):
        log.write_text(f"loading ...\nvalidating the initializer, 00:07 left\n{said[k]}\nstep 4\n")
        os.utime(log, (time.time() + 1000,) * 2)  # no time has passed since
        assert learning.status().seconds_left == 2 * 3600 + 90, line
        assert ", 2:01:30 left" in progress(learning.status())
    log.write_text("4/60 steps, samples, 00:59 left\n")
    os.utime(log, (time.time() - 60,) * 2)
    assert learning.status().seconds_left is None  # it takes longer than estimated
    learning.process.returncode = 0
    assert learning.status().seconds_left is None


def test_the_warnings_of_a_training_are_shown(learning, photos):
    """The page's visitor sees no log; the pictures are named as they were dropped."""
    log = learning.start("my-cat", "cat", [next(photos.iterdir())]) / "log.txt"
    assert learning.status().notes == ()
    place = learning.folder.resolve() / "training_pictures"
    log.write_text(
        f"loading ...\nWARNING: {place}/a<b>.jpg cannot be read and is skipped (cut)\n4/60 steps\n"
        f"WARNING: {place}: 2 of 3 pictures are small (c.png)\n"
    )
    skipped, small = learning.status().notes
    assert skipped == "a<b>.jpg cannot be read and is skipped (cut)"
    assert small == "the pictures: 2 of 3 pictures are small (c.png)"
    assert "a&lt;b&gt;.jpg cannot" in progress(learning.status())


def test_captions_come_through_the_endpoint_too(backend, learning, photos, monkeypatch):
    """They are in the pictures' order, and refused if there is not one for each."""
    monkeypatch.setattr("detsd.app.api.uploaded", Path)
    learn = Endpoints(backend, learning).learn
    pictures = [str(path) for path in sorted(photos.iterdir())[:2]]
    with pytest.raises(UserError, match="1 caption for 2 pictures"):
        learn("my-cat", "cat", pictures, captions=["at noon"])
    assert learning.names() == []
    folder = Path(learn("my-cat", "cat", pictures, captions=["{} at  noon", ""]))
    found = find_captions(ImageFolder.scan(folder / "training_pictures"))
    assert {path.name: text for path, text in found.items()} == {
        Path(pictures[0]).name: "{} at noon"
    }
    assert load_config(folder / "finetune.yaml").concepts.use_caption_files
    learning.process.returncode = 0
    folder = Path(learn("my-dog", "dog", pictures))
    assert not load_config(folder / "finetune.yaml").concepts.use_caption_files
    assert load_config(folder / "finetune.yaml").concepts.img_aspect == 1.0
    learning.process.returncode = 0
    folder = Path(learn("my-cow", "cow", pictures, buckets=True))
    assert load_config(folder / "finetune.yaml").concepts.img_aspect == "buckets"


def test_the_learn_tab_keeps_the_shapes_of_pictures_where_it_is_told_to(
    backend, learning, photos, monkeypatch
):
    """Its components are in the order of the parameters that get their values."""
    monkeypatch.setattr("detsd.app.learn_tab.uploaded", Path)
    blocks = pages.page(backend, learning)
    (start,) = (f for f in blocks.fns.values() if f.fn and f.fn.__name__ == "start")
    given = {"learn-pictures": [(str(next(photos.iterdir())), None)], "word": "my-cat",
             "phrase": "cat", "buckets": True, "captions": "at noon"}  # fmt: skip
    values = [given.get(part.elem_id, part.value) for part in start.inputs]
    start.fn(*values)
    c = load_config(learning.folder / "finetune.yaml").concepts
    assert (c.img_aspect, c.use_caption_files, c.append_file_name_to_text) == (
        "buckets", True, False,
    )  # fmt: skip


# ---- the page ------------------------------------------------------------------------------------


def test_one_thing_at_a_time_and_programs_see_endpoints_alone(backend, tmp_path):
    """All work with the model waits in one queue, for all visitors; parameters have names."""
    page = pages.page(backend, TrainingRuns(backend.pipe, tmp_path))
    public = {f.api_name: f for f in page.fns.values() if f.api_visibility == "public"}
    assert set(public) == {
        "generate", "grid", "stop", "model", "concepts", "load", "unload", "reload", "learn",
        "go_on", "learning_status", "stop_learning",
    }  # fmt: skip
    for name in ("generate", "grid", "load", "unload", "reload", "learn", "go_on"):
        assert public[name].concurrency_id == "model"
        assert public[name].concurrency_limit == 1
    own = [f for f in page.fns.values() if f.api_visibility != "public" and f.queue]
    assert {f.concurrency_id for f in own} == {"model"}
    text = (ROOT / "docs" / "app.md").read_text()
    for endpoint, facts in page.get_api_info()["named_endpoints"].items():
        for name in [endpoint, *(p["parameter_name"] for p in facts["parameters"])]:
            assert re.search(rf"`{name}[`=]", text), f"docs/app.md does not tell of {name}"
        for p in facts["parameters"]:
            if p["parameter_has_default"]:
                default = json.dumps(p["parameter_default"]).removesuffix(".0").capitalize()
                assert f"`{p['parameter_name']}={default}`" in text, endpoint


def odd_values(annotation) -> list:
    """Return values that are not of a type."""
    values = {
        str: [3, None, ["a"], {"a": 1}],
        int: ["7", 2.7, None, True, [1, 2], 2**70, float("nan")],
        float: ["4", None, False, float("inf"), {}],
        bool: ["false", 0, None, "true", []],
        list[str]: [[3], [None], {"a": "b"}],
        Any: [3, None, {}, [3], ["/nowhere/a.png"], [[]], [{"path": 3}]],
    }
    return values[annotation]


def test_values_of_a_wrong_type_are_told_by_the_name_of_their_parameter(backend, tmp_path):
    """gradio passes on any value; the test tries every parameter of every endpoint."""
    page = pages.page(backend, TrainingRuns(backend.pipe, tmp_path))
    tried = 0
    for endpoint in (f for f in page.fns.values() if f.api_visibility == "public"):
        parameters = inspect.signature(endpoint.fn).parameters.values()
        good = [p.annotation() if p.default is p.empty and p.annotation is not Any else p.default
                for p in parameters]  # fmt: skip
        for k, parameter in enumerate(parameters):
            for odd in odd_values(parameter.annotation):
                values = (*good[:k], odd, *good[k + 1 :])
                with pytest.raises(gr.Error) as refused:
                    list(endpoint.fn(*values))  # a generator, or never reached
                about = "uploaded file" if parameter.annotation is Any else parameter.name
                told = refused.value.message
                assert f"{parameter.name} is " in told or about in told, (parameter, odd, told)
                assert "something unexpected went wrong" not in told
                tried += 1
    assert tried > 150
    assert backend.pipe.concepts == ["blob-thing"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("private.png", "is not an uploaded file"),
        ({"path": "private.png"}, "is not an uploaded file"),
        ({"path": "private.png", "meta": {"_type": "gradio.FileData"}}, "is not an uploaded file"),
        ({"path": "up/../private.png"}, "is not an uploaded file"),
        ({"path": "up/link.png"}, "is not an uploaded file"),
        ({"path": "up"}, "is not an uploaded file"),
        ({"path": "up/large.png"}, "is not an uploaded file of at most 64 MB"),
        ({"path": "/dev/zero"}, "is not an uploaded file"),
        ({"path": "http://127.0.0.1:9/a.png"}, "is not an uploaded file"),
        ({"path": "a\0b"}, "is not an uploaded file"),
    ],
)
def test_only_files_that_were_uploaded(file, message, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "up"))
    (tmp_path / "up").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    (tmp_path / "up" / "link.png").symlink_to(tmp_path / "private.png")
    with (tmp_path / "up" / "large.png").open("wb") as large:
        large.truncate(parts.MAX_UPLOAD + 1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        parts.uploaded(file)
    own = tmp_path / "up" / "own.png"
    own.write_bytes(b"")
    assert parts.uploaded(str(own)) == parts.uploaded({"path": str(own)}) == own


def test_a_page_for_others_takes_no_paths(backend, concept_file):
    remote = Backend(backend.pipe, backend.folder, reads_paths=False)
    with pytest.raises(UserError, match="this page loads only uploaded files"):
        remote.load(str(concept_file))


def test_a_page_for_others_shows_no_pictures_from_elsewhere(backend, tmp_path, photos, monkeypatch):
    """An untrusted checkpoint may name any folder as its training images."""
    folder = checkpoint(
        tmp_path / "step", LearnedConcept("odd-look", "", (torch.ones(1, 16),)), photos, "object"
    )
    backend.load(str(folder))
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "link").symlink_to(photos)
    for place, count in ((tmp_path / "project", 0), (photos.parent, 12), (photos, 12)):
        monkeypatch.chdir(place)
        remote = Backend(backend.pipe, backend.folder, reads_paths=False)
        assert len(remote.training_images("odd-look")) == count
        assert len(backend.training_images("odd-look")) == 12
    monkeypatch.chdir(tmp_path / "project")
    checkpoint(folder, LearnedConcept("odd-look", "", (torch.ones(1, 16),)), Path("link"), "object")
    assert remote.training_images("odd-look") == []
    named = {"blob-thing": str(photos)}  # on the command line
    given = Backend(backend.pipe, backend.folder, named, reads_paths=False)
    assert len(given.training_images("blob-thing")) == 12


def test_words_of_strangers_are_shown_as_they_are(backend, tmp_path, photos):
    """HTML and Markdown from a concept's file never become part of the page."""
    phrase = '<img src="http://127.0.0.1:9/x.png"> ![x](http://127.0.0.1:9/y.png)'
    folder = checkpoint(
        tmp_path / "<b>", LearnedConcept("odd-<i>word", phrase, (torch.ones(1, 16),)), photos, "<u>"
    )
    backend.load(str(folder))
    known, images = parts.facts(backend, "odd-<i>word")
    for text in (parts.about(backend), known):
        assert "&lt;i&gt;" in text
        assert "&lt;img" in text
        assert not re.search("<(i|u|img)[ >]", text)
    assert images.count("<img") == 12
    with pytest.raises(gr.Error) as shown, parts.show_errors():
        raise UserError("<form>")
    assert shown.value.message == "&lt;form&gt;"
    backend.unload("odd-<i>word")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (Address(port=99999), "--port 99999 is not a port; give one from 1 to 65535"),
        (Address(port=0), "--port 0 is not a port"),
        (Address("no.such.host.invalid"), "--host no.such.host.invalid is not an address of this"),
        (Address("192.0.2.1"), "--host 192.0.2.1 is not an address of this machine"),
        (Address("a" * 300), "is not an address of this machine"),
    ],
)
def test_addresses_that_are_refused(address, message):
    with pytest.raises(UserError, match=message):
        address.check()


def test_who_may_ask_under_which_name_and_with_which_password():
    Address().check()
    here = Address().trusted_hosts()
    assert here == ["127.0.0.1", "[::1]", "localhost"]
    open_to_all = Address("0.0.0.0", allow_hosts=("My.Proxy",)).trusted_hosts()
    assert {*here, "my.proxy", socket.gethostname().lower()} < set(open_to_all)
    assert all(Address(h).is_local for h in ("localhost", "127.0.0.1", "::1", "[::1]"))
    assert not any(Address(h).is_local for h in ("0.0.0.0", "::", "192.0.2.1", "a.host"))
    assert Address().credentials() is Address("0.0.0.0", no_auth=True).credentials() is None
    user, password = Address("0.0.0.0").credentials()
    assert (user, len(password)) == ("detsd", 16)
    assert Address("0.0.0.0").credentials() != (user, password)
    assert Address("localhost", auth="me:a:b").credentials() == ("me", "a:b")
    for auth in ("me", ":x", "me:"):
        with pytest.raises(UserError, match="--auth must be USER:PASSWORD"):
            Address(auth=auth).credentials()
    with pytest.raises(UserError, match="--auth and --no-auth are both given"):
        Address(auth="a:b", no_auth=True).credentials()


def ask(url, data=None, **headers):
    """Return the status and text of a response; headers have _ for -."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if data is not None and not isinstance(data, bytes):
        headers, data = {"Content-Type": "application/json"} | headers, json.dumps(data).encode()
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def served(backend, tmp_path, monkeypatch):
    """Serve the page in this process; yield its URL."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    page = pages.page(backend, TrainingRuns(backend.pipe, tmp_path / "outputs"))
    yield pages.launch(page, Address(), backend.folder)
    page.close()


@pytest.mark.slow
def test_only_its_own_names_and_its_own_pages(served):
    """A foreign name that points here cannot read; a page of another site cannot send."""
    port = urlsplit(served).port
    assert ask(served)[0] == 200
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", f"LOCALHOST:{port}"):
        assert ask(served, Host=host)[0] == 200, host
    for host in (f"rebound.example:{port}", "rebound.example", f"127.0.0.1.example:{port}", "x"):
        for path in ("", "config", "gradio_api/info"):
            assert ask(served + path, Host=host)[0] == 400, host
    limit = "--x\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\n"
    form = {"Content_Type": "multipart/form-data; boundary=x"}

    def upload(size=1, **headers):
        body = limit.encode() + b"a" * size + b"\r\n--x--\r\n"
        return ask(f"{served}gradio_api/upload", body, **form | headers)[0]

    assert upload() == upload(Origin=served.rstrip("/")) == 200
    for origin in ("http://elsewhere.example", "null", "http://127.0.0.1:1", "https://localhost", "http://[",
                   f"http://me@127.0.0.1:{port}", f"file://127.0.0.1:{port}", ""):  # fmt: skip
        assert upload(Origin=origin) == 403, origin
        assert ask(f"{served}gradio_api/call/v2/stop", {}, Origin=origin)[0] == 403
    assert upload(size=parts.MAX_UPLOAD + 1) == 413


@pytest.fixture
def endless(backend, monkeypatch):
    """Replace generation by an endless one; return events for its start and stop."""
    going, left = threading.Event(), threading.Event()

    def generate(jobs, previews=False):
        try:
            while True:
                going.set()
                yield Generation(len(jobs))
                time.sleep(0.05)
        finally:
            left.set()

    monkeypatch.setattr(backend, "generate", generate)
    return going, left


@pytest.mark.slow
def test_images_of_a_program_that_has_left_are_stopped(endless, served):
    going, left = endless
    url = f"{served}gradio_api/call/v2/generate"
    event = json.loads(ask(url, {"prompt": "a blob-thing", "steps": 2})[1])["event_id"]
    with urllib.request.urlopen(f"{url}/{event}") as seen:
        assert seen.readline() == b"event: generating\n"
        assert going.is_set()
        assert not left.is_set()
    assert left.wait(60)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here, and none could be installed")
def test_images_of_a_page_that_was_closed_are_stopped_and_stop_stops_its_own(endless, served):
    """One of two visitors waits while the other's are made; each stops only their own."""
    from playwright.sync_api import expect, sync_playwright

    going, left = endless
    # The stream of events opens only after the click on Stop.
    late = """const now = window.fetch;
        window.fetch = async (url, ...rest) => {
            if (String(url.url ?? url).includes("queue/data"))
                await new Promise(open => setTimeout(open, 1500));
            return now(url, ...rest);
        };"""
    with contextlib.ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        browser = stack.enter_context(
            contextlib.closing(playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS))
        )
        first, second = browser.new_page(), browser.new_page()
        second.add_init_script(late)
        for page in (first, second):
            page.set_default_timeout(120_000)
            page.goto(served)
            page.locator("#go").click()
            expect(page.locator("#stop")).to_be_visible(timeout=120_000)
        assert going.wait(60)
        with second.expect_response(re.compile("queue/data")):
            second.locator("#stop").click()
        second.wait_for_timeout(1000)  # for what gradio makes of the end of the stream
        expect(second.locator("#status")).to_have_text("Stopped: nothing was made.")
        assert not left.is_set()
        first.close()
        assert left.wait(60)
        left.clear()
        second.locator("#go").click()  # nobody waits before it any more
        expect(second.locator("#status")).to_contain_text("waiting for the model")
        second.locator("#stop").click()
        assert left.wait(60)
        expect(second.locator("#go")).to_be_visible()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "options", "login"),
    [("0.0.0.0", [], None), ("::1", ["--auth", "me:secret"], ("me", "secret"))],
)
def test_a_page_for_others_asks_for_a_password(tiny_model, tmp_path, host, options, login):
    """The page starts with proxies set, and ends when its terminal is closed."""
    args = ["app", "--model", tiny_model, "--host", host, "--port", free_port(), *options]

    def serve():
        os.environ |= PROXIES | {"GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
        return main(list(map(str, args)))

    with Forked(tmp_path, serve) as server:
        server.wait_until(lambda: "Ctrl-C" in server.said[0])
        (said,) = server.said
        url = re.search(r"http://\S+", said)[0]
        made = re.search(r" as (\S+) with the password (\S+) ", said)
        assert bool(made) != bool(login), said
        user, password = login or made.groups()
        assert ask(f"{url}config")[0] == 401
        assert ask(f"{url}gradio_api/call/v2/model", {})[0] == 401
        wrong = f"username={user}&password=wrong".encode()
        assert ask(f"{url}login", wrong)[0] == 400
        right = f"username={user}&password={password}".encode()
        assert ask(f"{url}login", right)[0] == 200
        os.kill(server.processes[0].pid, signal.SIGHUP)
        assert server.end() == [128 + signal.SIGHUP], server.said
        assert "Traceback" not in server.said[0]


@pytest.mark.slow
def test_a_server_that_is_told_to_end_stops_its_training(tiny_model, photos, tmp_path):
    """The training saves a checkpoint, and no temporary folder is left."""
    from gradio_client import Client, handle_file

    port = free_port()

    def serve():
        os.chdir(tmp_path)
        (tmp_path / "tmp").mkdir()
        os.environ |= PROXIES | {"GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
        os.environ |= {"PYTHONPATH": str(ROOT)}
        tempfile.tempdir = str(tmp_path / "tmp")
        return main(["app", "--model", str(tiny_model), "--port", str(port)])

    metrics = tmp_path / "outputs" / "my-cat" / "metrics.jsonl"
    with Forked(tmp_path, serve) as server:
        server.wait_until(lambda: "Ctrl-C" in server.said[0])
        assert list((tmp_path / "tmp").iterdir())
        client = Client(f"http://127.0.0.1:{port}/", verbose=False)
        pictures = [handle_file(next(photos.iterdir()))]
        client.predict(word="my-cat", phrase="cat", pictures=pictures, api_name="/learn")
        server.wait_until(lambda: metrics.is_file() and "loss" in metrics.read_text())
        server.processes[0].terminate()
        assert server.end() == [128 + signal.SIGTERM], server.said
    assert "stopped; the same command" in (metrics.parent / "log.txt").read_text()
    (checkpoint,) = (metrics.parent / "checkpoints").iterdir()
    assert (checkpoint / "metadata.json").is_file()
    assert not list((tmp_path / "tmp").iterdir())


def test_the_bundled_model_is_known_by_any_path(monkeypatch, tmp_path):
    """Its form proposes its own learning rate, and its concept is loaded without being named."""
    shutil.copytree(ROOT / "demo_model", tmp_path / "copy" / "demo_model", copy_function=os.symlink)
    served = []
    page = SimpleNamespace(serve=lambda *args: served.append(args))
    monkeypatch.setitem(sys.modules, "detsd.app.page", page)
    monkeypatch.chdir(ROOT / "docs")
    (tmp_path / "link").symlink_to(ROOT / "demo_model")
    for model, rate, concepts in (
        (str(tmp_path / "link"), 7e-3, 1),
        ("demo_model", 7e-3, 1), (str(ROOT / "demo_model"), 7e-3, 1), ("../demo_model/", 7e-3, 1),
        (str(tmp_path / "copy" / "demo_model"), 5e-4, 0),  # without its repository
    ):  # fmt: skip
        runs = TrainingRuns(SimpleNamespace(model=SimpleNamespace(name=model)), tmp_path)
        assert runs.default_training().learning_rate == rate
        assert main(["app", "--model", model]) == 0
        _, files, _, _, pictures = served.pop()
        assert len(files) == len(pictures) == concepts
        assert all(map(os.path.exists, [*files, *pictures.values()]))


def test_without_gradio_one_sentence(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("detsd.app")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    assert "pip install -r requirements-app.txt" in capsys.readouterr().err


def test_a_port_that_is_taken(tiny_model, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["app", "--model", str(tiny_model), "--port", port]) == 2
    assert f"--port {port} is taken on 127.0.0.1; give another one" in capsys.readouterr().err


@pytest.fixture(scope="module")
def address(tiny_model, photos, tmp_path_factory):
    """Start the demo with the tiny model as a user does, with proxies set; yield its address.

    The model's folder lists what it can draw; the concept's names its pictures.
    """
    folder = tmp_path_factory.mktemp("served")
    model = folder / "model"
    shutil.copytree(tiny_model, model)
    (model / "vocabulary.json").write_text(
        json.dumps(
            {"objects": ["red ball"], "words": ["a", "photo", "of", "on", "white", "background"]}
        )
    )
    concept = LearnedConcept("blob-thing", "red ball", (torch.ones(2, 16),))
    checkpoint(folder / "blob", concept, photos, "object")
    port, log = free_port(), folder / "log"
    args = ["app", "--model", model, "--concepts", folder / "blob", "--port", port]
    with log.open("w") as out:
        server = subprocess.Popen(
            command(*args),
            cwd=folder,
            env=os.environ
            | PROXIES
            | {"GRADIO_TEMP_DIR": str(folder / "gradio"), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
        )
    try:
        line = server.stdout.readline()
        assert f"http://127.0.0.1:{port}/" in line, log.read_text()
        yield f"http://127.0.0.1:{port}/"
        assert "Traceback" not in log.read_text()
    finally:
        server.terminate()
        server.wait(60)
        server.stdout.close()


def example() -> str:
    """Return the program in docs/app.md."""
    return re.search(r"```python\n(.*?)```", (ROOT / "docs" / "app.md").read_text(), re.S)[1]


@pytest.mark.slow
def test_programs_use_the_page(address, backend, photos, tmp_path, monkeypatch, capsys):
    """The example of the documents runs word for word; then the other endpoints."""
    from gradio_client import Client, exceptions

    monkeypatch.chdir(tmp_path)
    program = example().replace("http://127.0.0.1:7860/", address)
    exec(program.replace("det-logo-demo", "blob-thing"), {})
    told = capsys.readouterr().out
    assert "seed 7" in told
    client = Client(address, verbose=False)
    settings = {"steps": 2, "scheduler": "ddim", "height": 40}
    made = client.predict(
        prompt="a blob-thing", count=2, seed=5, plain=True, **settings, api_name="/generate"
    )
    assert [one["seed"] for one in made["images"] + made["plain_images"]] == [5, 6, 5, 6]
    assert made["plain_images"][0]["prompt"] == "a red ball"
    # The result is that of the same settings anywhere else.
    job = good_job(backend, guidance_scale=4)
    assert read_record(Path(made["images"][0]["file"]))["seed"] == 5
    own = finished(backend.generate(copies(job, 2) + backend.baselines(copies(job, 2))))
    assert Image.open(made["images"][1]["file"]).tobytes() == Image.open(own[1].path).tobytes()
    sheet = client.predict(
        prompt="a blob-thing", x_axis="seed", x_values="0-1", **settings, api_name="/grid"
    )
    assert Image.open(sheet["sheet"]).width > 2 * 160
    assert len(sheet["images"]) == 2
    with pytest.raises(exceptions.AppError, match="the prompt is empty"):
        client.predict(prompt=" ", api_name="/generate")
    with pytest.raises(exceptions.AppError, match="there are no pictures"):
        client.predict(word="my-cat", phrase="cat", pictures=[], api_name="/learn")
    assert client.predict(api_name="/learning_status") == {}
    assert client.predict(api_name="/stop") is False
    assert client.predict(api_name="/model")["image_size"] == 32

    def asked(request):
        with urllib.request.urlopen(request) as answer:
            return answer.read().decode()

    # As curl does.
    url = f"{address}gradio_api/call/v2/generate"
    body = json.dumps({"prompt": "a blob-thing", "steps": 2}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    event = json.loads(asked(request))["event_id"]
    image = json.loads(asked(f"{url}/{event}").rpartition("data: ")[2])[0]["images"][0]
    with urllib.request.urlopen(image["file"]["url"]) as file:
        assert Image.open(file).size == (32, 32)


def test_a_training_that_ends_while_the_page_asks_is_asked_for_once_more():
    """Otherwise the page would show it as running forever, since its timer stops."""

    class Ending:
        running = True

        def default_training(self):
            return TrainingConfig()

        def names(self):
            return []

        def status(self, name):
            self.running = False

    with gr.Blocks():
        tab = LearnTab(SimpleNamespace(), Ending(), SimpleNamespace(all=[], chosen=gr.Radio()))
    assert tab.show()[tab.timer].active is True
    assert tab.show()[tab.timer].active is False


def test_the_end_of_a_training_chooses_what_it_has_learned_and_nothing_else(
    backend, learning, photos
):
    """A stopped training leaves the visitor's choice in the Concepts tab."""
    blocks = pages.page(backend, learning)
    (tick,) = (f.fn for f in blocks.fns.values() if f.fn and f.fn.__name__ == "tick")

    def chosen(before="blob-thing"):
        update = tick("my-cat", None, before)
        return next(u.value for part, u in update.items() if part.elem_id == "concepts")

    folder = learning.start("my-cat", "cat", [next(photos.iterdir())], num_sgd_steps=8)
    backend.pipe.add([LearnedConcept("cube-thing", "", (torch.ones(1, 16),))], "", "")
    learning.process.returncode = 143
    assert chosen() == "blob-thing"
    assert chosen(None) is None
    learning.process.returncode = 0
    cat = LearnedConcept("my-cat", "cat", (torch.ones(2, 16),))
    checkpoint(folder / "checkpoints" / "step-00000008", cat, photos, "object")
    assert chosen() == "my-cat"
    assert chosen() == "blob-thing"


def test_a_training_whose_folder_has_gone_is_told_and_leaves_the_list(learning, photos):
    """The tab itself shows the error: gradio hides the errors of unqueued events."""
    folder = learning.start("my-cat", "cat", [next(photos.iterdir())])
    learning.process.returncode = 0
    with gr.Blocks():
        tab = LearnTab(SimpleNamespace(), learning, SimpleNamespace(all=[], chosen=gr.Radio()))
    shutil.rmtree(folder)
    update = tab.look("my-cat")
    assert "has no run &#x27;my-cat&#x27;" in update[tab.message]
    assert (update[tab.names].choices, update[tab.names].value) == ([], None)
    assert tab.look()[tab.message] == ""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here, and none could be installed")
def test_the_page_in_a_browser(address, photos, tmp_path):
    """Everything on it is used in turn, on a telephone and on a screen."""
    from playwright.sync_api import Error, expect, sync_playwright

    elsewhere = []
    with contextlib.ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        browser = stack.enter_context(
            contextlib.closing(playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS))
        )
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(120_000)
        expect.set_options(timeout=120_000)
        page.on(
            "request",
            lambda r: r.url.startswith((address, "data:", "blob:")) or elsewhere.append(r.url),
        )

        def at(name):
            return page.locator(f"#{name}")

        def write(name, value, kind=":is(textarea, input):visible"):
            # A field that has just been unfolded may still be set to its initial value.
            field = page.locator(f"#{name} {kind}").first
            for _ in range(5):
                field.fill(str(value))
                field.press("Tab")
                page.wait_for_timeout(200)
                if field.input_value() == str(value):
                    break
            expect(field).to_have_value(str(value))

        def told(sentence):
            """Check that an error is shown, and close it."""
            expect(page.get_by_test_id("toast-text")).to_contain_text(sentence)
            page.get_by_test_id("toast-close").click()
            expect(page.get_by_test_id("toast-text")).to_have_count(0)

        page.goto(address)
        expect(at("about")).to_contain_text("blob-thing: 2 vectors")

        # Images with their baselines, and the concept's training images.
        write("prompt", "a drawing of a blob-thing")
        page.locator("#advanced button").first.click()
        for _ in range(2):  # the first one comes late on a busy machine
            for knob, value in (("guidance", 2.5), ("steps", 2), ("count", 2), ("seed", 7)):
                write(knob, value, "input[type=number]")
        page.get_by_label("Compare with the initializer").check()
        at("go").click()
        images = page.locator("#gallery .grid-wrap img")
        expect(images).to_have_count(2)
        expect(page.locator("#plain .grid-wrap img")).to_have_count(2)
        expect(at("words")).to_contain_text("a drawing of a blob-thing")
        expect(at("plain-words")).to_contain_text("a drawing of a red ball")
        expect(page.locator("#taught img")).to_have_count(8)
        expect(page.locator("#taught img").last).not_to_have_js_property("naturalWidth", 0)
        images.first.scroll_into_view_if_needed()  # the browser may not load it before
        expect(images.first).to_have_js_property("naturalWidth", 32)
        # Nothing is wider than a telephone; on a screen, image and baseline are side by side.
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert at("gallery").bounding_box()["x"] == at("plain").bounding_box()["x"]
        page.set_viewport_size({"width": 1280, "height": 800})
        a, b = at("gallery").bounding_box(), at("plain").bounding_box()
        assert a["x"] + a["width"] <= b["x"]
        assert a["y"] == b["y"]

        # The opened image fills the window, and is opaque; both sizes can be downloaded.
        images.first.click()
        opened = page.locator("#gallery .preview")
        expect(opened).to_be_visible()
        assert opened.bounding_box() == {"x": 0, "y": 0, "width": 1280, "height": 800}
        colour = opened.evaluate("e => getComputedStyle(e).backgroundColor")
        assert re.fullmatch(r"rgb\(\d+, \d+, \d+\)", colour)  # not transparent
        box = opened.locator("img").first.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 800
        page.keyboard.press("Escape")
        sizes = []
        for link in page.locator("#files li").first.locator("a").all():
            with page.expect_download() as download:
                link.click()
            file = tmp_path / download.value.suggested_filename
            download.value.save_as(file)
            record = read_record(file)
            assert (record["prompt"], record["seed"], record["guidance_scale"]) == (
                "a drawing of a blob-thing", 7, 2.5,
            )  # fmt: skip
            sizes.append(Image.open(file).size)
        assert sizes == [(32, 32), (512, 512)]

        # A mistake is shown under the button; the images stay visible.
        write("width", 4000)
        at("go").click()
        told("width is 4000 but must be a multiple of 8 from 16 to 64")
        expect(at("status")).to_have_text("width is 4000 but must be a multiple of 8 from 16 to 64")
        centre = (
            "e => { const r = e.getBoundingClientRect(); e.scrollIntoView(); "
            "const s = e.getBoundingClientRect(); return e.contains(document.elementFromPoint("
            "s.x + r.width / 2, s.y + r.height / 2)); }"
        )
        expect(images).to_have_count(2)
        assert images.first.evaluate(centre)

        # An image dropped fills the form again.
        write("prompt", "something else")
        page.locator("#drop input[type=file]").set_input_files(file)
        expect(page.locator("#prompt textarea")).to_have_value("a drawing of a blob-thing")
        expect(page.locator("#width input")).to_have_value("32")
        expect(page.locator("#count input[type=number]")).to_have_value("1")

        # One without settings is refused in the same place, and another can be dropped.
        page.locator("#drop input[type=file]").set_input_files(sorted(photos.iterdir())[0])
        expect(at("status")).to_contain_text("on_a_table_0.png holds no settings of detsd")
        expect(at("status")).not_to_contain_text("Error")
        expect(page.locator("#prompt textarea")).to_have_value("a drawing of a blob-thing")
        page.locator("#drop input[type=file]").set_input_files(file)
        expect(at("status")).not_to_contain_text("on_a_table_0.png")

        # Notes below the prompt; an example; the dice.
        write("prompt", "a photo of a dragon")
        expect(at("hint")).to_contain_text("never shown the word “dragon”")
        expect(at("hint")).to_contain_text("the prompt names no concept (blob-thing)")
        expect(at("draws")).to_contain_text("objects red ball")
        page.locator("#examples").get_by_text("a photo of a blob-thing on a white").click()
        expect(page.locator("#prompt textarea")).to_have_value(
            "a photo of a blob-thing on a white background"
        )
        at("dice").click()
        expect(page.locator("#seed input")).not_to_have_value("7")

        # Images are shown while they are made, and can be stopped.
        for knob, value in (("steps", 100), ("count", 8)):
            page.locator(f"#{knob} input[type=number]").fill(str(value))
            page.locator(f"#{knob} input[type=number]").press("Tab")
        for _ in range(5):  # on a slow test machine, the images may be done before the click
            kept = images.count()
            at("go").click()
            expect(page.get_by_text(re.compile(r"denoising step \d+ of 100")).first).to_be_visible()
            expect(page.locator("#preview img")).to_be_visible()
            with contextlib.suppress(Error):
                at("stop").click(timeout=5000)
            expect(at("go")).to_be_visible()
            expect(at("preview")).to_be_hidden()
            if "Stopped: nothing was made." in at("status").inner_text():
                break
        expect(at("status")).to_contain_text("Stopped: nothing was made.")
        expect(images).to_have_count(kept)

        # A grid from the form's settings.
        page.locator("#steps input[type=number]").fill("2")
        page.locator("#steps input[type=number]").press("Tab")
        page.get_by_role("tab", name="Grid").click()
        write("x-values", "1, 3")
        write("y-values", "one")
        at("grid-go").click()
        told("which is neither a number")
        write("y-values", "0-1")
        at("grid-go").click()
        expect(page.locator("#sheet img")).not_to_have_js_property("naturalWidth", 0)

        # Concepts are loaded, reloaded and unloaded; a mistake replaces the previous message.
        folder = checkpoint(
            tmp_path / "step", LearnedConcept("cube-thing", STRANGE, (torch.ones(1, 16),)), photos,
            "style",
        )  # fmt: skip
        page.get_by_role("tab", name="Concepts").click()
        write("source", folder)
        at("load").click()
        expect(at("loaded")).to_contain_text("Loaded cube-thing")
        expect(page.locator("#source textarea, #source input")).to_have_value("")
        expect(at("about")).to_contain_text(f"cube-thing: 1 vector, initialized from “{STRANGE}”")
        expect(at("facts")).to_contain_text("a style")
        expect(page.locator("#pictures img")).to_have_count(12)
        at("load").click()
        told("nothing is named; give a path or a uuid, or upload a file")
        write_concepts([LearnedConcept("cube-thing", "", (torch.ones(3, 16),))], folder)
        at("reload").click()
        expect(at("about")).to_contain_text("cube-thing: 3 vectors")
        page.locator("#tool input").fill("ComfyUI")
        page.locator("#tool input").press("Enter")
        at("export").click()
        expect(at("exported")).to_contain_text(
            "In ComfyUI, write in a prompt: embedding:cube-thing"
        )
        expect(at("exported_files")).to_contain_text("cube-thing")
        at("unload").click()
        expect(at("about")).not_to_contain_text("cube-thing")
        expect(at("concepts").locator(":checked")).to_have_count(0)
        at("unload").click()  # must not unload another one
        told("no concept is chosen")
        expect(at("about")).to_contain_text("blob-thing")
        expect(at("concepts").locator(":checked")).to_have_count(0)

        # A concept that another visitor unloads leaves the list at the next click on anything.
        unload = f"{address}gradio_api/call/v2/unload"
        for button, sentence in (
            ("export", "cube-thing is no longer loaded"),
            ("unload", "concept 'cube-thing' is not loaded"),
            ("reload", "concept 'cube-thing' is not loaded"),
            (None, ""),
        ):
            write("source", folder)
            at("load").click()
            expect(at("about")).to_contain_text("cube-thing")
            expect(at("concepts").get_by_text("cube-thing")).to_be_visible()
            chosen = "cube-thing" if button else "blob-thing"
            at("concepts").get_by_text(chosen).click()
            expect(at("facts")).to_contain_text(chosen)
            event = json.loads(ask(unload, {"name": "cube-thing"})[1])["event_id"]
            assert "event: complete" in ask(f"{unload}/{event}")[1]
            if button:
                at(button).click()
                told(sentence)
            else:
                at("concepts").get_by_text("cube-thing").click()
            expect(at("about")).not_to_contain_text("cube-thing")
            expect(at("concepts")).not_to_contain_text("cube-thing")
            expect(at("concepts").locator(":checked")).to_have_count(0)  # none is preselected
            expect(at("facts")).to_have_text("")

        # A concept is learned: progress is shown, it is stopped, resumed, and used.
        page.get_by_role("tab", name="Learn").click()
        at("learn-go").click()
        told("the word is empty")
        page.locator("#learn-pictures input[type=file]").set_input_files(sorted(photos.iterdir()))
        expect(page.locator("#learn-pictures .grid-wrap img")).to_have_count(12)
        write("word", "my-photo")
        write("phrase", "red ball")
        page.locator("#training button").first.click()
        write("learn-steps", 100_000)
        write("every", 40)
        at("learn-go").click()
        expect(page.locator("#samples .grid-wrap img")).to_have_count(4)
        expect(page.locator("#lapse img")).not_to_have_js_property("naturalWidth", 0)
        expect(at("learn-status")).to_contain_text("of the phrase")
        page.reload()  # closing the page stops nothing
        page.get_by_role("tab", name="Learn").click()
        expect(at("learn-status")).to_contain_text(re.compile(r"my-photo: step \d+ of 100000"))
        at("learn-stop").click()
        expect(at("learn-status")).to_contain_text(re.compile(r"stopped at step \d+"))
        stopped = int(re.search(r"step (\d+)", at("learn-status").inner_text())[1])
        at("use").click()
        expect(at("about")).to_contain_text("my-photo: 8 vectors")
        at("resume").click()
        expect(at("learn-status")).to_contain_text(re.compile(r"my-photo: step \d+ of 100000"))
        page.wait_for_function(
            "n => +document.querySelector('#learn-status').innerText.match(/step (\\d+)/)[1] > n",
            arg=stopped,
        )
        page.get_by_role("tab", name="Generate").click()
        at("go").click()
        told("is being trained; wait for it")
        page.get_by_role("tab", name="Learn").click()
        at("learn-stop").click()
        expect(at("learn-status")).to_contain_text("stopped at step")
        assert "Traceback" not in page.content()
    assert elsewhere == []


def test_the_page_has_the_clip_skip_and_the_vae_of_its_model(tiny_model, tmp_path):
    """It shows them, learns with them, and notes images that were made with others."""
    pipe = DetSDTextualInversionPipeline.from_pretrained(
        str(tiny_model), clip_skip=1, vae=str(tiny_model / "vae")
    )
    backend = Backend(pipe, tmp_path / "page")
    assert f"</b>, clip_skip 1, vae {tiny_model / 'vae'}, 32 x 32" in parts.about(backend)
    runs = TrainingRuns(pipe, tmp_path)
    (tmp_path / "run").mkdir()
    runs._write_config(tmp_path / "run", {"concept_strs": ["x-y"]}, {}, [])
    written = json.loads((tmp_path / "run" / "finetune.yaml").read_text().partition("\n")[2])
    model = written["hyperparameters"]["model"]
    assert (model["clip_skip"], model["vae"]) == (1, str(tiny_model / "vae"))
    plain = DetSDTextualInversionPipeline.from_pretrained(str(tiny_model))
    job = Job("a dog", 0, num_inference_steps=1)
    (path,) = plain.save([job], plain.make([job]), tmp_path)
    _, notes = read_settings(pipe, path)
    assert "it was made with model.clip_skip none; here it is 1" in notes
    assert f"it was made with model.vae none; here it is {tiny_model / 'vae'}" in notes
    assert read_settings(plain, path)[1] == []
