"""Contact sheets, before/after pictures and time-lapses: one look for all."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

INK, PAPER, GAP = (34, 36, 42), (255, 255, 255), 8
SHOWN = 160  # smaller images are enlarged to at least this side, by a whole factor


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)


def enlarge(image: Image.Image) -> Image.Image:
    """A small image at a whole multiple of its size, so that it can be looked at."""
    factor = max(1, -(-SHOWN // image.width))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def sheet(
    rows: list[list[Image.Image]],
    row_labels: list[str],
    column_labels: list[str] | None = None,
    title: str = "",
) -> Image.Image:
    """Rows of equally large images, each row under its label, columns labelled on top."""
    rows = [[enlarge(image) for image in row] for row in rows]
    w, h = rows[0][0].size
    columns = max(map(len, rows))
    width = max(columns * (w + GAP) + GAP, 2 * SHOWN + 3 * GAP)
    size = 14
    per_line = max(20, int((width - 2 * GAP) / (size * 0.52)))
    labels = [textwrap.wrap(label, per_line) for label in row_labels]
    heading = textwrap.wrap(title, int(per_line * size / 18)) if title else []
    line = size + 4
    top = GAP + len(heading) * 24 + (line + 2 if column_labels else 0)
    height = top + sum(len(label) * line + h + 2 * GAP for label in labels)
    canvas = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    y = GAP
    for text in heading:
        pen.text((GAP, y), text, INK, _font(18))
        y += 24
    for k, text in enumerate(column_labels or []):
        pen.text((GAP + k * (w + GAP) + w // 2, y), text, INK, _font(size), anchor="ma")
    y = top
    for row, label in zip(rows, labels, strict=True):
        for text in label:
            pen.text((GAP, y), text, INK, _font(size))
            y += line
        for k, image in enumerate(row):
            canvas.paste(image, (GAP + k * (w + GAP), y))
        y += h + 2 * GAP
    return canvas


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


def time_lapse(frames: list[tuple[int, list[Image.Image]]], folder: Path, limit: int = 4) -> None:
    """`time_lapse.gif` and `time_lapse.png` (a strip) of the first `limit` samples, by step."""
    shown = [(step, [enlarge(i) for i in images[:limit]]) for step, images in frames]
    w, h = shown[0][1][0].size
    count = len(shown[0][1])
    pictures = []
    for step, images in shown:
        canvas = Image.new("RGB", (count * (w + GAP) + GAP, h + GAP + 30), PAPER)
        ImageDraw.Draw(canvas).text((GAP, GAP), f"step {step}", INK, _font(16))
        for k, image in enumerate(images):
            canvas.paste(image, (GAP + k * (w + GAP), 30))
        pictures.append(canvas)
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
    rows = [[images[k] for _, images in chosen] for k in range(min(2, count))]
    strip = sheet(rows, [""] * len(rows), [f"step {step}" for step, _ in chosen])
    strip.save(folder / "time_lapse.png")
