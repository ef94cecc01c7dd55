"""Parts that the tabs and endpoints of the demo page share: errors, texts, links, components."""

import contextlib
import html
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from detsd.app import pictures
from detsd.app.backend import Backend
from detsd.utils.errors import UserError
from detsd.utils.plurals import counted

logger = logging.getLogger("detsd")

GALLERY = {
    "show_label": False, "object_fit": "contain", "interactive": False,
    "buttons": ["download", "fullscreen"], "elem_classes": "gallery",
}  # fmt: skip

# One at a time for all visitors: the model and its concepts are shared.
ALONE = {"concurrency_limit": 1, "concurrency_id": "model"}

# The page's own events: not offered to programs, which have their own endpoints.
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}

MAX_SHOWN = 8  # training images beside a result

MAX_UPLOAD = 64 * 2**20  # bytes per file

TITLES = {"objects": "objects", "media": "media", "grounds": "backgrounds"}


# ---- errors --------------------------------------------------------------------------------------


def sentence(error: Exception) -> str:
    """Return the message of an error; the details of an unforeseen one go to the terminal."""
    if isinstance(error, UserError):
        return str(error)
    logger.error("the demo could not do what it was asked to do", exc_info=error)
    return "something unexpected went wrong; the terminal shows the details"


@contextlib.contextmanager
def raise_errors(as_text: Callable[[str], str] = str) -> Iterator[None]:
    """Raise errors as gradio's, with their message."""
    try:
        yield
    except Exception as error:
        raise gr.Error(as_text(sentence(error)), print_exception=False) from None


def show_errors() -> contextlib.AbstractContextManager[None]:
    """Show errors on the page, where their text is HTML; also usable as a decorator."""
    return raise_errors(html.escape)


def uploaded(file: Any) -> Path:
    """Return the path of a file that a visitor uploaded; refuse any other path.

    Args:
        file: a path that gradio handed out, or its FileData as a dict.
    """
    # `gr.api` passes on any path that a program sends without checking it.
    path = file.get("path") if isinstance(file, dict) else file
    try:
        path = Path(path).resolve()
        folder = Path(get_upload_folder()).resolve()
        if path.is_relative_to(folder) and path.is_file() and path.stat().st_size <= MAX_UPLOAD:
            return path
    except (TypeError, ValueError, OSError):
        pass
    raise UserError(
        f"{str(file)[:100]} is not an uploaded file of at most {MAX_UPLOAD // 2**20} MB; upload "
        "it (in a program, with gradio_client.handle_file)"
    )


# ---- texts, as HTML ------------------------------------------------------------------------------


def lines(*texts: str) -> str:
    """Return texts as paragraphs."""
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts)


def model_hint(backend: Backend) -> str:
    """Return what the model can draw; "" if its folder does not list it."""
    lists = backend.hints.lists
    return "".join(
        f"<p><b>{title}</b> {html.escape(', '.join(lists[name]))}</p>"
        for name, title in TITLES.items()
        if lists.get(name)
    )


def about(backend: Backend) -> str:
    """Return the model and its concepts."""
    model, items = backend.pipe.model, []
    for c in backend.concepts():
        known = counted(c["vectors"], "vector")
        known += f", initialized from “{c['phrase']}”" if c["phrase"] else ""
        items.append(f"<b>{html.escape(c['name'])}</b>: {html.escape(known)}")
    items = items or ["no concept is loaded yet"]
    given = {key: model.settings.get(key) for key in ("clip_skip", "vae")}
    others = "".join(f", {key} {value}" for key, value in given.items() if value)
    return (
        f"<p>Model <b>{html.escape(model.name)}</b>{html.escape(others)}, {model.image_size} x "
        f"{model.image_size} pixels. Concepts to use in prompts:</p>"
        f"<ul><li>{'</li><li>'.join(items)}</li></ul>"
    )


def facts(backend: Backend, name: str | None) -> tuple[str, str]:
    """Return the known facts about a loaded concept, and its training images."""
    concept = next((c for c in backend.concepts() if c["name"] == name), None)
    if concept is None:
        return "", ""
    count, kind = concept["training_pictures"], concept["kind"]
    known = [f"{name}: {counted(concept['vectors'], 'vector')}"]
    known += [f"{'an' if kind == 'object' else 'a'} {kind}"] if kind else []
    known += [f"initialized from “{concept['phrase']}”"] if concept["phrase"] else []
    known += [f"from {concept['source']}"]
    unknown = "its training pictures are not known"
    known += [counted(count, "training picture") if count else unknown]
    images = backend.training_images(name)[: 3 * MAX_SHOWN]
    return lines(", ".join(known)), thumbnails(backend, images)


def _link(path: Path) -> str:
    return f"gradio_api/file={html.escape(str(path))}"


def files(images: Sequence[pictures.PageImage]) -> str:
    """Return links to the files of images, and to larger copies of small ones."""
    items = []
    for one in images:
        sizes = {one.path: f"{one.job.width} x {one.job.height}"}
        if one.larger:
            sizes[one.larger] = one.larger.stem.rpartition("-")[2].replace("x", " x ")
        links = [
            f'<a href="{_link(path)}" download="{html.escape(path.name)}">{size}</a>'
            for path, size in sizes.items()
        ]
        items.append(f"<li>seed {one.job.seed}: {' · '.join(links)}</li>")
    return f"<ul>{''.join(items)}</ul>" if items else ""


def thumbnails(backend: Backend, images: Sequence[Path], title: str = "") -> str:
    """Return small copies of training images."""
    small = "".join(
        f'<img src="{_link(path)}" alt="training picture">'
        for path in pictures.thumbnails(images, backend.folder)
    )
    return (lines(title) if title else "") + small if small else ""


# ---- components ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """The components that show the concepts, updated when these change."""

    about: Any
    examples: Any
    chosen: Any  # in the Concepts tab
    facts: Any  # about the chosen concept
    pictures: Any

    @property
    def all(self) -> list[Any]:
        """The components."""
        return list(vars(self).values())

    def now(self, backend: Backend, chosen: str | None = None) -> dict:
        """Return updates of all components.

        Args:
            chosen: the concept to show, unless it is no longer loaded; "": none; default: the
                newest.
        """
        names = backend.pipe.concepts
        if chosen is None and names:
            chosen = names[-1]
        elif chosen not in names:
            chosen = None
        examples = gr.Dataset(samples=[[text] for text in backend.examples()])
        values = (about(backend), examples, gr.Radio(names, value=chosen), *facts(backend, chosen))
        return dict(zip(self.all, values, strict=True))
