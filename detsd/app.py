"""The interactive demo: python -m detsd app

A web page in front of one `DetSDTextualInversionPipeline`. It needs gradio (requirements-app.txt),
talks to nobody but the browser, and makes one thing at a time: everybody who has the page open
shares the model, its concepts and one queue.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import logging
import os
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before gradio is imported: it would report home and look for a newer version of itself.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

try:
    import gradio as gr
except ImportError:
    gr = None

from detsd.errors import UserError
from detsd.pipeline import SCHEDULERS, DetSDTextualInversionPipeline, Job, Progress

logger = logging.getLogger("detsd")

EXAMPLES = (
    "a photo of a {} on a white background",
    "a watercolor painting of a {} on a night sky",
    "an oil painting of a {} on ocean waves",
    "a neon picture of a {} on a brick wall",
)
MOST_STEPS, MOST_IMAGES, LONGEST = 200, 8, 2000  # the last in characters
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
CSS = """
footer { display: none !important; }
.gallery .grid-wrap { height: auto !important; max-height: none !important; }
"""


def checked_jobs(
    pipe: DetSDTextualInversionPipeline,
    prompt: str,
    negative: str,
    guidance: float | None,
    steps: float | None,
    seed: float | None,
    scheduler: str,
    count: float | None,
    width: float | None,
    height: float | None,
) -> list[Job]:
    """The jobs of one press of the button: seeds `seed`, `seed + 1`, ...

    Raises:
        UserError: an empty or overlong prompt, a number out of its range.
    """
    prompt, negative = " ".join((prompt or "").split()), " ".join((negative or "").split())
    if not prompt:
        raise UserError("the prompt is empty; write what the image should show")
    for name, text in (("prompt", prompt), ("negative prompt", negative)):
        if len(text) > LONGEST:
            raise UserError(
                f"the {name} has {len(text)} characters; shorten it to a sentence or two"
            )
        for doubt in pipe.overlong(text, name):
            raise UserError(doubt)
    size = pipe.model.image_size
    limits = {
        "guidance scale": (guidance, 0, 50),
        "number of steps": (steps, 1, MOST_STEPS),
        "seed": (seed, 0, 2**32 - MOST_IMAGES),
        "number of images": (count, 1, MOST_IMAGES),
        "width": (width, size // 2, 2 * size),
        "height": (height, size // 2, 2 * size),
    }
    for name, (value, low, high) in limits.items():
        if value is None or not low <= value <= high:
            raise UserError(f"the {name} must be a number from {low} to {high}, not {value}")
        if name in ("width", "height") and value % 8:
            raise UserError(f"the {name} is {value:g} pixels but must be a multiple of 8")
    if scheduler not in SCHEDULERS:
        raise UserError(f"scheduler {scheduler!r} is unknown; use one of {', '.join(SCHEDULERS)}")
    first = Job(
        prompt, int(seed), negative, float(guidance), int(steps), scheduler, int(width), int(height)
    )  # fmt: skip
    return [dataclasses.replace(first, seed=first.seed + k) for k in range(int(count))]


class Studio:
    """What the page's buttons do, with plain values in and out."""

    def __init__(self, pipe: DetSDTextualInversionPipeline, folder: Path):
        self.pipe, self.folder = pipe, folder

    def examples(self) -> list[list[str]]:
        """Prompts to click, with the concepts loaded last."""
        names = self.pipe.concepts[-2:]
        if not names:
            return [[text.format("red star")] for text in EXAMPLES]
        prompts = [text.format(names[-1]) for text in EXAMPLES]
        if len(names) > 1:
            prompts.append(f"a photo of a {names[0]} and a {names[1]}")
        return [[prompt] for prompt in prompts]

    def about(self) -> str:
        """The model and its concepts, as Markdown."""
        model = self.pipe.model
        lines = [f"Model **{model.name}**, {model.image_size} x {model.image_size} pixels."]
        for c in self.pipe.vocabulary.concepts():
            phrase = f", learned from “{c.initializer}”" if c.initializer else ""
            n = len(c.embeddings)
            lines.append(f"- **{c.name}**: {n} vector{'s' * (n > 1)}{phrase}")
        if len(lines) == 1:
            lines.append("- no concept is loaded yet")
        return "\n".join([lines[0] + " Concepts, to be written in prompts:", "", *lines[1:]])

    def load(self, text: str | None, file: str | None) -> list[str]:
        """Load a concept from a path or checkpoint uuid, or from an uploaded file; the new words.

        Raises:
            UserError: nothing named, or two things, or what the pipeline raises.
        """
        text = (text or "").strip()
        if not text and not file:
            raise UserError("nothing is named; write a path or a uuid, or upload a file")
        if text and file:
            raise UserError(f"{text!r} is named and a file uploaded; take one of them away")
        if not text:
            return self.pipe.load_concepts(file)
        if UUID.fullmatch(text) and not Path(text).exists():
            return self.pipe.load_from_uuids([text])
        return self.pipe.load_concepts(text)

    def make(
        self, jobs: list[Job], beside: bool, tell: Callable[[float, str], None]
    ) -> tuple[list[tuple[str, str]], list[tuple[str, str]], str]:
        """(file, caption) of every image; the same of its plain twins; the plain prompt.

        Args:
            beside: also make the prompt with the plain phrases in place of the concepts.
            tell: called with the share that is done and a few words, at every denoising step.

        Raises:
            UserError: not even one image fits into memory.
        """
        plain = self.pipe.vocabulary.plain(jobs[0].prompt)
        todo = jobs + [dataclasses.replace(job, prompt=plain) for job in jobs if beside]
        shown: list[tuple[str, str]] = []

        def look(progress: Progress) -> None:
            tell(progress.share, f"denoising step {progress.step} of {progress.steps}")

        for made in self.pipe.make_batches(todo, look=look):
            batch = [todo[number] for number in made]
            paths = self.pipe.save(batch, list(made.values()), self.folder)
            for path, job, result in zip(paths, batch, made.values(), strict=True):
                black = ", blacked out by the model's safety checker" if result.flagged else ""
                shown.append((str(path), f"seed {job.seed}{black}"))
        return shown[: len(jobs)], shown[len(jobs) :], plain


