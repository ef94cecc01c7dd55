"""Read concept files in every layout in use; the first six can also be written.

| layout | content of the file |
|---|---|
| detsd | `{word: {"initializer_strs": str, "learned_embeddings": [n, D]}}` |
| diffusers | `{word: [n, D]}`, or `[D]` |
| a1111 | `{"string_to_param": {"*": [n, D]}, "name": word, ...}` |
| kohya | `{"emb_params": [n, D]}` |
| sdxl | `{"clip_l": [n, D], "clip_g": [n, D2]}` |
| onetrainer | `{"emp_params": [n, D]}` |
| a word in a LoRA | `{"bundle_emb.WORD.KEY": [n, D]}`, KEY as in the layouts above |
| peft | `{"...trainable_tokens_delta": [n, D]}`, without a word |

For a model with two text encoders, a concept also has `"learned_embeddings_2": [n, D2]` in the
first layout, and two files, `word` and `word_2`, in the second; kohya and OneTrainer write the
fifth. If a file holds no word, the file name is the word. Rows are float32.

Sources: huggingface/diffusers `loaders/textual_inversion.py`, AUTOMATIC1111 `textual_inversion.py`
and `image_embedding.py`, ComfyUI `sd1_clip.py`, kohya-ss/sd-scripts `train_textual_inversion.py`,
OneTrainer `StableDiffusionEmbeddingSaver.py`, rinongal/textual_inversion `embedding_manager.py`,
Stability-AI/ModelSpec.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from detsd.concepts import safe_load
from detsd.concepts.concept import ENCODERS, FAMILIES, LearnedConcept
from detsd.concepts.safe_load import refuse
from detsd.concepts.source import MAX_WORD, ConceptSource, word_problem
from detsd.utils.errors import UserError
from detsd.utils.paths import file_name

# A word in a LoRA's file, and the rows of peft's trained tokens, which come without a word.
BUNDLED = re.compile(
    r"bundle_emb\.(?P<word>.+?)\.(?:(?P<a1111>string_to_param\..*)|(?P<layout>[^.]+))"
)
DELTA = re.compile(r"(?:.*\.)?trainable_tokens_delta")

OUTPUTS = ("emp_params_out", "clip_l_out", "clip_g_out")  # OneTrainer's, for the encoder's output

MAX_SIDE = 8192  # pixels; the largest side that a file may request

MAX_NUMBERS, MAX_ALL = 2**24, 2**26  # numbers per concept and encoder, and per file


def read_concepts(source: str | Path | ConceptSource) -> list[LearnedConcept]:
    """Read the concepts of a file in any layout, or of a checkpoint or run folder.

    `path=word` renames its only concept, `path=old=word` one of several.
    """
    source = ConceptSource.parse(source)
    file, word, old = source.file, source.word, source.old
    table, notes = safe_load.read(file)
    names = (key for key in table if isinstance(key, str)) if isinstance(table, dict) else ()
    if not word and any(map(DELTA.fullmatch, names)):
        raise UserError(
            f"{file} holds trained tokens of peft without their word; add it, as in {file}=my-word"
        )
    concepts = _recognised(file, table, _plain(notes))
    if not concepts:
        raise UserError(f"{file} holds no concept; train one, or name another file")
    names = [c.name for c in concepts]
    if old and old not in names:
        raise UserError(f"{file} holds no concept {old!r}; it holds {', '.join(names)[:MAX_WORD]}")
    if word and not old and len(concepts) > 1:
        raise UserError(
            f"{file} holds {len(concepts)} concepts, which cannot all have the word {word!r}; say "
            f"which one gets it, as in {file}={names[0][:MAX_WORD]}={word}"
        )
    if word:
        concepts = [
            dataclasses.replace(c, name=word) if c.name == (old or c.name) else c for c in concepts
        ]
    for c in concepts:
        if problem := word_problem(c.name):
            raise UserError(f"{file}: {problem}: {file}=my-word")
    return concepts


def word_in_file(source: ConceptSource, name: str) -> str:
    """Return the word in the file of a concept that was read from a source as `name`."""
    if name != source.word:
        return name
    if source.old:
        return source.old
    try:
        return read_concepts(dataclasses.replace(source, word=""))[0].name
    except UserError:  # a layout that stores no word
        return name


def _recognised(file: Path, table: Any, notes: dict[str, str]) -> list[LearnedConcept]:
    """Return the concepts in the content of `file`, as `safe_load.read` returns it."""
    if isinstance(table, torch.Tensor):
        return [_concept(file, "", [table], notes)]
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        refuse(file, "a PyTorch file of another kind")
    numbers = (e.numel() for _, e in _entries(table) if isinstance(e, torch.Tensor))
    kind = safe_load.network(key for key, _ in _entries(table) if isinstance(key, str))
    if (count := sum(n for n in numbers if n <= MAX_NUMBERS)) > MAX_ALL:
        refuse(file, kind or f"a file of {count:,} numbers")
    if "string_to_param" in table:
        rows = table["string_to_param"]
        if not isinstance(rows, dict):
            safe_load.damaged(file, "string_to_param is not a dictionary")
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
    if any(map(DELTA.fullmatch, table)):
        return [_concept(file, "", list(table.values()), notes)]
    if bundled := {key: match for key in table if (match := BUNDLED.fullmatch(key))}:
        words: dict[str, dict[str, Any]] = {}
        for key, match in bundled.items():
            layout = "emb_params" if match["a1111"] else match["layout"]
            words.setdefault(match["word"], {})[layout] = table[key]
        return [c for word, own in words.items() for c in _recognised(file, own, {"word": word})]
    if kind:
        refuse(file, kind)
    if not all(isinstance(matrix, torch.Tensor) for matrix in table.values()):
        refuse(file, "a PyTorch file of another kind")
    if table.keys() & set(OUTPUTS):
        raise UserError(
            f"{file} holds rows that belong behind the text encoder (OneTrainer's output "
            "embedding), which a prompt cannot use; train the concept without that option"
        )
    for keys in (("emb_params",), ("emp_params",), ENCODERS):
        if table.keys() & set(keys):
            others = ", ".join(sorted(table.keys() - set(keys)))[:MAX_WORD]
            if others:
                raise UserError(
                    f"{file} is for a model with other text encoders (it contains {others!r}); "
                    "detsd supports Stable Diffusion 1.x, 2.x and XL"
                )
            return [_concept(file, "", [table[key] for key in keys if key in table], notes)]
    if len(table) == 1:
        return [_concept(file, *table, _with_second_encoder(file, table), notes)]
    return [_concept(file, name, [matrix], notes) for name, matrix in table.items()]


def _plain(notes: dict[str, str]) -> dict[str, Any]:
    """Return the metadata of a safetensors file, with ai-toolkit's JSON values decoded."""
    if not notes.get("name", "").startswith('"'):
        return notes
    found: dict[str, Any] = {}
    for key, value in notes.items():
        with contextlib.suppress(ValueError, RecursionError):
            found[key] = json.loads(value)
    return found | {"word": found.get("name")}


