"""A grid of images: prompts x negative prompts x schedulers x steps x guidance scales x seeds.

    Generator(config, run).generate()

The jobs are numbered; jobs that agree in steps, scheduler and size form batches, which are fixed by
the grid and the batch size. The ranks take batches in turn, the chief keeps the images. An image is
finished when its file is stored, and the files say which ones are: nothing else has to be kept for
a run to go on after a pause, a crash or on another number of processes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detsd import checks, images
from detsd.cluster import METADATA, Run, read_metadata
from detsd.config import GenerateConfig, GridConfig, flat
from detsd.denoise import Conditioning
from detsd.environment import packages
from detsd.errors import UserError
from detsd.formats import DICT_FILE
from detsd.memory import fitting_batch_size
from detsd.models import pick_dtype
from detsd.pipeline import DetSDTextualInversionPipeline, Job, Made, batches
from detsd.progress import Bar, Work, waiting

logger = logging.getLogger("detsd")

MANIFEST = "manifest.jsonl"


def grid_jobs(grid: GridConfig, size: int) -> list[Job]:
    """The product of the grid's lists, seeds fastest; `size` in pixels where it names none."""
    return [
        Job(
            prompt, seed, negative, scale, steps, scheduler, grid.width or size, grid.height or size
        )
        for prompt, negative, scheduler, steps, scale, seed in itertools.product(
            grid.prompts,
            grid.negative_prompts,
            grid.scheduler_names,
            grid.num_inference_steps,
            grid.guidance_scales,
            grid.all_seeds,
        )
    ]


def _kind(job: Job) -> str:
    """Of the work of its denoising steps."""
    return "guided" if job.guidance_scale > 1 else "plain"


