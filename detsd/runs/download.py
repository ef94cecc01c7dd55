"""Checkpoints of a Determined cluster, downloaded once and kept."""

import os
import shutil
from pathlib import Path

from determined.errors import CheckpointStateException
from determined.experimental import client

from detsd.runs.master import asking_master
from detsd.utils.errors import UserError
from detsd.utils.paths import uuid_problem

KEEPS = ("save_experiment_best", "save_trial_best", "save_trial_latest")
MAX_LISTED = 5  # checkpoints in a sentence
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "detsd" / "checkpoints"


def cached_checkpoint(uuid: str) -> Path:
    """Return the folder of a Determined checkpoint, downloaded at the first call and kept."""
    if problem := uuid_problem(uuid):  # it becomes a path
        raise UserError(problem)
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
        shutil.rmtree(staging)  # another process with the same home was faster
    return folder


def download(uuid: str, to: Path) -> None:
    """Download a Determined checkpoint, whose uuid was checked, into an empty folder."""
    what, hint = f"checkpoint {uuid}", "make its storage or the master accessible from this machine"
    unknown = f"{what} is unknown to the master; check the uuid"
    with asking_master(what, unknown, hint, "downloaded"):
        try:
            client.get_checkpoint(uuid).download(str(to))
        except CheckpointStateException:
            raise UserError(deleted(uuid)) from None
        except BaseException:  # also Ctrl-C
            shutil.rmtree(to, ignore_errors=True)
            raise


def deleted(uuid: str) -> str:
    """Return a sentence on a checkpoint that the cluster has deleted, and on those left."""
    try:
        training = client.get_checkpoint(uuid).training
        number, storage = training.experiment_id, training.experiment_config["checkpoint_storage"]
        left = client.get_experiment(number).list_checkpoints(
            client.CheckpointSortBy.BATCH_NUMBER, client.OrderBy.DESCENDING, MAX_LISTED
        )
    except Exception:  # the sentence is useful even without the master's part
        return f"checkpoint {uuid} was deleted; name another one (det e list-checkpoints ID)"
    kept = ", ".join(f"{key}: {storage.get(key)}" for key in KEEPS)
    found = ", ".join(f"{c.uuid} (step {c.metadata['steps_completed']})" for c in left)
    return (
        f"checkpoint {uuid} was deleted: checkpoint_storage of its experiment {number} keeps {kept}"
        + (f"; name one that is left: {found}" if found else "; none of that experiment is left")
    )
