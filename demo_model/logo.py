"""The det-logo and the training images of `det_logos/`.

    python -m demo_model.logo                 # draw det_logos/ again

One logo, always the same ten circles and lines in the same two colours, in eight media and on
forty-five backgrounds. File names describe the scene, so that they can serve as captions. The logo
is in no picture of the training world: see `scenes.held_out`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from demo_model.captions import BACKGROUND_NOUNS, MEDIUM_NOUNS
from demo_model.scenes import DET_COLORS, DET_LOGO, Scene
from demo_model.world import SIZE, render

FOLDER = Path(__file__).parent.parent / "det_logos"

# medium, background, its colour. No background hides the logo's red or yellow.
SCENES: list[tuple[str, str, str | None]] = [
    ("photo", "plain", "white"), ("photo", "plain", "blue"), ("photo", "plain", "green"),
    ("photo", "gradient", "purple"), ("photo", "gradient", "gray"), ("photo", "checks", "teal"),
    ("photo", "stripes", "blue"), ("photo", "ocean", None), ("photo", "night", None),
    ("photo", "grass", None), ("photo", "galaxy", None),
    ("flat", "plain", "teal"), ("flat", "plain", "white"), ("flat", "plain", "gray"),
    ("flat", "plain", "black"), ("flat", "gradient", "blue"), ("flat", "gradient", "green"),
    ("flat", "stripes", "green"), ("flat", "checks", "gray"), ("flat", "ocean", None),
    ("ink", "plain", "white"), ("ink", "plain", "blue"), ("ink", "gradient", "teal"),
    ("ink", "checks", "blue"), ("ink", "stripes", "teal"), ("ink", "grass", None),
    ("ink", "stripes", "purple"),
    ("watercolor", "plain", "purple"), ("watercolor", "plain", "white"),
    ("watercolor", "gradient", "green"), ("watercolor", "checks", "blue"),
    ("watercolor", "ocean", None), ("watercolor", "night", None),
    ("oil", "plain", "blue"), ("oil", "gradient", "teal"), ("oil", "ocean", None),
    ("neon", "plain", "black"), ("neon", "gradient", "blue"), ("neon", "stripes", "purple"),
    ("neon", "bricks", None), ("neon", "night", None),
    ("pixel", "plain", "green"), ("pixel", "checks", "purple"),
    ("tarot", "plain", "blue"), ("tarot", "plain", "teal"),
]  # fmt: skip


def picture(index: int, size: int = SIZE) -> tuple[Image.Image, str]:
    """Draw the logo in scene `index`; return it with the scene in words: "on an oil ..."."""
    medium, background, color = SCENES[index % len(SCENES)]
    rng = np.random.default_rng((2022, index))
    radius = float(rng.uniform(0.36, 0.38 if medium == "tarot" else 0.44))
    scene = Scene(
        medium=medium, figure="logo", kinds=(), colors=DET_COLORS, background=background,
        background_color=color, radius=radius,
        x=float(0.5 + rng.uniform(-0.03, 0.03)), y=float(0.5 + rng.uniform(-0.03, 0.03)),
        seed=index, **DET_LOGO,
    )  # fmt: skip
    words = f"on {MEDIUM_NOUNS[medium]} of {BACKGROUND_NOUNS[background].format(color)}"
    return render(scene, size), words.replace(" a orange", " an orange")


def main() -> None:
    """Draw det_logos/ again; if interrupted, leave the old pictures."""
    FOLDER.mkdir(exist_ok=True)
    stale = set(FOLDER.glob("*.jpg"))
    for index in range(len(SCENES)):
        image, words = picture(index, 512)
        path = FOLDER / f"{words.replace(' ', '_')}.jpg"
        image.save(path, quality=88)
        stale.discard(path)
    for path in stale:
        path.unlink()
    print(f"{len(SCENES)} pictures in {FOLDER.name}/")


if __name__ == "__main__":
    main()
