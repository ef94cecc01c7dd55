"""A pretended accelerator, which looks like another device but computes on the CPU.

    with pretend.watching() as waits:
        model.to(pretend.DEVICE)(x.to(pretend.DEVICE))

Each of its tensors wraps a CPU tensor, with which every operation is done: its numbers are the
CPU's, bit for bit. But it is as strict as CUDA. Operations that mix tensors of both devices are
refused where CUDA refuses them; so are random numbers from the device, since nothing may depend on
them. It records every operation that would make the host wait for the device: those that CUDA's
`set_sync_debug_mode` finds, and copies, except those from pinned memory.

This is PyTorch's device for external backends. It changes the process, so import this in a fork.
Attention takes its plain form there, and must be compared with the CPU's plain form; so do
optimizers, which on CUDA update all rows at once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

import detsd

CPU = torch.device("cpu")
PACKAGE = str(Path(detsd.__file__).parent)
Tag, aten = torch.Tag, torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
INDEXING += (aten._index_put_impl_.default, aten._unsafe_index.Tensor)
_watching: list[list[Wait]] = []


@dataclass(frozen=True)
class Wait:
    """An operation in which the host waits for the device."""

    what: str
    where: str  # file and function of the package
    line: int
    unpinned: bool = False  # a copy that waits only because its memory is not pinned

    def __str__(self) -> str:
        return f"{self.what} in {self.where}"


@contextmanager
def watching() -> Iterator[list[Wait]]:
    """Record the waits within the block."""
    _watching.append([])
    try:
        yield _watching[-1]
    finally:
        _watching.pop()


def _note(func: Any, unpinned: bool = False) -> None:
    frame = sys._getframe()
    while frame.f_back and not (
        frame.f_code.co_filename.startswith(PACKAGE) and frame.f_code.co_name[0] != "<"
    ):
        frame = frame.f_back
    where = f"{Path(frame.f_code.co_filename).name} {frame.f_code.co_name}"
    for seen in _watching:
        seen.append(Wait(func._schema.name.removeprefix("aten::"), where, frame.f_lineno, unpinned))


class Pretended(torch.Tensor):
    """A tensor of the device; `raw` is the CPU tensor inside."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, raw.stride(), raw.storage_offset(), dtype=raw.dtype, device=DEVICE
        )
        made.raw = raw
        return made

    def __repr__(self) -> str:
        return f"{self.raw!r} on {self.device}"

    def __reduce_ex__(self, protocol: int) -> Any:  # saved as a CPU tensor
        return self.cpu().__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        given: list[torch.Tensor] = []
        known: dict[int, torch.Tensor] = {}  # tensors changed in place are returned themselves

        def inside(x: torch.Tensor) -> torch.Tensor:
            raw = x.raw if isinstance(x, cls) else x
            given.append(x)
            known[id(raw)] = x
            return raw

        raws, options = _each(inside, args), _each(inside, kwargs or {})
        to = torch.device(options.get("device") or DEVICE)
        if "device" in options:
            options["device"] = CPU
        _refuse(func, args, [x for x in given if not isinstance(x, cls)])
        _find_waits(func, args, to)
        made = func(*raws, **options)
        assert all(x.shape == x.raw.shape for x in given if isinstance(x, cls)), func
        return _each(lambda x: known.get(id(x), x if to == CPU else cls(x)), made)


def _each(change: Callable[[torch.Tensor], torch.Tensor], x: Any) -> Any:
    """Return the same structure with changed tensors."""
    if isinstance(x, torch.Tensor):
        return change(x)
    if isinstance(x, (list, tuple)):
        return type(x)([_each(change, y) for y in x])
    return {key: _each(change, y) for key, y in x.items()} if isinstance(x, dict) else x


def _refuse(func: Any, args: tuple, of_the_cpu: list[torch.Tensor]) -> None:
    if _has(func, Tag.nondeterministic_seeded):
        raise RuntimeError(f"{func} draws random numbers on {DEVICE}, others than the CPU's")
    if func in INDEXING and isinstance(args[0], Pretended):
        of_the_cpu = [x for x in of_the_cpu if all(x is not index for index in args[1])]
    if not of_the_cpu or func in (aten.copy_.default, aten._to_copy.default):
        return
    numbers = all(x.ndim == 0 for x in of_the_cpu)
    changed = func._schema.is_mutable and not isinstance(args[0], Pretended)
    takes_numbers = _has(func, Tag.pointwise) or func is aten.fill_.Tensor
    if not numbers or not takes_numbers or changed:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{DEVICE} and cpu! ({func})"
        )


def _find_waits(func: Any, args: tuple, to: torch.device) -> None:
    if func is aten.copy_.default:
        if isinstance(args[0], Pretended) != isinstance(args[1], Pretended):
            _note(func, unpinned=bool(args[2:] and args[2]))
    elif func is aten._to_copy.default:
        if to == CPU:
            _note(func)
    elif func in INDEXING:
        for index in args[1]:
            if index is not None and (
                not isinstance(index, Pretended) or index.dtype == torch.bool
            ):
                _note(func)
    elif _has(func, Tag.data_dependent_output) or _has(func, Tag.dynamic_output_shape):
        _note(func)


@functools.cache
def _has(func: Any, tag: torch.Tag) -> bool:
    return tag in func.tags


def _through(func: Any) -> Callable[..., torch.Tensor]:
    return lambda *args, **kwargs: Pretended.__torch_dispatch__(func, (), args, kwargs)


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> Any:
    return Pretended.__torch_dispatch__(aten.copy_.default, (), (target, source, non_blocking))


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:  # called by repeated layers
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("pretended", backend_module=_Module())
DEVICE = torch.device("pretended", 0)
# Otherwise autograd would give the device its own thread, unless it was used before.
torch.autograd.set_multithreading_enabled(False)
_kernels = torch.library.Library("aten", "IMPL")
_kernels.impl("_copy_from", _copy_from, "PrivateUse1")
for _func in (
    aten.empty.memory_format, aten.empty_strided.default,  # called by all others that create
    aten.arange.default, aten.arange.start, aten.arange.start_step,  # but these give it a size
    aten.silu_backward.default,  # otherwise decomposed, unlike on CUDA and the CPU
):  # fmt: skip
    _kernels.impl(_func, _through(_func), "PrivateUse1")
