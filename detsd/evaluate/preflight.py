"""Find mistakes in an evaluation's configuration before any large library is loaded."""

import dataclasses
import os
import re
from pathlib import Path

from detsd.concepts.source import ConceptSource
from detsd.config import EvaluateConfig, EvaluatorConfig, refuse
from detsd.data.folder import folder_problem
from detsd.models.support import HUB_NAME, model_problems
from detsd.runs.folder import RunFolder, finetuning_metadata
from detsd.utils.paths import DEMO_CONCEPT, DEMO_IMAGES, resolve


def check_evaluate(config: EvaluateConfig, source: str, beside: Path | None = None) -> None:
    """Refuse an evaluation whose model, evaluators, concepts or folders are missing."""
    e, model = config.evaluation, config.model
    problems = model_problems(model, beside)
    problems += evaluator_problems(config.evaluator, model.pretrained_model_name_or_path)
    if not (config.concepts.files or config.concepts.uuids or config.concepts.models):
        problems.append(
            "concepts.files, concepts.uuids and concepts.models are empty; name a concept to "
            "evaluate"
        )
    for key, folders in (("images", [e.images] if e.images else []), ("lineup", e.lineup)):
        found = (folder_problem(folder, beside) for folder in folders)
        problems += [f"evaluation.{key}: {problem}" for problem in found if problem]
    sources = [*map(ConceptSource.parse, config.concepts.files)]
    for k, (name, concept) in enumerate(zip(config.concepts.files, sources, strict=True)):
        key = f"concepts.files[{k}]"
        wrong = concept.problems(key, beside)
        if not wrong and not e.images and not concept.uuid:
            wrong = images_problem(name, learned_from(concept.file))
            wrong = [f"{key}: {wrong}"] if wrong else []
        problems += wrong
    if e.all_checkpoints and not any(RunFolder(s.path).concept_files() for s in sources):
        problems.append(
            "evaluation.all_checkpoints is set, but concepts.files names no folder of a run with "
            "checkpoints; name one, or leave --all-checkpoints out"
        )
    refuse(problems, source)


def learned_from(file: Path) -> list[str]:
    """Return the folders with the training images of a file's concepts, if they are known."""
    given = finetuning_metadata(file).get("config", {}).get("concepts", {}).get("img_dirs", [])
    if file.name == DEMO_CONCEPT and file.resolve() == Path(resolve(DEMO_CONCEPT)).resolve():
        given = [DEMO_IMAGES]
    return [resolve(folder) for folder in given]


def images_problem(name: str, folders: list[str]) -> str | None:
    """Return why a concept's training images are missing; None if they are here."""
    ask = "name their folder with --images (evaluation.images)"
    if not folders:
        return f"{name}'s training images are not known; {ask}"
    problem = next(filter(None, map(folder_problem, folders)), None)
    return problem and f"{name}'s training images are missing ({problem.partition(';')[0]}); {ask}"


def own_clip(base_model: str) -> str | None:
    """Return the folder of the CLIP that a base model includes; None without one."""
    folder = Path(resolve(base_model)) / "clip"
    return str(folder) if os.path.isfile(folder / "config.json") else None


def evaluator_problems(config: EvaluatorConfig, base_model: str) -> list[str]:
    """Return configuration errors of the evaluators, without loading or downloading them."""
    problems = []
    if not config.clip and not own_clip(base_model):
        problems.append(
            f"evaluator.clip: {base_model} includes no CLIP to measure images with; name one, "
            "such as openai/clip-vit-large-patch14"
        )
    for key, name in dataclasses.asdict(config).items():
        if not name:
            continue
        there = Path(resolve(name))
        if os.path.isdir(there) and not (there / "config.json").is_file():
            problems.append(f"evaluator.{key}: {name} holds no config.json; name a model's folder")
        elif not os.path.isdir(there) and not re.fullmatch(HUB_NAME, name):
            problems.append(
                f"evaluator.{key}: {name} does not exist; name a folder, or a model on the hub as "
                "OWNER/NAME"
            )
    return problems
