"""A grid of images: prompts x negative prompts x schedulers x steps x guidance scales x seeds.

    Grid(config, run).generate()

The jobs are numbered. Jobs with the same steps, scheduler and size form batches, which depend only
on the grid and the batch size. Ranks get batches as they become free; the chief keeps the images.
The stored images themselves record which jobs are finished, so a run needs nothing else to resume
after a pause or a crash, or on another number of processes.
"""

import dataclasses
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from detsd.concepts.prompts import misspelled_concepts
from detsd.concepts.reading import find_concepts
from detsd.concepts.source import is_word
from detsd.config import GenerateConfig, ModelConfig, flat
from detsd.generate.shards import read_manifest, stored_images
from detsd.generate.sheets import ContactSheet, sheet_layout
from detsd.generate.store import ImageStore
from detsd.generate.work_queue import WorkQueue
from detsd.models.base import Conditioning
from detsd.models.loading import pick_dtype
from detsd.models.spec import fetch_vocabulary
from detsd.models.vae import pinned
from detsd.runs.folder import DICT_FILE, MANIFEST, RunFolder, read_metadata
from detsd.runs.ranks import package_versions
from detsd.runs.run import Run
from detsd.sampling.jobs import GeneratedImage, Job, StepInfo, batches, grid_jobs
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.utils import png
from detsd.utils.errors import UserError, one_line
from detsd.utils.memory import fitting_batch_size
from detsd.utils.pictures import read_picture
from detsd.utils.plurals import counted, verb
from detsd.utils.progress import Bar, Phase, spinner, status

logger = logging.getLogger("detsd")

MAX_PROMPTS = 64  # encoded before the first image; in Stable Diffusion, faster than one step


