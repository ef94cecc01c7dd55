"""Concepts as files: every layout in use is read, each can be written.

| layout | what lies in the file |
|---|---|
| detsd | `{word: {"initializer_strs": str, "learned_embeddings": [n, D]}}` |
| diffusers | `{word: [n, D]}`, or `[D]` |
| a1111 | `{"string_to_param": {"*": [n, D]}, "name": word, ...}` |
| kohya | `{"emb_params": [n, D]}` |
| sdxl | `{"clip_l": [n, D], "clip_g": [n, D2]}` |
| onetrainer | `{"emp_params": [n, D]}` |

A concept for a model of two text encoders has `"learned_embeddings_2": [n, D2]` besides in the
first layout, two files `word` and `word_2` in the second; kohya and OneTrainer then write the
fifth. Where no word lies in the file, its name is the word. Rows are float32.

Sources: huggingface/diffusers `loaders/textual_inversion.py`, AUTOMATIC1111 `textual_inversion.py`
and `image_embedding.py`, ComfyUI `sd1_clip.py`, kohya-ss/sd-scripts `train_textual_inversion.py`,
OneTrainer `StableDiffusionEmbeddingSaver.py`, rinongal/textual_inversion `embedding_manager.py`,
Stability-AI/ModelSpec.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from detsd import content
from detsd.runs.folder import DICT_FILE
from detsd.sources import file_of, split_source
from detsd.utils.errors import UserError
from detsd.utils.paths import file_name

ENCODERS = ("clip_l", "clip_g")  # the field's names of Stable Diffusion XL's text encoders
OUTPUTS = ("emp_params_out", "clip_l_out", "clip_g_out")  # OneTrainer's rows behind the encoder
FAMILIES = {  # by the widths of the rows, one per text encoder
    (128,): "demo_model, the bundled one",
    (768,): "Stable Diffusion 1.x",
    (1024,): "Stable Diffusion 2.x",
    (768, 1280): "Stable Diffusion XL",
}
ARCHITECTURES = {  # what ModelSpec calls them; other tools sort by it
    (768,): "stable-diffusion-v1/textual-inversion",
    (1024,): "stable-diffusion-v2-768-v/textual-inversion",
    (768, 1280): "stable-diffusion-xl-v1-base/textual-inversion",
}
MOST_NUMBERS = 2**24  # in the rows of one concept and encoder
LONGEST_WORD = 100


@dataclass(frozen=True)
class LearnedConcept:
    """A concept as it lies in a file: its word, its phrase, its rows in float32.

    Attributes:
        embeddings: rows (n, D) of the base model's text encoder.
        embeddings_2: rows (n, D2) of its second one; None where it has only one.
        model: the base model it was learned on; "" where that is not known.
        model_hash: which weights of that name: the hub's commit, or what another tool noted.
        steps: of training; None where that is not known.
    """

    name: str
    initializer: str
    embeddings: torch.Tensor
    embeddings_2: torch.Tensor | None = None
    model: str = ""
    model_hash: str = ""
    steps: int | None = None

    @property
    def rows(self) -> tuple[torch.Tensor, ...]:
        """The rows (n, D) of every text encoder, in the model's order."""
        two = self.embeddings_2 is not None
        return (self.embeddings, self.embeddings_2) if two else (self.embeddings,)

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the text encoders that the rows fit."""
        return tuple(rows.shape[1] for rows in self.rows)

    @property
    def digest(self) -> str:
        """What tells these rows from others."""
        data = b"".join(rows.cpu().float().numpy().tobytes() for rows in self.rows)
        return hashlib.sha256(data).hexdigest()[:16]


def family(widths: tuple[int, ...]) -> str:
    """The models whose text encoders have these widths, in words."""
    return FAMILIES.get(widths, f"another model (text width {' and '.join(map(str, widths))})")


# ---- reading -------------------------------------------------------------------------------------


def read_concepts(source: str | Path) -> list[LearnedConcept]:
    """The concepts of a file in any layout, or of a checkpoint or run folder.

    Args:
        source: a path, or `path=word`, which gives its only concept that word.

    Raises:
        UserError: missing, damaged, no concept, or rows that are no finite matrix.
    """
    path, word = split_source(source)
    file = file_of(path)
    concepts = _recognised(file, *content.read(file))
    if not concepts:
        raise UserError(f"{file} holds no concept; train one, or name another file")
    if word and len(concepts) > 1:
        raise UserError(
            f"{file} holds {len(concepts)} concepts, so {word!r} cannot be the word of all; name a "
            "file of one"
        )
    if word:
        concepts = [dataclasses.replace(concepts[0], name=word)]
    for c in concepts:
        if not c.name.isprintable() or len(c.name) > LONGEST_WORD:
            raise UserError(
                f"{file} calls a concept {c.name[:20]!r} ..., which nobody can write in a prompt; "
                f"give it a word: {file}=my-word"
            )
    return concepts


def _recognised(file: Path, table: Any, notes: dict[str, str]) -> list[LearnedConcept]:
    """The concepts of what `content.read` found in `file`."""
    if isinstance(table, torch.Tensor):
        return [_concept(file, "", [table], notes)]
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        content.refuse(file, "a PyTorch file of another kind")
    if "string_to_param" in table:
        rows = table["string_to_param"]
        if isinstance(rows, torch.nn.ParameterDict):  # which no method is called of
            rows = vars(rows).get("_parameters")
        if not isinstance(rows, dict):
            content.damaged(file, "string_to_param is no dictionary")
        named = {"*": ""} | ({key: table.get("name") for key in rows} if len(rows) == 1 else {})
        return [
            _concept(file, named.get(key, key), [matrix], table) for key, matrix in rows.items()
        ]
    if all(isinstance(e, dict) and "learned_embeddings" in e for e in table.values()):
        keys = ("learned_embeddings", "learned_embeddings_2")
        return [
            _concept(file, name, [entry[key] for key in keys if key in entry], entry)
            for name, entry in table.items()
        ]
    kind = content.network(_names(table))
    if kind:
        content.refuse(file, kind)
    if not all(isinstance(matrix, torch.Tensor) for matrix in table.values()):
        content.refuse(file, "a PyTorch file of another kind")
    if table.keys() & set(OUTPUTS):
        raise UserError(
            f"{file} holds rows for behind the text encoder (OneTrainer's output embedding), which "
            "no word of a prompt stands for; train it without that option"
        )
    for keys in (("emb_params",), ("emp_params",), ENCODERS):
        if table.keys() & set(keys):
            others = ", ".join(sorted(table.keys() - set(keys)))[:LONGEST_WORD]
            if others:
                raise UserError(
                    f"{file} is for a model of other text encoders ({others!r} is in it); detsd "
                    "supports Stable Diffusion 1.x, 2.x and XL"
                )
            return [_concept(file, "", [table[key] for key in keys if key in table], notes)]
    if len(table) == 1:
        return [_concept(file, *table, _with_second_encoder(file, table), notes)]
    return [_concept(file, name, [matrix], notes) for name, matrix in table.items()]


def _names(table: Mapping[str, Any]) -> list[str]:
    """The keys of a dictionary and of those inside it: a network's tensors may lie one deeper."""
    inside = [k for entry in table.values() if isinstance(entry, dict) for k in entry]
    return [*table, *filter(lambda key: isinstance(key, str), inside)]


