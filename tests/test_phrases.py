"""`initializer_strs: auto` and `num_vectors: auto`: the right values, found only once."""

import json
import shutil
from difflib import SequenceMatcher

import pytest
import torch
from forked import in_two_ranks
from PIL import Image, ImageDraw
from tiny import ROOT

from demo_model.media import COLORS
from detsd.__main__ import main
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.model_words import ModelVocabulary
from detsd.concepts.reading import read_concepts
from detsd.concepts.vocabulary import Vocabulary
from detsd.concepts.writing import write_concepts
from detsd.config import ConceptsConfig, ModelConfig, load_config
from detsd.data.dataset import TrainingData
from detsd.models.loading import load_base_model
from detsd.runs.folder import DICT_FILE
from detsd.runs.local import LocalRun
from detsd.train import phrases, trainer
from detsd.train.phrases import MOST, NOISY, DenoisingErrors, Grammar, best, find_phrase

WORDS = {
    "colors": ["red", "blue"],
    "objects": ["ball", "box", "cat"],
    "media": ["a photo of ...", "an oil painting of ..."],
    "compositions": ["a red ball with a blue box inside", "three red cats"],
}


@pytest.fixture(scope="session")
def model_with_words(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "vocabulary.json").write_text(json.dumps(WORDS))
    return folder


@pytest.fixture
def searching(experiment, model_with_words):
    """Write an experiment whose phrase is to be found."""

    def write(name="auto.yaml", training=None, **concepts):
        return experiment(
            name,
            model={"pretrained_model_name_or_path": str(model_with_words)},
            concepts={"initializer_strs": ["auto"]} | concepts,
            training=training or {},
        )

    return write


def finetune(path, folder):
    return main(["finetune", str(path), "--output-dir", str(folder)])


def concept_of(folder, k=0):
    return read_concepts(sorted((folder / "checkpoints").iterdir())[-1])[k]


def unreached(*args, **options):
    raise AssertionError("an earlier sentence was due")


def test_a_phrase_is_found_once_and_kept(searching, tmp_path, monkeypatch, capsys):
    """A resumed run equals an undisturbed one; the phrase replaces `auto` everywhere."""
    path = searching(num_vectors="auto")
    assert finetune(path, tmp_path / "whole") == 0
    whole = concept_of(tmp_path / "whole")
    assert f"blob-thing starts from {whole.initializer!r}, the best of " in capsys.readouterr().out
    head = whole.initializer.split()[:2]
    assert head[0] in WORDS["colors"]
    assert head[1] in WORDS["objects"]
    words = len(whole.initializer.split())
    assert whole.num_vectors == (words if words >= 5 else 8)
    calls = iter([False, False, True])
    monkeypatch.setattr(LocalRun, "should_stop", lambda self: next(calls))
    assert finetune(path, tmp_path / "out") == 128
    monkeypatch.undo()
    monkeypatch.setattr(phrases, "find_phrase", unreached)
    assert finetune(path, tmp_path / "out") == 0
    resumed = concept_of(tmp_path / "out")
    assert resumed.initializer == whole.initializer
    assert torch.equal(resumed.embeddings[0], whole.embeddings[0])
    # A concept of another run keeps that run's phrase.
    more = ["--warm-start", str(tmp_path / "whole"), "--output-dir", str(tmp_path / "more")]
    assert main(["finetune", str(path), *more]) == 0
    assert concept_of(tmp_path / "more").initializer == whole.initializer
    # Under another word, the error comes before anything is searched or loaded.
    monkeypatch.setattr(trainer, "load_base_model", unreached)
    more = ["--warm-start", f"{tmp_path / 'whole'}=cube", "--output-dir", str(tmp_path / "other")]
    assert main(["finetune", str(path), *more]) == 2
    assert "whole=cube does not hold concept 'blob-thing' but cube" in capsys.readouterr().err


def test_pictures_of_several_shapes_are_searched_as_well(searching, tmp_path):
    (tmp_path / "shapes").mkdir()
    for k, size in enumerate([(96, 48), (48, 96), (64, 64), (96, 48)]):
        Image.new("RGB", size, (200, 30, 30)).save(tmp_path / "shapes" / f"{k}.png")
    path = searching(img_dirs=[str(tmp_path / "shapes")], img_aspect="buckets")
    assert finetune(path, tmp_path / "out") == 0
    assert concept_of(tmp_path / "out").initializer.split()[0] in WORDS["colors"]


