"""Images on the page: their files, larger copies, thumbnails, previews and contact sheets."""

import hashlib
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps

from detsd.sampling.denoise import decode
from detsd.sampling.jobs import GeneratedImage, Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.utils import contact_sheets, png
from detsd.utils.formats import open_picture
from detsd.utils.pictures import read_picture

logger = logging.getLogger("detsd")

LARGER = 512  # small images are also offered at an integer multiple of their size, up to this side


@dataclass(frozen=True)
class PageImage:
    """An image as the page shows it: its file, the file of a larger copy, its job."""

    path: Path
    larger: Path | None
    job: Job
    flagged: bool

    @property
    def caption(self) -> str:
        """The seed, and why the image is black."""
        black = ", blacked out by the model's safety checker" if self.flagged else ""
        return f"seed {self.job.seed}{black}"


def save(
    pipe: DetSDTextualInversionPipeline, jobs: list[Job], made: list[GeneratedImage], folder: Path
) -> list[PageImage]:
    """Write images into a folder, with larger copies of small ones."""
    paths = pipe.save(jobs, made, folder)
    return [
        PageImage(path, _larger(path, one.image), job, one.flagged)
        for path, one, job in zip(paths, made, jobs, strict=True)
    ]


def _larger(path: Path, image: Image.Image) -> Path | None:
    """Write a copy of a small image at an integer multiple of its size, with the same settings."""
    factor = LARGER // max(image.size)
    if factor < 2:
        return None
    copy = ImageOps.scale(image, factor, Image.Resampling.LANCZOS)
    larger = path.with_stem(f"{path.stem}-{copy.width}x{copy.height}")
    with open_picture(path) as original:
        larger.write_bytes(png.encode_texts(copy, original.text))
    return larger


def preview(pipe: DetSDTextualInversionPipeline, latents: torch.Tensor) -> Image.Image:
    """Decode latents (B, C, h, w) to a preview of up to four images, side by side."""
    latents = latents[:4]
    # Some samplers scale latents with the noise level; an image's have a standard deviation of 1.
    latents = latents / latents.std().clamp(min=1)
    pixels = torch.cat([*decode(pipe.model.vae, latents)], dim=2)  # (3, H, B * W)
    (strip,) = pipe.diffusers_pipeline.image_processor.postprocess(pixels[None])
    return ImageOps.scale(strip, max(1, LARGER // strip.width))


def thumbnails(pictures: Iterable[Path], folder: Path) -> list[Path]:
    """Return small copies of pictures, kept in `folder`; unreadable ones are left out."""
    found = []
    for path in pictures:
        try:
            digest = hashlib.sha256(f"{path} {path.stat().st_mtime_ns}".encode()).hexdigest()
            small = folder / f"small-{digest[:16]}.png"
            if not small.is_file():
                copy = read_picture(path, needed=(256, 256)).rgb
                copy.thumbnail((256, 256))
                folder.mkdir(parents=True, exist_ok=True)
                copy.save(small)
            found.append(small)
        except Exception as error:  # broken files raise a dozen classes
            logger.warning("%s cannot be shown (%s)", path, error)
    return found


def sheet(
    images: dict[int, PageImage], columns: list[str], rows: list[str], title: str, folder: Path
) -> Path:
    """Write the contact sheet of a grid; some of its images may be missing."""
    with open_picture(next(iter(images.values())).path) as first:
        size = first.size
    cells = []
    for number in range(len(columns) * len(rows)):
        one = images.get(number)
        if one is None:
            cells.append(contact_sheets.notice("not made", size))
        elif one.flagged:
            cells.append(contact_sheets.notice("flagged by the safety checker", size))
        else:
            with open_picture(one.path) as image:
                cells.append(image.convert("RGB"))
    by_row = [cells[k : k + len(columns)] for k in range(0, len(cells), len(columns))]
    picture = contact_sheets.sheet(by_row, rows, columns, title)
    path = folder / f"grid-{time.time_ns()}.png"
    picture.save(path)
    return path
