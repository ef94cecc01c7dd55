"""The endpoints of the demo page for programs: named parameters, plain values.

    client = gradio_client.Client("http://127.0.0.1:7860/")
    client.predict(prompt="a photo of a det-logo-demo", api_name="/generate")

docs/app.md describes them. An error comes back with the sentence that the page would show.
"""

import dataclasses
import inspect
import json
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from detsd.app import pictures
from detsd.app.backend import Backend, Generation
from detsd.app.form import ImageSettings, copies, grid_jobs, make_job, parse
from detsd.app.parts import ALONE, raise_errors, uploaded
from detsd.app.training_runs import MAX_PICTURES, TrainingRuns
from detsd.config.schema import REQUIRED, Section, setting
from detsd.utils.errors import UserError


def as_file(path: Path) -> dict[str, Any]:
    """Return a file as gradio's clients download it; gradio adds the `url` for others."""
    return gr.FileData(path=str(path), orig_name=path.name).model_dump()


def as_values(image: pictures.PageImage) -> dict[str, Any]:
    """Return an image as plain values."""
    job = image.job
    return {
        "file": as_file(image.path),
        "prompt": job.prompt,
        "seed": job.seed,
        "guidance_scale": job.guidance_scale,
        "steps": job.num_inference_steps,
        "scheduler": job.scheduler_name,
        "flagged": image.flagged,
    }


class Endpoints:
    """The endpoints that do more than a method of the backend."""

    def __init__(self, backend: Backend, runs: TrainingRuns):
        self.backend, self.runs = backend, runs

    def generate(
        self, prompt: str, count: int = 1, plain: bool = False, **settings: Any
    ) -> Iterator[dict]:
        """Make images of a prompt with the seeds `seed`, `seed + 1`, ...

        Returns `images` and `notes` on the prompt; with `plain`, also `plain_images`, which use the
        initializers instead of the concepts. Images arrive as they are made; the last update has
        all of them.
        """
        backend = self.backend
        first = make_job(backend.pipe, parse(ImageSettings, {"prompt": prompt} | settings))
        jobs = copies(first, count)
        jobs += backend.baselines(jobs) if plain else []
        notes = backend.warnings([first])
        for now in _when_made(backend.generate(jobs)):
            made = sorted(now.images.items())
            yield {
                "images": [as_values(image) for number, image in made if number < count],
                "plain_images": [as_values(image) for number, image in made if number >= count],
                "notes": notes,
            }

    def grid(
        self,
        prompt: str,
        x_axis: str,
        x_values: str,
        y_axis: str = "nothing",
        y_values: str = "",
        **settings: Any,
    ) -> Iterator[dict]:
        """Make a grid: one setting along each axis, with values written as on the page.

        Returns `sheet` and `images`, row by row.
        """
        backend = self.backend
        given = parse(ImageSettings, {"prompt": prompt} | settings)
        jobs, columns, rows = grid_jobs(backend.pipe, given, (x_axis, x_values), (y_axis, y_values))
        for now in _when_made(backend.generate(jobs)):
            images, sheet = now.images, None
            if images and now.done:  # drawing it takes a while
                sheet = as_file(pictures.sheet(images, columns, rows, "", backend.folder))
            yield {"sheet": sheet, "images": [as_values(one) for _, one in sorted(images.items())]}

    def model(self) -> dict:
        """Return the model, and what it can draw according to its folder."""
        model, draws = self.backend.pipe.model, self.backend.hints.lists
        return {"name": model.name, "image_size": model.image_size, "draws": draws}

    def load(self, source: Any) -> list:
        """Load concepts from an upload, or from a path if only this machine can reach the page."""
        if isinstance(source, str):
            return self.backend.load(source)
        return self.backend.load("", uploaded(source))

    def learn(
        self,
        word: str,
        phrase: str,
        pictures: Any,
        kind: str = "object",
        steps: int = 0,
        learning_rate: float = 0.0,
        prompts: list[str] = [],  # noqa: B006 - an endpoint's default
        captions: list[str] = [],  # noqa: B006
        buckets: bool = False,
    ) -> str:
        """Start to train a word on pictures, each passed through `gradio_client.handle_file`.

        Steps or a learning rate of 0 mean the default. If the phrase is empty, one is found.
        Captions are in the order of the pictures, "" for a picture without one. Buckets keep the
        pictures' shapes. Returns the run's folder.
        """
        if not isinstance(pictures, list):
            raise UserError(f"pictures is {str(pictures)[:100]!r} but must be a list of files")
        given = {"num_sgd_steps": steps, "learning_rate": learning_rate}
        given = {key: value for key, value in given.items() if value}
        files = [uploaded(file) for file in pictures[: MAX_PICTURES + 1]]
        return str(
            self.runs.start(word, phrase, files, kind, prompts, False, captions, buckets, **given)
        )

    def go_on(self, run: str) -> str:
        """Resume a run that was stopped; return its folder."""
        return str(self.runs.resume(run))

    def learning_status(self, run: str = "") -> dict:
        """Return the status of the active run, or of the run named; {} if there is none."""
        status = self.runs.status(run)
        if status is None:
            return {}
        if new := self.runs.take_finished():
            self.backend.replace(new)
        samples = status.samples(status.sampled[-1]) if status.sampled else []
        facts = {key: value for key, value in vars(status).items() if key != "sampled"}
        facts["samples"] = [path for path, _ in samples]
        return json.loads(json.dumps(facts, default=str))  # paths as strings

    def stop_learning(self) -> None:
        """Ask the active run to save a checkpoint and end."""
        self.runs.stop()


