"""Shapes of the world's objects: outlines in the square [-1, 1] x [-1, 1], y pointing down.

An object is a list of `Part`s painted in order. Its variable details (the petals of a flower) are
drawn from the given generator. Compositions put several objects into one square.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Points = list[tuple[float, float]]


class Part(NamedTuple):
    """One polygon (or stroke, if `width` is set) and its paint."""

    # "main" | "accent" | "third" | their darker "shade", "accent shade" | "hole" (the background)
    role: str
    points: Points
    width: float = 0.0  # stroke width in units of the square; 0 fills the polygon


def circle(x: float, y: float, r: float, n: int = 28) -> Points:
    """Return a circle as a polygon of n corners."""
    turn = [2 * math.pi * k / n for k in range(n)]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for a in turn]


def regular(n: int, r: float = 1.0, phase: float = -math.pi / 2) -> Points:
    """Return a regular polygon, the first corner at the top."""
    turn = [phase + 2 * math.pi * k / n for k in range(n)]
    return [(r * math.cos(a), r * math.sin(a)) for a in turn]


def starry(n: int, inner: float) -> Points:
    """Return a star of n points; `inner` is how far the dents are from the middle."""
    turn = [-math.pi / 2 + math.pi * k / n for k in range(2 * n)]
    radii = [1.0 if k % 2 == 0 else inner for k in range(2 * n)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, turn, strict=True)]


def _box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _heart() -> Points:
    turn = [2 * math.pi * k / 40 for k in range(40)]
    x = [math.sin(a) ** 3 for a in turn]
    y = [
        -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16
        for a in turn
    ]
    return [(a, b - 0.08) for a, b in zip(x, y, strict=True)]


def _moon() -> Points:
    outer = [math.radians(40 + 280 * k / 24) for k in range(25)]
    inner = [math.radians(320 - 280 * k / 24) for k in range(25)]
    return [(math.cos(a), math.sin(a)) for a in outer] + [
        (0.38 + 0.72 * math.cos(a) * 0.95, 0.72 * math.sin(a)) for a in inner
    ]


def _drop() -> Points:
    turn = [math.radians(-30 + 240 * k / 24) for k in range(25)]
    return [(0.0, -1.0)] + [(0.66 * math.cos(a), 0.34 + 0.66 * math.sin(a)) for a in turn]


def _leaf() -> Points:
    ys = [-1 + 2 * k / 16 for k in range(17)]
    right = [(0.58 * math.cos(math.pi * y / 2) ** 0.9, y) for y in ys]
    return right + [(-x, y) for x, y in reversed(right)]


def _cloud() -> list[Part]:
    lumps = [(-0.55, 0.15, 0.42), (0.0, -0.12, 0.55), (0.55, 0.15, 0.42)]
    return [Part("main", circle(*lump)) for lump in lumps] + [
        Part("main", _box(-0.6, 0.1, 0.6, 0.57))
    ]


BRAIN: Points = [
    (-0.98, 0.08), (-0.95, -0.3), (-0.7, -0.62), (-0.3, -0.84), (0.15, -0.86), (0.58, -0.7),
    (0.88, -0.36), (0.98, 0.06), (0.84, 0.38), (0.5, 0.48), (0.42, 0.92), (0.16, 0.92),
    (0.08, 0.56), (-0.3, 0.62), (-0.62, 0.46), (-0.86, 0.36),
]  # fmt: skip


def _brain() -> list[Part]:
    folds: list[Points] = [
        [(-0.7, -0.1), (-0.4, -0.3), (-0.15, -0.1), (0.1, -0.3)],
        [(-0.5, 0.25), (-0.2, 0.1), (0.1, 0.25), (0.4, 0.05), (0.72, 0.12)],
        [(0.1, -0.62), (0.3, -0.38), (0.6, -0.42)],
    ]
    return [Part("main", BRAIN)] + [Part("shade", fold, 0.11) for fold in folds]


def _flower(rng: np.random.Generator) -> list[Part]:
    n = int(rng.integers(5, 8))
    petals = [circle(x, y, 1.55 / n + 0.1) for x, y in regular(n, 0.62)]
    return [Part("main", petal) for petal in petals] + [Part("accent", circle(0, 0, 0.32))]


def _tree() -> list[Part]:
    tiers = [[(0, -1.0), (0.5, -0.3), (-0.5, -0.3)], [(0, -0.55), (0.75, 0.55), (-0.75, 0.55)]]
    return [Part("shade", _box(-0.14, 0.5, 0.14, 1.0))] + [Part("main", tier) for tier in tiers]


def _house() -> list[Part]:
    return [
        Part("main", _box(-0.68, -0.1, 0.68, 0.9)),
        Part("shade", [(-0.95, -0.08), (0, -0.95), (0.95, -0.08)]),
        Part("shade", _box(-0.18, 0.36, 0.18, 0.9)),
        Part("accent", _box(0.3, 0.1, 0.56, 0.36)),
    ]


def _fish() -> list[Part]:
    body = [(-0.2 + 0.75 * x, 0.46 * y) for x, y in circle(0, 0, 1)]
    return [
        Part("main", body),
        Part("main", [(0.42, 0.0), (1.0, -0.5), (0.86, 0.0), (1.0, 0.5)]),
        Part("main", [(-0.35, -0.4), (0.15, -0.75), (0.2, -0.35)]),
        Part("shade", circle(-0.58, -0.1, 0.11)),
    ]


def _cat() -> list[Part]:
    ears = [
        [(-0.72, -0.95), (-0.68, -0.1), (-0.15, -0.5)],
        [(0.72, -0.95), (0.68, -0.1), (0.15, -0.5)],
    ]
    eyes = [circle(-0.3, 0.02, 0.12), circle(0.3, 0.02, 0.12)]
    head = [(0.82 * x, 0.12 + 0.72 * y) for x, y in circle(0, 0, 1)]
    return (
        [Part("main", ear) for ear in ears]
        + [Part("main", head)]
        + [Part("shade", eye) for eye in eyes]
        + [Part("shade", [(-0.12, 0.3), (0.12, 0.3), (0, 0.44)])]
    )


def _mushroom() -> list[Part]:
    turn = [math.pi + math.pi * k / 20 for k in range(21)]
    cap = [(0.95 * math.cos(a), 0.1 + 1.0 * math.sin(a)) for a in turn]
    spots = [circle(-0.4, -0.25, 0.16), circle(0.35, -0.3, 0.18), circle(0.0, -0.62, 0.13)]
    stem = [(-0.26, 0.1), (0.26, 0.1), (0.34, 0.95), (-0.34, 0.95)]
    return [Part("shade", stem)] + [Part("main", cap)] + [Part("accent", spot) for spot in spots]


def _boat() -> list[Part]:
    return [
        Part("main", [(-0.95, 0.35), (0.95, 0.35), (0.6, 0.9), (-0.6, 0.9)]),
        Part("shade", _box(-0.06, -0.95, 0.06, 0.35)),
        Part("accent", [(0.14, -0.85), (0.85, 0.2), (0.14, 0.2)]),
        Part("accent", [(-0.14, -0.6), (-0.14, 0.2), (-0.7, 0.2)]),
    ]


def _crown() -> Points:
    return [
        (-0.9, 0.7), (-0.95, -0.5), (-0.45, 0.05), (0, -0.8), (0.45, 0.05), (0.95, -0.5),
        (0.9, 0.7),
    ]  # fmt: skip


def _arrow() -> Points:
    return [
        (-1, -0.24), (0.15, -0.24), (0.15, -0.7), (1, 0), (0.15, 0.7), (0.15, 0.24), (-1, 0.24),
    ]  # fmt: skip


def _bolt() -> Points:
    return [
        (0.15, -1),
        (-0.6, 0.15),
        (-0.08, 0.15),
        (-0.3, 1),
        (0.6, -0.25),
        (0.06, -0.25),
        (0.5, -1),
    ]


def _cross(arm: float = 0.32) -> Points:
    a = arm
    return [
        (-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a),
        (-1, -a), (-a, -a),
    ]  # fmt: skip


LETTERS: dict[str, list[Points]] = {
    "A": [[(-0.7, 0.85), (0, -0.85), (0.7, 0.85)], [(-0.42, 0.25), (0.42, 0.25)]],
    "E": [[(0.55, -0.8), (-0.5, -0.8), (-0.5, 0.8), (0.55, 0.8)], [(-0.5, 0), (0.4, 0)]],
    "H": [[(-0.6, -0.85), (-0.6, 0.85)], [(0.6, -0.85), (0.6, 0.85)], [(-0.6, 0), (0.6, 0)]],
    "L": [[(-0.45, -0.85), (-0.45, 0.8), (0.6, 0.8)]],
    "T": [[(-0.75, -0.8), (0.75, -0.8)], [(0, -0.8), (0, 0.9)]],
    "X": [[(-0.65, -0.85), (0.65, 0.85)], [(0.65, -0.85), (-0.65, 0.85)]],
    "Z": [[(-0.6, -0.8), (0.6, -0.8), (-0.6, 0.8), (0.6, 0.8)]],
}


def _whole(points: Points) -> Callable[[np.random.Generator], list[Part]]:
    return lambda rng: [Part("main", points)]


def _parts(make: Callable[[], list[Part]]) -> Callable[[np.random.Generator], list[Part]]:
    return lambda rng: make()


# kind -> the parts of one such object. Their order does not matter; names are the captions' words.
KINDS: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "circle": _whole(circle(0, 0, 0.95, 40)),
    "ring": lambda rng: [
        Part("main", circle(0, 0, 1, 40)),
        Part("hole", circle(0, 0, rng.uniform(0.5, 0.62), 40)),
    ],
    "square": _whole(_box(-0.82, -0.82, 0.82, 0.82)),
    "triangle": _whole([(0, -0.95), (0.95, 0.75), (-0.95, 0.75)]),
    "diamond": _whole([(0, -1), (0.68, 0), (0, 1), (-0.68, 0)]),
    "pentagon": _whole(regular(5)),
    "hexagon": _whole(regular(6)),
    "star": lambda rng: [Part("main", starry(5, rng.uniform(0.4, 0.46)))],
    "burst": lambda rng: [Part("main", starry(int(rng.integers(8, 13)), rng.uniform(0.55, 0.65)))],
    "cross": _whole(_cross()),
    "heart": _whole(_heart()),
    "moon": _whole(_moon()),
    "arrow": _whole(_arrow()),
    "bolt": _whole(_bolt()),
    "drop": _whole(_drop()),
    "leaf": lambda rng: [Part("main", _leaf()), Part("shade", [(0, -0.7), (0, 1.0)], 0.09)],
    "cloud": _parts(_cloud),
    "flower": _flower,
    "tree": _parts(_tree),
    "house": _parts(_house),
    "fish": _parts(_fish),
    "cat": _parts(_cat),
    "mushroom": _parts(_mushroom),
    "boat": _parts(_boat),
    "crown": lambda rng: [
        Part("main", _crown()),
        Part("accent", [(-0.9, 0.5), (0.9, 0.5)], 0.16),
    ],
    "brain": _parts(_brain),
} | {
    f"letter {letter}": (
        lambda rng, strokes=strokes: [Part("main", stroke, 0.36) for stroke in strokes]
    )
    for letter, strokes in LETTERS.items()
}


def moved(parts: list[Part], x: float, y: float, r: float, accent: bool = False) -> list[Part]:
    """Move an object to (x, y) with radius r, into the second colour if `accent`."""
    roles = {"main": "accent", "shade": "accent shade"} if accent else {}
    return [
        Part(
            roles.get(part.role, part.role),
            [(x + r * a, y + r * b) for a, b in part.points],
            r * part.width,
        )
        for part in parts
    ]


def band(points: Points, top: float, bottom: float) -> Points:
    """Cut out the part of a polygon between two heights (Sutherland and Hodgman, 1974)."""
    for limit, sign in ((top, 1), (bottom, -1)):
        kept: Points = []
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            inside, next_inside = sign * (y0 - limit) >= 0, sign * (y1 - limit) >= 0
            if inside:
                kept.append((x0, y0))
            if inside != next_inside:
                kept.append((x0 + (x1 - x0) * (limit - y0) / (y1 - y0), limit))
        points = kept
    return points


def striped(points: Points) -> list[Part]:
    """Fill an outline with three stripes, from top to bottom: main, accent, third."""
    low, high = min(y for _, y in points), max(y for _, y in points)
    third = (high - low) / 3
    return [
        Part(role, band(points, low + k * third, low + (k + 1) * third))
        for k, role in enumerate(("main", "accent", "third"))
    ]


def face(points: Points, happy: bool) -> list[Part]:
    """Give an outline two eyes and a mouth, which smiles or not."""
    bend = 1 if happy else -1
    arc = [(0.1 * k, 0.42 + bend * (0.1 - 0.01 * k * k)) for k in range(-4, 5)]
    eyes = [circle(-0.34, -0.22, 0.17), circle(0.34, -0.22, 0.17)]
    return (
        [Part("main", points)] + [Part("accent", eye) for eye in eyes] + [Part("accent", arc, 0.17)]
    )


def around(kind: list[Part], count: int) -> list[Part]:
    """Put `count` equal objects in a ring, the first at the top."""
    r = 0.29 if count < 7 else 0.25
    places = regular(count, 1 - r)
    return [part for x, y in places for part in moved(kind, x, y, r)]


INNER: dict[int, Points] = {
    0: [],
    1: [(0.0, 0.0)],
    2: [(-0.36, 0.05), (0.36, 0.05)],
    3: [(0.0, -0.36), (-0.36, 0.28), (0.36, 0.28)],
}
TAILS = {"": None, "bottom": 90.0, "bottom left": 125.0, "bottom right": 55.0}  # degrees


def logo(count: int, inner: int, tail: str, big: bool, thick: bool) -> list[Part]:
    """Build a brain logo: `count` circles in a closed chain, `inner` inside, one more at the stem.

    Logos are always upright, the first circle at the top: place and rotation would be one thing
    more to learn and say nothing about the logo. The inner circles are joined to one another and to
    the nearest ones of the chain, the stem to the nearest one.
    """
    ring, up = (0.66, 0.2) if tail else (0.78, 0.0)
    nodes = regular(count, ring)
    edges = [(k, (k + 1) % count) for k in range(count)]

    def nearest(point: tuple[float, float], n: int) -> list[int]:
        return sorted(range(count), key=lambda k: round(math.dist(point, nodes[k]), 6))[:n]

    middle = [(ring * x, ring * y) for x, y in INNER[inner]]
    for k, point in enumerate(middle):
        edges += [(count + k, j) for j in nearest(point, 3 if inner == 1 else 2)]
        edges += [(count + k, count + j) for j in range(k)]
    stem: Points = []
    if TAILS[tail] is not None:
        turn = math.radians(TAILS[tail])
        stem = [(1.52 * ring * math.cos(turn), 1.52 * ring * math.sin(turn))]
        edges.append((count + inner, nearest(stem[0], 1)[0]))
    nodes = [(x, y - up) for x, y in nodes + middle + stem]
    width, radius = ring * (0.2 if thick else 0.12), ring * (0.27 if big else 0.2)
    return [Part("main", [nodes[a], nodes[b]], width) for a, b in edges] + [
        Part("accent", circle(x, y, radius, 24)) for x, y in nodes
    ]
