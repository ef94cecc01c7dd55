"""Painting of the world's scenes: backgrounds and media (photo, flat, ink, watercolor, oil, ...).

Everything works on a square canvas of any size. Lengths are in `px`, the length of one pixel of a
64-pixel picture, so that a picture looks the same when it is drawn larger. Arrays are float32
(H, W, 3) in [0, 255]; masks are (H, W, 1) in [0, 1].
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from demo_model.shapes import Part

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (218, 38, 38),
    "orange": (246, 140, 28),
    "yellow": (252, 218, 52),
    "green": (48, 160, 68),
    "teal": (22, 164, 164),
    "blue": (42, 88, 222),
    "purple": (128, 58, 190),
    "pink": (246, 130, 182),
    "brown": (124, 74, 44),
    "black": (24, 24, 28),
    "white": (246, 246, 246),
    "gray": (140, 142, 148),
}


class Canvas:
    """A supersampled square: the background, the object's colours, and its parts' places."""

    def __init__(self, background: np.ndarray, px: float):
        self.px = px
        self.size = background.shape[0]
        self.background = background
        self.paint = Image.fromarray(background.astype(np.uint8))
        self.labels = Image.new("L", (self.size, self.size), 0)  # 0: none, k: the k-th colour
        self.colors: list[tuple[int, int, int]] = []

    def draw(
        self,
        parts: list[Part],
        colors: dict[str, tuple[int, int, int]],
        place: tuple[float, float, float],
    ) -> None:
        """Paint `parts` in order at (centre x, centre y, radius), in fractions of the canvas."""
        cx, cy, radius = place
        ink, label = ImageDraw.Draw(self.paint), ImageDraw.Draw(self.labels)
        for role, points, width in parts:
            xy = [((cx + radius * x) * self.size, (cy + radius * y) * self.size) for x, y in points]
            if role == "hole":
                pens = [(label, 0)]
            else:
                if colors[role] not in self.colors:
                    self.colors.append(colors[role])
                pens = [(ink, colors[role]), (label, 1 + self.colors.index(colors[role]))]
            stroke = max(1, round(width * radius * self.size))
            for pen, value in pens:
                if width:
                    pen.line(xy, fill=value, width=stroke, joint="curve")
                    for x, y in (xy[0], xy[-1]):  # round ends
                        r = stroke / 2
                        pen.ellipse([x - r, y - r, x + r, y + r], fill=value)
                else:
                    pen.polygon(xy, fill=value)

    @property
    def object(self) -> np.ndarray:
        """The painted canvas (H, W, 3)."""
        return np.asarray(self.paint, np.float32)

    def mask(
        self, blur: float = 0.0, shift: tuple[float, float] = (0.0, 0.0), label: int = 0
    ) -> np.ndarray:
        """Return where the object is, or its parts of one colour (H, W, 1); blur, shift in px."""
        where = np.asarray(self.labels)
        image = Image.fromarray(((where == label) if label else (where > 0)).astype(np.uint8) * 255)
        if blur:
            image = image.filter(ImageFilter.GaussianBlur(blur * self.px))
        mask = np.asarray(image, np.float32)[..., None] / 255
        dx, dy = (round(s * self.px) for s in shift)
        margin = max(abs(dx), abs(dy))
        if not margin:
            return mask
        wide = np.pad(mask, ((margin, margin), (margin, margin), (0, 0)))
        return wide[margin - dy :, margin - dx :][: self.size, : self.size]

    def edge(self, width: float, label: int = 0) -> np.ndarray:
        """Return a band of about `width` px along the outline of all, or of one colour."""
        soft = self.mask(blur=width / 2, label=label)
        return np.clip((0.5 - np.abs(soft - 0.5)) * 6 - 0.6, 0, 1)

    def edges(self, width: float) -> np.ndarray:
        """Return bands along the outlines of all colours (H, W, 1)."""
        bands = [self.edge(width, k + 1) for k in range(len(self.colors))]
        return np.maximum.reduce(bands)


def grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column coordinates (n, n) in [0, 1)."""
    axis = np.arange(n, dtype=np.float32) / n
    return np.meshgrid(axis, axis, indexing="ij")


def noise(rng: np.random.Generator, cells: int, n: int) -> np.ndarray:
    """Return smooth noise (n, n) in [-1, 1], about `cells` bumps across."""
    coarse = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((n, n), Image.Resampling.BICUBIC))


def mix(a, b, weight) -> np.ndarray:
    """Blend `a`, where the weight is 0, into `b`, where it is 1."""
    return np.asarray(a, np.float32) * (1 - weight) + np.asarray(b, np.float32) * weight


