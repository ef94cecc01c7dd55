"""Reports of a fine-tuning: metrics, progress, lines in the log."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from typing import NoReturn

import torch

from detsd.config import FinetuneConfig
from detsd.config.search import DIVERGED
from detsd.data.dataset import TrainingData
from detsd.runs.run import Run
from detsd.train.checkpoint import TrainState
from detsd.train.step import TrainStep
from detsd.utils.errors import Diverged
from detsd.utils.plurals import counted
from detsd.utils.progress import Bar

logger = logging.getLogger("detsd")


class Report:
    """The reports of a run: means since the last one, throughput, validations.

    The clock runs from the constructor on, except within a `pause`.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        run: Run,
        step: TrainStep,
        state: TrainState,
        data: TrainingData,
        initial_val_loss: float,
        bar: Bar,
    ):
        self._config, self._run, self._step, self._state = config, run, step, state
        self._held_out, self._masked = data.held_out, data.masked
        self._initial_val_loss, self.bar = initial_val_loss, bar
        self._clock, self._samples = time.monotonic(), 0

    def add(self, parts: dict[str, torch.Tensor], samples: int) -> None:
        """Count a step with its samples and the parts of its loss."""
        self._state.add(parts, samples)
        self._samples += samples
        t, step = self._config.training, self._state.steps_completed
        self.bar.text = f"{step}/{counted(t.num_sgd_steps, 'step')}"
        reported = step % t.metric_report_freq == 0 or step == t.num_sgd_steps
        self.bar.done("steps", show=not reported)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the block from the samples per second, and restore the bar's note after it."""
        began, note = time.monotonic(), self.bar.note
        yield
        self.bar.note = note
        self._clock += time.monotonic() - began

    def flush(self, lr: float) -> None:
        """Report the means over the steps since the last report and over ranks. Collective."""
        run, state, total = self._run, self._state, self._config.training.num_sgd_steps
        sums = state.metric_sums(run)  # reads the tensors, which waits for the device
        state.window = {}
        steps = sums.pop("steps")
        metrics = {name: value / steps for name, value in sums.items()} if steps else {}
        for end, vectors in zip(("", "_2"), self._step.vectors, strict=False):
            norms = vectors.detach().norm(dim=1)
            metrics[f"row_norm_mean{end}"] = float(norms.mean())
            metrics[f"row_norm_max{end}"] = float(norms.max())
        if self._step.diverged:
            self.diverge()
        seconds, self._clock = time.monotonic() - self._clock, time.monotonic()
        samples, self._samples = self._samples, 0  # a resumed window began before the clock
        metrics["learning_rate"] = lr
        metrics["samples_per_second"] = samples / max(seconds, 1e-9)
        run.report(state.steps_completed, metrics)
        run.report_progress(state.steps_completed / total)
        loss = metrics.get("loss", math.nan)  # nan: every step since the last report was skipped
        if not self.bar.disable:
            self.bar.draw(note=f"loss {loss:.4f}")
        elif run.is_chief:
            speed = f"{metrics['samples_per_second']:.1f} samples/s"
            self.bar.line(f"{self.bar.text}, loss {loss:.4f}, {speed}")

    def validation(self, metrics: dict[str, float], plateaued: bool) -> None:
        """Report the metrics of a validation, which is the run's last if it has plateaued."""
        state, total = self._state, self._config.training.num_sgd_steps
        loss, measured = metrics["val_loss"], {k: v for k, v in metrics.items() if k != "val_loss"}
        # For a search, a run that ends here counts as complete, so that another one may start.
        self._report_validation(metrics, total if plateaued else state.steps_completed)
        others = "".join(f"  {name} {value:.3f}" for name, value in measured.items())
        self._run.print(
            f"step {state.steps_completed}  val_loss {loss:.4f}  (initializer "
            f"{self._initial_val_loss:.4f}{', both masked' * self._masked}){others}"
        )
        if plateaued and state.steps_completed < total:
            self._run.print(
                f"ending at step {state.steps_completed} of {total}: val_loss has levelled off "
                "(training.stop_on_plateau)"
            )

    def skipped_validation(self) -> None:
        """Warn about a validation loss beyond the range of fp16; end the run if it has diverged."""
        if not self._step.scaler.is_enabled() or self._step.diverged:
            self.diverge()
        logger.warning(
            "val_loss at step %d is beyond the range of fp16 and is not reported; set "
            "model.precision to bf16 or fp32",
            self._state.steps_completed,
        )

    def diverge(self) -> NoReturn:
        """Report a large finite value to the searcher, and raise `Diverged`.

        The value is reported for the last step, because adaptive ASHA replaces a trial that it
        judged and stopped itself, but not one that ends on its own.
        """
        measured = self._config.measured if self._config.measure.num_samples else ()
        worst = {"val_loss": DIVERGED} | dict.fromkeys(measured, -DIVERGED)
        self._report_validation(worst, self._config.training.num_sgd_steps)
        raise Diverged(
            f"the loss is no longer finite at step {self._state.steps_completed}; lower "
            "training.learning_rate (the last checkpoint is untouched)"
        )

    def _report_validation(self, metrics: dict[str, float], sgd_steps: int) -> None:
        measured_on = "held_out" if self._held_out else "training_images"
        loss = metrics["val_loss"]
        named = {
            # The same number under a name that includes the kind of images it was measured on.
            f"val_loss_{measured_on}{'_masked' * self._masked}": loss,
            "val_loss_initializer": self._initial_val_loss,
            "val_gap": self._initial_val_loss - loss,
            "sgd_steps": float(sgd_steps),  # the time_metric of a search
        }
        found = {"val_loss": loss} | named | metrics
        self._run.report(self._state.steps_completed, found, "validation")
