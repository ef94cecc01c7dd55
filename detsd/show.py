"""What a concept file or checkpoint holds: python -m detsd show learned_embeddings_dict_demo.pt

Only the text side of the base model is loaded: its vocabulary is what the rows are compared with.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPTokenizer

from detsd.config import ModelConfig
from detsd.errors import UserError
from detsd.formats import LearnedConcept, family, read_concepts
from detsd.models import load_token_tables
from detsd.sources import locate, split_source

BUNDLED = "demo_model"


def describe(path: str | Path, model: str | None = None, nearest: int = 5) -> str:
    """The report, as text.

    Args:
        model: the base model to compare with; default: the one that the checkpoint names, else the
            bundled one where the width is its own.
        nearest: words of the vocabulary named per row.

    Raises:
        UserError: no readable concept file; a `model` that cannot be loaded or has another width.
    """
    path = locate(path)
    concepts = read_concepts(path)
    path = split_source(path)[0]
    kinds = sorted({c.widths for c in concepts})
    facts = _metadata(path)
    trained_on = facts.get("config", {}).get("model", {})
    name = model or trained_on.get("pretrained_model_name_or_path") or BUNDLED
    count = "1 concept" if len(concepts) == 1 else f"{len(concepts)} concepts"
    steps = f", after {facts['steps_completed']} steps" if facts else ""
    lines = [f"{path}: {count}{steps}"]
    if trained_on:
        lines.append(f"base model: {trained_on['pretrained_model_name_or_path']} (trained on it)")
    else:
        lines += [f"base model: {family(k)} (width {_and(k)})" for k in kinds]
    tables: list[tuple[CLIPTokenizer, torch.Tensor]] = []
    if model or trained_on or any(family(k).startswith(BUNDLED) for k in kinds):
        revision = None if model else trained_on.get("revision")
        try:
            tables = load_token_tables(ModelConfig(name, revision), fetch=bool(model))
        except UserError as error:
            if model:
                raise
            lines.append(f"no comparison with the vocabulary: {error}")
            if not Path(name).is_absolute():
                lines.append(f"--model {name} asks the hub for it")
        own = tuple(table.shape[1] for _, table in tables)
        if tables and own not in kinds:
            problem = f"{name} has rows of width {_and(own)}, {path} of width " + " or ".join(
                map(_and, kinds)
            )
            if model:
                fits = " or ".join(map(family, kinds))
                raise UserError(f"{problem}: it fits {fits}; name that with --model")
            lines.append(f"no comparison with the vocabulary: {problem}")
    else:
        lines.append("no comparison with the vocabulary: name the base model with --model for one")
    for _, table in tables:
        norms = table.norm(dim=1)
        low, high = norms.quantile(torch.tensor([0.05, 0.95])).tolist()
        lines.append(
            f"vocabulary: {len(table)} rows, norm {float(norms.mean()):.3f} on average, "
            f"{low:.3f} to {high:.3f} for 9 in 10"
        )
    for concept in concepts:
        lines += ["", *_concept_lines(concept, tables, nearest)]
    return "\n".join(lines)


def _metadata(path: Path) -> dict:
    """What the fine-tuning's checkpoint that `path` is, or lies in, says of itself; else {}.

    A grid's checkpoint holds concepts that something else has learned.
    """
    from detsd.cluster import read_metadata

    try:
        facts = read_metadata(path.parent)
    except UserError:
        return {}
    return facts if isinstance(facts, dict) and facts.get("kind") == "finetune" else {}


def _and(widths: tuple[int, ...]) -> str:
    return " and ".join(map(str, widths))


def _concept_lines(
    concept: LearnedConcept, tables: list[tuple[CLIPTokenizer, torch.Tensor]], k: int
) -> list[str]:
    lines = [
        concept.name,
        f"  vectors: {len(concept.embeddings)} of width {_and(concept.widths)}",
        f"  initializer: {concept.initializer or 'not told by the file'}",
    ]
    if concept.widths != tuple(table.shape[1] for _, table in tables):
        tables = []
    for place, rows in enumerate(concept.rows):
        if tables:
            lines += _row_lines(rows, concept.initializer, *tables[place], k)
        else:
            lines.append("  norms: " + "  ".join(f"{n:.3f}" for n in rows.norm(dim=1)))
    return lines


def _row_lines(
    rows: torch.Tensor, phrase: str, tokenizer: CLIPTokenizer, table: torch.Tensor, k: int
) -> list[str]:
    """Rows (n, D) of one text encoder beside its table (V, D)."""
    norms, unit = rows.norm(dim=1), F.normalize(table, dim=1)
    likeness = F.normalize(rows, dim=1) @ unit.T  # (n, V) cosines
    likeness[:, tokenizer.all_special_ids] = -1
    values, ids = likeness.topk(k)
    start = tokenizer(phrase, add_special_tokens=False).input_ids
    lines = ["  row   norm  began as (cosine)    nearest words of the vocabulary (cosine)"]
    for j in range(len(rows)):
        began = ""
        if start:
            token = start[j % len(start)]  # as Vocabulary.phrase_rows repeats them
            began = f"{_word(tokenizer, token)} {likeness[j, token]:.2f}"
        near = ", ".join(
            f"{_word(tokenizer, i)} {v:.2f}"
            for i, v in zip(ids[j].tolist(), values[j].tolist(), strict=True)
        )
        lines.append(f"  {j + 1:3d} {norms[j]:6.3f}  {began:19}  {near}")
    return lines


def _word(tokenizer: CLIPTokenizer, token: int) -> str:
    """A token as one reads it; a hyphen stands where the word goes on."""
    ends = tokenizer.convert_ids_to_tokens(token).endswith("</w>")
    return tokenizer.decode([token]).strip() + ("" if ends else "-")
