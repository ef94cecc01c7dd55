"""The Learn tab: learn a concept from pictures, a word and a phrase.

Progress, samples and the time-lapse appear as they are made; closing the page stops nothing.
"""

from datetime import timedelta
from typing import Any

import gradio as gr

from detsd.app.backend import Backend
from detsd.app.parts import (
    ALONE,
    GALLERY,
    MAX_SHOWN,
    PRIVATE,
    Head,
    lines,
    show_errors,
    thumbnails,
    uploaded,
)  # fmt: skip
from detsd.app.run_status import PICTURES, RunStatus, time_lapse
from detsd.app.training_runs import TrainingRuns
from detsd.config import TrainingConfig
from detsd.data.folder import list_images
from detsd.utils.errors import UserError


def progress(status: RunStatus) -> str:
    """Return the progress of a fine-tuning, as HTML."""
    s = status
    if s.problem:
        text = f"ended at step {s.step} of {s.steps}: {s.problem}"
    elif s.running:
        text = f"step {s.step} of {s.steps}" if s.step else "getting ready"
    else:
        text = "learned" if s.complete else f"stopped at step {s.step} of {s.steps}"
    if s.seconds_left is not None:
        text += f", {timedelta(seconds=round(s.seconds_left))} left"
    losses = []
    if s.val_loss is not None:
        losses = [f"validation loss {s.val_loss:.4f}"]
        if s.phrase_loss is not None:
            phrase = f"the phrase {s.phrase!r}" if s.phrase else "the phrase"
            losses[0] += f", of {phrase} {s.phrase_loss:.4f}"
        losses[0] += f"; {s.samples_per_second:.1f} samples/s" if s.running else ""
    bar = f'<progress max="{s.steps}" value="{s.step}"></progress>'
    return bar + lines(f"{s.word}: {text}", *losses, *s.notes)


class LearnTab:
    """The tab with its handlers.

    Attributes:
        outputs: the components that `show` updates.
    """

    def __init__(self, backend: Backend, runs: TrainingRuns, head: Head):
        self.backend, self.runs, self.head = backend, runs, head
        with gr.Row():
            with gr.Column(scale=5):
                inputs = _inputs(runs.default_training())
                self.go = gr.Button("Learn", variant="primary", elem_id="learn-go")
                self.halt = gr.Button("Stop", variant="stop", visible=False, elem_id="learn-stop")
                self.message = gr.HTML(elem_id="learn-said", elem_classes="status")
                self.names = gr.Dropdown(label="Earlier trainings", elem_id="runs")
                with gr.Row():
                    self.again = gr.Button("Continue it", elem_id="resume", min_width=120)
                    use = gr.Button("Load it", elem_id="use", min_width=100)
            with gr.Column(scale=6):
                self.status = gr.HTML(elem_id="learn-status", elem_classes="status")
                self.samples = gr.Gallery(elem_id="samples", columns=2, visible=False, **GALLERY)
                self.lapse = gr.Image(
                    visible=False, show_label=False, interactive=False, elem_id="lapse",
                    type="filepath", buttons=["download"],
                )  # fmt: skip
                self.images = gr.HTML(elem_id="learn-taught", elem_classes="thumbnails")
        self.seen = gr.State(None)  # the samples that are shown
        self.timer = gr.Timer(2, active=False)
        self.outputs = [self.go, self.halt, self.message, self.names, self.again, self.status,
                        self.samples, self.lapse, self.images, self.seen, self.timer]  # fmt: skip
        everything = [*self.outputs, *head.all]
        shown = [self.names, self.seen, head.chosen]
        self.timer.tick(self.tick, shown, everything, queue=False, **PRIVATE)
        self.go.click(self.start, inputs, self.outputs, **ALONE, **PRIVATE)
        self.again.click(self.resume, self.names, self.outputs, **ALONE, **PRIVATE)
        self.halt.click(self.stop, None, self.message, queue=False, **PRIVATE)
        use.click(self.load, self.names, [self.message, *head.all], **ALONE, **PRIVATE)
        self.names.input(self.look, self.names, self.outputs, queue=False, **PRIVATE)

    @show_errors()
    def show(self, name: str | None = None, seen: Any = None) -> dict:
        """Return updates that show the active run, or else the one named."""
        # Read only once, before the status: if the run ends in between, a last tick shows that.
        runs, running = self.runs, self.runs.running
        status = runs.status(None if running or not name else name)
        update = {
            self.go: gr.Button(visible=not running),
            self.halt: gr.Button(visible=running),
            self.again: gr.Button(interactive=not running),
            self.timer: gr.Timer(active=running),
            self.names: gr.Dropdown(runs.names(), value=status and status.folder.name),
        }
        if status is None:
            return update
        update[self.status] = progress(status)
        latest = status.sampled[-1] if status.sampled else None
        key = (status.folder.name, latest, status.complete)
        if key == seen:
            return update
        gif = time_lapse(status, self.backend.folder)
        sampled = status.samples(latest) if latest is not None else []
        images = list_images(status.folder / PICTURES)[:MAX_SHOWN]
        return update | {
            self.samples: gr.Gallery(sampled, visible=bool(sampled)),
            self.lapse: gr.Image(gif and str(gif), visible=bool(gif)),
            self.images: thumbnails(self.backend, images, "learned from"),
            self.seen: key,
        }

    def look(self, name: str | None = None) -> dict:
        """Show a run, or its error, since gradio hides the errors of unqueued events."""
        try:
            return {self.message: ""} | self.show(name)
        except gr.Error as error:
            names = gr.Dropdown(self.runs.names(), value=None)
            return {self.message: error.message, self.names: names}

    def tick(self, name: str | None, seen: Any, chosen: str | None) -> dict:
        """Return updates for the active run; load its concept once it ends."""
        try:
            update = self.show(name, seen)
            with show_errors():
                if new := self.runs.take_finished():
                    self.backend.replace(new)
                if not self.runs.running:
                    concepts = self.head.now(self.backend, None if new else chosen or "")
                    update |= concepts | {self.message: ""}
            return update
        except gr.Error as error:  # shown once, not every two seconds
            return {self.timer: gr.Timer(active=False), self.message: error.message}

    @show_errors()
    def start(
        self, dropped, word, phrase, kind, steps, rate, every, names, buckets, captions, prompts
    ) -> dict:
        """Start a run with the tab's settings."""
        texts = [line.strip() for line in (prompts or "").splitlines() if line.strip()]
        self.runs.start(
            word or "", phrase or "", [uploaded(path) for path, _ in dropped or []], kind, texts,
            names, (captions or "").split("\n"), buckets, num_sgd_steps=steps, learning_rate=rate,
            checkpoint_freq=every,
        )  # fmt: skip
        return {self.message: ""} | self.show()

    @show_errors()
    def resume(self, name: str | None) -> dict:
        """Resume a run."""
        self.runs.resume(name or "")
        return {self.message: ""} | self.show()

    def stop(self) -> str:
        """Stop the run."""
        self.runs.stop()
        return lines("Stopping: saving a checkpoint first.")

    @show_errors()
    def load(self, name: str | None) -> dict:
        """Load a run's concept as learned so far."""
        status = self.runs.status(name)
        if status is None or status.checkpoint is None:
            raise UserError("this training has no checkpoint yet; wait for the first one")
        words = ", ".join(self.backend.replace(status.folder))
        text = f"Loaded {words} as of {status.checkpoint.name}. Write the word in a prompt."
        return {self.message: lines(text)} | self.head.now(self.backend)


