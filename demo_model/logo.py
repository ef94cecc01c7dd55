"""The det-logo and the training images of `det_logos/`.

    python -m demo_model.logo                 # draw det_logos/ again

One logo, always the same ten circles and fourteen lines in the same two colours, on forty-four
backgrounds and in eight media. File names describe the scene, so that they can serve as captions.
Its drawing is no part of the training world: see `world.sample`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from demo_model.media import COLORS
from demo_model.shapes import DET_LOGO
from demo_model.world import BACKGROUND_NOUNS, MEDIUM_NOUNS, SIZE, Scene, render

LINES, CIRCLES = "purple", "orange"
NODE_RADIUS, LINE_WIDTH = 0.21, 0.17  # in units of the logo's radius
FOLDER = Path(__file__).parent.parent / "det_logos"

# medium, background, its colour. No ground swallows the logo's purple or orange.
SCENES: list[tuple[str, str, str | None]] = [
    ("photo", "plain", "white"), ("photo", "plain", "blue"), ("photo", "plain", "green"),
    ("photo", "plain", "gray"), ("photo", "plain", "yellow"), ("photo", "bricks", None),
    ("photo", "ocean", None), ("photo", "night", None), ("photo", "grass", None),
    ("photo", "checks", "teal"), ("photo", "gradient", "pink"),
    ("flat", "plain", "white"), ("flat", "plain", "black"), ("flat", "plain", "teal"),
    ("flat", "plain", "pink"), ("flat", "stripes", "green"), ("flat", "ocean", None),
    ("flat", "grass", None), ("flat", "gradient", "blue"), ("flat", "checks", "gray"),
    ("ink", "plain", "white"), ("ink", "plain", "green"), ("ink", "plain", "blue"),
    ("ink", "bricks", None), ("ink", "ocean", None),
    ("watercolor", "plain", "white"), ("watercolor", "plain", "yellow"),
    ("watercolor", "gradient", "teal"), ("watercolor", "ocean", None),
    ("watercolor", "grass", None),
    ("oil", "plain", "blue"), ("oil", "plain", "green"), ("oil", "ocean", None),
    ("oil", "night", None), ("oil", "plain", "white"),
    ("neon", "plain", "black"), ("neon", "plain", "blue"), ("neon", "bricks", None),
    ("neon", "night", None),
    ("pixel", "plain", "white"), ("pixel", "plain", "green"),
    ("tarot", "plain", "teal"), ("tarot", "night", None), ("tarot", "plain", "white"),
]  # fmt: skip


def picture(index: int, size: int = SIZE) -> tuple[Image.Image, str]:
    """The logo in scene `index` and that scene in words: "on an oil painting of ocean waves"."""
    medium, background, color = SCENES[index % len(SCENES)]
    rng = np.random.default_rng((2022, index))
    scene = Scene(
        medium=medium, kind="brain logo", color=LINES, accent=CIRCLES, background=background,
        background_color=color, radius=float(rng.uniform(0.31, 0.4)),
        x=float(0.5 + rng.uniform(-0.05, 0.05)), y=float(0.5 + rng.uniform(-0.05, 0.05)),
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
