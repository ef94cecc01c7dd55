"""Contact sheets, before/after pictures, time-lapses in one look; settings inside PNG files."""

from __future__ import annotations

import io
import json
import os
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

INK, PALE, PAPER = (34, 36, 42), (104, 108, 118), (255, 255, 255)
GAP, MARGIN = 8, 16  # between images, around a sheet
SHOWN = 160  # smaller images are enlarged to at least this side, by a whole factor
LARGEST = 256  # larger ones are made smaller on a sheet
# The samplers under the names that A1111 and its readers know.
SAMPLERS = {
    "ddim": "DDIM",
    "pndm": "PLMS",
    "lms-discrete": "LMS",
    "euler": "Euler",
    "euler-ancestral": "Euler a",
    "dpmsolver++": "DPM++ 2M",
}
CHUNK = "detsd"  # the PNG text chunk that holds the settings as JSON


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)


def enlarge(image: Image.Image) -> Image.Image:
    """A small image at a whole multiple of its size, so that it can be looked at."""
    factor = max(1, -(-SHOWN // image.width))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def notice(text: str, size: tuple[int, int]) -> Image.Image:
    """A dark tile with a few words, in place of an image of `size` that cannot be shown.

    As large as that image would stand on a sheet, where it therefore stays as it is.
    """
    tile = _tile(Image.new("RGB", size, INK))
    pen = ImageDraw.Draw(tile)
    lines = textwrap.wrap(text, max(8, tile.width // 9))
    for k, line in enumerate(lines):
        middle = tile.height // 2 + 20 * k - 10 * (len(lines) - 1)
        pen.text((tile.width // 2, middle), line, PAPER, _font(14), anchor="mm")
    return tile


def _tile(image: Image.Image) -> Image.Image:
    """An image at the size in which it stands on a sheet."""
    if image.width > LARGEST:
        return image.resize(
            (LARGEST, round(image.height * LARGEST / image.width)), Image.Resampling.LANCZOS
        )
    return enlarge(image)


def sheet(
    rows: list[list[Image.Image]],
    row_labels: list[str],
    column_labels: list[str] | None = None,
    title: str = "",
) -> Image.Image:
    """Rows of equally large images, each under its label; the columns' labels over the first."""
    rows = [[_tile(image) for image in row] for row in rows]
    w, h = rows[0][0].size
    columns = max(map(len, rows))
    width = max(columns * (w + GAP) - GAP, 2 * SHOWN) + 2 * MARGIN
    labels = [_wrapped(label, width, 14) for label in row_labels]
    heading = _wrapped(title, width, 18)
    top = MARGIN + len(heading) * 24 + (GAP if heading else 0)
    over = 20 if column_labels else 0
    lines = sum(map(len, labels))
    height = top + over + lines * 20 + len(rows) * (h + 2 * GAP) - 2 * GAP + MARGIN
    canvas = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    for k, text in enumerate(heading):
        pen.text((MARGIN, MARGIN + 24 * k), text, INK, _font(18))
    y = top
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        for text in label:
            pen.text((MARGIN, y), text, INK, _font(14))
            y += 20
        if number == 0:
            for k, text in enumerate(column_labels or []):
                middle = MARGIN + k * (w + GAP) + w // 2
                pen.text((middle, y), text, PALE, _font(14), anchor="ma")
            y += over
        for k, image in enumerate(row):
            canvas.paste(image, (MARGIN + k * (w + GAP), y))
        y += h + 2 * GAP
    return canvas


def _wrapped(text: str, width: int, size: int) -> list[str]:
    """The lines of a text of font size `size` on a sheet `width` pixels wide."""
    return textwrap.wrap(text, max(20, int((width - 2 * MARGIN) / (size * 0.52))))


def before_after(
    before: list[Image.Image], after: list[Image.Image], prompts: list[str], phrase: str
) -> Image.Image:
    """Per prompt the images of the phrase and, under the same seeds, of the learned concept."""
    groups: dict[str, tuple[list, list]] = {}
    for old, new, prompt in zip(before, after, prompts, strict=True):
        pair = groups.setdefault(prompt, ([], []))
        pair[0].append(old)
        pair[1].append(new)
    rows, labels = [], []
    for prompt, (old, new) in groups.items():
        rows += [old, new]
        labels += [f"before: {prompt}", "after, same seeds"]
    return sheet(rows, labels, title=f"learned from “{phrase}”")


def process_strip(
    times: list[int], reverse: list[Image.Image], forward: list[Image.Image]
) -> Image.Image:
    """The reverse process over the forward one, as `DetSDTextualInversionPipeline.process` gives
    them, each noise level in a column of its own."""
    labels = [
        "reverse process, left to right: the model takes noise away, step by step",
        "forward process, right to left: a training image drowns in noise",
    ]
    return sheet([reverse, forward], labels, [f"t = {t}" for t in times])


def time_lapse(
    frames: list[tuple[int, list[Image.Image]]], labels: list[str], folder: Path, limit: int = 4
) -> None:
    """`time_lapse.gif` and `time_lapse.png` (a strip) of the first `limit` samples, by step.

    Args:
        labels: what each sample is of; rows of the strip stand under them.
    """
    shown = [(step, images[:limit]) for step, images in frames]
    pictures = [sheet([images], [""], title=f"step {step}") for step, images in shown]
    last = len(pictures) - 1
    pictures[0].save(
        folder / "time_lapse.gif",
        save_all=True,
        append_images=pictures[1:],
        duration=[1600 if k in (0, last) else 600 for k in range(len(pictures))],
        loop=0,
    )
    # A strip shows at most eight moments, evenly chosen, first and last among them.
    wanted = min(8, len(shown))
    chosen = [shown[round(k * last / max(1, wanted - 1))] for k in range(wanted)]
    rows = [[images[k] for _, images in chosen] for k in range(min(2, len(shown[0][1])))]
    strip = sheet(rows, labels[: len(rows)], [f"step {step}" for step, _ in chosen])
    strip.save(folder / "time_lapse.png")


# ---- settings inside files -----------------------------------------------------------------------


def parameters(record: dict[str, Any]) -> str:
    """An image's settings as A1111 writes them into its `parameters` chunk."""
    lines = [record["prompt"]]
    if record["negative_prompt"]:
        lines.append(f"Negative prompt: {record['negative_prompt']}")
    facts = {
        "Steps": record["num_inference_steps"],
        "Sampler": SAMPLERS[record["scheduler_name"]],
        "CFG scale": f"{record['guidance_scale']:g}",
        "Seed": record["seed"],
        "Size": f"{record['width']}x{record['height']}",
        "Model": Path(record["model"]["pretrained_model_name_or_path"]).name,
    }
    if record["concepts"]:
        digests = ", ".join(f"{name}: {c['sha256']}" for name, c in record["concepts"].items())
        facts["TI hashes"] = f'"{digests}"'
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in facts.items())])


def png(image: Image.Image, record: dict[str, Any]) -> bytes:
    """A PNG file with its settings in two text chunks: `parameters`, and JSON under `detsd`.

    Args:
        record: `prompt`, `negative_prompt`, `seed`, `guidance_scale`, `num_inference_steps`,
            `scheduler_name`, `width`, `height`, `model`, `concepts`, and whatever else is JSON.
    """
    info = PngInfo()
    info.add_text("parameters", parameters(record))
    info.add_text(CHUNK, json.dumps(record, ensure_ascii=False))
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG file whole or not at all."""
    staging = path.with_name(f".{path.name}")
    image.save(staging, "PNG")
    os.replace(staging, path)


def read(path: Path) -> Image.Image | None:
    """The picture in a file; None where there is no whole one."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # the last: of a PNG file cut short
        return None


def read_record(path: Path) -> dict[str, Any] | None:
    """The settings inside a PNG file of ours; None where the file is not whole or holds none."""
    try:
        with Image.open(path) as image:
            image.load()  # all of it: a file cut short is no image
            record = json.loads(image.text[CHUNK])
    except (OSError, AttributeError, KeyError, ValueError, SyntaxError):
        return None
    return record if isinstance(record, dict) else None
