"""The images of a grid on its chief: files, progress, TensorBoard, contact sheets, checkpoints."""

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from detsd.config import GenerateConfig
from detsd.generate.numbering import Numbering
from detsd.generate.shards import (
    FolderImages,
    ShardedCheckpoints,
    image_path,
    manifest_line,
    worth_saving,
)
from detsd.generate.sheets import ContactSheet, ContactSheets, sheet_layout
from detsd.runs.folder import SHEETS
from detsd.runs.run import Run
from detsd.runs.tensorboard import image_tags
from detsd.sampling.jobs import Job
from detsd.utils import contact_sheets, png, progress
from detsd.utils.errors import UserError
from detsd.utils.paths import atomic_write
from detsd.utils.plurals import counted

logger = logging.getLogger("detsd")

MAX_TAGS = 2000  # TensorBoard becomes unusable with more images under a tag each

MAX_PENDING = 512  # images that may wait to be written, in the chief's memory


def _image_name(job: Job) -> tuple[str, ...]:
    settings = f"guidance {job.guidance_scale:.15g}, {counted(job.num_inference_steps, 'step')}"
    settings += f", {job.scheduler_name}"
    settings += f", not {job.negative_prompt}" if job.negative_prompt else ""
    return job.prompt, settings, f"seed {job.seed}"