def test_a_search_looks_at_the_pictures_of_its_own_concept(model_with_words, tmp_path):
    """Captions may name another concept first, and a word may be part of another one."""
    for folder, color in (("one", "red"), ("two", "blue")):
        (tmp_path / folder).mkdir()
        for k in range(2):
            Image.new("RGB", (32 + k, 32), color).save(tmp_path / folder / f"{k}.png")
    for k in range(2):
        (tmp_path / "two" / f"{k}.txt").write_text("a oto beside a thing-b on grass")
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    base = load_base_model(ModelConfig(str(model_with_words)), torch.device("cpu"))
    config = ConceptsConfig(
        ["oto", "thing-b"], ["auto"] * 2, folders, learnable_properties=["object"] * 2,
        use_caption_files=True,
    )  # fmt: skip
    data = TrainingData(config, base, 1, 4)
    found = {sample.prompt for sample in data.noisy_samples("thing-b", 4, *NOISY)}
    assert found == {"a oto beside a thing-b on grass"}
    assert {sample.prompt for sample in data.noisy_samples("oto", 4, *NOISY)} == {"oto"}


def test_a_model_that_names_no_colours_is_searched_without():
    grammar = Grammar.of({"objects": ["ball", "box"]})
    assert find_phrase(lambda tried, count: [p != "box" for p in tried], grammar, "object") == "box"


def test_compositions_of_other_spaces_or_without_a_word_of_the_lists():
    words = {"colors": ["red"], "objects": ["ball"]}
    captions = ["", "a portrait of somebody", " a red  ball", "a  ball on a red table"]
    grammar = Grammar.of(words | {"compositions": captions})
    assert ["".join(p) for p in grammar.patterns] == ["red ball", "ball on a red table"]


@pytest.mark.slow
def test_ranks_share_one_phrase(searching, tmp_path, monkeypatch):
    one, two = searching("one.yaml"), searching("two.yaml", {"train_batch_size": 2})
    assert finetune(one, tmp_path / "one") == 0
    in_two_ranks(tmp_path, lambda: finetune(two, tmp_path / "two"))
    a, b = concept_of(tmp_path / "one"), concept_of(tmp_path / "two")
    assert a.initializer == b.initializer
    assert torch.allclose(a.embeddings[0], b.embeddings[0], rtol=1e-5, atol=1e-6)


def test_a_given_phrase_stays_beside_one_that_is_found(searching, tmp_path, photos):
    both = {"concept_strs": ["blob-thing", "other-thing"], "img_dirs": [str(photos)] * 2}
    path = searching(
        initializer_strs=["auto", "red  ball"], learnable_properties=["style", "object"], **both
    )
    assert finetune(path, tmp_path / "out") == 0
    found = {c.name: c.initializer for c in read_concepts(tmp_path / "out")}
    assert found["other-thing"] == "red ball"
    assert found["blob-thing"].endswith(("photo", "oil painting"))


def test_auto_beside_a_folder_of_that_name(searching, tmp_path, photos, monkeypatch):
    """A single `auto`, in any case, is for all concepts; a picture folder gives no vectors."""
    (tmp_path / "auto").symlink_to(photos)
    (tmp_path / "ball").symlink_to(photos)
    both = {"concept_strs": ["blob-thing", "other-thing"], "img_dirs": ["ball", "auto"]}
    every = load_config(searching(initializer_strs=" Auto", **both)).concepts
    assert every.initializer_strs == ["auto", "auto"]
    assert every.img_dirs == [str(tmp_path / "ball"), str(tmp_path / "auto")]
    monkeypatch.setattr(phrases, "find_phrase", lambda *_: "blue box")
    path = searching(initializer_strs=["ball", "auto"], **both)
    monkeypatch.chdir(tmp_path)
    assert finetune(path, tmp_path / "out") == 0
    assert [concept_of(tmp_path / "out", k).initializer for k in (0, 1)] == ["ball", "blue box"]
    # A learned concept may be given by a bare name as well.
    start = load_config(searching(initializer_strs="out", img_dirs="ball")).concepts
    assert start.initializer_strs == [str(tmp_path / "out")]


