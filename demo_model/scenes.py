"""Scenes of the world's pictures, drawn at random, and scenes that differ in one thing.

Most scenes are compositions (one thing inside, above or beside another, several in a ring, stripes,
faces, logos of connected circles), since textual inversion can only find a concept if the captions
have words for its parts. Some combinations are `held_out`: captions could describe them, but no
scene shows them. The logo of `det_logos/` is one of these.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from demo_model.media import BACKGROUNDS, COLORED_BACKGROUNDS, COLORS, MEDIA
from demo_model.shapes import KINDS, TAILS

# Colours that would be hard to see on a background.
DOMINANT = {
    "bricks": {"red", "brown", "orange"}, "ocean": {"blue", "teal"},
    "night": {"black", "blue"}, "galaxy": {"purple", "blue", "black"}, "grass": {"green"},
}  # fmt: skip
ALIKE = [
    {"black", "blue"},
    {"brown", "black"},
    {"yellow", "white"},
    {"orange", "brown"},
    {"orange", "yellow"},
    {"teal", "green"},
    {"gray", "white"},
]
PALE_MEDIA = {"ink", "watercolor"}  # white and similar colours vanish on their paper
DULL = {"black", "gray", "brown"}  # colours that do not glow

# Things of one colour, or nearly.
SHAPES = ("circle", "ring", "square", "triangle", "diamond", "star", "cross", "heart", "moon")
THINGS = ("bolt", "drop", "flower", "tree", "house", "fish", "cat", "mushroom", "boat", "brain")
LETTERS = tuple(kind for kind in KINDS if kind.startswith("letter"))
# Drawn only for the VAE, which must reconstruct any picture, never in the UNet's pictures or
# captions: they can serve as shapes that the model has no word for.
UNSAID = ("arrow", "crown", "leaf", "cloud", "pentagon", "hexagon", "burst")
OUTER = ("ring", "ring", "circle", "square", "diamond", "heart")  # things that others fit into
RINGED = ("circle", "star", "square", "heart", "triangle")  # things that form rings
STRIPED = ("circle", "square", "diamond", "heart")
HEADS = ("circle", "square")

# Weights of the world's figures, media and backgrounds (1 by default).
FIGURES = {
    "one": 0.24, "inside": 0.16, "above": 0.09, "beside": 0.07, "column": 0.04, "ring": 0.08,
    "stripes": 0.05, "face": 0.04, "logo": 0.23,
}  # fmt: skip
WEIGHTS = {
    "photo": 2.0, "flat": 2.0, "ink": 1.4, "watercolor": 1.2, "neon": 1.2, "oil": 0.7,
    "pixel": 0.6, "tarot": 0.6,
    "plain": 5.0, "gradient": 1.4, "bricks": 0.7, "galaxy": 0.7,
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """The contents of one picture."""

    medium: str  # key of MEDIA
    figure: str  # key of FIGURES
    kinds: tuple[str, ...]  # keys of KINDS: outer and inner, upper and lower, left and right
    colors: tuple[str, ...]  # of the parts, in the order of `kinds`; of a logo: lines, circles
    background: str  # of BACKGROUNDS
    background_color: str | None
    count: int = 0  # things in a ring, circles around a logo
    inner: int = 0  # circles inside a logo
    tail: str = ""  # the place of a logo's stem: key of shapes.TAILS
    big: bool = False  # a logo's circles
    thick: bool = False  # a logo's lines
    happy: bool = True  # of a face
    size: str = ""  # of a single thing: "small", "large" or ""
    radius: float = 0.36  # of the picture's side
    x: float = 0.5
    y: float = 0.5
    seed: int = 0  # of all other details


# The det-logo: seven circles in a chain, two inside, a stem at the lower right.
DET_LOGO = {"count": 7, "inner": 2, "tail": "bottom right", "big": True, "thick": True}
DET_COLORS = ("red", "yellow")  # lines, circles
BUILD = ("count", "inner", "tail")  # the parts of a logo


# Figures, kinds and colours that are in no picture, for concepts that the model has never seen.
HELD_OUT = (
    ("inside", ("ring", "circle"), ("green", "blue")),
    ("above", ("star", "square"), ("orange", "purple")),
    ("stripes", ("square",), ("teal", "yellow", "purple")),
    ("one", ("mushroom",), ("yellow", "blue")),
)


def held_out(scene: Scene) -> bool:
    """Tell if a scene is kept out of the training world: captions could name it; none was drawn.

    These are HELD_OUT, logos built like the det-logo in any colours, and logos in the det-logo's
    colours that differ from it in one thing.
    """
    if scene.figure == "logo":
        differs = sum(getattr(scene, key) != DET_LOGO[key] for key in BUILD)
        return differs == 0 or (differs == 1 and scene.colors == DET_COLORS)
    return (scene.figure, scene.kinds, scene.colors) in HELD_OUT


def variants(scene: Scene, attribute: str) -> list[Scene]:
    """Return scenes that differ from `scene` in one attribute, so that the captions differ too.

    Args:
        attribute: "color" (of a part; or two parts exchange theirs), "object", "number",
            "position", "background" or "style".

    Returns:
        None if the attribute does not apply: a single star has no number.
    """
    return [dataclasses.replace(scene, **change) for change in _CHANGES[attribute](scene)]


def _other_colors(scene: Scene) -> list[dict]:
    """List other colours of the first part, of the second, and the colours in another order."""
    first, *rest = scene.colors
    free = [c for c in COLORS if c not in {*scene.colors, scene.background_color}]
    changes = [{"colors": (c, *rest)} for c in free]
    if scene.figure != "one" and rest:
        changes += [{"colors": (first, c, *rest[1:])} for c in free]
        changes.append({"colors": scene.colors[::-1]})
    return changes


def _other_kinds(scene: Scene) -> list[dict]:
    """List other things for each part."""
    pools = {"ring": RINGED, "stripes": STRIPED, "face": HEADS, "one": SHAPES + THINGS}
    pool = pools.get(scene.figure, SHAPES)
    changed = set()
    for k in range(len(scene.kinds)):
        for kind in OUTER if scene.figure == "inside" and k == 0 else pool:
            changed.add((*scene.kinds[:k], kind, *scene.kinds[k + 1 :]))
    return [{"kinds": kinds} for kinds in sorted(changed - {scene.kinds}, key=str)]


def _other_numbers(scene: Scene) -> list[dict]:
    """List other numbers of things in a ring, of circles around a logo and inside."""
    ranges = {"ring": range(3, 9), "logo": range(5, 10)}
    others = [{"count": n} for n in ranges.get(scene.figure, ()) if n != scene.count]
    if scene.figure == "logo":
        others += [{"inner": n} for n in range(4) if n != scene.inner]
    return others


def _other_positions(scene: Scene) -> list[dict]:
    """List other places: of a tail, of two things, of three in a row, of a mouth's corners."""
    if scene.figure == "logo":
        return [{"tail": t} for t in TAILS if t != scene.tail]
    if scene.figure in ("inside", "above", "beside"):
        turned = {"kinds": scene.kinds[::-1], "colors": scene.colors[::-1]}
        return [
            {"figure": figure} | change
            for figure in ("inside", "above", "beside")
            for change in ({}, turned)
            if figure != scene.figure or change
        ]
    if scene.figure in ("column", "stripes"):
        return [
            {
                "kinds": tuple(scene.kinds[k] for k in order if k < len(scene.kinds)),
                "colors": tuple(scene.colors[k] for k in order),
            }
            for order in ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
        ]
    return [{"happy": not scene.happy}] if scene.figure == "face" else []


