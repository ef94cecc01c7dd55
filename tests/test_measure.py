"""The measures of images: known answers, evaluators of both kinds, errors."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from tiny import save_tiny_clip, save_tiny_dino

from detsd.config import (
    ConceptsConfig,
    EvaluatorConfig,
    FinetuneConfig,
    MeasureConfig,
    ModelConfig,
)
from detsd.data.templates import EDITS
from detsd.evaluate import metrics
from detsd.evaluate.encoders import load_encoders
from detsd.evaluate.lookalikes import LookalikeClassifier, outlines
from detsd.evaluate.metrics import (
    Baselines,
    ConceptMetrics,
    fit_baselines,
    mean_cosine,
    normalised,
    score,
    text_similarity,
    without_word,
)
from detsd.train import samples
from detsd.train.samples import SampleMetrics, metric_jobs
from detsd.utils.errors import UserError

CPU = torch.device("cpu")
PICTURES = [Image.new("RGB", size, colour) for size, colour in
            (((64, 64), "red"), ((40, 90), "green"), ((90, 40), "blue"))]  # fmt: skip


def features(n: int, seed: int = 0, around: torch.Tensor | None = None) -> torch.Tensor:
    """Return unit vectors (n, 8), optionally around one direction."""
    drawn = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return F.normalize(drawn if around is None else drawn * 0.1 + around, dim=1)


def test_a_set_against_itself_scores_as_its_upper_anchor():
    real = features(6)
    pairs = [float(real[i] @ real[j]) for i, j in itertools.permutations(range(6), 2)]
    assert mean_cosine(real, real) == pytest.approx(sum(pairs) / 30, abs=1e-6)
    baselines = Baselines(-0.9, mean_cosine(real, real), 0.1, 0.4)
    assert normalised(mean_cosine(real, real), baselines.image_low, baselines.image_high) == 1
    assert mean_cosine(real[:1], real[:1]) == 1
    assert mean_cosine(real[:1], real[1:2]) == pytest.approx(pairs[0], abs=1e-6)


def lineup_of(sets: list[torch.Tensor], **ways) -> LookalikeClassifier:
    """Return a line-up of features."""
    ways = ways or {"as they are": torch.clone}
    return LookalikeClassifier(
        {name: [see(pictures) for pictures in sets] for name, see in ways.items()}
    )


def test_a_classifier_finds_what_is_there_and_nothing_by_chance():
    centres = features(4, seed=1)
    sets = [features(5, k, centres[k]) for k in range(4)]
    found = lineup_of(sets)
    assert (found.cv_accuracy, found.chance) == (1, 0.25)
    assert found.share(features(9, 9, centres[0])) == 1
    assert found.share(features(9, 9, centres[2])) == 0
    # Random labels: whichever set counts as the concept's, the average is chance.
    samples, shuffled = features(40, 9), list(features(20, 8).split(5))
    shares = [lineup_of(shuffled[k:] + shuffled[:k]).share(samples) for k in range(4)]
    assert sum(shares) == pytest.approx(1)
    # A picture is no evidence for its own set: among equal pictures, none is distinguished.
    assert lineup_of(list(features(400, 3).split(100))).cv_accuracy < 0.4
    assert lineup_of([features(1, k) for k in range(3)]).cv_accuracy is None


def test_the_feature_that_separates_real_images_best_is_used():
    centres = features(3, seed=1)
    sets = [features(6, k, centres[k]) for k in range(3)]

    def blind(pictures):
        return torch.zeros(len(pictures), 8)

    found = lineup_of(sets, blind=blind, seeing=torch.clone)
    assert (found.feature, found.cv_accuracy) == ("seeing", 1)
    assert lineup_of([s[:1] for s in sets], blind=blind, seeing=torch.clone).feature == "blind"


def test_outlines_separate_shapes_but_not_colours():
    def drawn(shape: str, colour: str, shift: int) -> Image.Image:
        image = Image.new("RGB", (64, 64), "white")
        box = (12 + shift, 14, 48 + shift, 50)
        getattr(ImageDraw.Draw(image), shape)(box, fill=colour)
        return image

    def several(shape: str, shifts: range) -> torch.Tensor:
        colours = ("red", "navy", "green")
        return outlines([drawn(shape, colour, s) for s in shifts for colour in colours])

    sets = [several(shape, range(0, 5, 2)) for shape in ("ellipse", "rectangle")]
    found = lineup_of(sets)
    assert found.cv_accuracy == 1
    assert found.share(several("ellipse", range(1, 4, 2))) == 1
    assert found.share(several("rectangle", range(1, 4, 2))) == 0
    assert sets[0].norm(dim=1).tolist() == pytest.approx([1] * 9)


def test_the_rule_is_zero_at_both_ends_and_one_at_the_ideal():
    ends = Baselines(image_low=0.6, image_high=0.8, text_low=0.2, text_high=0.3)
    assert score(0.6, 0.3, ends) == 0  # the phrase
    assert score(0.8, 0.2, ends) == 0  # the training images
    assert score(0.8, 0.3, ends) == score(0.9, 0.4, ends) == 1
    assert score(0.7, 0.25, ends) == pytest.approx(0.25)
    assert 0 < score(0.7, 0.24, ends) < score(0.7, 0.25, ends) < score(0.75, 0.25, ends)


def test_baselines_are_what_the_initializer_and_the_training_images_score():
    images, texts, plain, edited = features(5), features(3, 2), features(4, 3), features(6, 4)
    ends = fit_baselines(images, texts, plain, edited)
    assert ends.image_low == mean_cosine(plain, images)
    assert ends.image_high >= mean_cosine(images, images)
    assert ends.image_high == pytest.approx(
        max(mean_cosine(images[k : k + 1], images) for k in range(5))
    )
    assert ends.text_low == pytest.approx(mean_cosine(images, texts))
    assert ends.text_high == text_similarity(edited, texts)
    assert score(ends.image_low, ends.text_high, ends) == 0
    assert fit_baselines(images[:1], texts, plain, edited).image_high == 1


def test_similarity_to_the_texts_goes_pair_by_pair():
    images, texts = features(3, 1), features(3, 2)
    assert text_similarity(images, texts) == pytest.approx(float((images @ texts.T).diag().mean()))
    assert text_similarity(texts, texts) == pytest.approx(1)
    twice = torch.cat([images, images]).view(2, 3, -1).transpose(0, 1).reshape(6, -1)
    assert text_similarity(twice, texts) == pytest.approx(text_similarity(images, texts))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a photo of a {} on the moon", "a photo of on the moon"),
        ("the {}, painted", ", painted"),
        ("a cat in the style of {}", "a cat in the style of"),
        ("banana {}", "banana"),
    ],
)
def test_a_prompt_without_its_word(template, text):
    assert without_word(template) == text


class Features:
    """An evaluator whose pictures are their own features, with given features of texts."""

    def __init__(self, texts: torch.Tensor):
        self.text_features = lambda prompts: texts[: len(prompts)]

    def image_features(self, images: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(images))


def test_metrics_compare_samples_with_images_prompts_and_lookalikes(monkeypatch):
    monkeypatch.setattr(metrics, "outlines", torch.stack)
    centres, texts = features(3, seed=1), features(2, seed=2)
    pictures, *others = (list(features(5, k, centre)) for k, centre in enumerate(centres))
    encoders = {"clip": Features(texts), "dino": Features(texts)}
    found = ConceptMetrics(encoders, pictures, ["a {}", "{} by night"], others, 4)
    plain, edited = features(4, 8), features(4, 9)  # two per prompt
    ends, of_phrase = found.fit_baselines([*plain, *edited])
    real = torch.stack(pictures)
    assert ends == fit_baselines(real, texts, plain, edited)
    assert of_phrase["clip_image_similarity"] == mean_cosine(plain, real) == ends.image_low
    assert of_phrase["clip_text_similarity"] == text_similarity(edited, texts) == ends.text_high
    assert of_phrase["dino_image_similarity"] == of_phrase["clip_image_similarity"]
    assert found.figures([*plain, *edited], ends) == of_phrase | {"score": 0}
    # The best possible result: the samples are the pictures, and follow the prompts.
    best = found.figures([*pictures[:4], *texts.repeat_interleave(2, dim=0)], ends)
    assert best["lineup"] == 1
    assert best["clip_text_similarity"] == pytest.approx(1)
    assert best["score"] == pytest.approx(
        normalised(best["clip_image_similarity"], ends.image_low, ends.image_high)
    )
    assert found.figures([*others[0][:4], *edited], ends)["lineup"] == 0
    own = found.of_training_images(ends)
    assert own["clip_image_similarity"] == mean_cosine(real, real)
    assert (own["clip_text_similarity"], own["lineup"]) == (ends.text_low, 1)
    alone = ConceptMetrics({"clip": encoders["clip"]}, pictures, ["a {}", "{} by night"], [], 4)
    assert alone.lineup is None
    kept = {k: v for k, v in of_phrase.items() if k.startswith("clip")}
    assert alone.fit_baselines([*plain, *edited]) == (ends, kept)


def test_a_fine_tuning_holds_the_samples_of_each_concept_against_its_own(monkeypatch):
    """One may be an object and the other a style, which has fewer prompts."""

    class Recorder:
        def __init__(self, *_):
            pass

        def fit_baselines(self, made):
            return made, {}

        def figures(self, made, ends):
            assert made == ends
            return {"count": len(made)}

    monkeypatch.setattr(samples, "ConceptMetrics", Recorder)
    c = ConceptsConfig(["a-cat", "a-way"], ["cat"] * 2, ["x", "y"], ["object", "style"])
    config = FinetuneConfig(ModelConfig("x"), c, measure=MeasureConfig(3, 15))
    jobs = metric_jobs(config, 32)
    assert [job.seed for job in jobs[:4]] == [0, 1, 2, 0]
    made = [job.prompt for job in jobs]
    found = SampleMetrics(config, {}, 32, {"a-cat": [], "a-way": []})
    found.fit_baselines(made)
    assert [len(own) for own in found.baselines] == [3 + 15, 3 + len(EDITS["style"])]
    for word, own in zip(c.concept_strs, found.baselines, strict=True):
        assert all(word in prompt for prompt in own)
    assert found.measure(made) == {"count": len(made) / 2}


def test_the_bundled_evaluator_tells_colours():
    eye = load_encoders(EvaluatorConfig(), "demo_model", CPU)["clip"]
    seen = eye.image_features(PICTURES)
    told = eye.text_features([f"a {colour} background" for colour in ("red", "green", "blue")])
    for found in (seen, told):
        assert found.norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert (seen @ told.T).argmax(1).tolist() == [0, 1, 2]
    assert not any(p.requires_grad for p in eye.model.parameters())


def test_evaluators_in_folders_of_their_own(tmp_path, monkeypatch):
    clip, dino = save_tiny_clip(tmp_path / "clip"), save_tiny_dino(tmp_path / "dino")
    configured = EvaluatorConfig(str(clip), str(dino))
    encoders = load_encoders(configured, "demo_model", CPU)
    eye, second = encoders["clip"], encoders["dino"]
    assert eye.image_features(PICTURES).shape == eye.text_features(["a", "b", "c"]).shape == (3, 12)
    assert second.image_features(PICTURES).shape == (3, 16)
    assert list(load_encoders(EvaluatorConfig(), "demo_model", CPU)) == ["clip"]
    # The libraries would load one as the other, with random weights.
    with pytest.raises(
        UserError, match=r"evaluator\.clip: .*dino is .* type 'dinov2'; name a CLIP"
    ):
        load_encoders(EvaluatorConfig(str(dino)), "demo_model", CPU)
    with pytest.raises(UserError, match=r"evaluator\.dino: .*clip is .* type 'clip'; name a DINO"):
        load_encoders(EvaluatorConfig(dino=str(clip)), "demo_model", CPU)
    with monkeypatch.context() as asked:  # whether to run somebody's code
        asked.setattr("builtins.input", lambda *_: pytest.fail("asked"))
        odd = {"image_processor_type": "Odd", "auto_map": {"AutoImageProcessor": "odd.Odd"}}
        (dino / "preprocessor_config.json").write_text(json.dumps(odd))
        with pytest.raises(UserError, match=r"evaluator\.dino: .*dino cannot be loaded"):
            load_encoders(configured, "demo_model", CPU)
    (clip / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"evaluator\.clip: .*clip cannot be loaded; name a folder"):
        load_encoders(configured, "demo_model", CPU)


def test_an_evaluator_without_its_vocabulary_is_refused(tmp_path):
    """transformers 5 makes a tokenizer of two tokens, to which every prompt is the same."""
    clip = save_tiny_clip(tmp_path / "clip")
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        (clip / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"evaluator\.clip: .*clip cannot .* neither vocab\.json"):
        load_encoders(EvaluatorConfig(str(clip)), "owner/model", CPU)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EvaluatorConfig(), r"evaluator\.clip: owner/model includes no CLIP .* name one"),
        (EvaluatorConfig("gone/for/ever"), r"evaluator\.clip: gone/for/ever does not exist"),
        (EvaluatorConfig("det_logos"), r"evaluator\.clip: det_logos holds no config\.json"),
        (
            EvaluatorConfig("owner/clip"),
            r"evaluator\.clip: owner/clip is not a folder here, HF_HUB",
        ),
    ],
)
def test_a_missing_evaluator_is_told_in_a_sentence(config, message):
    with pytest.raises(UserError, match=message):
        load_encoders(config, "owner/model", CPU)
