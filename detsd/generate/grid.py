"""A grid of images: prompts x negative prompts x schedulers x steps x guidance scales x seeds.

    Grid(config, run).generate()

The jobs are numbered; jobs that agree in steps, scheduler and size form batches, which are fixed by
the grid and the batch size. Ranks get batches as they come free, the chief keeps the images. What
is stored says which images are finished: nothing else has to be kept for a run to go on after a
pause, a crash or on another number of processes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detsd.concepts.prompts import misspelled_concepts, prompt_warnings
from detsd.concepts.reading import find_concepts
from detsd.concepts.source import is_word
from detsd.config import GenerateConfig, ModelConfig, flat
from detsd.generate.sheets import ContactSheet, sheet_layout
from detsd.generate.store import ImageStore
from detsd.generate.work_queue import WorkQueue
from detsd.models import support
from detsd.models.base import Conditioning
from detsd.models.loading import pick_dtype
from detsd.models.spec import fetch_vocabulary
from detsd.runs.folder import DICT_FILE, MANIFEST, RunFolder, read_metadata
from detsd.runs.ranks import package_versions
from detsd.runs.run import Run
from detsd.sampling.jobs import GeneratedImage, Job, batches, grid_jobs
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.utils import png
from detsd.utils.errors import UserError
from detsd.utils.memory import fitting_batch_size
from detsd.utils.progress import Bar, Phase, spinner, status

logger = logging.getLogger("detsd")


def _kind(job: Job) -> str:
    """Of the work of its denoising steps."""
    return "guided" if job.guidance_scale > 1 else "plain"


class Grid:
    """Pipeline, jobs and finished images of one grid; complete when constructed."""

    def __init__(
        self,
        config: GenerateConfig,
        run: Run,
        prepare: Callable[[DetSDTextualInversionPipeline], list[Job]] | None = None,
        layout: Callable[[list[Job]], list[ContactSheet]] = sheet_layout,
        on_complete: Callable[[], None] | None = None,
    ):
        """Load the model and find the images that are there already.

        Args:
            prepare: adds further concepts, and returns other jobs than those of `config.grid`.
            layout: the contact sheets of the jobs.
            on_complete: called on the chief when all images are there, before the last checkpoint.
        """
        self.config, self.run = config, run
        m = config.model
        run.assert_equal_across_ranks(
            configuration=flat(dataclasses.asdict(config)),
            package_versions=package_versions(),
            precision={"dtype": str(pick_dtype(m.precision, run.ranks.device))},
        )
        m = dataclasses.replace(m, revision=m.revision or self._commit())
        spelt = run.is_chief and self._warn_of_spelling(m)
        loading = spinner(f"loading {m.pretrained_model_name_or_path}")
        # One rank of each node downloads; the others then find the files.
        with loading, run.ranks.local_main_process_first():
            self.pipeline = DetSDTextualInversionPipeline.from_pretrained(
                m.pretrained_model_name_or_path,
                revision=m.revision,
                precision=m.precision,
                device=run.ranks.device,
                safety_checker=m.safety_checker,
                concepts=config.concepts.files,
                uuids=config.concepts.uuids,
            )
        if run.folder_is_kept:
            RunFolder(run.folder).check_no_finetuning()
        self.source = self._load_source()
        model = self.pipeline.model
        self.jobs = prepare(self.pipeline) if prepare else grid_jobs(config.grid, model.image_size)
        self.pipeline.check(self.jobs)
        learned = self.pipeline.concept_fingerprints(" ".join(self.pipeline.concepts))
        run.assert_equal_across_ranks(
            base_model={"commit": model.commit},
            concepts={name: found["sha256"] for name, found in learned.items()},
        )
        if run.is_chief:
            for text in self._texts():
                for warning in prompt_warnings(text, model.vocabulary, spelling=not spelt):
                    logger.warning("%s", warning)
        size = config.output.batch_size
        if not size:
            width, height = self.jobs[0].width, self.jobs[0].height
            size = fitting_batch_size(model.device, model.dtype, width, height)
            if not config.output.fill_batches:
                # Else the first ranks would make all of a small grid.
                size = min(size, -(-len(self.jobs) // run.ranks.size))
        self.limit = min(run.gather([size]))  # images made at once, from now on
        self.batches = batches(self.jobs, self.limit)
        self.fill_up_to = self.limit if config.output.fill_batches else 1
        self.encodings: dict[tuple, Conditioning] = {}
        self.album: ImageStore | None = None  # on the chief
        run.begin()
        if run.is_chief:
            every = config.output.checkpoint_freq * self.limit * run.ranks.size
            self.album = ImageStore(
                run, config, self.jobs, self.record, self.source, every, layout, on_complete
            )
        problem = run.ranks.allgather(self.album.problem if self.album else "")[0]
        if problem:
            raise UserError(problem)

    def _texts(self) -> list[str]:
        """The grid's prompts, each once."""
        return list(dict.fromkeys(self.config.grid.prompts + self.config.grid.negative_prompts))

    def _warn_of_spelling(self, model: ModelConfig) -> bool:
        """By the model's vocabulary, before its weights are fetched; whether that is to be had."""
        named = [*self.config.concepts.files, *(f"uuid:{u}" for u in self.config.concepts.uuids)]
        if self.run.latest and (self.run.latest / DICT_FILE).is_file():
            named.append(str(self.run.latest))
        names = [concept.name for source in named for concept in find_concepts(source)[0]]
        if not names:
            return True
        fetch_vocabulary(model)
        tokens = support.vocabulary(model)
        for text in self._texts() if tokens else []:
            for doubt in misspelled_concepts(text, names, lambda word: is_word(word, tokens)):
                logger.warning("%s", doubt)
        return bool(tokens)

    def _commit(self) -> str | None:
        """The hub's commit that the images stored so far are of, to go on with it; else None."""
        manifest = self.run.latest / MANIFEST if self.run.latest else Path()
        if manifest.is_file():
            with manifest.open(encoding="utf-8") as lines:
                return json.loads(next(lines))["model"]["revision"]
        stored = map(png.read_record, sorted((self.run.folder / "images").glob("job-*.png")))
        first = next(filter(None, stored), {})
        return first.get("model", {}).get("revision")

    def _load_source(self) -> str:
        """Load the concepts of the checkpoint that the experiment names as its source; its uuid.

        A restarted trial is handed its own checkpoint instead, so that this one carries them along.
        """
        latest = self.run.latest
        if not latest or not (latest / DICT_FILE).is_file():
            return ""
        own = self.run.latest_is_own
        uuid = read_metadata(latest)["source"] if own else self.run.latest_uuid
        for word in self.pipeline.load_concepts(latest):
            self.pipeline.sources[word] = f"uuid:{uuid}"
        if self.run.is_chief:
            shutil.copy(latest / DICT_FILE, self.run.folder)
        return uuid

    def record(self, number: int) -> dict[str, Any]:
        """The settings of a job, as they go into its file."""
        return {"job": number, **self.pipeline.settings(self.jobs[number])}

    # ---- the loop ----------------------------------------------------------------------------

    def generate(self) -> bool:
        """Make what is missing. False when stopped before the end, with all that is made stored."""
        album, encoder = self.album, ThreadPoolExecutor(1)
        if album:
            if album.finished:
                self.run.print(
                    f"{len(album.finished)} of {len(self.jobs)} images are there already"
                )
            album.show_stored()
        todo = self._todo() if album else []
        work = self._work([number for numbers, _ in todo for number in numbers])
        with Bar(work, self._count()) as self.bar, encoder:
            with WorkQueue(self.run, todo, self._take) as exchange:
                for numbers, length in exchange:
                    made = self._make(numbers, length)
                    exchange.hand_in(encoder.submit(self._encode, made))
            if not album:
                return not exchange.stopped
            done = album.finish()
            if self.bar.disable and album.received > album.begun_with:
                status(self._count())
            return done

    def _take(self, files: list[tuple[int, dict[str, Any], bytes]]) -> bool:
        more = self.album.take(files)
        if self.album.received < len(self.jobs) or not self.bar.disable:
            self.bar.draw(text=self._count())
        return more

    def _todo(self) -> list[tuple[list[int], int]]:
        """The missing jobs of each batch and its length, in the order of making."""
        todo = []
        for batch in self.batches:
            missing = [number for number in batch if number not in self.album.finished]
            if missing:
                todo.append((missing, max(len(batch), self.fill_up_to)))
        if self.run.ranks.size > 1:  # the long ones first: short ones fill up the ends
            todo.sort(key=lambda task: -self.jobs[task[0][0]].num_inference_steps * task[1])
        return todo

    def _work(self, numbers: list[int]) -> dict[str, Phase]:
        """The denoising steps of some jobs, with guidance and without; costs in passes."""
        kinds = {"guided": Phase(2), "plain": Phase(1)}
        for job in (self.jobs[n] for n in numbers):
            kinds[_kind(job)].total += job.num_inference_steps
        return kinds

    def _count(self) -> str:
        """The images that are there, and how fast they came."""
        album = self.album
        text = f"{album.received if album else 0}/{len(self.jobs)} images"
        return f"{text}, {album.rate:.2f} images/s" if album and album.rate else text

    def _make(self, numbers: list[int], length: int) -> dict[int, GeneratedImage]:
        """Images of some jobs of a batch.

        A batch of which a part is stored is filled up with its last job: the same shapes run the
        same kernels, so that the missing images get the pixels that they would have got.
        """
        made = self.pipeline.make(
            [self.jobs[n] for n in numbers],
            max_batch_size=self.limit,
            pad_batch_to=length,
            encodings=self.encodings,
            on_step=lambda now: self._on_step(numbers[0], len(now.numbers)),
        )
        return dict(zip(numbers, made, strict=True))

    def _on_step(self, number: int, count: int) -> None:
        """Move the bar by a step of so many images; as if the other ranks were as fast."""
        self.bar.done(_kind(self.jobs[number]), count * self.run.ranks.size)

    def _encode(self, made: dict[int, GeneratedImage]) -> list[tuple[int, dict[str, Any], bytes]]:
        """Job, how it was made, and PNG file, of a batch's images."""
        files = []
        for number, result in made.items():
            how = {"flagged": result.flagged, "batch_size": result.batch_size}
            files.append((number, how, png.encode(result.image, self.record(number) | how)))
        return files


def compare(again: Path, original: Path) -> str:
    """A sentence on how the pixels of an image made again differ from the original's."""
    with Image.open(again) as a, Image.open(original) as b:
        if a.size != b.size:
            return f"another size than {original}: {a.size} instead of {b.size}"
        difference = abs(np.asarray(a.convert("RGB"), int) - np.asarray(b.convert("RGB"), int))
    if not difference.any():
        return f"the same pixels as {original}"
    share = (difference.max(2) > 0).mean()
    was, now = (png.read_record(path)["concepts"] for path in (original, again))
    other = [
        f"; {name} in {c['source']} has other rows now than then"
        for name, c in was.items()
        if now.get(name, {}).get("sha256") != c["sha256"]
    ]
    return (
        f"{share:.1%} of the pixels of {original} differ, by {difference.max()} of 255 at most"
        + "".join(other)
    )
