"""Concepts learned from short, vague and missing phrases: who gets colour, place and shape right?

    python -m dev.phrases                            # eight concepts, five starts: an hour
    python -m dev.phrases --find                     # only find phrases, in a minute or two
    python -m dev.phrases --model outputs/new --only house-and-roof --seeds 3

Eight concepts that no document shows are drawn plainly on eight coloured backgrounds each.
`finetune_demo.yaml` learns them from each phrase, and draws each twelve times as "a photo of a
...". A sample is right if a drawing of the concept fits it better than drawings that differ in one
thing: a part's shape, colour or place, or a missing part (as `demo_model.lineup` judges). Mistakes
are counted by the drawing that fits best. Each run appends a line to `phrases.jsonl`; runs already
there are skipped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from demo_model import evaluate
from demo_model.lineup import ROOT, features, finetune, likenesses, soften
from demo_model.media import COLORS
from detsd.config import ConceptsConfig, ModelConfig
from detsd.data.dataset import TrainingData
from detsd.models.loading import load_base_model
from detsd.train.phrases import MOST, NOISY, DenoisingErrors, find_phrase, grammar_of

SAMPLES = 12
GROUNDS = ("white", "gray", "yellow", "pink", "teal", "orange", "blue", "brown")
STARTS = {  # the phrase ("": find one) and the number of vectors
    "short": ("short", "null"),
    "short, auto vectors": ("short", "auto"),
    "vague": ("vague", "null"),
    "vague, auto vectors": ("vague", "auto"),
    "auto": ("auto", "auto"),
}
SHAPES = ("circle", "ring", "square", "triangle", "diamond", "cross")
WHERE = [(zoom, dx, dy) for zoom in (0.88, 0.96, 1.04) for dx in (-4, 0, 4) for dy in (-4, 0, 4)]
INNER = (0.8, 1, 1.25, 1.5)  # sizes of the second part that the judge tries

Part = tuple[
    str, str, float, float, float
]  # shape, colour, centre and radius in shares of the side
CONCEPTS: dict[str, tuple[str, str, tuple[Part, ...]]] = {  # with a short phrase and a vague one
    "ring-and-spot": (
        "ring", "round emblem",
        (("ring", "green", 0.5, 0.5, 0.4), ("circle", "blue", 0.5, 0.5, 0.13)),
    ),
    "house-and-roof": (
        "house", "small building",
        (("square", "red", 0.5, 0.64, 0.25), ("triangle", "blue", 0.5, 0.25, 0.3)),
    ),
    "square-and-disc": (
        "square", "flat sign",
        (("square", "teal", 0.5, 0.5, 0.36), ("circle", "pink", 0.5, 0.5, 0.19)),
    ),
    "triangle-and-square": (
        "triangle", "pointed sign",
        (("triangle", "purple", 0.5, 0.5, 0.42), ("square", "yellow", 0.5, 0.6, 0.13)),
    ),
    "diamond-and-triangle": (
        "diamond", "simple icon",
        (("diamond", "orange", 0.5, 0.5, 0.42), ("triangle", "black", 0.5, 0.5, 0.17)),
    ),
    "three-discs": (
        "circles", "dots in a column",
        tuple(("circle", "brown", 0.5, y, 0.13) for y in (0.2, 0.5, 0.8)),
    ),
    "purple-tree": (
        "tree", "plant",
        (("square", "pink", 0.5, 0.78, 0.13), ("circle", "purple", 0.5, 0.37, 0.28)),
    ),
    "disc-and-cross": (
        "circle", "round sign",
        (("circle", "red", 0.5, 0.5, 0.4), ("cross", "white", 0.5, 0.5, 0.22)),
    ),
}  # fmt: skip


_CORNERS = {
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (0.95, 0.75), (-0.95, 0.75)],
    "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
    "cross": [
        (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1), (-0.3, 1),
        (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3),
    ],
}  # fmt: skip


def draw(parts: tuple[Part, ...], ground: str, size: int, zoom: float = 1.0, dx=0.0, dy=0.0):
    """Draw a figure on a ground of one colour, smaller or larger, and to one side."""
    side = 4 * size
    image = Image.new("RGB", (side, side), COLORS[ground])
    pen = ImageDraw.Draw(image)
    for shape, color, x, y, r in parts:
        x, y, r = 0.5 + (x - 0.5) * zoom + dx / 64, 0.5 + (y - 0.5) * zoom + dy / 64, r * zoom
        box = [side * (x - r), side * (y - r), side * (x + r), side * (y + r)]
        if shape == "ring":
            pen.ellipse(box, outline=COLORS[color], width=round(side * r * 0.32))
        elif shape == "circle":
            pen.ellipse(box, COLORS[color])
        else:
            corners = [(side * (x + r * a), side * (y + r * b)) for a, b in _CORNERS[shape]]
            pen.polygon(corners, COLORS[color])
    return image.resize((size, size), Image.Resampling.LANCZOS)


def draw_pictures(name: str, folder: Path) -> None:
    """Draw the eight training pictures of a concept."""
    folder.mkdir(parents=True, exist_ok=True)
    parts, rng = CONCEPTS[name][2], np.random.default_rng((7, list(CONCEPTS).index(name)))
    used = {color for _, color, *_ in parts}
    for k, ground in enumerate(ground for ground in GROUNDS * 2 if ground not in used):
        if k < 8:
            place = rng.uniform(0.9, 1.05), *rng.uniform(-3, 3, 2)
            draw(parts, ground, 256, *place).save(folder / f"picture_{k + 1}.png")


def mistakes(parts: tuple[Part, ...]) -> list[tuple[str, tuple[Part, ...]]]:
    """List figures that differ in one thing, with its name: shape, color, place, part."""
    found = []
    for k, (shape, color, x, y, r) in enumerate(parts):
        others = [("shape", (s, color, x, y, r)) for s in SHAPES if s != shape]
        others += [("color", (shape, c, x, y, r)) for c in COLORS if c not in (color, "white")]
        found += [(kind, (*parts[:k], part, *parts[k + 1 :])) for kind, part in others]
        found.append(("part", (*parts[:k], *parts[k + 1 :])))
    (_, a, *_), (_, b, *_) = parts[:2]
    swapped = tuple((s, {a: b, b: a}.get(c, c), x, y, r) for s, c, x, y, r in parts)
    beside = tuple(
        (s, c, 0.3 + 0.4 * k, 0.5, min(r, 0.18)) for k, (s, c, *_, r) in enumerate(parts)
    )
    return [*found, *([("color", swapped)] if a != b else []), ("place", beside)]


def judge(parts: tuple[Part, ...], ground: str):
    """Return a function that names the mistake in a picture of a figure; "" if there is none."""
    kinds, templates = [], []
    for kind, (first, *others) in [("", parts), *mistakes(parts)]:
        drawn = []
        for scale in INNER if others else (1,):
            figure = (first, *((*part[:4], part[4] * scale) for part in others))
            drawn += [soften(draw(figure, ground, 64, *place)) for place in WHERE]
        kinds.append(kind)
        templates.append(features(np.stack(drawn)))  # (places, n)

    def say(image: Image.Image) -> str:
        return kinds[int(np.argmax(likenesses(image, templates)))]

    return say


def find(name: str, model: Path, folder: Path) -> dict:
    """Find a concept's phrase, and the errors of the short and the vague one."""
    draw_pictures(name, folder / name / "pictures")
    base = load_base_model(ModelConfig(str(model)), torch.device("cpu"), [], training=True)
    config = ConceptsConfig([name], ["auto"], [str(folder / name / "pictures")])
    data = TrainingData(config, base, 2147483647, 8)
    began = time.process_time()
    errors = DenoisingErrors(base, data.noisy_samples(name, MOST, *NOISY), name)
    phrase = find_phrase(errors, grammar_of(base, "object", "it"), "object")
    seconds, tried = time.process_time() - began, len(errors)
    beside = [phrase, *CONCEPTS[name][:2], None]
    values = [round(e, 3) for e in errors(beside, MOST)]
    return {"phrase": phrase, "errors": values, "tried": tried, "seconds": round(seconds, 1)}


