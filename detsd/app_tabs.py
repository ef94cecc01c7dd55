"""The tabs of the demo's page: their components, and what happens when they are used.

What goes wrong stands as a sentence where one has just pressed; the images that are there stay.
"""

from __future__ import annotations

import functools
import html
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import gradio as gr

from detsd.app_form import AXES, FIELDS, MOST_IMAGES, checked_job, copies, grid_jobs
from detsd.sampling.jobs import Job
from detsd.sampling.stock import SCHEDULERS
from detsd.studio import Making, Shown, Studio, watched
from detsd.utils.errors import UserError

logger = logging.getLogger("detsd")

GALLERY = {
    "show_label": False, "object_fit": "contain", "interactive": False,
    "buttons": ["download", "fullscreen"], "elem_classes": "gallery",
}  # fmt: skip
# One at a time, whoever asks: the model and its concepts are shared.
ALONE = {"concurrency_limit": 1, "concurrency_id": "model"}
# Its own business: not offered to programs, which have endpoints of their own.
QUIET = {"api_visibility": "private", "show_progress": "hidden"}
SHOWN = 8  # training pictures beside a result
TITLES = {"objects": "things", "media": "media", "grounds": "grounds"}


# ---- words on the page ---------------------------------------------------------------------------


def sentence(error: Exception) -> str:
    """What a person is told of an error; what nobody foresaw goes to the terminal."""
    if isinstance(error, UserError):
        return str(error)
    logger.error("the demo could not do what it was asked to", exc_info=error)
    return "something went wrong that should not have; the terminal tells more"


def status(text: str = "", notes: Sequence[str] = (), error: str = "") -> str:
    """Lines under a button, as HTML."""
    lines = [f'<p class="error" role="alert">{html.escape(error)}</p>'] if error else []
    lines += [f"<p>{html.escape(text)}</p>"] if text else []
    lines += [f'<p class="note">{html.escape(note)}</p>' for note in notes]
    return "".join(lines)


def told(where: Any, besides: dict[Any, Any] | None = None) -> Callable[[Callable], Callable]:
    """Have a handler say at `where` what goes wrong in it; what else is then updated."""

    def decorated(call: Callable) -> Callable:
        @functools.wraps(call)
        def wrapped(*args: Any) -> dict:
            try:
                return call(*args)
            except Exception as error:
                return {where: status(error=sentence(error))} | (besides or {})

        return wrapped

    return decorated


def bar(share: float, text: str, seconds: float | None = None) -> str:
    """A progress bar with a few words, as HTML."""
    left = f", {duration(seconds)} left" if seconds is not None else ""
    return (
        f'<div class="bar"><div style="width: {min(1.0, share):.1%}"></div></div>'
        f"<p>{html.escape(text + left)}</p>"
    )


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def draws(studio: Studio) -> str:
    """What the model can draw, as HTML; "" where it does not tell."""
    lists = studio.words.lists if studio.words else {}
    return "".join(
        f"<p><b>{title}</b> {html.escape(', '.join(lists[name]))}</p>"
        for name, title in TITLES.items()
        if lists.get(name)
    )


def about(studio: Studio) -> str:
    """The model and its concepts, as Markdown."""
    model = studio.pipe.model
    lines = [f"Model **{model.name}**, {model.image_size} x {model.image_size} pixels."]
    for c in studio.concepts():
        phrase = f", learned from “{c['phrase']}”" if c["phrase"] else ""
        n = c["vectors"]
        lines.append(f"- **{c['name']}**: {n} vector{'s' * (n > 1)}{phrase}")
    if len(lines) == 1:
        lines.append("- no concept is loaded yet")
    return "\n".join([lines[0] + " Concepts, to be written in prompts:", "", *lines[1:]])


