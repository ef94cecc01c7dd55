"""Mistakes in a fine-tuning's configuration, found before any library is loaded.

Nothing is written or downloaded. What needs the model itself is checked where it is used.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from detsd.concepts.source import ConceptSource, word_problem
from detsd.config import FinetuneConfig, differences, refuse
from detsd.data.folder import folder_problem
from detsd.evaluate.preflight import evaluator_problems
from detsd.models.support import model_problems, vocabulary
from detsd.runs.folder import DICT_FILE, RunFolder, read_metadata
from detsd.utils.errors import UserError


def check_finetune(config: FinetuneConfig, source: str, beside: Path | None = None) -> None:
    """Whether the model, images, words and files that a fine-tuning names are there.

    Args:
        source: what the configuration is called in messages.
        beside: its folder.

    Raises:
        UserError: naming every problem.
    """
    c = config.concepts
    problems = model_problems(config.model, beside)
    tokens = vocabulary(config.model)
    for k, name in enumerate(c.concept_strs):
        problem = word_problem(name, tokens)
        if problem:
            problems.append(f"concepts.concept_strs[{k}]: {problem}")
    for k, start in enumerate(c.initializer_strs):
        if not start.strip():
            problems.append(
                f"concepts.initializer_strs[{k}] is empty; give a phrase that describes the concept"
            )
        elif ConceptSource.looks_like(start):
            key = f"concepts.initializer_strs[{k}]"
            problems += ConceptSource.parse(start).problems(key, beside)
    for k, folder in enumerate(c.img_dirs):
        problem = folder_problem(folder, beside, c.mask)
        if problem:
            problems.append(f"concepts.img_dirs[{k}]: {problem}")
    if config.measure.num_samples:
        problems += evaluator_problems(config.evaluator, config.model.pretrained_model_name_or_path)
        for k, folder in enumerate(config.measure.lineup):
            if problem := folder_problem(folder, beside):
                problems.append(f"measure.lineup[{k}]: {problem}")
    refuse(problems, source)


def check_resume(config: FinetuneConfig, folder: Path, warm_start: Path | None) -> Path | None:
    """The checkpoint from which a fine-tuning in `folder` goes on, if there is one.

    A run goes on with the configuration that it began with; only `training.num_sgd_steps` may grow,
    and `training.stop_on_plateau` be another.

    Raises:
        UserError: naming every key that differs; another warm start; no checkpoint to start from;
            a concept file of somebody's where the best rows are to lie.
    """
    if warm_start:
        _ = ConceptSource.parse(warm_start).file
    run = RunFolder(folder)
    latest = run.latest()
    facts = read_metadata(latest) if latest else {}
    ours = "best" in facts if latest else run.tensorboard.is_dir()
    if run.best_file.exists() and not ours:
        raise UserError(
            f"--output-dir {folder} holds {DICT_FILE}, which no run has made there and a run would "
            "overwrite; move it, or name another folder"
        )
    if not latest:
        return None
    if warm_start and facts.get("warm_start") != str(warm_start.resolve()):
        raise UserError(
            f"--output-dir {folder} already holds another run; give this warm start a new folder"
        )
    old, new = facts.get("config", {}), dataclasses.asdict(config)
    steps = old.get("training", {}).get("num_sgd_steps", 0)
    if config.training.num_sgd_steps > steps > 0:
        old["training"]["num_sgd_steps"] = config.training.num_sgd_steps
    if "stop_on_plateau" in old.get("training", {}):
        old["training"]["stop_on_plateau"] = config.training.stop_on_plateau
    changed = differences(old, new)
    if changed:
        raise UserError(
            f"{folder} holds a run with another configuration ({'; '.join(changed)}); change it "
            "back, or give --output-dir a new folder (and --warm-start to keep what was learned)"
        )
    return latest
