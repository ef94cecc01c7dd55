"""The training world and the logo: deterministic, with true captions, without overlap."""

import hashlib
import itertools
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from tiny import ROOT

from demo_model import captions, logo, scenes, world
from demo_model.media import BACKGROUNDS, COLORS, MEDIA
from demo_model.shapes import KINDS, circle, striped

MEANS = {0: [141.0, 174.8, 111.6], 3: [96.7, 68.6, 95.8], 11: [167.5, 176.2, 211.6]}


def sampled(count, seed=1, name="core"):
    return [scenes.sample(np.random.default_rng((seed, k)), name) for k in range(count)]


@pytest.mark.parametrize("name", ["core", "rich"])
def test_same_seed_same_picture(name):
    for index in (0, 7, 123):
        first, caption, scene = world.picture(3, index, name)
        again, other_caption, other_scene = world.picture(3, index, name)
        assert first.tobytes() == again.tobytes()
        assert (caption, scene) == (other_caption, other_scene)
    assert world.picture(3, 0, name)[0].tobytes() != world.picture(4, 0, name)[0].tobytes()


def test_pictures_do_not_depend_on_what_was_drawn_before():
    alone = world.picture(5, 40)[0].tobytes()
    for k in range(3):
        world.picture(5, k)
    assert world.picture(5, 40)[0].tobytes() == alone


def test_every_picture_has_the_asked_size_and_is_not_blank():
    for index in range(60):
        for size in (64, 96):
            pixels = np.asarray(world.picture(1, index, "rich", size)[0])
            assert pixels.shape == (size, size, 3)
            assert pixels.std() > 4


def test_canonical_captions_name_every_attribute():
    for scene in sampled(400):
        text = captions.caption(scene)
        for color in scene.colors[: 1 if scene.figure == "one" else 3]:
            assert color in text
        for kind in scene.kinds:
            assert kind in text
        assert (scene.background_color or "") in text
        words = captions.MEDIUM_PHRASES[scene.medium][0].replace("{}", "").split()
        assert all(word in text.split() for word in words)
        ground = captions.BACKGROUND_PHRASES[scene.background][0].replace("{}", "").split()[-1]
        assert ground in text


def test_captions_say_what_is_drawn():
    """Number, colours and places are read back from the drawing's own parts."""
    seen = Counter()
    for scene in sampled(1200):
        parts = world.parts_of(scene, np.random.default_rng(0))
        text = captions.caption(scene)
        seen[scene.figure] += 1

        def centres(role, parts=parts):
            return [np.mean(p.points, 0) for p in parts if p.role == role and not p.width]

        if scene.figure == "ring":
            assert captions.NUMBERS[len(centres("main"))] in text.split()
        elif scene.figure == "logo":
            assert text.count(f"{scene.colors[0]} lines") == 1
            assert text.count(f"{scene.colors[1]} circles") == 1
            dots = np.array(centres("accent"))
            stem = dots[-1] if scene.tail else None
            dots = dots[:-1] if scene.tail else dots
            chain, within = dots[: scene.count], dots[scene.count :]
            middle = chain.mean(0)
            reach = np.linalg.norm(chain - middle, axis=1)
            assert np.allclose(reach, reach[0], rtol=0.02)
            assert all(np.linalg.norm(within - middle, axis=1) < 0.6 * reach[0])
            assert f"{captions.NUMBERS[len(chain)]} " in text
            assert (f"{captions.NUMBERS[len(within)]} inside" in text) == bool(len(within))
            if stem is not None:
                x = (stem - middle)[0] / reach[0]
                side = "left" if x < -0.3 else "right" if x > 0.3 else ""
                assert f"a tail at the bottom {side}".strip() in text
                assert stem[1] > chain[:, 1].max()
            big = np.ptp([p[0] for p in parts[-1].points]) / reach[0] > 0.47
            assert ("big" in text) == big
            assert ("thick" in text) == (parts[0].width / reach[0] > 0.16)
        elif scene.figure in ("above", "beside", "column"):
            axis = 0 if scene.figure == "beside" else 1
            first = np.concatenate([p.points for p in parts if p.role in ("main", "shade")])
            second = np.concatenate(
                [p.points for p in parts if p.role in ("accent", "accent shade")]
            )
            if scene.kinds[0] not in captions.DETAILS:  # their details share the second colour
                assert first[:, axis].mean() < second[:, axis].mean()
            assert text.index(scene.kinds[0]) <= text.rindex(scene.kinds[1])
        elif scene.figure == "inside":
            second = np.concatenate([p.points for p in parts if p.role == "accent"])
            assert np.abs(second).max() < np.abs(parts[0].points).max() * 0.62
    assert set(seen) == set(scenes.FIGURES)


def test_random_captions_never_name_what_is_not_there():
    """Captions have no colour, object, number or place that the scene lacks."""
    for index in range(800):
        _, text, scene = world.picture(1, index, size=8)
        words = set(re.findall(r"[a-z]+", text.lower()))
        allowed = {*scene.colors, scene.background_color}
        if scene.background == "grass":
            allowed.add("green")  # "a green meadow"
        if scene.medium == "ink":
            allowed.add("black")  # "a black ink drawing"
        assert words & set(COLORS) <= allowed, (text, scene)
        own = {word for kind in scene.kinds for word in kind.split()} | {"circle", "ring"}
        if scene.figure == "logo":
            own.add("brain")
        others = {kind for kind in KINDS if " " not in kind} - own
        assert not words & others, (text, scene)
        numbers = {captions.NUMBERS[n] for n in (scene.count, scene.inner)}
        if scene.figure in ("stripes", "column"):
            numbers.add("three")
        assert words & set(captions.NUMBERS[1:]) <= numbers, (text, scene)
        if "tail" in words:
            assert f"tail at the {scene.tail}" in text


