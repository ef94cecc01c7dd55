"""Read files from `torch.save` without running any code from them or PyTorch's unpickler.

`torch.load(weights_only=True)` supports only the pickle operations of protocol 2 and no NumPy
numbers, so it rejects intact files from other programs as damaged. Here, every name in a pickle
maps to something defined in this module: a tensor of the file's bytes, a dictionary or a number.
Other names are refused. (Layouts: torch/serialization.py, `_save` and `_legacy_save`.)
"""

import io
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import torch

MAX_PICKLE = 2 * 2**20  # bytes; a thousand concepts take a third of it

# A tensor takes 50. Each operation may create an object of some hundred bytes: without a limit,
# 33 kB of lists took 1.2 GB.
MAX_OPERATIONS = 300_000

MAX_TUPLES = 20_000  # a tensor takes 4; C hashes nested tuples recursively, on a stack of 8 MB

MAX_COPIED = 2**20  # entries and characters that a pickle may cause to be copied

MAX_NAME = 200  # characters of a module and a class

MAGIC = 0x1950A86A20F9469CFC6C  # starts a file from PyTorch before 1.6

STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
}  # fmt: skip


class ForeignCode(Exception):
    """A class or function that tensors do not need; the message is its name."""


class Unreadable:
    """A part of a file that is not a tensor, such as a NumPy array."""

    def __init__(self, *_: Any): ...

    def __setstate__(self, state: Any): ...


def read_zip(archive: zipfile.ZipFile, pickled: str) -> Any:
    """Read the pickle named `pickled` in an archive, with the tensors beside it."""
    folder = pickled.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") == b"big":
        raise ValueError("its byte order is big-endian")

    storages: dict[str, tuple[torch.dtype, bytearray]] = {}

    def storage(dtype: torch.dtype, key: str, count: int) -> tuple[torch.dtype, bytearray]:
        if key not in storages:  # a pickle may name one storage a million times
            storages[key] = dtype, bytearray(archive.read(f"{folder}data/{key}"))
        if len(storages[key][1]) != count * dtype.itemsize:
            raise ValueError("a storage has the wrong size")
        return storages[key]

    if archive.getinfo(pickled).file_size > MAX_PICKLE:
        raise ValueError(f"its pickle has more than {MAX_PICKLE} bytes")
    # Read as a whole, because zipfile compares the checksum only at the end.
    return _load(io.BytesIO(archive.read(pickled)), storage)


def read_legacy(file: BinaryIO, size: int) -> Any:
    """Read a file from PyTorch before 1.6: five pickles, then the tensors' bytes."""
    storages: dict[str, tuple[torch.dtype, bytearray]] = {}
    left = size

    def storage(dtype: torch.dtype, key: str, count: int) -> tuple[torch.dtype, bytearray]:
        nonlocal left
        if key not in storages:
            left -= count * dtype.itemsize
            if count < 0 or left < 0:
                raise ValueError("cut short")
            storages[key] = dtype, bytearray(count * dtype.itemsize)
        return storages[key]

    pickles = io.BytesIO(file.read(MAX_PICKLE))
    magic, _, _, table, keys = (_load(pickles, storage) for _ in range(5))
    if magic != MAGIC:
        raise ValueError("not a PyTorch file")
    file.seek(pickles.tell())
    for key in keys:
        dtype, data = storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        if count * dtype.itemsize != len(data) or file.readinto(data) != len(data):
            raise ValueError("cut short")
    return table


def _load(pickles: io.BytesIO, storage: Callable[[torch.dtype, str, int], Any]) -> Any:
    """Read the next pickle after counting its operations, each of which may create an object."""
    start, tuples = pickles.tell(), 0
    for number, (operation, argument, _) in enumerate(pickletools.genops(pickles)):
        tuples += operation.name.startswith("TUPLE")
        if number >= MAX_OPERATIONS or tuples > MAX_TUPLES:
            raise ValueError("a pickle of too many parts")
        if operation.name == "GLOBAL" and len(argument) > MAX_NAME:
            raise ForeignCode(argument)
    pickles.seek(start)
    return _Unpickler(pickles, storage).load()


