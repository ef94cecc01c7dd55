"""The VAE of a base model: its own, or another one that fits its UNet (`model.vae`)."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from detsd.models.hub import CONFIG, WHOLE, ModelFiles, resolve_files
from detsd.models.mapped import load_part
from detsd.models.single_file import is_single_file, safe_shapes
from detsd.models.spec import ModelSpec, loading, read_json
from detsd.utils.errors import UserError
from detsd.utils.paths import resolve

KEY = "model.vae"

HINT = (
    "name the folder or hub model of an AutoencoderKL with safetensors weights, or one "
    ".safetensors file of it"
)

INPUTS = ("encoder.conv_in.weight", "decoder.conv_in.weight")  # in either layout


def resolve_vae(name: str) -> ModelFiles:
    """Find the files of an external VAE; from the hub, only its configuration is fetched.

    Its name is a folder (of a VAE or a whole model), a file, or OWNER/NAME@REVISION on the hub.
    """
    path = Path(resolve(name))
    if is_single_file(str(path)):
        return ModelFiles(name, path.parent, {}, single=path, key=KEY)
    if path.is_dir():
        path = path / "vae" if (path / "vae" / CONFIG).is_file() else path
        return resolve_files(str(path), key=KEY, index=CONFIG)
    repository, _, revision = name.partition("@")
    return resolve_files(repository, revision or None, key=KEY, index=CONFIG)


def pinned(name: str | None, before: str | None) -> str | None:
    """Return the configured VAE at the commit that a run began with."""
    return before if name and before and before.partition("@")[0] == name else name


def check_vae(source: ModelFiles, own: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of an external VAE; refuse one that does not fit the UNet.

    For a single file, this is the configuration of the base model's VAE, `own`.
    """
    with loading(source.name, HINT, KEY):
        if source.single:
            shapes = safe_shapes(source.name, source.single, KEY)
            found = [shape for name, shape in shapes.items() if name.endswith(INPUTS)]
            if len(found) != 2:
                raise ValueError("it lacks the encoder and decoder of a VAE")
            config = own | {"latent_channels": min(shape[1] for shape in found if shape[1] != 3)}
        else:
            config = read_json(source, CONFIG)
    if (kind := config.get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
        raise UserError(f"{KEY}: {source.name} is of the class {kind}; {HINT}")
    for what, key, default in (
        ("latents of {} channels", "latent_channels", 4),
        ("the scaling factor {}", "scaling_factor", 0.18215),
        ("{} sizes of layers", "block_out_channels", (64,)),
    ):
        its, ours = config.get(key, default), own.get(key, default)
        its, ours = (len(v) if isinstance(v, list | tuple) else v for v in (its, ours))
        if not math.isclose(its, ours, rel_tol=1e-4):
            raise UserError(
                f"{KEY}: {source.name} has {what.format(its)}, but the UNet was trained on "
                f"{what.format(ours)}; name a VAE of the base model's family"
            )
    return config


def load_vae(files: ModelFiles, base: ModelFiles, part: str, dtype: torch.dtype) -> AutoencoderKL:
    """Load a VAE; a single file uses the `base` model's VAE configuration, without the hub."""
    if not files.single:
        return load_part(AutoencoderKL, files, part, dtype)
    options = {"config": str(base.folder), "subfolder": "vae", "local_files_only": True}
    try:
        return AutoencoderKL.from_single_file(str(files.single), torch_dtype=dtype, **options)
    except NotImplementedError:  # raised for moving a tensor that was never filled
        raise ValueError("it lacks some tensors of a VAE") from None


def load_external_vae(
    name: str, base: ModelFiles, spec: ModelSpec, dtype: torch.dtype
) -> tuple[AutoencoderKL, str, Path]:
    """Load a VAE to replace the base model's, before any of the base model's weights.

    Returns:
        The VAE; its name with its hub commit, by which it can be found again; the file that
        identifies it (its weights, or their first shard).
    """
    files = resolve_vae(name)
    config = check_vae(files, read_json(base, "vae/config.json"))
    files.fetch(WHOLE)
    upcast = spec.force_upcast and config.get("force_upcast", True)
    dtype = dataclasses.replace(spec, force_upcast=upcast).vae_dtype(dtype)
    with loading(name, HINT, KEY):
        vae = load_vae(files, base, WHOLE, dtype)
    weights = files.single or files.folder / files.weights(WHOLE)[0]
    return vae, f"{files.name}@{files.commit}" if files.commit else name, weights
