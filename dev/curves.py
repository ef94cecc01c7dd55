"""Measure how settings change a concept: python -m dev.curves [--draw] [NAME ...]

It runs fine-tunings of `finetune_demo.yaml` that differ in one setting, and measures them with
`detsd evaluate`. NAME is a thing (det-logo, ring-and-dot) or a setting; without it, everything is
measured. Each thing takes more than an hour on one CPU core. An interrupted run continues with what
is missing. `--draw` draws docs/curves.png from all measurements, and writes the tables into
docs/curves.md, below the text there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path

from demo_model.evaluate import PHRASE
from demo_model.lineup import CASES, SAMPLES, draw_lookalikes
from dev.pictures import DOCS, detsd

OUT = Path("outputs/curves")
STEPS, GUIDANCE = 150, 3.0  # of every fine-tuning and of all samples, unless varied
GUIDANCES = (1.0, 1.5, 2.0, 3.0, 5.0, 9.0)
SEEDS = (1, 2)  # of the fine-tunings


@dataclass(frozen=True)
class Thing:
    """A thing to learn, and its training images.

    Attributes:
        case: its case in `demo_model.lineup`, which has its look-alikes; "" for a style.
        counts: numbers of training pictures.
        kind: object or style.
    """

    folder: str
    phrase: str
    case: str
    counts: tuple[int, ...]
    named: bool  # whether the files' names describe the pictures
    kind: str = "object"


THINGS = {
    "det-logo": Thing("det_logos", PHRASE, "det-logo", (1, 4, 12, 45), True),
    "ring-and-dot": Thing(
        "examples/ring_and_dot", CASES["my-dot"].phrase, "my-dot", (1, 2, 4, 8), False
    ),
}
STYLES = {"glow-style": Thing("examples/glow_style", "bright picture", "", (), True, "style")}
SETTINGS = {
    "training.num_sgd_steps": (25, 50, 75, 100, 150, 300),
    "training.learning_rate": (1e-3, 2e-3, 3.5e-3, 7e-3, 1.4e-2, 2.8e-2),
    "concepts.num_vectors": (1, 2, 4, 8, 16, 32),
    "training.norm_reg_weight": (0.0, 0.01, 0.1, 1.0, 10.0),
    "training.hidden_reg_weight": (0.0, 0.01, 0.1, 1.0),
}
NAMES = {"images": "training pictures", **{key: key.split(".")[1] for key in SETTINGS}}
NAMES["guidance"] = "guidance of the samples"
PLAIN = {"training.num_sgd_steps": STEPS, "training.learning_rate": 7e-3,
         "training.norm_reg_weight": 0.0, "training.hidden_reg_weight": 0.0}  # fmt: skip
MEASURES = {
    "lineup": ("line-up", "{:.0%}"), "clip_image_similarity": ("CLIP-I", "{:.3f}"),
    "clip_text_similarity": ("CLIP-T", "{:.3f}"), "denoising_error": ("error", "{:.4f}"),
    "score": ("score", "{:.2f}"),
}  # fmt: skip
SAMPLING = {"scheduler_name": "euler-ancestral", "num_inference_steps": 10, "spacing": "trailing"}
SAMPLERS = "\n## Samplers\n"  # the heading of the part that `dev.sampler_curves` writes
SHOWN = [key for key in MEASURES if key != "denoising_error"]  # in the figures


def options(values: dict) -> list[str]:
    return [text for key, value in values.items() for text in ("--set", f"{key}={value}")]


def learned(name: str, seed: int, change: dict) -> Path:
    """Return the folder of a fine-tuning, which is run if it is missing."""
    thing = (THINGS | STYLES)[name]
    told = (
        "-".join(f"{key.split('.')[-1]}-{Path(str(value)).name}" for key, value in change.items())
        or "plain"
    )
    folder = OUT / name / f"{told}-seed-{seed}"
    values = {
        "concepts.concept_strs": name,
        "concepts.initializer_strs": json.dumps([thing.phrase]),
        "concepts.img_dirs": thing.folder,
        "concepts.learnable_properties": thing.kind,
        "concepts.append_file_name_to_text": str(thing.named).lower(),
        **PLAIN,
        "training.train_seed": seed,
        "inference.inference_prompts": "[]",
    } | change
    values["training.checkpoint_freq"] = values["training.num_sgd_steps"]
    if not (folder / "learned_embeddings_dict.pt").exists():
        detsd("finetune", "finetune_demo.yaml", "--output-dir", str(folder), *options(values))
    return folder


def subset(name: str, count: int) -> Path:
    """Return a folder with some of a thing's pictures, spread over its own folder."""
    every = sorted(Path(THINGS[name].folder).iterdir())
    folder = OUT / name / f"{count}-pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        shutil.copy(every[(2 * k + 1) * len(every) // (2 * count)], folder)
    return folder


def lookalikes(case: str) -> list[str]:
    """Return the folders of a case's look-alikes, which are drawn if they are missing."""
    if not case:
        return []
    folder = OUT / "look-alikes" / case
    if not folder.is_dir():
        draw_lookalikes(CASES[case], folder, SAMPLES)
    return sorted(map(str, folder.iterdir()))


