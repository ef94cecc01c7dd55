"""The samples of an evaluation: of each concept, and of what it is compared with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.reading import read_concepts
from detsd.concepts.source import checkpoints_of, locate, split_source
from detsd.config import ConceptsConfig, EvaluateConfig, TrainingConfig
from detsd.data.templates import EDITS, PLAIN
from detsd.evaluate.preflight import images_problem, learned_from
from detsd.runs.download import cached_checkpoint
from detsd.runs.folder import DICT_FILE, finetuning_of
from detsd.sampling.jobs import Job
from detsd.utils.errors import UserError


@dataclass(frozen=True)
class Ground:
    """What a concept was learned from, and how: what its samples are held against.

    Attributes:
        name: the concept's word in its training prompts.
        folder: of its training images.
        concepts, seed, most_held_out: of its fine-tuning, so that the same images are held out.
    """

    name: str
    phrase: str
    folder: str
    concepts: ConceptsConfig
    seed: int
    most_held_out: int

    @property
    def kind(self) -> str:
        """object or style."""
        return self.concepts.learnable_properties[self.concepts.concept_strs.index(self.name)]


@dataclass(frozen=True)
class Block:
    """The samples of a concept, or of a phrase: what they are of, and their jobs."""

    label: str
    ground: Ground
    jobs: list[Job]
    concept: LearnedConcept | None = None  # under the word of its prompts; None: the phrase
    source: str = ""


def _files(config: EvaluateConfig) -> list[tuple[str, str]]:
    """What is evaluated, as `path` or `path=word`, and what an image is to call it."""
    found = []
    for source in config.concepts.files:
        path, word = split_source(source)
        every = checkpoints_of(path) if config.evaluation.all_checkpoints else []
        for file in map(str, every or [split_source(locate(source))[0]]):
            found.append((f"{file}={word}" if word else file, file))
    for source in config.concepts.uuids:
        uuid, equals, word = source.partition("=")
        found.append((locate(f"{cached_checkpoint(uuid)}{equals}{word}"), f"uuid:{uuid}"))
    return found


def _ground(concept: LearnedConcept, file: Path, images_dir: str | None) -> Ground:
    """What a concept of a file is held against.

    Raises:
        UserError: its training images are not known, or not here.
    """
    config = finetuning_of(file).get("config", {})
    known = {f.name for f in dataclasses.fields(ConceptsConfig)}
    given = {k: v for k, v in config.get("concepts", {}).items() if k in known}
    names = given.get("concept_strs", [concept.name])
    place = names.index(concept.name) if concept.name in names else 0  # else under another word
    folders = [images_dir] * len(names) if images_dir else learned_from(file)
    if problem := images_problem(concept.name, folders[place : place + 1]):
        raise UserError(f"{file}: {problem}")
    phrase = concept.initializer or "thing"  # as Vocabulary.plain has it
    lists = {
        "concept_strs": names,
        "initializer_strs": [phrase] * len(names),
        "img_dirs": folders,
        "learnable_properties": given.get("learnable_properties", ["object"]),
        "num_vectors": [None],  # of no concern here: runs that differ in it are compared
    }
    if images_dir:  # which are of this concept alone
        lists = {key: values[place : place + 1] for key, values in lists.items()}
    training = config.get("training", {})
    return Ground(
        names[place],
        phrase,
        folders[place],
        ConceptsConfig(**given | lists),
        training.get("train_seed", TrainingConfig.train_seed),
        training.get("max_validation_images", TrainingConfig.max_validation_images),
    )


def find_blocks(config: EvaluateConfig) -> list[Block]:
    """The samples to be made: of the phrase of each ground, then of each concept on it.

    Raises:
        UserError: a source without a concept, or without training images.
    """
    found = []
    for named, source in _files(config):
        file, given = split_source(named)
        for concept in read_concepts(named):
            ground = _ground(concept, file, config.evaluation.images)
            found.append((concept, (source, given), _title(file), ground))
    groups: list[list[Block]] = []
    for number, (concept, (source, given), title, ground) in enumerate(found):
        alike = [(c.steps, t) for c, _, t, _ in found if c.name == concept.name]
        # One name may stand for many states: each gets a word of its own.
        steps = concept.steps if [k for k, _ in alike].count(concept.steps) == 1 else None
        word = f"{concept.name}-{f'no-{number + 1}' if steps is None else steps}"
        word = word if len(alike) > 1 else concept.name
        label = title if len({t for _, t in alike}) > 1 else concept.name
        label += "" if concept.steps is None else f", {concept.steps} steps"
        block = Block(
            label,
            ground,
            _jobs(config, ground, word),
            dataclasses.replace(concept, name=word),
            f"{source}={word}" if given or word != concept.name else source,
        )
        group = next((g for g in groups if g[0].ground == ground), None)
        if group is None:
            group = [Block("the phrase", ground, _jobs(config, ground, ground.phrase))]
            groups.append(group)
        group.append(block)
    return [block for group in groups for block in group]


def _title(file: Path) -> str:
    """What tells a concept file from others: its run's name, or its own."""
    inside = file.parent.parent.name == "checkpoints"
    run = file.parent.parent.parent if inside else file.parent
    return run.name if file.name == DICT_FILE else file.stem


def edits(config: EvaluateConfig, ground: Ground) -> list[str]:
    """The edited prompts of a ground's concepts, with {} in them."""
    e = config.evaluation
    return e.prompts or list(EDITS[ground.kind if e.prompt_list == "auto" else e.prompt_list])


def _jobs(config: EvaluateConfig, ground: Ground, word: str) -> list[Job]:
    """The samples of a word: of the plain prompt, then of each edited one; seeds fastest."""
    e = config.evaluation
    counts = [(PLAIN[ground.kind], e.num_samples)]
    counts += [(template, e.num_samples_per_prompt) for template in edits(config, ground)]
    return [
        Job(
            template.format(word),
            e.first_seed + k,
            guidance_scale=e.guidance_scale,
            num_inference_steps=e.num_inference_steps,
        )
        for template, count in counts
        for k in range(count)
    ]
