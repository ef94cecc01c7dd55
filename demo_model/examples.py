"""The pictures of `examples/`, like those a user might bring: eight of each, without captions.

    python -m demo_model.examples             # draw examples/ again

`ring_and_dot` is one plain thing of two parts, which is in no picture of the training world (see
`scenes.HELD_OUT`). `glow_style` shows eight things in one style; its file names name the things, so
that the concept learns only the style.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from demo_model import lineup
from demo_model.scenes import Scene
from demo_model.world import render

FOLDER = Path(__file__).parent.parent / "examples"
STYLED = ("star", "fish", "heart", "tree", "moon", "boat", "flower", "mushroom")


def ring_and_dot(index: int, size: int = 256) -> Image.Image:
    """Draw picture `index` of a green ring with a blue circle in it."""
    return lineup.picture(lineup.CASES["my-dot"], index, size)[0]


def glow_style(index: int, size: int = 256) -> Image.Image:
    """Draw picture `index` of things in pink and teal light in a galaxy."""
    colors = ("pink", "teal") if index % 2 else ("teal", "pink")
    return render(
        Scene(
            "neon", "one", (STYLED[index],), colors, "galaxy", None, radius=0.38, seed=index
        ),
        size,
    )  # fmt: skip


def names(folder: str) -> list[str]:
    """List file names without suffix, in the order of the pictures."""
    if folder == "glow_style":
        return [f"of_a_{thing}" for thing in STYLED]
    return [f"picture_{index + 1}" for index in range(8)]


def main() -> None:
    """Draw examples/ again."""
    for draw in (ring_and_dot, glow_style):
        folder = FOLDER / draw.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(names(folder.name)):
            draw(index).save(folder / f"{name}.png", optimize=True)
        print(f"8 pictures in examples/{folder.name}/")


if __name__ == "__main__":
    main()
