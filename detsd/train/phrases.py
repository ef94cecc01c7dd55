"""The phrase for `initializer_strs: auto`: the one with which the frozen model denoises best.

    phrase = find_phrase(DenoisingErrors(model, samples, "det-logo"), grammar_of(model), "object")

Candidates are built with the grammar of the model's captions (`vocabulary.json` in its folder) or,
for other models, from everyday words: first colours, then things in these colours, then the rest of
the picture, then the first words again, beside the later ones. All are tried on the same noised
latents of the training images, at timesteps that decide the shape. The best third is then tried on
twice as many latents (arXiv 1502.07943).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.model_words import ModelVocabulary
from detsd.concepts.prompts import PromptRewriter
from detsd.concepts.vocabulary import Vocabulary
from detsd.config import ConceptsConfig
from detsd.data.dataset import Batch, Sample, TrainingData
from detsd.models.base import BaseModel, Conditioning
from detsd.models.objective import MAX_TIMESTEPS, denoising_error
from detsd.runs.run import Run
from detsd.train.initializers import add_concepts
from detsd.utils.errors import UserError
from detsd.utils.paths import AUTO
from detsd.utils.progress import spinner

FIRST, MOST = 2, 16  # latents that a phrase is tried on at first, and at most
NOISY = (0.45, 0.9)  # fractions of the timesteps: texture is decided below them, nothing above
COLORS, TAILS = 2, 3  # how many of the best are kept for the next round
TRIED_WITH = 3  # things to try each colour with
AGAIN = 4  # words that are looked for once more


def add_found(
    config: ConceptsConfig,
    model: BaseModel,
    data: TrainingData,
    run: Run,
    earlier: list[LearnedConcept],
) -> None:
    """Find the phrases of the `auto` concepts, and add these concepts. Collective.

    A run that resumes, or starts from another run's vectors, keeps the phrases of those vectors.
    """
    searched = [k for k, start in enumerate(config.initializer_strs) if start == AUTO]
    if not searched:
        return
    phrases = {concept.name: concept.initializer or "thing" for concept in earlier}
    found = {}
    for k in searched:
        name, kind = config.concept_strs[k], config.learnable_properties[k]
        if name not in phrases:
            grammar = grammar_of(model, kind, f"concepts.initializer_strs[{k}]")
            # Only the chief searches: on another device a close race may end differently.
            phrase = _search(grammar, model, data, name, kind, run) if run.is_chief else ""
            phrases[name] = run.ranks.allgather(phrase)[0]
        found[k] = phrases[name]
    add_concepts(model.vocabulary, config, found, earlier)


def _search(
    grammar: Grammar, model: BaseModel, data: TrainingData, name: str, kind: str, run: Run
) -> str:
    """Find and print the phrase of a concept. Chief only."""
    with spinner(f"looking for a phrase that describes {name}"):
        errors = DenoisingErrors(model, data.noisy_samples(name, MOST, *NOISY), name)
        phrase = find_phrase(errors, grammar, kind)
        (error, without), count = errors([phrase, None], MOST), len(errors)
    run.print(
        f"{name} starts from {phrase!r}, the best of {count - 1} phrases: denoising error "
        f"{error:.3f} on noisy training images, {without:.3f} without a caption"
    )
    return phrase


Parts = tuple[str, ...]


@dataclass(frozen=True)
class Grammar:
    """The words and patterns of a model's captions.

    A pattern is a caption, split at the words that others of their list can replace. These have the
    odd indices: ("", "green", " ", "ring", " with a ", "blue", " ", "star", " inside").
    """

    colors: list[str]  # "" among them: none, as in everyday words
    objects: list[str]
    media: list[str]
    numbers: list[str]
    patterns: list[Parts]

    @staticmethod
    def of(lists: dict[str, list[str]], known: Vocabulary | None = None) -> Grammar:
        """Read the lists of a `vocabulary.json`, keeping only words of the vocabulary `known`."""
        colors, objects, media, numbers, compositions = (
            [w for w in lists.get(key, []) if known is None or all(map(known.is_word, w.split()))]
            for key in ("colors", "objects", "media", "numbers", "compositions")
        )
        media = [re.sub(r"^an? | of \.\.\.$", "", medium) for medium in media]
        grammar = Grammar(colors or [""], objects, media, numbers, [])
        # Without a word to replace, a caption says nothing of a concept.
        grammar.patterns.extend(parts for parts in map(grammar._pattern, compositions) if parts[1:])
        return grammar

    def _pattern(self, caption: str) -> Parts:
        """Split a caption.

        A number that no colour follows ("three stripes") stays, as do things after the first that
        have no colour ("in a ring").
        """
        words = sorted(filter(None, [*self.colors, *self.objects, *self.numbers]), key=len)
        words = "|".join(map(re.escape, reversed(words)))  # "brain logo" before "brain"
        caption = re.sub("^an? ", "", " ".join(caption.split()))
        first, *rest = re.split(rf"\b({words})(?=(?:e?s)?\b)", caption)
        parts = [first]
        for word, text, later in zip(rest[::2], rest[1::2], [*rest[2::2], ""], strict=False):
            colored = parts[-1] == " " and parts[-2] in self.colors
            if (
                word in self.colors
                or (word in self.objects and (colored or {*parts[1::2]}.isdisjoint(self.objects)))
                or (word in self.numbers and text == " " and later in self.colors)
            ):
                parts += [word, text]
            else:
                parts[-1] += word + text
        return tuple(parts)

    def begun(self, pattern: Parts, color: str, thing: str) -> tuple[Parts, list[int]]:
        """Put a thing in place of a pattern's first one, and its colour in place of every colour.

        Returns:
            The parts of the phrase, and the indices of the words that are still to be found.
        """
        parts = [color if k % 2 and w in self.colors else w for k, w in enumerate(pattern)]
        left = list(range(1, len(pattern), 2))
        if slot := next((k for k in left if pattern[k] in self.objects), None):
            parts[slot] = thing
            left.remove(slot)
            if pattern[slot - 1] == " " and pattern[slot - 2] in self.colors:
                left.remove(slot - 2)
        return tuple(parts), left

    def replaced(self, phrase: Parts, slot: int) -> list[Parts]:
        """Return a phrase with each word of the same list in place of one."""
        lists = (self.colors, self.objects, self.numbers)
        words = next(words for words in lists if phrase[slot] in words)
        return [(*phrase[:slot], word, *phrase[slot + 1 :]) for word in words]


def grammar_of(model: BaseModel, kind: str, key: str) -> Grammar:
    """Return the grammar of a model's captions, or of everyday words for which it has a token."""
    own = ModelVocabulary.of(model.name)
    everyday = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    for lists, known in ((own.lists if own else {}, None), (everyday, model.vocabulary)):
        grammar = Grammar.of(lists, known)
        if grammar.media if kind == "style" else grammar.objects:
            return grammar
    raise UserError(
        f"{key} is auto, but {model.name} has no tokens for any of the words to try; give a phrase "
        "that describes the concept"
    )


