"""The world the bundled model was trained on: captioned pictures, drawn procedurally.

    python -m demo_model.world --out sheet.png        # look at it

`picture(seed, index)` is a pure function: the same arguments give the same caption and pixels (to
the last bit with the same Pillow and numpy). A `Scene` says what is drawn, `render` draws it,
`caption` names it. Most scenes are compositions (one thing inside, above or beside another, several
in a ring, stripes, faces, logos of connected circles), since a concept can only be found by textual
inversion where the captions have words for what it is made of. Some combinations are `held_out`:
they can be said, and are drawn in no scene, the logo of `det_logos/` among them.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from demo_model.media import (
    BACKGROUNDS,
    COLORED_BACKGROUNDS,
    COLORS,
    MEDIA,
    Canvas,
    background,
    finish,
)
from demo_model.shapes import KINDS, TAILS, Part, around, circle, face, logo, moved, striped

SIZE = 64  # pixels a side of a training picture
SUPERSAMPLE = 3

# What each medium and background is called. The first phrase is the canonical one.
MEDIUM_PHRASES: dict[str, tuple[str, ...]] = {
    "photo": (
        "a photo of {}", "a good photo of {}", "a close-up photo of {}", "a bright photo of {}",
        "a cropped photo of {}", "a nice photo of {}", "a dark photo of {}", "photograph of {}",
    ),
    "flat": (
        "a flat vector illustration of {}", "a vector drawing of {}", "a clean illustration of {}",
        "a flat icon of {}", "{}, flat vector art",
    ),
    "ink": (
        "an ink doodle of {}", "an ink drawing of {}", "a doodle of {}", "{}, ink doodle",
        "a black ink drawing of {}",
    ),
    "watercolor": (
        "a watercolor painting of {}", "a watercolor of {}", "{}, watercolor painting",
        "a watercolor painting on textured paper of {}",
        "{}, watercolor painting on textured paper",
    ),
    "oil": (
        "an oil painting of {}", "a Van Gogh painting of {}", "{}, oil painting, thick strokes",
        "a Van Gogh painting of {}, thick strokes", "an oil painting in thick strokes of {}",
        "a painting of {} in the style of Van Gogh",
    ),
    "neon": ("a neon sign of {}", "neon art of {}", "{}, neon sign", "a glowing neon sign of {}"),
    "pixel": ("pixel art of {}", "a pixel art sprite of {}", "{}, pixel art"),
    "tarot": ("a tarot illustration of {}", "a tarot card of {}", "{}, tarot illustration"),
}  # fmt: skip
# As a noun: "... on an oil painting of ocean waves", the way file names describe a scene.
MEDIUM_NOUNS = {
    "photo": "a photo", "flat": "a flat illustration", "ink": "an ink doodle",
    "watercolor": "a watercolor painting", "oil": "an oil painting", "neon": "a neon picture",
    "pixel": "a pixel art picture", "tarot": "a tarot illustration",
}  # fmt: skip
# Prefixes that leave the medium to the rest of the caption.
NEUTRAL_PHRASES = (
    "a picture of {}", "a rendering of {}", "a rendition of {}", "a depiction of {}", "{}",
    "an image of {}",
)  # fmt: skip

BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "plain": ("on a {} background", "on a plain {} background", "on {}", "{} background"),
    "gradient": ("on a {} gradient", "on a {} gradient background"),
    "stripes": ("on {} stripes", "on a {} striped background"),
    "checks": ("on a {} checkerboard", "on {} checks"),
    "bricks": ("on a brick wall", "in front of a brick wall", "on bricks"),
    "ocean": ("on ocean waves", "in the ocean", "on the sea", "over ocean waves"),
    "night": ("on a night sky", "in a starry night sky", "under the stars", "at night"),
    "galaxy": ("in a galaxy", "on a galaxy", "in space, galaxy"),
    "grass": ("on the grass", "on a green meadow", "in the grass"),
}
BACKGROUND_NOUNS = {
    "plain": "a {} background", "gradient": "a {} gradient", "stripes": "{} stripes",
    "checks": "a {} checkerboard", "bricks": "a brick wall", "ocean": "ocean waves",
    "night": "a night sky", "galaxy": "a galaxy", "grass": "grass",
}  # fmt: skip
# Colours that would drown in a background.
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
PALE_MEDIA = {"ink", "watercolor"}  # white and its like vanish on their paper
DULL = {"black", "gray", "brown"}  # colours that do not glow

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TAGS = (", concept art", ", masterpiece", ", highly detailed", ", simple", ", beautiful")

# Things of one colour, or nearly; what a thing's second colour is on.
SHAPES = ("circle", "ring", "square", "triangle", "diamond", "star", "cross", "heart", "moon")
THINGS = ("bolt", "drop", "flower", "tree", "house", "fish", "cat", "mushroom", "boat", "brain")
DETAILS = {
    "flower": "with a {} middle", "house": "with a {} window", "mushroom": "with {} dots",
    "boat": "with {} sails",
}  # fmt: skip
LETTERS = tuple(kind for kind in KINDS if kind.startswith("letter"))
# Drawn for the VAE, which must keep any picture, and in no picture or caption of the UNet's: they
# can serve as shapes that the model has no word for.
UNSAID = ("arrow", "crown", "leaf", "cloud", "pentagon", "hexagon", "burst")
OUTER = ("ring", "ring", "circle", "square", "diamond", "heart")  # what others fit into
RINGED = ("circle", "star", "square", "heart", "triangle")  # what stands in rings
STRIPED = ("circle", "square", "diamond", "heart")
HEADS = ("circle", "square")

# Shares of the figures in the world, of media and of backgrounds (1 where not said).
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
    """What one picture shows."""

    medium: str  # key of MEDIA
    figure: str  # key of FIGURES
    kinds: tuple[str, ...]  # keys of KINDS: outer and inner, upper and lower, left and right
    colors: tuple[str, ...]  # of the parts, in the order of `kinds`; of a logo: lines, circles
    background: str  # of BACKGROUNDS
    background_color: str | None
    count: int = 0  # things in a ring, circles around a logo
    inner: int = 0  # circles inside a logo
    tail: str = ""  # where a logo's stem is: of shapes.TAILS
    big: bool = False  # a logo's circles
    thick: bool = False  # a logo's lines
    happy: bool = True  # of a face
    size: str = ""  # of a single thing: "small", "large" or ""
    radius: float = 0.36  # of the picture's side
    x: float = 0.5
    y: float = 0.5
    seed: int = 0  # of every detail not named above


# The det-logo: seven circles around, two inside, a stem at the lower right.
DET_LOGO = {"count": 7, "inner": 2, "tail": "bottom right", "big": True, "thick": True}
DET_COLORS = ("red", "yellow")  # lines, circles
BUILD = ("count", "inner", "tail")  # what a logo is built of


# Figures, kinds and colours that are in no picture, for concepts to be learned from nothing seen.
HELD_OUT = (
    ("inside", ("ring", "circle"), ("green", "blue")),
    ("above", ("star", "square"), ("orange", "purple")),
    ("stripes", ("square",), ("teal", "yellow", "purple")),
    ("one", ("mushroom",), ("yellow", "blue")),
)


def held_out(scene: Scene) -> bool:
    """Whether a scene is kept out of the training world: it can be said, but was never seen.

    That is HELD_OUT, a logo built like the det-logo, in any colours, and one in the det-logo's
    colours that differs from it in one thing.
    """
    if scene.figure == "logo":
        differs = sum(getattr(scene, key) != DET_LOGO[key] for key in BUILD)
        return differs == 0 or (differs == 1 and scene.colors == DET_COLORS)
    return (scene.figure, scene.kinds, scene.colors) in HELD_OUT


def variants(scene: Scene, attribute: str) -> list[Scene]:
    """Scenes that differ from `scene` in one attribute, so that the canonical captions differ too.

    Args:
        attribute: "color" (of a part; or two parts exchange theirs), "object", "number",
            "position", "background" or "style".

    Returns:
        None where the attribute says nothing: a single star has no number.
    """

    def but(**changes) -> Scene:
        return dataclasses.replace(scene, **changes)

    if attribute == "color":
        taken = {*scene.colors, scene.background_color}
        options = [but(colors=(c, *scene.colors[1:])) for c in COLORS if c not in taken]
        if scene.figure != "one" and len(scene.colors) > 1:
            options += [but(colors=(scene.colors[0], c, *scene.colors[2:]))
                        for c in COLORS if c not in taken]  # fmt: skip
            options.append(but(colors=scene.colors[::-1]))
        return options
    if attribute == "style":
        return [but(medium=m) for m in MEDIA if m != scene.medium]
    if attribute == "background":
        return [
            but(background=b, background_color=c)
            for b in BACKGROUNDS
            for c in (COLORS if b in COLORED_BACKGROUNDS else (None,))
            if (b, c) != (scene.background, scene.background_color)
        ]
    if attribute == "object" and scene.kinds:
        pools = {"ring": RINGED, "stripes": STRIPED, "face": HEADS, "one": SHAPES + THINGS}
        pool = pools.get(scene.figure, SHAPES)
        changed = []
        for k in range(len(scene.kinds)):
            for kind in set(OUTER) if scene.figure == "inside" and k == 0 else pool:
                kinds = (*scene.kinds[:k], kind, *scene.kinds[k + 1 :])
                if kinds != scene.kinds:
                    changed.append(but(kinds=kinds))
        return sorted(changed, key=str)
    if attribute == "number":
        ranges = {"ring": range(3, 9), "logo": range(5, 10)}
        others = [but(count=n) for n in ranges.get(scene.figure, ()) if n != scene.count]
        if scene.figure == "logo":
            others += [but(inner=n) for n in range(4) if n != scene.inner]
        return others
    if attribute == "position":
        if scene.figure == "logo":
            return [but(tail=t) for t in TAILS if t != scene.tail]
        if scene.figure in ("inside", "above", "beside"):
            turned = {"kinds": scene.kinds[::-1], "colors": scene.colors[::-1]}
            return [
                but(figure=figure, **change)
                for figure in ("inside", "above", "beside")
                for change in ({}, turned)
                if figure != scene.figure or change
            ]
        if scene.figure in ("column", "stripes"):
            orders = ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
            options = []
            for order in orders:
                kinds = (
                    tuple(scene.kinds[k] for k in order) if len(scene.kinds) == 3 else scene.kinds
                )
                options.append(but(kinds=kinds, colors=tuple(scene.colors[k] for k in order)))
            return options
        if scene.figure == "face":
            return [but(happy=not scene.happy)]
    return []


def lies(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Three captions that are wrong in one thing: a colour, and what, how many or where."""
    attributes = ["color", *rng.permutation(["object", "number", "position"])]
    told = []
    for attribute in attributes:
        options = variants(scene, attribute)
        if options:
            told.append(caption(_pick(rng, options), rng, full=True))
    while len(told) < 3:
        told.append(caption(_pick(rng, variants(scene, "color")), rng, full=True))
    return told[:3]


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _weighted(rng: np.random.Generator, options):
    w = np.array([WEIGHTS.get(option, 1.0) for option in options])
    return options[int(rng.choice(len(options), p=w / w.sum()))]