class Grid:
    """The pipeline, jobs and finished images of one grid."""

    def __init__(
        self,
        config: GenerateConfig,
        run: Run,
        prepare: Callable[[DetSDTextualInversionPipeline], list[Job]] | None = None,
        layout: Callable[[list[Job]], list[ContactSheet]] = sheet_layout,
        on_complete: Callable[[], None] | None = None,
    ):
        """Load the model and find the images that already exist.

        Args:
            prepare: adds further concepts, and returns jobs to use instead of `config.grid`.
            layout: returns the contact sheets of the jobs.
            on_complete: called on the chief when all images exist, before the last checkpoint.
        """
        self.config, self.run = config, run
        run.assert_equal_across_ranks(
            configuration=flat(dataclasses.asdict(config)),
            package_versions=package_versions(),
            precision={"dtype": str(pick_dtype(config.model.precision, run.ranks.device))},
        )
        made_by = self._stored_model()
        m = dataclasses.replace(
            config.model,
            revision=config.model.revision or made_by.get("revision"),
            vae=pinned(config.model.vae, made_by.get("vae")),
        )
        self._uuids = [*config.concepts.uuids, *run.model_uuids(config.concepts.models)]
        # Done before the weights are downloaded, if the tokenizer is available on its own.
        spelling_checked = run.is_chief and self._warn_of_spelling(m)
        self.pipeline = self._load(m)
        if run.folder_is_kept:
            RunFolder(run.folder).check_no_finetuning()
        self.source = self._load_source()
        model = self.pipeline.model
        self.jobs = prepare(self.pipeline) if prepare else grid_jobs(config.grid, model.image_size)
        section = "evaluation" if prepare else "grid"
        self.pipeline.check(self.jobs, section)
        learned = self.pipeline.concept_fingerprints(" ".join(self.pipeline.concepts))
        run.assert_equal_across_ranks(
            base_model={"commit": model.commit, "vae": model.vae_name},
            concepts={name: found["sha256"] for name, found in learned.items()},
        )
        spelling, shown = not spelling_checked, run.is_chief
        self.pipeline.warnings.log(self.jobs, spelling, section, shown)
        self.batch_size = self._batch_size()
        self.batches = batches(self.jobs, self.batch_size)
        self.pad_batch_to = self.batch_size if config.output.fill_batches else 1
        if self.pad_batch_to == 1 and not config.output.batch_size and run.ranks.size == 1:
            # Two images first, to show early what the grid will look like: a batch of 16 took 6 of
            # the demo's 11 s.
            first, *others = self.batches
            self.batches = [part for part in (first[:2], first[2:], *others) if part]
        self.encodings: dict[tuple, Conditioning] = {}
        self._calls: dict[tuple, list[bool]] = {}  # of the UNet, by `Job.batch_key`
        self.numbers = list(range(len(self.jobs)))  # of the images' files
        self.store: ImageStore | None = None  # on the chief
        run.begin()
        if run.is_chief:
            self.store = ImageStore(
                run, config, self.jobs, self.settings, self.source,
                config.output.checkpoint_freq * self.batch_size * run.ranks.size,
                layout=layout, on_complete=on_complete,
            )  # fmt: skip
        problem, self.numbers = run.ranks.allgather(
            (self.store.problem, self.store.numbers) if self.store else None
        )[0]
        if problem:
            raise UserError(problem)

    # ---- the model ---------------------------------------------------------------------------

    def _stored_model(self) -> dict[str, Any]:
        """Return the model that made the images stored so far, with the hub's commits, if any."""
        manifest = self.run.latest / MANIFEST if self.run.latest else Path()
        if manifest.is_file():
            stored = read_manifest(manifest)
        else:
            stored = (record for _, record in stored_images(self.run.folder))
        first = next(stored, {})
        return first.get("model", {})

    def _warn_of_spelling(self, model: ModelConfig) -> bool:
        """Warn of misspelled concepts without the model's weights; False without a tokenizer."""
        sources = [*self.config.concepts.files, *(f"uuid:{uuid}" for uuid in self._uuids)]
        if self.run.latest and (self.run.latest / DICT_FILE).is_file():
            sources.append(str(self.run.latest))
        names = [concept.name for source in sources for concept in find_concepts(source)[0]]
        if not names:
            return True
        tokens = fetch_vocabulary(model)
        texts = dict.fromkeys(self.config.grid.prompts + self.config.grid.negative_prompts)
        for text in texts if tokens else ():
            for warning in misspelled_concepts(text, names, lambda word: is_word(word, tokens)):
                logger.warning("%s", warning)
        return bool(tokens)

    def _load(self, model: ModelConfig) -> DetSDTextualInversionPipeline:
        """Load the model and the configured concepts."""
        loading = spinner(f"loading {model.pretrained_model_name_or_path}")
        # One rank of each node downloads; the others then find the files.
        with loading, self.run.ranks.local_main_process_first():
            return DetSDTextualInversionPipeline.from_pretrained(
                **dataclasses.asdict(model),
                device=self.run.ranks.device,
                concepts=self.config.concepts.files,
                uuids=self._uuids,
            )

    def _load_source(self) -> str:
        """Load the concepts of the checkpoint that the experiment forks; return its uuid, or "".

        A restarted trial gets its own checkpoint instead, so that one also holds these concepts.
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

    # ---- the loop ----------------------------------------------------------------------------

    def _batch_size(self) -> int:
        """Return how many images every rank makes at once. Collective."""
        size, model = self.config.output.batch_size, self.pipeline.model
        if not size:
            first = self.jobs[0]
            size = fitting_batch_size(model.device, model.dtype, first.width, first.height)
            if not self.config.output.fill_batches:
                # Otherwise the first ranks would make all of a small grid.
                size = min(size, -(-len(self.jobs) // self.run.ranks.size))
        return min(self.run.gather([size]))

    def settings(self, number: int) -> dict[str, Any]:
        """Return the settings of a job, as stored in its file."""
        return {"job": self.numbers[number], **self.pipeline.settings(self.jobs[number])}

    def generate(self) -> bool:
        """Make the missing images; return False if stopped early, with the finished ones stored."""
        store, todo = self.store, self._todo()
        if store:
            if store.finished:
                count = len(store.finished)
                exist = f"already {verb('exist', count)}"
                self.run.print(f"{count} of {counted(len(self.jobs), 'image')} {exist}")
            store.begin()
        texts = {(job.prompt, job.negative_prompt) for job in self.jobs}
        if (todo or not store) and len(texts) <= MAX_PROMPTS:  # only the chief knows `todo`
            with spinner("encoding the prompts", log=False):
                self.pipeline.sampler.encode_all(self.jobs, self.encodings)
        phases = self._phases([number for numbers, _ in todo for number in numbers])
        # The encoder's thread makes 16 PNG files of 512 pixels a second, or 5 of 1024.
        with Bar(phases, self._count()) as bar, ThreadPoolExecutor(1) as encoder:

            def add(files: list[tuple[int, dict[str, Any], bytes]]) -> bool:
                more = store.add(files)
                if store.received < len(self.jobs) or not bar.disable:
                    bar.draw(text=self._count())
                return more

            with WorkQueue(self.run, todo, add) as queue:
                for numbers, length in queue:
                    images = self._make(numbers, length, bar)
                    queue.submit(encoder.submit(self._encode, images))
            if not store:
                return not queue.stopped
            complete = store.finish()
            if bar.disable and store.received > store.resumed_count:
                status(self._count())
            return complete

    def _todo(self) -> list[tuple[list[int], int]]:
        """Return each batch's missing jobs, and its length, in the order to make the batches."""
        store, todo = self.store, []
        if store and store.grown:  # its images were made in other batches
            missing = [n for n in range(len(self.jobs)) if n not in store.finished]
            for batch in batches([self.jobs[n] for n in missing], self.batch_size):
                todo.append(([missing[k] for k in batch], self.pad_batch_to))
        elif store:
            for batch in self.batches:
                if missing := [number for number in batch if number not in store.finished]:
                    todo.append((missing, max(len(batch), self.pad_batch_to)))
        if self.run.ranks.size > 1:  # longest first: short ones fill the gaps at the end
            todo.sort(key=lambda task: -self.jobs[task[0][0]].num_inference_steps * task[1])
        return todo

    def _phases(self, numbers: list[int]) -> dict[str, Phase]:
        """Return the denoising steps of jobs, with guidance and without; costs in UNet passes."""
        phases = {"guided": Phase(2), "plain": Phase(1)}
        for number in numbers:
            for call in self._guided_calls(number):
                phases["guided" if call else "plain"].total += 1
        return phases

    def _guided_calls(self, number: int) -> list[bool]:
        """Return whether each call of the UNet for a job is guided."""
        job = self.jobs[number]
        if job.batch_key not in self._calls:
            self._calls[job.batch_key] = self.pipeline.guided_calls(job)
        return self._calls[job.batch_key]

    def _count(self) -> str:
        """Return how many images are done, and how fast they are made."""
        store = self.store
        text = f"{store.received if store else 0}/{counted(len(self.jobs), 'image')}"
        return f"{text}, {store.rate:.2f} images/s" if store and store.rate else text

    def _make(self, numbers: list[int], length: int, bar: Bar) -> dict[int, GeneratedImage]:
        """Make the images of some jobs of a batch.

        If part of the batch is already stored, it is padded with its last job: equal shapes run
        equal kernels, so the missing images get the pixels they would have had.
        """
        guided = self._guided_calls(numbers[0])

        def on_step(now: StepInfo) -> None:
            phase = "guided" if guided[now.step - 1] else "plain"
            # Assumes that the other ranks are as fast.
            bar.done(phase, len(now.numbers) * self.run.ranks.size)

        images = self.pipeline.make(
            [self.jobs[n] for n in numbers],
            max_batch_size=self.batch_size,
            pad_batch_to=length,
            encodings=self.encodings,
            on_step=on_step,
        )
        return dict(zip(numbers, images, strict=True))

    def _encode(self, images: dict[int, GeneratedImage]) -> list[tuple[int, dict[str, Any], bytes]]:
        """Return job, "flagged" and "batch_size", and PNG file of a batch's images."""
        files = []
        for number, made in images.items():
            file = self.pipeline.encode(made, self.settings(number) | made.how)
            files.append((number, made.how, file))
        return files


def compare(again: Path, original: Path) -> str:
    """Return a sentence on how the pixels of a remade image differ from the original's."""
    a = read_picture(again)
    try:
        b = read_picture(original)
    except Exception as error:  # broken files raise a dozen classes
        return f"the pixels of {original} cannot be read ({one_line(error)})"
    if a.size != b.size:
        return f"a different size than {original}: {a.size} instead of {b.size}"
    difference = abs(np.asarray(a.rgb, int) - np.asarray(b.rgb, int))
    if not difference.any():
        return f"the same pixels as {original}"
    share = (difference.max(2) > 0).mean()
    was, now = ((png.read_record(path) or {}).get("concepts", {}) for path in (original, again))
    others = [name for name, c in was.items() if now.get(name, {}).get("sha256") != c["sha256"]]
    reason = f"; it was made with other vectors of {' and '.join(others)}" if others else ""
    return (
        f"{share:.1%} of the pixels of {original} differ, by at most {difference.max()} of 255"
        + reason
    )