def learn(name: str, start: str, seed: int, model: Path, folder: Path, steps: int) -> dict:
    """Learn a concept from a start, draw it twelve times, and count the right samples."""
    short, vague, parts = CONCEPTS[name]
    which, vectors = STARTS[start]
    run = folder / name / f"{start.replace(', ', '-').replace(' ', '-')}-{seed}"
    draw_pictures(name, folder / name / "pictures")
    settings = {
        "model.pretrained_model_name_or_path": str(model.resolve()),
        "concepts.img_dirs": str(folder / name / "pictures"),
        "concepts.concept_strs": name,
        "concepts.initializer_strs": {"short": short, "vague": vague}.get(which, which),
        "concepts.num_vectors": vectors,
        "concepts.append_file_name_to_text": "false",
        "inference.inference_prompts": "[]",
        "training.num_sgd_steps": str(steps),
        "training.checkpoint_freq": str(steps),
        "training.num_validation_timesteps": "2",
        "training.train_seed": str(2147483647 - seed),
    }
    file = finetune(settings, run, quiet=True)
    pipe = evaluate.load(model)
    rewrite = evaluate.with_concepts(pipe, file).rewrite
    prompt = rewrite(f"a photo of a {name} on a white background")
    (made,) = evaluate.draw(pipe, [prompt], range(SAMPLES))
    said = Counter(map(judge(parts, "white"), made))
    evaluate.labelled([made], [f"{name}, {start}"]).save(run / "samples.png")
    (concept,) = evaluate.read_concepts(file)
    return {"right": said.pop("", 0), **said, "phrase": concept.initializer}


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--find", action="store_true", help="only look for phrases")
    parser.add_argument("--only", nargs="*", default=list(CONCEPTS), choices=CONCEPTS)
    parser.add_argument("--starts", nargs="*", default=list(STARTS), choices=STARTS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--model", type=Path, default=ROOT / "demo_model")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / "phrases")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    file = args.output_dir / "phrases.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    done = {tuple(json.loads(line)["run"]) for line in lines}
    for name in args.only:
        if args.find:
            print(name, json.dumps(find(name, args.model, args.output_dir)), flush=True)
            continue
        for seed, start in ((s, start) for s in range(args.seeds) for start in args.starts):
            run = [name, start, seed, args.steps, str(args.model)]
            if tuple(run) not in done:
                found = learn(name, start, seed, args.model, args.output_dir, args.steps)
                print(line := json.dumps({"run": run} | found), flush=True)
                with file.open("a") as opened:
                    opened.write(line + "\n")


if __name__ == "__main__":
    main()