def find_phrase(errors: DenoisingErrors, grammar: Grammar, kind: str) -> str:
    """Build the phrase with the least error, part by part."""
    if kind == "style":
        (medium, *_) = best(errors, grammar.media)
        return best(errors, [medium, *(_text((color, " ", medium)) for color in grammar.colors)])[0]
    through: dict[str, Parts] = {}  # the phrases that went through every round

    def ranked(phrases: Iterable[Parts]) -> list[Parts]:
        made = {_text(parts): parts for parts in phrases}
        found = {text: made[text] for text in best(errors, list(made))}
        through.update(found)
        return list(found.values())

    def least() -> str:
        return min(zip(errors(list(through), MOST), through, strict=True))[1]

    pairs = ranked(
        ("", c, " ", t, "") for c in grammar.colors for t in grammar.objects[:TRIED_WITH]
    )
    tried = list(dict.fromkeys(color for _, color, *_ in pairs))[:COLORS]
    pairs = ranked(("", c, " ", t, "") for c in tried for t in grammar.objects)
    _, color, _, thing, _ = pairs[0]
    # Find word after word; later ones build on those found for earlier ones.
    begun = [grammar.begun(pattern, color, thing) for pattern in grammar.patterns]
    ranked(parts for parts, left in begun if not left)
    kept = TAILS
    while begun := [(phrase, left) for phrase, left in begun if left]:
        longer = {
            parts: later
            for phrase, (slot, *later) in begun
            for parts in grammar.replaced(phrase, slot)
        }
        begun = [(parts, longer[parts]) for parts in ranked(longer)[:kept]]
        kept = 1
    # Beside the later words, another may fit better in place of an earlier one.
    for slot in range(1, len(through[least()]), 2)[:AGAIN]:
        ranked(grammar.replaced(through[least()], slot))
    return least()