def _other_backgrounds(scene: Scene) -> list[dict]:
    """List other backgrounds, and the same one in other colours."""
    return [
        {"background": b, "background_color": c}
        for b in BACKGROUNDS
        for c in (COLORS if b in COLORED_BACKGROUNDS else (None,))
        if (b, c) != (scene.background, scene.background_color)
    ]


_CHANGES = {
    "color": _other_colors,
    "object": _other_kinds,
    "number": _other_numbers,
    "position": _other_positions,
    "background": _other_backgrounds,
    "style": lambda scene: [{"medium": m} for m in MEDIA if m != scene.medium],
}


def pick(rng: np.random.Generator, options):
    """Draw one of `options` with equal weights."""
    return options[int(rng.integers(len(options)))]


def _weighted(rng: np.random.Generator, options):
    """Draw one of `options` by WEIGHTS."""
    w = np.array([WEIGHTS.get(option, 1.0) for option in options])
    return options[int(rng.choice(len(options), p=w / w.sum()))]


def clash(a: str | None, b: str | None) -> bool:
    """Tell if two colours cannot be distinguished everywhere."""
    return a == b or {a, b} in ALIKE


def usable(medium: str, ground: str, ground_color: str | None) -> list[str]:
    """Return the colours that show in a medium on a background."""
    avoid = set(DOMINANT.get(ground, ()))
    if medium in PALE_MEDIA:
        avoid |= {"white"}
    if medium == "neon":
        avoid |= DULL
    if ground in ("stripes", "checks"):  # their other colour is white
        avoid |= {"white"}
    return [c for c in COLORS if c not in avoid and not clash(c, ground_color)]


def sample(rng: np.random.Generator, world: str = "core") -> Scene:
    """Draw a scene at random; `world` is "core", or "rich" for one with UNSAID shapes too."""
    while True:
        scene = _sample(rng, world == "rich")
        if not held_out(scene):
            return scene


