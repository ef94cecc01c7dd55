"""Mistakes told at once: what can be seen before the libraries, which take seconds, are loaded.

Nothing is written and nothing fetched. What needs the model itself is checked where it is used.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path

from PIL import Image

from detsd.concepts.source import is_source, locate, source_problems, split_source, word_problem
from detsd.config import (
    EvaluateConfig,
    EvaluatorConfig,
    FinetuneConfig,
    GenerateConfig,
    differences,
    refuse,
)
from detsd.models.support import HUB_NAME, model_problems, vocabulary
from detsd.runs.folder import DICT_FILE, finetuning_of, latest_checkpoint, read_metadata
from detsd.utils.errors import UserError
from detsd.utils.paths import DEMO_CONCEPT, DEMO_IMAGES, looked, resolve

try:  # HEIC and HEIF, what telephones write, where somebody has installed what reads them
    from pillow_heif import register_heif_opener
except ImportError:
    register_heif_opener = None


HEIF = (".heic", ".heif", ".hif")

MASK = "-masklabel.png"  # IMAGE-masklabel.png is the mask of IMAGE.jpg, as OneTrainer names it

# Beside pictures, and none themselves: captions and what programs leave there.
BESIDE = {".txt", ".json", ".jsonl", ".csv", ".md", ".ini", ".db", ".caption", ".npz"}


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


def check_generate(config: GenerateConfig, source: str, beside: Path | None = None) -> None:
    """Whether the model and the concept files that a grid names are there.

    Raises:
        UserError: naming every problem.
    """
    problems = model_problems(config.model, beside)
    for k, name in enumerate(config.concepts.files):
        problems += source_problems(name, f"concepts.files[{k}]", beside)
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


def folder_problem(folder: str, beside: Path | None = None) -> str | None:
    """What is wrong with a folder of training images; None where it holds some."""
    path = Path(folder)
    if not path.is_dir():
        what = "is no folder" if path.exists() else f"does not exist{looked(folder, beside)}"
        return f"folder {folder} {what}; name a folder of images"
    if not any(list_images(path)):
        rest = passed_over(path)
        found = f" ({rest})" if rest else ""
        return f"folder {folder} holds no readable image; put JPEG, PNG or WebP files there{found}"
    return None


def mask_of(path: Path) -> Path:
    """The file that is the mask of picture `path`."""
    return path.with_name(f"{path.stem}{MASK}")


def mask_problem(folder: str, kind: str) -> str | None:
    """Which pictures of a folder lack what `concepts.mask` asks for; None where none does."""

    def lacks(path: Path) -> bool:
        if kind == "files":
            return not mask_of(path).is_file()
        try:
            with Image.open(path) as image:
                return not image.has_transparency_data
        except Exception:  # whoever reads them all will say so
            return False

    pictures = list_images(Path(folder)) if kind != "none" else []
    without = [path for path in pictures if lacks(path)]
    if not without:
        return None
    name = without[0].name
    wanted = (
        f"put {mask_of(without[0]).name} beside {name}, white where it shows the concept and black "
        "elsewhere"
        if kind == "files"
        else f"make the background of {name} transparent"
    )
    more = f", and the others' likewise ({len(without)} in all)" if without[1:] else ""
    return f"concepts.mask is {kind}, but {folder}/{name} has no mask: {wanted}{more}"


def list_images(folder: Path) -> list[Path]:
    """Pictures in a folder by name, sorted, so that every rank sees one order; masks are none."""
    if register_heif_opener:
        register_heif_opener()
    known = Image.registered_extensions()
    found = (p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in known)
    return sorted(p for p in found if not p.name.endswith(MASK))


def passed_over(folder: Path) -> str:
    """A sentence on what lies beside the images of a folder and is not looked at; "" for nothing.

    Captions, hidden files and what programs leave beside pictures are not worth one.
    """
    images = set(list_images(folder))
    rest = sorted(
        p
        for p in folder.iterdir()
        if p not in images and not p.name.startswith((".", "_")) and not p.name.endswith(MASK)
    )
    kinds = Counter(p.suffix.lower() or p.name for p in rest if p.is_file())
    said = [f"{n} {kind}" for kind, n in kinds.items() if kind not in BESIDE]
    folders = [p.name for p in rest if p.is_dir() and list_images(p)]
    said += [f"the images in the folder {name} inside it" for name in folders]
    if not said:
        return ""
    heif = (
        ""
        if register_heif_opener or not kinds.keys() & set(HEIF)
        else ("; pip install pillow-heif to read HEIC")
    )
    return f"{folder}: passing over {', '.join(said)}{heif}"


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
