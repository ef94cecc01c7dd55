"""python -m detsd search: the table of a search on a cluster, or a preview of a search's file."""

import argparse
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from detsd.cli.common import PROG, print_commands
from detsd.config import (
    KINDS,
    FinetuneConfig,
    TrainingConfig,
    check_experiment,
    flat,
    read_experiment,
)
from detsd.config.experiment import hyperparameter
from detsd.config.search import DIVERGED, DIVISOR, late_rung_warning, rung_warning, rungs
from detsd.runs.search import TrialResult, read_trials
from detsd.utils import progress
from detsd.utils.errors import UserError
from detsd.utils.plurals import counted

logger = logging.getLogger("detsd")


def search(args: argparse.Namespace) -> int:
    """Print a search's trials with their metric at each rung, best first; return the exit code."""
    if not args.search.isdigit():
        return _explain(Path(args.search))
    config, trials = read_trials(int(args.search))
    if not trials:
        raise UserError(f"experiment {args.search} has no trials yet; wait for the first one")
    trials = [dataclasses.replace(t, settings=flat(t.settings)) for t in trials]
    searcher = config["searcher"]
    sign = 1 if searcher.get("smaller_is_better", True) else -1
    trials.sort(key=lambda t: sign * t.values.get(t.best_step(sign), sign * float("inf")))
    print(table(trials, searcher, sign))
    winner = next((t for t in trials if t.best_step(sign, stored=True) is not None), None)
    if winner:
        if winner is not trials[0]:
            print(f"trial {trials[0].number} was better, but its checkpoints have been deleted")
        _print_winner(winner, _varied(trials), searcher["metric"], sign)
    return 0


def _explain(path: Path) -> int:
    """Print the steps at which a search's file compares its trials; warn of rungs that are cut."""
    experiment = read_experiment(path)
    given = experiment.get("hyperparameters") if isinstance(experiment, dict) else None
    sections = given if isinstance(given, dict) else {}
    named = (kind for kind, (section, *_) in KINDS.items() if section in sections)
    check_experiment(experiment, str(path), next(named, FinetuneConfig))
    searcher = experiment.get("searcher") or {}
    steps = rungs(searcher)
    if not steps:
        raise UserError(
            f"{path} has searcher.name: {searcher.get('name')}, but only adaptive_asha compares "
            "trials on their way; see finetune_search.yaml for such a search"
        )
    every = hyperparameter(sections, "training.checkpoint_freq", TrainingConfig.checkpoint_freq)
    for warning in filter(None, (rung_warning(searcher), late_rung_warning(searcher, every))):
        logger.warning("%s", warning)
    *judged, last = map(str, steps)
    trials = counted(searcher["max_trials"], "trial")
    longest = f"{last} {searcher['time_metric']}"
    if not judged:
        print(f"{trials} of {longest}; none is compared before its end")
        return 0
    print(
        f"{trials} of at most {longest}; the best one in {searcher.get('divisor') or DIVISOR} by "
        f"{searcher['metric']} continues after {' and '.join(judged)}"
    )
    return 0


def table(trials: list[TrialResult], searcher: dict[str, Any], sign: int) -> str:
    """Return the trials as a table: metric at each rung and at best, settings, checkpoint."""
    steps, varied = rungs(searcher), _varied(trials)
    names = [key.rpartition(".")[2] for key in varied]
    lines = [["trial", "state", *(f"at {s}" for s in steps), "best", "step", *names, "checkpoint"]]
    for t in trials:
        best, stored = t.best_step(sign), t.best_step(sign, stored=True)
        lines.append([
            str(t.number), t.state,
            *(_value(t.values.get(min((s for s in t.values if s >= rung), default=-1)))
              for rung in steps),
            _value(t.values.get(best)), "" if best is None else str(best),
            *(_setting(t.settings.get(key)) for key in varied),
            t.checkpoints.get(stored, "none"),
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join([f"{searcher['metric']} of {counted(len(trials), 'trial')}:", *rows])


def _varied(trials: list[TrialResult]) -> list[str]:
    """Return the settings in which trials differ."""
    keys = trials[0].settings
    return [key for key in keys if len({json.dumps(t.settings.get(key)) for t in trials}) > 1]


def _value(value: float | None) -> str:
    if value is None:
        return ""
    return "diverged" if abs(value) >= DIVERGED else f"{value:.4f}"


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _print_winner(winner: TrialResult, varied: list[str], metric: str, sign: int) -> None:
    step = winner.best_step(sign, stored=True)
    uuid, value = winner.checkpoints[step], winner.values[step]
    progress.say(f"the best: trial {winner.number} at step {step}, {metric} {value:.4f}")
    create = ["det", "e", "create", "finetune_const.yaml", "."]
    settings = [f"hyperparameters.{key}={_exact(winner.settings[key])}" for key in varied]
    print_commands(
        {
            "train again with its settings (replace finetune_const.yaml by your file)": [
                *create, *(word for pair in settings for word in ("--config", pair)),
            ],
            "continue training from its vectors": [
                *create, "--config", f"searcher.source_checkpoint_uuid={uuid}",
            ],
            "measure it": [PROG, "evaluate", uuid],
            "try it in a browser": [PROG, "app", "--uuid", uuid],
            "export it to another program": [PROG, "export", uuid, "--format", "diffusers"],
            "download it to your own computer": [PROG, "download", uuid],
        }
    )  # fmt: skip


def _exact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
