"""Images on the page: files, thumbnails, captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detsd.data.folder import list_images
from detsd.sampling.jobs import Job


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder that may not be there."""
    return list_images(folder) if folder.is_dir() else []


# ---- what is made --------------------------------------------------------------------------------


@dataclass(frozen=True)
class PageImage:
    """An image as the page shows it: its file, the file of a larger copy, its job."""

    path: Path
    larger: Path | None
    job: Job
    flagged: bool

    @property
    def caption(self) -> str:
        black = ", blacked out by the model's safety checker" if self.flagged else ""
        return f"seed {self.job.seed}{black}"
