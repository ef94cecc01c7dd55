"""The jobs of a form's or an endpoint's settings: one image, copies of it, or a grid."""

import csv
import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from detsd.config.schema import MAX_SEED, REQUIRED, Section, SpacingName, parse_section, setting
from detsd.sampling.jobs import Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.sampling.stock import SCHEDULERS
from detsd.utils import png
from detsd.utils.errors import UserError
from detsd.utils.paths import canonical_path
from detsd.utils.plurals import counted

MAX_IMAGES, MAX_CELLS, MAX_LENGTH = 8, 64, 2000  # MAX_LENGTH: characters of a prompt

WORDS = "words of the prompt"

# The axes of a grid: the setting that each changes, and its initial values.
AXES = {
    "nothing": ("", ""),
    "guidance scale": ("guidance_scale", "1.5, 3, 4, 6"),
    "steps": ("steps", "10, 20, 30"),
    "seed": ("seed", "0-2"),
    "scheduler": ("scheduler", "ddim, euler, euler-ancestral"),
    "prompt": ("prompt", "a red star\na blue moon"),
    WORDS: ("prompt", "photo, oil painting, drawing"),  # each replaces the first one
}

RANGE = re.compile(  # 1-5, 1-9 (+2), 1-9 [5]
    r"(-?[\d.]+)\s*-\s*(-?[\d.]+)(?:\s*\(\s*([+-][\d.]+)\s*\)|\s*\[\s*(\d+)\s*\])?"
)

# The settings inside a PNG file, in the order of `ImageSettings`.
RECORDED = ("prompt", "negative_prompt", "guidance_scale", "num_inference_steps", "seed",
            "scheduler_name", "width", "height")  # fmt: skip

SPACINGS = get_args(SpacingName)


@dataclass(frozen=True)
class ImageSettings(Section):
    """The settings of one image.

    A width or height of 0 means the shape of the prompt's concept, or else the model's own; an
    empty scheduler means the model's own sampler.
    """

    prompt: str = setting(REQUIRED, "what the image shows")
    negative_prompt: str = setting("", "what the image should not show")
    guidance_scale: float = setting(4.0, "classifier-free guidance; 1: none", low=0, high=50)
    steps: int = setting(30, "denoising steps; 25 to 50", low=1, high=200)
    seed: int = setting(0, "the first seed", low=0, high=MAX_SEED - MAX_IMAGES)
    scheduler: str = setting("", "the sampler")
    width: int = setting(0, "width in pixels", low=0)
    height: int = setting(0, "height in pixels", low=0)
    guidance_start: float = setting(0.0, "share of the steps before guidance starts", low=0, high=1)
    guidance_stop: float = setting(1.0, "share of the steps at which guidance ends", low=0, high=1)
    spacing: str = setting("", "spacing of the timesteps: leading, trailing or linspace")

    def problems(self) -> list[str]:
        """Return what is wrong with the texts."""
        found = []
        if not self.prompt.strip():
            found.append("the prompt is empty; write what the image should show")
        for name in ("prompt", "negative_prompt"):
            if (length := len(getattr(self, name))) > MAX_LENGTH:
                found.append(
                    f"{name} has {length} characters, but at most {MAX_LENGTH} are allowed; "
                    "shorten it to a sentence or two"
                )
        if self.guidance_start >= self.guidance_stop:
            found.append(
                f"guidance_start is {self.guidance_start:g} but must be less than guidance_stop, "
                f"{self.guidance_stop:g}"
            )
        if self.spacing and self.spacing not in SPACINGS:
            names = ", ".join(SPACINGS)
            found.append(f"spacing is {self.spacing!r}, which is unknown; use one of {names}")
        if self.scheduler and not scheduler_name(self.scheduler):
            names = ", ".join(SCHEDULERS)
            found.append(f"scheduler is {self.scheduler!r}, which is unknown; use one of {names}")
        return found


def scheduler_name(text: str) -> str | None:
    """Return our name for a sampler, given that name or another program's."""
    known = {name: name for name in SCHEDULERS}
    known |= {other.lower(): name for name, other in png.SAMPLERS.items()}
    return known.get(text.strip().lower())


def parse(kind: type, given: dict[str, Any]) -> Any:
    """Return values as a section; refuse those of a wrong type or out of bounds."""
    section, problems = parse_section(kind, given)
    if problems:
        raise UserError("; ".join(problems))
    return section


