"""The tab of the page that learns a concept: pictures, a word, a phrase, press.

StepInfo, samples and the time-lapse come as they are made; closing the page stops nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from detsd.app.backend import Backend
from detsd.app.parts import ALONE, GALLERY, QUIET, SHOWN, Head, bar, status, thumbnails, told
from detsd.app.pictures import pictures_in
from detsd.app.run_status import PICTURES, RunStatus
from detsd.app.training_runs import TrainingRuns
from detsd.utils.errors import UserError


def progress_of(standing: RunStatus) -> str:
    """How a fine-tuning goes, as HTML."""
    s = standing
    if s.problem:
        return status(f"{s.word}: ended at step {s.step} of {s.steps}", error=s.problem)
    if s.running:
        text = f"{s.word}: step {s.step} of {s.steps}" if s.step else f"{s.word}: getting ready"
    else:
        text = f"{s.word}: {'learned' if s.complete else f'stopped at step {s.step} of {s.steps}'}"
    lines = [bar(s.step / s.steps, text, s.seconds_left)]
    if s.val_loss is not None:
        lines.append(
            f"<p>validation loss {s.val_loss:.4f}, of the phrase {s.phrase_loss:.4f}"
            + (f"; {s.samples_per_second:.1f} samples/s" if s.running else "")
            + "</p>"
        )
    return "".join(lines)


def learn_tab(backend: Backend, learning: TrainingRuns, head: Head) -> tuple[Callable, list[Any]]:
    """Pictures, a word, a phrase, press; what brings it up to date, and what that updates."""
    usual = learning.usual()
    with gr.Row():
        with gr.Column(scale=5):
            pictures = gr.Gallery(
                label="Pictures: drop 5 to 50 of them", type="filepath", file_types=["image"],
                columns=5, height=220, interactive=True, elem_id="learn-pictures", buttons=[],
                object_fit="contain",
            )  # fmt: skip
            word = gr.Textbox(
                label="Word", elem_id="word", placeholder="my-cat",
                info="a new one, as you will write it in prompts",
            )  # fmt: skip
            phrase = gr.Textbox(
                label="Phrase", elem_id="phrase", placeholder="grey cat with green encoders",
                info="what the pictures show, in words that the model knows; learning starts here",
            )  # fmt: skip
            kind = gr.Radio(
                ["object", "style"], value="object", label="What is learned", elem_id="kind"
            )
            with gr.Accordion("Training settings", open=False, elem_id="training"):
                steps = gr.Number(
                    usual.num_sgd_steps, precision=0, label="Steps", elem_id="learn-steps"
                )
                rate = gr.Number(usual.learning_rate, label="TrainingRuns rate", elem_id="rate")
                every = gr.Number(
                    usual.checkpoint_freq, precision=0, label="Samples every so many steps",
                    elem_id="every",
                )  # fmt: skip
                names = gr.Checkbox(
                    label="The file names say what else is in the pictures (on_a_beach.jpg)",
                    elem_id="names",
                )
                prompts = gr.Textbox(
                    label="Prompts of the samples, one a line", lines=2, elem_id="sample-prompts",
                    info="with the word in them; empty: two that fit",
                )  # fmt: skip
            c = {
                "go": gr.Button("Learn", variant="primary", elem_id="learn-go"),
                "stop": gr.Button("Stop", variant="stop", visible=False, elem_id="learn-stop"),
                "said": gr.HTML(elem_id="learn-said", elem_classes="status"),
            }
            runs = gr.Dropdown(label="What was begun before", elem_id="runs")
            with gr.Row():
                resume = gr.Button("Go on with it", elem_id="resume", min_width=120)
                use = gr.Button("Load it", elem_id="use", min_width=100)
        with gr.Column(scale=6):
            stand = gr.HTML(elem_id="learn-status", elem_classes="status")
            samples = gr.Gallery(elem_id="samples", columns=2, visible=False, **GALLERY)
            lapse = gr.Image(
                visible=False, show_label=False, interactive=False, elem_id="lapse",
                type="filepath", buttons=["download"],
            )  # fmt: skip
            taught = gr.HTML(elem_id="learn-taught", elem_classes="thumbnails")
    seen = gr.State(None)  # which samples this page shows
    timer = gr.Timer(2, active=False)
    outputs = [
        stand, samples, lapse, taught, runs, c["go"], c["stop"], c["said"], resume, seen, timer,
    ]  # fmt: skip

    @told(c["said"], {timer: gr.update(active=False)})  # of a configuration that was changed, too
    def show(name: str | None, seen_before: Any) -> dict:
        """The page as a run stands: the one that is running, else the one of a name."""
        standing = learning.standing(None if learning.running or not name else name)
        running = learning.running
        choices = learning.runs()
        update = {
            c["go"]: gr.Button(visible=not running),
            c["stop"]: gr.Button(visible=running),
            resume: gr.Button(interactive=not running),
            timer: gr.Timer(active=running),
        }
        if standing is None:
            return update | {runs: gr.Dropdown(choices, value=None)}
        update |= {
            stand: progress_of(standing),
            runs: gr.Dropdown(choices, value=standing.folder.name),
        }
        latest = standing.sampled[-1] if standing.sampled else None
        key = (standing.folder.name, latest, standing.complete)
        if key != seen_before:
            gif = learning.time_lapse(standing, backend.folder)
            sampled = standing.samples(latest) if latest is not None else []
            pictures = pictures_in(standing.folder / PICTURES)[:SHOWN]
            update |= {
                samples: gr.Gallery(sampled, visible=bool(sampled)),
                lapse: gr.Image(gif and str(gif), visible=bool(gif)),
                taught: thumbnails(backend, pictures, "learned from"),
                seen: key,
            }
        return update

    @told(c["said"], {timer: gr.update(active=False)})
    def tick(name: str | None, seen_before: Any) -> dict:
        update = show(name, seen_before)
        if new := learning.take_finished():
            backend.replace(new)
        if not learning.running:
            update |= head.now(backend) | {c["said"]: ""}
        return update

    timer.tick(tick, [runs, seen], [*outputs, *head.all], queue=False, **QUIET)

    @told(c["said"])
    def begin(dropped, word, phrase, kind, steps, rate, every, names, prompts):
        lines = [line.strip() for line in (prompts or "").splitlines() if line.strip()]
        learning.start(
            word or "", phrase or "", [path for path, _ in dropped or []], kind, lines, names,
            num_sgd_steps=steps, learning_rate=rate, checkpoint_freq=every,
        )  # fmt: skip
        return {c["said"]: ""} | show(None, None)

    @told(c["said"])
    def go_on(name: str | None):
        learning.go_on(name or "")
        return {c["said"]: ""} | show(None, None)

    inputs = [pictures, word, phrase, kind, steps, rate, every, names, prompts]
    c["go"].click(begin, inputs, outputs, **ALONE, **QUIET)
    resume.click(go_on, runs, outputs, **ALONE, **QUIET)

    def stop() -> str:
        learning.stop()
        return status("Stopping: it leaves a checkpoint first.")

    c["stop"].click(stop, None, c["said"], queue=False, **QUIET)

    @told(c["said"])
    def load(name: str | None):
        standing = learning.standing(name)
        if standing is None or standing.checkpoint is None:
            raise UserError("it has no checkpoint yet; wait for the first one")
        words = ", ".join(backend.replace(standing.folder))
        text = f"Loaded {words} as of {standing.checkpoint.name}. Write the word in a prompt."
        return {c["said"]: status(text)} | head.now(backend)

    use.click(load, runs, [c["said"], *head.all], **ALONE, **QUIET)
    runs.input(lambda name: show(name, None), runs, outputs, queue=False, **QUIET)
    return lambda: show(None, None), outputs