class Generator:
    """Pipeline, jobs and finished images of one grid; complete when constructed."""

    def __init__(self, config: GenerateConfig, run: Run):
        self.config, self.run = config, run
        m = config.model
        run.agree(
            configuration=flat(dataclasses.asdict(config)),
            package_versions=packages(),
            precision={"dtype": str(pick_dtype(m.precision, run.ranks.device))},
        )
        loading = waiting(f"loading {m.pretrained_model_name_or_path}")
        # One rank of each node downloads; the others then find the files.
        with loading, run.ranks.local_chief_first():
            self.pipeline = DetSDTextualInversionPipeline.from_pretrained(
                m.pretrained_model_name_or_path,
                revision=m.revision or self._commit(),
                precision=m.precision,
                device=run.ranks.device,
                safety_checker=m.safety_checker,
                concepts=config.concepts.files,
                uuids=config.concepts.uuids,
            )
        if run.ranks.device.type == "cuda":
            # Decoding needs more memory than denoising; one image at a time it is bounded.
            self.pipeline.stock.vae.enable_slicing()
        if run.folder_is_kept:
            checks.check_grid_folder(run.folder)
        self.source = self._load_source()
        model = self.pipeline.model
        self.jobs = grid_jobs(config.grid, model.image_size)
        self.pipeline.check(self.jobs)
        self.records = [
            {"job": number, **self.pipeline.record(job)} for number, job in enumerate(self.jobs)
        ]
        learned = self.pipeline.identity(" ".join(self.pipeline.concepts))
        run.agree(
            base_model={"commit": model.commit},
            concepts={name: found["sha256"] for name, found in learned.items()},
        )
        if run.is_chief:
            texts = dict.fromkeys([*config.grid.prompts, *config.grid.negative_prompts])
            for doubt in (d for text in texts for d in self.pipeline.doubts(text)):
                logger.warning("%s", doubt)
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
        run.begin()
        self.folder = run.folder / "images"
        self.finished: dict[int, dict[str, Any]] = self._restore()
        self.begun_with = self.saved = len(self.finished)
        # Jobs whose images TensorBoard is known to have: a crash may come between the storing of a
        # checkpoint and the upload. Off cluster a run begins its event files anew.
        resumed = run.latest and run.latest_is_own
        self.shown = set(read_metadata(run.latest)["shown"]) if resumed else set()
        # One thread encodes and writes while the device makes the next batch.
        self.pool = ThreadPoolExecutor(1)
        self.encoding: Future | None = None
        self.writing: Future | None = None
        self.began = time.monotonic()

    def _commit(self) -> str | None:
        """The hub's commit that the images stored so far are of, to go on with it; else None."""
        stored = map(images.read_record, sorted((self.run.folder / "images").glob("job-*.png")))
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
        if self.run.is_chief and not own:
            shutil.copy(latest / DICT_FILE, self.run.folder)
        return uuid

    def path(self, number: int) -> Path:
        """The file of a job's image."""
        return self.folder / f"job-{number:05d}.png"

    def _restore(self) -> dict[int, dict[str, Any]]:
        """The records of the images that are stored already, by job, the same on every rank.

        Raises:
            UserError: an image of another grid.
        """
        found: dict[int, dict[str, Any]] = {}
        problem = ""
        if self.run.is_chief:
            if self.run.latest and self.run.latest_is_own:
                shutil.copytree(self.run.latest, self.run.folder, dirs_exist_ok=True)
                (self.run.folder / METADATA).unlink()
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(self.folder.glob("job-*.png")):
                record = images.read_record(path)
                if record is None:  # cut short by a crash
                    continue
                number = record.get("job", -1)
                if path != self.path(number):  # brought or renamed by hand
                    continue
                mine = self.records[number] if number < len(self.records) else {}
                other = [key for key in mine if record.get(key) != mine[key]]
                if (other or not mine) and not problem:
                    what = f"its {', '.join(other)} differ" if other else "it has no such job"
                    problem = (
                        f"{path} is an image of another grid than this one ({what}); give "
                        "--output-dir a new folder, or start a new experiment"
                    )
                found[number] = record
        problem, found = self.run.gather([(problem, found)])[0]
        if problem:
            raise UserError(problem)
        return found

    # ---- the loop ----------------------------------------------------------------------------

    def generate(self) -> bool:
        """Make what is missing. False when stopped before the end, with all that is made stored."""
        run = self.run
        todo = []  # (missing jobs, length of their batch)
        for batch in self.batches:
            missing = [number for number in batch if number not in self.finished]
            if missing:
                todo.append((missing, max(len(batch), self.fill_up_to)))
        mine = todo[run.ranks.rank :: run.ranks.size]
        rounds = -(-len(todo) // run.ranks.size)
        if self.finished:
            run.say(f"{len(self.finished)} of {len(self.jobs)} images are there already")
        self._log_stored()
        self.began = time.monotonic()
        work = self._work([number for missing, _ in mine for number in missing])
        with self.pool, Bar(work, self._count()) as self.bar:
            for number in range(rounds):
                made = self._make(*mine[number]) if number < len(mine) else {}
                self._hand_over()
                self.encoding = self.pool.submit(self._encode, made)
                stop = run.should_stop()
                last = number == rounds - 1
                if stop or last or (number + 1) % self.config.output.checkpoint_freq == 0:
                    self._hand_over()
                    self._save()
                if stop:
                    break
            if not rounds:
                self._save()
        return len(self.finished) == len(self.jobs)

    def _work(self, numbers: list[int]) -> dict[str, Work]:
        """The denoising steps of some jobs, with guidance and without; costs in passes."""
        kinds = {"guided": Work(2), "plain": Work(1)}
        for job in (self.jobs[n] for n in numbers):
            kinds[_kind(job)].total += job.num_inference_steps
        return kinds

    def _count(self) -> str:
        return f"{len(self.finished)}/{len(self.jobs)} images"

    def _make(self, numbers: list[int], length: int) -> dict[int, Made]:
        """Images of some jobs of a batch.

        A batch of which a part is stored is filled up with its last job: the same shapes run the
        same kernels, so that the missing images get the pixels that they would have got.
        """
        made = self.pipeline.make(
            [self.jobs[n] for n in numbers],
            at_once=self.limit,
            fill_up_to=length,
            encodings=self.encodings,
            look=lambda now: self.bar.done(_kind(self.jobs[numbers[0]]), len(now.numbers)),
        )
        return dict(zip(numbers, made, strict=True))

    def _encode(self, made: dict[int, Made]) -> list[tuple[dict[str, Any], bytes]]:
        """Records and PNG files of a batch."""
        files = []
        for number, result in made.items():
            how = {"flagged": result.flagged, "batch_size": result.batch_size}
            record = self.records[number] | how
            files.append((record, images.png(result.image, record)))
        return files

    def _hand_over(self) -> None:
        """Give the encoded images of all ranks to the chief, who writes them. Collective."""
        if self.encoding is None:
            return
        files = self.run.gather(self.encoding.result())
        self.encoding = None
        if self.writing:
            self.writing.result()  # raises what went wrong in writing
        if self.run.is_chief:
            self.writing = self.pool.submit(self._write, files)
        for record, _ in files:
            self.finished[record["job"]] = record
        self.bar.draw(text=self._count())
        self.run.report_progress(len(self.finished) / len(self.jobs))

    def _write(self, files: list[tuple[dict[str, Any], bytes]]) -> None:
        for record, content in files:
            path = self.path(record["job"])
            staging = path.with_suffix(".tmp")
            staging.write_bytes(content)
            os.replace(staging, path)  # what carries the name is whole
            if record["flagged"]:
                logger.warning(
                    "%s is black: the model's safety checker flagged it (prompt %r, seed %d)",
                    path,
                    record["prompt"],
                    record["seed"],
                )
            self._log(record)

    # ---- what is left behind -------------------------------------------------------------------

    def _log(self, record: dict[str, Any]) -> None:
        """An image under a tag of its own, so that TensorBoard's sampling can hide none."""
        job = self.jobs[record["job"]]
        parts = [
            job.prompt,
            f"guidance {job.guidance_scale:g}, {job.num_inference_steps} steps, "
            f"{job.scheduler_name}"
            + (f", not {job.negative_prompt}" if job.negative_prompt else ""),
            f"seed {job.seed}",
        ]
        pixels = np.asarray(self._tile(record))  # (H, W, 3) uint8
        tag = "/".join(part.replace("/", "|") for part in parts)
        self.run.writer.add_image(tag, pixels, dataformats="HWC")

    def _log_stored(self) -> None:
        """Put into TensorBoard what is stored and may not be there."""
        if self.run.is_chief:
            for number in sorted(self.finished.keys() - self.shown):
                self._log(self.finished[number])

    def _write_manifest(self) -> None:
        lines = [
            json.dumps({"file": f"images/{self.path(n).name}", **record}, ensure_ascii=False)
            for n, record in sorted(self.finished.items())
        ]
        staging = self.run.folder / f".{MANIFEST}"
        staging.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(staging, self.run.folder / MANIFEST)

    def _save(self) -> None:
        """Store all images so far. Collective."""
        run, count = self.run, len(self.finished)
        complete = count == len(self.jobs)
        if self.writing:
            self.writing.result()
            self.writing = None
        rate = (count - self.begun_with) / max(time.monotonic() - self.began, 1e-9)
        if run.is_chief:
            self._write_manifest()
            if complete:
                self._draw_sheets()
        if self.bar.disable and count > self.begun_with:
            run.say(f"{self._count()}, {rate:.2f} images/s")
        if not run.folder_is_kept and count > self.saved:
            facts = {
                "kind": "generate",
                "config": dataclasses.asdict(self.config),
                "complete": complete,
                "source": self.source,
                "shown": sorted(self.shown),
            }
            run.report(count, {"images_per_second": rate})
            run.report(count, {"images": count}, validation=True)
            run.save(count, facts, lambda to: shutil.copytree(run.folder, to, dirs_exist_ok=True))
            self.saved = count
        run.flush()
        self.shown = set(self.finished)

    def _draw_sheets(self) -> None:
        """A contact sheet per prompt, negative prompt and scheduler: seeds by settings."""
        folder = self.run.folder / "sheets"
        folder.mkdir(exist_ok=True)
        groups: dict[tuple, dict[tuple, int]] = {}
        for number, job in enumerate(self.jobs):
            group = (job.prompt, job.negative_prompt, job.scheduler_name)
            cell = (job.seed, job.num_inference_steps, job.guidance_scale)
            groups.setdefault(group, {})[cell] = number
        g = self.config.grid
        several_steps = len(g.num_inference_steps) > 1
        for k, ((prompt, negative, scheduler), cells) in enumerate(groups.items()):
            columns = list(itertools.product(g.num_inference_steps, g.guidance_scales))
            labels = [
                f"guidance {scale:g}" + (f", {steps} steps" if several_steps else "")
                for steps, scale in columns
            ]
            rows = [
                [self._tile(self.finished[cells[(seed, *column)]]) for column in columns]
                for seed in g.all_seeds
            ]
            title = prompt + (f"  —  not: {negative}" if negative else "")
            if len(g.scheduler_names) > 1:
                title += f"  —  {scheduler}"
            picture = images.sheet(rows, [f"seed {s}" for s in g.all_seeds], labels, title)
            picture.save(folder / f"sheet-{k:03d}.png")
            self.run.writer.add_image(
                f"sheets/{title.replace('/', '|')}", np.asarray(picture), dataformats="HWC"
            )

    def _tile(self, record: dict[str, Any]) -> Image.Image:
        """A stored image; in place of a black one, the reason."""
        if record["flagged"]:
            size = (record["width"], record["height"])
            return images.notice("flagged by the safety checker", size)
        with Image.open(self.path(record["job"])) as image:
            return image.convert("RGB")


def compare(again: Path, original: Path) -> str:
    """A sentence on how the pixels of an image made again differ from the original's."""
    with Image.open(again) as a, Image.open(original) as b:
        if a.size != b.size:
            return f"another size than {original}: {a.size} instead of {b.size}"
        difference = abs(np.asarray(a.convert("RGB"), int) - np.asarray(b.convert("RGB"), int))
    if not difference.any():
        return f"the same pixels as {original}"
    share = (difference.max(2) > 0).mean()
    was, now = (images.read_record(path)["concepts"] for path in (original, again))
    other = [
        f"; {name} in {c['source']} has other rows now than then"
        for name, c in was.items()
        if now.get(name, {}).get("sha256") != c["sha256"]
    ]
    return (
        f"{share:.1%} of the pixels of {original} differ, by {difference.max()} of 255 at most"
        + "".join(other)
    )
