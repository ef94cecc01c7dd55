"""The world the bundled model was trained on: captioned pictures, drawn procedurally.

    python -m demo_model.world --out sheet.png        # look at it

`picture(seed, index)` is a pure function: the same arguments give the same caption and pixels (to
the last bit with the same Pillow and numpy). A `Scene` says what is drawn, `render` draws it,
`caption` names it. The logo of `det_logos/` is in no scene.
"""

from __future__ import annotations

import argparse
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
from demo_model.shapes import (
    DET_LOGO,
    KINDS,
    LAYOUTS,
    LOGO_OUTLINES,
    Graph,
    Part,
    layout_graph,
    logo_graph,
)

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
    "pencil": (
        "a colored pencil drawing of {}", "a pencil sketch of {}", "{}, pencil sketch",
        "a pencil drawing of {}",
    ),
    "tarot": ("a tarot illustration of {}", "a tarot card of {}", "{}, tarot illustration"),
}  # fmt: skip
# As a noun: "... on an oil painting of ocean waves", the way file names describe a scene.
MEDIUM_NOUNS = {
    "photo": "a photo", "flat": "a flat illustration", "ink": "an ink doodle",
    "watercolor": "a watercolor painting", "oil": "an oil painting", "neon": "a neon picture",
    "pixel": "a pixel art picture", "pencil": "a pencil drawing", "tarot": "a tarot illustration",
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
    "dots": ("on {} polka dots", "on a {} dotted background"),
    "bricks": ("on a brick wall", "in front of a brick wall", "on bricks"),
    "wood": ("on a wooden table", "on wood", "on wooden planks"),
    "ocean": ("on ocean waves", "in the ocean", "on the sea", "over ocean waves"),
    "night": ("on a night sky", "in a starry night sky", "under the stars", "at night"),
    "galaxy": ("in a galaxy", "on a galaxy", "in space, galaxy"),
    "clouds": ("on a sky with clouds", "in the clouds", "in a cloudy blue sky"),
    "grass": ("on the grass", "on a green meadow", "in the grass"),
    "snow": ("in the snow", "on a snowy hill", "in snow"),
    "desert": ("in the desert", "on desert sand", "on sand dunes"),
}
BACKGROUND_NOUNS = {
    "plain": "a {} background", "gradient": "a {} gradient", "stripes": "{} stripes",
    "checks": "a {} checkerboard", "dots": "{} polka dots", "bricks": "a brick wall",
    "wood": "a wooden table", "ocean": "ocean waves", "night": "a night sky", "galaxy": "a galaxy",
    "clouds": "clouds", "grass": "grass", "snow": "snow", "desert": "a desert",
}  # fmt: skip
# Colours that would drown in a background.
DOMINANT = {
    "bricks": {"red", "brown", "orange"}, "wood": {"brown", "orange"}, "ocean": {"blue", "teal"},
    "night": {"black", "blue"}, "galaxy": {"purple", "blue", "black"}, "clouds": {"white", "blue"},
    "grass": {"green"}, "snow": {"white", "gray"}, "desert": {"orange", "yellow"},
}  # fmt: skip
ALIKE = [
    {"black", "blue"},
    {"brown", "black"},
    {"yellow", "white"},
    {"orange", "brown"},
    {"teal", "green"},
]
PALE_MEDIA = {"ink", "watercolor", "pencil"}  # white and its like vanish on their paper
DULL = {"black", "gray", "brown"}  # colours that do not glow

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
           "eleven", "twelve")  # fmt: skip
TAGS = (", concept art", ", masterpiece", ", highly detailed", ", simple", ", beautiful")

# Shares of scenes: graphs, plain grounds, photos and flat drawings occur more often than their
# number would say, the letters together as often as two other kinds.
GRAPH_SHARE = 0.3
WEIGHTS = {"plain": 5.0, "gradient": 1.5, "photo": 1.5, "flat": 1.5} | {
    kind: 0.3 for kind in KINDS if kind.startswith("letter")
}


@dataclass(frozen=True)
class World:
    """Which media, backgrounds, objects and graphs occur."""

    media: tuple[str, ...] = tuple(MEDIA)
    backgrounds: tuple[str, ...] = BACKGROUNDS
    kinds: tuple[str, ...] = tuple(KINDS)
    layouts: tuple[str, ...] = LAYOUTS
    outlines: tuple[str, ...] = tuple(LOGO_OUTLINES)


