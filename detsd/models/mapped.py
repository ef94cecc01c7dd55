"""Cast memory-mapped weights of safetensors files without holding both dtypes at once.

A weight that is loaded in the dtype of its file is mapped from the file: it takes no memory until
it is read. When the libraries' loaders cast weights, every page that was read stays in memory until
the last weight is cast: 5.2 GB for Stable Diffusion's float32 UNet in bfloat16, which takes 1.7 GB.
"""

import ctypes
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import safe_open

from detsd.models.hub import WHOLE, ModelFiles

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

MADV_DONTNEED = 4  # on Linux: drops pages of a file, which are read again when needed


def load_part(cls: type, source: ModelFiles, part: str, dtype: torch.dtype) -> Any:
    """Load one part of a model.

    Raises:
        ValueError: weights are missing, which the libraries would initialise at random.
    """
    files = [source.folder / name for name in source.weights(part)]
    options = {}
    if issubclass(cls, ModelMixin):
        # transformers has renamed this keyword, and does not need it.
        options["torch_dtype"] = stored_dtype(files) or dtype
    elif tokens := stored_tokens(files):
        # diffusers leaves the old number in the configuration when it removes a word.
        options["vocab_size"] = tokens
    model, info = cls.from_pretrained(
        source.folder,
        subfolder=None if part == WHOLE else part,
        use_safetensors=True,
        variant=source.variant(part),
        output_loading_info=True,
        **options,
    )
    if missing := sorted(info["missing_keys"]):
        reason = f"the weights of {part} lack {len(missing)} of its tensors, first {missing[0]}"
        if any(".base_layer." in name for name in info["unexpected_keys"]):
            reason += (
                "; a LoRA was loaded when it was saved, so save it again after "
                "unload_lora_weights() (and fuse_lora() before that, to keep its effect)"
            )
        elif info["unexpected_keys"]:
            reason += "; another version of transformers seems to have saved them, so use that one"
        raise ValueError(reason)
    return cast(model, dtype, files)


def stored_dtype(files: Iterable[Path]) -> torch.dtype | None:
    """Return the dtype of all weights in safetensors files; None if they differ."""
    found = set()
    for path in files:
        with safe_open(str(path), "pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return DTYPES.get(found.pop()) if len(found) == 1 else None


def stored_tokens(files: Iterable[Path]) -> int | None:
    """Return the number of token vectors in a text encoder's files; None for other parts."""
    for path in files:
        with safe_open(str(path), "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name.endswith("token_embedding.weight"):
                    return file.get_slice(name).get_shape()[0]
    return None


@torch.no_grad()
def cast(model: torch.nn.Module, dtype: torch.dtype, files: Iterable[Path]) -> torch.nn.Module:
    """Cast a model's weights one by one, and release the pages mapped from `files` on the way."""
    weights = (*model.parameters(), *model.buffers())
    others = [w for w in weights if w.is_floating_point() and w.dtype != dtype]
    maps = _maps(files) if others else []
    for weight in others:
        mapped = weight.data
        weight.data = mapped.to(dtype)
        _release(mapped, maps)
    return model


def _maps(files: Iterable[Path]) -> list[tuple[int, int]]:
    """Return the address ranges into which this process has mapped files; on Linux only."""
    paths = {str(path.resolve()) for path in files}
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    found = [line.split(maxsplit=5) for line in lines]
    return [
        tuple(int(end, 16) for end in words[0].split("-")) for words in found if words[-1] in paths
    ]


def _release(mapped: torch.Tensor, maps: list[tuple[int, int]]) -> None:
    """Release the whole pages of a tensor, if it is part of a mapped file."""
    first, size, page = mapped.data_ptr(), mapped.nbytes, mmap.PAGESIZE
    if any(begin <= first and first + size <= end for begin, end in maps):
        begin = -(-first // page) * page
        if (length := (first + size) // page * page - begin) > 0:
            madvise = ctypes.CDLL(None).madvise
            madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), MADV_DONTNEED)
