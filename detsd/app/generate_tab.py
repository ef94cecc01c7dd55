"""The Generate tab: images of one prompt."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from detsd.app.backend import Backend, Generation
from detsd.app.form import MAX_IMAGES, ImageSettings, copies, make_job, parse, read_settings
from detsd.app.generation import GenerationButtons
from detsd.app.parts import (
    GALLERY,
    MAX_SHOWN,
    PRIVATE,
    Components,
    Form,
    files,
    lines,
    model_hint,
    show_errors,
    thumbnails,
    uploaded,
)
from detsd.sampling.jobs import Job
from detsd.sampling.stock import SCHEDULERS

NAMES = [field.name for field in dataclasses.fields(ImageSettings)]


@dataclass(frozen=True)
class Results(Components):
    """The components that show the images of a prompt."""

    gallery: Any
    prompt: Any  # above the images, beside those of the initializer
    baselines: Any
    baseline_prompt: Any
    column: Any  # of the baselines
    links: Any
    training_images: Any

    def update(self, backend: Backend, jobs: list[Job], generation: Generation) -> dict:
        """Return updates that show the images made so far."""
        first = jobs[0]
        count = sum(job.prompt == first.prompt for job in jobs)  # the rest are baselines
        both = count < len(jobs)
        images = sorted(generation.images.items())
        mine = [one for number, one in images if number < count]
        named = dict.fromkeys(backend.pipe.vocabulary.rewrite.words_in(first.prompt))
        pictures = [p for name in named for p in backend.training_images(name)[:MAX_SHOWN]]
        return {
            # Side by side: seed beside seed.
            self.gallery: gr.Gallery([(i.path, i.caption) for i in mine], columns=2 - both),
            self.prompt: gr.HTML(lines(first.prompt), visible=both),
            self.baselines: [(one.path, one.caption) for number, one in images if number >= count],
            self.baseline_prompt: lines(jobs[-1].prompt),
            self.column: gr.Column(visible=both),
            self.links: files(mine),
            self.training_images: thumbnails(
                backend, pictures, f"{', '.join(named)} was learned from"
            ),
        }


def generate_tab(backend: Backend) -> tuple[Form, Any]:
    """Build the tab; return its form and the examples."""
    samples = [[text] for text in backend.examples()]
    with gr.Row():
        with gr.Column(scale=5):
            prompt = gr.Textbox(
                samples[0][0], label="Prompt", lines=2, elem_id="prompt",
                info="name a concept as you would any other thing",
            )  # fmt: skip
            hint = gr.HTML(elem_id="hint", elem_classes="status")
            drawable = model_hint(backend)
            gr.HTML(drawable, elem_id="draws", visible=bool(drawable))
            examples = gr.Dataset(
                label="Examples (click one)", components=[prompt], samples=samples,
                elem_id="examples",
            )  # fmt: skip
            negative = gr.Textbox(
                label="Negative prompt", elem_id="negative", info="what to keep away from"
            )
            beside = gr.Checkbox(
                label="Beside it, the plain phrase that the concept was learned from",
                elem_id="beside",
            )
            buttons = GenerationButtons("", "Generate")
            form, count, dice = _advanced(backend, prompt, negative)
            gr.HTML("Drop an image that was made here, and its settings fill the form:")
            drop = gr.File(show_label=False, elem_id="drop", file_types=[".png"], height=120)
        with gr.Column(scale=6):
            results = _results()

    def plan(both: bool, n: int, *values: Any) -> tuple[list[Job], Callable[[Generation], dict]]:
        first = make_job(backend.pipe, parse(ImageSettings, dict(zip(NAMES, values, strict=True))))
        todo = copies(first, n)
        reason = backend.no_baseline_reason(first.prompt)
        todo += backend.baselines(todo) if both and not reason else []
        return todo, lambda now: results.update(backend, todo, now)

    inputs = [beside, count, *form.all]
    buttons.connect(backend, [prompt.submit], inputs, results.all, plan)

    def warn(text: str | None, both: bool) -> str:
        if not (text or "").strip():
            return ""
        reason = backend.no_baseline_reason(text) if both else ""
        return lines(*backend.prompt_warnings(text), *([reason] if reason else []))

    gr.on(
        [prompt.change, beside.change], warn, [prompt, beside], hint, queue=False,
        trigger_mode="always_last", **PRIVATE,
    )  # fmt: skip

    @show_errors()
    def fill(path: str):
        settings, notes = read_settings(backend.pipe, uploaded(path))
        values = dataclasses.astuple(settings)
        said = lines("The form holds its settings.", *notes)
        return dict(zip(form.all, values, strict=True)) | {count: 1, buttons.status: said}

    drop.upload(
        fill, drop, [*form.all, count, buttons.status], queue=False, **PRIVATE
    ).then(lambda: None, None, drop, queue=False, **PRIVATE)  # fmt: skip
    dice.click(lambda: random.randrange(2**31), None, form.seed, queue=False, **PRIVATE)
    examples.click(lambda sample: sample[0], examples, prompt, queue=False, **PRIVATE)
    return form, examples


def _advanced(backend: Backend, prompt: Any, negative: Any) -> tuple[Form, Any, Any]:
    """Build the settings that are folded; return the form, the number of images and the dice."""
    size = backend.pipe.model.image_size
    with gr.Accordion("Advanced settings", open=False, elem_id="advanced"):
        guidance = gr.Slider(
            0, 20, 4, step=0.5, label="Guidance scale", elem_id="guidance",
            info="how hard the prompt pulls; about 3 to 5 with a concept, 1: none",
        )  # fmt: skip
        steps = gr.Slider(
            1, 100, 30, step=1, label="Steps", elem_id="steps",
            info="of denoising; 25 to 50 will do",
        )  # fmt: skip
        with gr.Row():
            seed = gr.Number(
                0, precision=0, label="Seed", elem_id="seed", scale=3, min_width=120,
                info="of the first image; the next one gets the next seed",
            )  # fmt: skip
            dice = gr.Button("Roll dice", elem_id="dice", size="sm", min_width=80)
        scheduler = gr.Dropdown(
            list(SCHEDULERS), value=backend.pipe.own_scheduler, label="Scheduler",
            elem_id="scheduler", info="the way from noise to image",
        )  # fmt: skip
        count = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images per prompt", elem_id="count")
        with gr.Row():
            width, height = (
                gr.Number(
                    size, precision=0, step=8, label=label, elem_id=label.lower(),
                    min_width=120, info=f"pixels; the model's own: {size}",
                )
                for label in ("Width", "Height")
            )  # fmt: skip
    return Form(prompt, negative, guidance, steps, seed, scheduler, width, height), count, dice


def _results() -> Results:
    """Build the images' column."""
    gr.HTML("<h3>Images</h3>Their settings are inside the PNG files you download.")
    with gr.Row():  # side by side where there is room, else one below the other
        with gr.Column(min_width=240):
            gallery = gr.Gallery(elem_id="gallery", columns=2, **GALLERY)
            words = gr.HTML(elem_id="words", visible=False)
        with gr.Column(min_width=240, visible=False) as column:
            baselines = gr.Gallery(elem_id="plain", columns=1, **GALLERY)
            baseline_words = gr.HTML(elem_id="plain-words")
    links = gr.HTML(elem_id="files", elem_classes="files")
    taught = gr.HTML(elem_id="taught", elem_classes="thumbnails")
    return Results(gallery, words, baselines, baseline_words, column, links, taught)