def parse_form(values: Sequence[Any]) -> ImageSettings:
    """Parse values given in the order of the settings."""
    names = [field.name for field in dataclasses.fields(ImageSettings)]
    return parse(ImageSettings, dict(zip(names, values, strict=True)))


def make_job(pipe: DetSDTextualInversionPipeline, settings: ImageSettings) -> Job:
    """Return the job of an image; refuse what the loaded model cannot make."""
    s, size = settings, pipe.model.image_size
    own = pipe.vocabulary.resolution(s.prompt) or (size, size)
    if not all(size // 2 <= side <= 2 * size for side in own):  # meant for another model
        own = (size, size)
    sides = (s.width or own[0], s.height or own[1])
    prompt, negative = (" ".join(text.split()) for text in (s.prompt, s.negative_prompt))
    for name, side in zip(("width", "height"), sides, strict=True):
        if side % 8 or not size // 2 <= side <= 2 * size:
            raise UserError(
                f"{name} is {side} but must be a multiple of 8 from {size // 2} to {2 * size}"
            )
    scheduler = scheduler_name(s.scheduler) or pipe.own_scheduler
    interval = (s.guidance_start, s.guidance_stop)
    job = Job(
        prompt, s.seed, negative, s.guidance_scale, s.steps, scheduler, *sides,
        guidance_interval=None if interval == (0, 1) else interval, spacing=s.spacing or None,
    )  # fmt: skip
    pipe.check([job])
    return job


def copies(job: Job, count: int) -> list[Job]:
    """Return a job with the seeds `seed`, `seed + 1`, ..."""
    if count not in range(1, MAX_IMAGES + 1):
        raise UserError(f"count is {count} but must be a whole number from 1 to {MAX_IMAGES}")
    return [dataclasses.replace(job, seed=job.seed + k) for k in range(int(count))]


# ---- grids ---------------------------------------------------------------------------------------


def axis_values(axis: str, text: str) -> list[Any]:
    """Return the values of an axis, written as in A1111: `1, 3`, `1-5`, `1-9 (+2)`, `1-9 [5]`.

    A value with a comma goes in double quotes. Each prompt goes on its own line.
    """
    if axis not in AXES:
        raise UserError(f"the axis {axis!r} is unknown; use one of {', '.join(AXES)}")
    if axis == "nothing":
        return [None]
    lines = text.splitlines()
    try:
        if axis != "prompt":
            lines = [cell for row in csv.reader(lines, skipinitialspace=True) for cell in row]
    except csv.Error as error:
        raise UserError(f"the values of the axis {axis!r} cannot be read ({error})") from None
    values: list[Any] = [" ".join(part.split()) for part in lines if part.strip()]
    if not values:
        raise UserError(f"the axis {axis!r} has no values; write e.g. {AXES[axis][1]}")
    if axis in ("guidance scale", "steps", "seed"):
        kind = float if axis == "guidance scale" else int
        values = [value for part in values for value in _numbers(axis, part, kind)]
    value, times = Counter(values).most_common(1)[0]
    if times > 1:
        raise UserError(f"the axis {axis!r} has {value} twice; the images would be the same")
    return values


def _numbers(axis: str, text: str, kind: type) -> list[float]:
    """Return the numbers of a range or a single number."""
    try:
        if not (found := RANGE.fullmatch(text)):
            return [kind(text)]
        first, last = kind(found[1]), kind(found[2])
        if found[4]:  # `[n]`: n values, evenly spaced; for integers, fractions are cut, as in A1111
            if (count := min(int(found[4]), MAX_CELLS + 1)) < 1:
                raise ValueError
            return [kind(x) for x in np.linspace(first, last, count).tolist()]
        step = kind(found[3] or (1 if last >= first else -1))
        count = int((last - first) / step + 1e-9) + 1
        if count < 1:
            raise ValueError
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UserError(
            f"the axis {axis!r} has {text!r}, which is neither a number nor a range; write e.g. "
            "1, 3 or 1-5 or 1-9 (+2) or 1-9 [5]"
        ) from None
    return [first + step * k for k in range(min(count, MAX_CELLS + 1))]


def grid_jobs(
    pipe: DetSDTextualInversionPipeline,
    settings: ImageSettings,
    x: tuple[str, str],
    y: tuple[str, str],
) -> tuple[list[Job], list[str], list[str]]:
    """Return the jobs of a grid, row by row, and the labels of its columns and rows.

    Args:
        settings: the settings that the axes do not change.
        x, y: an axis from `AXES`, and its values as typed.
    """
    if x[0] == y[0] not in ("nothing", WORDS):
        raise UserError(f"both axes are {x[0]!r}; choose another setting for one of them")
    columns, rows = axis_values(*x), axis_values(*y)
    if len(columns) * len(rows) > MAX_CELLS:
        raise UserError(
            f"this grid has {len(columns)} x {len(rows)} images, but the page makes at most "
            f"{MAX_CELLS}; python -m detsd generate makes as many as you like"
        )
    if x[0] == y[0] == WORDS and columns[0] == rows[0]:
        raise UserError(
            f"both axes look for {columns[0]!r} in the prompt; start one of them with another word"
        )
    jobs = []
    for row, column in itertools.product(rows, columns):
        cell, words = dataclasses.asdict(settings), {}
        for axis, values, value in ((x[0], columns, column), (y[0], rows, row)):
            if axis == WORDS:
                words[values[0]] = value
            elif axis != "nothing":
                cell[AXES[axis][0]] = value
        if words:
            cell["prompt"] = _replaced(cell["prompt"], words)
        jobs.append(make_job(pipe, parse(ImageSettings, cell)))
    return jobs, _labels(x[0], columns), _labels(y[0], rows)


def _replaced(prompt: str, words: dict[str, str]) -> str:
    """Return a prompt with some of its words replaced, all at once."""
    prompt = " ".join(prompt.split())
    longest_first = sorted(words, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first))
    found = re.findall(pattern, prompt)
    for word in words:
        if word not in found:
            raise UserError(
                f"the axis {WORDS!r} looks for {word!r}, which is not in the prompt {prompt!r}; "
                "start it with a word of the prompt"
            )
    return re.sub(pattern, lambda match: words[match[0]], prompt)


