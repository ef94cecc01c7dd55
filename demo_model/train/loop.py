"""The training loop that all stages share: resumable at any step, with the same results."""

from __future__ import annotations

import argparse
import copy
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

LossOf = Callable[[int, torch.Generator], tuple[torch.Tensor, dict[str, float]]]
WARM_UP = 100  # steps


class Stop(Exception):
    """A reason why a stage cannot continue: a signal, after saving, or unsuitable weights."""


def steady(decay: float) -> Callable[[int], float]:
    """Return an EMA's weight of the newest parameters, by step: constant except at first."""
    return lambda step: 1 - min(decay, (1 + step) / (10 + step))


EMA = steady(0.999)


def lengthening(step: int) -> float:
    """Return the weight of an EMA over the last tenth of all steps so far.

    Its standard deviation is a tenth of the training's length (arXiv 2312.02696, where gamma is
    6.94), so that one setting suits both an early look and the end of a long run.
    """
    return 1 - (1 - 1 / (step + 1)) ** 7.94


def fit(
    name: str,
    model: torch.nn.Module,
    loss_of: LossOf,
    args: argparse.Namespace,
    steps: int,
    rates: dict[str, float],
    validate: Callable[[torch.nn.Module], dict[str, float]],
    every: int = 500,
    ema: Callable[[int], float] = EMA,
    falling: float = 0.25,
    first: int = 0,
    on_save: Callable[[torch.nn.Module, int], None] = lambda average, step: None,
) -> None:
    """Train `model` in place up to step `steps` and leave the EMA of its weights in it.

    State (weights, their EMA, the optimizer's moments, the step) is written to `<work>/<name>.pt`
    every `every` steps and on SIGTERM, and read back from there.

    Args:
        loss_of: Returns the loss of one batch and what to log, from the step and a generator whose
            seed is a function of (`args.seed`, step).
        rates: Peak learning rate of the parameters whose name begins with the key; the gradient's
            norm is clipped per key. The rate falls over the last `falling` of the steps.
        ema: Returns the weight of the newest parameters in their average, from the step.
        first: Step to begin at if there is no state, only weights from an export.
        on_save: Called with the EMA and the number of steps done whenever the state is written.

    Raises:
        Stop: SIGTERM or SIGINT arrived; the state is saved.
    """
    path = args.work_dir / f"{name}.pt"
    optimizer, members = _optimizer(model, rates)
    average = copy.deepcopy(model).eval()
    peaks = [group["peak"] for group in optimizer.param_groups]  # a saved state holds the old ones
    parts_of_state = {"model": model, "average": average, "optimizer": optimizer}
    start = first  # of the warm-up, which an optimizer without moments needs anew
    if path.exists():
        state = torch.load(path, map_location=args.device, weights_only=True)
        for key, part in parts_of_state.items():
            part.load_state_dict(state[key])
        first, start = state["step"], state.get("start", 0)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: asked.append(n))
    log = Log(args.work_dir / f"{name}.log", name, first)
    model.train()
    for step in range(first, steps):
        fall = min(1.0, (steps - step) / steps / falling)
        warm = min(1.0, (step - start + 1) / WARM_UP)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * warm * fall
        bf16 = args.bf16 or args.device == "cuda"
        with torch.autocast(args.device, torch.bfloat16, enabled=bf16):
            loss, parts = loss_of(step, generator(args.seed, step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for parameters in members:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), ema(step))
        log.add({"loss": loss.detach(), **parts})
        done = step + 1
        if done % 100 == 0:
            log.write(done, validate(average) if done % every == 0 else {})
        if done % every == 0 or done == steps or asked:
            state = {key: part.state_dict() for key, part in parts_of_state.items()}
            state |= {"step": done, "start": start}
            torch.save(state, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
            on_save(average, done)
        if asked:
            raise Stop(f"{name} stopped by a signal after step {done} of {steps}; state saved")
    model.load_state_dict(average.state_dict())
    model.eval()


def generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of a step's batch, noise and timesteps."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
    )


def _optimizer(
    model: torch.nn.Module, rates: dict[str, float]
) -> tuple[torch.optim.Optimizer, list[list[torch.nn.Parameter]]]:
    """Make an optimizer with weight decay on matrices only, and list each rate's parameters."""
    groups, members = [], []
    for prefix, rate in rates.items():
        mine = {k: p for k, p in model.named_parameters() if k.startswith(prefix)}
        mine = {k: p for k, p in mine.items() if p.requires_grad}
        members.append(list(mine.values()))
        matrices = [p for k, p in mine.items() if p.ndim > 1 and "token_embedding" not in k]
        others = [p for k, p in mine.items() if p.ndim <= 1 or "token_embedding" in k]
        groups.append({"params": matrices, "weight_decay": 0.01, "peak": rate})
        groups.append({"params": others, "weight_decay": 0.0, "peak": rate})
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98)), members


class Log:
    """The means of a stage's values: a line of JSON every hundred steps, printed and kept."""

    def __init__(self, path: Path, name: str, first: int):
        self.path, self.name, self.first = path, name, first
        self.values: dict[str, list] = {}
        self.began, self.cpu = time.time(), time.process_time()

    def add(self, values: dict) -> None:
        """Add one step's values."""
        for key, value in values.items():
            self.values.setdefault(key, []).append(value)

    def write(self, step: int, checked: dict[str, float]) -> None:
        """Write the means since the last line, and the validation results."""
        means = {k: float(torch.tensor(v).mean()) for k, v in self.values.items()}
        pace = {
            "s_per_step": (time.time() - self.began) / (step - self.first),
            "cpu_s_per_step": (time.process_time() - self.cpu) / (step - self.first),
        }
        numbers = {k: round(v, 5) for k, v in {**pace, **means, **checked}.items()}
        line = json.dumps({"stage": self.name, "step": step} | numbers)
        self.values = {}
        print(line, flush=True)
        with self.path.open("a") as f:
            f.write(line + "\n")
