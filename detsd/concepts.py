"""Concepts: new words whose embedding rows live beside a frozen text encoder.

`Vocabulary(tokenizer, text_encoder)` is the one way to put concepts into a model. A concept's word
in a prompt is replaced by as many placeholder tokens as it has rows. The base table is never
written to: the rows are a separate float32 parameter, and a thin layer looks up the one or the
other.
"""

from __future__ import annotations

import re

import torch
import torch.nn as nn
from transformers import CLIPTextModel, CLIPTokenizer

from detsd.errors import UserError
from detsd.formats import LearnedConcept


class ConceptEmbedding(nn.Module):
    """The frozen token table with learned rows behind it.

    Ids from `first_id` on are looked up in `rows` (N, D), float32; all others in `base`. The result
    has the base table's dtype.
    """

    def __init__(self, base: nn.Embedding, first_id: int):
        super().__init__()
        self.base = base
        self.first_id = first_id
        # In a container, so that the base table stays the module's first parameter: libraries take
        # a model's dtype from that.
        self.learned = nn.ParameterDict()
        self.set_rows(nn.Parameter(torch.empty(0, base.embedding_dim, device=base.weight.device)))

    @property
    def rows(self) -> nn.Parameter:
        """The learned rows (N, D), float32."""
        return self.learned["rows"]

    def set_rows(self, rows: nn.Parameter) -> None:
        """Look up `rows` (N, D) from now on."""
        self.learned["rows"] = rows

    @property
    def weight(self) -> torch.Tensor:
        """The frozen table (V, D), for libraries that look at it."""
        return self.base.weight

    def extend(self, rows: torch.Tensor) -> None:
        """Append rows (n, D) as the next ids."""
        old = self.rows.data
        self.set_rows(nn.Parameter(torch.cat([old, rows.to(old)])))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        new = ids >= self.first_id
        known = self.base(torch.where(new, 0, ids))  # (..., D)
        if len(self.rows) == 0:
            return known
        learned = self.rows[torch.where(new, ids - self.first_id, 0)].to(known.dtype)
        return torch.where(new[..., None], learned, known)


class PromptRewriter:
    """Replaces concept words by their placeholder tokens: one pass, longest word first.

    A word counts only where no letter, digit, underscore or hyphen touches it, so `det-logo` is
    left alone inside `det-logo-demo`. What was put in is not looked at again.
    """

    def __init__(self, replacements: dict[str, str]):
        self.replacements = dict(replacements)
        words = sorted(self.replacements, key=len, reverse=True)
        self._pattern = re.compile(
            r"(?<![\w-])(?:" + "|".join(map(re.escape, words)) + r")(?![\w-])" if words else r"(?!)"
        )

    def __call__(self, prompt: str) -> str:
        return self._pattern.sub(lambda match: self.replacements[match[0]], prompt)

    def without(self, prompt: str) -> str:
        """The prompt with every concept word taken out."""
        return self._pattern.sub(" ", prompt)

    def words_in(self, prompt: str) -> list[str]:
        """The concept words that occur in a prompt, in order."""
        return self._pattern.findall(prompt)


