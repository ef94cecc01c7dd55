"""Start a network from trained weights of a smaller one (Net2Net, arXiv 1511.05641).

A wider or deeper network begins as the same function of its input, as nearly as its norms allow.
New channels copy old ones, so that the norms see the same values. The weights that read new
channels begin at zero, and so do the output weights of a new layer or attention.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import load_file

from demo_model.train.loop import Stop
from demo_model.train.networks import VAE_GROUPS

UP_LAYER = re.compile(r"(up_blocks\.(\d+)\.(?:resnets|attentions)\.)(\d+)(\..*)")
FREQUENCIES = "time_embedding.linear_1.weight"
SKIPS = re.compile(r"up_blocks\.(\d+)\.resnets\.(\d+)\.(?:norm1|conv1|conv_shortcut)\.")


def begin(start_from: Path | None, part: str, model: torch.nn.Module) -> None:
    """Give a new model the weights of an export, grown if it is larger; without one, leave it.

    Raises:
        Stop: The export's model of this name has another architecture.
    """
    if start_from is not None:
        grow(model, exported(start_from, part), f"{start_from} has no {part} of this kind")


def exported(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """Load one part of an exported model in single precision."""
    files = sorted((folder / part).glob("*.safetensors"))
    if part == "clip":  # its text tower is stored once, as the text encoder
        files.append(folder / "text_encoder" / "model.safetensors")
    return {k: v.float() for file in files for k, v in load_file(file).items()}


@torch.no_grad()
def grow(model: torch.nn.Module, weights: dict[str, torch.Tensor], wrong: str) -> None:
    """Put the weights of a smaller network of the same kind into `model`, in place."""
    state = model.state_dict()
    weights = _deeper(weights, state)
    if unknown := sorted(weights.keys() - state.keys()):
        raise Stop(f"{wrong}, since it holds {unknown[0]}")
    config = getattr(model, "config", None)
    groups = getattr(config, "norm_num_groups", VAE_GROUPS)
    for name, new in state.items():
        old = weights.get(name)
        if old is None:
            _begin_layer(name, new)
        elif old.shape == new.shape:
            new.copy_(old)
        elif name == FREQUENCIES and old.shape[1] != new.shape[1]:
            new.copy_(_other_frequencies(old, new.shape, groups))
        else:
            _widen(name, old, new, groups, config)


def _deeper(
    weights: dict[str, torch.Tensor], state: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Rename the layers of the up blocks that move when blocks get more layers.

    The last layer of a block reads the skip connection from the level above, and stays the last.
    """

    def last(keys) -> dict[str, int]:
        found: dict[str, int] = {}
        for match in filter(None, map(UP_LAYER.match, keys)):
            found[match[1]] = max(found.get(match[1], 0), int(match[3]))
        return found

    before, after = last(weights), last(state)
    renamed = {}
    for key, value in weights.items():
        match = UP_LAYER.match(key)
        if match and int(match[3]) == before[match[1]] and match[1] in after:
            key = f"{match[1]}{after[match[1]]}{match[4]}"
        renamed[key] = value
    return renamed


def _begin_layer(name: str, new: torch.Tensor) -> None:
    """Initialize a new layer so that it adds nothing to its input."""
    if name.endswith("conv_shortcut.weight"):  # passes on its block's channels, not the skip's
        new.zero_()
        new[:, : len(new), 0, 0] = torch.eye(len(new))
    elif any(way_out in name for way_out in (".to_out.", ".conv2.", ".proj_out.", "_shortcut.")):
        new.zero_()


def _places(old: int, new: int, groups: int) -> torch.Tensor:
    """Return the old channel that each new one copies (new,), in each group of channels.

    Each channel of latents is a group, so that their means stay apart from their variances.
    """
    groups = min(groups, old)
    each = torch.arange(old).view(groups, -1)
    return each[:, torch.arange(new // groups) % each.shape[1]].flatten()


def channels_kept(old: int, new: int) -> torch.Tensor:
    """Return the positions of a narrower VAE's latent channels in those of a wider one (old,)."""
    return _originals(_places(old, new, VAE_GROUPS)).nonzero().flatten()


def _originals(places: torch.Tensor) -> torch.Tensor:
    """Mark the first copy of each old channel (new,)."""
    first = torch.zeros(len(places), dtype=torch.bool)
    seen: set[int] = set()
    for k, place in enumerate(places.tolist()):
        first[k] = place not in seen
        seen.add(place)
    return first


def _segments(name: str, old: int, new: int, config) -> list[tuple[int, int]]:
    """Return the channels, before and after, of the parts concatenated at a layer's input."""
    match = SKIPS.match(name)
    if not match or not hasattr(config, "cross_attention_dim"):
        return [(old, new)]
    widths = config["block_out_channels"][::-1]
    level, layer = int(match[1]), int(match[2])
    if level == len(widths) - 1 and layer:  # both halves are of the top level, which may be wider
        return [(old // 2, new // 2)] * 2
    hidden = widths[level] if layer else widths[max(level - 1, 0)]
    return [(hidden, hidden), (old - hidden, new - hidden)]


def _widen(name: str, old: torch.Tensor, new: torch.Tensor, groups: int, config) -> None:
    """Copy a layer's weights into one with more channels."""
    written = _places(len(old), len(new), groups)
    if old.ndim == 1 and ".norm1." not in name:
        new.copy_(old[written])
        return
    read = 1 if old.ndim > 1 else 0  # a norm's only dimension is that of its input
    parts, start = [], 0
    for before, after in _segments(name, old.shape[read], new.shape[read], config):
        parts.append(start + _places(before, after, groups))
        start += before
    source = torch.cat(parts)
    if old.ndim == 1:
        new.copy_(old[source])
        return
    wide = old[:, source]
    wide[:, ~_originals(source)] = 0
    new.copy_(wide[written])


def _other_frequencies(old: torch.Tensor, shape: torch.Size, groups: int) -> torch.Tensor:
    """Fit the first layer of the time embedding to another number of sines and cosines."""

    def waves(size: int) -> torch.Tensor:
        steps = torch.arange(1000)
        return get_timestep_embedding(steps, size, True, 0).double()

    said = waves(old.shape[1]) @ old.double().T  # (1000, old)
    basis = waves(shape[1])
    ridge = 1e-3 * torch.eye(shape[1], dtype=torch.float64)
    fitted = torch.linalg.solve(basis.T @ basis + ridge, basis.T @ said).T.float()
    return fitted[_places(len(old), shape[0], groups)]
