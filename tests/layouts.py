"""Concept files as other tools write them, for the tests: every layout that README's table lists.

Each writer takes a path without suffix, a word and the rows of one or two text encoders, and
returns the path that a user would name.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

Writer = Callable[[Path, str, list[torch.Tensor]], Path]


def pickled(path: Path, table: object, suffix: str = ".pt", zipped: bool = True) -> Path:
    path = path.with_name(path.name + suffix)
    torch.save(table, path, _use_new_zipfile_serialization=zipped)
    return path


def tensors(path: Path, table: dict, metadata: dict | None = None) -> Path:
    path = path.with_name(path.name + ".safetensors")
    save_file(table, path, metadata)
    return path


def detsd(path, word, rows):
    keys = ("learned_embeddings", "learned_embeddings_2")
    entry = {"initializer_strs": "red ball", **dict(zip(keys, rows, strict=False))}
    return pickled(path, {word: entry})


def diffusers(path, word, rows):
    """`examples/textual_inversion/textual_inversion.py`, or `textual_inversion_sdxl.py`."""
    for number, matrix in zip(("_2", ""), reversed(rows), strict=False):
        last = tensors(path.with_name(path.name + number * (len(rows) > 1)), {word: matrix})
    return last


def diffusers_bin(path, word, rows):
    """Write diffusers' layout of 2022: one row, of one dimension."""
    return pickled(path, {word: torch.nn.Parameter(rows[0][0])}, ".bin")


def a1111(path, word, rows):
    """`Embedding.save`."""
    return pickled(
        path,
        {
            "string_to_token": {"*": 265}, "string_to_param": {"*": rows[0].requires_grad_()},
            "name": word, "step": 1200, "sd_checkpoint": "81761151",
            "sd_checkpoint_name": "v1-5-pruned-emaonly",
        },
    )  # fmt: skip


def a1111_png(path, word, rows):
    """`embedding_to_b64` in a text chunk of a preview picture."""
    data = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": {"TORCHTENSOR": rows[0].tolist()}},
        "name": word, "step": 1200, "sd_checkpoint": None, "sd_checkpoint_name": None,
    }  # fmt: skip
    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(json.dumps(data).encode()))
    path = path.with_name(path.name + ".png")
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def textual_inversion(path, word, rows):
    """`EmbeddingManager.save` of the paper's repository: a module of PyTorch 1.10."""
    table = torch.nn.ParameterDict.__new__(torch.nn.ParameterDict)
    vars(table).update(
        {name: OrderedDict() for name in ("_buffers", "_backward_hooks", "_forward_hooks")},
        training=True,
        _non_persistent_buffers_set=set(),
        _is_full_backward_hook=None,
        _parameters=OrderedDict({"*": torch.nn.Parameter(rows[0])}),
        _modules=OrderedDict(),
    )
    return pickled(path, {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": table})


def kohya(path, word, rows):
    metadata = {"modelspec.title": "TextualInversion@1690000000", "modelspec.date": "2023-07-22"}
    keys = ("emb_params",) if len(rows) == 1 else ("clip_l", "clip_g")
    return tensors(path, dict(zip(keys, rows, strict=True)), metadata)


def kohya_pt(path, word, rows):
    """Write PyTorch's older layout, which is not a zip archive."""
    return pickled(path, {"emb_params": rows[0]}, zipped=False)


def onetrainer(path, word, rows):
    keys = ("emp_params",) if len(rows) == 1 else ("clip_l", "clip_g")
    return tensors(path, dict(zip(keys, rows, strict=True)))


def bare_tensor(path, word, rows):
    return pickled(path, rows[0])


def ai_toolkit(path, word, rows):
    """`toolkit/embedding.py`: A1111's fields in the header, each value as JSON."""
    keys = ("emb_params",) if len(rows) == 1 else ("clip_l", "clip_g")
    fields = {
        "string_to_token": {"*": 265}, "name": word, "step": 500, "sd_checkpoint": None,
        "sd_checkpoint_name": None, "notes": None, "string_to_param": {"*": "emb_params"},
    }  # fmt: skip
    metadata = {key: json.dumps(value) for key, value in fields.items()} | {"format": "pt"}
    return tensors(path, dict(zip(keys, rows, strict=True)), metadata)


def several_tokens(path, word, rows):
    """diffusers' `multi_token_textual_inversion`: a matrix in a matrix."""
    return pickled(path, {word: rows[0][:1][None]}, ".bin")


LORA = {
    "lora_unet_mid.lora_down.weight": torch.ones(2, 2),
    "lora_unet_mid.alpha": torch.tensor(1.0),
}


def onetrainer_bundle(path, word, rows):
    """A LoRA with "bundle additional embeddings"."""
    keys = ("clip_l", "clip_g")
    words = {f"bundle_emb.{word}.{k}": r for k, r in zip(keys, rows, strict=False)}
    return tensors(path, LORA | words)


def a1111_bundle(path, word, rows):
    """Write a bundle as `networks.py` reads it."""
    return tensors(path, LORA | {f"bundle_emb.{word}.string_to_param.*": rows[0]})


def a1111_bundle_of_parameters(path, word, rows):
    return tensors(path, LORA | {f"bundle_emb.{word}.emb_params": rows[0]})


def a1111_card(path, word, rows, suffix=".png", **options):
    """`insert_image_data_embed`: in the low bits of the pixels beside a picture."""
    table = {
        "string_to_token": {"*": 265}, "name": word, "step": 1200,
        "string_to_param": {"*": {"TORCHTENSOR": rows[0].tolist()}},
    }  # fmt: skip
    height = 64
    data = np.frombuffer(zlib.compress(json.dumps(table).encode(), 9), np.uint8)
    data = np.resize(data, (height, -(-len(data) // (3 * height)) + 1, 3))
    state, mask = 0, np.empty(data.size, np.uint8)
    for k in range(data.size):
        state = (1664525 * state + 1013904223) % 2**32
        mask[k] = state % 255
    mask = mask.reshape(data.shape) & 15
    shades = np.full(data.shape, 0x50, np.uint8)
    black = np.zeros((height, 1, 3), np.uint8)
    picture = np.full((height, 40, 3), 200, np.uint8)
    blocks = [shades | (half ^ mask) for half in (data & 15, data >> 4)]
    card = np.concatenate([blocks[0], black, picture, black, blocks[1]], axis=1)
    path = path.with_name(path.name + suffix)
    Image.fromarray(card).save(path, **options)
    return path


def a1111_card_webp(path, word, rows):
    return a1111_card(path, word, rows, ".webp", lossless=True)


# README's name of the layout; numbers of text encoders; whether the word is the file's name.
LAYOUTS: dict[str, tuple[list[Writer], tuple[int, ...], bool]] = {
    "detsd": ([detsd], (1, 2), False),
    "diffusers": ([diffusers, diffusers_bin, several_tokens], (1, 2), False),
    "A1111": ([a1111, a1111_png, a1111_card, a1111_card_webp], (1,), False),
    "textual_inversion": ([textual_inversion], (1,), True),
    "kohya, InvokeAI": ([kohya, kohya_pt], (1, 2), True),
    "ComfyUI, kohya for SDXL": ([kohya], (2,), True),
    "OneTrainer": ([onetrainer], (1, 2), True),
    "ai-toolkit": ([ai_toolkit], (1, 2), False),
    "a word in a LoRA": (
        [onetrainer_bundle, a1111_bundle, a1111_bundle_of_parameters],
        (1, 2),
        False,
    ),
    "a bare tensor": ([bare_tensor], (1,), True),
}