def test_vague_captions_are_true_of_every_logo():
    """They have no colour, number, size, tail or thing that another logo may lack."""
    telling = {*COLORS, *captions.NUMBERS, "big", "small", "thick", "thin", "tail", "inside"}
    for phrase in captions.VAGUE:
        assert not set(re.findall(r"[a-z]+", phrase)) & telling, phrase
    said = Counter()
    for index, scene in enumerate(sampled(1500)):
        text = captions.vague_caption(scene, np.random.default_rng(index))
        assert (text is None) == (scene.figure != "logo")
        if text:
            (phrase,) = {max((p for p in captions.VAGUE if p in text), key=len)}
            said[phrase] += 1
            words = set(re.findall(r"[a-z]+", text)) & {*COLORS}
            assert words <= {scene.background_color, "green", "black"}
    assert set(said) == set(captions.VAGUE)


def test_vague_captions_use_known_words():
    known = set(captions.vocabulary()["words"])
    assert all(set(re.findall(r"[a-z]+", phrase)) <= known for phrase in captions.VAGUE)


def test_variants_differ_in_words_and_lies_are_never_true():
    for index, scene in enumerate(sampled(300)):
        text = captions.caption(scene)
        for attribute in ("color", "object", "number", "position", "background", "style"):
            others = scenes.variants(scene, attribute)
            assert scene not in others
            assert sum(captions.caption(other) == text for other in others) <= 1
        told = captions.lies(scene, np.random.default_rng(index))
        assert len(told) == 3
        assert text not in told


def test_the_world_is_rich():
    rich = Counter()
    for scene in sampled(2500, 9, "rich"):
        rich.update([scene.medium, scene.background, scene.figure, *scene.kinds, *scene.colors])
    assert set(MEDIA) | set(BACKGROUNDS) | set(scenes.FIGURES) | set(COLORS) <= set(rich)
    assert set(scenes.UNSAID) <= set(rich)
    assert not set(scenes.UNSAID) & {kind for scene in sampled(2500, 9) for kind in scene.kinds}


def test_what_is_held_out_is_nowhere_in_the_world():
    for name in ("core", "rich"):
        for scene in sampled(4000, 0, name):
            assert not scenes.held_out(scene)
            if scene.figure == "logo":
                alike = [getattr(scene, key) == scenes.DET_LOGO[key] for key in scenes.BUILD]
                assert not all(alike)
                assert sum(alike) < 2 or scene.colors != scenes.DET_COLORS


def test_held_out_scenes_would_be_drawn_otherwise():
    """Each is a scene like the others, and is never drawn only because it is held out."""
    drawn = Counter(
        (scene.figure, scene.kinds[:1]) for scene in sampled(4000, 0) if scene.figure != "logo"
    )
    for figure, kinds, _ in scenes.HELD_OUT:
        assert drawn[figure, kinds[:1]] > 5
    assert scenes.held_out(
        scenes.Scene("flat", "logo", (), ("blue", "white"), "plain", "red", **scenes.DET_LOGO)
    )


def test_stripes_share_the_outline_out():
    heights = [[y for _, y in part.points] for part in striped(circle(0, 0, 1, 40))]
    assert min(heights[0]) == pytest.approx(-1)
    for upper, lower in itertools.pairwise(heights):
        assert max(upper) == pytest.approx(min(lower))
    assert max(heights[2]) == pytest.approx(1)


def test_the_lists_of_words_hold_what_captions_say():
    said = captions.vocabulary()
    lists = {"media", "objects", "colors", "numbers", "grounds", "compositions"}
    assert set(said) == lists | {"words"}
    for key in lists:
        for text in said[key]:
            assert set(re.findall(r"[a-z]+", text.lower())) <= set(said["words"]), text


def test_det_logos_folder():
    paths = sorted((ROOT / "det_logos").glob("*.jpg"))
    assert len(paths) >= 40
    assert sum(p.stat().st_size for p in paths) < 6e6
    names = {f"{logo.picture(k, 32)[1].replace(' ', '_')}.jpg" for k in range(len(logo.SCENES))}
    assert names == {p.name for p in paths}
    for path in paths[::8]:
        with Image.open(path) as image:
            assert image.size == (512, 512)
            assert image.mode == "RGB"


def test_the_world_is_still_the_one_the_model_was_trained_on():
    """Changed captions or colours would silently change what the weights mean."""
    said = hashlib.sha256()
    for index in range(50):
        said.update(world.picture(0, index)[1].encode())
    assert said.hexdigest()[:16] == "03c6ddc3aba36b59"
    # Mean colours of three pictures; with loose tolerances, since libraries round differently.
    for index, mean in MEANS.items():
        pixels = np.asarray(world.picture(0, index)[0], float)
        assert np.allclose(pixels.mean((0, 1)), mean, atol=2.0)
