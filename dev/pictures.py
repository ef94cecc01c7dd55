"""Draw the pictures of the documents again: python -m dev.pictures [NAME ...]

Without names, it draws all of them. It uses the current bundled model and concept. `app` needs
requirements-app.txt, playwright and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from demo_model import process as reverse_and_forward
from detsd.sampling.jobs import Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.utils import contact_sheets

DOCS = Path("docs")
CONCEPT = "learned_embeddings_dict_demo.pt"
PICTURE = Path("det_logos/on_a_photo_of_a_white_background.jpg")


def pipeline() -> DetSDTextualInversionPipeline:
    """Load the bundled model with the bundled concept."""
    pipe = DetSDTextualInversionPipeline.from_pretrained("demo_model")
    pipe.load_concepts(CONCEPT)
    return pipe


MEDIA = ("a photo of", "a flat vector illustration of", "an ink doodle of", "a neon sign of")
SETTINGS = {"guidance_scale": 2.5, "num_inference_steps": 30, "scheduler_name": "euler-ancestral"}


def before_and_after(
    pipe: DetSDTextualInversionPipeline, taught: list[Path], prompts: list[str], seeds: int = 2
) -> Image.Image:
    """Draw training pictures above the plain phrase and the word, with equal seeds.

    Args:
        prompts: with `{}` for the phrase or the word; a column for each prompt and seed.
    """
    (concept,) = pipe.vocabulary.concepts()
    jobs = [
        Job(p.format(f"a {concept.name}"), s, **SETTINGS) for p in prompts for s in range(seeds)
    ]
    plain = pipe.make(
        [replace(j, prompt=pipe.vocabulary.with_initializers(j.prompt)) for j in jobs]
    )
    learned = pipe.make(jobs)
    size = (pipe.model.image_size,) * 2
    shown = taught[:: max(1, len(taught) // len(jobs))][: len(jobs)]
    return contact_sheets.sheet(
        [
            [Image.open(path).convert("RGB").resize(size, Image.LANCZOS) for path in shown],
            [made.image for made in plain],
            [made.image for made in learned],
        ],
        [
            f"{f'{len(shown)} of ' if len(shown) < len(taught) else ''}the {len(taught)} "
            "training pictures",
            f"before: “{concept.initializer}”",
            f"after, same seeds: “{concept.name}”",
        ],
    )


def hero() -> None:
    """hero.png: training pictures, the plain phrase, the concept, in four media."""
    taught = sorted(Path("det_logos").iterdir())
    prompts = [f"{medium} {{}} on a white background" for medium in MEDIA[:3]]
    prompts.append(f"{MEDIA[3]} {{}} on a black background")
    before_and_after(pipeline(), taught, prompts).save(DOCS / "hero.png")


def learned(word: str, phrase: str, folder: str, *settings: str) -> DetSDTextualInversionPipeline:
    """Load the bundled model with a concept that `finetune_demo.yaml` learns from a folder."""
    pipe = DetSDTextualInversionPipeline.from_pretrained("demo_model")
    with TemporaryDirectory() as out:
        values = [
            f"concepts.concept_strs={word}", f"concepts.initializer_strs={phrase}",
            f"concepts.img_dirs={folder}",
            f"inference.inference_prompts=a photo of a {word}", *settings,
        ]  # fmt: skip
        sets = [text for value in values for text in ("--set", value)]
        detsd("finetune", "finetune_demo.yaml", *sets, "--output-dir", out)
        pipe.load_concepts(out)
    return pipe


def own() -> None:
    """own.png: a user's own concept, from eight plain pictures without captions."""
    folder = "examples/ring_and_dot"
    plain = "concepts.append_file_name_to_text=false"
    pipe = learned("ring-and-dot", "round emblem with a middle", folder, plain)
    prompts = ["a photo of {}", "a photo of {} on a night sky", "an ink doodle of {}",
               "a neon sign of {}"]  # fmt: skip
    before_and_after(pipe, sorted(Path(folder).iterdir()), prompts).save(DOCS / "own.png")


