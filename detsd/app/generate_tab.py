"""The Generate tab: one prompt, some images."""

from __future__ import annotations

import html
import random
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import gradio as gr

from detsd.app.backend import Backend, Generation
from detsd.app.form import FIELDS, MOST_IMAGES, checked_job, copies
from detsd.app.parts import (
    ALONE,
    GALLERY,
    QUIET,
    SHOWN,
    Form,
    bar,
    draws,
    files,
    run,
    status,
    thumbnails,
    told,
)
from detsd.app.pictures import PageImage
from detsd.sampling.jobs import Job
from detsd.sampling.stock import SCHEDULERS


def starts(
    backend: Backend, triggers: list[Any], c: dict[str, Any], call: Callable, inputs: list[Any],
    outputs: list[Any],
) -> None:  # fmt: skip
    """Bind `call` to the buttons: told at once that it waits, and stopped by `stop`."""

    def ask(request: gr.Request):
        backend.ask(request.session_hash)
        return bar(0, "waiting for its turn"), gr.Button(visible=False), gr.Button(visible=True)

    gr.on(
        triggers, ask, None, [c["status"], c["go"], c["stop"]], queue=False, trigger_mode="once",
        **QUIET,
    ).then(call, inputs, [c[k] for k in ("status", "preview", "go", "stop")] + outputs,
           **ALONE, **QUIET)  # fmt: skip

    def stop(request: gr.Request):
        backend.stop(request.session_hash)

    c["stop"].click(stop, None, None, queue=False, **QUIET)


def progress(prefix: str, label: str) -> dict[str, Any]:
    """A button, another that stops, and what is seen of the making under them."""
    return {
        "go": gr.Button(label, variant="primary", elem_id=f"{prefix}go"),
        "stop": gr.Button("Stop", variant="stop", visible=False, elem_id=f"{prefix}stop"),
        "status": gr.HTML(elem_id=f"{prefix}status", elem_classes="status"),
        "preview": gr.Image(
            visible=False, show_label=False, interactive=False, elem_id=f"{prefix}preview",
            buttons=[], format="jpeg",
        ),
    }  # fmt: skip


def generate_tab(backend: Backend) -> tuple[Form, Any]:
    """Images of one prompt; its form, and the examples."""
    size = backend.pipe.model.image_size
    samples = [[text] for text in backend.examples()]
    with gr.Row():
        with gr.Column(scale=5):
            prompt = gr.Textbox(
                samples[0][0], label="Prompt", lines=2, elem_id="prompt",
                info="name a concept as you would any other thing",
            )  # fmt: skip
            hint = gr.HTML(elem_id="hint", elem_classes="status")
            gr.HTML(draws(backend), elem_id="draws", visible=bool(draws(backend)))
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
            c = progress("", "Generate")
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
                count = gr.Slider(
                    1, MOST_IMAGES, 4, step=1, label="Images per prompt", elem_id="count"
                )
                with gr.Row():
                    width, height = (
                        gr.Number(
                            size, precision=0, step=8, label=label, elem_id=label.lower(),
                            min_width=120, info=f"pixels; the model's own: {size}",
                        )
                        for label in ("Width", "Height")
                    )  # fmt: skip
            gr.Markdown("Drop an image that was made here, and its settings fill the form:")
            drop = gr.File(show_label=False, elem_id="drop", file_types=[".png"], height=120)
        with gr.Column(scale=6):
            gr.Markdown("### Images\nTheir settings are inside the PNG files you download.")
            with gr.Row():  # side by side where there is room, else one below the other
                with gr.Column(min_width=240):
                    gallery = gr.Gallery(elem_id="gallery", columns=2, **GALLERY)
                    words = gr.Markdown(elem_id="words", visible=False)
                with gr.Column(min_width=240, visible=False) as twins:
                    plain = gr.Gallery(elem_id="plain", columns=1, **GALLERY)
                    plain_words = gr.Markdown(elem_id="plain-words")
            links = gr.HTML(elem_id="files", elem_classes="files")
            taught = gr.HTML(elem_id="taught", elem_classes="thumbnails")
    form = Form(prompt, negative, guidance, steps, seed, scheduler, width, height)

    def make(request: gr.Request, both: bool, n: float, *settings: Any):
        def jobs() -> list[Job]:
            first = checked_job(backend.pipe, *settings, n)
            todo = copies(first, n)
            return todo + (
                backend.twins(todo) if both and not backend.no_twin(first.prompt) else []
            )

        def finish(todo: list[Job], shown: dict[int, PageImage], making: Generation) -> dict:
            first = todo[0]
            mine = [one for k, one in shown.items() if k < n]
            others = [one for k, one in shown.items() if k >= n]
            named = dict.fromkeys(backend.pipe.vocabulary.rewrite.words_in(first.prompt))
            pictures = [p for name in named for p in backend.training_pictures(name)[:SHOWN]]
            columns = 1 if others else 2  # side by side: seed beside seed
            return {
                gallery: gr.Gallery([(s.path, s.caption) for s in mine], columns=columns),
                words: gr.Markdown(html.escape(first.prompt), visible=bool(others)),
                plain: [(s.path, s.caption) for s in others],
                plain_words: html.escape(todo[-1].prompt),
                twins: gr.Column(visible=bool(others)),
                links: files(mine),
                taught: thumbnails(backend, pictures, f"{', '.join(named)} was learned from"),
            }

        yield from run(backend, request.session_hash, jobs, c, finish)

    starts(
        backend, [c["go"].click, prompt.submit], c, make, [beside, count, *form.all],
        [gallery, words, plain, plain_words, twins, links, taught],
    )  # fmt: skip

    def look(text: str, both: bool) -> str:
        if not (text or "").strip():
            return ""
        reason = backend.no_twin(text) if both else ""
        return status(notes=[*backend.notes(text), *([reason] if reason else [])])

    gr.on(
        [prompt.change, beside.change], look, [prompt, beside], hint, queue=False,
        trigger_mode="always_last", **QUIET,
    )  # fmt: skip

    @told(hint, {drop: None})
    def fill(path: str | None):
        if path is None:
            return {hint: ""}
        job, notes = backend.settings(path)
        return dict(zip(form.all, attrgetter(*FIELDS)(job), strict=True)) | {
            count: 1, drop: None, c["status"]: status("The form holds its settings.", notes),
        }  # fmt: skip

    drop.upload(fill, drop, [*form.all, count, drop, hint, c["status"]], queue=False, **QUIET)
    dice.click(lambda: random.randrange(2**31), None, seed, queue=False, **QUIET)
    examples.click(lambda sample: sample[0], examples, prompt, queue=False, **QUIET)
    return form, examples
