"""Checkpoints of a grid on a cluster: each holds the images made since the one before."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detsd.runs.download import download
from detsd.runs.folder import MANIFEST, METADATA, read_metadata
from detsd.runs.run import unpack
from detsd.utils.errors import UserError


@dataclass
class Shard:
    """A stored checkpoint: the images that it alone holds."""

    uuid: str
    numbers: list[int]
    sheets: list[str] = field(default_factory=list)


def still_kept(shards: int, keeps: int) -> int:
    """How many shards, the newest, go on to hold their images when one is added to `shards`.

    The new one takes in what the others hold. With room for as many again: an answer of the master
    that was cut may leave a checkpoint twice.
    """
    return min(shards, max(1, keeps // 2) - 1)


def download_grid(uuid: str, folder: Path) -> int:
    """Download a checkpoint, and of a grid all others that hold its images, into one folder.

    What is packed is unpacked; of a grid the folder becomes what a run off cluster leaves behind.

    Returns:
        How many images a grid's manifest names; 0 for a fine-tuning.

    Raises:
        UserError: the folder is not empty, or as `cluster.download`.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder with --output-dir")
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []

    def fetch(uuid: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as name:
            checkpoint = Path(name) / uuid
            download(uuid, checkpoint)
            metadata = read_metadata(checkpoint)
            if metadata.get("kind") == "generate":
                lines.extend((checkpoint / MANIFEST).read_text(encoding="utf-8").splitlines())
            for packed in checkpoint.glob("*.zip"):
                unpack(packed, folder)
                packed.unlink()
            shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        return metadata

    metadata = fetch(uuid)
    for other in metadata.get("shards", []):
        fetch(other)
    if metadata.get("kind") == "generate":
        (folder / METADATA).unlink()
        lines.sort(key=lambda line: json.loads(line)["job"])
        (folder / MANIFEST).write_text("".join(f"{s}\n" for s in lines), encoding="utf-8")
    return len(lines)
