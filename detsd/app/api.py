"""What the page offers to programs: named parameters, plain values, one endpoint per deed.

    client = gradio_client.Client("http://127.0.0.1:7860/")
    client.predict(prompt="a photo of a det-logo-demo", api_name="/generate")

docs/app.md tells more. A mistake comes back as an error with the sentence that the page would show.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from detsd.app.backend import Backend
from detsd.app.form import checked_job, copies, grid_jobs
from detsd.app.parts import ALONE, sentence
from detsd.app.pictures import PageImage
from detsd.app.training_runs import TrainingRuns


def as_file(path: Path) -> dict[str, Any]:
    """A file as gradio's clients download it; others find it under its `url`."""
    return {
        "path": str(path),
        "url": f"/gradio_api/file={path}",
        "orig_name": path.name,
        "meta": {"_type": "gradio.FileData"},
    }


def as_values(shown: PageImage) -> dict[str, Any]:
    """An image as plain values."""
    job = shown.job
    return {
        "file": as_file(shown.path),
        "prompt": job.prompt,
        "seed": job.seed,
        "guidance_scale": job.guidance_scale,
        "steps": job.num_inference_steps,
        "scheduler": job.scheduler_name,
        "flagged": shown.flagged,
    }


def _in_a_sentence(call: Callable) -> Callable:
    @functools.wraps(call)
    def wrapped(*args: Any) -> Any:
        try:
            return call(*args)
        except Exception as error:
            raise gr.Error(sentence(error), print_exception=False) from None

    return wrapped


def endpoints(backend: Backend, learning: TrainingRuns) -> None:
    """Declare them within the page."""
    size, own = backend.pipe.model.image_size, backend.pipe.own_scheduler

    def generate(
        prompt: str,
        negative_prompt: str = "",
        guidance_scale: float = 4.0,
        steps: int = 30,
        seed: int = 0,
        scheduler: str = "",
        count: int = 1,
        width: int = 0,
        height: int = 0,
        plain: bool = False,
    ) -> dict:
        """Make images of a prompt, seed, seed + 1, ...; the model's own size and sampler are usual.

        Returns `images`, with `plain` also `plain_images` of the phrases in the concepts' place,
        and `notes` on the prompt.
        """
        first = checked_job(
            backend.pipe, prompt, negative_prompt, guidance_scale, steps, seed, scheduler or own,
            width or size, height or size, count,
        )  # fmt: skip
        jobs = copies(first, count)
        twins = backend.twins(jobs) if plain and not backend.no_twin(first.prompt) else []
        shown = backend.make(jobs + twins)
        values = [as_values(one) for _, one in sorted(shown.items())]
        return {
            "images": values[: len(jobs)],
            "plain_images": values[len(jobs) :],
            "notes": backend.notes(first.prompt),
        }

    def grid(
        prompt: str,
        x_axis: str,
        x_values: str,
        y_axis: str = "nothing",
        y_values: str = "",
        negative_prompt: str = "",
        guidance_scale: float = 4.0,
        steps: int = 30,
        seed: int = 0,
        scheduler: str = "",
        width: int = 0,
        height: int = 0,
    ) -> dict:
        """Make a grid: one setting along each axis, values as on the page.

        Returns `sheet` and `images`, row by row.
        """
        job = checked_job(
            backend.pipe, prompt, negative_prompt, guidance_scale, steps, seed, scheduler or own,
            width or size, height or size,
        )  # fmt: skip
        jobs, columns, rows = grid_jobs(backend.pipe, job, (x_axis, x_values), (y_axis, y_values))
        shown = backend.make(jobs)
        return {
            "sheet": as_file(backend.sheet(shown, columns, rows, "")) if shown else None,
            "images": [as_values(one) for _, one in sorted(shown.items())],
        }

    def stop() -> bool:
        """Stop the images that are being made; whether any were. What is made comes back."""
        return backend.stop()

    def model() -> dict:
        """The model, and what it says that it can draw."""
        loaded, words = backend.pipe.model, backend.words
        return {
            "name": loaded.name,
            "image_size": loaded.image_size,
            "draws": words.lists if words else {},
        }

    def concepts() -> list:
        """The loaded concepts."""
        return backend.concepts()

    def load(source: str) -> list:
        """Load concepts of a file or folder of the page's machine, or of a checkpoint's uuid."""
        return backend.load(source)

    def unload(name: str) -> None:
        """Forget a concept."""
        backend.unload(name)

    def reload(name: str) -> None:
        """Read a concept again from where it came from."""
        backend.reload(name)

    def learn(
        word: str,
        phrase: str,
        pictures: list,
        kind: str = "object",
        steps: int = 0,
        learning_rate: float = 0.0,
        prompts: list = [],  # noqa: B006 - an endpoint's default
    ) -> str:
        """Begin to learn a word from pictures, each a file of `gradio_client.handle_file`.

        0 for steps or learning rate is the usual one. Returns the folder of the run.
        """
        given = {"num_sgd_steps": steps, "learning_rate": learning_rate}
        paths = [p["path"] if isinstance(p, dict) else p for p in pictures]
        given = {key: value for key, value in given.items() if value}
        return str(learning.start(word, phrase, paths, kind, prompts, **given))

    def go_on(run: str) -> str:
        """Go on with a run that was stopped; its folder."""
        return str(learning.go_on(run))

    def learning_status(run: str = "") -> dict:
        """How the run that goes on, or the one of that name, stands; {} without any."""
        standing = learning.standing(run or None)
        if standing is None:
            return {}
        if new := learning.take_finished():
            backend.replace(new)
        samples = standing.samples(standing.sampled[-1]) if standing.sampled else []
        facts = {key: value for key, value in vars(standing).items() if key != "sampled"}
        facts["samples"] = [path for path, _ in samples]
        return json.loads(json.dumps(facts, default=str))  # paths as texts

    def stop_learning() -> None:
        """Ask the run that goes on to leave a checkpoint and end."""
        learning.stop()

    for call in (generate, grid, load, unload, reload, learn, go_on):
        gr.api(_in_a_sentence(call), api_name=call.__name__, **ALONE)
    for call in (stop, model, concepts, learning_status, stop_learning):
        gr.api(_in_a_sentence(call), api_name=call.__name__, queue=False)