def files(shown: Sequence[Shown]) -> str:
    """Links to the files of images, small ones also in a larger size, as HTML."""
    lines = []
    for one in shown:
        links = [
            f'<a href="gradio_api/file={html.escape(str(path))}" download="{path.name}">{size}</a>'
            for path, size in (
                (one.path, f"{one.job.width} x {one.job.height}"),
                (one.larger, one.larger and one.larger.stem.rpartition("-")[2].replace("x", " x ")),
            )
            if path
        ]
        lines.append(f"<li>seed {one.job.seed}: {' · '.join(links)}</li>")
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def thumbnails(studio: Studio, pictures: Sequence[Path], title: str = "") -> str:
    """Small copies of training pictures, as HTML."""
    small = "".join(
        f'<img src="gradio_api/file={html.escape(path)}" alt="training picture">'
        for path in studio.thumbnails(pictures)
    )
    return f"<p>{html.escape(title)}</p>{small}" if small else ""


class Components:
    """Components by what they are for."""

    @property
    def all(self) -> list[Any]:
        return list(vars(self).values())


@dataclass(frozen=True)
class Form(Components):
    """The components that describe an image, in the order of `checked_job`."""

    prompt: Any
    negative: Any
    guidance: Any
    steps: Any
    seed: Any
    scheduler: Any
    width: Any
    height: Any


@dataclass(frozen=True)
class Head(Components):
    """What shows the concepts, and has to follow when they change."""

    about: Any
    examples: Any
    chosen: Any  # of the concepts' tab
    facts: Any  # of the chosen one
    pictures: Any

    def now(self, studio: Studio, chosen: str | None = None) -> dict:
        """Updates of them all."""
        names = studio.pipe.concepts
        chosen = chosen if chosen in names else (names[-1] if names else None)
        facts, pictures = facts_of(studio, chosen)
        return {
            self.about: about(studio),
            self.examples: gr.Dataset(samples=[[text] for text in studio.examples()]),
            self.chosen: gr.Radio(names, value=chosen),
            self.facts: facts,
            self.pictures: pictures,
        }


def facts_of(studio: Studio, name: str | None) -> tuple[str, str]:
    """What is known of a loaded concept, as Markdown, and its training pictures, as HTML."""
    concept = next((c for c in studio.concepts() if c["name"] == name), None)
    if concept is None:
        return "", ""
    many, n = concept["training_pictures"], concept["vectors"]
    lines = [f"**{name}**: {n} vector{'s' * (n > 1)}"]
    lines += [f"a {concept['kind']}"] if concept["kind"] else []
    lines += [f"learned from “{concept['phrase']}”"] if concept["phrase"] else []
    lines += [f"from `{concept['source']}`"]
    lines += [f"{many} training pictures" if many else "its training pictures are not known"]
    return ", ".join(lines), thumbnails(studio, studio.training_pictures(name)[: 3 * SHOWN])


# ---- images --------------------------------------------------------------------------------------


def run(
    studio: Studio,
    visitor: str,
    jobs: Callable[[], list[Job]],
    components: dict[str, Any],
    finish: Callable[[list[Job], dict[int, Shown], Making], dict],
) -> Iterator[dict]:
    """Make images, as updates of the components `status`, `preview`, `go` and `stop` meanwhile.

    Args:
        finish: what else is updated in the end; not called where nothing was made.
    """
    c = components
    making = studio.next_of(visitor)
    rest = {c["preview"]: gr.Image(None, visible=False)}
    rest |= {c["go"]: gr.Button(visible=True), c["stop"]: gr.Button(visible=False)}
    try:
        todo = jobs()
        preview = None
        shown: Any = making
        for shown in watched(lambda: studio.make(todo, making), making):
            if shown is not making:
                break
            update = {c["status"]: bar(making.share, making.text, making.seconds_left)}
            if making.preview is not preview:
                preview = making.preview
                update[c["preview"]] = gr.Image(preview, visible=True)
            yield update
        rest[c["status"]] = ""
        if shown:
            rest |= finish(todo, shown, making)
        if len(shown) < len(todo):
            made = f"{len(shown)} of {len(todo)} images were made" if shown else "nothing was made"
            rest[c["status"]] = status(f"Stopped: {made}.")
    except Exception as error:
        rest[c["status"]] = status(error=sentence(error))
    finally:
        studio.done(visitor, making)
    yield rest