def _when_made(generation: Iterator[Generation]) -> Iterator[Generation]:
    """Yield at each image, at the end, and every two seconds, so that gradio sees who left."""
    count, last = -1, 0.0
    for now in generation:
        if now.done or len(now.images) > count or time.monotonic() - last > 2:
            count, last = len(now.images), time.monotonic()
            yield now


def endpoints(backend: Backend, runs: TrainingRuns) -> None:
    """Declare the endpoints within the page."""
    e = Endpoints(backend, runs)
    for call in (e.generate, e.grid, e.load, backend.unload, backend.reload, e.learn, e.go_on):
        declare(call, **ALONE)
    for call in (backend.stop, e.model, backend.concepts, e.learning_status, e.stop_learning):
        declare(call, queue=False)


def declare(call: Callable, **options: Any) -> None:
    """Declare an endpoint for a function and check its parameters' types, which gradio does not.

    `**settings` stands for the fields of `ImageSettings` that the function does not name. The
    function itself checks parameters of type `Any`.
    """
    signature = inspect.signature(call)
    parameters = list(signature.parameters.values())
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        settings = inspect.signature(ImageSettings).parameters.values()
        parameters[-1:] = [p for p in settings if p.name not in signature.parameters]
    typed = [p for p in parameters if p.annotation is not Any]
    section = dataclasses.make_dataclass(
        "Parameters", [(p.name, p.annotation, setting(REQUIRED, "")) for p in typed],
        bases=(Section,), frozen=True,
    )  # fmt: skip

    def checked(given: tuple) -> dict[str, Any]:
        named = dict(zip([p.name for p in parameters], given, strict=True))
        return named | vars(parse(section, {p.name: named[p.name] for p in typed}))

    def plain(*given: Any) -> Any:
        with raise_errors():
            return call(**checked(given))

    def stepwise(*given: Any) -> Iterator[Any]:
        with raise_errors():
            yield from call(**checked(given))

    endpoint, result = plain, signature.return_annotation
    if inspect.isgeneratorfunction(call):
        endpoint, result = stepwise, typing.get_args(result)[0]
    endpoint.__doc__ = call.__doc__
    endpoint.__signature__ = inspect.Signature(parameters, return_annotation=result)
    endpoint.__annotations__ = {p.name: p.annotation for p in parameters}
    gr.api(endpoint, api_name=call.__name__, **options)