def _labels(axis: str, values: list[Any]) -> list[str]:
    """Return the labels of a grid's columns or rows."""
    label = {"nothing": "", "guidance scale": "guidance {:g}", "seed": "seed {}"}.get(axis, "{}")
    return [counted(v, "step") if axis == "steps" else label.format(v) for v in values]


# ---- an image's settings back into the form ------------------------------------------------------


def read_settings(
    pipe: DetSDTextualInversionPipeline, path: Path
) -> tuple[ImageSettings, list[str]]:
    """Return the settings inside a PNG file, and reasons why the image would differ here."""
    record = png.read_record(path, checked=False)  # errors below name the key
    if record is None:
        raise UserError(
            f"{path.name} holds no settings of detsd, or is damaged; drop a PNG file that detsd "
            "wrote (image editors and chat programs strip the settings)"
        )
    try:
        interval = record.get("guidance_interval") or (0, 1)  # null: everywhere
        values = [*(record[key] for key in RECORDED), *interval, record.get("spacing") or ""]
        settings = parse_form(values)
        make_job(pipe, settings)
        model = str(record["model"]["pretrained_model_name_or_path"])
        others = {key: record["model"].get(key) for key in ("clip_skip", "vae")}
        digests = {name: concept["sha256"] for name, concept in record["concepts"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{path.name} holds settings that cannot be read; drop another one"
        ) from None
    except UserError as error:
        raise UserError(f"{path.name} holds settings that cannot be used here: {error}") from None
    notes = []
    plain = all(map(pipe.vocabulary.is_plain, (settings.prompt, settings.negative_prompt)))
    if not record.get("prompt_weights") and not plain:
        notes.append("it was made with brackets read as text, but here they weight words")
    if canonical_path(model) != canonical_path(pipe.model.name):
        notes.append(f"it was made with the model {model}; this page uses {pipe.model.name}")
    for key, value in others.items():
        here = pipe.model.settings.get(key) or "none"
        if canonical_path(str(value or "none")) != canonical_path(str(here)):
            notes.append(f"it was made with model.{key} {value or 'none'}; here it is {here}")
    here = pipe.concept_fingerprints(f"{settings.prompt} {settings.negative_prompt}")
    for name, digest in digests.items():
        if name not in here:
            notes.append(f"its concept {name} is not loaded")
        elif here[name]["sha256"] != digest:
            notes.append(f"its concept {name} had different vectors from the one loaded here")
    return settings, notes
