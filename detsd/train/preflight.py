"""Find mistakes in a fine-tuning's configuration before any library is loaded.

Nothing is written or downloaded. Checks that need the model itself are made where it is used.
"""

import dataclasses
import logging
from collections.abc import Container
from pathlib import Path
from typing import Any

from detsd.concepts.source import ConceptSource, word_problem
from detsd.config import ConceptsConfig, FinetuneConfig, ModelConfig, flat, refuse
from detsd.config.schema import shown
from detsd.data.captions import caption_problem
from detsd.data.folder import ImageFolder, folder_problem, list_images, lookalikes_of
from detsd.evaluate.preflight import evaluator_problems
from detsd.models.support import model_problems, vocabulary
from detsd.utils.errors import UserError
from detsd.utils.plurals import verb

logger = logging.getLogger("detsd")

QUOTES = "“”„‟«»‹›‘’‚"  # that word processors and chat programs write in place of straight ones

# Values with which other settings have no effect; these settings; what to do.
UNUSED: tuple[tuple[dict[str, Any], tuple[str, ...], str], ...] = (
    (
        {"measure.num_samples": 0},
        ("evaluator.clip", "evaluator.dino", "measure.lineup", "measure.num_prompts"),
        "set measure.num_samples to 4 or more",
    ),
    ({"training.optimizer_name": "adam"}, ("training.weight_decay",), "use adamw"),
    (
        {"training.optimizer_name": "sgd"},
        ("training.adam_beta1", "training.adam_beta2", "training.adam_epsilon"),
        "use adam or adamw",
    ),
    (
        {"training.stop_on_plateau": None},
        ("training.plateau_ratio",),
        "set training.stop_on_plateau to 3 to 10",
    ),
    (
        {"concepts.use_caption_files": False, "concepts.append_file_name_to_text": False},
        ("concepts.shuffle_tags", "concepts.tag_drop_out", "concepts.file_name_split_char"),
        "set one of the latter two to true",
    ),
)


def check_finetune(config: FinetuneConfig, source: str, beside: Path | None = None) -> None:
    """Check the model, images, words and files that a fine-tuning names.

    `source` is the configuration's name in messages, `beside` its folder.
    """
    c = config.concepts
    problems = model_problems(config.model, beside)
    problems += word_problems(config, vocabulary(config.model))
    for key in ("concept_strs", "initializer_strs"):
        for k, text in enumerate(getattr(c, key)):
            inside = text.strip(QUOTES)  # “open” sign “closed” is not meant as one in quotes
            if inside not in (text, text[1:], text[:-1]) and {*inside}.isdisjoint(QUOTES):
                problems.append(
                    f"concepts.{key}[{k}]: {text!r} is in typographic quotes, which YAML reads as "
                    "part of it; write straight ones, or none"
                )
    for k, start in enumerate(c.initializer_strs):
        if not start.strip():
            problems.append(
                f"concepts.initializer_strs[{k}] is empty; give a phrase that describes the "
                "concept, or auto"
            )
        elif ConceptSource.looks_like(start):
            key = f"concepts.initializer_strs[{k}]"
            problems += ConceptSource.parse(start).problems(key, beside)
    for k, folder in enumerate(c.img_dirs):
        if problem := folder_problem(folder, beside, c.mask):
            problems.append(f"concepts.img_dirs[{k}]: {problem}")
    if c.use_caption_files and not problems:
        try:
            if problem := caption_problem([ImageFolder.scan(Path(f)) for f in c.img_dirs]):
                problems.append(problem)
        except UserError as error:
            problems.append(f"concepts.use_caption_files: {error}")
    if config.measure.num_samples:
        problems += evaluator_problems(config.evaluator, config.model.pretrained_model_name_or_path)
        for k, folder in enumerate(config.measure.lineup):
            if problem := folder_problem(folder, beside):
                problems.append(f"measure.lineup[{k}]: {problem}")
            elif len(list_images(Path(folder))) == 1:
                logger.warning(
                    "measure.lineup[%d]: %s has only one image, so the classifier's accuracy "
                    "is unknown; add more",
                    k, folder,
                )  # fmt: skip
        try:
            for name, own in zip(c.concept_strs, c.img_dirs, strict=False):
                lookalikes_of(own, name, config.measure.lineup, "measure.lineup")
        except UserError as error:
            problems.append(str(error))
    refuse(problems, source)
    for warning in unused_settings(config):
        logger.warning("%s", warning)


def unused_settings(config: FinetuneConfig) -> list[str]:
    """Return sentences on the settings that differ from their defaults but have no effect."""
    given = flat(dataclasses.asdict(config))
    usual = flat(dataclasses.asdict(FinetuneConfig(ModelConfig(""), ConceptsConfig([], [], []))))
    found = []
    for off, keys, remedy in UNUSED:
        changed = [key for key in keys if given[key] != usual[key]]
        if changed and all(given[key] == value for key, value in off.items()):
            reason = " and ".join(f"{key} is {shown(value)}" for key, value in off.items())
            settings = f"{', '.join(changed)} {verb('have', len(changed))}"
            found.append(f"{settings} no effect while {reason}; {remedy}")
    return found


def word_problems(config: FinetuneConfig, tokens: Container[str]) -> list[str]:
    """Return the problems of the new words, given a model's tokens."""
    found = (word_problem(word, tokens) for word in config.concepts.concept_strs)
    return [f"concepts.concept_strs[{k}]: {problem}" for k, problem in enumerate(found) if problem]
