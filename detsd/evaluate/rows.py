"""The embedding vectors of a concept file, checkpoint or run folder: python -m detsd show SOURCE

Only the base model's token tables are loaded, to compare the vectors with.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import CLIPTokenizer

from detsd.concepts.concept import FAMILIES, LearnedConcept, family, joined
from detsd.concepts.reading import read_concepts
from detsd.concepts.source import ConceptSource
from detsd.config import ModelConfig
from detsd.models.spec import load_token_tables
from detsd.runs.folder import finetuning_metadata
from detsd.utils.errors import UserError, one_line
from detsd.utils.fonts import as_written
from detsd.utils.paths import BUNDLED
from detsd.utils.plurals import counted

NEAREST = 5  # words of the vocabulary to name for each vector


def describe(path: str | Path, model: str | None = None) -> dict[str, Any]:
    """Return a description of a source, ready for JSON.

    Args:
        model: the base model to compare with; default: the one that the checkpoint names, or the
            bundled one if it has the same width.
    """
    source = ConceptSource.parse(path).located
    concepts = read_concepts(source)
    path = source.path
    kinds = sorted({c.widths for c in concepts})
    facts = finetuning_metadata(path)
    trained_on = facts.get("config", {}).get("model", {})
    if trained_on:
        base = [f"{trained_on['pretrained_model_name_or_path']} (trained on it)"]
    else:
        base = [family(k) + f" (width {joined(k)})" * (k in FAMILIES) for k in kinds]
    tables: list[tuple[CLIPTokenizer, torch.Tensor]] = []
    if model or trained_on or any(family(k).startswith(BUNDLED) for k in kinds):
        name = model or trained_on.get("pretrained_model_name_or_path") or BUNDLED
        revision = None if model else facts.get("commit") or trained_on.get("revision")
        tables, notes = _tables(ModelConfig(name, revision), kinds, path, bool(model))
    else:
        notes = ["no comparison with the vocabulary: name the base model with --model to get one"]
    return {
        "source": str(path),
        "steps": facts.get("steps_completed"),
        "best": facts.get("best"),
        "base_models": base,
        "notes": notes,
        "vocabularies": [_vocabulary(table) for _, table in tables],
        "concepts": [describe_rows(concept, tables) for concept in concepts],
    }


def _tables(
    config: ModelConfig, kinds: list[tuple[int, ...]], path: Path, asked: bool
) -> tuple[list[tuple[CLIPTokenizer, torch.Tensor]], list[str]]:
    """Load a base model's token tables; unless the user `asked` for it, only note a failure."""
    name, tables, notes = config.pretrained_model_name_or_path, [], []
    try:
        tables = load_token_tables(config, fetch=asked)
    except UserError as error:
        if asked:
            raise
        notes.append(f"no comparison with the vocabulary: {error}")
        if not Path(name).is_absolute():
            notes.append(f"--model {name} fetches it from the hub")
    own = tuple(table.shape[1] for _, table in tables)
    if tables and own not in kinds:
        problem = f"{name} has vectors of width {joined(own)}, but {path} of width " + " or ".join(
            map(joined, kinds)
        )
        if asked:
            fits = " or ".join(map(family, kinds))
            raise UserError(f"{problem}; the file fits {fits}, so name that with --model")
        notes.append(f"no comparison with the vocabulary: {problem}")
    return tables, notes


def _vocabulary(table: torch.Tensor) -> dict[str, Any]:
    """Return the mean norm of a vocabulary's rows (V, D), and the range of 9 in 10 norms."""
    norms = table.norm(dim=1)
    low, high = norms.quantile(torch.tensor([0.05, 0.95])).tolist()
    return {"rows": len(table), "norm": float(norms.mean()), "norm_low": low, "norm_high": high}


def describe_rows(
    concept: LearnedConcept, tables: list[tuple[CLIPTokenizer, torch.Tensor]]
) -> dict[str, Any]:
    """Return a description of a concept's vectors for each text encoder."""
    if concept.widths != tuple(table.shape[1] for _, table in tables):
        tables = []
    encoders = []
    for place, rows in enumerate(concept.embeddings):
        described = [{"norm": float(norm)} for norm in rows.norm(dim=1)]
        if tables:
            _compare(described, rows, concept.initializer, *tables[place])
        encoders.append({"width": rows.shape[1], "rows": described})
    return {
        "name": concept.name,
        "initializer": concept.initializer,
        "model": concept.model,
        "model_hash": concept.model_hash,
        "steps": concept.steps,
        **({"clip_skip": concept.clip_skip} if concept.clip_skip else {}),
        **({"resolution": concept.resolution} if concept.resolution else {}),
        "text_encoders": encoders,
    }


def _compare(
    described: list[dict[str, Any]],
    rows: torch.Tensor,
    initializer: str,
    tokenizer: CLIPTokenizer,
    table: torch.Tensor,
) -> None:
    """Add the nearest words of a vocabulary (V, D) to the description of vectors (n, D)."""
    likeness = F.normalize(rows, dim=1) @ F.normalize(table, dim=1).T  # (n, V) cosines
    likeness[:, tokenizer.all_special_ids] = -1
    ids = likeness.topk(NEAREST).indices
    start = tokenizer(initializer, add_special_tokens=False).input_ids

    def word(row: int, token: int) -> dict[str, Any]:
        return {"word": _word(tokenizer, token), "cosine": float(likeness[row, token])}

    for j, row in enumerate(described):
        # Repeats the initializer's tokens like Vocabulary.initializer_vectors.
        row["began_as"] = word(j, start[j % len(start)]) if start else None
        row["nearest"] = [word(j, token) for token in ids[j].tolist()]


