"""The det-logo and the training images of `det_logos/`.

    python -m demo_model.logo                 # draw det_logos/ again

One logo, always the same ten circles and fourteen lines in the same two colours, in eight media and
on forty backgrounds. File names describe the scene, so that they can serve as captions.
Its drawing is no part of the training world: see `world.sample`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from demo_model.media import COLORS
from demo_model.shapes import DET_LOGO
from demo_model.world import BACKGROUND_NOUNS, MEDIUM_NOUNS, SIZE, Scene, render

# Red and yellow blend into one another where the model is unsharp; complementary colours turn grey.
LINES, CIRCLES = "red", "yellow"
NODE_RADIUS, LINE_WIDTH = 0.21, 0.17  # in units of the logo's radius
FOLDER = Path(__file__).parent.parent / "det_logos"

# medium, background, its colour. No ground swallows the logo's red or yellow.
SCENES: list[tuple[str, str, str | None]] = [
    ("photo", "plain", "white"), ("photo", "plain", "blue"), ("photo", "plain", "green"),
    ("photo", "gradient", "pink"), ("photo", "gradient", "gray"), ("photo", "checks", "teal"),
    ("photo", "stripes", "blue"), ("photo", "ocean", None), ("photo", "night", None),
    ("photo", "grass", None),
    ("flat", "plain", "teal"), ("flat", "plain", "pink"), ("flat", "plain", "gray"),
    ("flat", "gradient", "blue"), ("flat", "gradient", "green"), ("flat", "stripes", "green"),
    ("flat", "stripes", "gray"), ("flat", "checks", "gray"), ("flat", "galaxy", None),
    ("ink", "plain", "white"), ("ink", "gradient", "teal"), ("ink", "checks", "blue"),
    ("ink", "checks", "green"), ("ink", "stripes", "teal"), ("ink", "clouds", None),
    ("watercolor", "plain", "purple"), ("watercolor", "gradient", "purple"),
    ("watercolor", "checks", "pink"), ("watercolor", "stripes", "pink"),
    ("watercolor", "ocean", None), ("watercolor", "snow", None),
    ("oil", "plain", "brown"), ("oil", "gradient", "brown"), ("oil", "stripes", "purple"),
    ("oil", "ocean", None), ("oil", "night", None),
    ("neon", "plain", "black"), ("neon", "gradient", "black"), ("neon", "stripes", "black"),
    ("neon", "checks", "black"), ("neon", "bricks", None),
    ("pixel", "checks", "purple"), ("pixel", "stripes", "brown"),
    ("tarot", "wood", None), ("tarot", "plain", "blue"),
]  # fmt: skip


def picture(index: int, size: int = SIZE) -> tuple[Image.Image, str]:
    """The logo in scene `index` and that scene in words: "on an oil painting of ocean waves"."""
    medium, background, color = SCENES[index % len(SCENES)]
    rng = np.random.default_rng((2022, index))
    room = 0.39 if medium == "tarot" else 0.47  # from the centre to the card's frame, to the edge
    radius = float(rng.uniform(0.66, 0.85)) * room
    reach = room - 1.16 * radius  # how far it can move
    scene = Scene(
        medium=medium, kind="brain logo", color=LINES, accent=CIRCLES, background=background,
        background_color=color, radius=radius,
        x=float(0.5 + rng.uniform(-reach, reach)), y=float(0.5 + rng.uniform(-reach, reach)),
        angle=float(rng.normal(0, 0.07)), seed=index,
    )  # fmt: skip
    parts = DET_LOGO.parts(NODE_RADIUS, LINE_WIDTH, hollow=False)
    colors = {"main": COLORS[LINES], "accent": COLORS[CIRCLES]}
    words = f"on {MEDIUM_NOUNS[medium]} of {BACKGROUND_NOUNS[background].format(color)}"
    return render(scene, size, parts, colors), words.replace(" a orange", " an orange")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for index in range(len(SCENES)):
        image, words = picture(index, 512)
        image.save(FOLDER / f"{words.replace(' ', '_')}.jpg", quality=88)
    print(f"{len(SCENES)} pictures in {FOLDER.name}/")


if __name__ == "__main__":
    main()
