"""The storage of a grid's images: a folder, or the checkpoints of a cluster.

Off cluster, the folder is the store: its files show which images exist. On a cluster, a checkpoint
holds the images made since the previous one, and names the checkpoints that hold the rest:

    images.zip      images/job-00000.png, ..., with their settings inside
    manifest.jsonl  a line of settings per image of this checkpoint
    sheets/         contact sheets that were drawn
    metadata.json   "shards": the uuids of the checkpoints that hold the other images;
                    "sheets": the names of its sheets

Their total size grows in proportion to the number of images. But an experiment keeps only its
latest `checkpoint_storage.save_trial_latest` checkpoints. Once half of these hold images, a new one
takes over the images of the oldest; if only one or two are kept, each holds all images. No
checkpoint waits for a contact sheet: a sheet still being drawn goes into a later checkpoint, and a
resumed run draws the sheets that are complete but in no checkpoint.
"""

import dataclasses
import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detsd.config import GenerateConfig, differences
from detsd.runs.download import download
from detsd.runs.folder import IMAGES, MANIFEST, METADATA, SHEETS, read_metadata
from detsd.runs.run import Run, pack, unpack
from detsd.utils import png
from detsd.utils.errors import UserError
from detsd.utils.paths import atomic_write, uuid_problem

logger = logging.getLogger("detsd")

Match = Callable[[dict[str, Any], str], int | None]  # settings and name of an image -> its job
PathOf, LineOf = Callable[[int], Path], Callable[[int], str]  # of a job: file, manifest line


def image_path(folder: Path, number: int) -> Path:
    """Return the file of image `number` in a run's folder."""
    return folder / "images" / f"job-{number:05d}.png"


def is_made(record: dict[str, Any]) -> bool:
    """Return whether an image's settings identify it and say how it was made."""
    kinds = {"job": int, "flagged": bool, "batch_size": int}
    return all(isinstance(record.get(k), kind) for k, kind in kinds.items()) and record["job"] >= 0


