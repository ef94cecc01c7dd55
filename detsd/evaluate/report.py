"""The tables and plots of an evaluation."""

from pathlib import Path
from typing import Any

from PIL import Image

from detsd.utils import contact_sheets
from detsd.utils.fonts import as_written

FIGURES = "evaluation.json"

SHOWN = 8  # images in a row

COLUMNS = {  # of the table: title and format
    "clip_image_similarity": ("CLIP-I", "{:.3f}"),
    "dino_image_similarity": ("DINO", "{:.3f}"),
    "clip_text_similarity": ("CLIP-T", "{:.3f}"),
    "lineup": ("line-up", "{:.0%}"),
    "denoising_error": ("error", "{:.4f}"),
    "high_noise": ("high noise", "{:.4f}"),
    "score": ("score", "{:.3f}"),
}


def _formatted(figures: dict[str, Any]) -> dict[str, str]:
    """Return a row of the table, keyed by the titles of its columns."""
    errors = [key for key in figures if key.startswith("denoising_error_")]
    figures = figures | ({"high_noise": figures[errors[-1]]} if errors else {})
    return {
        title: form.format(figures[key])
        for key, (title, form) in COLUMNS.items()
        if figures.get(key) is not None
    }


def _line(label: str, figures: dict[str, Any]) -> str:
    """Return a row's label for the picture of samples."""
    row = _formatted(figures)
    return "   ".join(
        [label, *(f"{k} {row[k]}" for k in ("CLIP-I", "CLIP-T", "line-up") if k in row)]
    )


def overview(
    concepts: list[dict[str, Any]],
    images: list[list[Image.Image]],
    samples: list[list[list[Image.Image]]],
) -> Image.Image:
    """Draw training images, then samples of the initializer and of each state, one row each.

    Args:
        concepts: the figures of each concept, as in `evaluation.json`.
        images: the training images of each concept.
        samples: for each concept, those of the initializer and of each state.
    """
    rows, labels = [], []
    for concept, own, sets in zip(concepts, images, samples, strict=True):
        step = -(-len(own) // SHOWN)
        rows.append(own[::step])
        labels.append(_line(f"training images: {concept['images']}", concept["training_images"]))
        initializer = concept["phrase"]
        rows += sets
        labels.append(_line(f"the initializer: {initializer['phrase']}", initializer))
        labels += [_line(state["label"], state) for state in concept["states"]]
    return contact_sheets.sheet(contact_sheets.padded(rows), labels)


def table(result: dict[str, Any]) -> str:
    """Return the figures as text, a line for each concept or checkpoint below its baselines."""
    lines = []
    for concept in result["concepts"]:
        rows = [("training images", concept["training_images"])]
        rows += [(row["label"], row) for row in (concept["phrase"], *concept["states"])]
        formatted = [(label, _formatted(figures)) for label, figures in rows]
        titles = [title for title, _ in COLUMNS.values() if any(title in w for _, w in formatted)]
        wide = min(60, max(len(label) for label, _ in formatted))
        lines += ["", f"{concept['concept']:{wide}}  " + "  ".join(f"{t:>7}" for t in titles)]
        for label, row in formatted:
            label = label if len(label) <= wide else f"{label[: wide - 3]}..."
            cells = (f"{row.get(title, ''):>{max(7, len(title))}}" for title in titles)
            lines.append(f"{label:{wide}}  " + "  ".join(cells))
        if concept["lineup"]:
            judge, chance = concept["lineup"]["judge"], concept["lineup"]["chance"]
            lines.append(f"line-up: {chance:.0%} by chance; classified by {judge}")
            if concept["training_images"]["lineup"] is None:
                lines[-1] += ", whose accuracy is unknown: a folder has only one image; add more"
        if len(concept["states"]) > 1:
            lines.append(f"best: {concept['best']}")
    return "\n".join(lines[1:])


def plot(result: dict[str, Any], file: Path) -> None:
    """Plot CLIP-I against CLIP-T, a panel for each concept and a point for each of its states.

    Points further up show more of the concept, points further right more of the prompt, as in
    figure 10 of arXiv 2208.01618. A line joins the states of a run; if there are many, only the
    first, last and best are labelled.
    """
    with as_written(str(result["concepts"])):
        _figure(result["concepts"]).savefig(file, dpi=110)


def _figure(concepts: list[dict[str, Any]]) -> Any:
    """Return the matplotlib figure of the concepts' figures."""
    from matplotlib.figure import Figure  # late: half a second

    figure = Figure(figsize=(7 * len(concepts), 5.5), layout="constrained")
    panels = figure.subplots(1, len(concepts), squeeze=False)[0]
    for axis, concept in zip(panels, concepts, strict=True):
        states, runs = concept["states"], {}

        def place(figures: dict[str, Any]) -> tuple[float, float]:
            return figures["clip_text_similarity"], figures["clip_image_similarity"]

        axis.axhline(concept["anchors"]["image_high"], color="#d9a441", ls="--", lw=1)
        axis.axvline(concept["anchors"]["text_high"], color="#d9a441", ls="--", lw=1)
        for key, label in {"training_images": "training images", "phrase": "initializer"}.items():
            axis.scatter(*place(concept[key]), color="#8a8a8a", s=45)
            axis.annotate(label, place(concept[key]), (7, 5),
                          textcoords="offset points", fontsize=8)  # fmt: skip
        for k, state in enumerate(states):
            best = state["label"] == concept["best"] and len(states) > 1
            runs.setdefault(state["label"].rpartition(", ")[0], []).append(place(state))
            axis.scatter(*place(state), color="#3b6fb6", s=130 if best else 45, zorder=2,
                         marker="*" if best else "o")  # fmt: skip
            if len(states) > 5 and k not in (0, len(states) - 1) and not best:
                continue
            name = state["label"].removeprefix(f"{concept['concept']}, ") + ", best" * best
            axis.annotate(name, place(state), (7, 5 if k % 2 else -11),
                          textcoords="offset points", fontsize=8)  # fmt: skip
        for points in runs.values():
            axis.plot(*zip(*points, strict=True), color="#3b6fb6", lw=0.8, zorder=1)
        axis.set_title(f"{concept['concept']} (dashed: a score of 1)", loc="left", fontsize=10)
        axis.set_xlabel("CLIP-T: similarity of edited samples to their prompts")
        axis.set_ylabel("CLIP-I: similarity of samples to the training images")
        axis.margins(0.2)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
