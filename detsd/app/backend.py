"""The model behind the demo page, its concepts, and one queue of images.

    for generation in Backend(pipe, folder).generate(jobs):
        print(generation.text, len(generation.images))

All visitors of the page share it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from PIL import Image

from detsd.app import pictures
from detsd.concepts.model_words import ModelVocabulary
from detsd.concepts.prompts import without_syntax
from detsd.concepts.reading import read_concepts, word_in_file
from detsd.concepts.source import ConceptSource
from detsd.data.folder import list_images
from detsd.runs.folder import finetuning_metadata
from detsd.sampling.jobs import Job, StepInfo
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.sampling.warnings import JobWarnings
from detsd.utils.errors import UserError
from detsd.utils.paths import resolve
from detsd.utils.plurals import counted

EXAMPLES = (
    "a photo of a {} on a white background",
    "a watercolor painting of a {} on a night sky",
    "an oil painting of a {} on ocean waves",
    "a neon picture of a {} on a brick wall",
)

STYLE_EXAMPLES = (
    "a cat in the style of {}",
    "a red star in the style of {}",
    "a house on a night sky in the style of {}",
    "a tree on a white background in the style of {}",
)


@dataclass
class Generation:
    """The progress of some images, updated by the thread that makes them."""

    total: int
    images: dict[int, pictures.PageImage] = field(default_factory=dict)  # by the job's number
    preview: Image.Image | None = None
    share: float = 0.0  # of all denoising work
    step: tuple[int, int] = (0, 0)  # of the batch, and its last one
    began: float = 0.0
    done: bool = False

    @property
    def text(self) -> str:
        """The step, the images made, and the time left if it is known."""
        if not self.share:
            return "waiting for the model"
        text = "denoising step {} of {}".format(*self.step)
        if self.images:
            text += f", {len(self.images)} of {counted(self.total, 'image')} made"
        left = (time.monotonic() - self.began) * (1 - self.share) / self.share
        return f"{text}, {timedelta(seconds=round(left))} left" if left > 10 else text


class Backend:
    """A pipeline that many visitors use, one at a time.

    Args:
        pipe: the model with its concepts.
        folder: where images are kept.
        image_dirs: folders of training images, for concepts whose files do not name them.
        busy: returns the reason why nothing can be made now, or "".
        reads_paths: whether visitors may name files on this machine instead of uploading them.

    Attributes:
        hints: the words that the model knows; none if its folder does not list them.
    """

    def __init__(
        self,
        pipe: DetSDTextualInversionPipeline,
        folder: Path,
        image_dirs: dict[str, str] | None = None,
        busy: Callable[[], str] = lambda: "",
        reads_paths: bool = True,
    ):
        self.pipe, self.folder, self.busy = pipe, folder, busy
        self.reads_paths = reads_paths
        self.image_dirs = image_dirs or {}
        self.hints = ModelVocabulary.of(pipe.model.name) or ModelVocabulary(frozenset(), {})
        self._lock = threading.Lock()  # held by whatever uses or changes the model
        self._stop: threading.Event | None = None  # of the images being made

    # ---- concepts ----------------------------------------------------------------------------

    def facts(self, name: str) -> dict[str, Any]:
        """Return the image folder and kind of a concept from its fine-tuning; {} if unknown."""
        source = ConceptSource.parse(self.pipe.sources.get(name, ""))
        try:
            concepts = finetuning_metadata(source.path)["config"]["concepts"]
            names = concepts["concept_strs"]
            k = names.index(word_in_file(source, name)) if len(names) > 1 else 0
            return {key: concepts[key][k] for key in ("img_dirs", "learnable_properties")}
        except (KeyError, ValueError, IndexError, TypeError):
            return {}

    def training_images(self, name: str) -> list[Path]:
        """Return a concept's training images, if they are known and on this machine."""
        given = self.facts(name).get("img_dirs") or self.image_dirs.get(name)
        if not isinstance(given, str):
            return []
        folder = Path(resolve(given))
        # An untrusted checkpoint may name any folder; visitors see only those in this project.
        trusted = self.reads_paths or given == self.image_dirs.get(name)
        if not trusted and not folder.resolve().is_relative_to(Path.cwd()):
            return []
        return list_images(folder)

    def concepts(self) -> list[dict[str, Any]]:
        """Return the loaded concepts as plain values."""
        return [
            {
                "name": c.name,
                "vectors": c.num_vectors,
                "phrase": c.initializer,
                "source": self.pipe.sources.get(c.name, ""),
                "kind": self.facts(c.name).get("learnable_properties", ""),
                "training_pictures": len(self.training_images(c.name)),
            }
            for c in self.pipe.vocabulary.concepts()
        ]

    def load(self, text: str | None, file: Path | None = None) -> list[str]:
        """Load concepts by path, by a checkpoint's uuid or from an upload; return their words."""
        text = (text or "").strip()
        if not text and not file:
            raise UserError("nothing is named; give a path or a uuid, or upload a file")
        if text and file:
            raise UserError(f"{text!r} is named and a file is uploaded; remove one of them")
        if text and not self.reads_paths:
            raise UserError("this page loads only uploaded files; upload the concept's file")
        with self._lock:
            return self.pipe.load_concepts(text or file)

    def unload(self, name: str) -> None:
        """Remove a concept: its word regains its ordinary meaning."""
        with self._lock:
            self.pipe.unload(name)

    def reload(self, name: str) -> None:
        """Read a concept again from its source; the old one stays if that fails."""
        with self._lock:
            self.pipe.reload(name)

    def replace(self, path: Path) -> list[str]:
        """Load a run's concepts in place of those with the same words; return the words."""
        with self._lock:
            for concept in read_concepts(path):
                if concept.name in self.pipe.concepts:
                    self.pipe.unload(concept.name)
            return self.pipe.load_concepts(path)

    # ---- prompts -----------------------------------------------------------------------------

    def examples(self) -> list[str]:
        """Return prompts to click, with the concepts loaded last."""
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
        """Return the prompts whose words the model knows; all prompts if it knows none."""
        return tuple(t for t in texts if not self.hints.unknown(t.format(""))) or texts

    def warnings(self, jobs: list[Job]) -> list[str]:
        """Return the warnings about the settings of images, a sentence each."""
        found = JobWarnings(self.pipe.model)(jobs)  # a new instance: each reports a warning once
        for prompt in dict.fromkeys(job.prompt for job in jobs):
            plain = without_syntax(self.pipe.vocabulary.rewrite.without(prompt))
            if unknown := self.hints.unknown(plain):
                words = ", ".join(f"“{word}”" for word in unknown)
                found.append(
                    f"this model was never shown the word{'s'[: len(unknown) > 1]} {words}"
                )
        return list(dict.fromkeys(found))

    def no_baseline_reason(self, prompt: str) -> str:
        """Return why there is no prompt with initializers to compare with; "" if there is one."""
        if self.pipe.vocabulary.with_initializers(prompt) != prompt:
            return ""
        loaded = ", ".join(self.pipe.concepts) or "none is loaded"
        return f"there is nothing to compare with, since the prompt names no concept ({loaded})"

    def baselines(self, jobs: list[Job]) -> list[Job]:
        """Return the same jobs with initializers in place of concepts; none without a concept."""
        prompts = [self.pipe.vocabulary.with_initializers(job.prompt) for job in jobs]
        pairs = zip(jobs, prompts, strict=True)
        return [replace(job, prompt=plain) for job, plain in pairs if plain != job.prompt]

    # ---- images ------------------------------------------------------------------------------

    def generate(self, jobs: list[Job], previews: bool = False) -> Iterator[Generation]:
        """Yield the progress of the images of jobs, four times a second and at the end.

        Closing the iterator stops after the current step; finished images are kept.
        """
        generation, stop = Generation(len(jobs)), threading.Event()
        pool = ThreadPoolExecutor(1)
        future = pool.submit(self._generate, jobs, generation, stop, previews)
        # gradio closes the iterator on its event loop, which must not wait for the step's end.
        pool.shutdown(wait=False)
        try:
            while wait([future], 0.25).not_done:
                yield generation
            future.result()
            generation.done = True
            yield generation
        finally:
            stop.set()

    def _generate(
        self, jobs: list[Job], generation: Generation, stop: threading.Event, previews: bool
    ) -> None:
        if not self._lock.acquire(timeout=60):  # longer than the last step of stopped images
            raise UserError("something else is being made; try again in a moment")
        try:
            if reason := self.busy():
                raise UserError(reason)
            self._stop, generation.began = stop, time.monotonic()
            last = [0.0, 0.0]  # when the last preview was begun, and how long it took

            def on_step(info: StepInfo) -> None:
                generation.share, generation.step = info.share, (info.step, info.steps)
                began = time.monotonic()
                # Decoding previews may take a tenth of the time.
                if previews and began - last[0] > max(0.5, 10 * last[1]):
                    generation.preview = pictures.preview(self.pipe, info.latents)
                    last[:] = began, time.monotonic() - began

            batches = self.pipe.sampler.make_batches(jobs, on_step=on_step, should_stop=stop.is_set)
            for made in batches:
                batch = [jobs[number] for number in made]
                saved = pictures.save(self.pipe, batch, list(made.values()), self.folder)
                generation.images = generation.images | dict(zip(made, saved, strict=True))
        finally:
            self._stop = None
            self._lock.release()

    def stop(self) -> bool:
        """Stop the images being made; return whether there were any."""
        if stop := self._stop:
            stop.set()
        return stop is not None