def starts(
    studio: Studio, triggers: list[Any], c: dict[str, Any], call: Callable, inputs: list[Any],
    outputs: list[Any],
) -> None:  # fmt: skip
    """Bind `call` to the buttons: told at once that it waits, and stopped by `stop`."""

    def ask(request: gr.Request):
        studio.ask(request.session_hash)
        return bar(0, "waiting for its turn"), gr.Button(visible=False), gr.Button(visible=True)

    gr.on(
        triggers, ask, None, [c["status"], c["go"], c["stop"]], queue=False, trigger_mode="once",
        **QUIET,
    ).then(call, inputs, [c[k] for k in ("status", "preview", "go", "stop")] + outputs,
           **ALONE, **QUIET)  # fmt: skip

    def stop(request: gr.Request):
        studio.stop(request.session_hash)

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


def generate_tab(studio: Studio) -> tuple[Form, Any]:
    """Images of one prompt; its form, and the examples."""
    size = studio.pipe.model.image_size
    samples = [[text] for text in studio.examples()]
    with gr.Row():
        with gr.Column(scale=5):
            prompt = gr.Textbox(
                samples[0][0], label="Prompt", lines=2, elem_id="prompt",
                info="name a concept as you would any other thing",
            )  # fmt: skip
            hint = gr.HTML(elem_id="hint", elem_classes="status")
            gr.HTML(draws(studio), elem_id="draws", visible=bool(draws(studio)))
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
                    list(SCHEDULERS), value=studio.pipe.own_scheduler, label="Scheduler",
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
            first = checked_job(studio.pipe, *settings, n)
            todo = copies(first, n)
            return todo + (studio.twins(todo) if both and not studio.no_twin(first.prompt) else [])

        def finish(todo: list[Job], shown: dict[int, Shown], making: Making) -> dict:
            first = todo[0]
            mine = [one for k, one in shown.items() if k < n]
            others = [one for k, one in shown.items() if k >= n]
            named = dict.fromkeys(studio.pipe.vocabulary.rewrite.words_in(first.prompt))
            pictures = [p for name in named for p in studio.training_pictures(name)[:SHOWN]]
            columns = 1 if others else 2  # side by side: seed beside seed
            return {
                gallery: gr.Gallery([(s.path, s.caption) for s in mine], columns=columns),
                words: gr.Markdown(html.escape(first.prompt), visible=bool(others)),
                plain: [(s.path, s.caption) for s in others],
                plain_words: html.escape(todo[-1].prompt),
                twins: gr.Column(visible=bool(others)),
                links: files(mine),
                taught: thumbnails(studio, pictures, f"{', '.join(named)} was learned from"),
            }

        yield from run(studio, request.session_hash, jobs, c, finish)

    starts(
        studio, [c["go"].click, prompt.submit], c, make, [beside, count, *form.all],
        [gallery, words, plain, plain_words, twins, links, taught],
    )  # fmt: skip

    def look(text: str, both: bool) -> str:
        if not (text or "").strip():
            return ""
        reason = studio.no_twin(text) if both else ""
        return status(notes=[*studio.notes(text), *([reason] if reason else [])])

    gr.on(
        [prompt.change, beside.change], look, [prompt, beside], hint, queue=False,
        trigger_mode="always_last", **QUIET,
    )  # fmt: skip

    @told(hint, {drop: None})
    def fill(path: str | None):
        if path is None:
            return {hint: ""}
        job, notes = studio.settings(path)
        return dict(zip(form.all, attrgetter(*FIELDS)(job), strict=True)) | {
            count: 1, drop: None, c["status"]: status("The form holds its settings.", notes),
        }  # fmt: skip

    drop.upload(fill, drop, [*form.all, count, drop, hint, c["status"]], queue=False, **QUIET)
    dice.click(lambda: random.randrange(2**31), None, seed, queue=False, **QUIET)
    examples.click(lambda sample: sample[0], examples, prompt, queue=False, **QUIET)
    return form, examples


