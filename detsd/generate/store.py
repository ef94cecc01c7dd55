"""What a grid leaves behind, kept by its chief: images, contact sheets, TensorBoard, checkpoints.

Off cluster the folder is the store: the files say which images are there. On a cluster a checkpoint
holds the images made since the one before, and names those that hold the rest:

    images.zip      images/job-00000.png, ..., with their settings inside
    manifest.jsonl  a line of settings per image of this checkpoint
    sheets/         contact sheets that were drawn
    metadata.json   "shards": the uuids of the checkpoints that hold the other images;
                    "sheets": the names of its sheets

What they hold together grows as the images do. But an experiment keeps only as many of its latest
checkpoints as `checkpoint_storage.save_trial_latest` says: beyond half of these, a new one takes
over the images of the oldest that is needed, and with only one or two kept each holds all images.
No checkpoint waits for a contact sheet: one that is still being drawn comes with a later one,
and a run that goes on draws those that are complete and that none holds.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from detsd.config import GenerateConfig
from detsd.generate.shards import Shard, still_kept
from detsd.generate.sheets import ContactSheet, sheet_layout
from detsd.runs.folder import IMAGES, MANIFEST, METADATA, SHEETS, read_metadata
from detsd.runs.run import Run, pack, unpack
from detsd.sampling.jobs import Job
from detsd.utils import contact_sheets, png, progress
from detsd.utils.paths import atomic_write

logger = logging.getLogger("detsd")


MOST_TAGS = 2000  # TensorBoard becomes unusable with more images under a tag each


BEHIND = 512  # images that may wait to be written; their memory is the chief's


class ImageStore:
    """The images of a grid on its chief; complete when constructed.

    Attributes:
        finished: what shows of the making of each stored image ("flagged", "batch_size"), by job.
        problem: why this is no place for the grid's images, in a sentence; "" if it is one.
    """

    def __init__(
        self,
        run: Run,
        config: GenerateConfig,
        jobs: list[Job],
        record: Callable[[int], dict[str, Any]],
        source: str,
        save_every: int,
        layout: Callable[[list[Job]], list[ContactSheet]] = sheet_layout,
        on_complete: Callable[[], None] | None = None,
    ):
        """
        Args:
            record: the settings of a job, by its number.
            source: uuid of the checkpoint that the concepts came from, or "".
            save_every: images between two checkpoints.
            layout: the contact sheets of the jobs; each job stands on one.
        """
        self.run, self.config, self.jobs, self.record = run, config, jobs, record
        self.source, self.save_every = source, save_every
        self.folder = run.folder / "images"
        self.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / SHEETS).mkdir(exist_ok=True)
        self.finished: dict[int, dict[str, Any]] = {}
        self.shards: list[Shard] = []
        self.problem = ""
        if run.folder_is_kept:
            self._find_files()
        elif run.latest and run.latest_is_own:
            self._find_shards()
        self.received = self.begun_with = len(self.finished)
        self._new: list[int] = []  # jobs whose images no checkpoint holds
        self.pages = layout(jobs)
        self._place = {
            n: place
            for place, page in enumerate(self.pages)
            for n in itertools.chain.from_iterable(page.cells)
        }
        for number in self.finished:
            self.pages[self._place[number]].missing -= 1
        way = config.output.tensorboard
        self.each = way == "images" or (way == "auto" and len(jobs) <= MOST_TAGS)
        # One thread writes in the order of coming; others draw. The chief makes images meanwhile.
        self._writer, self._artists = ThreadPoolExecutor(1), ThreadPoolExecutor(4)
        self._writing: deque[Future] = deque()
        self._drawing: dict[int, Future] = {}
        self._fetching = threading.Lock()
        self._told = self._began = time.monotonic()
        self._arrived = self._began  # when the last images came
        self._reported = self._began, self.received  # when a rate was reported, and of how many
        # Called once all images are there; on a cluster the last checkpoint takes what it leaves.
        self._on_complete = on_complete or (lambda: None)

    # ---- what is there already -----------------------------------------------------------------

    def path(self, number: int) -> Path:
        """The file of a job's image."""
        return self.folder / f"job-{number:05d}.png"

    def _find_files(self) -> None:
        for path in sorted(self.folder.glob("job-*.png")):
            record = png.read_record(path)
            if record is None:  # cut short by a crash
                continue
            if path == self.path(record.get("job", -1)):  # else brought or renamed by hand
                self._found(record, str(path))

    def _find_shards(self) -> None:
        latest = self.run.latest
        metadata = read_metadata(latest)
        for uuid in [*metadata["shards"], self.run.latest_uuid]:
            shard = Shard(uuid, [])
            with tempfile.TemporaryDirectory() as name:
                folder = latest if uuid == self.run.latest_uuid else Path(name)
                try:
                    if folder != latest:
                        self.run.fetch(uuid, folder, lambda name: name in (MANIFEST, METADATA))
                    shard.sheets = read_metadata(folder).get("sheets", [])
                    lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
                except Exception as error:  # storage back ends raise what they like
                    logger.warning(
                        "checkpoint %s is gone (%s): its images are made again", uuid, error
                    )
                    continue
            for line in lines:
                record = json.loads(line)
                self._found(record, f"image {record['job']} of checkpoint {uuid}")
                shard.numbers.append(record["job"])
            self.shards.append(shard)
            if folder == latest:
                shard.sheets = self._copy_sheets(latest)

    def _found(self, record: dict[str, Any], name: str) -> None:
        number = record["job"]
        mine = self.record(number) if number < len(self.jobs) else {}
        other = [key for key in mine if record.get(key) != mine[key]]
        if mine and not other:
            self.finished[number] = {key: record[key] for key in ("flagged", "batch_size")}
        elif not self.problem:
            what = f"its {', '.join(other)} differ" if other else "it has no such job"
            self.problem = (
                f"{name} is an image of another grid than this one ({what}); give "
                "--output-dir a new folder, or start a new experiment"
            )

    def show_stored(self) -> None:
        """Put into TensorBoard what is stored and may not be there.

        Off cluster a run begins its event files anew. On a cluster a crash may have come between
        the storing of the latest checkpoint and the upload.
        """
        last = self.shards[-1] if self.shards else Shard("", [])
        if self.each:
            for number in sorted(self.finished) if self.run.folder_is_kept else last.numbers:
                self._log(number)
        else:
            self.run.print(
                f"TensorBoard gets contact sheets, not {len(self.jobs)} single images "
                f"(output.tensorboard: {self.config.output.tensorboard}; auto: above {MOST_TAGS})"
            )
        held = {name for shard in self.shards for name in shard.sheets}
        for place in (k for k, page in enumerate(self.pages) if not page.missing):
            path = self._sheet(place)
            if path.is_file() and (self.run.folder_is_kept or path.name in last.sheets):
                self._log_sheet(place)
            elif path.name not in held:
                self._drawing[place] = self._artists.submit(self._draw, place)

    # ---- what comes ----------------------------------------------------------------------------

    def take(self, files: list[tuple[int, dict[str, Any], bytes]]) -> bool:
        """Keep images: job, how it was made, PNG file. False while no more should come."""
        self.received += len(files)
        if files:
            self._arrived = time.monotonic()
            self._writing.append(self._writer.submit(self._write, files))
        # Not between two batches, where nothing has come and the speed would be none.
        if files and time.monotonic() - self._told >= progress.LINE:
            self._told = time.monotonic()
            self._writing.append(self._writer.submit(self._report))
        while self._writing and self._writing[0].done():
            self._writing.popleft().result()  # raises what went wrong
        return self.received - len(self.finished) < BEHIND

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
            if self.each:
                self._log(number)
            place = self._place[number]
            self.pages[place].missing -= 1
            if not self.pages[place].missing:
                self._drawing[place] = self._artists.submit(self._draw, place)
        if len(self._new) >= self.save_every and len(self.finished) < len(self.jobs):
            self._store()

    def finish(self) -> bool:
        """Store all that has come; whether that is all there is."""
        while self._writing:
            self._writing.popleft().result()
        self._writer.submit(self._finish).result()
        self._writer.shutdown()
        self._artists.shutdown(cancel_futures=True)  # of a stopped grid, who goes on draws them
        return len(self.finished) == len(self.jobs)

    def _finish(self) -> None:
        if len(self.finished) == len(self.jobs):
            self._on_complete()
        if self.run.folder_is_kept:
            self._drawn(wait=True)
            with (
                atomic_write(self.run.folder / MANIFEST) as staging,
                staging.open("w", encoding="utf-8") as file,
            ):
                file.writelines(map(self._manifest_line, sorted(self.finished)))
        self._store()
        self._report(last=True)

    # ---- what is told --------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """The images per second since the start, up to the last ones that came; 0 before any."""
        seconds = self._arrived - self._began
        return (self.received - self.begun_with) / seconds if seconds else 0.0

    def _report(self, last: bool = False) -> None:
        """Report progress, and the rate since the last report, or, at the end, of all images."""
        count, now = self.received, time.monotonic()
        since, before = (self._began, self.begun_with) if last else self._reported
        if now - since < 1 and not last:
            return
        if count > self._reported[1]:
            rate = (count - before) / max(now - since, 1e-9)
            self.run.report(count, {"images_per_second": rate})
            self._reported = now, count
        self.run.report_progress(count / len(self.jobs))

    def _log(self, number: int) -> None:
        """An image under a tag of its own, so that TensorBoard's sampling can hide none."""
        job = self.jobs[number]
        parts = [
            job.prompt,
            f"guidance {job.guidance_scale:g}, {job.num_inference_steps} steps, "
            f"{job.scheduler_name}"
            + (f", not {job.negative_prompt}" if job.negative_prompt else ""),
            f"seed {job.seed}",
        ]
        if self.finished[number]["flagged"]:
            data = png.encode(self.image(number))
        else:
            self._have(number)
            data = self.path(number).read_bytes()
        self.run.log_image("/".join(part.replace("/", "|") for part in parts), data)

    # ---- contact sheets ------------------------------------------------------------------------

    def _sheet(self, place: int) -> Path:
        # As PNG, those of small images would take more bytes than the images do.
        kind = "jpg" if len(self.jobs) > MOST_TAGS else "png"
        return self.run.folder / SHEETS / f"sheet-{place:03d}.{kind}"

    def _draw(self, place: int) -> None:
        page, path = self.pages[place], self._sheet(place)
        # As tiles at once: of large images no more than one is held.
        rows = [
            [contact_sheets.as_tile(self.image(n), page.count) for n in row] for row in page.cells
        ]
        picture = contact_sheets.sheet(rows, page.row_labels, page.column_labels, page.title)
        # The one is an option of PNG, the other of JPEG.
        png.save(picture, path, compress_level=1, quality=90)
        self._log_sheet(place)

    def _log_sheet(self, place: int) -> None:
        tag = f"sheets/{self.pages[place].title.replace('/', '|')}"
        self.run.log_image(tag, self._sheet(place).read_bytes())

    def image(self, number: int) -> Image.Image:
        """A stored image; in place of a black one, the reason."""
        if self.finished[number]["flagged"]:
            job = self.jobs[number]
            return contact_sheets.notice("flagged by the safety checker", (job.width, job.height))
        self._have(number)
        with Image.open(self.path(number)) as image:
            return image.convert("RGB")

    def _drawn(self, wait: bool) -> list[str]:
        """Names of the sheets that were drawn since this was last asked; of all, if it waits."""
        done = [place for place, future in self._drawing.items() if wait or future.done()]
        for place in done:
            self._drawing.pop(place).result()
        return [self._sheet(place).name for place in done]

    # ---- checkpoints ---------------------------------------------------------------------------

    def _have(self, number: int) -> None:
        """Bring the shard of an image here, where it is not."""
        with self._fetching:
            if not self.path(number).is_file():
                (shard,) = (s for s in self.shards if number in s.numbers)
                self._fetch(shard)

    def _fetch(self, shard: Shard) -> None:
        with tempfile.TemporaryDirectory() as name:
            self.run.fetch(shard.uuid, Path(name))
            unpack(Path(name) / IMAGES, self.run.folder)
            shard.sheets = self._copy_sheets(Path(name))

    def _copy_sheets(self, checkpoint: Path) -> list[str]:
        sheets = sorted((checkpoint / SHEETS).glob("sheet-*"))
        for sheet in sheets:
            shutil.copy(sheet, self.run.folder / SHEETS)
        return [sheet.name for sheet in sheets]

    def _store(self) -> None:
        """On a cluster, a checkpoint of the images that none holds yet."""
        self._report()
        if self.run.folder_is_kept or not self._new:
            self.run.flush()
            return
        count = len(self.finished)
        first = len(self.shards) - still_kept(len(self.shards), self.run.keeps)
        # Drawing takes longer than writing: to wait for it would hold up what comes meanwhile.
        numbers, sheets = list(self._new), self._drawn(wait=count == len(self.jobs))
        for shard in self.shards[:first]:
            if not all(self.path(n).is_file() for n in shard.numbers):
                with self._fetching:
                    self._fetch(shard)
            numbers += shard.numbers
            sheets += shard.sheets
        facts = {
            "kind": "generate",
            "config": dataclasses.asdict(self.config),
            "complete": count == len(self.jobs),
            "source": self.source,
            "images": count,
            "shards": [shard.uuid for shard in self.shards[first:]],
            "sheets": sheets,
        }

        def write(to: Path) -> None:
            pack(to / IMAGES, map(self.path, sorted(numbers)), self.run.folder)
            with (to / MANIFEST).open("w", encoding="utf-8") as file:
                file.writelines(map(self._manifest_line, sorted(numbers)))
            (to / SHEETS).mkdir(exist_ok=True)
            for name in sheets:
                shutil.copy(self.run.folder / SHEETS / name, to / SHEETS)
            for path in self.run.folder.glob("*.*"):  # concepts, and what `on_complete` has written
                shutil.copy(path, to)

        self.run.report(count, {"images": count}, "validation")
        uuid = self.run.store(count, facts, write)
        self.shards = [*self.shards[first:], Shard(uuid, numbers, sheets)]
        self._new = []
        self.run.flush()

    def _manifest_line(self, number: int) -> str:
        record = self.record(number) | self.finished[number]
        name = f"{self.folder.name}/{self.path(number).name}"
        return json.dumps({"file": name, **record}, ensure_ascii=False) + "\n"
