"""Contact sheets of a grid: which image stands where."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from detsd.sampling.jobs import Job

SHEET_COLUMNS, SHEET_TILES = 32, 256  # at most, on one contact sheet


@dataclass
class ContactSheet:
    """A contact sheet: seeds by settings."""

    title: str
    row_labels: list[str]
    column_labels: list[str]
    cells: list[list[int]]  # job numbers
    missing: int

    @property
    def count(self) -> int:
        return sum(map(len, self.cells))


def sheet_layout(jobs: list[Job]) -> list[ContactSheet]:
    """A contact sheet per prompt, negative prompt and scheduler, or several of `SHEET_TILES`."""
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
                        f"guidance {scale:g}" + (f", {steps} steps" if several_steps else "")
                        for steps, scale in columns
                    ],
                    [[cells[(seed, setting)] for setting in columns] for seed in rows],
                    len(rows) * len(columns),
                )
            )
    return found