class ImageStore:
    """The images of a grid on its chief.

    Attributes:
        finished: "flagged" and "batch_size" of each stored image, by job.
        numbers: the number of each job's image in its file's name. It is the job's place in the
            grid, except in a grid that has grown, where old images keep theirs.
        grown: True if there are images of a smaller grid, which were numbered differently.
        problem: a sentence on why the grid's images cannot be stored here; "" if they can.
        received: the number of images stored or waiting to be.
        resumed_count: images that were stored by earlier runs.
    """

    def __init__(
        self,
        run: Run,
        config: GenerateConfig,
        jobs: list[Job],
        settings: Callable[[int], dict[str, Any]],
        source: str,
        save_every: int,
        *,
        layout: Callable[[list[Job]], list[ContactSheet]] = sheet_layout,
        on_complete: Callable[[], None] | None = None,
    ):
        """Find the images that already exist.

        Args:
            settings: returns the settings of a job.
            source: uuid of the checkpoint that the concepts came from, or "".
            save_every: images between two checkpoints.
            layout: returns the contact sheets of the jobs; each job is on one.
            on_complete: called when all images exist; on a cluster, the last checkpoint includes
                the files that it writes.
        """
        self.run, self.config, self.jobs, self.settings = run, config, jobs, settings
        self.source, self.save_every = source, save_every
        self.folder = run.folder / "images"
        self.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / SHEETS).mkdir(exist_ok=True)
        self.finished: dict[int, dict[str, Any]] = {}
        self.problem = ""
        self._numbering = Numbering(len(jobs), settings)
        storage = FolderImages if run.folder_is_kept else ShardedCheckpoints
        self._storage = storage(run, self.path, self._manifest_line, config)
        self._storage.find(self._found)
        self.numbers = self._numbering.numbers()
        if self._numbering.problem:
            self.problem = f"{self._numbering.problem}; {run.begin_anew}"
        self.grown = any(number != job for job, number in enumerate(self.numbers))
        self.received = self.resumed_count = len(self.finished)
        self._new: list[int] = []  # jobs whose images no checkpoint holds
        # As PNG, sheets of small images would take more bytes than the images do.
        kind, sheets = "jpg" if len(jobs) > MAX_TAGS else "png", layout(jobs)
        paths = [run.folder / SHEETS / f"sheet-{k:03d}.{kind}" for k in range(len(sheets))]
        self._sheets = ContactSheets(sheets, paths, self.image, run.log_image)
        for number in self.finished:
            self._sheets.add(number)
        choice = config.output.tensorboard
        self.logs_each = choice == "images" or (choice == "auto" and len(jobs) <= MAX_TAGS)
        self._tags = image_tags([_image_name(job) for job in jobs] if self.logs_each else [])
        # One thread writes in the order of arrival, while the chief makes images.
        self._writer = ThreadPoolExecutor(1)
        self._writing: deque[Future] = deque()
        self._on_complete = on_complete
        self._start_clock()

    def _start_clock(self) -> None:
        self._began = self._arrived = self._due = self._saved = time.monotonic()
        self._reported = self._began, self.received  # time and images of the last rate

    def path(self, number: int) -> Path:
        """Return the file of a job's image."""
        return image_path(self.run.folder, self.numbers[number])

    def _found(self, record: dict[str, Any], name: str) -> int | None:
        """Return the job of a stored image, and note how it was made."""
        job = self._numbering.match(record, name)
        if job is not None:
            self.finished[job] = {key: record[key] for key in ("flagged", "batch_size")}
        return job

    def begin(self) -> None:
        """Start the clock; add stored images that may be missing to TensorBoard and to sheets."""
        self._start_clock()
        if self.logs_each:
            for number in self._storage.recent_images:
                self._log(number)
        else:
            self.run.print(
                f"TensorBoard gets contact sheets instead of {len(self.jobs)} single images "
                f"(output.tensorboard: {self.config.output.tensorboard}; auto does so above "
                f"{MAX_TAGS})"
            )
        for index in self._sheets.complete:
            path = self._sheets.paths[index]
            if not self._storage.has_sheet(path, self._sheets.sheets[index].numbers):
                self._sheets.draw(index)
            elif path.name in self._storage.recent_sheets:
                self._sheets.log(index)

    # ---- new images --------------------------------------------------------------------------

    def add(self, files: list[tuple[int, dict[str, Any], bytes]]) -> bool:
        """Store images: job, "flagged" and "batch_size", PNG file; False while no more fit."""
        self.received += len(files)
        if files:
            self._arrived = time.monotonic()
            self._writing.append(self._writer.submit(self._write, files))
        # Not between two batches, when nothing has arrived and the speed would be zero.
        if files and time.monotonic() - self._due >= progress.LINE:
            self._due = time.monotonic()
            self._writing.append(self._writer.submit(self._report))
        while self._writing and self._writing[0].done():
            self._writing.popleft().result()  # raises the writer's error
        return self.received - len(self.finished) < MAX_PENDING

    def _write(self, files: list[tuple[int, dict[str, Any], bytes]]) -> None:
        for number, how, content in files:
            path = self.path(number)
            with atomic_write(path) as staging:
                staging.write_bytes(content)
            self.finished[number] = how
            self._new.append(number)
            if how["flagged"]:
                job = self.jobs[number]
                logger.warning(
                    "%s is black: the model's safety checker flagged it (prompt %r, seed %d)",
                    path, job.prompt, job.seed,
                )  # fmt: skip
            if self.logs_each:
                self._log(number)
            completed = self._sheets.add(number)
            if completed is not None:
                self._sheets.draw(completed)
        if self._is_due() and len(self.finished) < len(self.jobs):
            self._save()

    def _is_due(self) -> bool:
        """Return True if there are enough images, or enough time, since the last checkpoint."""
        new, count = len(self._new), len(self.finished)
        late = time.monotonic() - self._saved >= self.config.output.checkpoint_seconds
        return new >= self.save_every or (late and worth_saving(new, count, self.run.keeps))

    def finish(self) -> bool:
        """Store all images received; return True if the grid is complete."""
        while self._writing:
            self._writing.popleft().result()
        self._writer.submit(self._finish).result()
        self._writer.shutdown()
        self._sheets.close()
        return len(self.finished) == len(self.jobs)

    def _finish(self) -> None:
        if self._on_complete and len(self.finished) == len(self.jobs):
            self._on_complete()
        self._save(last=True)
        self._report(last=True)

    def _save(self, last: bool = False) -> None:
        """Store the new images and the finished sheets."""
        self._report()
        count = len(self.finished)
        metadata = {
            "kind": "generate",
            "config": dataclasses.asdict(self.config),
            "models": dict(self.run.models),
            "complete": count == len(self.jobs),
            "source": self.source,
            "images": count,
        }
        # Drawing takes longer than writing: waiting for it would hold up new images.
        sheets = self._sheets.drawn(wait=count == len(self.jobs))
        self._storage.save(self._new, sheets, metadata, last)
        self._new, self._saved = [], time.monotonic()
        self.run.flush()

    def _manifest_line(self, number: int) -> str:
        record = self.settings(number) | {"job": self.numbers[number]} | self.finished[number]
        name = f"{self.folder.name}/{self.path(number).name}"
        return manifest_line({"file": name, **record})

    # ---- what is shown -------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """The images per second from the start to the last arrival; 0 before any."""
        seconds = self._arrived - self._began
        return (self.received - self.resumed_count) / seconds if seconds else 0.0

    def _report(self, last: bool = False) -> None:
        """Report progress, and the rate since the last report, or, at the end, of all images."""
        count, now = self.received, time.monotonic()
        since, before = (self._began, self.resumed_count) if last else self._reported
        if now - since < 1 and not last:
            return
        if count > self._reported[1]:
            rate = (count - before) / max(now - since, 1e-9)
            self.run.report(count, {"images_per_second": rate})
            self._reported = now, count
        self.run.report_progress(count / len(self.jobs))

    def _log(self, number: int) -> None:
        """Log an image under its own tag, so that TensorBoard's sampling hides none."""
        if self.finished[number]["flagged"]:
            data = png.encode(self.image(number))
        else:
            self._storage.fetch(number)
            data = self.path(number).read_bytes()
        self.run.log_image(self._tags[number], data)

    def image(self, number: int) -> Image.Image:
        """Return a stored image, or a tile with the reason if it is black."""
        if self.finished[number]["flagged"]:
            job = self.jobs[number]
            return contact_sheets.notice("flagged by the safety checker", (job.width, job.height))
        self._storage.fetch(number)
        found = png.read(path := self.path(number))
        if found is None:
            raise UserError(f"{path} is damaged; delete it and run the same command again")
        return found