def clash(a: str | None, b: str | None) -> bool:
    """Whether two colours cannot be told apart everywhere."""
    return a == b or {a, b} in ALIKE


def usable(medium: str, ground: str, ground_color: str | None) -> list[str]:
    """Colours that show in a medium on a background."""
    avoid = set(DOMINANT.get(ground, ()))
    if medium in PALE_MEDIA:
        avoid |= {"white"}
    if medium == "neon":
        avoid |= DULL
    if ground in ("stripes", "checks"):  # whose other colour is white
        avoid |= {"white"}
    return [c for c in COLORS if c not in avoid and not clash(c, ground_color)]


def sample(rng: np.random.Generator, world: str = "core") -> Scene:
    """Draw a scene at random; `world` is "core", or "rich" for one with UNSAID shapes too."""
    while True:
        scene = _sample(rng, world == "rich")
        if not held_out(scene):
            return scene


def _sample(rng: np.random.Generator, rich: bool) -> Scene:
    medium, ground = _weighted(rng, tuple(MEDIA)), _weighted(rng, BACKGROUNDS)
    ground_color = None
    if ground in COLORED_BACKGROUNDS:
        plain = ground in ("plain", "gradient")
        ground_color = _pick(rng, [c for c in COLORS if plain or c != "white"])
    options = usable(medium, ground, ground_color)
    colors: list[str] = []
    while len(colors) < 3 and options:
        colors.append(_pick(rng, options))
        options = [c for c in options if not clash(c, colors[-1])]
    if len(colors) < 3:  # on a busy ground; a third colour like the first does no harm
        colors = (colors * 3)[:3]
    figure = str(rng.choice(list(FIGURES), p=list(FIGURES.values())))
    radius, size, reach = rng.uniform(0.34, 0.43), "", 0.04
    kinds: tuple[str, ...] = ()
    facts: dict = {}
    shapes = SHAPES + UNSAID if rich else SHAPES
    if figure == "one":
        pool = _pick(rng, (shapes, shapes, THINGS, THINGS, THINGS, LETTERS))
        if rich and pool is THINGS:
            pool = UNSAID
        kinds, parts = (_pick(rng, pool),), 2
        radius, reach = rng.uniform(0.3, 0.4), 0.06
        small = rng.uniform()
        if small < 0.1:
            radius, size, reach = rng.uniform(0.18, 0.22), "small", 0.15
        elif small < 0.2:
            radius, size, reach = rng.uniform(0.41, 0.45), "large", 0.02
    elif figure == "inside":
        inner = shapes + LETTERS if rng.uniform() < 0.2 else shapes
        kinds, parts = (_pick(rng, OUTER), _pick(rng, inner)), 2
        reach = 0.05
    elif figure in ("above", "beside"):
        both = (*shapes, "flower", "tree", "house", "cat", "mushroom")
        kinds, parts = (_pick(rng, both), _pick(rng, both)), 2
    elif figure == "column":
        kinds, parts = tuple(_pick(rng, SHAPES) for _ in range(3)), 3
        if rng.uniform() < 0.5:
            kinds = kinds[:1] * 3
        radius = rng.uniform(0.4, 0.45)
    elif figure == "ring":
        kinds, parts = (_pick(rng, RINGED),), 1
        facts = {"count": int(rng.integers(3, 9))}
    elif figure == "stripes":
        kinds, parts = (_pick(rng, STRIPED),), 3
    elif figure == "face":
        kinds, parts = (_pick(rng, HEADS),), 2
        facts = {"happy": bool(rng.uniform() < 0.6)}
    else:
        parts, radius, reach = 2, rng.uniform(0.39, 0.45), 0.03
        facts = {
            "count": int(rng.choice([5, 6, 7, 8, 9], p=[0.22, 0.24, 0.22, 0.2, 0.12])),
            "inner": int(rng.choice([0, 1, 2, 3], p=[0.28, 0.28, 0.28, 0.16])),
            "tail": _pick(rng, tuple(TAILS)),
            "big": bool(rng.uniform() < 0.6),
            "thick": bool(rng.uniform() < 0.7),
        }
    if medium == "tarot":
        radius = min(radius, 0.37)
    return Scene(
        medium=medium, figure=figure, kinds=kinds, colors=tuple(colors[:parts]), background=ground,
        background_color=ground_color, size=size, radius=float(radius),
        x=float(0.5 + rng.uniform(-reach, reach)), y=float(0.5 + rng.uniform(-reach, reach)),
        seed=int(rng.integers(2**31)), **facts,
    )  # fmt: skip


