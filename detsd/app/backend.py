"""What the buttons of the demo's page do, with plain values in and out.

    Backend(pipe, folder).make(job)

One `Backend` stands behind all who have the page open: they share the model, its concepts and one
queue, and each can stop what they asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from PIL import Image

from detsd.app.form import FIELDS, checked_job
from detsd.app.hints import EXAMPLES, STYLE_EXAMPLES, ModelVocabulary
from detsd.app.pictures import PageImage, pictures_in
from detsd.concepts.reading import read_concepts
from detsd.concepts.source import ConceptSource
from detsd.data.images import to_rgb
from detsd.runs.folder import read_metadata
from detsd.sampling.denoise import decode
from detsd.sampling.jobs import GeneratedImage, Job, StepInfo
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.utils import contact_sheets, png
from detsd.utils.errors import UserError
from detsd.utils.paths import resolve

logger = logging.getLogger("detsd")

LARGER = 512  # small images can also be had at a whole multiple of their size, up to this side


@dataclass
class Generation:
    """How far a making of images is, to be looked at from another thread, and to be stopped."""

    previews: bool = False
    share: float = 0.0  # of all denoising that is done
    text: str = "waiting for its turn"
    preview: Image.Image | None = None
    began: float = 0.0
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def seconds_left(self) -> float | None:
        """As far as that can be told yet."""
        if not self.share:
            return None
        return (time.monotonic() - self.began) * (1 - self.share) / self.share


def watched(call: Callable[[], Any], making: Generation, every: float = 0.25) -> Iterator[Any]:
    """Run `call` in a thread; `making`, again and again, till it ends, and then what it returns.

    Who stops looking stops the making.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        try:
            while wait([future], every).not_done:
                yield making
        finally:
            making.stopped.set()
    yield future.result()