def stored_images(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the images of a run's folder with their settings.

    Files that a crash truncated or someone renamed do not count.
    """
    for path in sorted((folder / "images").glob("job-*.png")):
        record = png.read_record(path)
        if record and is_made(record) and path == image_path(folder, record["job"]):
            yield path, record


def read_manifest(path: Path) -> Iterator[dict[str, Any]]:
    """Read the settings of the images of a manifest."""
    try:
        with path.open(encoding="utf-8") as lines:
            for record in map(json.loads, lines):
                if not (png.is_record(record) and is_made(record)):
                    raise ValueError("a line does not describe an image")
                yield record
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); use an intact copy") from None


def manifest_line(record: dict[str, Any]) -> str:
    """Return the line of an image's settings."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a manifest without holding all of it in memory."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines)


class FolderImages:
    """Images as files of a folder that outlives the process.

    Attributes:
        images: the jobs whose images are kept.
        recent_images, recent_sheets: the jobs and contact sheets (by name) that TensorBoard may
            lack: all that were there, since a run off cluster begins its event files anew.
    """

    def __init__(self, run: Run, path: PathOf, line: LineOf, config: GenerateConfig):
        """Keep images of jobs under `path`, and describe each by a `line` of the manifest."""
        self.folder, self._path, self._line = run.folder, path, line
        self.images: list[int] = []
        self.recent_images: list[int] = []
        self.recent_sheets: list[str] = []

    def find(self, match: Match) -> None:
        """Find the images and sheets that are kept."""
        for path, record in stored_images(self.folder):
            number = match(record, str(path))
            if number is not None:
                self.images.append(number)
        self.recent_images = sorted(self.images)
        self.recent_sheets = [path.name for path in (self.folder / SHEETS).glob("sheet-*")]

    def has_sheet(self, path: Path, jobs: list[int]) -> bool:
        """Return True if a contact sheet is kept and shows all of these images."""
        if path.name not in self.recent_sheets:
            return False
        images = [self._path(job) for job in jobs]
        if images != [image_path(self.folder, job) for job in jobs]:  # of a grid that has grown
            return False
        return path.stat().st_mtime_ns >= max(image.stat().st_mtime_ns for image in images)

    def fetch(self, number: int) -> None:
        """Do nothing: every image is here."""

    def save(self, new: list[int], sheets: list[str], metadata: dict[str, Any], last: bool) -> None:
        """Write the manifest at the end; images and sheets are kept as they come."""
        self.images += new
        if last:
            with atomic_write(self.folder / MANIFEST) as staging:
                write_lines(staging, map(self._line, sorted(self.images)))


@dataclass
class Shard:
    """A stored checkpoint: the images and contact sheets that it alone holds."""

    uuid: str
    images: list[int]
    sheets: list[str] = field(default_factory=list)
    outgrown: bool = False  # its sheets are those of a smaller grid, and no longer count


class ShardedCheckpoints:
    """Images in checkpoints of a cluster; each holds those made since the one before.

    Attributes:
        shards: the checkpoints that together hold all images, the latest last.
    """

    def __init__(self, run: Run, path: PathOf, line: LineOf, config: GenerateConfig):
        """Keep images of jobs under `path`, and describe each by a `line` of the manifest."""
        self.run, self._path, self._line = run, path, line
        self._grid = dataclasses.asdict(config.grid)
        self.shards: list[Shard] = []
        self._fetching = threading.Lock()

    @property
    def recent_images(self) -> list[int]:
        """The images of the latest checkpoint: a crash may have come before their upload."""
        return self.shards[-1].images if self.shards else []

    @property
    def recent_sheets(self) -> list[str]:
        """The contact sheets of the latest checkpoint."""
        return self.shards[-1].sheets if self.shards else []

    def find(self, match: Match) -> None:
        """Find the images in the checkpoints of this trial, without downloading them."""
        latest = self.run.latest
        if not latest or not self.run.latest_is_own:
            return
        for uuid in [*read_metadata(latest).get("shards", []), self.run.latest_uuid]:
            shard = Shard(uuid, [])
            with tempfile.TemporaryDirectory() as name:
                folder = latest if uuid == self.run.latest_uuid else Path(name)
                try:
                    if folder != latest:
                        self.run.fetch(uuid, folder, lambda name: name in (MANIFEST, METADATA))
                    metadata = read_metadata(folder)
                    grid = metadata["config"].get("grid", self._grid)
                    shard.outgrown = bool(differences(grid, self._grid))
                    shard.sheets = [] if shard.outgrown else metadata.get("sheets", [])
                    records = list(read_manifest(folder / MANIFEST))
                except Exception as error:  # storage back ends raise anything
                    logger.warning(
                        "checkpoint %s is gone (%s); making its images again", uuid, error
                    )
                    continue
            for record in records:
                number = match(record, f"image {record['job']} of checkpoint {uuid}")
                if number is not None:
                    shard.images.append(number)
            self.shards.append(shard)
            if folder == latest:
                self._copy_sheets(shard, latest)

    def has_sheet(self, path: Path, jobs: list[int]) -> bool:
        """Return True if a contact sheet is in a checkpoint of this grid."""
        return any(path.name in shard.sheets for shard in self.shards)

    def fetch(self, number: int) -> None:
        """Download the checkpoint that holds an image, if its file is missing."""
        with self._fetching:
            if not self._path(number).is_file():
                (shard,) = (s for s in self.shards if number in s.images)
                self._download(shard)

    def _download(self, shard: Shard) -> None:
        with tempfile.TemporaryDirectory() as name:
            self.run.fetch(shard.uuid, Path(name))
            unpack(Path(name) / IMAGES, self.run.folder)
            self._copy_sheets(shard, Path(name))

    def _copy_sheets(self, shard: Shard, checkpoint: Path) -> None:
        if not shard.outgrown:
            sheets = sorted((checkpoint / SHEETS).glob("sheet-*"))
            for sheet in sheets:
                shutil.copy(sheet, self.run.folder / SHEETS)
            shard.sheets = [sheet.name for sheet in sheets]

    def save(self, new: list[int], sheets: list[str], metadata: dict[str, Any], last: bool) -> None:
        """Store a checkpoint of the new images, if any, and of those that would be deleted."""
        if not new:
            return
        first = len(self.shards) - still_kept(len(self.shards), self.run.keeps)
        images, sheets = list(new), list(sheets)
        for shard in self.shards[:first]:
            if not all(self._path(n).is_file() for n in shard.images):
                with self._fetching:
                    self._download(shard)
            images += shard.images
            sheets += shard.sheets
        count = metadata["images"]
        uuids = [shard.uuid for shard in self.shards[first:]]

        def write(to: Path) -> None:
            pack(to / IMAGES, map(self._path, sorted(images)), self.run.folder)
            write_lines(to / MANIFEST, map(self._line, sorted(images)))
            (to / SHEETS).mkdir(exist_ok=True)
            for name in sheets:
                shutil.copy(self.run.folder / SHEETS / name, to / SHEETS)
            for path in self.run.folder.glob("*.*"):  # concepts, and what `on_complete` wrote
                shutil.copy(path, to)

        self.run.report(count, {"images": count}, "validation")
        uuid = self.run.store(count, {**metadata, "shards": uuids, "sheets": sheets}, write)
        self.shards = [*self.shards[first:], Shard(uuid, images, sheets)]


def worth_saving(new: int, stored: int, keeps: int) -> bool:
    """Return True if `new` images justify a checkpoint that is due by time.

    If few checkpoints are kept, each stores old images again, so checkpoints must not be frequent.
    This limits the total written to a small multiple of the images' size.
    """
    return new * max(10, keeps // 2) >= stored


def still_kept(shards: int, keeps: int) -> int:
    """Return how many of the newest shards keep their images when one is added to `shards`.

    The new one takes over the images of the others. This leaves room for as many again, since an
    interrupted response from the master may leave a checkpoint twice.
    """
    return min(shards, max(1, keeps // 2) - 1)


def download_grid(uuid: str, folder: Path) -> int:
    """Download a checkpoint, and for a grid all others that hold its images, into one folder.

    Archives are unpacked; for a grid, the folder then looks like that of a run off cluster.

    Returns:
        The number of images that a grid's manifest names; 0 for a fine-tuning.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder with --output-dir")
    folder.parent.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as name:
        whole = Path(name) / ".whole"  # so that an interrupted download leaves nothing behind
        whole.mkdir()

        def fetch(uuid: str) -> dict[str, Any]:
            checkpoint = Path(name) / uuid
            download(uuid, checkpoint)
            metadata = read_metadata(checkpoint)
            if metadata.get("kind") == "generate":
                records.extend(read_manifest(checkpoint / MANIFEST))
            for packed in checkpoint.glob("*.zip"):
                unpack(packed, whole)
                packed.unlink()
            shutil.copytree(checkpoint, whole, dirs_exist_ok=True)
            shutil.rmtree(checkpoint)
            return metadata

        metadata = fetch(uuid)
        for other in map(str, metadata.get("shards", [])):
            if problem := uuid_problem(other):  # the command line checked the first
                raise UserError(f"checkpoint {uuid} is damaged ({problem}); download another one")
            fetch(other)
        if metadata.get("kind") == "generate":
            (whole / METADATA).unlink()
            records.sort(key=lambda record: record["job"])
            write_lines(whole / MANIFEST, map(manifest_line, records))
        folder.mkdir(exist_ok=True)
        for part in whole.iterdir():
            shutil.move(part, folder)
    return len(records)
