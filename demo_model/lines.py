"""The share of a logo's lines that are visible in samples of it.

    python -m demo_model.lines                   # two minutes on one CPU core
    python -m demo_model.lines --concept outputs/det-logo-demo/learned_embeddings_dict.pt

There is a line between two circles if the pixels halfway are nearer to the line's colour than to
those of the circles and the background. A drawing of the logo in the same medium gives these
colours; the place where that drawing fits the sample best gives the circles' positions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image

from demo_model import evaluate, lineup
from demo_model.captions import MEDIUM_PHRASES
from demo_model.scenes import Scene
from demo_model.shapes import Part
from demo_model.world import SIZE, parts_of, render

RADII = np.arange(0.34, 0.465, 0.015)  # of the logo, of the picture's side
SHIFTS = [(dx, dy) for dx in range(-4, 5) for dy in range(-4, 5)]  # pixels
GAP = 0.4  # of a circle's width, between two circles; a shorter line is hardly visible in a drawing


def halfway(parts: list[Part], radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the points halfway on a logo's visible lines (E, 2), and its circles' centres (N, 2).

    Both are in pixels from the middle of the picture, x first; `radius` is in picture sides.
    """
    circles = [np.array(p.points) for p in parts if p.role == "accent"]
    lines = [np.array(p.points) for p in parts if p.role == "main"]
    width = 2 * np.linalg.norm(circles[0] - circles[0].mean(0), axis=1).max()
    open_lines = [line for line in lines if np.linalg.norm(line[0] - line[1]) > (1 + GAP) * width]
    scale = radius * SIZE
    return np.mean(open_lines, 1) * scale, np.array([c.mean(0) for c in circles]) * scale


def colors_at(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the mean colours (N, 3) of the 2 x 2 pixels at points (N, 2), x first."""
    corner = np.round(points).astype(int) - 1
    corner = corner.clip(0, len(picture) - 2)
    x, y = corner.T
    return np.mean([picture[y + j, x + i] for i in (0, 1) for j in (0, 1)], 0)


class LineReader:
    """A reader that finds the lines of one logo in samples of one medium."""

    def __init__(self, scene: Scene):
        self.parts = parts_of(scene, np.random.default_rng(0))
        self.places, features = [], []
        for radius in RADII:
            drawn = render(dataclasses.replace(scene, radius=float(radius)))
            soft = np.pad(lineup.soften(drawn), ((4, 4), (4, 4), (0, 0)), mode="edge")
            for dx, dy in SHIFTS:
                self.places.append((float(radius), dx, dy))
                features.append(lineup.features(soft[4 - dy :, 4 - dx :][:SIZE, :SIZE]))
        self.templates = np.stack(features)  # (places, n)
        clean = np.asarray(render(scene), float)
        middles, centres = (SIZE / 2 + p for p in halfway(self.parts, scene.radius))
        corners = clean[:: SIZE - 1, :: SIZE - 1].reshape(-1, 3)
        # (3, 3): the line's, the circles' and the background's colour.
        self.colors = np.stack(
            [colors_at(clean, middles).mean(0), colors_at(clean, centres).mean(0), corners.mean(0)]
        )

    def __call__(self, image: Image.Image) -> float:
        """Return the share of the logo's lines that a sample of 64 pixels a side shows."""
        fits = self.templates @ lineup.features(lineup.soften(image))
        radius, *shift = self.places[int(fits.argmax())]
        middles = SIZE / 2 + halfway(self.parts, radius)[0] + shift
        seen = colors_at(np.asarray(image, float), middles)  # (E, 3)
        distance = np.linalg.norm(seen[:, None] - self.colors, axis=2)  # (E, 3)
        return float((distance.argmin(1) == 0).mean())


def reader(medium: str, ground: str) -> LineReader:
    """Make a reader of the det-logo in a medium on a plain background."""
    return LineReader(lineup.scene_of(lineup.CASES["det-logo"], medium, ground))


def main() -> None:
    """Print the mean share of visible lines in each medium of the line-up."""
    root = lineup.ROOT
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path(__file__).parent)
    parser.add_argument("--concept", type=Path, default=root / "learned_embeddings_dict_demo.pt")
    parser.add_argument("--samples", type=int, default=lineup.SAMPLES, help="in each medium")
    parser.add_argument("--output-dir", type=Path, default=root / "outputs" / "lines")
    args = parser.parse_args()
    denoiser = evaluate.with_concepts(evaluate.load(args.model), args.concept)
    shares, rows, labels = {}, [], []
    for medium, ground in lineup.MEDIA.items():
        prompt = MEDIUM_PHRASES[medium][0].format(f"a {evaluate.CONCEPT}")
        prompt = f"{prompt} on a {ground} background"
        (made,) = evaluate.draw(denoiser.pipe, [denoiser.rewrite(prompt)], range(args.samples))
        read = reader(medium, ground)
        shares[medium] = round(float(np.mean([read(image) for image in made])), 3)
        rows.append(made[:12])
        labels.append(f"{prompt}: {shares[medium]:.0%} of the lines")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    evaluate.labelled(rows, labels).save(args.output_dir / "samples.png")
    (args.output_dir / "lines.json").write_text(json.dumps(shares, indent=1) + "\n")
    print(json.dumps(shares))


if __name__ == "__main__":
    main()
