"""The validation loss of a fine-tuning, its best step, and its plateau.

The last two depend only on the results of its validations. A run that was interrupted, or continues
with more steps, therefore decides like an uninterrupted one.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from detsd.data.dataset import Batch, TrainingData
from detsd.models.base import BaseModel
from detsd.models.objective import errors_over_timesteps
from detsd.runs.run import Run
from detsd.utils.progress import Bar, Phase

SMALLER_IS_BETTER = ("val_loss",)


def best_step(validations: Mapping[int, Mapping[str, float]], metric: str) -> int | None:
    """Return the step (a key of `validations`) that is best by a metric; in a tie, the first.

    None if no validation has measured it.
    """
    sign = -1 if metric in SMALLER_IS_BETTER else 1
    measured = [step for step, figures in validations.items() if metric in figures]
    return max(measured, key=lambda step: (sign * validations[step][metric], -step), default=None)


def on_plateau(losses: Sequence[float], window: int | None, ratio: float) -> bool:
    """Decide whether losses at fixed images, timesteps and noise have levelled off.

    They have if the variance of the last `window` losses is at most `ratio` times that of all
    losses (DVAR, arXiv 2302.04841).

    Args:
        losses: in order; the first is the initializer's, which the window leaves out.
        window: None for never.
    """
    if window is None or len(losses) <= window:
        return False
    return bool(np.var(losses[-window:]) <= ratio * np.var(losses))


class Validation:
    """The mean denoising error at fixed images, timesteps and noise."""

    def __init__(self, model: BaseModel, data: TrainingData, timesteps: int, run: Run):
        self._model, self._data, self._timesteps, self._run = model, data, timesteps, run
        self._own = range(run.ranks.rank, len(data.validation), run.ranks.size)
        self.passes = len(self._own) * timesteps  # of the UNet over an image, on this rank
        self.phase = Phase(1, total=self.passes)

    @torch.no_grad()
    def loss(self, bar: Bar) -> float:
        """Return the loss with the model's current vectors. Collective."""
        found = []
        for k in self._own:
            samples = self._data.validation_samples(k, self._timesteps)
            cond = self._model.encode_prompts([samples[0].prompt], [samples[0].frame])
            batch = Batch.of(samples).on(self._model.device)
            errors = errors_over_timesteps(
                self._model, *batch.noising, cond, batch.mask, partial(bar.done, "validation")
            )
            found.append((k, float(errors.mean())))
        # Summed in the order of the images, so that the number of ranks makes no difference.
        values = [value for _, value in sorted(self._run.gather(found))]
        return sum(values) / len(values)