class Backend:
    """What the page's buttons do.

    Attributes:
        pipe: the model with its concepts, which one call at a time may use.
        folder: where images are kept.
        words: what the model can draw, as far as it tells.
        pictures: folders of training pictures of concepts whose files do not tell them.
    """

    def __init__(
        self,
        pipe: DetSDTextualInversionPipeline,
        folder: Path,
        pictures: dict[str, str] | None = None,
    ):
        self.pipe, self.folder = pipe, folder
        self.words = ModelVocabulary.of(pipe.model.name)
        self.pictures = pictures or {}
        self.alone = threading.Lock()  # held by what uses or changes the model
        self.making: Generation | None = None
        self.busy: Callable[[], str] = lambda: ""  # why nothing can be made now
        self.asked: dict[str, list[Generation]] = {}  # what each visitor waits for

    # ---- concepts ----------------------------------------------------------------------------

    def facts(self, name: str) -> dict[str, Any]:
        """What the fine-tuning that a concept came from says of it; {} where that is not known."""
        source = ConceptSource.parse(self.pipe.sources.get(name, ""))
        try:
            concepts = read_metadata(source.path.parent)["config"]["concepts"]
            # Only a file of one concept can be given another word.
            k = 0 if source.word else concepts["concept_strs"].index(name)
            return {key: concepts[key][k] for key in ("img_dirs", "learnable_properties")}
        except (UserError, KeyError, ValueError, IndexError, TypeError):
            return {}

    def training_pictures(self, name: str) -> list[Path]:
        """The pictures that a concept was learned from, where they are known and here."""
        given = self.facts(name).get("img_dirs") or self.pictures.get(name)
        return pictures_in(Path(resolve(given))) if isinstance(given, str) else []

    def concepts(self) -> list[dict[str, Any]]:
        """The loaded concepts, as plain values."""
        return [
            {
                "name": c.name,
                "vectors": len(c.embeddings),
                "phrase": c.initializer,
                "source": self.pipe.sources.get(c.name, ""),
                "kind": self.facts(c.name).get("learnable_properties", ""),
                "training_pictures": len(self.training_pictures(c.name)),
            }
            for c in self.pipe.vocabulary.concepts()
        ]

    def examples(self) -> list[str]:
        """Prompts to click, with the concepts loaded last."""
        names = self.pipe.concepts[-2:]
        if not names:
            return [text.format("red star") for text in self._drawable(EXAMPLES)]
        styles = {n for n in names if self.facts(n).get("learnable_properties") == "style"}
        last = names[-1]
        texts = self._drawable(STYLE_EXAMPLES if last in styles else EXAMPLES)
        prompts = [text.format(last) for text in texts]
        if len(names) > 1 and len(styles) == 1:
            thing, style = sorted(names, key=lambda n: n in styles)
            prompts.append(f"a {thing} in the style of {style}")
        elif len(names) > 1 and not styles:
            prompts.append(f"a photo of a {names[0]} and a {names[1]}")
        return prompts

    def _drawable(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Those of some prompts that the model has words for; all where it has for none."""
        unknown = self.words.unknown if self.words else lambda text: []
        return tuple(t for t in texts if not unknown(t.format(""))) or texts

    def load(self, text: str | None, file: str | None = None) -> list[str]:
        """Load a concept from a path or checkpoint uuid, or from an uploaded file; the new words.

        Raises:
            UserError: nothing named, or two things, or what the pipeline raises.
        """
        text = (text or "").strip()
        if not text and not file:
            raise UserError("nothing is named; write a path or a uuid, or upload a file")
        if text and file:
            raise UserError(f"{text!r} is named and a file uploaded; take one of them away")
        with self.alone:
            if not text:
                return self.pipe.load_concepts(file)
            return self.pipe.load_concepts(text)

    def unload(self, name: str) -> None:
        """Forget a concept: prompts that name it show what they show without it.

        Raises:
            UserError: no such concept.
        """
        with self.alone:
            self.pipe.unload(name)

    def reload(self, name: str) -> None:
        """Read a concept again from where it came from; the old one stays if that cannot be.

        Raises:
            UserError: no such concept, or what reading it raises.
        """
        with self.alone:
            self.pipe.reload(name)

    def replace(self, path: Path) -> list[str]:
        """Load the concepts of a run in place of those of the same names; their names."""
        with self.alone:
            for concept in read_concepts(path):
                if concept.name in self.pipe.concepts:
                    self.pipe.unload(concept.name)
            return self.pipe.load_concepts(path)

    def thumbnails(self, pictures: Iterable[Path]) -> list[str]:
        """Small copies of pictures; their files."""
        found = []
        for path in pictures:
            try:
                digest = hashlib.sha256(f"{path} {path.stat().st_mtime_ns}".encode()).hexdigest()
                small = self.folder / f"small-{digest[:16]}.png"
                if not small.is_file():
                    with Image.open(path) as image:
                        picture = to_rgb(image)
                    picture.thumbnail((256, 256))
                    self.folder.mkdir(parents=True, exist_ok=True)
                    picture.save(small)
                found.append(str(small))
            except Exception as error:  # broken files raise a dozen classes
                logger.warning("%s cannot be shown (%s)", path, error)
        return found

    # ---- who waits for what ------------------------------------------------------------------

    def ask(self, visitor: str) -> None:
        """Note that a visitor waits for images."""
        self.asked.setdefault(visitor, []).append(Generation(previews=True))

    def next_of(self, visitor: str) -> Generation:
        """What a visitor has waited for the longest."""
        waiting = [m for m in self.asked.get(visitor, []) if not m.began]
        making = waiting[0] if waiting else Generation(previews=True)
        making.began = time.monotonic()
        return making

    def done(self, visitor: str, making: Generation) -> None:
        """Note that a visitor waits for it no more."""
        self.asked[visitor] = [m for m in self.asked.get(visitor, []) if m is not making]

    def stop(self, visitor: str | None = None) -> bool:
        """Stop what a visitor asked for, or what is being made; whether there was anything."""
        making = self.making
        makings = self.asked.get(visitor, []) if visitor else [making] if making else []
        for one in makings:
            one.stopped.set()
        return bool(makings)

    # ---- notes on a prompt -------------------------------------------------------------------

    def notes(self, prompt: str) -> list[str]:
        """What is odd about a prompt, a sentence each."""
        found = self.pipe.prompt_warnings(prompt)
        words = self.words
        unknown = words.unknown(self.pipe.vocabulary.rewrite.without(prompt)) if words else []
        if unknown:
            named = ", ".join(f"“{word}”" for word in unknown)
            found.append(f"this model was never shown the word{'s'[: len(unknown) > 1]} {named}")
        return found

    def no_twin(self, prompt: str) -> str:
        """Why a prompt has no plain twin to stand beside it; "" where it has one."""
        if self.pipe.vocabulary.with_initializers(prompt) != prompt:
            return ""
        loaded = ", ".join(self.pipe.concepts) or "none is loaded"
        return f"nothing stands beside it, since the prompt names no concept ({loaded})"

    # ---- images ------------------------------------------------------------------------------

    def make(self, jobs: list[Job], making: Generation | None = None) -> dict[int, PageImage]:
        """The images of jobs by their number; fewer when stopped.

        Raises:
            UserError: something else has the model, or not even one image fits into memory.
        """
        making = making or Generation()
        if not self.alone.acquire(timeout=60):  # longer than a step of what was left
            raise UserError("something else is being made; try again in a moment")
        try:
            if reason := self.busy():
                raise UserError(reason)
            self.making, making.began = making, time.monotonic()
            shown: dict[int, PageImage] = {}
            looked = [0.0, 0.0]  # when the last preview was begun, how long it took

            def on_step(progress: StepInfo) -> None:
                making.share = progress.share
                done = f", {len(shown)} of {len(jobs)} images made" if shown else ""
                making.text = f"denoising step {progress.step} of {progress.steps}{done}"
                # Decoding may take a tenth of the time.
                began = time.monotonic()
                if making.previews and began - looked[0] > max(0.5, 10 * looked[1]):
                    making.preview = self._preview(progress)
                    looked[:] = began, time.monotonic() - began

            for made in self.pipe.make_batches(
                jobs, on_step=on_step, should_stop=making.stopped.is_set
            ):
                batch = [jobs[number] for number in made]
                paths = self.pipe.save(batch, list(made.values()), self.folder)
                for number, path in zip(made, paths, strict=True):
                    larger = self._larger(path, made[number])
                    shown[number] = PageImage(path, larger, jobs[number], made[number].flagged)
            return shown
        finally:
            self.making = None
            self.alone.release()

    def twins(self, jobs: list[Job]) -> list[Job]:
        """The same jobs with the plain phrases in place of the concepts."""
        plain = self.pipe.vocabulary.with_initializers
        return [dataclasses.replace(job, prompt=plain(job.prompt)) for job in jobs]

    def _preview(self, progress: StepInfo) -> Image.Image:
        """What the latents of up to four images show so far, side by side."""
        latents = progress.latents[:4]
        # Some samplers keep latents as large as their noise level; pictures have a spread of 1.
        latents = latents / latents.std().clamp(min=1)
        pixels = decode(self.pipe.model.vae, latents)
        pictures = self.pipe.diffusers_pipeline.image_processor.postprocess(pixels)
        width, height = pictures[0].size
        strip = Image.new("RGB", (len(pictures) * width, height))
        for k, picture in enumerate(pictures):
            strip.paste(picture, (k * width, 0))
        factor = max(1, LARGER // strip.width)
        return strip.resize((strip.width * factor, strip.height * factor))

    def _larger(self, path: Path, made: GeneratedImage) -> Path | None:
        """A copy of a small image at a whole multiple of its size, with the same settings."""
        width, height = made.image.size
        factor = LARGER // max(width, height)
        if factor < 2:
            return None
        record = png.read_record(path)
        size = (width * factor, height * factor)
        larger = path.with_stem(f"{path.stem}-{size[0]}x{size[1]}")
        picture = made.image.resize(size, Image.Resampling.LANCZOS)
        larger.write_bytes(png.encode(picture, record))
        return larger

    def sheet(
        self, shown: dict[int, PageImage], columns: list[str], rows: list[str], title: str
    ) -> Path:
        """A contact sheet of a grid that may have holes; its file."""
        size = next(Image.open(s.path).size for s in shown.values())
        cells = []
        for number in range(len(columns) * len(rows)):
            one = shown.get(number)
            if one is None:
                cells.append(contact_sheets.notice("not made", size))
            elif one.flagged:
                cells.append(contact_sheets.notice("flagged by the safety checker", size))
            else:
                with Image.open(one.path) as image:
                    cells.append(image.convert("RGB"))
        width = len(columns)
        picture = contact_sheets.sheet(
            [cells[k : k + width] for k in range(0, len(cells), width)],
            rows,
            columns if any(columns) else None,
            title,
        )
        path = self.folder / f"grid-{time.time_ns()}.png"
        picture.save(path)
        return path

    # ---- an image's settings back into the form ----------------------------------------------

    def settings(self, path: str | Path) -> tuple[Job, list[str]]:
        """The job of an image of ours, and what makes it come out differently here.

        Raises:
            UserError: no settings of ours inside, or such as this page does not take.
        """
        record = png.read_record(Path(path))
        if not isinstance(record, dict):
            raise UserError(
                f"{Path(path).name} holds no settings of detsd; drop a PNG file that it wrote "
                "(image editors and chat programs strip them)"
            )
        try:
            job = checked_job(self.pipe, *itemgetter(*FIELDS)(record))
            model = record["model"]["pretrained_model_name_or_path"]
            rows = {name: c["sha256"] for name, c in record["concepts"].items()}
        except (KeyError, TypeError, AttributeError, ValueError):
            raise UserError(
                f"{Path(path).name} holds settings that cannot be read; drop another one"
            ) from None
        notes = []
        if model != self.pipe.model.name:
            notes.append(f"it was made on {model}, this is {self.pipe.model.name}")
        here = self.pipe.concept_fingerprints(f"{job.prompt} {job.negative_prompt}")
        for name, digest in rows.items():
            if name not in here:
                notes.append(f"its concept {name} is not loaded")
            elif here[name]["sha256"] != digest:
                notes.append(f"its concept {name} had other rows than the one loaded here")
        return job, notes