def evaluate(name: str, folder: Path, runs: list[Path], guidance: float) -> None:
    """Measure runs with `detsd evaluate`, unless that is done."""
    if (folder / "evaluation.json").exists():
        return
    thing = THINGS[name]
    values = {"guidance_scale": guidance, "num_samples": 24, **SAMPLING}
    detsd(
        "evaluate", *map(str, runs), "--images", thing.folder,
        "--lineup", *lookalikes(thing.case),
        "--output-dir", str(folder), *options({f"evaluation.{k}": v for k, v in values.items()}),
    )  # fmt: skip


def values(name: str, setting: str) -> tuple[float, ...]:
    """Return the settings at which a curve has points."""
    return {"images": THINGS[name].counts, "guidance": GUIDANCES, **SETTINGS}[setting]


def folders(name: str, setting: str, seed: int) -> list[Path]:
    """Name a curve's evaluations: one for each guidance scale, otherwise one for all points."""
    stem = f"evaluated-{setting.split('.')[-1]}-seed-{seed}"
    ends = [f"-{scale:g}" for scale in GUIDANCES] if setting == "guidance" else [""]
    return [OUT / name / f"{stem}{end}" for end in ends]


def measure(name: str, setting: str, seed: int) -> None:
    """Make the missing points of a curve of one seed."""
    points = values(name, setting)
    if setting == "guidance":
        run = learned(name, seed, {})
        for scale, folder in zip(points, folders(name, setting, seed), strict=True):
            evaluate(name, folder, [run], scale)
        return
    if setting == "images":
        changes = [{"concepts.img_dirs": str(subset(name, n))} for n in points[:-1]] + [{}]
    else:
        changes = [{} if value == PLAIN.get(setting) else {setting: value} for value in points]
    runs = [learned(name, seed, change) for change in changes]
    evaluate(name, *folders(name, setting, seed), runs, GUIDANCE)


def measured(name: str, setting: str) -> list[list[dict]]:
    """Return for each measured seed the figures at each point of a curve."""
    found = []
    for seed in SEEDS:
        files = [folder / "evaluation.json" for folder in folders(name, setting, seed)]
        if all(file.exists() for file in files):
            told = [json.loads(file.read_text())["concepts"][0] for file in files]
            found.append([state for concept in told for state in concept["states"]])
    return found


# ---- what is shown -------------------------------------------------------------------------------


def tables() -> str:
    """Return a table for each setting and thing, with means over the seeds."""
    lines = []
    for setting, title in NAMES.items():
        lines += [f"## {title[0].upper()}{title[1:]}" if " " in title else f"## `{title}`", ""]
        for name in THINGS:
            seeds = measured(name, setting)
            if not seeds:
                continue
            titles = [title for title, _ in MEASURES.values()]
            lines += [f"| {name} | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
            for value, *states in zip(values(name, setting), *seeds, strict=True):
                cells = [
                    form.format(statistics.mean(state[key] for state in states))
                    for key, (_, form) in MEASURES.items()
                ]
                lines.append(f"| {value:g} | " + " | ".join(cells) + " |")
            lines.append("")
    return "\n".join(lines)


def plot(file: Path) -> None:
    """Plot a row for each setting and a column for each measure, with lines through seed means."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.2 * len(NAMES)), layout="constrained")
    panels = figure.subplots(len(NAMES), len(SHOWN), sharey="col")
    for row, (setting, title) in zip(panels, NAMES.items(), strict=True):
        found = {name: measured(name, setting) for name in THINGS}
        ticks = sorted({point for name in THINGS for point in values(name, setting)})
        for axis, key in zip(row, SHOWN, strict=True):
            for name, color in zip(THINGS, ("#3b6fb6", "#c8553d"), strict=True):
                seeds = [[state[key] for state in states] for states in found[name]]
                if not seeds:
                    continue
                points = values(name, setting)
                for each in seeds:
                    axis.plot(points, each, ".", color=color, alpha=0.5)
                means = [statistics.mean(each) for each in zip(*seeds, strict=True)]
                axis.plot(points, means, color=color, label=name)
            axis.set_xscale("symlog", linthresh=0.01) if 0 in ticks else axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
            if axis in panels[0]:
                axis.set_title(MEASURES[key][0], loc="left", fontsize=10)
        row[0].set_ylabel(title, fontsize=9)
    panels[0][0].legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=100)


def main() -> None:
    """Measure the names on the command line, or draw all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*THINGS, *NAMES]))
    parser.add_argument("--draw", action="store_true", help="write docs/curves.*")
    args = parser.parse_args()
    for name in args.names:
        if name not in THINGS and name not in NAMES:
            parser.error(f"{name} is not measured; use {', '.join([*THINGS, *NAMES])}")
    things = [name for name in THINGS if name in args.names] or list(THINGS)
    settings = [name for name in NAMES if name in args.names] or list(NAMES)
    if args.draw:
        page = DOCS / "curves.md"
        head, _, rest = page.read_text(encoding="utf-8").partition("\n## ")
        _, mark, samplers = f"\n## {rest}".partition(SAMPLERS)
        page.write_text(f"{head}\n{tables()}{mark}{samplers}", encoding="utf-8")
        plot(DOCS / "curves.png")
        return
    for seed in SEEDS:
        for thing in things:
            for setting in settings:
                measure(thing, setting, seed)


if __name__ == "__main__":
    main()