def grid_tab(studio: Studio, form: Form) -> None:
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
            job = checked_job(studio.pipe, *values[4:])
            todo, *found = grid_jobs(studio.pipe, job, values[0:2], values[2:4])
            labels.extend(found)
            title = job.prompt if len({j.prompt for j in todo}) == 1 else ""
            return todo

        def finish(todo: list[Job], shown: dict[int, Shown], making: Making) -> dict:
            return {
                sheet: str(studio.sheet(shown, *labels, title)),
                cells: [(s.path, s.caption) for _, s in sorted(shown.items())],
                single: gr.Accordion(visible=True),
                c["status"]: status(notes=studio.notes(title) if title else []),
            }

        yield from run(studio, request.session_hash, jobs, c, finish)

    starts(studio, [c["go"].click], c, make, [*axes, *form.all], [sheet, cells, single])


# ---- concepts ------------------------------------------------------------------------------------


def concepts_tab(studio: Studio, about: Any, examples: Any) -> Head:
    """What is loaded, and loading; all that shows it."""
    with gr.Row():
        with gr.Column():
            names = studio.pipe.concepts
            chosen = gr.Radio(
                names, value=names[-1] if names else None, label="Loaded concepts",
                elem_id="concepts",
            )  # fmt: skip
            facts = gr.Markdown(elem_id="facts")
            with gr.Row():
                reload = gr.Button("Reload", elem_id="reload")
                unload = gr.Button("Unload", elem_id="unload")
            changed = gr.HTML(elem_id="changed", elem_classes="status")
            pictures = gr.HTML(elem_id="pictures", elem_classes="thumbnails")
        with gr.Column():
            gr.Markdown(
                "Load a concept that was learned on this base model, by `python -m detsd finetune` "
                "or by another tool. What is named by its path can be found again by "
                "`python -m detsd generate --from IMAGE`; an uploaded file cannot."
            )
            source = gr.Textbox(
                label="Concept file, checkpoint or run folder, or checkpoint uuid",
                elem_id="source", placeholder="outputs/my_concept",
            )  # fmt: skip
            gr.Markdown("or upload a concept file")
            file = gr.File(show_label=False, type="filepath", height=140, elem_id="file")
            load = gr.Button("Load", variant="primary", elem_id="load")
            loaded = gr.HTML(elem_id="loaded", elem_classes="status")
    head = Head(about, examples, chosen, facts, pictures)

    @told(loaded)
    def add(text: str, upload: str | None) -> dict:
        words = ", ".join(studio.load(text, upload))
        said = status(f"Loaded {words}. Write the word in a prompt.")
        return {loaded: said, source: "", file: None} | head.now(studio)

    @told(changed)
    def forget(name: str | None) -> dict:
        studio.unload(name or "")
        return {changed: status(f"Unloaded {name}.")} | head.now(studio)

    @told(changed)
    def read_again(name: str | None) -> dict:
        studio.reload(name or "")
        said = status(f"Read {name} again from {studio.pipe.sources[name]}.")
        return {changed: said} | head.now(studio, name)

    chosen.input(
        lambda name: facts_of(studio, name), chosen, [facts, pictures], queue=False, **QUIET
    )
    load.click(add, [source, file], [loaded, source, file, *head.all], **ALONE, **QUIET)
    unload.click(forget, chosen, [changed, *head.all], **ALONE, **QUIET)
    reload.click(read_again, chosen, [changed, *head.all], **ALONE, **QUIET)
    return head
