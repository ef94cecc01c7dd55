"""Find mistakes in a fine-tuning's configuration before any library is loaded.

Nothing is written or downloaded. Checks that need the model itself are made where it is used.
"""

from collections.abc import Container
from pathlib import Path

from detsd.concepts.source import ConceptSource, word_problem
from detsd.config import FinetuneConfig, refuse
from detsd.data.captions import caption_problem
from detsd.data.folder import ImageFolder, folder_problem, lookalikes_of
from detsd.evaluate.preflight import evaluator_problems
from detsd.models.support import model_problems, vocabulary
from detsd.utils.errors import UserError


def check_finetune(config: FinetuneConfig, source: str, beside: Path | None = None) -> None:
    """Check the model, images, words and files that a fine-tuning names.

    `source` is the configuration's name in messages, `beside` its folder.
    """
    c = config.concepts
    problems = model_problems(config.model, beside)
    problems += word_problems(config, vocabulary(config.model))
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
        try:
            for name, own in zip(c.concept_strs, c.img_dirs, strict=False):
                lookalikes_of(own, name, config.measure.lineup, "measure.lineup")
        except UserError as error:
            problems.append(str(error))
    refuse(problems, source)


def word_problems(config: FinetuneConfig, tokens: Container[str]) -> list[str]:
    """Return the problems of the new words, given a model's tokens."""
    found = (word_problem(word, tokens) for word in config.concepts.concept_strs)
    return [f"concepts.concept_strs[{k}]: {problem}" for k, problem in enumerate(found) if problem]