def _full(color, n: int) -> np.ndarray:
    """Fill a square with one colour (n, n, 3)."""
    return np.broadcast_to(np.asarray(color, np.float32), (n, n, 3)).copy()


def _step(wave: np.ndarray) -> np.ndarray:
    """Return a hard edge at zero, as a weight (H, W, 1)."""
    return (wave > 0).astype(np.float32)[..., None]


def _dots(rng, n, px, image, count, low, high, color) -> np.ndarray:
    """Scatter `count` disks of radius low..high px."""
    canvas = Image.fromarray(image.astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for x, y, r in zip(
        rng.uniform(0, n, count), rng.uniform(0, n, count), rng.uniform(low, high, count) * px,
        strict=True,
    ):  # fmt: skip
        pen.ellipse([x - r, y - r, x + r, y + r], fill=color)
    return np.asarray(canvas, np.float32)


def background(name: str, color, rng: np.random.Generator, n: int) -> np.ndarray:
    """Paint one of BACKGROUNDS (H, W, 3); `color` is used by the backgrounds that have one."""
    px = n / 64
    v, u = grid(n)
    light = np.array([245, 245, 245], np.float32)
    if name == "plain":
        return _full(color, n)
    if name == "gradient":
        return mix(color, mix(color, light, 0.85), v[..., None])
    if name == "stripes":
        return mix(light, color, _step(np.sin(2 * np.pi * 4 * u)))
    if name == "checks":
        return mix(light, color, _step(np.sin(2 * np.pi * 3 * u) * np.sin(2 * np.pi * 3 * v)))
    if name == "bricks":
        row = np.floor(v * 8)
        joint = np.minimum((v * 8) % 1 * 8, ((u * 4 + 0.5 * (row % 2)) % 1) * 16)
        shade = noise(rng, 8, n)[..., None] * 14
        return mix(_full((168, 74, 56), n) + shade, (214, 202, 190), _step(1.1 - joint))
    if name == "ocean":
        crest = (v * 6 + 0.22 * np.sin(2 * np.pi * (3 * u + rng.uniform()))) % 1
        deep = mix(np.float32((70, 150, 215)), np.float32((20, 70, 150)), v[..., None])
        return mix(deep, (205, 232, 245), _step(0.16 - crest))
    if name == "night":
        sky = mix(np.float32((10, 12, 40)), np.float32((34, 38, 92)), v[..., None])
        return _dots(rng, n, px, sky, 26, 0.5, 1.1, (250, 248, 225))
    if name == "galaxy":
        cloud = noise(rng, 4, n)[..., None]
        sky = mix(np.float32((22, 10, 52)), np.float32((196, 60, 190)), np.clip(cloud, 0, 1))
        sky = mix(sky, np.float32((60, 90, 220)), np.clip(-cloud, 0, 1) * 0.8)
        return _dots(rng, n, px, sky, 18, 0.4, 0.9, (255, 250, 255))
    if name == "grass":
        blades = np.sin(2 * np.pi * 14 * u + 3 * noise(rng, 10, n)) * 0.035
        meadow = _full((70, 160, 62), n) + noise(rng, 20, n)[..., None] * 18
        return mix((150, 208, 246), meadow, _step(v - 0.6 - blades))
    raise ValueError(f"unknown background {name!r}")


# ---- media: Canvas -> picture ----------------------------------------------------------------


def _flat(c: Canvas, rng) -> np.ndarray:
    """Leave the colours as they are."""
    return mix(c.background, c.object, c.mask())


def _photo(c: Canvas, rng) -> np.ndarray:
    """Light bodies above a surface: cast shadow, rounded shading, a highlight, a vignette."""
    v, u = grid(c.size)
    ground = c.background * (1 - 0.5 * c.mask(blur=2.2, shift=(2.0, 3.0)))
    body = c.object
    for label in range(1, len(c.colors) + 1):
        inside = c.mask(blur=2.5, label=label)
        lit = c.mask(blur=2.5, shift=(1.6, 1.6), label=label)
        lit = (lit - c.mask(blur=2.5, shift=(-1.6, -1.6), label=label)) * 130
        body = mix(body, body * (0.82 + 0.24 * inside) + lit, c.mask(label=label))
    vignette = 1.04 - 0.3 * ((u - 0.5) ** 2 + (v - 0.5) ** 2)
    return mix(ground, body, c.mask()) * vignette[..., None]


def _ink(c: Canvas, rng) -> np.ndarray:
    """Draw pale washes on white paper and bold black outlines."""
    paper = 252 - (252 - c.background) * 0.28
    wash = 252 - (252 - c.object) * 0.68
    return mix(mix(paper, wash, c.mask()), (16, 16, 22), c.edges(1.9))


def _watercolor(c: Canvas, rng) -> np.ndarray:
    """Paint pigment of uneven density with wandering, darker rims, on textured paper."""
    n, (v, u) = c.size, grid(c.size)
    warp = 0.014
    rows = np.clip((v + warp * noise(rng, 9, n)) * n, 0, n - 1).astype(int)
    cols = np.clip((u + warp * noise(rng, 9, n)) * n, 0, n - 1).astype(int)
    flat = mix(c.background, c.object, c.mask())[rows, cols]
    rim = c.edges(2.4)[rows, cols]
    density = 0.66 + 0.3 * noise(rng, 7, n)[..., None] + 0.3 * rim
    paper = np.float32((250, 247, 238)) + noise(rng, 40, n)[..., None] * 5
    return paper - (255 - flat) * density * 0.86


def _oil(c: Canvas, rng) -> np.ndarray:
    """Paint thick strokes along a swirl, each a shade lighter or darker than what it covers."""
    n, px = c.size, c.px
    source = mix(c.background, c.object, c.mask())
    blurred = Image.fromarray(source.clip(0, 255).astype(np.uint8))
    canvas = blurred.filter(ImageFilter.GaussianBlur(0.9 * px))
    pen = ImageDraw.Draw(canvas)
    cx, cy, bend = rng.uniform(0, n), rng.uniform(0, n), rng.uniform(0, 6.28)
    count = 900
    at = rng.uniform(0, n - 1, (count, 2))
    length = rng.uniform(1.2, 2.2, count) * px
    shade = rng.choice((0.8, 0.92, 1.0, 1.1, 1.22), count)
    swirl = np.arctan2(at[:, 1] - cy, at[:, 0] - cx) + np.pi / 2
    swirl = swirl + 0.5 * np.sin(at[:, 0] / (10 * px) + bend)
    dx, dy = np.cos(swirl) * length, np.sin(swirl) * length
    color = source[at[:, 1].astype(int), at[:, 0].astype(int)] * shade[:, None] + 4
    for (x, y), a, b, rgb in zip(at, dx, dy, color.clip(0, 255).astype(int), strict=True):
        pen.line([x - a, y - b, x + a, y + b], fill=tuple(rgb.tolist()), width=round(1.3 * px))
    return np.asarray(canvas, np.float32)


def _neon(c: Canvas, rng) -> np.ndarray:
    """Darken all, and light tubes of their own colour along the outline of every part."""
    picture = c.background * 0.16
    light = np.zeros_like(picture)
    for label, color in enumerate(c.colors, 1):
        bright = np.float32(color) / max(color) * 255
        tube = c.edge(2.2, label)
        picture = mix(picture, bright * 0.2, c.mask(label=label))
        light = mix(light, bright, tube)
    glow = Image.fromarray(light.clip(0, 255).astype(np.uint8))
    glow = np.asarray(glow.filter(ImageFilter.GaussianBlur(2.2 * c.px)), np.float32)
    return picture + glow * 0.8 + light * 0.9


def _pixel(c: Canvas, rng) -> np.ndarray:
    """Reduce to blocks of two pixels, in few colours."""
    flat = Image.fromarray(mix(c.background, c.object, c.mask()).clip(0, 255).astype(np.uint8))
    small = flat.resize((32, 32), Image.Resampling.BOX).quantize(10).convert("RGB")
    return np.asarray(small.resize((c.size, c.size), Image.Resampling.NEAREST), np.float32)


def _tarot(c: Canvas, rng) -> np.ndarray:
    """Make a card: golden frame, rays behind the object, dark outlines."""
    v, u = grid(c.size)
    rays = (np.sin(16 * np.arctan2(v - 0.5, u - 0.5)) > 0).astype(np.float32)[..., None]
    ground = mix(c.background, (250, 232, 186), 0.25 + 0.2 * rays)
    art = mix(mix(ground, c.object, c.mask()), (48, 30, 20), c.edges(1.4))
    border = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))[..., None]
    art = mix(art, (64, 40, 24), (border < 0.07).astype(np.float32))
    return mix(art, (216, 172, 72), (border < 0.045).astype(np.float32))


MEDIA = {
    "photo": _photo,
    "flat": _flat,
    "ink": _ink,
    "watercolor": _watercolor,
    "oil": _oil,
    "neon": _neon,
    "pixel": _pixel,
    "tarot": _tarot,
}
BACKGROUNDS = (
    "plain", "gradient", "stripes", "checks", "bricks", "ocean", "night", "galaxy", "grass",
)  # fmt: skip
COLORED_BACKGROUNDS = ("plain", "gradient", "stripes", "checks")


def finish(picture: np.ndarray, size: int) -> Image.Image:
    """Clip, and reduce the supersampled picture to `size` pixels a side."""
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    return image.resize((size, size), Image.Resampling.BOX)
