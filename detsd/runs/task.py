"""The Determined task that this process belongs to, if any."""

from typing import Any


def _cluster_info() -> Any:
    import determined as det  # late: it takes a third of a second

    return det.get_cluster_info()


def on_cluster() -> bool:
    """Return whether this process is a task of a Determined trial (a notebook task is not)."""
    info = _cluster_info()
    return info is not None and info.task_type == "TRIAL"


def experiment_id() -> int:
    """Return the number of the trial's experiment."""
    return _cluster_info().trial.experiment_id


def cluster_hyperparameters() -> dict[str, Any]:
    """Return the trial's hyperparameters, as the searcher chose them."""
    return _cluster_info().trial.hparams


def cluster_experiment() -> dict[str, Any]:
    """Return the configuration of the trial's experiment, as the master completed it."""
    # The harness keeps it private, since its shape may change with the version; ours is pinned.
    return _cluster_info().trial._config
