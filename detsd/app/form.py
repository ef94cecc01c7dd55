"""From the page's filled form to jobs: one, or a grid of them."""

from __future__ import annotations

import dataclasses
import itertools
import re
from operator import attrgetter
from typing import Any

from detsd.concepts.prompts import truncated
from detsd.sampling.jobs import Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.sampling.stock import SCHEDULERS
from detsd.utils.errors import UserError

# Of a job, what the form holds, in the order of `checked_job`.
FIELDS = ("prompt", "negative_prompt", "guidance_scale", "num_inference_steps", "seed",
          "scheduler_name", "width", "height")  # fmt: skip

MOST_STEPS, MOST_IMAGES, MOST_CELLS, LONGEST = 200, 8, 64, 2000  # the last in characters

WORDS = "words of the prompt"

# What a grid's axis can be: the field of a job that it changes, and values to begin with.
AXES = {
    "nothing": ("", ""),
    "guidance scale": ("guidance_scale", "1.5, 3, 4, 6"),
    "steps": ("num_inference_steps", "10, 20, 30"),
    "seed": ("seed", "0-2"),
    "scheduler": ("scheduler_name", "ddim, euler, euler-ancestral"),
    "prompt": ("prompt", "a red star\na blue moon"),
    WORDS: ("prompt", "photo, oil painting, drawing"),  # the first is looked for
}

RANGE = re.compile(  # 1-5, 1-9 (+2), 1-9 [5]
    r"(-?[\d.]+)\s*-\s*(-?[\d.]+)(?:\s*\(\s*([+-][\d.]+)\s*\)|\s*\[\s*(\d+)\s*\])?"
)


def checked_job(
    pipe: DetSDTextualInversionPipeline,
    prompt: str | None,
    negative: str | None,
    guidance: float | None,
    steps: float | None,
    seed: float | None,
    scheduler: str,
    width: float | None,
    height: float | None,
    count: float | None = 1,
) -> Job:
    """The job that a filled form describes; of `count` images, the first.

    Raises:
        UserError: an empty or overlong prompt, a number out of its range.
    """
    prompt, negative = " ".join((prompt or "").split()), " ".join((negative or "").split())
    if not prompt:
        raise UserError("the prompt is empty; write what the image should show")
    for name, text in (("prompt", prompt), ("negative prompt", negative)):
        if len(text) > LONGEST:
            raise UserError(
                f"the {name} has {len(text)} characters; shorten it to a sentence or two"
            )
        for warning in truncated(text, pipe.vocabulary, name):
            raise UserError(warning)
    size = pipe.model.image_size
    limits = {
        "guidance scale": (guidance, 0, 50),
        "number of steps": (steps, 1, MOST_STEPS),
        "seed": (seed, 0, 2**32 - MOST_IMAGES),
        "number of images": (count, 1, MOST_IMAGES),
        "width": (width, size // 2, 2 * size),
        "height": (height, size // 2, 2 * size),
    }
    for name, (value, low, high) in limits.items():
        if value is None or not low <= value <= high:
            raise UserError(f"the {name} must be a number from {low} to {high}, not {value}")
        if name in ("width", "height") and value % 8:
            raise UserError(f"the {name} is {value:g} pixels but must be a multiple of 8")
    if scheduler not in SCHEDULERS:
        raise UserError(f"scheduler {scheduler!r} is unknown; use one of {', '.join(SCHEDULERS)}")
    job = Job(
        prompt, int(seed), negative, float(guidance), int(steps), scheduler, int(width), int(height)
    )  # fmt: skip
    pipe.check([job])
    return job


def copies(job: Job, count: float) -> list[Job]:
    """A job under the seeds `seed`, `seed + 1`, ..."""
    return [dataclasses.replace(job, seed=job.seed + k) for k in range(int(count))]


def axis_values(axis: str, text: str) -> list[Any]:
    """The values of a grid's axis as A1111 writes them: `1, 3`, `1-5`, `1-9 (+2)`, `1-9 [5]`.

    Prompts stand one a line.

    Raises:
        UserError: no value, something that is none, one twice.
    """
    if axis not in AXES:
        raise UserError(f"the axis {axis!r} is unknown; use one of {', '.join(AXES)}")
    if axis == "nothing":
        return [None]
    parts = text.splitlines() if axis == "prompt" else text.split(",")
    values: list[Any] = [" ".join(part.split()) for part in parts if part.strip()]
    if not values:
        raise UserError(f"the axis {axis!r} has no values; write e.g. {AXES[axis][1]}")
    if axis in ("guidance scale", "steps", "seed"):
        kind = float if axis == "guidance scale" else int
        values = [value for part in values for value in _numbers(axis, part, kind)]
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"the axis {axis!r} has {value} twice; the images would be the same")
    return values


def _numbers(axis: str, text: str, kind: type) -> list[float]:
    try:
        if not (found := RANGE.fullmatch(text)):
            return [kind(text)]
        first, last = kind(found[1]), kind(found[2])
        if found[4]:
            count = int(found[4])
            step = (last - first) / max(1, count - 1)
        else:
            step = kind(found[3] or (1 if last >= first else -1))
            count = int((last - first) / step + 1e-9) + 1
        if count < 1:
            raise ValueError
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UserError(
            f"the axis {axis!r} says {text!r}, which is no number and no range; write e.g. 1, 3 "
            "or 1-5 or 1-9 (+2) or 1-9 [5]"
        ) from None
    return [kind(first + step * k) for k in range(min(count, MOST_CELLS + 1))]


def grid_jobs(
    pipe: DetSDTextualInversionPipeline, job: Job, x: tuple[str, str], y: tuple[str, str]
) -> tuple[list[Job], list[str], list[str]]:
    """The jobs of a grid, row by row, and the labels of its columns and rows.

    Args:
        job: what the axes leave as it is.
        x, y: an axis, of `AXES`, and its values as they are typed.

    Raises:
        UserError: what `axis_values` and `checked_job` raise; words that no prompt has; too large
            a grid.
    """
    if x[0] == y[0] != "nothing":
        raise UserError(f"both axes are {x[0]!r}; give one of them another meaning")
    columns, rows = axis_values(*x), axis_values(*y)
    if len(columns) * len(rows) > MOST_CELLS:
        raise UserError(
            f"this grid has {len(columns)} x {len(rows)} images and the page makes {MOST_CELLS} at "
            "most; python -m detsd generate makes as many as you like"
        )

    def placed(job: Job, axis: str, values: list[Any], value: Any) -> Job:
        if axis == "nothing":
            return job
        if axis == WORDS:
            if values[0] not in job.prompt:
                raise UserError(
                    f"the axis {axis!r} looks for {values[0]!r}, which the prompt {job.prompt!r} "
                    "does not say"
                )
            value = job.prompt.replace(values[0], value)
        return dataclasses.replace(job, **{AXES[axis][0]: value})

    jobs = []
    for down, along in itertools.product(rows, columns):
        sides = [(x[0], columns, along), (y[0], rows, down)]
        # Whole prompts first: the words are looked for in them.
        sides.sort(key=lambda side: side[0] == WORDS)
        made = job
        for side in sides:
            made = placed(made, *side)
        jobs.append(checked_job(pipe, *attrgetter(*FIELDS)(made)))
    return jobs, _labels(x[0], columns), _labels(y[0], rows)


def _labels(axis: str, values: list[Any]) -> list[str]:
    before = {"guidance scale": "guidance ", "seed": "seed "}.get(axis, "")
    after = " steps" if axis == "steps" else ""
    return [
        "" if v is None else v if isinstance(v, str) else f"{before}{v:g}{after}" for v in values
    ]