def _inputs(defaults: TrainingConfig) -> list[Any]:
    """Build the form's components, in the order of `LearnTab.start`'s parameters."""
    pictures = gr.Gallery(
        label="Pictures: drop 5 to 50 of them", type="filepath", file_types=["image"],
        columns=5, height=220, interactive=True, elem_id="learn-pictures", buttons=[],
        object_fit="contain",
    )  # fmt: skip
    word = gr.Textbox(
        label="Word", elem_id="word", placeholder="my-cat",
        info="a new word, to use in prompts",
    )  # fmt: skip
    phrase = gr.Textbox(
        label="Initializer", elem_id="phrase", placeholder="empty: found automatically",
        info="what the pictures show, in words that the model knows (grey cat with green eyes); "
        "training starts from it",
    )  # fmt: skip
    kind = gr.Radio(["object", "style"], value="object", label="What is learned", elem_id="kind")
    with gr.Accordion("Training settings", open=False, elem_id="training"):
        settings = [
            gr.Number(defaults.num_sgd_steps, precision=0, label="Steps", elem_id="learn-steps"),
            gr.Number(defaults.learning_rate, label="Learning rate", elem_id="rate"),
            gr.Number(
                defaults.checkpoint_freq, precision=0, label="Steps between samples",
                elem_id="every",
            ),
            gr.Checkbox(
                label="File names say what else is in the pictures (on_a_beach.jpg)",
                elem_id="names",
            ),
            gr.Checkbox(
                label="Keep the shapes of the pictures (aspect buckets), instead of squares",
                elem_id="buckets",
            ),
            gr.Textbox(
                label="Captions of the pictures, one per line in their order", lines=2,
                elem_id="captions",
                info="what else is in each picture; empty line: no caption; {} is the word",
            ),
            gr.Textbox(
                label="Prompts of the samples, one per line", lines=2, elem_id="sample-prompts",
                info="each with the word in it; empty: two suitable ones",
            ),
        ]  # fmt: skip
    return [pictures, word, phrase, kind, *settings]
