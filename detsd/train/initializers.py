"""The starting vectors of concepts: from a description, found or given, or a concept file."""

import functools
from collections.abc import Iterable, Mapping

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.reading import read_concepts
from detsd.concepts.source import ConceptSource
from detsd.concepts.vocabulary import Vocabulary
from detsd.config import ConceptsConfig
from detsd.utils.errors import UserError
from detsd.utils.paths import AUTO
from detsd.utils.plurals import counted

# With `num_vectors: auto`, phrases of fewer than SHORT tokens get ENOUGH vectors. More vectors than
# needed would also learn the pictures' background (dev/LOG.md).
SHORT, ENOUGH = 5, 8


def add_concepts(
    vocabulary: Vocabulary,
    config: ConceptsConfig,
    starts: Mapping[int, str] | None = None,
    earlier: Iterable[LearnedConcept] = (),
) -> None:
    """Add concepts, each from a description or from a file of one concept.

    `starts` maps their indices to initializers; None: all except `auto`. Concepts with
    `num_vectors: auto` get as many vectors as the `earlier` concepts, from which the run resumes.
    """
    room = vocabulary.window - vocabulary.length("a photo of a")
    for k, n in enumerate(config.num_vectors):
        if isinstance(n, int) and n > room:
            raise UserError(
                f"concepts.num_vectors[{k}] is {n}, but a prompt has room for "
                f"{counted(room, 'token')} beside 'a photo of a'; 1 to 16 are usual"
            )
    if starts is None:
        starts = {k: start for k, start in enumerate(config.initializer_strs) if start != AUTO}
    lengths = {concept.name: concept.num_vectors for concept in earlier}
    for k, start in starts.items():
        name, n = config.concept_strs[k], config.num_vectors[k]
        key = f"concepts.initializer_strs[{k}]"
        n = lengths.get(name, n) if n == AUTO else n
        if ConceptSource.looks_like(start):
            found = read_concepts(start)
            if len(found) != 1:
                names = ", ".join(concept.name for concept in found)
                raise UserError(
                    f"{key}: {start} holds {len(found)} concepts ({names}); name a file with one, "
                    "such as a checkpoint's NAME.safetensors"
                )
            vectors, initializer = found[0].embeddings, found[0].initializer
            n = None if n == AUTO else n
            vectors = tuple(v[[j % len(v) for j in range(n or len(v))]] for v in vectors)
        else:
            initializer = " ".join(start.split())
            rows = functools.partial(vocabulary.initializer_vectors, initializer, key=key)
            if n == AUTO:
                n = ENOUGH if len(rows(None)[0]) < SHORT else None
            vectors = rows(n)
        vocabulary.add(LearnedConcept(name, initializer, vectors))
        if vocabulary.truncated_concepts(f"a photo of a {name}"):
            raise UserError(
                f"concepts.num_vectors[{k}]: {len(vectors[0])} vectors of {name!r} do not fit into "
                f"a prompt of {vocabulary.window} tokens; 1 to 16 are usual"
            )