def test_without_words_that_the_model_knows_there_is_nothing_to_find(
    experiment, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Vocabulary, "is_word", lambda self, word: False)
    path = experiment(concepts={"initializer_strs": ["auto"]})
    assert finetune(path, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "concepts.initializer_strs[0] is auto" in said
    assert "give a phrase" in said


def test_words_for_models_without_a_vocabulary(tiny_model):
    model = load_base_model(ModelConfig(str(tiny_model)), torch.device("cpu"), [], training=True)
    for kind in ("object", "style"):
        grammar = phrases.grammar_of(model, kind, "key")
        assert grammar.patterns
        for words in (grammar.colors, grammar.objects, grammar.media):
            assert all(model.vocabulary.is_word(w) for text in words for w in text.split())


@pytest.fixture(scope="module")
def bundled_words():
    return ModelVocabulary.of(str(ROOT / "demo_model"))


def test_the_grammar_of_the_bundled_model_says_its_compositions(bundled_words):
    grammar = Grammar.of(bundled_words.lists)
    said = ["".join(pattern) for pattern in grammar.patterns]
    assert said == [text.removeprefix("a ") for text in bundled_words.lists["compositions"]]
    slots = {"".join(pattern): pattern[1::2] for pattern in grammar.patterns}
    assert slots["red heart above a yellow square"] == ("red", "heart", "yellow", "square")
    assert slots["six orange circles in a ring"] == ("six", "orange", "circle")
    stripes = "circle of three stripes, red, white and blue"
    assert slots[stripes] == ("circle", "red", "white", "blue")
    assert all(not bundled_words.unknown(medium) for medium in grammar.media)


@pytest.mark.parametrize(
    "target",
    [
        "pink heart",
        "teal square with a pink circle inside",
        "square of three stripes, green, black and purple",
        "five red crosses in a ring",
        "brown circle above a brown star above a brown circle",
        "orange house with blue dots",
    ],
)
def test_the_phrase_of_every_kind_of_picture_is_found(bundled_words, target):
    """With errors that count the words that differ, all words are right in the end."""

    def errors(phrases, count):
        return [
            -SequenceMatcher(None, target.split(), phrase.split()).ratio() for phrase in phrases
        ]

    assert find_phrase(errors, Grammar.of(bundled_words.lists), "object") == target


def test_the_colour_of_the_pictures_is_found(tmp_path):
    for k, ground in enumerate(("white", "gray", "pink", "teal")):
        image = Image.new("RGB", (128, 128), COLORS[ground])
        ImageDraw.Draw(image).ellipse([30 + k, 30, 94 + k, 94], COLORS["blue"])
        image.save(tmp_path / f"{k}.png")
    name = str(ROOT / "demo_model")
    model = load_base_model(ModelConfig(name), torch.device("cpu"), [], training=True)
    data = TrainingData(ConceptsConfig(["my-dot"], ["auto"], [str(tmp_path)]), model, 1, 4)
    errors = DenoisingErrors(model, data.noisy_samples("my-dot", MOST, *NOISY), "my-dot")
    grammar = Grammar(["red", "green", "blue"], ["star", "circle"], [], [], [])
    phrase = find_phrase(errors, grammar, "object")
    assert phrase.startswith("blue ")
    found, *others = errors([phrase, "red circle", "green circle"], MOST)
    assert found < min(others)
    again = DenoisingErrors(model, data.noisy_samples("my-dot", MOST, *NOISY), "my-dot")
    assert find_phrase(again, grammar, "object") == phrase


def test_the_best_are_those_of_the_least_errors():
    """Phrases dropped early were no better on the first latents."""
    table = {f"p{k}": (k * 7) % 50 for k in range(50)}
    asked = []

    def errors(tried, count):
        asked.append((len(tried), count))
        return [table[p] for p in tried]

    ranked = best(errors, [*table, "p0"])
    assert ranked == sorted(table, key=table.get)[: len(ranked)]
    assert [count for _, count in asked] == sorted({count for _, count in asked})
    assert asked[-1][1] == MOST


@pytest.mark.parametrize(
    ("phrase", "count"), [("ball", 8), ("red ball " * 2, 8), ("red ball red ball red", 5)]
)
def test_enough_vectors_whatever_the_phrase(experiment, tmp_path, phrase, count):
    brief = {"num_sgd_steps": 1, "learning_rate": 1e-9}
    concepts = {"initializer_strs": [phrase], "num_vectors": "auto"}
    assert finetune(experiment(concepts=concepts, training=brief), tmp_path / "out") == 0
    rows = concept_of(tmp_path / "out").embeddings[0]
    words = len(phrase.split())
    assert len(rows) == count
    assert torch.allclose(rows[words:], rows[: count - words].repeat(8, 1)[: count - words])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            "concepts.num_vectors=72",
            "[0] is 72, but a prompt has room for 71 tokens beside 'a photo of a'",
        ),
        (
            "inference={inference_prompts: x, num_inference_steps: 1000}",
            "detsd: inference.num_inference_steps: 1000 must be less than the 1000 timesteps of",
        ),
    ],
)
def test_mistakes_are_told_before_images_are_encoded(
    searching, tmp_path, monkeypatch, capsys, settings, sentence
):
    """They are thus reported before a phrase is searched."""
    monkeypatch.setattr(trainer, "TrainingData", unreached)
    out = ["--output-dir", str(tmp_path / "out")]
    assert main(["finetune", str(searching()), "--set", settings, *out]) == 2
    assert sentence in capsys.readouterr().err


def test_a_start_holds_one_concept(experiment, tmp_path, photos, capsys):
    write_concepts([LearnedConcept(w, "", (torch.ones(1, 16),)) for w in ("a1", "b1")], tmp_path)
    path = experiment(concepts={"initializer_strs": [str(tmp_path / DICT_FILE)]})
    assert finetune(path, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "concepts.initializer_strs[0]: " in said
    assert "holds 2 concepts (a1, b1); name a file with one" in said