# "core" is what two CPU cores can teach a model in an hour or two; "rich" is everything.
WORLDS = {
    "core": World(
        media=("photo", "flat", "ink", "watercolor", "oil", "neon", "pixel", "tarot"),
        backgrounds=(
            "plain", "gradient", "stripes", "checks", "bricks", "ocean", "night", "galaxy", "grass",
        ),
        kinds=(
            "circle", "ring", "square", "triangle", "diamond", "star", "cross", "heart", "moon",
            "bolt", "drop", "flower", "tree", "house", "fish", "cat", "mushroom", "boat", "brain",
        ),
        layouts=("ring", "wheel", "spokes"),
        outlines=("brain", "heart", "star", "house", "diamond"),
    ),
    "rich": World(),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """What one picture shows."""

    medium: str  # key of MEDIA
    kind: str  # key of shapes.KINDS, or "graph", or "<outline> logo"
    color: str
    accent: str | None  # second colour: circles of a graph, heart of a flower
    background: str  # of BACKGROUNDS
    background_color: str | None
    layout: str = ""  # of a graph: one of shapes.LAYOUTS
    count: int = 0  # circles of a graph or along a logo
    inner: int = 0  # circles inside a logo
    hollow: bool = False
    size: str = ""  # "small", "large" or ""
    radius: float = 0.34  # of the picture's side
    x: float = 0.5
    y: float = 0.5
    angle: float = 0.0  # radians
    seed: int = 0  # of every detail not named above

    @property
    def is_graph(self) -> bool:
        return self.count > 0

    def graph(self) -> Graph:
        """The circles and lines of a graph or logo scene."""
        rng = np.random.default_rng((self.seed, 1))
        if self.kind == "graph":
            return layout_graph(self.layout, self.count, rng)
        return logo_graph(
            LOGO_OUTLINES[self.kind.removesuffix(" logo")], self.count, self.inner, rng
        )


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _weighted(rng: np.random.Generator, options):
    w = np.array([WEIGHTS.get(option, 1.0) for option in options])
    return options[int(rng.choice(len(options), p=w / w.sum()))]


def _clash(a: str, b: str | None) -> bool:
    return a == b or {a, b} in ALIKE


def sample(rng: np.random.Generator, world: World = WORLDS["core"]) -> Scene:
    """Draw a scene at random: every part free, except for colours that could not be told apart."""
    while True:
        scene = _sample(rng, world)
        if not scene.is_graph or scene.graph().signature() != DET_LOGO.signature():
            return scene


def _sample(rng: np.random.Generator, world: World) -> Scene:
    medium = _weighted(rng, world.media)
    ground = _weighted(rng, world.backgrounds)
    avoid = set(DOMINANT.get(ground, ()))
    if medium in PALE_MEDIA:
        avoid |= {"white"}
    if medium == "neon":
        avoid |= DULL
    if medium == "tarot":
        avoid |= {"yellow"}
    colors = [c for c in COLORS if c not in avoid]
    color = _pick(rng, colors)
    ground_color = None
    if ground in COLORED_BACKGROUNDS:
        stripes = ground not in ("plain", "gradient")
        options = [c for c in COLORS if not _clash(c, color) and not (stripes and c == "white")]
        ground_color = _pick(rng, options)
    if ground in ("stripes", "checks", "dots") and color == "white":
        color = _pick(rng, [c for c in colors if c != "white" and not _clash(c, ground_color)])
    second = [c for c in colors if not _clash(c, color) and not _clash(c, ground_color)]
    accent = _pick(rng, second)
    small = rng.uniform()
    radius, size, reach = rng.uniform(0.29, 0.4), "", 0.07
    if small < 0.1:
        radius, size, reach = rng.uniform(0.17, 0.22), "small", 0.18
    elif small < 0.2:
        radius, size, reach = rng.uniform(0.41, 0.45), "large", 0.03
    count, inner, layout, hollow = 0, 0, "", False
    if rng.uniform() < GRAPH_SHARE:
        radius, hollow = max(radius, 0.26), bool(rng.uniform() < 0.25)
        if rng.uniform() < 0.4:
            kind, layout, count = "graph", _pick(rng, world.layouts), int(rng.integers(3, 9))
            count = max(count, 5) if layout in ("wheel", "spokes") else count
        else:
            kind = "brain" if rng.uniform() < 0.4 else _pick(rng, world.outlines)
            kind, count, inner = f"{kind} logo", int(rng.integers(6, 11)), int(rng.integers(0, 3))
        accent = accent if rng.uniform() < 0.7 else color
    else:
        kind = _weighted(rng, world.kinds)
    return Scene(
        medium=medium, kind=kind, color=color, accent=accent, background=ground,
        background_color=ground_color, layout=layout, count=count, inner=inner, hollow=hollow,
        size=size, radius=float(radius), x=float(0.5 + rng.uniform(-reach, reach)),
        y=float(0.5 + rng.uniform(-reach, reach)), angle=float(rng.normal(0, 0.1)),
        seed=int(rng.integers(2**31)),
    )  # fmt: skip


def render(
    scene: Scene,
    size: int = SIZE,
    parts: list[Part] | None = None,
    colors: dict[str, tuple[int, int, int]] | None = None,
) -> Image.Image:
    """Draw the scene as an RGB image of `size` x `size` pixels.

    `parts` and `colors`, given together, take the place of the scene's own object.
    """
    rng = np.random.default_rng((scene.seed, 0))

    def tint(name: str) -> tuple[int, int, int]:
        jitter = rng.uniform(-9, 9, 3)
        return tuple(
            int(min(255, max(0, c + j))) for c, j in zip(COLORS[name], jitter, strict=True)
        )

    n = size * SUPERSAMPLE
    ground = tint(scene.background_color) if scene.background_color else None
    canvas = Canvas(background(scene.background, ground, rng, n).clip(0, 255), n / SIZE)
    if parts is None:
        parts, colors = _object(scene, tint, rng)
    canvas.draw(parts, colors, (scene.x, scene.y, scene.radius, scene.angle))
    return finish(MEDIA[scene.medium](canvas, rng), size)


def _object(scene: Scene, tint, rng) -> tuple[list[Part], dict[str, tuple[int, int, int]]]:
    main = tint(scene.color)
    colors = {
        "main": main,
        "accent": main if scene.accent == scene.color else tint(scene.accent or scene.color),
        "shade": tuple(int(c * 0.62) if sum(main) > 150 else c + 60 for c in main),
    }
    if not scene.is_graph:
        return KINDS[scene.kind](rng), colors
    crowded = 1.0 if scene.count + scene.inner <= 8 else 0.88
    radius, width = crowded * rng.uniform(0.19, 0.25), rng.uniform(0.12, 0.18)
    return scene.graph().parts(radius, width, scene.hollow), colors


def subject(scene: Scene, rng: np.random.Generator | None = None, color: bool = True) -> str:
    """The object with its adjectives, without an article: "small red star".

    Without `rng` the canonical, full form; with it one of the phrasings at random.
    """
    main = f"{scene.color} " if color else ""
    if not scene.is_graph:
        return f"{scene.size} {main}{scene.kind}".strip()
    hollow = "hollow " if scene.hollow else ""
    dots = f"{scene.accent} " if color and scene.accent != scene.color else ""
    number = NUMBERS[scene.count + scene.inner]
    if scene.kind == "graph":
        forms = (
            f"{main}graph of {number} {hollow}connected {dots}circles",
            f"{scene.layout} of {number} {hollow}{dots}circles joined by {main}lines",
            f"{main}graph, {number} {hollow}connected {dots}circles",
        )
    else:
        forms = (
            f"{main}{scene.kind}, sharp lines, {hollow}connected {dots}circles",
            f"{scene.kind} of {number} {hollow}{dots}circles joined by {main}lines",
            f"{scene.kind}, sharp {main}lines, {hollow}connected {dots}circles",
            f"{scene.kind} with {main}lines and {hollow}{dots}circles",
        )
    return f"{scene.size} {forms[0] if rng is None else _pick(rng, forms)}".strip()


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Name what is drawn. Without `rng` the canonical caption, which names every attribute."""
    ground_color = scene.background_color or ""
    if rng is None:
        art = _article(subject(scene))
        text = MEDIUM_PHRASES[scene.medium][0].format(f"{art} {subject(scene)}")
        return _tidy(f"{text} {BACKGROUND_PHRASES[scene.background][0].format(ground_color)}")
    thing = subject(scene, rng, color=rng.uniform() > 0.07)
    art = _pick(rng, (_article(thing), _article(thing), "the", ""))
    thing = f"{art} {thing}".strip()
    form = rng.uniform()
    if form < 0.2:  # the medium named with the background, as file names do
        noun, ground = MEDIUM_NOUNS[scene.medium], BACKGROUND_NOUNS[scene.background]
        prefix = _pick(rng, (*NEUTRAL_PHRASES, "a photo of {}", "a photo of {}"))
        text = f"{prefix.format(thing)} on {noun} of {ground.format(ground_color)}"
    else:
        names_medium = form > 0.27
        phrase = _pick(rng, MEDIUM_PHRASES[scene.medium] if names_medium else NEUTRAL_PHRASES)
        ground = _pick(rng, BACKGROUND_PHRASES[scene.background]).format(ground_color)
        if rng.uniform() < 0.12:
            text = phrase.format(thing)  # background unsaid
        elif phrase.endswith("{}") or ground.startswith(("in ", "at ")):
            text = f"{phrase.format(thing)} {ground}"
        else:
            text = phrase.format(f"{thing} {ground}")
    if rng.uniform() < 0.15:
        text += _pick(rng, TAGS)
    return _tidy(text)


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeio" else "a"


def _tidy(text: str) -> str:
    """Single spaces, and "an" before a vowel."""
    return re.sub(r"\ba (?=[aeio])", "an ", " ".join(text.split()))


def picture(
    seed: int, index: int, world: str = "core", size: int = SIZE
) -> tuple[Image.Image, str, Scene]:
    """Picture `index` of the world of that seed: image, caption, scene. A pure function."""
    rng = np.random.default_rng((seed, index))
    scene = sample(rng, WORLDS[world])
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
    parser.add_argument("--world", choices=WORLDS, default="core")
    args = parser.parse_args()
    drawn = [picture(args.seed, k, args.world, args.size) for k in range(args.count)]
    contact_sheet([image for image, _, _ in drawn], columns=12).save(args.out)
    for k, (_, text, _) in enumerate(drawn):
        print(k, text)


if __name__ == "__main__":
    main()
