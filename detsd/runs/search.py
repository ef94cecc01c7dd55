"""The trials of an experiment on a Determined cluster, and their results."""

import math
from dataclasses import dataclass
from typing import Any

from detsd.runs.master import asking_master


@dataclass(frozen=True)
class TrialResult:
    """A trial of a search."""

    number: int
    state: str
    settings: dict[str, Any]  # all its hyperparameters
    values: dict[int, float]  # the searcher's metric at every validation, by completed steps
    checkpoints: dict[int, str]  # the uuids of those that remain, by completed steps

    def best_step(self, sign: int, stored: bool = False) -> int | None:
        """Return the step of the best value; None if there is none.

        Args:
            sign: 1 if smaller is better, else -1.
            stored: consider only steps with a checkpoint.
        """
        steps = [s for s in self.values if not stored or s in self.checkpoints]
        found = [s for s in steps if math.isfinite(self.values[s])]
        return min(found, key=lambda step: sign * self.values[step], default=None)


def read_trials(number: int) -> tuple[dict[str, Any], list[TrialResult]]:
    """Return an experiment's configuration and trials."""
    from determined.experimental import client  # late: it takes a third of a second

    what = f"experiment {number}"
    unknown = f"the master has no {what}; det e list shows all experiments"
    with asking_master(what, unknown, f"see whether det e describe {number} works"):
        return _read_trials(client, number)


def _read_trials(client: Any, number: int) -> tuple[dict[str, Any], list[TrialResult]]:
    """Read them through the master's client."""
    experiment = client.get_experiment(number)
    metric = experiment.config["searcher"]["metric"]
    stored: dict[int, dict[int, str]] = {}
    for c in experiment.list_checkpoints(
        client.CheckpointSortBy.BATCH_NUMBER, client.OrderBy.ASCENDING
    ):
        steps = (c.metadata or {}).get("steps_completed")
        if isinstance(steps, int):  # others may store checkpoints without it
            stored.setdefault(c.training.trial_id, {})[steps] = c.uuid
    return experiment.config, [
        TrialResult(
            trial.id,
            trial.state.name,
            trial.hparams or {},
            {m.steps_completed: float(m.metrics[metric])
             for m in trial.iter_metrics("validation") if metric in m.metrics},
            stored.get(trial.id, {}),
        )
        for trial in experiment.list_trials()
    ]  # fmt: skip