def _entries(table: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the keys and values in the top two levels of a table, which hold rows or networks."""
    for key, value in table.items():
        yield key, value
        if isinstance(value, dict):
            yield from value.items()


def _with_second_encoder(file: Path, table: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return a word's rows, and the other encoder's if diffusers' second file (`_2`) has them."""
    ((word, rows),) = table.items()
    plain = re.sub(r"(learned_embeds)_2|_2$", r"\1", file.stem)
    second = re.sub(r"(learned_embeds)|$", r"\1_2", plain, count=1)
    other = file.with_name((second if file.stem == plain else plain) + file.suffix)
    try:
        beside = safe_load.read(other)[0]
    except UserError:  # no such file, or one that only has a similar name
        return [rows]
    found = beside.get(word) if isinstance(beside, dict) and len(beside) == 1 else None
    if not isinstance(found, torch.Tensor) or not found.ndim == rows.ndim > 0:
        return [rows]
    if found.shape[:-1] != rows.shape[:-1]:
        return [rows]
    pair = [rows, found] if file.stem == plain else [found, rows]
    widths = tuple(matrix.shape[-1] for matrix in pair)
    # The two files are for two models with one encoder each.
    alone = widths not in FAMILIES and all((width,) in FAMILIES for width in widths)
    return [rows] if alone or widths[0] == widths[1] else pair


def _concept(
    file: Path, word: Any, matrices: list[Any], notes: Mapping[str, Any]
) -> LearnedConcept:
    """Return a concept with checked rows, named after the file if it has no `word`."""
    for key in ("name", "spelling"):  # the original spelling of a word lower-cased for diffusers
        spelling = notes.get(key)
        if isinstance(word, str) and isinstance(spelling, str) and spelling.lower() == word:
            word = spelling
    if not isinstance(word, str) or not word:
        word = notes.get("word")
    if not isinstance(word, str) or not word:
        noted = notes.get("name")
        same = isinstance(noted, str) and file_name(noted) == file.stem
        word = noted if same else file.stem
    rows = [_rows(file, word, matrix) for matrix in matrices]
    if len({len(r) for r in rows}) > 1:
        raise UserError(
            f"{file}: {word[:MAX_WORD]!r} has a different number of rows for each text encoder; "
            "export the concept again"
        )

    def text(*keys: str) -> str:
        found = next((notes[k] for k in keys if isinstance(notes.get(k), str)), "")
        return found.encode(errors="replace").decode()  # half an emoji would not be valid text

    def number(*keys: str) -> int | None:
        for noted in map(notes.get, keys):
            small = isinstance(noted, int) and 0 <= noted < 10**9  # Python can't print 5,000 digits
            if (isinstance(noted, str) or small) and re.fullmatch("[0-9]{1,9}", f"{noted}"):
                return int(noted)
        return None

    return LearnedConcept(
        word,
        text("initializer_strs"),
        tuple(rows),
        model=text("model", "sd_checkpoint_name"),
        model_hash=text("model_hash", "sd_checkpoint"),
        steps=number("steps", "step"),
        clip_skip=number("clip_skip") or 0,
        resolution=_resolution(notes.get("resolution")),
    )


def _resolution(text: Any) -> tuple[int, int] | None:
    """Return width and height from a note such as `512x768`; None if no image can have them."""
    found = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", text) if isinstance(text, str) else None
    sides = tuple(map(int, found.groups())) if found else ()
    return sides if sides and all(8 <= s <= MAX_SIDE and s % 8 == 0 for s in sides) else None


def _rows(file: Path, word: str, matrix: Any) -> torch.Tensor:
    """Return a matrix (n, D), or one row (D,), as finite float32 rows in their own memory."""
    if isinstance(matrix, torch.Tensor) and matrix.ndim == 3 and matrix.shape[:2] == (1, 1):
        matrix = matrix[0]  # from diffusers' script for several tokens
    plain = (
        type(matrix) in (torch.Tensor, torch.nn.Parameter)
        and matrix.layout == torch.strided
        and matrix.device.type == "cpu"
        and matrix.is_floating_point()
        and matrix.ndim in (1, 2)
        and 0 < matrix.numel() <= MAX_NUMBERS  # few bytes can stand for any number of elements
    )
    if not plain:
        shape = f" of shape {tuple(matrix.shape)}" if isinstance(matrix, torch.Tensor) else ""
        raise UserError(
            f"{file}: the rows of {word[:MAX_WORD]!r} are a {type(matrix).__name__}{shape}, "
            "not a matrix of floating point numbers (n, width); export the concept again"
        )
    rows = matrix.detach().to(torch.float32, copy=True).contiguous()
    if not torch.isfinite(rows).all():
        raise UserError(
            f"{file}: the rows of {word[:MAX_WORD]!r} are not finite; export an earlier state "
            "of the concept"
        )
    return rows[None] if rows.ndim == 1 else rows


def find_concepts(named: str | Path) -> tuple[list[LearnedConcept], str, str]:
    """Return the concepts of a source, their location, and the source as named.

    An image records the location, which names the same file even if the run continues later.
    """
    source = ConceptSource.parse(named).resolved
    source = source if source.uuid else source.located
    return read_concepts(source), str(source), str(named)
