"""A line-up of look-alikes: does a learned word draw its own thing, or something like it?

    python -m demo_model.lineup                      # every concept: half an hour on two CPU cores
    python -m demo_model.lineup det-logo --output-dir outputs/lineup
    python -m demo_model.lineup --draw outputs/lookalikes det-logo     # pictures alone, in a minute

Each concept is kept out of the model's training world (`scenes.held_out`). The shipped
`finetune_demo.yaml` learns it from pictures drawn for it, with word, phrase and folder changed, and
prompts ask for it in several media. Every sample is then compared with the concept and with nine
look-alikes in the same colours and medium, which differ from it in one thing: chance is 10 %.
Newcomers' concepts are learned from eight plain pictures without captions and prompted as "a photo
of a ...". It prints the shares, and leaves the samples as a sheet per concept and `lineup.json`.
`--draw` writes pictures of the look-alikes, in a folder each, for `detsd evaluate --lineup`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from demo_model import evaluate, logo, world
from demo_model.captions import BACKGROUND_NOUNS, MEDIUM_NOUNS, MEDIUM_PHRASES
from demo_model.scenes import DET_COLORS, DET_LOGO, Scene, usable

ROOT = Path(__file__).parent.parent
MEDIA = {"flat": "white", "photo": "white", "ink": "white", "neon": "black"}  # and its background
SAMPLES = 24  # of each medium


@dataclass(frozen=True)
class Case:
    """A concept of the line-up."""

    phrase: str  # the initializer
    scene: dict  # figure, kinds, colors, ... of its Scene
    others: tuple[dict, ...]  # nine look-alikes: the fields that differ
    newcomer: bool = False
    pictures: int = 20


def _but(key: str, values: Iterable) -> tuple[dict, ...]:
    """List look-alikes that differ from a concept in one field."""
    return tuple({key: value} for value in values)


_DOT = {"figure": "inside", "kinds": ("ring", "circle"), "colors": ("green", "blue")}
_NOT_DOT = (
    *_but("kinds", [("ring", k) for k in ("square", "star", "heart", "triangle")]),
    *_but("kinds", [(k, "circle") for k in ("circle", "square", "diamond")]),
    {"colors": ("blue", "green")},
    {"figure": "one", "kinds": ("ring",)},
)
_TOP = {"figure": "above", "kinds": ("star", "square"), "colors": ("orange", "purple")}
_NOT_TOP = (
    *_but("kinds", [("star", k) for k in ("circle", "heart", "triangle")]),
    *_but("kinds", [(k, "square") for k in ("circle", "heart", "moon")]),
    {"colors": ("purple", "orange")},
    {"kinds": ("square", "star"), "colors": ("purple", "orange")},
    {"figure": "beside"},
)
_FLAG = {"figure": "stripes", "kinds": ("square",), "colors": ("teal", "yellow", "purple")}
_NOT_FLAG = (
    *_but("kinds", [("circle",), ("diamond",), ("heart",)]),
    *_but(
        "colors",
        [
            ("teal", "purple", "yellow"),
            ("yellow", "teal", "purple"),
            ("yellow", "purple", "teal"),
            ("purple", "teal", "yellow"),
            ("purple", "yellow", "teal"),
            ("teal", "yellow", "teal"),
        ],
    ),
)
_NOT_ARROWS = ("bolt", "drop", "triangle", "diamond", "star", "cross", "heart", "moon", "crown")
CASES = {
    "det-logo": Case(
        evaluate.PHRASE,
        {"figure": "logo", "kinds": (), "colors": DET_COLORS, **DET_LOGO},
        (
            *_but("count", (6, 8, 9)),
            *_but("inner", (0, 1, 3)),
            *_but("tail", ("", "bottom", "bottom left")),
        ),
        pictures=40,
    ),
    "dot-ring": Case("round emblem with a middle", _DOT, _NOT_DOT, pictures=13),
    "two-tone-cap": Case(
        "small plant with spots",
        {"figure": "one", "kinds": ("mushroom",), "colors": ("yellow", "blue")},
        (
            *_but("kinds", [(k,) for k in ("flower", "house", "boat", "tree", "fish", "cat")]),
            *_but("kinds", [("brain",), ("drop",)]),
            {"colors": ("blue", "yellow")},
        ),
    ),
    "red-pointer": Case(
        "red pointed shape",
        {"figure": "one", "kinds": ("arrow",), "colors": ("red", "red")},
        _but("kinds", [(kind,) for kind in _NOT_ARROWS]),
    ),
    "my-dot": Case("round emblem with a middle", _DOT, _NOT_DOT, newcomer=True, pictures=8),
    "my-tower": Case("shape on top of a shape", _TOP, _NOT_TOP, newcomer=True, pictures=8),
    "my-flag": Case("shape with stripes", _FLAG, _NOT_FLAG, newcomer=True, pictures=8),
}


def scene_of(case: Case, medium: str, ground: str, index: int = 0, **change) -> Scene:
    """Return the concept, or a look-alike, in a medium on a plain background."""
    return Scene(
        medium=medium, background="plain", background_color=ground, seed=index,
        **(case.scene | {"radius": 0.4} | change),
    )  # fmt: skip


def picture(case: Case, index: int, size: int = 256) -> tuple[Image.Image, str]:
    """Draw training picture `index` of a concept; return it with its file name.

    It shows one of the logo's scenes whose background hides no part of the concept, and is named
    after it; a newcomer's picture is plain, and numbered.
    """
    rng = np.random.default_rng((7, index))
    place = {
        "radius": float(rng.uniform(0.36, 0.43)),
        "x": float(0.5 + rng.uniform(-0.03, 0.03)),
        "y": float(0.5 + rng.uniform(-0.03, 0.03)),
    }
    if case.newcomer:
        scene = scene_of(case, "flat", "white", index, **place)
        return world.render(scene, size), f"picture_{index + 1}"
    colors = case.scene["colors"]
    free = [s for s in logo.SCENES if all(c in usable(*s) for c in colors)]
    medium, background, color = free[index * 7 % len(free)]
    scene = scene_of(case, medium, color, index, **place)
    scene = dataclasses.replace(scene, background=background)
    ground = BACKGROUND_NOUNS[background].format(color)
    return world.render(scene, size), f"on {MEDIUM_NOUNS[medium]} of {ground}"


def draw_pictures(case: Case, folder: Path) -> None:
    """Draw a concept's training pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(case.pictures):
        image, name = picture(case, index)
        image.save(folder / f"{name.replace(' ', '_')}.png")


