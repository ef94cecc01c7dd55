"""The tabs of the demo's page: their components, and what happens when they are used.

What goes wrong stands as a sentence where one has just pressed; the images that are there stay.
"""

from __future__ import annotations

import functools
import html
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from detsd.app.backend import Backend, Generation, watched
from detsd.app.pictures import PageImage
from detsd.sampling.jobs import Job
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


def draws(backend: Backend) -> str:
    """What the model can draw, as HTML; "" where it does not tell."""
    lists = backend.words.lists if backend.words else {}
    return "".join(
        f"<p><b>{title}</b> {html.escape(', '.join(lists[name]))}</p>"
        for name, title in TITLES.items()
        if lists.get(name)
    )


def about(backend: Backend) -> str:
    """The model and its concepts, as Markdown."""
    model = backend.pipe.model
    lines = [f"Model **{model.name}**, {model.image_size} x {model.image_size} pixels."]
    for c in backend.concepts():
        phrase = f", learned from “{c['phrase']}”" if c["phrase"] else ""
        n = c["vectors"]
        lines.append(f"- **{c['name']}**: {n} vector{'s' * (n > 1)}{phrase}")
    if len(lines) == 1:
        lines.append("- no concept is loaded yet")
    return "\n".join([lines[0] + " Concepts, to be written in prompts:", "", *lines[1:]])


def files(shown: Sequence[PageImage]) -> str:
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


def thumbnails(backend: Backend, pictures: Sequence[Path], title: str = "") -> str:
    """Small copies of training pictures, as HTML."""
    small = "".join(
        f'<img src="gradio_api/file={html.escape(path)}" alt="training picture">'
        for path in backend.thumbnails(pictures)
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

    def now(self, backend: Backend, chosen: str | None = None) -> dict:
        """Updates of them all."""
        names = backend.pipe.concepts
        chosen = chosen if chosen in names else (names[-1] if names else None)
        facts, pictures = facts_of(backend, chosen)
        return {
            self.about: about(backend),
            self.examples: gr.Dataset(samples=[[text] for text in backend.examples()]),
            self.chosen: gr.Radio(names, value=chosen),
            self.facts: facts,
            self.pictures: pictures,
        }


# ---- images --------------------------------------------------------------------------------------


def run(
    backend: Backend,
    visitor: str,
    jobs: Callable[[], list[Job]],
    components: dict[str, Any],
    finish: Callable[[list[Job], dict[int, PageImage], Generation], dict],
) -> Iterator[dict]:
    """Make images, as updates of the components `status`, `preview`, `go` and `stop` meanwhile.

    Args:
        finish: what else is updated in the end; not called where nothing was made.
    """
    c = components
    making = backend.next_of(visitor)
    rest = {c["preview"]: gr.Image(None, visible=False)}
    rest |= {c["go"]: gr.Button(visible=True), c["stop"]: gr.Button(visible=False)}
    try:
        todo = jobs()
        preview = None
        shown: Any = making
        for shown in watched(lambda: backend.make(todo, making), making):
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
        backend.done(visitor, making)
    yield rest


def facts_of(backend: Backend, name: str | None) -> tuple[str, str]:
    """What is known of a loaded concept, as Markdown, and its training pictures, as HTML."""
    concept = next((c for c in backend.concepts() if c["name"] == name), None)
    if concept is None:
        return "", ""
    many, n = concept["training_pictures"], concept["vectors"]
    lines = [f"**{name}**: {n} vector{'s' * (n > 1)}"]
    lines += [f"a {concept['kind']}"] if concept["kind"] else []
    lines += [f"learned from “{concept['phrase']}”"] if concept["phrase"] else []
    lines += [f"from `{concept['source']}`"]
    lines += [f"{many} training pictures" if many else "its training pictures are not known"]
    return ", ".join(lines), thumbnails(backend, backend.training_pictures(name)[: 3 * SHOWN])