class _Unpickler(pickle.Unpickler):
    """An unpickler that maps every name to something harmless."""

    def __init__(self, file: Any, storage: Callable[[torch.dtype, str, int], Any]):
        super().__init__(file, encoding="utf-8")
        self._storage = storage
        self._names = dict(_names())

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement for a class or function."""
        if len(module) + len(name) > MAX_NAME:
            raise ForeignCode(module[:MAX_NAME])
        full = f"{module}.{name}"
        if full in self._names:
            return self._names[full]
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if re.fullmatch(r"torch\._utils\._rebuild_\w+|torch\.serialization\._get_layout", full):
            return lambda *_: torch.empty(0)  # a sparse or quantized tensor: not a matrix
        raise ForeignCode(full)

    def persistent_load(self, saved: Any) -> Any:
        """Return the storage of a tensor, or a class."""
        if saved[0] == "module":  # from older PyTorch: a class, with its source code
            return saved[1]
        kind, dtype, key, _, count, *view = saved
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(view):
            raise ValueError("an unknown kind of storage")
        return self._storage(dtype, key, count)


def _names() -> Iterator[tuple[str, Any]]:
    """Yield names and their replacements, created anew: a pickle may set their attributes."""
    copied = 0

    def bounded(values: Any) -> Any:
        nonlocal copied
        copied += len(values)
        if copied > MAX_COPIED:
            raise ValueError("a pickle of too many parts")
        return values

    class Table(dict):
        def __init__(self, values: Any = ()):
            super().__init__(bounded(values))

        def __setstate__(self, state: Any): ...

    class ParameterTable(dict):
        def __setstate__(self, state: Any):
            self.update(bounded(state["_parameters"]))

    class NumpyType:
        def __init__(self, code: str, *_: Any):
            self.code, self.order = code, "<"

        def __setstate__(self, state: Any):
            self.order = ">" if state[1] == ">" else "<"

    def tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
        dtype, data = storage
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return torch.as_strided(flat, tuple(bounded(size)), tuple(bounded(stride)), offset)

    def tensor_v3(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
        _grad, _hooks, dtype, *_ = rest
        return tensor((dtype, storage[1]), offset, size, stride)

    def number(kind: NumpyType, data: bytes) -> int | float | None:
        is_number = re.fullmatch("f[248]|[iu][1248]|b1", kind.code)
        return np.frombuffer(data, kind.order + kind.code).item() if is_number else None

    yield "collections.OrderedDict", Table
    yield "torch.nn.modules.container.ParameterDict", ParameterTable
    for module in ("torch._utils", "torch"):
        yield f"{module}._rebuild_tensor_v2", tensor
        yield f"{module}._rebuild_tensor", tensor
    yield "torch._utils._rebuild_tensor_v3", tensor_v3
    yield "torch._utils._rebuild_parameter", lambda data, *_: data
    yield "torch._utils._rebuild_parameter_with_state", lambda data, *_: data
    yield "torch._tensor._rebuild_from_type_v2", lambda call, kind, given, state: call(*given)
    for name in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        yield name, type("Unreadable", (Unreadable,), {})
    yield "torch.Size", lambda size=(): tuple(bounded(size))
    yield "torch.device", lambda *_: None
    for name in ("__builtin__.set", "builtins.set"):
        yield name, lambda values=(): set(bounded(values))
    yield "_codecs.encode", lambda text, encoding: bounded(text).encode("latin1")
    yield "numpy.dtype", NumpyType
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        yield f"{module}.scalar", number
        yield f"{module}._reconstruct", lambda *_: Unreadable()
        yield f"{module.replace('multiarray', 'numeric')}._frombuffer", lambda *_: Unreadable()
    yield "numpy.ndarray", type("Unreadable", (Unreadable,), {})