class Vocabulary:
    """A tokenizer and text encoder, and the concepts added to them.

    The constructor puts a `ConceptEmbedding` in place of the text encoder's table; adding concepts
    extends it. `names` lists them in the order of their rows.
    """

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel):
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        base = text_encoder.get_input_embeddings()
        if isinstance(base, ConceptEmbedding):
            raise ValueError("this text encoder already has a Vocabulary")
        self.embedding = ConceptEmbedding(base, first_id=len(tokenizer))
        text_encoder.set_input_embeddings(self.embedding)
        self._base_tokens = frozenset(tokenizer.get_vocab())
        self._slices: dict[str, slice] = {}
        self._phrases: dict[str, str] = {}
        self.rewrite = PromptRewriter({})

    @property
    def names(self) -> list[str]:
        return list(self._slices)

    @property
    def width(self) -> int:
        return self.embedding.base.embedding_dim

    def phrase_ids(self, phrase: str) -> list[int]:
        """Token ids of a phrase, without start and end."""
        return self.tokenizer(phrase, add_special_tokens=False).input_ids

    def phrase_rows(self, phrase: str, num_vectors: int | None, key: str) -> torch.Tensor:
        """The base table's rows (n, D), float32, of a phrase's tokens.

        Fewer or more rows than tokens when `num_vectors` says so: the first ones, or over again
        from the start.

        Raises:
            UserError: the phrase has no token.
        """
        ids = self.phrase_ids(phrase)
        if not ids:
            raise UserError(f"{key} is empty; give a phrase that describes the concept")
        n = num_vectors or len(ids)
        ids = [ids[k % len(ids)] for k in range(n)]
        return self.embedding.weight[ids].detach().float().clone()

    def check(self, concept: LearnedConcept) -> None:
        """Whether a concept can be added; nothing is changed.

        Raises:
            UserError: a word the tokenizer has, a concept added twice, rows of another width.
        """
        name, rows = concept.name, concept.embeddings
        if not name.strip() or name != name.strip():
            raise UserError(f"concept {name!r} is empty or has spaces around it; give it a word")
        if name in self._slices:
            raise UserError(f"concept {name!r} is loaded twice; load it once, or rename one")
        if self.is_word(name):
            raise UserError(
                f"concept {name!r} is already a word of the tokenizer and would lose its meaning; "
                f"choose a new word such as {name + '-concept'!r}"
            )
        if rows.shape[1] != self.width:
            raise UserError(
                f"concept {name!r} has rows of width {rows.shape[1]}, but the text encoder's width "
                f"is {self.width}; it was learned on another base model"
            )

    def add(self, concept: LearnedConcept) -> None:
        """Add a concept with its rows.

        Raises:
            UserError: what `check` raises; a word like one that the tokenizer was given before.
        """
        self.check(concept)
        name, rows = concept.name, concept.embeddings
        start = len(self.embedding.rows)
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        # Lower case without spaces: the older tokenizers fold added tokens as they fold text.
        tokens = [f"<{slug}|{start + k}>" for k in range(len(rows))]
        if self.tokenizer.add_tokens(tokens) != len(tokens):
            raise UserError(f"concept {name!r} clashes with tokens of the tokenizer; rename it")
        self.embedding.extend(rows)
        self._slices[name] = slice(start, start + len(rows))
        self._phrases[name] = concept.initializer
        self.rewrite = PromptRewriter(self.rewrite.replacements | {name: " ".join(tokens)})

    def remove(self, name: str) -> None:
        """Forget a concept: its word means again what it means without it.

        Its rows stay behind the table, a few kilobytes that no prompt reaches; the ids of the other
        concepts' tokens go by their places.

        Raises:
            UserError: no such concept.
        """
        if name not in self._slices:
            loaded = ", ".join(self.names) or "none"
            raise UserError(f"concept {name!r} is not loaded; those that are: {loaded}")
        del self._slices[name], self._phrases[name]
        left = {n: tokens for n, tokens in self.rewrite.replacements.items() if n != name}
        self.rewrite = PromptRewriter(left)

    def plain(self, prompt: str) -> str:
        """The prompt with each concept's initial phrase in place of its word.

        A concept whose file tells no phrase becomes "thing".
        """
        return PromptRewriter({name: p or "thing" for name, p in self._phrases.items()})(prompt)

    def is_word(self, name: str) -> bool:
        """Whether a concept's name is one token of the base vocabulary, as `cat` is."""
        return name in self._base_tokens or f"{name.lower()}</w>" in self._base_tokens

    def concepts(self) -> list[LearnedConcept]:
        """All concepts with a copy of their rows."""
        rows = self.embedding.rows.detach()
        return [
            LearnedConcept(name, self._phrases[name], rows[part].cpu().float().clone())
            for name, part in self._slices.items()
        ]

    def token_ids(self, prompts: list[str]) -> torch.Tensor:
        """Rewritten, tokenized, padded and cut to the window: (B, 77) on the encoder's device."""
        ids = self.tokenizer(
            [self.rewrite(p) for p in prompts],
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return ids.to(self.embedding.weight.device)

    def cut_off(self, prompt: str) -> list[str]:
        """The concepts of a prompt that its window of 77 tokens cuts, wholly or in part."""
        ids = self.token_ids([prompt])[0].tolist()
        named = self.rewrite.words_in(prompt)
        lost = []
        for name in dict.fromkeys(named):
            part = self._slices[name]
            kept = sum(ids.count(self.embedding.first_id + k) for k in range(part.start, part.stop))
            if kept < named.count(name) * (part.stop - part.start):
                lost.append(name)
        return lost