def parts_of(scene: Scene, rng: np.random.Generator) -> list[Part]:
    """The parts of a scene's figure in the unit square."""
    if scene.figure == "logo":
        return logo(scene.count, scene.inner, scene.tail, scene.big, scene.thick)
    made = [KINDS[kind](rng) for kind in scene.kinds]
    if scene.figure == "inside":
        room = {"heart": 0.42, "diamond": 0.38}.get(scene.kinds[0], 0.46)
        if scene.kinds[0] == "ring":  # a thinner one, so that a gap is seen
            made[0] = [made[0][0], Part("hole", circle(0, 0, rng.uniform(0.7, 0.76), 40))]
        return made[0] + moved(made[1], 0, -0.05 if scene.kinds[0] == "heart" else 0, room, True)
    if scene.figure == "above":
        return moved(made[0], 0, -0.5, 0.46) + moved(made[1], 0, 0.5, 0.46, True)
    if scene.figure == "beside":
        return moved(made[0], -0.5, 0, 0.46) + moved(made[1], 0.5, 0, 0.46, True)
    if scene.figure == "column":
        low = [part._replace(role="third") for part in moved(made[2], 0, 0.68, 0.3)
               if part.role != "hole"]  # fmt: skip
        return moved(made[0], 0, -0.68, 0.3) + moved(made[1], 0, 0, 0.3, True) + low
    if scene.figure == "ring":
        return around(made[0], scene.count)
    if scene.figure == "stripes":
        return striped(made[0][0].points)
    if scene.figure == "face":
        return face(made[0][0].points, scene.happy)
    return made[0]


