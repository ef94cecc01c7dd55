"""Concepts: prompt rewriting, rows beside a frozen table, refused input."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTextModel, CLIPTokenizer

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.prompts import PromptRewriter
from detsd.concepts.vocabulary import Vocabulary
from detsd.utils.errors import UserError

WORDS = st.from_regex(r"[a-z]{1,4}(-[a-z]{1,4}){0,2}", fullmatch=True)


@pytest.fixture
def vocabulary(tiny_model):
    """Load a vocabulary without the rest of its model."""
    tokenizer = CLIPTokenizer.from_pretrained(tiny_model, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(tiny_model, subfolder="text_encoder")
    return Vocabulary(tokenizer, encoder.requires_grad_(False), model=str(tiny_model))


def learned(name, n=2, width=16, fill=1.0):
    return LearnedConcept(name, "some phrase", (torch.full((n, width), fill),))


@given(st.lists(WORDS, min_size=1, max_size=5, unique=True), st.lists(WORDS, max_size=8))
def test_exactly_the_whole_words_are_replaced(concepts, words):
    rewrite = PromptRewriter({c: f"<{k}>" for k, c in enumerate(concepts)})
    expected = [f"<{concepts.index(w)}>" if w in concepts else w for w in words]
    assert rewrite(" ".join(words)) == " ".join(expected)


@given(st.lists(WORDS, min_size=1, max_size=4, unique=True), st.text(max_size=40))
def test_text_without_concepts_is_left_alone(concepts, text):
    rewrite = PromptRewriter(dict.fromkeys(concepts, "<x>"))
    if not rewrite.words_in(text):
        assert rewrite(text) == text
    assert rewrite(text).count("<x>") == len(rewrite.words_in(text)) + text.count("<x>")


@given(WORDS)
def test_what_was_put_in_is_not_replaced_again(word):
    assert PromptRewriter({word: f"{word} {word}"})(word) == f"{word} {word}"


def test_longest_first_at_word_boundaries():
    rewrite = PromptRewriter({"det-logo": "A", "det-logo-demo": "B"})
    assert rewrite("det-logo-demo, det-logo; my-det-logo det-logos (det-logo)") == (
        "B, A; my-det-logo det-logos (A)"
    )


def test_the_same_prompt_without_concepts_gives_the_same_states(tiny_model):
    tokenizer = CLIPTokenizer.from_pretrained(tiny_model, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(tiny_model, subfolder="text_encoder")
    ids = tokenizer(["a photo of a cat"], return_tensors="pt").input_ids
    before = encoder(ids).last_hidden_state
    vocabulary = Vocabulary(tokenizer, encoder)
    vocabulary.add(learned("blob-thing"))
    assert torch.equal(encoder(ids).last_hidden_state, before)


def test_a_concept_with_its_phrase_rows_equals_the_phrase(vocabulary):
    """An untrained concept equals its phrase."""
    rows = vocabulary.initializer_vectors("red ball", None, "key")
    vocabulary.add(LearnedConcept("blob-thing", "red ball", tuple(rows)))
    ids = vocabulary.token_ids(["a photo of a blob-thing on wood", "a photo of a red ball on wood"])
    assert ids[0].tolist() != ids[1].tolist()
    states = vocabulary.text_encoders[0].encoder(ids).last_hidden_state
    assert torch.equal(states[0], states[1])


def test_several_vectors_and_concepts_keep_their_own_rows(vocabulary):
    vocabulary.add(learned("blob-thing", 3, fill=1.0))
    vocabulary.add(learned("blob-thing-two", 2, fill=2.0))
    found = {c.name: c.embeddings[0] for c in vocabulary.concepts()}
    assert found["blob-thing"].tolist() == [[1.0] * 16] * 3
    assert found["blob-thing-two"].tolist() == [[2.0] * 16] * 2
    first = vocabulary.text_encoders[0].embedding.first_id
    ids = vocabulary.token_ids(["a blob-thing and a blob-thing-two"])[0].tolist()
    assert [i - first for i in ids if i >= first] == [0, 1, 2, 3, 4]


def test_threads_do_not_mix_up_each_others_padding(vocabulary):
    """Padding and truncation are tokenizer state, and grids tokenize in several threads."""
    long = "very " * 200
    assert vocabulary.length(long) > 200
    with ThreadPoolExecutor(4) as pool:
        padded = pool.map(lambda k: vocabulary.token_ids([f"a photo {k}"]).shape, range(2000))
        whole = pool.map(lambda k: vocabulary.length(long), range(2000))
        assert set(padded) == {(1, 77)}
        assert set(whole) == {vocabulary.length(long)}


def test_remembered_prompts_have_the_same_ids(vocabulary):
    vocabulary.add(learned("blob-thing", 3))
    prompts = ["a blob-thing", "a dog", "very " * 90 + "blob-thing", "a blob-thing"]
    fresh = vocabulary.token_ids(prompts)
    vocabulary.remember(prompts[:2])
    assert torch.equal(vocabulary.token_ids(prompts), fresh)  # two of them are new
    vocabulary.remember(prompts)
    tokenizer, vocabulary.text_encoders[0].tokenizer = vocabulary.text_encoders[0].tokenizer, None
    assert torch.equal(vocabulary.token_ids(prompts), fresh)
    vocabulary.text_encoders[0].tokenizer = tokenizer


def test_a_prompt_fits_if_its_tokens_do(vocabulary, monkeypatch):
    vocabulary.add(learned("blob-thing", 60))
    found = set()
    for n in range(0, 40):
        prompt = "a (猫:1.2) x-y blob-thing " + "é " * n
        found.add(fits := vocabulary.fits(prompt))
        assert fits == (vocabulary.length(prompt) <= vocabulary.window)
    assert found == {True, False}
    assert not vocabulary.fits("a blob-thing and a blob-thing")
    monkeypatch.setattr(vocabulary, "length", lambda prompt: pytest.fail("tokenized"))
    assert vocabulary.fits("a blob-thing")


def test_names_with_capitals_and_odd_characters(vocabulary):
    for name in ("<My Cat>", "Ünïcødé-Ding", "猫-猫"):
        vocabulary.add(learned(name, 1))
        ids = vocabulary.token_ids([f"a photo of {name}, sitting"])[0]
        assert (ids >= vocabulary.text_encoders[0].embedding.first_id).sum() == 1


def test_num_vectors_repeats_or_cuts_the_phrase(vocabulary):
    (two,) = vocabulary.initializer_vectors("red ball", None, "key")
    assert torch.equal(vocabulary.initializer_vectors("red ball", 3, "key")[0], two[[0, 1, 0]])
    assert torch.equal(vocabulary.initializer_vectors("red ball", 1, "key")[0], two[:1])


@pytest.mark.parametrize(
    ("concept", "words"),
    [
        (learned("cat"), "already a word"),
        (learned("Cat"), "already a word"),
        (learned("blob-thing", width=8), "width 8"),
        (learned(" "), "empty"),
    ],
)
def test_what_cannot_be_added_is_refused(vocabulary, concept, words):
    with pytest.raises(UserError, match=words):
        vocabulary.add(concept)
    assert vocabulary.names == []


def test_twice_is_refused(vocabulary):
    vocabulary.add(learned("blob-thing"))
    with pytest.raises(UserError, match="twice"):
        vocabulary.add(learned("blob-thing"))


def test_empty_phrase_is_refused(vocabulary):
    with pytest.raises(UserError, match=r"concepts.initializer_strs\[0\] is empty"):
        vocabulary.initializer_vectors("  ", None, "concepts.initializer_strs[0]")


def test_a_cut_off_concept_is_noticed(vocabulary, caplog):
    vocabulary.add(learned("blob-thing"))
    caplog.set_level(logging.WARNING)
    assert vocabulary.truncated_concepts("word " * 60 + "blob-thing") == []
    assert vocabulary.truncated_concepts("word " * 74 + "blob-thing") == ["blob-thing"]
    assert vocabulary.truncated_concepts("word " * 90 + "blob-thing") == ["blob-thing"]
