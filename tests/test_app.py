"""The demo: what its settings allow, and the page itself in a real browser."""

import contextlib
import os
import re
import shutil
import socket
import subprocess

import pytest
import torch
from conftest import command
from tiny import ROOT

from detsd import app, pipeline
from detsd.__main__ import main
from detsd.errors import UserError
from detsd.formats import LearnedConcept, write_concepts
from detsd.images import read_record
from detsd.pipeline import DetSDTextualInversionPipeline

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync""".split()  # noqa: SIM905
GOOD = {
    "prompt": " a  blob-thing ",
    "negative": "",
    "guidance": 3,
    "steps": 2,
    "seed": 5,
    "scheduler": "ddim",
    "count": 2,
    "width": 32,
    "height": 40,
}


@pytest.fixture(scope="module")
def concept_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concept")
    write_concepts([LearnedConcept("blob-thing", "red ball", torch.ones(2, 16))], folder)
    return folder / "blob-thing.safetensors"


@pytest.fixture(scope="module")
def studio(tiny_model, concept_file, tmp_path_factory):
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(tiny_model))
    pipe.load_concepts(concept_file)
    return app.Studio(pipe, tmp_path_factory.mktemp("made"))


def test_settings_become_jobs(studio):
    jobs = app.checked_jobs(studio.pipe, **GOOD)
    assert [job.seed for job in jobs] == [5, 6]
    assert {(job.prompt, job.width, job.height) for job in jobs} == {("a blob-thing", 32, 40)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": "very " * 90}, "92 tokens and the model reads 77"),
        ({"prompt": "x" * 9999}, "the prompt has 9999 characters"),
        ({"negative": "very " * 90}, r"the negative prompt 'very .{60,80} \.\.\.' has 92 tokens"),
        ({"width": 4096}, "the width must be a number from 16 to 64, not 4096"),
        ({"height": 33}, "the height is 33 pixels but must be a multiple of 8"),
        ({"height": None}, "the height must be a number from 16 to 64"),
        ({"steps": 100000}, "the number of steps must be a number from 1 to 200"),
        ({"guidance": -1}, "the guidance scale must be a number from 0 to 50"),
        ({"guidance": float("nan")}, "the guidance scale must be a number from 0 to 50"),
        ({"seed": -1}, "the seed must be a number from 0"),
        ({"count": 1000}, "the number of images must be a number from 1 to 8"),
        ({"scheduler": "ddpm"}, "scheduler 'ddpm' is unknown; use one of ddim"),
    ],
)
def test_settings_that_are_refused(studio, change, message):
    with pytest.raises(UserError, match=message):
        app.checked_jobs(studio.pipe, **GOOD | change)


def test_images_and_their_plain_twins(studio, monkeypatch):
    """Two batches of two: progress over both; files that hold their settings."""
    monkeypatch.setattr(pipeline, "fitting_batch_size", lambda *_: 2)
    told = []
    jobs = app.checked_jobs(studio.pipe, **GOOD)
    shown, twins, plain = studio.make(jobs, True, lambda share, text: told.append((share, text)))
    assert plain == "a red ball"
    assert [caption for _, caption in shown + twins] == ["seed 5", "seed 6"] * 2
    records = [read_record(file) for file, _ in shown + twins]
    assert [r["prompt"] for r in records] == ["a blob-thing"] * 2 + ["a red ball"] * 2
    assert records[0]["concepts"]["blob-thing"]["source"].endswith("blob-thing.safetensors")
    assert [share for share, _ in told] == [0.25, 0.5, 0.75, 1.0]
    assert told[0][1] == "denoising step 1 of 2"


def test_loading_another_concept(studio, tmp_path):
    write_concepts([LearnedConcept("cube-thing", "", torch.ones(1, 16))], tmp_path)
    assert studio.load(str(tmp_path), None) == ["cube-thing"]
    assert "**cube-thing**: 1 vector" in studio.about()
    assert ["a photo of a blob-thing and a cube-thing"] in studio.examples()
    with pytest.raises(UserError, match="nothing is named"):
        studio.load(" ", None)
    with pytest.raises(UserError, match="loaded twice"):
        studio.load(None, str(tmp_path / "cube-thing.safetensors"))
    with pytest.raises(UserError, match="is named and a file uploaded; take one of them away"):
        studio.load(str(tmp_path), str(tmp_path / "cube-thing.safetensors"))


def test_one_thing_at_a_time(studio):
    """What touches the model waits in one queue, whoever asks."""
    calls = {f.api_name: f for f in app.page(studio).fns.values()}
    assert calls["generate"].concurrency_id == calls["load"].concurrency_id == "model"
    assert calls["generate"].concurrency_limit == calls["load"].concurrency_limit == 1


def test_without_gradio_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(app, "gr", None)
    assert main(["app"]) == 2
    assert "pip install -r requirements-app.txt" in capsys.readouterr().err


def test_a_port_that_is_taken(tiny_model, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["app", "--model", str(tiny_model), "--port", port]) == 2
    assert f"--port {port} is taken on 127.0.0.1, or" in capsys.readouterr().err


@pytest.fixture
def address(tiny_model, concept_file, tmp_path):
    """The demo on the tiny model, as a user starts it, on a port that is free."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = tmp_path / "log"
    args = ["app", "--model", tiny_model, "--concepts", concept_file, "--port", port]
    with log.open("w") as out:
        server = subprocess.Popen(
            command(*args),
            cwd=ROOT,
            env=os.environ | {"GRADIO_TEMP_DIR": str(tmp_path / "gradio")},
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
        server.wait(20)
        server.stdout.close()


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here, and none could be installed")
def test_the_page_in_a_browser(address, tmp_path):
    """Write a prompt, generate, see and download images, turn knobs, click an example, err."""
    from playwright.sync_api import expect, sync_playwright

    elsewhere = []
    with contextlib.ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        browser = stack.enter_context(
            contextlib.closing(playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS))
        )
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page.on(
            "request",
            lambda r: r.url.startswith((address, "data:", "blob:")) or elsewhere.append(r.url),
        )
        page.goto(address)
        expect(page.locator("#about")).to_contain_text("blob-thing: 2 vectors")

        prompt = page.locator("#prompt textarea")
        prompt.fill("a drawing of a blob-thing")
        page.locator("#advanced button").first.click()
        for knob, value in (("guidance", "2.5"), ("steps", "2"), ("count", "2"), ("seed", "7")):
            page.locator(f"#{knob} input[type=number]").fill(value)
            page.locator(f"#{knob} input[type=number]").press("Tab")
        page.get_by_label("Beside it").check()
        page.locator("#go").click()
        images = page.locator("#gallery .grid-wrap img")
        expect(images).to_have_count(2)
        expect(page.locator("#plain .grid-wrap img")).to_have_count(2)
        expect(page.locator("#words")).to_contain_text("a drawing of a blob-thing")
        expect(page.locator("#plain-words")).to_contain_text("a drawing of a red ball")
        images.first.scroll_into_view_if_needed()  # the browser may leave it unloaded till then
        expect(images.first).to_have_js_property("naturalWidth", 32)
        # Nothing is wider than a telephone; on a screen the twins stand side by side.
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        left, right = (page.locator(f"#{name}") for name in ("gallery", "plain"))
        assert left.bounding_box()["x"] == right.bounding_box()["x"]
        page.set_viewport_size({"width": 1280, "height": 800})
        a, b = left.bounding_box(), right.bounding_box()
        assert a["x"] + a["width"] <= b["x"]
        assert a["y"] == b["y"]
        page.set_viewport_size({"width": 390, "height": 844})

        images.first.click()
        with page.expect_download() as download:
            page.locator("#gallery [title=Download], #gallery [aria-label=Download]").first.click()
        file = tmp_path / "downloaded.png"
        download.value.save_as(file)
        record = read_record(file)
        assert (record["prompt"], record["seed"], record["guidance_scale"]) == (
            "a drawing of a blob-thing", 7, 2.5,
        )  # fmt: skip
        page.keyboard.press("Escape")

        page.get_by_text("a neon picture of a blob-thing on a brick wall").click()
        expect(prompt).to_have_value("a neon picture of a blob-thing on a brick wall")
        page.locator("#dice").click()
        expect(page.locator("#seed input")).not_to_have_value("7")

        for knob, value in (("steps", "100"), ("count", "8")):
            page.locator(f"#{knob} input[type=number]").fill(value)
            page.locator(f"#{knob} input[type=number]").press("Tab")
        page.locator("#go").click()
        expect(page.get_by_text(re.compile(r"denoising step \d+ of 100")).first).to_be_visible()
        expect(images).to_have_count(8)

        page.locator("#width input").fill("4000")
        page.locator("#go").click()
        expect(page.locator(".toast-body").first).to_contain_text(
            "the width must be a number from 16 to 64, not 4000"
        )
        assert "Traceback" not in page.content()

        write_concepts([LearnedConcept("cube-thing", "dice", torch.ones(1, 16))], tmp_path)
        page.get_by_role("tab", name="Load a concept").click()
        page.locator("#source textarea, #source input").fill(
            str(tmp_path / "cube-thing.safetensors")
        )
        page.locator("#load").click()
        expect(page.locator("#loaded")).to_contain_text("Loaded cube-thing")
        expect(page.locator("#source textarea, #source input")).to_have_value("")
        expect(page.locator("#about")).to_contain_text("cube-thing: 1 vector")
    assert elsewhere == []