def render(scene: Scene, size: int = SIZE) -> Image.Image:
    """Draw the scene as an RGB image of `size` x `size` pixels."""
    rng = np.random.default_rng((scene.seed, 0))

    def tint(name: str) -> tuple[int, int, int]:
        jitter = rng.uniform(-8, 8, 3)
        return tuple(
            int(min(255, max(0, c + j))) for c, j in zip(COLORS[name], jitter, strict=True)
        )

    n = size * SUPERSAMPLE
    ground = tint(scene.background_color) if scene.background_color else None
    canvas = Canvas(background(scene.background, ground, rng, n).clip(0, 255), n / SIZE)
    colors = dict(zip(("main", "accent", "third"), map(tint, scene.colors), strict=False))
    for role in ("main", "accent"):
        color = colors.get(role, (0, 0, 0))
        shade = "shade" if role == "main" else "accent shade"
        colors[shade] = tuple(int(c * 0.62) if sum(color) > 150 else c + 60 for c in color)
    canvas.draw(parts_of(scene, rng), colors, (scene.x, scene.y, scene.radius))
    return finish(MEDIA[scene.medium](canvas, rng), size)


# ---- words -------------------------------------------------------------------------------------


def _plural(kind: str) -> str:
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"


def subject(scene: Scene, rng: np.random.Generator | None = None, full: bool = False) -> str:
    """The figure in words, with an article where it takes one: "a red star".

    Without `rng` the canonical phrase, which says all; with it one of several, some of which leave
    a part unsaid, unless `full`.
    """
    things = [f"{c} {k}" for c, k in zip(scene.colors, scene.kinds, strict=False)]
    a = [f"a {thing}" for thing in things]
    c = scene.colors
    if scene.figure == "one":
        kind = scene.kinds[0]
        detail = DETAILS.get(kind, "").format(c[1])
        plain = f"a {scene.size} {things[0]}"
        forms = [f"{plain} {detail}", plain]
        if rng is not None and not full and rng.uniform() < 0.06:
            forms = [f"a {scene.size} {kind}"]
    elif scene.figure == "inside":
        forms = [
            f"{a[0]} with {a[1]} inside",
            f"{a[0]} with {a[1]} in it",
            f"{a[1]} inside {a[0]}",
            f"{a[0]} around {a[1]}",
            f"{a[1]} in the middle of {a[0]}",
        ]
    elif scene.figure == "above":
        forms = [
            f"{a[0]} above {a[1]}",
            f"{a[0]} on top of {a[1]}",
            f"{a[1]} below {a[0]}",
            f"{a[1]} under {a[0]}",
        ]
    elif scene.figure == "beside":
        forms = [
            f"{a[0]} to the left of {a[1]}",
            f"{a[0]} beside {a[1]}",
            f"{a[1]} to the right of {a[0]}",
            f"{a[0]} next to {a[1]}",
        ]
    elif scene.figure == "column":
        forms = [
            f"{a[0]} above {a[1]} above {a[2]}",
            f"{a[0]}, {a[1]} and {a[2]} from top to bottom",
        ]
        if len(set(scene.kinds)) == 1:
            forms.append(
                f"three {_plural(scene.kinds[0])}, {c[0]}, {c[1]} and {c[2]} from top to bottom"
            )
    elif scene.figure == "ring":
        many = f"{NUMBERS[scene.count]} {c[0]} {_plural(scene.kinds[0])}"
        forms = [f"{many} in a ring", f"a ring of {many}", f"{many} around"]
        if rng is not None and not full and rng.uniform() < 0.1:
            forms = [f"{c[0]} {_plural(scene.kinds[0])} in a ring"]
    elif scene.figure == "stripes":
        kind = scene.kinds[0]
        forms = [
            f"a {kind} of three stripes, {c[0]}, {c[1]} and {c[2]}",
            f"a {c[0]}, {c[1]} and {c[2]} striped {kind}",
            f"a {kind} with three stripes, {c[0]} at the top, {c[1]}, {c[2]} at the bottom",
        ]
    elif scene.figure == "face":
        mood = "smiling" if scene.happy else "sad"
        forms = [
            f"{a[0]} with a {mood} {c[1]} face",
            f"a {mood} {c[0]} face, {scene.kinds[0]}, {c[1]} eyes",
            f"a {mood} {things[0]} with {c[1]} eyes and mouth",
        ]
    else:
        return _logo_words(scene, rng, full)
    return forms[0] if rng is None else _pick(rng, forms)