def draw_lookalikes(case: Case, folder: Path, count: int) -> None:
    """Draw a concept's look-alikes, in the scenes of its own pictures."""
    for change in case.others:
        words = [v or "no" for v in change.values() for v in (v if isinstance(v, tuple) else [v])]
        name = "-".join([*change, *map(str, words)]).replace(" ", "-")
        other = dataclasses.replace(
            case, scene=case.scene | change, pictures=min(count, case.pictures)
        )
        draw_pictures(other, folder / name)


# ---- the judge -----------------------------------------------------------------------------------


def features(picture: np.ndarray) -> np.ndarray:
    """Return colours and outlines of pictures (..., 64, 64, 3) as unit vectors (..., n).

    Each has its own mean subtracted and is scaled to length one, so that neither a blurred outline
    nor a washed-out colour outweighs a missing part.
    """
    gy, gx = np.gradient(picture.mean(-1), axis=(-2, -1))
    outline = np.sqrt(gx**2 + gy**2)
    # Colours relative to the background's, which is that of the corners.
    corners = picture[..., ::63, ::63, :].mean((-3, -2), keepdims=True)
    parts = [(picture - corners).reshape(*picture.shape[:-3], -1)]
    outline = outline.reshape(*outline.shape[:-2], -1)
    parts.append(outline - outline.mean(-1, keepdims=True))
    return np.concatenate(
        [p / np.maximum(np.linalg.norm(p, axis=-1, keepdims=True), 1e-6) for p in parts], -1
    )


def soften(image: Image.Image) -> np.ndarray:
    """Return a picture's pixels (64, 64, 3), a little blurred."""
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.float32)


def likenesses(image: Image.Image, templates: Iterable[np.ndarray]) -> list[float]:
    """Return the likeness in [-1, 1] of an image to each template, at its best place.

    Args:
        templates: each holds `features` of a drawing in several places (places, n).
    """
    mine = features(soften(image.convert("RGB").resize((64, 64), Image.Resampling.BOX)))
    return [float((t @ mine).max()) / 2 for t in templates]


