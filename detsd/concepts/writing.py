"""Concept files, written in the layouts that other tools read."""

import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from detsd.concepts.concept import ENCODERS, LearnedConcept, family
from detsd.concepts.reading import _rows, read_concepts
from detsd.concepts.usage import prompts, token
from detsd.runs.folder import DICT_FILE
from detsd.utils.errors import UserError
from detsd.utils.paths import atomic_write, file_name

ARCHITECTURES = {  # ModelSpec's names, by which other tools sort concepts
    (768,): "stable-diffusion-v1/textual-inversion",
    (1024,): "stable-diffusion-v2-768-v/textual-inversion",
    (768, 1280): "stable-diffusion-xl-v1-base/textual-inversion",
}


def write_concepts(concepts: list[LearnedConcept], folder: Path) -> None:
    """Write `learned_embeddings_dict.pt` and one safetensors file per concept into `folder`."""
    files = encode(concepts, "detsd")
    for c in concepts:
        files |= encode([c], "diffusers" if len(c.embeddings) == 1 else "sdxl")
    for name, data in files.items():
        (folder / name).write_bytes(data)


def encode(concepts: list[LearnedConcept], layout: str) -> dict[str, bytes]:
    """Encode concepts in one of `LAYOUTS`, in float32, with as much metadata as it can hold."""
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


def folder_for(
    files: dict[str, bytes], folder: Path, concepts: list[LearnedConcept], layout: str
) -> Path:
    """Return `folder`, or a subfolder named after the layout if it holds them in another layout.

    Several tools use the file's name as the word, so it must not contain the layout.
    """
    digests = {c.digest for c in concepts}
    for name, data in files.items():
        path = folder / name
        if path.is_file() and path.read_bytes() != data:
            with contextlib.suppress(UserError):
                if {c.digest for c in read_concepts(path)} <= digests:
                    return folder / layout
    return folder


def store(files: dict[str, bytes], folder: Path) -> None:
    """Write files into `folder`, each whole or not at all; refuse to overwrite other content."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = folder / name
        if path.exists() and (not path.is_file() or path.read_bytes() != data):
            raise UserError(f"{path} already exists and holds something else; name another folder")
    for name, data in files.items():
        with atomic_write(folder / name) as staging:
            staging.write_bytes(data)


def _tensor_files(c: LearnedConcept, layout: str) -> dict[str, bytes]:
    stem, rows = file_name(c.name), [_rows(Path(c.name), c.name, r.cpu()) for r in c.embeddings]
    if layout == "a1111":
        if len(rows) > 1:
            raise UserError(
                f"{c.name} has rows for two text encoders, which A1111 reads in another layout; "
                "use --format sdxl"
            )
        return {f"{stem}.pt": _pickled(
            {
                "string_to_token": {"*": 265},  # as in A1111
                "string_to_param": {"*": rows[0]},
                "name": token(c),  # diffusers' word for it; A1111 uses the file's name
                "spelling": c.name,
                **({} if c.steps is None else {"step": c.steps}),  # ai-toolkit fails on None
                "sd_checkpoint": c.model_hash or None,
                "sd_checkpoint_name": c.model or None,
                "initializer_strs": c.initializer,
                **({"resolution": _resolution(c)} if c.resolution else {}),
            }
        )}  # fmt: skip
    if layout == "diffusers":
        return {
            f"{stem}{number}.safetensors": _safetensors(c, layout, {token(c): matrix})
            for number, matrix in zip(("", "_2"), rows, strict=False)
        }
    if len(rows) == 2:
        keys = ENCODERS
    elif layout == "sdxl":
        raise UserError(
            f"{c.name} fits {family(c.widths)}, which has one text encoder, but the layout sdxl "
            "holds rows for two; use another --format"
        )
    else:
        keys = ("emb_params",) if layout == "kohya" else ("emp_params",)
    return {f"{stem}.safetensors": _safetensors(c, layout, dict(zip(keys, rows, strict=True)))}


def _entry(c: LearnedConcept) -> dict[str, Any]:
    """Return a concept in detsd's own layout, without unknown values."""
    keys = ("learned_embeddings", "learned_embeddings_2")
    known = {"model": c.model, "model_hash": c.model_hash, "steps": c.steps}
    known["clip_skip"] = c.clip_skip or None
    known["resolution"] = _resolution(c)
    return {
        "initializer_strs": c.initializer,
        **{
            k: _rows(Path(c.name), c.name, r.cpu())
            for k, r in zip(keys, c.embeddings, strict=False)
        },
        **{key: value for key, value in known.items() if value not in ("", None)},
    }


def _resolution(c: LearnedConcept) -> str:
    """Return width and height in ModelSpec's form, `512x768`; "" for none."""
    return "{}x{}".format(*c.resolution) if c.resolution else ""


def _pickled(table: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.save(table, stream)
    return stream.getvalue()


def _hint(c: LearnedConcept, layout: str) -> str:
    """Return one text with the words to write in the prompts of each tool."""
    by_text: dict[str, list[str]] = {}
    for tool, text in prompts(c, layout).items():
        by_text.setdefault(text, []).append(tool)
    found = "; ".join(f"{text} in {', '.join(tools)}" for text, tools in by_text.items())
    return f"write {found or c.name + ' in the prompt'}"


def _safetensors(c: LearnedConcept, layout: str, tensors: dict[str, torch.Tensor]) -> bytes:
    """Encode tensors with metadata under A1111's names, and ModelSpec's for known families."""
    metadata = {
        "format": "pt",
        "name": c.name,
        "initializer_strs": c.initializer,
        "step": "" if c.steps is None else str(c.steps),
        "sd_checkpoint_name": c.model,
        "sd_checkpoint": c.model_hash,
        "clip_skip": str(c.clip_skip or ""),
        "resolution": _resolution(c),
    }
    plain = safetensors.torch.save(tensors)
    start = 8 + int.from_bytes(plain[:8], "little")  # start of the tensors' bytes, after the header
    if c.widths in ARCHITECTURES:
        metadata |= {
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": ARCHITECTURES[c.widths],
            "modelspec.implementation": "diffusers",
            "modelspec.title": c.name,
            "modelspec.trigger_phrase": c.name,
            "modelspec.resolution": _resolution(c),
            "modelspec.usage_hint": _hint(c, layout),
            "modelspec.hash_sha256": f"0x{hashlib.sha256(plain[start:]).hexdigest()}",
        }
    notes = {"__metadata__": {key: value for key, value in metadata.items() if value}}
    # The library would shuffle the metadata; in this order, equal concepts make equal files.
    header = json.dumps(notes | json.loads(plain[8:start])).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + plain[start:]