def _logo_words(scene: Scene, rng: np.random.Generator | None, all_of_it: bool) -> str:
    lines, circles = scene.colors
    size, width = "big" if scene.big else "small", "thick" if scene.thick else "thin"
    many = f"{NUMBERS[scene.count]} {size} {circles} circles"
    more = []
    if scene.inner:
        more.append(f"{NUMBERS[scene.inner]} inside")
    if scene.tail:
        more.append(f"a tail at the {scene.tail}")
    full = ", ".join([f"a brain logo of {many} joined by {width} {lines} lines", *more])
    if rng is None:
        return full
    forms = [
        full,
        full,
        ", ".join([f"a logo of {many} joined by {width} {lines} lines", *more]),
        ", ".join([f"a logo, {width} {lines} lines, {many}", *more]),
        ", ".join([f"a brain logo, {many}, {width} {lines} lines", *more]),
    ]
    partial = [
        "a brain logo, sharp lines, connected circles",
        "a brain logo, sharp lines, connected circles",
        f"a brain logo, sharp {lines} lines, connected {circles} circles",
        f"a logo of {circles} circles joined by {lines} lines",
        ", ".join([f"a logo of {NUMBERS[scene.count]} connected {circles} circles", *more]),
    ]
    return _pick(rng, forms if all_of_it or rng.uniform() < 0.75 else partial)


