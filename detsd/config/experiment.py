"""Read, check and override an experiment file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar

from detsd.config.finetune import FinetuneConfig
from detsd.config.generate import EvaluateConfig, GenerateConfig
from detsd.config.schema import parse_section, shown
from detsd.config.search import asha_problem, rung_warning
from detsd.config.yaml_text import MAX_DEPTH, parse_yaml, read_text
from detsd.config.yaml_versions import disagreements
from detsd.utils.errors import UserError, one_line

logger = logging.getLogger("detsd")

MAX_SHOWN = 100  # characters of an override, and problems, in a message

Config = TypeVar("Config", FinetuneConfig, GenerateConfig, EvaluateConfig)

KINDS = {  # the section that identifies each kind, its name, its command
    FinetuneConfig: ("training", "a fine-tuning", "finetune"),
    GenerateConfig: ("grid", "a grid of images", "generate"),
    EvaluateConfig: ("evaluation", "an evaluation", "evaluate"),
}


def parse_config(
    hyperparameters: Any,
    source: str,
    kind: type[Config] = FinetuneConfig,
    beside: Path | None = None,
) -> Config:
    """Check a `hyperparameters` mapping; `source` names it in messages.

    Args:
        beside: the folder in which relative paths are looked up first.
    """
    config, problems = parse_section(kind, hyperparameters, beside=beside)
    refuse(problems, source)
    return config


def refuse(problems: list[str], source: str) -> None:
    """Raise the problems of a configuration, if there are any, as one UserError."""
    if problems:
        left = problems[MAX_SHOWN:]
        lines = "\n  ".join(problems[:MAX_SHOWN] + ([f"and {len(left)} more"] if left else []))
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"{source} has {count} under hyperparameters:\n  {lines}")


def check_experiment(experiment: Any, source: str, kind: type) -> None:
    """Refuse an experiment that a cluster could not run.

    Sections other than hyperparameters may be missing: Determined has defaults for them.

    Args:
        source: the experiment's name in messages.
        kind: the class of its hyperparameters.
    """
    hyperparameters = experiment.get("hyperparameters") if isinstance(experiment, dict) else None
    if not hyperparameters or not isinstance(hyperparameters, dict):
        raise UserError(f"{source} has no hyperparameters section; see finetune_demo.yaml for one")
    for section, what, command in KINDS.values():
        if section in hyperparameters and KINDS[kind][0] not in hyperparameters:
            raise UserError(f"{source} describes {what}; run it with {command}")
    for name in ("resources", "searcher"):
        if not isinstance(experiment.get(name) or {}, dict):
            raise UserError(
                f"{source} has {name}: {experiment[name]}, but {name} is a section with keys of "
                "its own; see finetune_demo.yaml"
            )
    slots = (experiment.get("resources") or {}).get("slots_per_trial")
    if slots is not None and (not isinstance(slots, int) or slots < 1):
        raise UserError(
            f"{source} has resources.slots_per_trial: {shown(slots)}, but the launcher starts one "
            "process per slot; set it to a whole number of at least 1 (an agent without a GPU has "
            "one slot as well)"
        )
    searcher = experiment.get("searcher")
    if not searcher:
        return
    _check_metrics(searcher, hyperparameters, source, kind)
    if searcher.get("name") == "adaptive_asha":
        _check_asha(searcher, hyperparameters, source, kind)


def hyperparameter(hyperparameters: dict[str, Any], name: str, default: Any = None) -> Any:
    """Return a value, which the master may write as {type: const, val: 270}; None for a range."""
    section, _, key = name.partition(".")
    given = hyperparameters.get(section)
    value = given.get(key, default) if isinstance(given, dict) else default
    return value.get("val") if isinstance(value, dict) else value


def _check_metrics(searcher: dict, hyperparameters: dict, source: str, kind: type) -> None:
    """Refuse a searcher whose metric is not reported, or is optimized in the wrong direction."""
    metrics = kind.metrics
    if hyperparameter(hyperparameters, "measure.num_samples"):
        every = FinetuneConfig.measured.items()
        metrics += tuple(
            name for name, key in every if key is None or hyperparameter(hyperparameters, key)
        )
    asha = searcher.get("name") == "adaptive_asha"
    for key, default in {"metric": kind.metrics[0], "time_metric": kind.metrics[-1]}.items():
        given = searcher.get(key)
        if given is None and (asha or key == "metric"):
            raise UserError(f"{source} has no searcher.{key}; add {key}: {default}")
        if given is not None and given not in metrics:
            needs = FinetuneConfig.measured.get(str(given), "")
            if needs != "" and metrics == kind.metrics:  # nothing is measured
                needs = "measure.num_samples"
            raise UserError(
                f"{source} has searcher.{key}: {given}, which is not reported at every validation; "
                f"use one of {', '.join(metrics)}" + f", or set {needs}" * bool(needs)
            )
    best, metric = hyperparameter(hyperparameters, "training.best_metric"), searcher["metric"]
    if best in (None, "auto"):
        best = "score" if metrics != kind.metrics else metric
    if best != metric:
        raise UserError(
            f"{source} selects the best checkpoint by {best} (training.best_metric), but the "
            f"cluster selects it by searcher.metric: {metric}; set both to the same metric"
        )
    smaller = searcher.get("smaller_is_better") is not False
    if smaller and (metric in FinetuneConfig.measured or metric == "val_gap"):
        raise UserError(
            f"{source} has searcher.metric: {metric}, where larger values are better; add "
            "smaller_is_better: false"
        )
    if metric == "val_loss" and not smaller:
        raise UserError(
            f"{source} has searcher.metric: {metric}, where smaller values are better, but "
            "smaller_is_better: false; remove that line"
        )


def _check_asha(searcher: dict, hyperparameters: dict, source: str, kind: type) -> None:
    """Refuse an ASHA search whose length is missing, or exceeds that of its trials."""
    longest = searcher.get("max_time")
    if longest is None:
        raise UserError(
            f"{source} has no searcher.max_time; set it to the {kind.metrics[-1]} of a whole trial"
        )
    if not isinstance(longest, int):
        raise UserError(f"{source} has searcher.max_time: {shown(longest)}; give a whole number")
    if problem := asha_problem(searcher):
        raise UserError(f"{source} has {problem}")
    steps = hyperparameter(hyperparameters, "training.num_sgd_steps")
    # A trial that ends on its own is not replaced: the search would stop after the first.
    if isinstance(steps, int) and longest > steps:
        raise UserError(
            f"{source} has searcher.max_time: {longest}, but its trials end at "
            f"training.num_sgd_steps: {steps}, so the search would stop early; lower max_time"
        )


def read_experiment(path: Path) -> Any:
    """Read the experiment file at `path` as Determined does (`5e-4` is a number)."""
    try:
        text = read_text(path)
        differing = disagreements(text)
        found = None if differing else parse_yaml(text)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name an experiment file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; name an experiment file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); name an experiment file") from None
    except Exception as error:  # ruamel's and yaml's parsers share no base class
        reason = one_line(error, None).partition(" To suppress this check")[0]  # ruamel's advice
        raise UserError(f"{path} is not valid YAML: {reason}") from None
    if differing:
        raise UserError("\n  ".join([f"{path}: {differing[0]}", *differing[1:MAX_SHOWN]]))
    return found


def _constants(value: Any, ranges: list[str], path: str = "") -> Any:
    """Replace `{type: const, val: x}` by x; add the keys of search ranges to `ranges`."""
    if not isinstance(value, dict):
        return value
    if value.get("type") == "const" and "val" in value:
        return value["val"]
    if "type" in value:
        ranges.append(path.removeprefix(".") or "hyperparameters")
    return {key: _constants(v, ranges, f"{path}.{key}") for key, v in value.items()}


def override(hyperparameters: dict[str, Any], overrides: list[str], source: str) -> None:
    """Apply `section.key=value` texts in place; values are YAML."""
    for text in overrides:
        key, equals, value = text.partition("=")
        said = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."
        if not equals or not key.strip() or key.count(".") > MAX_DEPTH:
            raise UserError(f"--set {said} is not KEY=VALUE; write e.g. training.num_sgd_steps=200")
        *sections, last = key.strip().split(".")
        if sections[:1] == ["hyperparameters"]:
            raise UserError(
                f"--set {said} begins with hyperparameters., which only det's --config needs; "
                "leave it out"
            )
        target = hyperparameters
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UserError(
                    f"--set {said}: {section} is not a section of {source}; check the key"
                )
        try:
            target[last] = parse_yaml(value)
            # YAML would silently drop the text after a #, which nobody means as a comment here.
            kept = parse_yaml(value.replace("#", "¤")) if "#" in value else target[last]
        except Exception as error:
            reason = f" ({error})" if isinstance(error, ValueError) else ""
            raise UserError(f"--set {said}: not valid YAML{reason}; quote the value") from None
        if repr(target[last]).replace("#", "¤") != repr(kept).replace("#", "¤"):
            raise UserError(
                f"--set {said}: YAML reads what follows # as a comment; put the text in YAML's own "
                f"quotes, as in '{key}=\"{value[:MAX_SHOWN]}\"'"
            )


def load_config(
    path: str | Path, overrides: list[str] | None = None, kind: type[Config] = FinetuneConfig
) -> Config:
    """Read the experiment file at `path`, apply `section.key=value` overrides, check it."""
    experiment = read_experiment(Path(path))
    check_experiment(experiment, str(path), kind)
    if warning := rung_warning(experiment.get("searcher") or {}):
        logger.warning("%s", warning)
    hyperparameters = experiment["hyperparameters"]
    override(hyperparameters, overrides or [], str(path))
    hyperparameters = _constants(hyperparameters, ranges := [])
    if ranges:
        raise UserError(
            f"{path} holds search ranges ({', '.join(ranges[:MAX_SHOWN])}); submit it with det e "
            "create, or give each a value with --set"
        )
    return parse_config(hyperparameters, str(path), kind, Path(path).parent)
