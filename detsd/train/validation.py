"""Which checkpoint of a fine-tuning is the best, and whether it still learns.

Functions of what its validations measured, and of nothing else: a run that was interrupted, or goes
on with more steps, decides as an undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

SMALLER_IS_BETTER = ("val_loss",)


def best_step(validations: Mapping[int, Mapping[str, float]], metric: str) -> int | None:
    """The step (a key of `validations`) whose metric is the best; of equal ones the first.

    None where no validation has measured it.
    """
    sign = -1 if metric in SMALLER_IS_BETTER else 1
    measured = [step for step, figures in validations.items() if metric in figures]
    return max(measured, key=lambda step: (sign * validations[step][metric], -step), default=None)


def on_plateau(losses: Sequence[float], window: int | None, ratio: float) -> bool:
    """Whether losses at fixed images, timesteps and noise have settled (DVAR, arXiv 2302.04841).

    That is, whether the variance of the last `window` of them is below `ratio` times that of all.

    Args:
        losses: in their order, that of the phrase first, which the window leaves out.
        window: None is never on one.
    """
    if window is None or len(losses) <= window:
        return False
    return bool(np.var(losses[-window:]) <= ratio * np.var(losses))