def _with_second_encoder(file: Path, table: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The rows of a file of one word, and those of the file for the model's other text encoder.

    diffusers' script for Stable Diffusion XL writes two, `learned_embeds` and `learned_embeds_2`,
    with the step behind them in a training's midst.
    """
    ((word, rows),) = table.items()
    plain = re.sub(r"(learned_embeds)_2|_2$", r"\1", file.stem)
    second = re.sub(r"(learned_embeds)|$", r"\1_2", plain, count=1)
    other = file.with_name((second if file.stem == plain else plain) + file.suffix)
    if not other.is_file():
        return [rows]
    try:
        beside = content.read(other)[0]
    except UserError:  # it only has a like name
        return [rows]
    found = beside.get(word) if isinstance(beside, dict) and len(beside) == 1 else None
    if not isinstance(found, torch.Tensor) or not found.ndim == rows.ndim > 0:
        return [rows]
    if found.shape[:-1] != rows.shape[:-1]:
        return [rows]
    pair = [rows, found] if file.stem == plain else [found, rows]
    widths = tuple(matrix.shape[-1] for matrix in pair)
    # Of two models with one encoder each.
    alone = widths not in FAMILIES and all((width,) in FAMILIES for width in widths)
    return [rows] if alone or widths[0] == widths[1] else pair


def _concept(
    file: Path, word: Any, matrices: list[Any], notes: Mapping[str, Any]
) -> LearnedConcept:
    """A concept of checked rows; without a `word` it has the file's name."""
    if not isinstance(word, str) or not word:
        noted = notes.get("name")
        same = isinstance(noted, str) and file_name(noted) == file.stem
        word = noted if same else file.stem
    rows = [_rows(file, word, matrix) for matrix in matrices]
    if len({len(r) for r in rows}) > 1:
        raise UserError(
            f"{file}: {word[:LONGEST_WORD]!r} has another number of rows for each text encoder; "
            "export it again"
        )

    def text(*keys: str) -> str:
        return next((notes[k] for k in keys if isinstance(notes.get(k), str)), "")

    counted = (notes.get("steps"), notes.get("step"))
    steps = [
        int(n) for n in counted if isinstance(n, int | str) and re.fullmatch(r"\d{1,9}", f"{n}")
    ]
    return LearnedConcept(
        word,
        text("initializer_strs"),
        *rows,
        model=text("model", "sd_checkpoint_name"),
        model_hash=text("model_hash", "sd_checkpoint"),
        steps=steps[0] if steps else None,
    )


def _rows(file: Path, word: str, matrix: Any) -> torch.Tensor:
    """A matrix (n, D), or one row (D,), as finite float32 rows (n, D) of their own memory."""
    plain = (
        type(matrix) in (torch.Tensor, torch.nn.Parameter)
        and matrix.layout == torch.strided
        and matrix.device.type == "cpu"
        and matrix.is_floating_point()
        and matrix.ndim in (1, 2)
        and 0 < matrix.numel() <= MOST_NUMBERS  # few bytes can stand for any number of them
    )
    if not plain:
        shape = f" of shape {tuple(matrix.shape)}" if isinstance(matrix, torch.Tensor) else ""
        raise UserError(
            f"{file}: the rows of {word[:LONGEST_WORD]!r} are a {type(matrix).__name__}{shape}, "
            "not a matrix of floating point numbers (n, width); export the concept again"
        )
    rows = matrix.detach().to(torch.float32, copy=True).contiguous()
    if not torch.isfinite(rows).all():
        raise UserError(
            f"{file}: the rows of {word[:LONGEST_WORD]!r} are not finite; export an earlier state "
            "of the concept"
        )
    return rows[None] if rows.ndim == 1 else rows


# ---- writing -------------------------------------------------------------------------------------


def write_concepts(concepts: list[LearnedConcept], folder: Path) -> None:
    """Write `learned_embeddings_dict.pt` and one safetensors file per concept into `folder`."""
    files = encode(concepts, "detsd")
    for c in concepts:
        files |= encode([c], "diffusers" if len(c.rows) == 1 else "sdxl")
    for name, data in files.items():
        (folder / name).write_bytes(data)


def encode(concepts: list[LearnedConcept], layout: str) -> dict[str, bytes]:
    """Files of concepts by their names; float32, and as much as the layout tells besides.

    Args:
        layout: one of `LAYOUTS`.

    Raises:
        UserError: two concepts for one file name, or one that the layout has no place for.
    """
    files: dict[str, bytes] = {}
    if layout == "detsd":
        table = {c.name: _entry(c) for c in concepts}
        if len(table) < len(concepts):
            raise UserError("two of the concepts have the same word; rename one: FILE=WORD")
        return {DICT_FILE: _pickled(table)}
    for c in concepts:
        made = _tensor_files(c, layout)
        for name in made.keys() & files.keys():
            raise UserError(
                f"two of the concepts would be written to {name}; rename one: FILE=WORD"
            )
        files |= made
    return files


def store(files: dict[str, bytes], folder: Path) -> None:
    """Put files into `folder`, each as a whole; it is made.

    Raises:
        UserError: a file of that name holds something else; nothing is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = folder / name
        if path.exists() and (not path.is_file() or path.read_bytes() != data):
            raise UserError(f"{path} exists already and holds something else; name another folder")
    for name, data in files.items():
        staging = folder / f".{name}.tmp"
        staging.write_bytes(data)
        os.replace(staging, folder / name)


def _tensor_files(c: LearnedConcept, layout: str) -> dict[str, bytes]:
    stem, rows = file_name(c.name), [_rows(Path(c.name), c.name, r.cpu()) for r in c.rows]
    if layout == "a1111":
        if len(rows) > 1:
            raise UserError(
                f"{c.name} has rows of two text encoders, for which A1111 reads --format sdxl"
            )
        return {f"{stem}.pt": _pickled(
            {
                "string_to_token": {"*": 265},  # as A1111 has it
                "string_to_param": {"*": rows[0]},
                "name": c.name,
                "step": c.steps,
                "sd_checkpoint": c.model_hash or None,
                "sd_checkpoint_name": c.model or None,
                "initializer_strs": c.initializer,
            }
        )}  # fmt: skip
    if layout == "diffusers":
        return {
            f"{stem}{number}.safetensors": _safetensors(c, {c.name: matrix})
            for number, matrix in zip(("", "_2"), rows, strict=False)
        }
    if len(rows) == 2:
        keys = ENCODERS
    elif layout == "sdxl":
        raise UserError(
            f"{c.name} fits {family(c.widths)}, which has one text encoder; the layout sdxl holds "
            "rows of two: use another --format"
        )
    else:
        keys = ("emb_params",) if layout == "kohya" else ("emp_params",)
    return {f"{stem}.safetensors": _safetensors(c, dict(zip(keys, rows, strict=True)))}


def _entry(c: LearnedConcept) -> dict[str, Any]:
    """A concept in detsd's own layout; what is not known is left out."""
    keys = ("learned_embeddings", "learned_embeddings_2")
    known = {"model": c.model, "model_hash": c.model_hash, "steps": c.steps}
    return {
        "initializer_strs": c.initializer,
        **{k: _rows(Path(c.name), c.name, r.cpu()) for k, r in zip(keys, c.rows, strict=False)},
        **{key: value for key, value in known.items() if value not in ("", None)},
    }


def _pickled(table: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.save(table, stream)
    return stream.getvalue()


def _safetensors(c: LearnedConcept, tensors: dict[str, torch.Tensor]) -> bytes:
    """A safetensors file with what other tools show of it.

    The names of the notes are A1111's, and ModelSpec's where it has a name for the family.
    """
    metadata = {
        "format": "pt",
        "name": c.name,
        "initializer_strs": c.initializer,
        "step": "" if c.steps is None else str(c.steps),
        "sd_checkpoint_name": c.model,
        "sd_checkpoint": c.model_hash,
    }
    plain = safetensors.torch.save(tensors)
    start = 8 + int.from_bytes(plain[:8], "little")  # of the tensors' bytes, behind the header
    if c.widths in ARCHITECTURES:
        metadata |= {
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": ARCHITECTURES[c.widths],
            "modelspec.implementation": "diffusers",
            "modelspec.title": c.name,
            "modelspec.trigger_phrase": c.name,
            "modelspec.usage_hint": f"write {c.name} in the prompt",
            "modelspec.hash_sha256": f"0x{hashlib.sha256(plain[start:]).hexdigest()}",
        }
    notes = {"__metadata__": {key: value for key, value in metadata.items() if value}}
    # The library would shuffle the notes; so equal concepts make equal files.
    header = json.dumps(notes | json.loads(plain[8:start])).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + plain[start:]
