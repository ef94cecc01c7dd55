"""Draw the pictures of the documents again: python -m dev.pictures [NAME ...]

Without names all of them; each takes the bundled model and concept as they are now. `app` needs
requirements-app.txt, playwright and a Chromium.
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

from detsd import images
from detsd.pipeline import DetSDTextualInversionPipeline, Job

DOCS = Path("docs")
CONCEPT = "learned_embeddings_dict_demo.pt"
PICTURE = Path("det_logos/on_a_photo_of_a_white_background.jpg")


def pipeline() -> DetSDTextualInversionPipeline:
    """The bundled model with the bundled concept."""
    pipe = DetSDTextualInversionPipeline.from_pretrained("demo_model")
    pipe.load_concepts(CONCEPT)
    return pipe


def hero() -> None:
    """hero.png: training images, the plain phrase, the concept, under equal seeds."""
    pipe = pipeline()
    word = pipe.concepts[0]
    prompts = [f"a photo of a {word} on a white background", f"a watercolor painting of a {word}"]
    settings = {
        "guidance_scale": 4,
        "num_inference_steps": 30,
        "scheduler_name": "euler-ancestral",
    }
    jobs = [Job(p, s, **settings) for p in prompts for s in range(3)]
    plain = pipe.make([replace(j, prompt=pipe.vocabulary.plain(j.prompt)) for j in jobs])
    learned = pipe.make(jobs)
    taught = sorted(Path("det_logos").iterdir())[4::7][: len(jobs)]
    size = (pipe.model.image_size,) * 2
    phrase = pipe.vocabulary.concepts()[0].initializer
    images.sheet(
        [
            [Image.open(path).convert("RGB").resize(size, Image.LANCZOS) for path in taught],
            [made.image for made in plain],
            [made.image for made in learned],
        ],
        [
            f"some of the {len(list(Path('det_logos').iterdir()))} training images",
            f"before: “{phrase}”, as a photo on a white background and as a watercolor painting",
            f"after, same seeds: “{word}”",
        ],
    ).save(DOCS / "hero.png")


def process() -> None:
    """process.png: the reverse and the forward process of a diffusion model."""
    pipe = pipeline()
    job = Job(f"a photo of a {pipe.concepts[0]} on a white background", 1, guidance_scale=4)
    images.process_strip(*pipe.process(job, Image.open(PICTURE), 7)).save(DOCS / "process.png")


def finetuning() -> None:
    """time_lapse.png: of `make demo`."""
    with TemporaryDirectory() as folder:
        detsd("finetune", "finetune_demo.yaml", "--output-dir", folder)
        shutil.copyfile(Path(folder) / "time_lapse.png", DOCS / "time_lapse.png")


def grid() -> None:
    """grid.png: a contact sheet of generate_demo.yaml."""
    with TemporaryDirectory() as folder:
        detsd("generate", "generate_demo.yaml", "--output-dir", folder)
        shutil.copyfile(Path(folder) / "sheets" / "sheet-001.png", DOCS / "grid.png")


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
            page.get_by_label("Beside it").check()
            page.locator("#go").click()
            page.locator("#plain .grid-wrap img").first.wait_for(timeout=120_000)
            page.wait_for_timeout(500)
            page.screenshot(path=DOCS / "app.png", full_page=True)
            browser.close()
    finally:
        server.terminate()
        server.wait()


def detsd(*args: str) -> None:
    """Run a command of detsd."""
    subprocess.run([sys.executable, "-m", "detsd", *args], check=True)


PICTURES = {f.__name__: f for f in (hero, process, finetuning, grid, app)}


def main() -> None:
    """Draw what is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    names = parser.parse_args().names or list(PICTURES)
    for name in names:
        if name not in PICTURES:
            parser.error(f"{name} is no picture; use {', '.join(PICTURES)}")
    for name in names:
        PICTURES[name]()


if __name__ == "__main__":
    main()