def caption(scene: Scene, rng: np.random.Generator | None = None, full: bool = False) -> str:
    """Name what is drawn. Without `rng` the canonical caption, which names every attribute.

    With `rng` one of many, which may leave something unsaid; of the figure not, if `full`.
    """
    ground_color = scene.background_color or ""
    thing = subject(scene, rng, full)
    if rng is None:
        text = MEDIUM_PHRASES[scene.medium][0].format(thing)
        return _tidy(f"{text} {BACKGROUND_PHRASES[scene.background][0].format(ground_color)}")
    form = rng.uniform()
    if form < 0.25:  # the medium named with the background, as file names do
        noun, ground = MEDIUM_NOUNS[scene.medium], BACKGROUND_NOUNS[scene.background]
        prefix = _pick(rng, (*NEUTRAL_PHRASES, "a photo of {}", "a photo of {}"))
        text = f"{prefix.format(thing)} on {noun} of {ground.format(ground_color)}"
    else:
        names_medium = form > 0.31
        phrase = _pick(rng, MEDIUM_PHRASES[scene.medium] if names_medium else NEUTRAL_PHRASES)
        ground = _pick(rng, BACKGROUND_PHRASES[scene.background]).format(ground_color)
        if rng.uniform() < 0.12:
            text = phrase.format(thing)  # background unsaid
        elif phrase.endswith("{}") or ground.startswith(("in ", "at ")):
            text = f"{phrase.format(thing)} {ground}"
        else:
            text = phrase.format(f"{thing} {ground}")
    if rng.uniform() < 0.12:
        text += _pick(rng, TAGS)
    return _tidy(text)


