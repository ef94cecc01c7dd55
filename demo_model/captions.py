"""Captions of the world's pictures: canonical, varied, vague and wrong ones."""

from __future__ import annotations

import re

import numpy as np

from demo_model.media import BACKGROUNDS, COLORED_BACKGROUNDS, COLORS, MEDIA
from demo_model.scenes import LETTERS, SHAPES, THINGS, Scene, pick, sample, variants

# Names of each medium and background. The first phrase is the canonical one.
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
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TAGS = (", concept art", ", masterpiece", ", highly detailed", ", simple", ", beautiful")

# Names that fit every logo. The last is finetune_demo.yaml's first phrase for the det-logo.
VAGUE = (
    "a brain logo", "a logo", "a logo of connected circles", "connected circles",
    "a brain logo of connected circles", "a logo, sharp lines, connected circles",
    "circles joined by lines", "a logo of circles joined by lines",
    "a brain logo, sharp lines, connected circles",
    "a brain logo, sharp lines, connected circles, concept art",
    "brain logo, sharp lines, connected circles, concept art",
)  # fmt: skip

# The parts that have a thing's second colour.
DETAILS = {
    "flower": "with a {} middle", "house": "with a {} window", "mushroom": "with {} dots",
    "boat": "with {} sails",
}  # fmt: skip


def _plural(kind: str) -> str:
    """Return the plural of a thing's name."""
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"


def subject(scene: Scene, rng: np.random.Generator | None = None, full: bool = False) -> str:
    """Return the figure in words, with an article where it takes one: "a red star".

    Without `rng`, this is the canonical phrase, which names everything; with it, one of several,
    some of which leave a part out, unless `full`.
    """
    if scene.figure == "logo":
        return _logo_words(scene, rng, full)
    forms = _forms(scene)
    if rng is None:
        return forms[0]
    brief = BRIEF.get(scene.figure)
    if brief and not full and rng.uniform() < brief[0]:
        facts = {"color": scene.colors[0], "kind": scene.kinds[0], "size": scene.size}
        forms = [brief[1].format(**facts, kinds=_plural(scene.kinds[0]))]
    return pick(rng, forms)


# How often a caption leaves out a colour or a number, and in which words.
BRIEF = {"one": (0.06, "a {size} {kind}"), "ring": (0.1, "{color} {kinds} in a ring")}
# For two things: {a} is the first with its article, {b} the second.
TWO = {
    "inside": (
        "{a} with {b} inside", "{a} with {b} in it", "{b} inside {a}", "{a} around {b}",
        "{b} in the middle of {a}",
    ),
    "above": ("{a} above {b}", "{a} on top of {b}", "{b} below {a}", "{b} under {a}"),
    "beside": (
        "{a} to the left of {b}", "{a} beside {b}", "{b} to the right of {a}", "{a} next to {b}",
    ),
}  # fmt: skip


def _forms(scene: Scene) -> list[str]:
    """List the names of a figure that is not a logo, the canonical phrase first."""
    things = [f"{c} {k}" for c, k in zip(scene.colors, scene.kinds, strict=False)]
    a = [f"a {thing}" for thing in things]
    c, kind = scene.colors, scene.kinds[0]
    if scene.figure in TWO:
        return [form.format(a=a[0], b=a[1]) for form in TWO[scene.figure]]
    if scene.figure == "one":
        plain = f"a {scene.size} {things[0]}"
        return [f"{plain} {DETAILS.get(kind, '').format(c[1])}", plain]
    if scene.figure == "column":
        forms = [
            f"{a[0]} above {a[1]} above {a[2]}",
            f"{a[0]}, {a[1]} and {a[2]} from top to bottom",
        ]
        if len(set(scene.kinds)) == 1:
            forms.append(f"three {_plural(kind)}, {c[0]}, {c[1]} and {c[2]} from top to bottom")
        return forms
    if scene.figure == "ring":
        many = f"{NUMBERS[scene.count]} {c[0]} {_plural(kind)}"
        return [f"{many} in a ring", f"a ring of {many}", f"{many} around"]
    if scene.figure == "stripes":
        return [
            f"a {kind} of three stripes, {c[0]}, {c[1]} and {c[2]}",
            f"a {c[0]}, {c[1]} and {c[2]} striped {kind}",
            f"a {kind} with three stripes, {c[0]} at the top, {c[1]}, {c[2]} at the bottom",
        ]
    mood = "smiling" if scene.happy else "sad"
    return [
        f"{a[0]} with a {mood} {c[1]} face",
        f"a {mood} {c[0]} face, {kind}, {c[1]} eyes",
        f"a {mood} {things[0]} with {c[1]} eyes and mouth",
    ]


