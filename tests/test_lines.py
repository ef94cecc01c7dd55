"""The share of a logo's visible lines, on drawings of the logo with and without them."""

import numpy as np
import pytest

from demo_model import lines, lineup, world

LOGO = lineup.CASES["det-logo"]


def drawings(medium, ground, count=6):
    """Draw the logo at other places and sizes than for the reader's colours."""
    for index in range(count):
        rng = np.random.default_rng(index)
        place = {key: 0.5 + rng.uniform(-0.03, 0.03) for key in ("x", "y")}
        place["radius"] = rng.uniform(0.36, 0.43)
        yield world.render(lineup.scene_of(LOGO, medium, ground, index, **place))


@pytest.mark.parametrize(("medium", "ground"), lineup.MEDIA.items())
def test_a_drawing_shows_every_line_and_one_without_lines_none(medium, ground, monkeypatch):
    read = lines.reader(medium, ground)
    assert [read(image) for image in drawings(medium, ground)] == [1.0] * 6
    whole = world.parts_of

    def circles_alone(scene, rng):
        return [part for part in whole(scene, rng) if part.role == "accent"]

    monkeypatch.setattr(world, "parts_of", circles_alone)
    assert [read(image) for image in drawings(medium, ground)] == [0.0] * 6


def test_the_share_is_that_of_the_lines_drawn(monkeypatch):
    """Four of nine lines that are long enough to be visible are left out."""
    read = lines.reader("flat", "white")
    long_enough = lines.halfway(read.parts, 0.4)[0]
    assert len(long_enough) == 9
    whole = world.parts_of

    def some(scene, rng):
        parts = whole(scene, rng)
        chain = [k for k, part in enumerate(parts) if part.role == "main"][:4]
        return [part for k, part in enumerate(parts) if k not in chain]

    monkeypatch.setattr(world, "parts_of", some)
    assert [read(image) for image in drawings("flat", "white")] == [pytest.approx(5 / 9)] * 6


def test_lines_in_the_circles_colour_are_no_lines(monkeypatch):
    read = lines.reader("flat", "white")
    whole = world.parts_of

    def yellow(scene, rng):
        return [part._replace(role="accent") for part in whole(scene, rng)]

    monkeypatch.setattr(world, "parts_of", yellow)
    assert [read(image) for image in drawings("flat", "white")] == [0.0] * 6


def test_circles_are_where_the_drawing_has_them():
    scene = lineup.scene_of(LOGO, "flat", "white", radius=0.4)
    parts = world.parts_of(scene, np.random.default_rng(0))
    centres = 32 + lines.halfway(parts, 0.4)[1]
    picture = np.asarray(world.render(scene), float)
    assert len(centres) == 10
    assert np.allclose(lines.colors_at(picture, centres), [252, 218, 52], atol=12)