def _text(parts: Parts) -> str:
    """Join the parts of a phrase, some of which may be empty; spell articles and plurals."""
    text = " ".join("".join(parts).split())
    return re.sub(r"sss\b", "sses", re.sub(r"\ba (?=[aeiou])", "an ", text))


def best(errors: DenoisingErrors, phrases: Sequence[str]) -> list[str]:
    """Return the phrases that remain after all rounds, those with the least error first."""
    count, left = FIRST, list(dict.fromkeys(phrases))
    while True:
        ranked = [p for _, p in sorted(zip(errors(left, count), left, strict=True))]
        if count >= MOST:
            return ranked
        left, count = ranked[: -(-len(ranked) // 3)], min(2 * count, MOST)


class DenoisingErrors:
    """The frozen model's denoising errors under phrases, on the same noised latents.

    `errors(phrases, n)` returns each phrase's mean error over the first n latents; the phrase None
    stands for no caption. Errors are computed once; `len` counts the phrases tried so far.

    Args:
        samples: latents, noise and timesteps, and the prompts into which the phrases are put.
        word: the concept's word in these prompts.
    """

    def __init__(self, model: BaseModel, samples: list[Sample], word: str):
        self._model, self._samples, self._word = model, samples, word
        self._found: dict[str | None, dict[int, float]] = {}  # by the latents' numbers

    def __len__(self) -> int:
        return len(self._found)

    @torch.no_grad()
    def __call__(self, phrases: Sequence[str | None], count: int) -> list[float]:
        left = [
            (phrase, k)
            for phrase in dict.fromkeys(phrases)
            for k in range(len(self._found.setdefault(phrase, {})), count)
        ]
        shapes: dict[torch.Size, list[tuple[str | None, int]]] = {}  # by bucket
        for pair in left:
            shapes.setdefault(self._samples[pair[1]].x.shape, []).append(pair)
        for pairs in shapes.values():
            for at in range(0, len(pairs), MAX_TIMESTEPS):
                part = pairs[at : at + MAX_TIMESTEPS]
                for (phrase, k), error in zip(part, self._errors(part).tolist(), strict=True):
                    self._found[phrase][k] = error
        return [sum(self._found[phrase][k] for k in range(count)) / count for phrase in phrases]

    def _errors(self, pairs: list[tuple[str | None, int]]) -> torch.Tensor:
        """Return the errors (B,) of pairs of a phrase and the number of a latent."""
        model, samples = self._model, []
        for phrase, k in pairs:
            sample = self._samples[k]
            text = "" if phrase is None else PromptRewriter({self._word: phrase})(sample.prompt)
            samples.append(dataclasses.replace(sample, prompt=text))
        batch = Batch.of(samples).on(model.device)
        # A prompt that occurs several times is encoded once.
        texts = list(dict.fromkeys((s.prompt, s.frame) for s in samples))
        cond = model.encode_prompts(*map(list, zip(*texts, strict=True)))
        place = torch.tensor([texts.index((s.prompt, s.frame)) for s in samples])
        place = place.to(model.device)
        added = cond.added_cond_kwargs and {k: v[place] for k, v in cond.added_cond_kwargs.items()}
        cond = Conditioning(cond.prompt_embeds[place], added)
        return denoising_error(model, model.unet, *batch.noising, cond, batch.mask)
