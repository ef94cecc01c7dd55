"""The vocabulary of a model: concepts whose vectors live beside a frozen text encoder.

A `Vocabulary` is the only way to put concepts into a model. It holds one text encoder, or two in
Stable Diffusion XL, each with its tokenizer and its rows of vectors. A concept's word in a prompt
is replaced by as many placeholder tokens as it has rows. The base table never changes: the rows are
a separate float32 parameter, and a thin layer looks up each id in one or the other.
"""

import contextlib
import dataclasses
import itertools
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn as nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from detsd.concepts import weights
from detsd.concepts.concept import FAMILIES, LearnedConcept, family, joined
from detsd.concepts.embedding import ConceptEmbedding
from detsd.concepts.prompts import PromptRewriter, unweighted
from detsd.concepts.source import is_word, word_problem
from detsd.utils.errors import UserError
from detsd.utils.paths import BUNDLED


class TextEncoder:
    """A tokenizer, its frozen text encoder, and the rows of concepts for it.

    The constructor replaces the encoder's token table with a `ConceptEmbedding`.
    """

    def __init__(
        self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel | CLIPTextModelWithProjection
    ):
        base = encoder.get_input_embeddings()
        if isinstance(base, ConceptEmbedding):
            raise ValueError("this text encoder already has a Vocabulary")
        self.tokenizer, self.encoder = tokenizer, encoder
        self._tokenizing = threading.Lock()
        self._saved = _saved_words(tokenizer)
        words = "|".join(map(re.escape, sorted(self._saved, key=len, reverse=True))) or "(?!)"
        # Not within a concept's own tokens, such as <det-logo|0>.
        self._saved_pattern = re.compile(rf"(?<![\w-])(?:{words})(?![\w|-])")
        self.embedding = ConceptEmbedding(base, first_id=len(tokenizer))
        encoder.set_input_embeddings(self.embedding)
        # Remembered texts, and their ids (n, 77) as int32, which halves their size.
        self._places: dict[str, int] = {}
        window, device = tokenizer.model_max_length, base.weight.device
        self._table = torch.empty(0, window, dtype=torch.int32, device=device)
        # An encoder whose configuration says 2, as in Stable Diffusion XL, takes the largest id as
        # the end of a prompt and pools there; but the ids of concepts are larger.
        getattr(encoder, "text_model", encoder).eos_token_id = tokenizer.eos_token_id

    def ids(self, texts: list[str]) -> torch.Tensor:
        """Tokenize, pad and cut texts to the window: (B, 77) on the encoder's device."""
        places = [self._places.get(text) for text in texts]
        if None in places:
            return self._tokenized(texts).to(self.embedding.weight.device)
        return torch.stack([self._table[k] for k in places]).long()

    def remember(self, texts: Iterable[str]) -> None:
        """Tokenize texts now, so that `ids` need not tokenize them or wait later."""
        new = [text for text in dict.fromkeys(texts) if text not in self._places]
        self._places |= {text: len(self._places) + k for k, text in enumerate(new)}
        parts = [self._tokenized(new[k : k + 1024]).int() for k in range(0, len(new), 1024)]
        self._table = torch.cat([self._table, *(p.to(self._table.device) for p in parts)])

    def _tokenized(self, texts: list[str]) -> torch.Tensor:
        return self.tokenize(texts, padding="max_length", truncation=True, return_tensors="pt")

    def tokenize(self, texts: str | list[str], **options: Any) -> Any:
        """Return the ids of texts, with the tokenizer's `options`; safe to call in any thread.

        Padding and truncation are state of the tokenizer (`set_truncation_and_padding`): if two
        threads called it at once, one could get the other's settings.
        """
        if self._saved:
            texts = self._with_all_vectors(texts)
        with self._tokenizing:
            return self.tokenizer(texts, **options).input_ids

    def _with_all_vectors(self, texts: str | list[str]) -> str | list[str]:
        """Expand words that were saved into the model to all their tokens, as diffusers does."""
        if isinstance(texts, list):
            return [self._with_all_vectors(text) for text in texts]
        return self._saved_pattern.sub(lambda word: " ".join(self._saved[word[0]]), texts)

    @property
    def has_saved_words(self) -> bool:
        """True if a word may stand for more tokens than it has letters."""
        return bool(self._saved)

    def chunks(
        self, sections: list[list[weights.Piece]], lengths: Mapping[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokenize the pieces of a prompt: ids (n, 77) of its chunks, and their weights.

        `lengths` maps the index of each concept's first row to its number of vectors.
        """
        t, first = self.tokenizer, self.embedding.first_id
        texts = [text for section in sections for text, _ in section]
        plain = {"add_special_tokens": False, "verbose": False}
        ids = iter(self.tokenize(texts, **plain) if texts else [])
        tokens = [[(i, weight) for _, weight in s for i in next(ids)] for s in sections]
        at = {first + row: length for row, length in lengths.items()}
        at |= {t.convert_tokens_to_ids(word): len(all_) for word, all_ in self._saved.items()}
        comma = t.convert_tokens_to_ids(",</w>")
        chunks = weights.split(tokens, t.model_max_length - 2, at, comma)
        shape = len(chunks), t.model_max_length
        found = torch.full(shape, t.pad_token_id), torch.ones(shape)
        for k, chunk in enumerate(chunks):
            ends = [(t.bos_token_id, 1.0), *chunk, (t.eos_token_id, 1.0)]
            for table, values in zip(found, zip(*ends, strict=True), strict=True):
                table[k, : len(ends)] = torch.tensor(values)
        return tuple(table.to(self.embedding.weight.device) for table in found)

    def drop_layers(self) -> None:
        """Drop all of the encoder except its token table; it can no longer encode anything."""
        self.encoder.set_input_embeddings(nn.Identity())
        self.encoder.to("meta")
        self.encoder.set_input_embeddings(self.embedding)


def _saved_words(tokenizer: CLIPTokenizer) -> dict[str, list[str]]:
    """Return the words with several vectors in a saved tokenizer, and their tokens.

    diffusers adds `word`, `word_1`, `word_2` and so on to the tokenizer, which `save_pretrained`
    writes. In a prompt, it replaces the word with all of them.
    """
    added = {t.content for t in tokenizer.added_tokens_decoder.values() if not t.special}
    found = {}
    for word in sorted(added):
        further = (f"{word}_{n}" for n in itertools.count(1))
        found[word] = [word, *itertools.takewhile(added.__contains__, further)]
    return {word: tokens for word, tokens in found.items() if len(tokens) > 1}


def check_fit(concept: LearnedConcept, widths: tuple[int, ...], model: str) -> None:
    """Refuse a concept whose vectors do not fit the text encoders of a base model."""
    if concept.widths == widths:
        return
    whose = "the text encoder's width is" if len(widths) == 1 else "the text encoders' widths are"
    known = widths in FAMILIES and model != BUNDLED
    raise UserError(
        f"concept {concept.name!r} does not fit {model}{f' ({family(widths)})' * known}: it has "
        f"rows of width {joined(concept.widths)}, but {whose} {joined(widths)}; it was learned on "
        f"{concept.model or family(concept.widths)}: name that base model, or another concept"
    )


class Vocabulary:
    """A model's text encoders, and the concepts added to them.

    `names` lists the concepts in the order of their rows.

    Args:
        tokenizer_2, text_encoder_2: the second ones, if the model has two.
        model: the model's name, for messages.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        tokenizer_2: CLIPTokenizer | None = None,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        model: str = "the base model",
    ):
        self.text_encoders = (TextEncoder(tokenizer, text_encoder),)
        if text_encoder_2 is not None:
            self.text_encoders += (TextEncoder(tokenizer_2, text_encoder_2),)
        self.model = model
        self._base_tokens = frozenset(tokenizer.get_vocab())
        self._slices: dict[str, slice] = {}
        self._loaded: dict[str, LearnedConcept] = {}
        self.rewrite = PromptRewriter({})

    @property
    def names(self) -> list[str]:
        return list(self._slices)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the text encoders."""
        return tuple(e.embedding.base.embedding_dim for e in self.text_encoders)

    @property
    def rows(self) -> tuple[nn.Parameter, ...]:
        """The learned rows (N, D), float32 (float64 with a model in fp64), of every encoder."""
        return tuple(encoder.embedding.rows for encoder in self.text_encoders)

    @contextlib.contextmanager
    def using(self, rows: tuple[torch.Tensor, ...]) -> Iterator[None]:
        """Use other rows (N, D) within the block, one matrix for every text encoder.

        The vocabulary's own rows do not change, and get no gradient from the block.
        """
        embeddings, own = [encoder.embedding for encoder in self.text_encoders], self.rows
        for embedding, matrix in zip(embeddings, rows, strict=True):
            embedding.set_rows(nn.Parameter(matrix, requires_grad=False))
        try:
            yield
        finally:
            for embedding, matrix in zip(embeddings, own, strict=True):
                embedding.set_rows(matrix)

    @property
    def window(self) -> int:
        """The number of tokens of a prompt that the model reads, including start and end: 77."""
        return self.text_encoders[0].tokenizer.model_max_length

    def length(self, prompt: str) -> int:
        """Count a prompt's tokens, including start and end; a concept counts once per vector."""
        return len(self.text_encoders[0].tokenize(self.text(prompt)))

    def initializer_vectors(
        self, phrase: str, num_vectors: int | None, key: str
    ) -> tuple[torch.Tensor, ...]:
        """Return the base table's rows (n, D), float32, for a phrase's tokens, per text encoder.

        If `num_vectors` is less than the number of tokens, only the first rows are returned; if it
        is more, the rows are repeated from the start.
        """
        vectors = []
        for encoder in self.text_encoders:
            ids = encoder.tokenize(phrase, add_special_tokens=False)
            if not ids:
                raise UserError(f"{key} is empty; give a phrase that describes the concept")
            ids = [ids[k % len(ids)] for k in range(num_vectors or len(ids))]
            vectors.append(encoder.embedding.weight[ids].detach().float().clone())
        return tuple(vectors)

    def check(self, concept: LearnedConcept) -> None:
        """Refuse a concept that cannot be added; nothing is changed."""
        name = concept.name
        if name in self._slices:
            pair = " (either file of a pair stands for both)" * (len(self.text_encoders) > 1)
            raise UserError(
                f"concept {name!r} is loaded twice; load it once{pair}, or rename one: FILE=WORD"
            )
        problem = word_problem(name, self._base_tokens)
        if problem:
            raise UserError(f"{problem}; FILE=WORD gives the concept of a file another word")
        check_fit(concept, self.widths, self.model)

    def add(self, concept: LearnedConcept) -> None:
        """Add a concept with its vectors."""
        self.check(concept)
        name, count = concept.name, concept.num_vectors
        start = len(self.rows[0])
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        # Lower case without spaces: older tokenizers normalize added tokens like text.
        tokens = [f"<{slug}|{start + k}>" for k in range(count)]
        for encoder, rows in zip(self.text_encoders, concept.embeddings, strict=True):
            if encoder.tokenizer.add_tokens(tokens) != count:
                raise UserError(f"concept {name!r} clashes with tokens of the tokenizer; rename it")
            encoder.embedding.extend(rows)
        self._slices[name] = slice(start, start + count)
        self._loaded[name] = concept
        self.rewrite = PromptRewriter(self.rewrite.replacements | {name: " ".join(tokens)})

    def remove(self, name: str) -> None:
        """Remove a concept, whose word regains its ordinary meaning.

        Its rows stay in the table, because the ids of the other concepts' tokens depend on their
        positions. They take a few kilobytes, and no prompt reaches them.
        """
        if name not in self._slices:
            loaded = ", ".join(self.names) or "none"
            raise UserError(f"concept {name!r} is not loaded; name one that is: {loaded}")
        del self._slices[name], self._loaded[name]
        left = {n: tokens for n, tokens in self.rewrite.replacements.items() if n != name}
        self.rewrite = PromptRewriter(left)

    def text(self, prompt: str) -> str:
        """Return a prompt in its training form: without weights, and with tokens for concepts."""
        return unweighted(self.rewrite(prompt))  # words first: brackets may touch or be part of one

    def chunks(self, prompt: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return ids and weights (n, 77) of a prompt's chunks for each text encoder."""
        sections = weights.parse(prompt, self.rewrite)
        lengths = {s.start: s.stop - s.start for s in self._slices.values()}
        return [encoder.chunks(sections, lengths) for encoder in self.text_encoders]

    def chunk_count(self, prompt: str) -> int:
        """Count the chunks of 75 tokens of a prompt."""
        return 1 if self.is_plain(prompt) else len(self.chunks(prompt)[0][0])

    def has_extreme_weights(self, prompt: str) -> bool:
        """Return whether any weight of a prompt reaches the limit."""
        pieces = [piece for section in weights.parse(prompt, self.rewrite) for piece in section]
        return any(abs(weight) >= weights.MAX_WEIGHT for _, weight in pieces)

    def is_plain(self, prompt: str) -> bool:
        """Return whether a prompt is read as in training: it has no weights and fits the window."""
        sections = weights.parse(prompt, self.rewrite)
        plain = sections == [[(self.rewrite(prompt), 1.0)]] or not prompt
        if not plain or self.text(prompt) != self.rewrite(prompt):
            return False
        return self.fits(prompt)

    def remember(self, prompts: Iterable[str]) -> None:
        """Tokenize prompts once, after all concepts are added."""
        texts = [self.text(prompt) for prompt in prompts]
        for encoder in self.text_encoders:
            encoder.remember(texts)

    def fits(self, prompt: str) -> bool:
        """Return whether a prompt fits the window of 77 tokens."""
        if any(encoder.has_saved_words for encoder in self.text_encoders):
            return self.length(prompt) <= self.window
        # Most prompts need no tokenizing, because a token has at least one byte.
        vectors = sum(self._loaded[word].num_vectors for word in self.rewrite.words_in(prompt))
        most = 2 + vectors + len(self.rewrite.without(prompt).encode())
        return most <= self.window or self.length(prompt) <= self.window

    def with_initializers(self, prompt: str) -> str:
        """Replace each concept's word by its initializer.

        A concept whose file names none becomes "thing".
        """
        phrases = {name: c.initializer or "thing" for name, c in self._loaded.items()}
        return PromptRewriter(phrases)(prompt)

    def set_resolution(self, name: str, resolution: tuple[int, int] | None) -> None:
        """Set the width and height of a concept's samples."""
        self._loaded[name] = dataclasses.replace(self._loaded[name], resolution=resolution)

    def resolution(self, prompt: str) -> tuple[int, int] | None:
        """Return the width and height for the first concept in a prompt; None: the model's own."""
        first = next(iter(self.rewrite.words_in(prompt)), None)
        return self._loaded[first].resolution if first else None

    def is_word(self, name: str) -> bool:
        """Return whether a concept's name is a single token of the base model, such as `cat`."""
        return is_word(name, self._base_tokens)

    def concepts(self) -> list[LearnedConcept]:
        """Return all concepts with copies of their vectors."""
        return [
            dataclasses.replace(
                self._loaded[name],
                embeddings=tuple(rows.detach()[part].cpu().float().clone() for rows in self.rows),
            )
            for name, part in self._slices.items()
        ]

    def token_ids(self, prompts: list[str]) -> torch.Tensor:
        """Return the first encoder's input: (B, 77) on its device."""
        return self.text_encoders[0].ids([self.text(p) for p in prompts])

    def truncated_concepts(self, prompt: str) -> list[str]:
        """Return the concepts of a prompt that the 77-token window cuts off, wholly or in part."""
        ids = self.token_ids([prompt])[0].tolist()
        first = self.text_encoders[0].embedding.first_id
        named = self.rewrite.words_in(prompt)
        lost = []
        for name in dict.fromkeys(named):
            part = self._slices[name]
            kept = sum(ids.count(first + k) for k in range(part.start, part.stop))
            if kept < named.count(name) * (part.stop - part.start):
                lost.append(name)
        return lost
