"""A1111's embedding cards: pictures that hold a concept in the low bits of their pixels.

Each side of the picture has a block of data behind a black column. The left block holds the lower
halves of the bytes, the right block the upper halves, both XORed with the numbers of a generator
(https://github.com/AUTOMATIC1111/stable-diffusion-webui, modules/textual_inversion/
image_embedding.py). The bytes are JSON, compressed with zlib.
"""

import json
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import torch

from detsd.utils.formats import open_picture

MAX_PIXELS = 2**22  # a card has just over a million

MAX_JSON = 2**23  # bytes; 75 vectors of 1280 numbers take 2 MB


def read_card(file: BinaryIO) -> Any:
    """Return the table hidden in a picture's pixels; None if there is none."""
    try:
        file.seek(0)
        with open_picture(file) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            data = _hidden_bytes(np.asarray(image.convert("RGB")))
        if data is None:
            return None
        # The block is padded with copies of its beginning, which the decoder does not need.
        text = zlib.decompressobj().decompress(data, MAX_JSON)
        return json.loads(text, object_hook=tensors)
    except Exception:  # untrusted bytes can fail in any way: treat it as a plain picture
        return None


def tensors(entry: dict[str, Any]) -> Any:
    """Convert A1111's JSON form of a tensor to a tensor; return other JSON unchanged."""
    return torch.tensor(entry["TORCHTENSOR"]) if "TORCHTENSOR" in entry else entry


def _hidden_bytes(pixels: np.ndarray) -> bytes | None:
    """Return the bytes in the two blocks of a picture (h, w, 3); None if it has none."""
    lit = (pixels > 0).all(2)
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    if not len(rows):
        return None
    low = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 15
    black = np.flatnonzero(low.sum((0, 2)) == 0)
    if len(black) < 2:
        return None
    lower, upper = low[:, : black[0]].ravel(), low[:, black[-1] + 1 :].ravel()
    if len(lower) != len(upper):
        return None
    start = next(_generator()) & 15
    if ((upper[:1] ^ start) << 4 | (lower[:1] ^ start)) != 0x78:  # zlib's first byte
        return None
    mask = np.fromiter(_generator(), np.uint8, count=len(lower)) & 15
    return ((upper ^ mask) << 4 | (lower ^ mask)).tobytes()


def _generator() -> Iterator[int]:
    """Yield the numbers of a linear congruential generator that starts from 0."""
    state = 0
    while True:
        state = (1664525 * state + 1013904223) % 2**32
        yield state % 255
