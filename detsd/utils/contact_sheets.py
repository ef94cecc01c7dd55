"""Contact sheets, before/after pictures and time-lapses, all in one style."""

import math
import re
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from detsd.utils.fonts import font
from detsd.utils.png import save

INK, PALE, PAPER = (34, 36, 42), (104, 108, 118), (255, 255, 255)

GAP, MARGIN = 8, 16  # between images, around a sheet
SHOWN = 160  # smaller images are enlarged to at least this side, by an integer factor
LARGEST = 256  # larger ones are scaled down on a sheet
MANY = 64  # tiles at full size; more share the same number of pixels, so each is smaller
ANIMATED = 4  # samples of a prompt in a time-lapse, at most


def enlarge(image: Image.Image) -> Image.Image:
    """Enlarge a small image to a whole multiple of its size."""
    factor = max(1, -(-SHOWN // image.width))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def notice(text: str, size: tuple[int, int]) -> Image.Image:
    """Draw a dark tile with a few words, in place of an image of `size` that cannot be shown.

    It has the size that the image would have on a sheet, so it is not scaled there.
    """
    tile = as_tile(Image.new("RGB", size, INK))
    pen = ImageDraw.Draw(tile)
    lines = _wrapped(text, tile.width - 8, 14)
    for k, line in enumerate(lines):
        middle = tile.height // 2 + 20 * k - 10 * (len(lines) - 1)
        pen.text((tile.width // 2, middle), line, PAPER, font(14, line), anchor="mm")
    return tile


def as_tile(image: Image.Image, count: int = 1) -> Image.Image:
    """Scale an image to its size on a sheet of `count`; a tile stays as it is."""
    width = min(LARGEST, math.isqrt(MANY * LARGEST**2 // count))
    if image.width > width:
        size = (width, round(image.height * width / image.width))
        return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return enlarge(image) if count <= MANY else image


def sheet(
    rows: list[list[Image.Image]],
    row_labels: list[str],
    column_labels: list[str] | None = None,
    title: str = "",
) -> Image.Image:
    """Draw rows of images, each under its label, with the columns' labels above the first."""
    count = sum(map(len, rows))
    rows = [[as_tile(image, count) for image in row] for row in rows]
    w = max(image.width for row in rows for image in row)
    heights = [max((image.height for image in row), default=0) for row in rows]
    columns = max(map(len, rows))
    width = max(columns * (w + GAP) - GAP, 2 * SHOWN) + 2 * MARGIN
    labels = [_wrapped(label, width - 2 * MARGIN, 14) for label in row_labels]
    heading = _wrapped(title, width - 2 * MARGIN, 18)
    top = MARGIN + len(heading) * 24 + (GAP if heading else 0)
    over = [_wrapped(label, w, 14) for label in column_labels or []]
    above = 20 * max(map(len, over), default=0)
    lines = sum(map(len, labels))
    height = top + above + lines * 20 + sum(heights) + 2 * GAP * (len(rows) - 1) + MARGIN
    canvas = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    for k, text in enumerate(heading):
        pen.text((MARGIN, MARGIN + 24 * k), text, INK, font(18, text))
    y = top
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        for text in label:
            pen.text((MARGIN, y), text, INK, font(14, text))
            y += 20
        if number == 0:
            for k, label in enumerate(over):
                middle = MARGIN + k * (w + GAP) + w // 2
                for line, text in enumerate(label):
                    pen.text((middle, y + 20 * line), text, PALE, font(14, text), anchor="ma")
            y += above
        for k, image in enumerate(row):
            canvas.paste(image, (MARGIN + k * (w + GAP), y))
        y += heights[number] + 2 * GAP
    return canvas


def padded(
    rows: list[list[Image.Image]], size: tuple[int, int] | None = None
) -> list[list[Image.Image]]:
    """Scale and pad images of several shapes to one: `size`, or one with room for each."""
    size = size or tuple(map(max, zip(*(i.size for row in rows for i in row), strict=True)))
    return [[ImageOps.pad(i, size, Image.Resampling.LANCZOS, PAPER) for i in r] for r in rows]


def _wrapped(text: str, width: int, size: int) -> list[str]:
    """Wrap a text of font size `size` to lines of at most `width` pixels."""
    face, lines = font(size, text), [""]
    # Words, with the space before them; those of scripts without spaces may break anywhere.
    for part in re.findall(r"\s*[\u2e80-\uffef]|\s*[^\s\u2e80-\uffef]+", text.rstrip()):
        if lines[-1] and face.getlength(lines[-1] + part) > width:
            lines.append("")
        part = part if lines[-1] else part.lstrip()
        start = 0  # of a line within a part longer than a line, such as a path
        for k in range(2, len(part) + 1) if face.getlength(part) > width else ():
            if face.getlength(part[start:k]) > width and k - start > 1:
                lines[-1:] = [part[start : k - 1], ""]
                start = k - 1
        lines[-1] += part[start:]
    return [line for line in lines if line]


def before_after(
    before: list[Image.Image],
    after: list[Image.Image],
    prompts: list[str],
    initializer_prompts: list[str],
    training_images: dict[str, list[Image.Image]],
) -> Image.Image:
    """Draw training images and, per prompt, the images before and after, with equal seeds.

    Args:
        initializer_prompts: the prompts of `before`, with initializers in place of the concepts.
        training_images: by concept.
    """
    pairs = list(zip(initializer_prompts, prompts, strict=True))
    columns = max(3, *Counter(pairs).values())
    rows = padded([images[:columns] for images in training_images.values()], before[0].size)
    labels = [f"training images of {name}" for name in training_images]
    for pair in dict.fromkeys(pairs):
        samples = [k for k, its in enumerate(pairs) if its == pair]
        rows += [[before[k] for k in samples], [after[k] for k in samples]]
        labels += [f"before: {pair[0]}", f"after, same seeds: {pair[1]}"]
    return sheet(rows, labels)


def time_lapse(
    frames: list[tuple[int, list[Image.Image]]], prompts: list[str], folder: Path
) -> None:
    """Draw `time_lapse.gif` and `time_lapse.png` (a strip) of every prompt's samples, by step.

    Args:
        prompts: the prompt of each sample. Samples of one prompt are a row of the animation; the
            strip shows the first of them.
    """
    rows = {prompt: [k for k, p in enumerate(prompts) if p == prompt] for prompt in prompts}
    pictures = [
        sheet(
            [[images[k] for k in row[:ANIMATED]] for row in rows.values()],
            list(rows),
            title=f"step {step}",
        )
        for step, images in frames
    ]
    last = len(frames) - 1
    pictures[0].save(
        folder / "time_lapse.gif",
        save_all=True,
        append_images=pictures[1:],
        duration=[1600 if k in (0, last) else 600 for k in range(len(pictures))],
        loop=0,
    )
    # A strip shows at most eight moments, evenly spaced, including the first and last.
    wanted = min(8, len(frames))
    chosen = [frames[round(k * last / max(1, wanted - 1))] for k in range(wanted)]
    strip = [[images[row[0]] for _, images in chosen] for row in rows.values()]
    picture = sheet(strip, list(rows), [f"step {step}" for step, _ in chosen])
    save(picture, folder / "time_lapse.png")
