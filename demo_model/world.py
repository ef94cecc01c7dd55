"""The world the bundled model was trained on: captioned pictures, drawn procedurally.

    python -m demo_model.world --out sheet.png        # draw a sheet of it

`picture(seed, index)` is a pure function: the same arguments give the same caption and pixels (to
the last bit with the same Pillow and numpy). A `Scene` (scenes.py) describes a picture, `render`
draws it, `caption` (captions.py) names it.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from PIL import Image

from demo_model.captions import caption
from demo_model.media import COLORS, MEDIA, Canvas, background, finish
from demo_model.scenes import Scene, sample
from demo_model.shapes import KINDS, Part, around, circle, face, logo, moved, striped

SIZE = 64  # pixels a side of a training picture
SUPERSAMPLE = 3


def parts_of(scene: Scene, rng: np.random.Generator) -> list[Part]:
    """Return the parts of a scene's figure in the square [-1, 1] x [-1, 1]."""
    if scene.figure == "logo":
        return logo(scene.count, scene.inner, scene.tail, scene.big, scene.thick)
    made = [KINDS[kind](rng) for kind in scene.kinds]
    if scene.figure == "inside":
        room = {"heart": 0.42, "diamond": 0.38}.get(scene.kinds[0], 0.46)
        if scene.kinds[0] == "ring":  # a thinner one, so that a gap is visible
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


def picture(
    seed: int, index: int, world: str = "core", size: int = SIZE
) -> tuple[Image.Image, str, Scene]:
    """Draw picture `index` of the world of that seed; return image, caption and scene."""
    rng = np.random.default_rng((seed, index))
    scene = sample(rng, world)
    return render(scene, size), caption(scene, rng), scene


def contact_sheet(images: list[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Put images of equal size in rows."""
    w, h = images[0].size
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (w + gap) - gap, rows * (h + gap) - gap), "white")
    for k, image in enumerate(images):
        sheet.paste(image, (k % columns * (w + gap), k // columns * (h + gap)))
    return sheet


def main() -> None:
    """Draw a sheet."""
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
