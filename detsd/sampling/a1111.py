"""The fields in A1111's generation text with which it reproduces one of our images.

docs/generating.md has a table of the samplers for which the result is the same.
"""

import functools
import hashlib
from pathlib import Path
from typing import Any

from detsd.models.base import BaseModel
from detsd.sampling.stock import make_scheduler
from detsd.utils.paths import file_name, resolve
from detsd.utils.png import noise_fields


def a1111_fields(model: BaseModel, record: dict[str, Any]) -> dict[str, Any]:
    """Return noise settings and file hashes for an image's settings, as A1111 writes them."""
    name = record["scheduler_name"]
    config = make_scheduler(model, name, record["spacing"]).config
    fields = noise_fields(name, config.get("timestep_spacing", "leading"))
    if config.get("rescale_betas_zero_snr"):
        fields["Noise Schedule"] = "Zero Terminal SNR"
    if digest := file_digest(Path(resolve(model.name))):
        fields["Model hash"] = digest[:10]
    if model.clip_skip and len(model.vocabulary.text_encoders) == 1:  # A1111 fixes XL's
        fields["Clip skip"] = model.clip_skip + 1
    if model.vae_file:
        fields["VAE hash"] = file_digest(model.vae_file)[:10]
        fields["VAE"] = Path(model.vae_name.partition("@")[0]).name
    hashes = []
    for name, concept in record["concepts"].items():
        source = Path(concept["source"])
        if source.is_dir():  # a checkpoint, which also has a file for other tools
            source /= f"{file_name(name)}.safetensors"
        if digest := file_digest(source):
            hashes.append(f"{name.replace(':', '').replace(',', '')}: {digest[:12]}")
    return fields | ({"TI hashes": ", ".join(hashes)} if hashes else {})


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; "" if there is none."""
    try:
        return _digest(path, path.stat().st_mtime_ns) if path.is_file() else ""
    except OSError:  # the name is too long, or the file may not be read
        return ""


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, _: int) -> str:
    """Return the digest of a file, cached because a file of 4 GB takes seconds."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
