"""Contact sheets of a grid: their layout, and their drawing as images arrive."""

import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from detsd.runs.tensorboard import image_tags
from detsd.sampling.jobs import Job
from detsd.utils import contact_sheets, png
from detsd.utils.plurals import counted

SHEET_COLUMNS, SHEET_TILES = 32, 256  # at most, on one contact sheet


@dataclass
class ContactSheet:
    """A contact sheet: seeds by settings."""

    title: str
    row_labels: list[str]
    column_labels: list[str]
    cells: list[list[int]]  # job numbers

    @property
    def numbers(self) -> list[int]:
        """The jobs of the sheet."""
        return [number for row in self.cells for number in row]


def sheet_layout(jobs: list[Job]) -> list[ContactSheet]:
    """Return a sheet for each prompt, negative prompt and scheduler, in parts of `SHEET_TILES`."""
    groups: dict[tuple, dict[tuple, int]] = {}
    for number, job in enumerate(jobs):
        group = (job.prompt, job.negative_prompt, job.scheduler_name)
        cell = (job.seed, (job.num_inference_steps, job.guidance_scale))
        groups.setdefault(group, {})[cell] = number
    several_schedulers = len({scheduler for _, _, scheduler in groups}) > 1
    several_steps = len({job.num_inference_steps for job in jobs}) > 1
    found = []
    for (prompt, negative, scheduler), cells in groups.items():
        seeds = list(dict.fromkeys(seed for seed, _ in cells))
        settings = list(dict.fromkeys(setting for _, setting in cells))
        title = prompt + (f"  —  not: {negative}" if negative else "")
        title += f"  —  {scheduler}" if several_schedulers else ""
        across = [settings[k : k + SHEET_COLUMNS] for k in range(0, len(settings), SHEET_COLUMNS)]
        height = max(1, SHEET_TILES // len(across[0]))
        down = [seeds[k : k + height] for k in range(0, len(seeds), height)]
        several = len(across) * len(down) > 1
        for number, (rows, columns) in enumerate(itertools.product(down, across)):
            found.append(
                ContactSheet(
                    title + (f"  —  {number + 1}" if several else ""),
                    [f"seed {seed}" for seed in rows],
                    [
                        f"guidance {scale:g}"
                        + (f", {counted(steps, 'step')}" if several_steps else "")
                        for steps, scale in columns
                    ],
                    [[cells[(seed, setting)] for setting in columns] for seed in rows],
                )
            )
    return found


class ContactSheets:
    """The contact sheets of a grid, each drawn by a thread once its images are there."""

    def __init__(
        self,
        sheets: list[ContactSheet],
        paths: list[Path],
        image: Callable[[int], Image.Image],
        log: Callable[[str, bytes], None],
    ):
        """
        Args:
            paths: the file of each sheet.
            image: returns the image of a job.
            log: called with the tag and file of each sheet drawn.
        """
        self.sheets, self.paths = sheets, paths
        self._image, self._log = image, log
        self._tags = image_tags([("sheets", sheet.title) for sheet in sheets])
        self._missing = [set(sheet.numbers) for sheet in sheets]
        self._index = {n: index for index, s in enumerate(sheets) for n in s.numbers}
        # The chief makes images meanwhile. A tile of 512 pixels takes 5 to 8 ms, mostly decoding.
        self._pool = ThreadPoolExecutor(4)
        self._drawing: dict[int, Future] = {}

    @property
    def complete(self) -> list[int]:
        """The indices of the sheets whose images are all available."""
        return [index for index, missing in enumerate(self._missing) if not missing]

    def add(self, number: int) -> int | None:
        """Count an image as available; return the index of the sheet that it completes, or None."""
        index = self._index[number]
        self._missing[index].discard(number)
        return None if self._missing[index] else index

    def draw(self, index: int) -> None:
        """Draw a sheet in another thread."""
        self._drawing[index] = self._pool.submit(self._draw, index)

    def _draw(self, index: int) -> None:
        sheet = self.sheets[index]
        # Scaled to tiles at once, so that at most one large image is in memory.
        rows = [
            [contact_sheets.as_tile(self._image(n), len(sheet.numbers)) for n in row]
            for row in sheet.cells
        ]
        picture = contact_sheets.sheet(rows, sheet.row_labels, sheet.column_labels, sheet.title)
        # `compress_level` is for PNG, `quality` for JPEG.
        png.save(picture, self.paths[index], compress_level=1, quality=90)
        self.log(index)

    def log(self, index: int) -> None:
        """Log a sheet's file."""
        self._log(self._tags[index], self.paths[index].read_bytes())

    def drawn(self, wait: bool) -> list[str]:
        """Return the names of sheets drawn since the last call; with `wait`, of all begun."""
        done = [index for index, future in self._drawing.items() if wait or future.done()]
        for index in done:
            self._drawing.pop(index).result()
        return [self.paths[index].name for index in done]

    def close(self) -> None:
        """Leave the sheets not yet begun to the resumed run."""
        self._pool.shutdown(cancel_futures=True)
