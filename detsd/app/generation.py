"""The buttons that make images, with their progress, for the tabs Generate and Grid."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from detsd.app.backend import Backend, Generation
from detsd.app.parts import ALONE, PRIVATE, lines, show_errors
from detsd.sampling.jobs import Job
from detsd.utils.plurals import counted, verb


class GenerationButtons:
    """A button that makes images, another that stops them, and the progress below.

    Args:
        prefix: the prefix of the elements' ids.
        label: the first button's label.
    """

    def __init__(self, prefix: str, label: str):
        self.go = gr.Button(label, variant="primary", elem_id=f"{prefix}go")
        self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id=f"{prefix}stop")
        self.status = gr.HTML(elem_id=f"{prefix}status", elem_classes="status progress")
        # The column hides it: an update from `make` may arrive after Stop and would show it again.
        with gr.Column(visible=False) as self.place:
            self.preview = gr.Image(
                visible=False, show_label=False, interactive=False, elem_id=f"{prefix}preview",
                buttons=[], format="jpeg",
            )  # fmt: skip
        self.counts = gr.State((0, 0))  # images made, and images asked for

    def connect(
        self,
        backend: Backend,
        triggers: list[Any],
        inputs: list[Any],
        outputs: list[Any],
        plan: Callable[..., tuple[list[Job], Callable[[Generation], dict]]],
    ) -> None:
        """Make images when the button is pressed.

        Args:
            triggers: other events that have the same effect.
            plan: gets the values of `inputs`; returns the jobs, and a function that is called
                whenever new images exist and returns updates of `outputs`.
        """
        buttons = [self.go, self.stop, self.status, self.place]

        def idle() -> dict:
            return {
                self.go: gr.Button(visible=True),
                self.stop: gr.Button(visible=False),
                self.place: gr.Column(visible=False),
            }

        def begin() -> dict:
            return {
                self.go: gr.Button(visible=False),
                self.stop: gr.Button(visible=True),
                self.status: "",
                self.place: gr.Column(visible=True),
                self.preview: gr.Image(None, visible=False),
                self.counts: (0, 0),
            }

        # A generator, since gradio ends only generators when the browser's tab is closed.
        def make(*values: Any) -> Iterator[dict]:
            progress = gr.Progress()
            try:
                with show_errors():
                    todo, update = plan(*values)
                    count, preview, last, cost = 0, None, 0.0, 0.0
                    for now in backend.generate(todo, previews=True):
                        # gradio can stop the handler only between two updates.
                        changed = {self.counts: (len(now.images), len(todo))}
                        if now.preview is not preview:
                            preview = now.preview
                            changed[self.preview] = gr.Image(preview, visible=True)
                        # Redrawing the sheet may take a tenth of the time.
                        due = now.done or time.monotonic() - last > 10 * cost
                        if len(now.images) > count and due:
                            count, last = len(now.images), time.monotonic()
                            changed |= update(now)
                            cost = time.monotonic() - last
                        yield changed
                        progress(now.share, desc=now.text)
            except gr.Error as error:
                yield idle() | {self.status: error.message}
                raise
            yield idle() | ({} if count == len(todo) else {self.status: _stopped(count, len(todo))})

        def stopped(counts: tuple[int, int]) -> dict:
            return idle() | {self.status: _stopped(*counts)}

        pressed = gr.on(
            [self.go.click, *triggers], begin, None, [*buttons, self.preview, self.counts],
            queue=False, trigger_mode="once", **PRIVATE,
        )  # fmt: skip
        making = pressed.then(
            make, inputs, [*buttons, self.preview, self.counts, *outputs], **ALONE,
            **PRIVATE | {"show_progress": "full", "show_progress_on": self.status},
        )  # fmt: skip
        # Removes gradio's "Error", which may also appear if the stream learns of a Stop too late.
        making.failure(gr.skip, None, self.status, queue=False, **PRIVATE)
        self.stop.click(stopped, self.counts, buttons, cancels=making, queue=False, **PRIVATE)


def _stopped(count: int, total: int) -> str:
    """Return how many images were made before the stop."""
    made = f"{count} of {counted(total, 'image')} {verb('were', count)} made"
    return lines(f"Stopped: {made}." if count else "Stopped: nothing was made.")
