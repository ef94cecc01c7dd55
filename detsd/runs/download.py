"""Checkpoints of a Determined cluster, downloaded once and kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from determined.common.api import errors as api_errors

from detsd.utils.errors import UserError, one_line

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "detsd" / "checkpoints"


def cached_checkpoint(uuid: str) -> Path:
    """Return the folder of a Determined checkpoint, downloaded at the first call and kept."""
    folder = CACHE / uuid
    if folder.is_dir():
        return folder
    staging = folder.with_name(f".{uuid}-{os.getpid()}")
    download(uuid, staging)
    try:
        os.replace(staging, folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(staging)  # somebody else with the same home was faster
    return folder


def download(uuid: str, to: Path) -> None:
    """Download a Determined checkpoint into an empty folder.

    The master and the login are those of the `det` command line.
    """
    from determined.experimental import client  # here, since laptops without a cluster need it not

    try:
        client.get_checkpoint(uuid).download(str(to))
    except api_errors.NotFoundException:
        raise UserError(f"checkpoint {uuid} is unknown to the master; check the uuid") from None
    except api_errors.MasterNotFoundException:
        raise UserError(
            f"checkpoint {uuid} cannot be asked for: no Determined master was found; set DET_MASTER"
        ) from None
    except Exception as error:  # storage back ends raise what they like
        shutil.rmtree(to, ignore_errors=True)
        reason = one_line(error)
        raise UserError(
            f"checkpoint {uuid} cannot be downloaded ({type(error).__name__}: {reason}); try "
            "det checkpoint download, and load its folder"
        ) from None
