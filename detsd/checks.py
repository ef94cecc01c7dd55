"""Mistakes told at once: what can be seen before the libraries, which take seconds, are loaded.

Nothing is written and nothing fetched. What needs the model itself is checked where it is used.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from detsd.concepts.source import is_source, locate, source_problems, split_source, word_problem
from detsd.config import EvaluateConfig, EvaluatorConfig, FinetuneConfig, differences, refuse
from detsd.data.folder import folder_problem, mask_problem
from detsd.models.support import HUB_NAME, model_problems, vocabulary
from detsd.runs.folder import DICT_FILE, finetuning_of, latest_checkpoint, read_metadata
from detsd.utils.errors import UserError
from detsd.utils.paths import DEMO_CONCEPT, DEMO_IMAGES, resolve


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
        elif is_source(start):
            problems += source_problems(start, f"concepts.initializer_strs[{k}]", beside)
    for k, folder in enumerate(c.img_dirs):
        problem = folder_problem(folder, beside) or mask_problem(folder, c.mask)
        if problem:
            problems.append(f"concepts.img_dirs[{k}]: {problem}")
    if config.measure.num_samples:
        problems += evaluator_problems(config.evaluator, config.model.pretrained_model_name_or_path)
        for k, folder in enumerate(config.measure.lineup):
            if problem := folder_problem(folder, beside):
                problems.append(f"measure.lineup[{k}]: {problem}")
    refuse(problems, source)


def check_evaluate(config: EvaluateConfig, source: str, beside: Path | None = None) -> None:
    """Whether the model, evaluators, concepts and folders that an evaluation names are there.

    Raises:
        UserError: naming every problem.
    """
    e, model = config.evaluation, config.model
    problems = model_problems(model, beside)
    problems += evaluator_problems(config.evaluator, model.pretrained_model_name_or_path)
    if not (config.concepts.files or config.concepts.uuids):
        problems.append("concepts.files and concepts.uuids are empty; name a concept to evaluate")
    for key, folders in (("images", [e.images] if e.images else []), ("lineup", e.lineup)):
        found = (folder_problem(folder, beside) for folder in folders)
        problems += [f"evaluation.{key}: {problem}" for problem in found if problem]
    for k, name in enumerate(config.concepts.files):
        key = f"concepts.files[{k}]"
        wrong = source_problems(name, key, beside)
        if not wrong and not e.images:
            wrong = images_problem(name, learned_from(split_source(locate(name))[0]))
            wrong = [f"{key}: {wrong}"] if wrong else []
        problems += wrong
    refuse(problems, source)


def learned_from(file: Path) -> list[str]:
    """The folders of training images that the concepts of a file are known to be learned from."""
    given = finetuning_of(file).get("config", {}).get("concepts", {}).get("img_dirs", [])
    if file.name == DEMO_CONCEPT and file.resolve() == Path(resolve(DEMO_CONCEPT)).resolve():
        given = [DEMO_IMAGES]
    return [resolve(folder) for folder in given]


def images_problem(name: str, folders: list[str]) -> str | None:
    """Why a concept's samples have nothing to be held against; None where the folders are here."""
    ask = "name the folder of its training images with --images (evaluation.images)"
    if not folders:
        return f"from which images {name} was learned is not known; {ask}"
    problem = next(filter(None, map(folder_problem, folders)), None)
    return problem and f"{name} was learned from other images: {problem.partition(';')[0]}; {ask}"


def own_clip(base_model: str) -> str | None:
    """The CLIP that lies in a base model's folder, as in the bundled one's; None without one."""
    folder = Path(resolve(base_model)) / "clip"
    return str(folder) if (folder / "config.json").is_file() else None


def evaluator_problems(config: EvaluatorConfig, base_model: str) -> list[str]:
    """What is wrong with what is to measure images that shows without loading or asking for it."""
    problems = []
    if not config.clip and not own_clip(base_model):
        problems.append(
            f"evaluator.clip: {base_model} brings no CLIP along to measure images with; name one, "
            "such as openai/clip-vit-large-patch14"
        )
    for key, name in dataclasses.asdict(config).items():
        if not name:
            continue
        there = Path(resolve(name))
        if there.is_dir() and not (there / "config.json").is_file():
            problems.append(f"evaluator.{key}: {name} holds no config.json; name a model's folder")
        elif not there.is_dir() and not re.fullmatch(HUB_NAME, name):
            problems.append(
                f"evaluator.{key}: {name} does not exist; name a folder, or a model on the hub as "
                "OWNER/NAME"
            )
    return problems


def check_resume(config: FinetuneConfig, folder: Path, warm_start: Path | None) -> Path | None:
    """The checkpoint from which a fine-tuning in `folder` goes on, if there is one.

    A run goes on with the configuration that it began with; only `training.num_sgd_steps` may grow,
    and `training.stop_on_plateau` be another.

    Raises:
        UserError: naming every key that differs; another warm start; no checkpoint to start from;
            a concept file of somebody's where the best rows are to lie.
    """
    if warm_start:
        locate(warm_start)
    latest = latest_checkpoint(folder)
    facts = read_metadata(latest) if latest else {}
    ours = "best" in facts if latest else (folder / "tensorboard").is_dir()
    if (folder / DICT_FILE).exists() and not ours:
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
