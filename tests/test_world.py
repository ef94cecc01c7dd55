"""The training world and the logo: deterministic, truthful, and strangers to each other."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from tiny import ROOT

from demo_model import logo, world
from demo_model.media import BACKGROUNDS, COLORS, MEDIA
from demo_model.shapes import DET_LOGO, KINDS

MEANS = {0: [161.7, 76.1, 42.7], 3: [139.2, 103.8, 85.9], 11: [118.4, 171.4, 151.7]}


@pytest.mark.parametrize("name", world.WORLDS)
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
    for index in range(300):
        scene = world.picture(1, index, "rich")[2]
        text = world.caption(scene)
        assert scene.color in text
        assert (scene.kind.removesuffix(" logo") if scene.is_graph else scene.kind) in text
        assert (scene.background_color or "") in text
        words = world.MEDIUM_PHRASES[scene.medium][0].replace("{}", "").split()
        assert all(word in text.split() for word in words)
        ground = world.BACKGROUND_PHRASES[scene.background][0].replace("{}", "").split()[-1]
        assert ground in text
        if scene.is_graph and scene.accent != scene.color:
            assert scene.accent in text


def test_random_captions_never_name_what_is_not_there():
    """No colour, object or medium word in a caption that the scene does not have."""
    for index in range(600):
        _, text, scene = world.picture(1, index, "rich")
        words = set(text.replace(",", "").split())
        allowed = {scene.color, scene.background_color, scene.accent}
        if scene.background == "grass":
            allowed.add("green")  # "a green meadow"
        if scene.background == "clouds":
            allowed.add("blue")  # "a cloudy blue sky"
        if scene.medium == "ink":
            allowed.add("black")  # "a black ink drawing"
        assert words & set(COLORS) <= allowed, (text, scene)
        own = {scene.kind, *scene.kind.split(), *scene.layout.split()}
        others = {k for k in KINDS if " " not in k and k != "circle"} - own
        if scene.background == "clouds":
            others -= {"cloud"}
        assert not words & others, (text, scene)


def test_world_is_rich():
    rich = Counter()
    for index in range(1500):
        scene = world.sample(np.random.default_rng((9, index)), world.WORLDS["rich"])
        rich.update([scene.medium, scene.background, scene.kind.split()[-1], scene.color])
    assert set(MEDIA) <= set(rich)
    assert set(BACKGROUNDS) <= set(rich)
    assert len(COLORS) == 12
    assert len(KINDS) >= 25


def test_the_logo_is_nowhere_in_the_world():
    for name in world.WORLDS:
        for index in range(4000):
            scene = world.sample(np.random.default_rng((0, index)), world.WORLDS[name])
            if scene.is_graph:
                assert scene.graph().signature() != DET_LOGO.signature()


def test_a_logo_scene_would_be_noticed():
    assert DET_LOGO.signature() == tuple(sorted(DET_LOGO.signature()))
    assert sum(DET_LOGO.signature()) == 2 * len(DET_LOGO.edges)


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
    captions = hashlib.sha256()
    for index in range(50):
        captions.update(world.picture(0, index)[1].encode())
    assert captions.hexdigest()[:16] == "33404d7ed233d871"
    # Mean colours of three pictures; loose, since libraries round differently.
    for index, mean in MEANS.items():
        pixels = np.asarray(world.picture(0, index)[0], float)
        assert np.allclose(pixels.mean((0, 1)), mean, atol=2.0)
