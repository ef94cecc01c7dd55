"""Models of a Determined cluster's registry, and the checkpoints that they stand for."""

import contextlib
import re
from typing import Any

from determined.common.api import errors as api_errors
from determined.experimental import client

from detsd.runs.master import asking_master
from detsd.utils.errors import UserError

# The settings that tell one version from another in a list.
SETTINGS = {
    "model": ("pretrained_model_name_or_path",),
    "concepts": ("num_vectors",),
    "training": ("num_sgd_steps", "learning_rate", "lr_scheduler", "train_batch_size"),
}


def find_version(name: str) -> tuple[str, int]:
    """Return the checkpoint's uuid, and the version, of `model` (its latest) or `model:version`."""
    model, number = re.fullmatch(r"(.+?)(?::(\d+))?", name).groups()
    unknown = f"the registry has no model {model!r}; det model list shows all models"
    with asking_master(f"model {model!r}", unknown, "see whether det model list works"):
        entry, version = client.get_model(model), None
        with contextlib.suppress(api_errors.NotFoundException):
            version = entry.get_version(int(number) if number else -1)
    if version is None:
        what = f"no version {number}" if number else "no version yet"
        raise UserError(f"model {model!r} has {what}; det model list-versions shows all versions")
    return version.checkpoint.uuid, version.model_version


def shorten(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's metadata with a few settings in place of its configuration.

    `det model list-versions` prints all of them for every version.
    """
    config = metadata.get("config", {})
    found = {k: config.get(s, {}).get(k) for s, keys in SETTINGS.items() for k in keys}
    kept = {key: value for key, value in metadata.items() if key not in ("config", "evaluators")}
    return kept | {key: value for key, value in found.items() if value is not None}