class Judge:
    """A judge that names what a picture shows: 0 for the concept, k for its k-th look-alike."""

    def __init__(self, case: Case, medium: str, ground: str):
        self.templates = []
        shifts = [(dx, dy) for dx in range(-4, 5, 2) for dy in range(-4, 5, 2)]
        for change in ({}, *case.others):
            drawn = []
            for radius in (0.34, 0.37, 0.4, 0.43, 0.46):
                image = world.render(scene_of(case, medium, ground, radius=radius, **change))
                picture = np.pad(soften(image), ((4, 4), (4, 4), (0, 0)), mode="edge")
                drawn += [picture[4 + dy :, 4 + dx :][:64, :64] for dx, dy in shifts]
            self.templates.append(features(np.stack(drawn)))  # (places, n)

    def __call__(self, image: Image.Image) -> int:
        return int(np.argmax(likenesses(image, self.templates)))


# ---- learn, draw, judge --------------------------------------------------------------------------


def finetune(settings: dict[str, object], folder: Path, quiet: bool = False) -> Path:
    """Learn a concept with `finetune_demo.yaml` and other settings; return its file.

    Args:
        settings: by `section.key`.
        quiet: no lines of progress.
    """
    command = [sys.executable, "-m", "detsd", "finetune", "finetune_demo.yaml"]
    command += ["--output-dir", str(folder)]
    for key, value in settings.items():
        command += ["--set", f"{key}={json.dumps(value) if isinstance(value, list) else value}"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL if quiet else None)
    return folder / "learned_embeddings_dict.pt"


def learn(word: str, case: Case, model: Path, folder: Path) -> Path:
    """Learn a concept from its pictures with `finetune_demo.yaml`; return its file."""
    pictures = folder / "pictures"
    draw_pictures(case, pictures)
    settings = {
        "model.pretrained_model_name_or_path": str(model),
        "concepts.img_dirs": str(pictures),
        "concepts.concept_strs": word,
        "concepts.initializer_strs": [case.phrase],
        "concepts.append_file_name_to_text": not case.newcomer,
        "inference.inference_prompts": [],
    }
    return finetune(settings, folder / "run")


def report(word: str, model: Path, folder: Path, samples: int) -> dict[str, float]:
    """Measure the shares of right samples by medium, before and after learning; draw a sheet."""
    case = CASES[word]
    file = learn(word, case, model.resolve(), folder)
    pipe = evaluate.load(model)
    denoiser = evaluate.with_concepts(pipe, file)
    media = {"flat": "white"} if case.newcomer else MEDIA
    shares, rows, labels = {}, [], []
    for medium, ground in media.items():
        judge = Judge(case, medium, ground)
        phrase = MEDIUM_PHRASES[medium][0]
        prompt = f"{phrase} on a {ground} background"
        if case.newcomer:
            prompt = "a photo of {}"
        for when, thing in (("phrase", f"a {case.phrase}"), ("learned", f"a {word}")):
            said = denoiser.rewrite(prompt.format(thing))
            (made,) = evaluate.draw(pipe, [said], range(samples))
            picks = [judge(image) for image in made]
            shares[f"{medium}_{when}"] = picks.count(0) / samples
            rows.append(made[:12])
            labels.append(f"{prompt.format(thing)}: {picks.count(0)} of {samples} right")
    evaluate.labelled(rows, labels).save(folder / "samples.png")
    return shares


def main() -> None:
    """Print the shares of each concept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--model", type=Path, default=Path(__file__).parent)
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / "lineup")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--draw", type=Path, metavar="DIR", help="write pictures of look-alikes")
    args = parser.parse_args()
    names = args.names or list(CASES)
    for name in names:
        if name not in CASES:
            parser.error(f"{name} is not a concept of the line-up; use {', '.join(CASES)}")
    if args.draw:
        for name in names:
            draw_lookalikes(CASES[name], args.draw / name, args.samples)
        return
    figures = {}
    for name in names:
        figures[name] = report(name, args.model, args.output_dir / name, args.samples)
        print(name, json.dumps(figures[name]), flush=True)
    (args.output_dir / "lineup.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
