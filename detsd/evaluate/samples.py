"""The samples of an evaluation: those of each concept and of the initializer it started from."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.reading import read_concepts, word_in_file
from detsd.concepts.source import ConceptSource
from detsd.config import ConceptsConfig, EvaluateConfig, TrainingConfig
from detsd.data.templates import EDITS, PLAIN
from detsd.evaluate.preflight import images_problem, learned_from
from detsd.runs.folder import RunFolder, finetuning_metadata, title_of
from detsd.sampling.jobs import Job, product
from detsd.utils.errors import UserError
from detsd.utils.plurals import counted


@dataclass(frozen=True)
class ConceptReference:
    """The training images and settings that a concept's samples are compared with.

    Attributes:
        name: the concept's word in its training prompts.
        initializer: the phrase that it started from.
        folder: the folder of its training images.
        concepts, seed, most_held_out: settings of its fine-tuning, so that the same images are held
            out.
        resolution: width and height of the samples; None: by `concepts.img_aspect`, and square
            for buckets.
    """

    name: str
    initializer: str
    folder: str
    concepts: ConceptsConfig
    seed: int
    most_held_out: int
    resolution: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """object or style."""
        return self.concepts.learnable_properties[self.concepts.concept_strs.index(self.name)]


@dataclass(frozen=True)
class SampleSet:
    """The samples of a concept or of an initializer, as jobs."""

    label: str
    reference: ConceptReference
    jobs: list[Job]
    concept: LearnedConcept | None = None  # named as in its prompts; None: the initializer
    source: str = ""


def _files(config: EvaluateConfig, uuids: Sequence[str]) -> list[tuple[ConceptSource, str]]:
    """Return the concept files to evaluate, and their names in an image's settings."""
    found = []
    for source in map(ConceptSource.parse, config.concepts.files):
        every = RunFolder(source.path).concept_files() if config.evaluation.all_checkpoints else []
        for file in every or [source.file]:
            found.append((dataclasses.replace(source, path=file), str(file)))
    for uuid in [*config.concepts.uuids, *uuids]:
        source = ConceptSource.parse(f"uuid:{uuid}")
        found.append((source.located, f"uuid:{source.uuid}"))
    return found


def _reference(
    concept: LearnedConcept, word: str, file: Path, images_dir: str | None
) -> ConceptReference:
    """Return the reference for a concept that has the name `word` in a file."""
    config = finetuning_metadata(file).get("config", {})
    known = {f.name for f in dataclasses.fields(ConceptsConfig)}
    given = {k: v for k, v in config.get("concepts", {}).items() if k in known}
    if concept.resolution:  # the file may be outside its run
        given = {"img_aspect": "buckets"} | given
    names = given.get("concept_strs", [word])
    if word not in names and len(names) > 1 and not images_dir:
        raise UserError(
            f"{file}: its run learned {', '.join(names)}, none of them called {word}; name the "
            "folder of its training images with --images (evaluation.images)"
        )
    place = names.index(word) if word in names else 0
    folders = [images_dir] * len(names) if images_dir else learned_from(file)
    if problem := images_problem(concept.name, folders[place : place + 1]):
        raise UserError(f"{file}: {problem}")
    initializer = concept.initializer or "thing"  # as in Vocabulary.with_initializers
    lists = {
        "concept_strs": names,
        "initializer_strs": ["thing"] * len(names),  # the data are the same for all
        "img_dirs": folders,
        "learnable_properties": given.get("learnable_properties", ["object"]),
        "num_vectors": [None],  # ignored, so that runs that differ in it are compared
    }
    if images_dir:  # those of this concept alone
        lists = {key: values[place : place + 1] for key, values in lists.items()}
    training = config.get("training", {})
    return ConceptReference(
        names[place],
        initializer,
        folders[place],
        ConceptsConfig(**given | lists),
        training.get("train_seed", TrainingConfig.train_seed),
        training.get("max_validation_images", TrainingConfig.max_validation_images),
        concept.resolution if given.get("img_aspect") == "buckets" else None,
    )


def find_sample_sets(config: EvaluateConfig, uuids: Sequence[str] = ()) -> list[SampleSet]:
    """Return the samples to make: for each reference, its initializer's, then its concepts'.

    Args:
        uuids: checkpoints in addition to those of the configuration.
    """
    found = []
    for named, source in _files(config, uuids):
        concepts = read_concepts(named)
        for concept in concepts:
            in_file = word_in_file(named, concept.name)
            reference = _reference(concept, in_file, named.path, config.evaluation.images)
            old = in_file if len(concepts) > 1 else ""
            found.append((concept, (source, named.word, old), title_of(named.path), reference))
    groups: dict[str, list[SampleSet]] = {}
    for number, (concept, (source, given, old), title, reference) in enumerate(found):
        alike = [(c.steps, t) for c, _, t, _ in found if c.name == concept.name]
        # Several states may share a name, so each gets its own word.
        steps = concept.steps if [k for k, _ in alike].count(concept.steps) == 1 else None
        word = f"{concept.name}-{f'no-{number + 1}' if steps is None else steps}"
        word = word if len(alike) > 1 else concept.name
        renamed = word != old if old else given or word != concept.name
        label = title if len({t for _, t in alike}) > 1 else concept.name
        label += "" if concept.steps is None else f", {counted(concept.steps, 'step')}"
        if alike.count((concept.steps, title)) > 1:  # runs with the same name, or one named twice
            label += f" (no. {number + 1})"
        sample_set = SampleSet(
            label,
            reference,
            _jobs(config, reference, word),
            dataclasses.replace(concept, name=word),
            str(ConceptSource(Path(source), word, old=old)) if renamed else source,
        )
        group = groups.setdefault(repr(reference), [])
        if not group:
            plain = _jobs(config, reference, reference.initializer)
            group.append(SampleSet("the initializer", reference, plain))
        group.append(sample_set)
    return [sample_set for group in groups.values() for sample_set in group]


def edits(config: EvaluateConfig, reference: ConceptReference) -> list[str]:
    """Return the edited prompts of a reference's concepts, with {} for the concept."""
    e = config.evaluation
    return e.prompts or list(EDITS[reference.kind if e.prompt_list == "auto" else e.prompt_list])


def _jobs(config: EvaluateConfig, reference: ConceptReference, word: str) -> list[Job]:
    """Return the jobs of a word: the plain prompt, then each edited one; seeds vary fastest."""
    e = config.evaluation
    counts = [(PLAIN[reference.kind], e.num_samples)]
    counts += [(template, e.num_samples_per_prompt) for template in edits(config, reference)]
    base = Job(
        "",
        0,
        guidance_scale=e.guidance_scale,
        num_inference_steps=e.num_inference_steps,
        guidance_interval=e.guidance_interval,
        spacing=e.spacing,
    )
    jobs = []
    for template, count in counts:
        seeds = range(e.first_seed, e.first_seed + count)
        jobs += product(base, prompt=[template.replace("{}", word)], seed=seeds)
    return jobs