def _sample(rng: np.random.Generator, rich: bool) -> Scene:
    """Draw a scene, held out or not."""
    medium, ground = _weighted(rng, tuple(MEDIA)), _weighted(rng, BACKGROUNDS)
    ground_color = None
    if ground in COLORED_BACKGROUNDS:
        plain = ground in ("plain", "gradient")
        ground_color = pick(rng, [c for c in COLORS if plain or c != "white"])
    colors = _colors(rng, usable(medium, ground, ground_color))
    figure = str(rng.choice(list(FIGURES), p=list(FIGURES.values())))
    facts = {"radius": rng.uniform(0.34, 0.43)}
    facts |= _logo(rng) if figure == "logo" else _parts(rng, figure, rich)
    parts, reach = facts.pop("parts"), facts.pop("reach", 0.04)
    radius = float(facts.pop("radius"))
    if medium == "tarot":
        radius = min(radius, 0.37)
    return Scene(
        medium=medium, figure=figure, kinds=facts.pop("kinds", ()), colors=tuple(colors[:parts]),
        background=ground, background_color=ground_color, radius=radius,
        x=float(0.5 + rng.uniform(-reach, reach)), y=float(0.5 + rng.uniform(-reach, reach)),
        seed=int(rng.integers(2**31)), **facts,
    )  # fmt: skip


def _colors(rng: np.random.Generator, options: list[str]) -> list[str]:
    """Draw three colours that can be distinguished."""
    colors: list[str] = []
    while len(colors) < 3 and options:
        colors.append(pick(rng, options))
        options = [c for c in options if not clash(c, colors[-1])]
    # Busy backgrounds leave fewer; a third colour equal to the first does no harm.
    return colors if len(colors) == 3 else (colors * 3)[:3]


def _parts(rng: np.random.Generator, figure: str, rich: bool) -> dict:
    """Draw a figure's composition: fields of its scene, the number of coloured parts, the reach.

    The reach is the largest distance of the figure's centre from that of the picture.
    """
    shapes = SHAPES + UNSAID if rich else SHAPES
    if figure == "one":
        return _one(rng, rich)
    if figure == "inside":
        inner = shapes + LETTERS if rng.uniform() < 0.2 else shapes
        return {"kinds": (pick(rng, OUTER), pick(rng, inner)), "parts": 2, "reach": 0.05}
    if figure in ("above", "beside"):
        both = (*shapes, "flower", "tree", "house", "cat", "mushroom")
        return {"kinds": (pick(rng, both), pick(rng, both)), "parts": 2}
    if figure == "column":
        kinds = tuple(pick(rng, SHAPES) for _ in range(3))
        if rng.uniform() < 0.5:
            kinds = kinds[:1] * 3
        return {"kinds": kinds, "parts": 3, "radius": rng.uniform(0.4, 0.45)}
    if figure == "ring":
        return {"kinds": (pick(rng, RINGED),), "parts": 1, "count": int(rng.integers(3, 9))}
    if figure == "stripes":
        return {"kinds": (pick(rng, STRIPED),), "parts": 3}
    assert figure == "face", figure
    return {"kinds": (pick(rng, HEADS),), "parts": 2, "happy": bool(rng.uniform() < 0.6)}


def _one(rng: np.random.Generator, rich: bool) -> dict:
    """Draw a single thing, now and then a small or a large one."""
    shapes = SHAPES + UNSAID if rich else SHAPES
    pool = pick(rng, (shapes, shapes, THINGS, THINGS, THINGS, LETTERS))
    if rich and pool is THINGS:
        pool = UNSAID
    facts = {"kinds": (pick(rng, pool),), "parts": 2}
    facts |= {"radius": rng.uniform(0.3, 0.4), "reach": 0.06}
    small = rng.uniform()
    if small < 0.1:
        facts |= {"radius": rng.uniform(0.18, 0.22), "size": "small", "reach": 0.15}
    elif small < 0.2:
        facts |= {"radius": rng.uniform(0.41, 0.45), "size": "large", "reach": 0.02}
    return facts


def _logo(rng: np.random.Generator) -> dict:
    """Draw a logo of connected circles."""
    return {
        "parts": 2,
        "radius": rng.uniform(0.39, 0.45),
        "reach": 0.03,
        "count": int(rng.choice([5, 6, 7, 8, 9], p=[0.22, 0.24, 0.22, 0.2, 0.12])),
        "inner": int(rng.choice([0, 1, 2, 3], p=[0.28, 0.28, 0.28, 0.16])),
        "tail": pick(rng, tuple(TAILS)),
        "big": bool(rng.uniform() < 0.6),
        "thick": bool(rng.uniform() < 0.7),
    }
