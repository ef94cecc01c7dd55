"""What the world's objects look like: outlines in the square [-1, 1] x [-1, 1], y pointing down.

An object is a list of `Part`s painted in order. Parametric families (polygons, stars, letters,
graphs of circles joined by lines) draw their parameters from the generator they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Points = list[tuple[float, float]]


class Part(NamedTuple):
    """One polygon (or stroke, when `width` is set) and what it is painted with."""

    role: str  # "main" | "accent" | "shade" (the main colour, darker) | "hole" (the background)
    points: Points
    width: float = 0.0  # stroke width in units of the square; 0 fills the polygon


def circle(x: float, y: float, r: float, n: int = 28) -> Points:
    turn = [2 * math.pi * k / n for k in range(n)]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for a in turn]


def regular(n: int, r: float = 1.0, phase: float = -math.pi / 2) -> Points:
    turn = [phase + 2 * math.pi * k / n for k in range(n)]
    return [(r * math.cos(a), r * math.sin(a)) for a in turn]


def starry(n: int, inner: float) -> Points:
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


# kind -> the parts of one such object. Order matters nowhere; names are the captions' words.
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

# Shapes whose outline can be drawn as a logo of connected circles.
LOGO_OUTLINES: dict[str, Points] = {
    "brain": BRAIN,
    "heart": _heart(),
    "star": starry(5, 0.45),
    "house": [(-0.75, 0.85), (-0.75, -0.1), (0, -0.9), (0.75, -0.1), (0.75, 0.85)],
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "drop": _drop(),
    "leaf": _leaf(),
}


class Graph(NamedTuple):
    """Circles joined by lines: node centres in the unit square and pairs of node indices."""

    nodes: Points
    edges: list[tuple[int, int]]

    def signature(self) -> tuple[int, ...]:
        """Sorted node degrees: two graphs of different signatures are different drawings."""
        degree = [0] * len(self.nodes)
        for a, b in self.edges:
            degree[a] += 1
            degree[b] += 1
        return tuple(sorted(degree))

    def parts(self, node_radius: float, line_width: float, hollow: bool) -> list[Part]:
        lines = [Part("main", [self.nodes[a], self.nodes[b]], line_width) for a, b in self.edges]
        disks = [Part("accent", circle(x, y, node_radius, 20)) for x, y in self.nodes]
        holes = [Part("hole", circle(x, y, 0.5 * node_radius, 16)) for x, y in self.nodes]
        return lines + disks + (holes if hollow else [])


# The logo of det_logos/: a brain in profile, seven circles around, two inside, one for the stem. It
# is drawn nowhere in the training world (world.py rejects every graph with its signature).
DET_LOGO = Graph(
    nodes=[
        (-0.9, 0.12), (-0.72, -0.5), (-0.12, -0.85), (0.52, -0.66), (0.9, -0.08), (0.55, 0.42),
        (-0.42, 0.56), (-0.18, -0.14), (0.36, -0.12), (0.24, 0.95),
    ],
    edges=[
        (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 0), (0, 7), (2, 7), (7, 8), (3, 8),
        (8, 5), (7, 6), (5, 9),
    ],
)  # fmt: skip


def along(outline: Points, n: int, rng: np.random.Generator) -> Points:
    """`n` points spread evenly along a closed outline, from a random start."""
    corners = np.array(outline + outline[:1])
    lengths = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(corners, axis=0).T))])
    at = (rng.uniform() + np.arange(n)) / n * lengths[-1]
    return [
        (float(np.interp(s, lengths, corners[:, 0])), float(np.interp(s, lengths, corners[:, 1])))
        for s in at
    ]


def logo_graph(outline: Points, n: int, inner: int, rng: np.random.Generator) -> Graph:
    """`n` circles in a closed chain along the outline, `inner` more joined to their nearest."""
    nodes = along(outline, n, rng)
    edges = [(k, (k + 1) % n) for k in range(n)]
    centre = np.mean(nodes, axis=0)
    for k in range(inner):
        angle = rng.uniform(0, 2 * math.pi) if inner == 1 else math.pi * 2 * k / inner
        reach = rng.uniform(0.0, 0.15) if inner == 1 else rng.uniform(0.25, 0.35)
        nodes.append(
            (float(centre[0] + reach * math.cos(angle)), float(centre[1] + reach * math.sin(angle)))
        )
        distance = np.hypot(*(np.array(nodes[:n]) - nodes[-1]).T)
        edges += [(n + k, int(j)) for j in np.argsort(distance)[: int(rng.integers(2, 4))]]
    if inner == 2:
        edges.append((n, n + 1))
    return Graph(nodes, edges)


LAYOUTS = ("ring", "wheel", "spokes", "zigzag", "triangle mesh")


def layout_graph(layout: str, n: int, rng: np.random.Generator) -> Graph:
    """A graph of `n` circles in one of LAYOUTS."""
    phase = rng.uniform(0, 2 * math.pi)
    if layout == "ring":
        return Graph(regular(n, 0.85, phase), [(k, (k + 1) % n) for k in range(n)])
    if layout in ("wheel", "spokes"):
        rim = n - 1
        edges = [(k, rim) for k in range(rim)]
        if layout == "wheel":
            edges += [(k, (k + 1) % rim) for k in range(rim)]
        return Graph([*regular(rim, 0.88, phase), (0.0, 0.0)], edges)
    xs = np.linspace(-0.9, 0.9, n)
    nodes = [(float(x), float((-1) ** k * rng.uniform(0.3, 0.6))) for k, x in enumerate(xs)]
    edges = [(k, k + 1) for k in range(n - 1)]
    if layout == "triangle mesh":
        edges += [(k, k + 2) for k in range(n - 2)]
    return Graph(nodes, edges)
