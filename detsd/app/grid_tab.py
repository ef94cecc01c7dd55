"""The Grid tab: two axes of settings."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from detsd.app import pictures
from detsd.app.backend import Backend, Generation
from detsd.app.form import AXES, grid_jobs, parse_form
from detsd.app.generation import GenerationButtons
from detsd.app.parts import GALLERY, PRIVATE, lines
from detsd.sampling.jobs import Job


def grid_tab(backend: Backend, form: list[Any]) -> None:
    """Build the tab; settings on no axis come from another tab's form."""
    with gr.Row():
        with gr.Column(scale=5):
            gr.Markdown(
                "Vary two settings; all others come from the Generate tab. Write numbers as "
                "`1, 3, 5`, `1-5`, `1-9 (+2)` or `1-9 [5]`, prompts one per line, and values with "
                'commas in double quotes: `"red, shiny", blue`. For words of the prompt, the first '
                "one is looked for in the prompt, and each one takes its place in turn."
            )
            axes = []
            sides = (("Along", "x", "guidance scale", "1.5, 3, 4, 6"), ("Down", "y", "seed", "0-2"))
            for label, name, axis, values in sides:
                kind = gr.Dropdown(
                    list(AXES), value=axis, label=f"{label} ({name.upper()})",
                    elem_id=f"{name}-axis",
                )  # fmt: skip
                text = gr.Textbox(
                    values, label=f"{name.upper()} values", lines=1, max_lines=8,
                    elem_id=f"{name}-values",
                )  # fmt: skip
                kind.change(lambda axis: AXES[axis][1], kind, text, queue=False, **PRIVATE)
                axes += [kind, text]
            buttons = GenerationButtons("grid-", "Make the grid")
        with gr.Column(scale=6):
            sheet = gr.Image(
                show_label=False, interactive=False, elem_id="sheet", type="filepath",
                buttons=["download", "fullscreen"],
            )  # fmt: skip
            with gr.Accordion("Single images", open=False, visible=False) as single:
                cells = gr.Gallery(elem_id="cells", columns=4, **GALLERY)

    def plan(*values: Any) -> tuple[list[Job], Callable[[Generation], dict]]:
        settings = parse_form(values[4:])
        todo, columns, rows = grid_jobs(backend.pipe, settings, values[:2], values[2:4])
        title = todo[0].prompt if len({job.prompt for job in todo}) == 1 else ""
        notes = backend.warnings(todo)

        def update(now: Generation) -> dict:
            made = pictures.sheet(now.images, columns, rows, title, backend.folder)
            return {
                sheet: str(made),
                cells: [(one.path, one.caption) for _, one in sorted(now.images.items())],
                single: gr.Accordion(visible=True),
                buttons.status: lines(*notes),
            }

        return todo, update

    buttons.connect(backend, [], [*axes, *form], [sheet, cells, single], plan)