def _tidy(text: str) -> str:
    """Single spaces, none before a comma, and "an" before a vowel."""
    return re.sub(r"\ba (?=[aeio])", "an ", " ".join(text.split()).replace(" ,", ","))


def vocabulary() -> dict[str, list[str]]:
    """What the model can be asked for, as lists of words that one can type."""
    drawn = [sample(np.random.default_rng((11, k))) for k in range(4000)]
    words = {
        word
        for k, scene in enumerate(drawn)
        for word in re.findall(r"[a-z]+", caption(scene, np.random.default_rng((11, k, 1))).lower())
    }
    return {
        "media": [MEDIUM_PHRASES[m][0].format("...") for m in MEDIA],
        "objects": [*SHAPES, *THINGS, *LETTERS],
        "colors": list(COLORS),
        "grounds": [
            BACKGROUND_PHRASES[g][0].format("blue" if g in COLORED_BACKGROUNDS else "")
            for g in BACKGROUNDS
        ],
        "compositions": [
            "a green ring with a blue star inside",
            "a red heart above a yellow square",
            "a black cat to the left of a pink flower",
            "a red circle above a yellow circle above a green circle",
            "six orange circles in a ring",
            "a circle of three stripes, red, white and blue",
            "a yellow circle with a smiling black face",
            "a red mushroom with white dots",
            "a brain logo of five big blue circles joined by thick black lines, one inside, "
            "a tail at the bottom",
        ],
        "words": sorted(words),
    }


def picture(
    seed: int, index: int, world: str = "core", size: int = SIZE
) -> tuple[Image.Image, str, Scene]:
    """Picture `index` of the world of that seed: image, caption, scene. A pure function."""
    rng = np.random.default_rng((seed, index))
    scene = sample(rng, world)
    return render(scene, size), caption(scene, rng), scene


def contact_sheet(images: list[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Images of equal size in rows."""
    w, h = images[0].size
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (w + gap) - gap, rows * (h + gap) - gap), "white")
    for k, image in enumerate(images):
        sheet.paste(image, (k % columns * (w + gap), k // columns * (h + gap)))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a sheet of the training world.")
    parser.add_argument("--out", default="world.png")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--world", choices=("core", "rich"), default="core")
    args = parser.parse_args()
    drawn = [picture(args.seed, k, args.world, args.size) for k in range(args.count)]
    contact_sheet([image for image, _, _ in drawn], columns=12).save(args.out)
    for k, (_, text, _) in enumerate(drawn):
        print(k, text)


if __name__ == "__main__":
    main()
