"""The tables and plots of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FIGURES = "evaluation.json"

# ---- what is shown -------------------------------------------------------------------------------

COLUMNS = {  # of the table: what it is called, and how it is written
    "clip_image_similarity": ("image", "{:.3f}"),
    "dino_image_similarity": ("dino", "{:.3f}"),
    "clip_text_similarity": ("text", "{:.3f}"),
    "lineup": ("line-up", "{:.0%}"),
    "denoising_error": ("error", "{:.4f}"),
    "high_noise": ("high noise", "{:.4f}"),
    "score": ("score", "{:.3f}"),
}


def _written(figures: dict[str, Any]) -> dict[str, str]:
    """A row of the table, by what its columns are called."""
    errors = [key for key in figures if key.startswith("denoising_error_")]
    figures = figures | ({"high_noise": figures[errors[-1]]} if errors else {})
    return {title: form.format(figures[key]) for key, (title, form) in COLUMNS.items()
            if figures.get(key) is not None}  # fmt: skip


def _line(label: str, figures: dict[str, Any]) -> str:
    told = {k: v for k, v in _written(figures).items() if k in ("image", "text", "line-up")}
    return "   ".join([label, *(f"{k} {v}" for k, v in told.items())])


def table(result: dict[str, Any]) -> str:
    """What was measured, a line for each concept or checkpoint under its anchors."""
    lines = []
    for concept in result["concepts"]:
        rows = [("training images", concept["training_images"])]
        rows += [(row["label"], row) for row in (concept["phrase"], *concept["states"])]
        written = [(label, _written(figures)) for label, figures in rows]
        titles = [title for title, _ in COLUMNS.values() if any(title in w for _, w in written)]
        wide = min(60, max(len(label) for label, _ in written))
        lines += ["", f"{concept['concept']:{wide}}  " + "  ".join(f"{t:>7}" for t in titles)]
        for label, row in written:
            label = label if len(label) <= wide else f"{label[: wide - 3]}..."
            cells = (f"{row.get(title, ''):>{max(7, len(title))}}" for title in titles)
            lines.append(f"{label:{wide}}  " + "  ".join(cells))
        if concept["lineup"]:
            judge, chance = concept["lineup"]["judge"], concept["lineup"]["chance"]
            lines.append(f"line-up: {chance:.0%} by chance; judged by {judge}")
        if len(concept["states"]) > 1:
            lines.append(f"best: {concept['best']}")
    return "\n".join(lines[1:])


def plot(result: dict[str, Any], file: Path) -> None:
    """Draw image against text similarity, a panel for each concept, a point for each state of it.

    Up is more of the concept, to the right more of the prompt, as in figure 10 of arXiv 2208.01618.
    The states of one run are joined; where there are many, the first, last and best are named.
    """
    from matplotlib.figure import Figure  # late, as in `show`

    concepts = result["concepts"]
    figure = Figure(figsize=(7 * len(concepts), 5.5), layout="constrained")
    panels = figure.subplots(1, len(concepts), squeeze=False)[0]
    for axis, concept in zip(panels, concepts, strict=True):
        states, runs = concept["states"], {}

        def place(figures: dict[str, Any]) -> tuple[float, float]:
            return figures["clip_text_similarity"], figures["clip_image_similarity"]

        axis.axhline(concept["anchors"]["image_high"], color="#d9a441", ls="--", lw=1)
        axis.axvline(concept["anchors"]["text_high"], color="#d9a441", ls="--", lw=1)
        for label in ("training_images", "phrase"):
            axis.scatter(*place(concept[label]), color="#8a8a8a", s=45)
            axis.annotate(label.replace("_", " "), place(concept[label]), (7, 5),
                          textcoords="offset points", fontsize=8)  # fmt: skip
        for k, state in enumerate(states):
            best = state["label"] == concept["best"] and len(states) > 1
            runs.setdefault(state["label"].rpartition(", ")[0], []).append(place(state))
            axis.scatter(*place(state), color="#3b6fb6", s=130 if best else 45, zorder=2,
                         marker="*" if best else "o")  # fmt: skip
            if len(states) > 5 and k not in (0, len(states) - 1) and not best:
                continue
            said = state["label"].removeprefix(f"{concept['concept']}, ") + ", best" * best
            axis.annotate(said, place(state), (7, 5 if k % 2 else -11),
                          textcoords="offset points", fontsize=8)  # fmt: skip
        for points in runs.values():
            axis.plot(*zip(*points, strict=True), color="#3b6fb6", lw=0.8, zorder=1)
        axis.set_title(f"{concept['concept']} (dashed: what scores as 1)", loc="left", fontsize=10)
        axis.set_xlabel("similarity of edited samples to their prompts")
        axis.set_ylabel("similarity of samples to the training images")
        axis.margins(0.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
