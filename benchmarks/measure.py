"""Clocks and counters: alternating timings, floating point operations, memory, waiting."""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROUNDS = 5


def timed(call: Callable[[], object], count: int, device: torch.device) -> float:
    """Return the seconds per call, over `count` calls."""
    began = time.perf_counter()
    for _ in range(count):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / count


def in_turn(
    calls: dict[str, Callable[[], object]], count: int, device: torch.device
) -> dict[str, float]:
    """Return the seconds per call of each; they take turns, and the best of five rounds counts."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        timed(call, 2, device)  # first: kernels are chosen, caches filled
    for _ in range(ROUNDS):
        for name, call in calls.items():
            best[name] = min(best[name], timed(call, count, device))
    return best


def medians_of_pairs(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> list[float]:
    """Return three medians for each number of a run: before, now, and the pairs' ratio.

    Args:
        pairs: the numbers of two consecutive runs, such as seconds on two clocks.
    """
    cells: list[float] = []
    runs_before, runs_now = zip(*pairs, strict=True)
    for before, now in zip(
        zip(*runs_before, strict=True), zip(*runs_now, strict=True), strict=True
    ):
        ratios = [b / a for a, b in zip(before, now, strict=True)]
        cells += map(statistics.median, (before, now, ratios))
    return cells


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return floating point operations per second of a large matrix product: the upper limit."""
    size, count = (8192, 5) if device.type == "cuda" else (2048, 1)  # a tenth of a second
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / in_turn({"": lambda: a @ b}, count, device)[""]


def operations(call: Callable[[], object], device: torch.device) -> int:
    """Count the floating point operations of a call: matrix products, convolutions, attention."""
    # The counter does not know the CPU's own attention kernel.
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
    with plain, FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Return the peak GPU memory of a call in bytes; None on other devices."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def waits(call: Callable[[], object], device: torch.device) -> str | None:
    """Count how often a call waits for the GPU, and where; None on other devices.

    `torch.cuda.set_sync_debug_mode("error")` would report the first of them.
    """
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # Skips the note that this mode is a prototype, which the first call in a process adds.
    found = [w for w in told if "called a synchronizing" in str(w.message)]
    places = [f"{Path(w.filename).name}:{w.lineno}" for w in found]
    return f"{len(places)} {' '.join(dict.fromkeys(places))}".strip()


def table(head: list[str], rows: list[list[object]]) -> str:
    """Return a Markdown table; None is a dash, floats have three significant digits."""

    def cell(value: object) -> str:
        if value is None:
            return "–"
        return f"{value:.3g}" if isinstance(value, float) and value < 100 else (
            f"{value:.0f}" if isinstance(value, float) else str(value).removeprefix("torch.")
        )  # fmt: skip

    lines = [head, ["---"] * len(head), *[[cell(v) for v in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
