"""The Grid tab: two axes of settings."""

from __future__ import annotations

from typing import Any

import gradio as gr

from detsd.app.backend import Backend, Generation
from detsd.app.form import AXES, checked_job, grid_jobs
from detsd.app.generate_tab import progress, starts
from detsd.app.parts import GALLERY, QUIET, Form, run, status
from detsd.app.pictures import PageImage
from detsd.sampling.jobs import Job


def grid_tab(backend: Backend, form: Form) -> None:
    """A sheet of images: one setting along each side."""
    with gr.Row():
        with gr.Column(scale=5):
            gr.Markdown(
                "Two settings against each other; all others are as they stand on the tab "
                "Generate. Numbers are written as `1, 3, 5`, `1-5`, `1-9 (+2)` or `1-9 [5]`, "
                "prompts one a line; of words, the first is looked for in the prompt, and each "
                "takes its place in turn."
            )
            axes = []
            usual = (("Along", "x", "guidance scale", "1.5, 3, 4, 6"), ("Down", "y", "seed", "0-2"))
            for label, name, axis, values in usual:
                kind = gr.Dropdown(
                    list(AXES),
                    value=axis,
                    label=f"{label} ({name.upper()})",
                    elem_id=f"{name}-axis",
                )
                text = gr.Textbox(
                    values, label=f"{name.upper()} values", lines=1, max_lines=8,
                    elem_id=f"{name}-values",
                )  # fmt: skip
                kind.change(lambda axis: AXES[axis][1], kind, text, queue=False, **QUIET)
                axes += [kind, text]
            c = progress("grid-", "Make the grid")
        with gr.Column(scale=6):
            sheet = gr.Image(
                show_label=False, interactive=False, elem_id="sheet", type="filepath",
                buttons=["download", "fullscreen"],
            )  # fmt: skip
            with gr.Accordion("Single images", open=False, visible=False) as single:
                cells = gr.Gallery(elem_id="cells", columns=4, **GALLERY)

    def make(request: gr.Request, *values: Any):
        labels: list[list[str]] = []
        title = ""

        def jobs() -> list[Job]:
            nonlocal title
            job = checked_job(backend.pipe, *values[4:])
            todo, *found = grid_jobs(backend.pipe, job, values[0:2], values[2:4])
            labels.extend(found)
            title = job.prompt if len({j.prompt for j in todo}) == 1 else ""
            return todo

        def finish(todo: list[Job], shown: dict[int, PageImage], making: Generation) -> dict:
            return {
                sheet: str(backend.sheet(shown, *labels, title)),
                cells: [(s.path, s.caption) for _, s in sorted(shown.items())],
                single: gr.Accordion(visible=True),
                c["status"]: status(notes=backend.notes(title) if title else []),
            }

        yield from run(backend, request.session_hash, jobs, c, finish)

    starts(backend, [c["go"].click], c, make, [*axes, *form.all], [sheet, cells, single])