def style() -> None:
    """style.png: a style, from eight pictures of different things."""
    folder = "examples/glow_style"
    pipe = learned("glow-style", "bright picture", folder, "concepts.learnable_properties=style")
    prompts = [f"in the style of {{}} of a {t}" for t in ("cat", "house", "circle", "cross")]
    before_and_after(pipe, sorted(Path(folder).iterdir()), prompts).save(DOCS / "style.png")


def process() -> None:
    """process.png: the reverse and the forward process of a diffusion model."""
    pipe = pipeline()
    job = Job(f"a photo of a {pipe.concepts[0]} on a white background", 1, guidance_scale=4)
    moments = reverse_and_forward.process(pipe, job, Image.open(PICTURE), 7)
    reverse_and_forward.process_strip(*moments).save(DOCS / "process.png")


def finetuning() -> None:
    """time_lapse.png: the time-lapse of `make demo`."""
    with TemporaryDirectory() as folder:
        detsd("finetune", "finetune_demo.yaml", "--output-dir", folder)
        shutil.copyfile(Path(folder) / "time_lapse.png", DOCS / "time_lapse.png")


def grid() -> None:
    """grid.png: a contact sheet of generate_demo.yaml."""
    with TemporaryDirectory() as folder:
        detsd("generate", "generate_demo.yaml", "--output-dir", folder)
        shutil.copyfile(Path(folder) / "sheets" / "sheet-001.png", DOCS / "grid.png")


def tensorboard() -> None:
    """tensorboard.png: the samples of `make demo` in TensorBoard, in a browser."""
    from playwright.sync_api import sync_playwright

    with TemporaryDirectory() as folder:
        detsd("finetune", "finetune_demo.yaml", "--output-dir", f"{folder}/outputs/finetune_demo")
        server = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", "--logdir", f"{folder}/outputs",
             "--samples_per_plugin", "images=100", "--port", "0"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            address = next(line for line in server.stderr if "http://" in line).split("http://")[1]
            with sync_playwright() as play:
                browser = play.chromium.launch(
                    executable_path=shutil.which("chromium"),
                    args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
                )
                page = browser.new_page(viewport={"width": 1180, "height": 760})
                page.goto(f"http://{address.split('/')[0]}/#images")
                page.wait_for_timeout(12_000)  # it draws nothing before its first poll
                page.screenshot(path=DOCS / "tensorboard.png")
                browser.close()
        finally:
            server.terminate()
            server.wait()


def app() -> None:
    """app.png: the demo's page in a browser."""
    from playwright.sync_api import sync_playwright

    server = subprocess.Popen(
        [sys.executable, "-m", "detsd", "app"], stdout=subprocess.PIPE, text=True
    )
    try:
        address = server.stdout.readline().split()[4]
        with sync_playwright() as play:
            browser = play.chromium.launch(
                executable_path=shutil.which("chromium"),
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
            page = browser.new_page(viewport={"width": 1180, "height": 760})
            page.goto(address)
            page.locator("#advanced button").first.click()
            page.locator("#count input[type=number]").fill("2")
            page.locator("#count input[type=number]").press("Tab")
            page.locator("#advanced button").first.click()
            page.get_by_label("Compare with the initializer").check()
            page.locator("#go").click()
            page.locator("#plain .grid-wrap img").first.wait_for(timeout=120_000)
            page.locator("#go").wait_for()
            page.wait_for_timeout(500)
            page.screenshot(path=DOCS / "app.png", full_page=True)
            browser.close()
    finally:
        server.terminate()
        server.wait()


def detsd(*args: str) -> None:
    """Run a command of detsd."""
    subprocess.run([sys.executable, "-m", "detsd", *args], check=True)


PICTURES = {f.__name__: f for f in (hero, own, style, process, finetuning, grid, tensorboard, app)}


def main() -> None:
    """Draw the pictures named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    names = parser.parse_args().names or list(PICTURES)
    for name in names:
        if name not in PICTURES:
            parser.error(f"{name} is not a picture; use {', '.join(PICTURES)}")
    for name in names:
        PICTURES[name]()


if __name__ == "__main__":
    main()
