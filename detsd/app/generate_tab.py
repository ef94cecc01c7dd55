"""The Generate tab: images of one prompt."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import gradio as gr

from detsd.app.backend import Backend, Generation
from detsd.app.form import (
    MAX_IMAGES,
    SPACINGS,
    ImageSettings,
    copies,
    make_job,
    parse_form,
    read_settings,
)  # fmt: skip
from detsd.app.generation import GenerationButtons
from detsd.app.parts import (
    GALLERY,
    MAX_SHOWN,
    PRIVATE,
    files,
    lines,
    model_hint,
    sentence,
    thumbnails,
    uploaded,
)  # fmt: skip
from detsd.sampling.jobs import Job
from detsd.sampling.stock import SCHEDULERS


def generate_tab(backend: Backend) -> tuple[list[Any], Any]:
    """Build the tab; return the components of `ImageSettings` in their order, and the examples."""
    samples = [[text] for text in backend.examples()]
    with gr.Row():
        with gr.Column(scale=5):
            prompt = gr.Textbox(
                samples[0][0], label="Prompt", lines=2, elem_id="prompt",
                info="use a concept's word like any other",
            )  # fmt: skip
            hint = gr.HTML(elem_id="hint", elem_classes="status")
            drawable = model_hint(backend)
            gr.HTML(drawable, elem_id="draws", visible=bool(drawable))
            examples = gr.Dataset(
                label="Examples (click one)", components=[prompt], samples=samples,
                elem_id="examples",
            )  # fmt: skip
            negative = gr.Textbox(
                label="Negative prompt", elem_id="negative", info="what the images should not show"
            )
            beside = gr.Checkbox(
                label="Compare with the initializer that the concept started from",
                elem_id="beside",
            )
            buttons = GenerationButtons("", "Generate")
            settings, count = _advanced(backend)
            form = [prompt, negative, *settings]
            gr.HTML("Drop an image made here to fill the form with its settings:")
            drop = gr.File(show_label=False, elem_id="drop", file_types=[".png"], height=120)
        with gr.Column(scale=6):
            results, update = _results(backend)

    def plan(both: bool, n: int, *values: Any) -> tuple[list[Job], Callable[[Generation], dict]]:
        first = make_job(backend.pipe, parse_form(values))
        todo = copies(first, n)
        todo += backend.baselines(todo) if both else []
        notes = backend.warnings([first])
        return todo, lambda now: update(todo, n, now) | {buttons.status: lines(*notes)}

    buttons.connect(backend, [prompt.submit], [beside, count, *form], results, plan)

    def warn(text: str | None, unwanted: str | None, both: bool) -> str:
        if not (text or "").strip():
            return ""
        if problems := ImageSettings(text).problems():
            return lines(*problems)
        reason = backend.no_baseline_reason(text) if both else ""
        return lines(*backend.warnings([Job(text, 0, unwanted or "")]), *filter(None, [reason]))

    gr.on(
        [prompt.change, negative.change, beside.change], warn, [prompt, negative, beside], hint,
        queue=False,
        trigger_mode="always_last", **PRIVATE,
    )  # fmt: skip

    def fill(path: str) -> dict:
        try:
            read, notes = read_settings(backend.pipe, uploaded(path))
        except Exception as error:  # shown here: gradio hides those of unqueued events
            return {drop: None, buttons.status: lines(sentence(error))}
        message = lines("The form now has its settings.", *notes)
        values = dict(zip(form, dataclasses.astuple(read), strict=True))
        return values | {drop: None, count: 1, buttons.status: message}

    drop.upload(fill, drop, [*form, drop, count, buttons.status], queue=False, **PRIVATE)
    examples.click(lambda sample: sample[0], examples, prompt, queue=False, **PRIVATE)
    return form, examples


def _advanced(backend: Backend) -> tuple[list[Any], Any]:
    """Build the collapsed settings; return them and the number of images."""
    size = backend.pipe.model.image_size
    with gr.Accordion("Advanced settings", open=False, elem_id="advanced"):
        guidance = gr.Slider(
            0, 20, 4, step=0.5, label="Guidance scale", elem_id="guidance",
            info="how closely to follow the prompt; 3 to 5 with a concept; 1: no guidance",
        )  # fmt: skip
        steps = gr.Slider(
            1, 100, 30, step=1, label="Steps", elem_id="steps",
            info="denoising steps; 25 to 50 are enough",
        )  # fmt: skip
        with gr.Row():
            seed = gr.Number(
                0, precision=0, label="Seed", elem_id="seed", scale=3, min_width=120,
                info="of the first image; each image takes the next one",
            )  # fmt: skip
            dice = gr.Button("Roll dice", elem_id="dice", size="sm", min_width=80)
        scheduler = gr.Dropdown(
            list(SCHEDULERS), value=backend.pipe.own_scheduler, label="Scheduler",
            elem_id="scheduler", info="the sampler",
        )  # fmt: skip
        count = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images per prompt", elem_id="count")
        with gr.Row():
            sides = [
                gr.Number(
                    0, precision=0, step=8, label=label, elem_id=label.lower(),
                    min_width=120, info=f"pixels; 0: the concept's own, else {size}",
                )
                for label in ("Width", "Height")
            ]  # fmt: skip
        with gr.Row():
            interval = [
                gr.Slider(
                    0, 1, value, step=0.05, label=f"Guidance {end}", elem_id=f"guidance-{end}",
                    min_width=120, info="share of the steps; fewer guided steps are faster",
                )
                for end, value in (("start", 0), ("stop", 1))
            ]  # fmt: skip
        spacing = gr.Dropdown(
            [("the model's own", ""), *SPACINGS], value="", label="Timestep spacing",
            elem_id="spacing", info="matters with few steps",
        )  # fmt: skip
    dice.click(lambda: random.randrange(2**31), None, seed, queue=False, **PRIVATE)
    return [guidance, steps, seed, scheduler, *sides, *interval, spacing], count


def _results(backend: Backend) -> tuple[list[Any], Callable[[list[Job], int, Generation], dict]]:
    """Build the images' column; return its components and the function that updates them."""
    gr.HTML("<h3>Images</h3>The PNG files that you download include their settings.")
    with gr.Row():  # side by side if there is room, else one below the other
        with gr.Column(min_width=240):
            gallery = gr.Gallery(elem_id="gallery", columns=2, **GALLERY)
            prompt = gr.HTML(elem_id="words", visible=False)
        with gr.Column(min_width=240, visible=False) as column:
            baselines = gr.Gallery(elem_id="plain", columns=1, **GALLERY)
            baseline_prompt = gr.HTML(elem_id="plain-words")
    links = gr.HTML(elem_id="files", elem_classes="files")
    learned_from = gr.HTML(elem_id="taught", elem_classes="thumbnails")

    def update(jobs: list[Job], count: int, now: Generation) -> dict:
        """Return updates that show the images made so far; those from `count` on are baselines."""
        both, images = len(jobs) > count, sorted(now.images.items())
        mine = [one for number, one in images if number < count]
        named = dict.fromkeys(backend.pipe.vocabulary.rewrite.words_in(jobs[0].prompt))
        pictures = [p for name in named for p in backend.training_images(name)[:MAX_SHOWN]]
        title = f"{', '.join(named)} was learned from"
        return {
            # With baselines, in one column, so that equal seeds are side by side.
            gallery: gr.Gallery([(one.path, one.caption) for one in mine], columns=2 - both),
            prompt: gr.HTML(lines(jobs[0].prompt), visible=both),
            baselines: [(one.path, one.caption) for number, one in images if number >= count],
            baseline_prompt: lines(jobs[-1].prompt),
            column: gr.Column(visible=both),
            links: files(mine),
            learned_from: thumbnails(backend, pictures, title),
        }

    return [gallery, prompt, baselines, baseline_prompt, column, links, learned_from], update