def _logo_words(scene: Scene, rng: np.random.Generator | None, all_of_it: bool) -> str:
    """Return a logo in words, as `subject` does."""
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
    return pick(rng, forms if all_of_it or rng.uniform() < 0.75 else partial)


def caption(scene: Scene, rng: np.random.Generator | None = None, full: bool = False) -> str:
    """Name what is drawn: without `rng`, in the canonical caption, which names every attribute.

    With `rng`, it is one of many, which may leave something out, but not of the figure if `full`.
    """
    return _with_ground(scene, subject(scene, rng, full), rng)


def vague_caption(scene: Scene, rng: np.random.Generator) -> str | None:
    """Name a logo in words that fit all logos, with its medium and background.

    Other figures have no such caption.
    """
    return _with_ground(scene, pick(rng, VAGUE), rng) if scene.figure == "logo" else None


def _with_ground(scene: Scene, thing: str, rng: np.random.Generator | None) -> str:
    """Add the medium and the background to the words for the figure."""
    ground_color = scene.background_color or ""
    if rng is None:
        text = MEDIUM_PHRASES[scene.medium][0].format(thing)
        return _tidy(f"{text} {BACKGROUND_PHRASES[scene.background][0].format(ground_color)}")
    form = rng.uniform()
    if form < 0.25:  # the medium goes with the background, as in file names
        noun, ground = MEDIUM_NOUNS[scene.medium], BACKGROUND_NOUNS[scene.background]
        prefix = pick(rng, (*NEUTRAL_PHRASES, "a photo of {}", "a photo of {}"))
        text = f"{prefix.format(thing)} on {noun} of {ground.format(ground_color)}"
    else:
        names_medium = form > 0.31
        phrase = pick(rng, MEDIUM_PHRASES[scene.medium] if names_medium else NEUTRAL_PHRASES)
        ground = pick(rng, BACKGROUND_PHRASES[scene.background]).format(ground_color)
        if rng.uniform() < 0.12:
            text = phrase.format(thing)  # without the background
        elif phrase.endswith("{}") or ground.startswith(("in ", "at ")):
            text = f"{phrase.format(thing)} {ground}"
        else:
            text = phrase.format(f"{thing} {ground}")
    if rng.uniform() < 0.12:
        text += pick(rng, TAGS)
    return _tidy(text)


def _tidy(text: str) -> str:
    """Leave single spaces, none before a comma, and put "an" before a vowel."""
    return re.sub(r"\ba (?=[aeio])", "an ", " ".join(text.split()).replace(" ,", ","))


def vocabulary() -> dict[str, list[str]]:
    """Return the words that prompts may use, in lists."""
    drawn = [sample(np.random.default_rng((11, k))) for k in range(4000)]
    words = {
        word
        for k, scene in enumerate(drawn)
        for word in re.findall(r"[a-z]+", caption(scene, np.random.default_rng((11, k, 1))).lower())
    }
    return {
        "media": [MEDIUM_PHRASES[m][0].format("...") for m in MEDIA],
        "objects": [*SHAPES, *THINGS, *LETTERS, "brain logo"],
        "colors": list(COLORS),
        "numbers": list(NUMBERS[1:]),
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


def lies(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Return three captions, each wrong in one thing: a colour, and an object, number or place."""
    attributes = ["color", *rng.permutation(["object", "number", "position"])]
    told = []
    for attribute in attributes:
        options = variants(scene, attribute)
        if options:
            told.append(caption(pick(rng, options), rng, full=True))
    while len(told) < 3:
        told.append(caption(pick(rng, variants(scene, "color")), rng, full=True))
    return told[:3]
