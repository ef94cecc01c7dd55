"""The start of the concepts of a fine-tuning: a description, or a concept file."""

from __future__ import annotations

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.reading import read_concepts
from detsd.concepts.source import ConceptSource
from detsd.concepts.vocabulary import Vocabulary
from detsd.config import FinetuneConfig
from detsd.utils.errors import UserError


def add_concepts(vocabulary: Vocabulary, config: FinetuneConfig) -> None:
    """Add the configured concepts, each from a description or from a file of one concept."""
    c = config.concepts
    for k, (name, start, n) in enumerate(
        zip(c.concept_strs, c.initializer_strs, c.num_vectors, strict=True)
    ):
        if ConceptSource.looks_like(start):
            found = read_concepts(start)
            if len(found) != 1:
                raise UserError(f"{start} holds {len(found)} concepts; start from a file of one")
            vectors, initializer = found[0].rows, found[0].initializer
            vectors = tuple(v[[j % len(v) for j in range(n or len(v))]] for v in vectors)
        else:
            if (n or 0) > (window := vocabulary.window):
                raise UserError(
                    f"concepts.num_vectors[{k}] is {n}, but a prompt has room for {window} tokens; "
                    "1 to 16 are usual"
                )
            initializer = " ".join(start.split())
            vectors = vocabulary.initializer_vectors(
                initializer, n, f"concepts.initializer_strs[{k}]"
            )
        vocabulary.add(LearnedConcept(name, initializer, *vectors))
        if vocabulary.truncated_concepts(f"a photo of a {name}"):
            raise UserError(
                f"concepts.num_vectors[{k}]: {len(vectors[0])} vectors of {name!r} do not fit into "
                f"a prompt of {vocabulary.window} tokens; 1 to 16 are usual"
            )
