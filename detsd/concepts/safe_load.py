"""Load tensors and metadata from an untrusted file without running code.

A file is recognised by its content, never by its suffix. Sizes are bounded before anything is read,
and a pickle may name only tensors and containers.
"""

import base64
import binascii
import codecs
import contextlib
import io
import json
import logging
import os
import pickletools
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from safetensors import SafetensorError, safe_open

from detsd.concepts.cards import read_card, tensors
from detsd.concepts.pickles import ForeignCode, read_legacy, read_zip
from detsd.utils.errors import UserError, one_line

logger = logging.getLogger("detsd")

MAX_BYTES = 256 * 2**20  # bytes; 75 rows of Stable Diffusion XL take 0.6 MB

# Bytes of a header, a pickle or a PNG chunk; a concept takes 0.1 kB. A header of this size that is
# full of empty JSON objects takes 0.4 GB.
MAX_HEADER = 10 * 2**20

MAX_DIRECTORY = 2 * 2**20  # bytes of an archive's directory; 0.1 kB per tensor

PICTURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"RIFF": "WebP",
}

ARCHIVES = {b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7z", b"Rar!": "RAR", b"\xfd7zXZ": "xz"}

PNG_KEYWORD = b"sd-ti-embedding"

# OneTrainer and A1111 bundle a word with a LoRA; peft saves trained tokens beside one.
WORD_IN_LORA = re.compile(r"^bundle_emb\.|\.trainable_tokens_delta$")

# Patterns of tensor names, the most specific first.
_NETWORKS = {
    "a LoRA": r"lora_(unet|te|down|up|[AB])|\.lora[_.]|\.hada_w|\.lokr_|\.oft_",
    "a whole model": r"model\.diffusion_model\.|cond_stage_model\.|conditioner\.embedders",
    "an IP-Adapter": r"ip_adapter\.",
    "a ControlNet": r"control_model\.|controlnet_",
    "part of a model": r"\.(weight|bias)$",
}


def refuse(path: Path, what: str, instead: str = "name a concept file") -> NoReturn:
    """Raise UserError with the kind of a file, and with what to do."""
    raise UserError(f"{path} is {what}, not a concept; {instead}")


def damaged(path: Path, how: str) -> NoReturn:
    """Raise UserError saying that a file is damaged."""
    raise UserError(f"{path} is damaged ({how}); use an intact copy")


def network(names: Iterable[str]) -> str | None:
    """Name the kind of network that has tensors with these names; None for a concept's."""
    text = "\n".join(names)
    return next((k for k, signs in _NETWORKS.items() if re.search(signs, text, re.M)), None)


def read(path: Path) -> tuple[Any, dict[str, str]]:
    """Read a file's tensors in their original containers, and the metadata of safetensors."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            refuse(path, "a device, pipe or socket")
        if status.st_size == 0:
            raise UserError(f"{path} is empty; use an intact copy")
        with path.open("rb") as file:
            return _read(path, file, status.st_size)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None


def _read(path: Path, file: BinaryIO, size: int) -> tuple[Any, dict[str, str]]:
    head = file.read(1024)
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(path, file), {}
    if head[5:9] == b"\0\0\0{":  # a header length below 2^40, then the header's first byte
        return _read_safetensors(path, file, size)
    if head[:1] == b"\x80":
        return _read_pickle(path, file, size), {}
    picture = next((kind for start, kind in PICTURES.items() if head.startswith(start)), None)
    if picture == "PNG":
        return _read_png(path, file, size), {}
    if picture == "WebP" and (table := read_card(file)) is not None:
        return table, {}
    if picture and (picture != "WebP" or head[8:12] == b"WEBP"):
        refuse(path, f"a picture ({picture})")
    if head.startswith(b"version https://git-lfs.github.com/"):
        refuse(path, "a Git LFS pointer", "fetch the file itself with git lfs pull")
    if re.match(rb"\W*(!doctype\s+)?html\b", head, re.I):
        refuse(path, "a web page (HTML)", "download the file itself")
    archive = next((kind for start, kind in ARCHIVES.items() if head.startswith(start)), None)
    if archive:
        refuse(path, f"an archive ({archive})", "unpack it and name the file inside")
    if head.startswith(b"GGUF"):
        refuse(path, "a whole model (GGUF)")
    with contextlib.suppress(UnicodeDecodeError):
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
        if "\0" not in text:
            yaml = path.suffix.lower() in (".yaml", ".yml")
            refuse(path, "a YAML file" if yaml else "a text file")
    refuse(path, "a damaged file, or one of an unknown kind")


# ---- safetensors ---------------------------------------------------------------------------------


def _read_safetensors(
    path: Path, file: BinaryIO, size: int
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        damaged(path, f"cut short: its header needs {length} bytes, the file has {size}")
    if length > MAX_HEADER:
        refuse(path, f"a file with a header of {length / 1e6:.0f} MB")
    try:
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
    except (ValueError, RecursionError, AttributeError):
        damaged(path, "its header is not JSON")
    kind, words = network(header), [name for name in header if WORD_IN_LORA.search(name)]
    if kind and not words:
        refuse(path, kind)
    if kind:
        logger.warning("%s is %s that includes a concept; only the concept is read", path, kind)
    names = words or list(header)
    try:
        if words:  # the LoRA beside them may have any size
            spans = (header[name]["data_offsets"] for name in words)
            size = sum(end - start for start, end in spans)
    except (TypeError, ValueError, KeyError):
        damaged(path, "its header does not describe tensors")
    if size > MAX_BYTES:
        refuse(path, f"a file of {size / 1e9:.1f} GB")
    try:
        with safe_open(str(path), "pt") as f:
            # Copied, since the tensors are mapped from the file, which another process may change.
            return {name: f.get_tensor(name).clone() for name in names}, metadata
    except (SafetensorError, RuntimeError, ValueError, MemoryError) as error:
        damaged(path, one_line(error, 100))


# ---- pickles -------------------------------------------------------------------------------------


def _read_zip(path: Path, file: BinaryIO) -> Any:
    """Read a file from `torch.save`: a zip archive of a pickle and the tensors' bytes."""
    with _refusing(path):
        directory = zipfile._EndRecData(file)  # ZipFile reads all its entries at once
        if directory and directory[zipfile._ECD_SIZE] > MAX_DIRECTORY:
            refuse(path, "an archive (zip) of too many files", "unpack it and name the file inside")
    with _refusing(path), zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        pickles = [m.filename for m in members if m.filename.endswith("/data.pkl")]
        if not pickles:
            refuse(path, "an archive (zip)", "unpack it and name the file inside")
        unpacked = sum(m.file_size for m in members)
        if unpacked > MAX_BYTES:
            with archive.open(pickles[0]) as member:
                kind = network(_texts(member.read(MAX_HEADER)))
            refuse(path, kind or f"an archive that unpacks to {unpacked / 1e9:.1f} GB")
        return read_zip(archive, pickles[0])


def _read_pickle(path: Path, file: BinaryIO, size: int) -> Any:
    """Read a file from `torch.save` before PyTorch 1.6: pickles, then the tensors' bytes."""
    with _refusing(path):
        if size > MAX_BYTES:
            kind = network(_texts(file.read(MAX_HEADER)))
            refuse(path, kind or f"a file of {size / 1e9:.1f} GB")
        return read_legacy(file, size)


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn any error while reading a pickle into one sentence."""
    try:
        yield
    except UserError:
        raise
    except ForeignCode as error:
        name = "".join(filter(str.isprintable, str(error)))[:100]
        raise UserError(
            f"{path} holds code ({name}), which is not run; use the concept as a safetensors file"
        ) from None
    except Exception as error:  # untrusted bytes can fail in any way
        damaged(path, one_line(error, 100) or type(error).__name__)


def _texts(data: bytes) -> list[str]:
    """Return the strings in the first five pickles in `data`; nothing is run."""
    texts: list[str] = []
    stream = io.BytesIO(data)
    with contextlib.suppress(Exception):  # truncated, or not a pickle: the strings so far suffice
        for _ in range(5):
            texts += [a for _, a, _ in pickletools.genops(stream) if isinstance(a, str)]
    return texts


# ---- PNG -----------------------------------------------------------------------------------------


def _read_png(path: Path, file: BinaryIO, size: int) -> Any:
    """Read the concept in A1111's preview picture: base64-encoded JSON in a text chunk."""
    if size > MAX_BYTES:
        refuse(path, f"a picture (PNG) of {size / 1e9:.1f} GB")
    file.seek(8)
    while len(start := file.read(8)) == 8:
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        if length > size - file.tell():
            damaged(path, "cut short")
        if kind == b"IEND":
            table = read_card(file)
            return refuse(path, "a picture (PNG)") if table is None else table
        if kind != b"tEXt" or length > MAX_HEADER:
            file.seek(length + 4, os.SEEK_CUR)
            continue
        content, checksum = file.read(length), file.read(4)
        keyword, _, text = content.partition(b"\0")
        if keyword == PNG_KEYWORD:
            if checksum != zlib.crc32(kind + content).to_bytes(4, "big"):
                damaged(path, "a checksum is wrong")
            try:
                return json.loads(base64.b64decode(text, validate=True), object_hook=tensors)
            except (ValueError, TypeError, RuntimeError, RecursionError, binascii.Error) as error:
                damaged(path, one_line(error, 100))
    damaged(path, "cut short")