def _word(tokenizer: CLIPTokenizer, token: int) -> str:
    """Return a token as text; a hyphen at its end means that the word continues."""
    ends = tokenizer.convert_ids_to_tokens(token).endswith("</w>")
    return tokenizer.decode([token]).strip() + ("" if ends else "-")


def _listed(words: list[dict[str, Any]]) -> str:
    return ", ".join(f"{w['word']} {w['cosine']:.2f}" for w in words)


def report(facts: dict[str, Any]) -> str:
    """Return a description as text."""
    concepts = facts["concepts"]
    count = counted(len(concepts), "concept")
    steps = "" if facts["steps"] is None else f", after {counted(facts['steps'], 'step')}"
    lines = [f"{facts['source']}: {count}{steps}"]
    if facts["best"]:
        best = dict(facts["best"])
        step = best.pop("steps_completed")
        figures = ", ".join(f"{name} {value:.4f}" for name, value in best.items())
        lines.append(f"best of its run so far: step {step} ({figures})")
    lines += [f"base model: {name}" for name in facts["base_models"]]
    lines += facts["notes"]
    lines += [
        f"vocabulary: {v['rows']} rows, norm {v['norm']:.3f} on average, {v['norm_low']:.3f} to "
        f"{v['norm_high']:.3f} for 9 in 10"
        for v in facts["vocabularies"]
    ]
    for concept in concepts:
        encoders = concept["text_encoders"]
        lines += [
            "",
            concept["name"],
            f"  vectors: {len(encoders[0]['rows'])} of width "
            + joined(tuple(e["width"] for e in encoders)),
            f"  initializer: {concept['initializer'] or 'unknown'}",
        ]
        if concept["model"] and facts["steps"] is None:  # otherwise the first line says it
            at = f" at {concept['model_hash']}" * bool(concept["model_hash"])
            steps = f", {counted(concept['steps'], 'step')}" * (concept["steps"] is not None)
            lines.append(f"  learned on: {concept['model']}{at}{steps}")
        if "clip_skip" in concept:
            lines.append(f"  learned with: model.clip_skip {concept['clip_skip']}")
        if "resolution" in concept:
            lines.append("  samples: {} x {} pixels".format(*concept["resolution"]))
        for encoder in encoders:
            lines += _row_lines(encoder["rows"])
    return "\n".join(lines)


def _row_lines(rows: list[dict[str, Any]]) -> list[str]:
    if "nearest" not in rows[0]:
        return ["  norms: " + "  ".join(f"{row['norm']:.3f}" for row in rows)]
    lines = ["  row   norm  began as (cosine)    nearest words of the vocabulary (cosine)"]
    for j, row in enumerate(rows):
        began = _listed([row["began_as"]]) if row["began_as"] else ""
        lines.append(f"  {j + 1:3d} {row['norm']:6.3f}  {began:19}  {_listed(row['nearest'])}")
    return lines


def plot(facts: dict[str, Any], file: Path) -> None:
    """Plot a description: a bar for the norm of each vector, and its nearest words."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with as_written(str(facts)):
        figure = _figure(facts)
        try:
            figure.savefig(file, dpi=110)
        except (ValueError, RuntimeError) as error:  # for .pgf, matplotlib needs LaTeX
            raise UserError(f"--plot {file}: {one_line(error, None)}") from None


def _figure(facts: dict[str, Any]) -> Any:
    """Return the matplotlib figure of a description."""
    from matplotlib.figure import Figure  # late: half a second

    panels = [
        (concept, encoder, place)
        for concept in facts["concepts"]
        for place, encoder in enumerate(concept["text_encoders"])
    ]
    heights = [len(encoder["rows"]) + 2 for _, encoder, _ in panels]
    figure = Figure(figsize=(11, 0.34 * sum(heights) + 0.8), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axis, (concept, encoder, place) in zip(axes, panels, strict=True):
        rows, numbers = encoder["rows"], range(len(encoder["rows"]))
        norms = [row["norm"] for row in rows]
        axis.barh(numbers, norms, color="#3b6fb6", height=0.7)
        labels = [
            f"{row['began_as']['word']}  {j + 1}" if row.get("began_as") else str(j + 1)
            for j, row in enumerate(rows)
        ]
        axis.set_yticks(numbers, labels)
        axis.invert_yaxis()
        several = len(concept["text_encoders"]) > 1
        axis.set_title(
            concept["name"] + (f", text encoder {place + 1}" if several else ""), loc="left"
        )
        compared = "nearest" in rows[0]
        if compared:
            typical = facts["vocabularies"][place]
            axis.axvspan(
                typical["norm_low"], typical["norm_high"], color="#d9a441", alpha=0.35, lw=0,
                label="9 in 10 words of the vocabulary",
            )  # fmt: skip
            for j, row in enumerate(rows):
                axis.text(norms[j], j, f"  {_listed(row['nearest'][:4])}", va="center", fontsize=8)
            axis.legend(loc="lower right", fontsize=8, frameon=False)
        axis.set_xlim(0, max(norms) * (1.9 if compared else 1.1) or 1)
        axis.set_xlabel("norm of the vector, its nearest words and their cosines")
        axis.spines[["top", "right"]].set_visible(False)
    return figure