def _in_a_sentence(call: Callable) -> Callable:
    """What goes wrong in `call` as a note in the page; what nobody foresaw goes to the terminal."""

    @functools.wraps(call)
    def wrapped(*args: Any) -> Any:
        try:
            return call(*args)
        except UserError as error:
            text = str(error)
        except Exception:
            logger.exception("the demo could not do what it was asked to")
            text = "something went wrong that should not have; the terminal tells more"
        raise gr.Error(html.escape(text), print_exception=False)

    return wrapped


def page(studio: Studio) -> gr.Blocks:
    """The page, complete with its handlers."""
    size = studio.pipe.model.image_size
    looks = {
        "show_label": False, "columns": 2, "object_fit": "contain", "interactive": False,
        "buttons": ["download", "fullscreen"], "elem_classes": "gallery",
    }  # fmt: skip
    with gr.Blocks(
        title="detsd", analytics_enabled=False, delete_cache=(3600, 24 * 3600)
    ) as blocks:
        gr.Markdown("# detsd\nA new word for Stable Diffusion, learned from a few pictures.")
        about = gr.Markdown(studio.about(), elem_id="about")
        with gr.Tab("Generate"), gr.Row():
            with gr.Column(scale=5):
                prompt = gr.Textbox(
                    studio.examples()[0][0], label="Prompt", lines=2, elem_id="prompt",
                    info="name a concept as you would any other thing",
                )  # fmt: skip
                examples = gr.Dataset(
                    label="Examples (click one)", components=[prompt], samples=studio.examples(),
                    elem_id="examples",
                )  # fmt: skip
                negative = gr.Textbox(
                    label="Negative prompt", elem_id="negative", info="what to keep away from"
                )
                beside = gr.Checkbox(
                    label="Beside it, the plain phrase that the concept was learned from",
                    elem_id="beside",
                )
                go = gr.Button("Generate", variant="primary", elem_id="go")
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
                        list(SCHEDULERS), value="euler-ancestral", label="Scheduler",
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
            with gr.Column(scale=6):
                gr.Markdown("### Images\nTheir settings are inside the PNG files you download.")
                with gr.Row():  # side by side where there is room, else one below the other
                    with gr.Column(min_width=240):
                        gallery = gr.Gallery(elem_id="gallery", **looks)
                        words = gr.Markdown(elem_id="words", visible=False)
                    with gr.Column(min_width=240, visible=False) as twins:
                        plain = gr.Gallery(elem_id="plain", **looks)
                        plain_words = gr.Markdown(elem_id="plain-words")
        with gr.Tab("Load a concept"):
            gr.Markdown(
                "A concept learned on this base model, by `python -m detsd finetune` or by another "
                "tool. What is named by its path can be found again by "
                "`python -m detsd generate --from IMAGE`; an uploaded file cannot."
            )
            source = gr.Textbox(
                label="Concept file, checkpoint folder or checkpoint uuid", elem_id="source",
                placeholder="outputs/my_concept/checkpoints/step-00000300",
            )  # fmt: skip
            gr.Markdown("or upload a concept file")
            file = gr.File(show_label=False, type="filepath", height=140, elem_id="file")
            load = gr.Button("Load", variant="primary", elem_id="load")
            loaded = gr.Markdown(elem_id="loaded")

        @_in_a_sentence
        def make(beside: bool, *settings: Any, progress: Any = gr.Progress()):  # noqa: B008
            jobs = checked_jobs(studio.pipe, *settings)
            for doubt in studio.pipe.doubts(jobs[0].prompt):
                gr.Warning(html.escape(doubt))
            shown, others, text = studio.make(
                jobs, beside, lambda share, text: progress(share, desc=text)
            )
            columns = 1 if beside else 2  # side by side: seed beside seed
            return (
                gr.Gallery(shown, columns=columns),
                gr.Markdown(html.escape(jobs[0].prompt), visible=beside),
                gr.Gallery(others, columns=columns),
                html.escape(text),
                gr.Column(visible=beside),
            )

        @_in_a_sentence
        def add(text: str, upload: str | None):
            words = ", ".join(f"**{word}**" for word in studio.load(text, upload))
            return (
                f"Loaded {words}. Write the word in a prompt.",
                studio.about(),
                gr.Dataset(samples=studio.examples()),
                "",
                None,
            )

        # One at a time, whoever asks: the model and its concepts are shared.
        alone = {"concurrency_limit": 1, "concurrency_id": "model"}
        gr.on(
            [go.click, prompt.submit],
            make,
            [beside, prompt, negative, guidance, steps, seed, scheduler, count, width, height],
            [gallery, words, plain, plain_words, twins],
            show_progress_on=gallery,
            api_name="generate",
            **alone,
        )
        load.click(
            add,
            [source, file],
            [loaded, about, examples, source, file],
            show_progress_on=loaded,
            api_name="load",
            **alone,
        )
        dice.click(lambda: random.randrange(2**31), None, seed, api_visibility="private")
        examples.click(lambda sample: sample[0], examples, prompt, api_visibility="private")
        blocks.load(
            lambda: (studio.about(), gr.Dataset(samples=studio.examples())),
            None,
            [about, examples],
            show_progress="hidden",
            api_visibility="private",
        )
    return blocks.queue(max_size=20)


def serve(
    model: str, concepts: list[str], uuids: list[str], host: str, port: int | None
) -> None:  # pragma: no cover
    """Load the model and its concepts, open the page, and stay until interrupted.

    Raises:
        UserError: no gradio, a model or concept that cannot be loaded, an address not to be had.
    """
    if gr is None:
        raise UserError(
            "the demo needs gradio, which is not installed; run pip install -r requirements-app.txt"
        )
    pipe = DetSDTextualInversionPipeline.from_pretrained(model, concepts=concepts, uuids=uuids)
    fonts = ["system-ui", "sans-serif"]  # names only: gradio would fetch its own from the network
    theme = gr.themes.Default(
        primary_hue="indigo", font=fonts, font_mono=["ui-monospace", "monospace"]
    ).set(block_info_text_color="*neutral_500")
    with tempfile.TemporaryDirectory(prefix="detsd-app-") as folder:
        blocks = page(Studio(pipe, Path(folder)))
        try:
            _, url, _ = blocks.launch(
                server_name=host, server_port=port, share=False, quiet=True, ssr_mode=False,
                prevent_thread_lock=True, theme=theme, css=CSS, footer_links=[],
                allowed_paths=[folder],
            )  # fmt: skip
        except OSError:  # gradio does not tell the two apart
            raise UserError(
                f"--port {port or '(7860 to 7959)'} is taken on {host}, or --host {host} is no "
                "address of this machine; give another one"
            ) from None
        print(f"the demo is at {url} (Ctrl-C ends it)", flush=True)
        blocks.block_thread()
