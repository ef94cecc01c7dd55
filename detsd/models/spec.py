"""Describe a base model from a few kilobytes of its files; load its tokenizers and token tables.

The libraries that load whole models take seconds to import, so they are not imported here.
"""

import contextlib
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import CLIPTokenizer

from detsd.config import ModelConfig
from detsd.models.hub import KEY, ModelFiles, resolve_files
from detsd.models.single_file import (
    find_single_file,
    is_single_file,
    scheduler_overrides,
    token_tables,
    tokenizer_of,
)
from detsd.models.support import (
    INDEX,
    SUPPORTED,
    unsupported_index,
    unsupported_parts,
    vocabulary,
    without_index,
)
from detsd.utils.errors import UserError, one_line
from detsd.utils.memory import is_out_of_memory
from detsd.utils.paths import resolve

HINT = "give a complete diffusers folder or a hub model that has safetensors weights"

VOCABULARY_FILES = ("vocab.json", "tokenizer.json")  # of older and of newer tokenizers

ERRORS = (  # raised by the libraries for bad files
    OSError, ValueError, RuntimeError, TypeError, LookupError, EOFError, ImportError,
    SafetensorError, pickle.UnpicklingError,
)  # fmt: skip


def resolve_model(config: ModelConfig, fetch: bool = True) -> ModelFiles:
    """Find the files of the configured base model; without `fetch`, the hub is not queried."""
    name = resolve(config.pretrained_model_name_or_path)
    if is_single_file(name):
        with loading(name):
            return find_single_file(name)
    return resolve_files(name, config.revision, fetch)


@contextlib.contextmanager
def loading(name: str, hint: str = HINT, key: str = KEY) -> Iterator[None]:
    """Turn any error while reading a model's files into one sentence."""
    try:
        yield
    except ERRORS as error:
        reason = one_line(error, 300)
        if is_out_of_memory(error):
            hint = "free the device's memory, or use half precision (model.precision)"
        raise UserError(f"{key}: {name} cannot be loaded; {hint} (reason: {reason})") from None


@dataclass(frozen=True)
class ModelSpec:
    """The properties of a supported base model, read from its small files."""

    tokenizers: tuple[str, ...]  # the names of their parts, one or two
    text_encoders: tuple[str, ...]
    widths: tuple[int, ...]  # of the text encoders
    max_clip_skip: int
    sampler: dict  # the configuration of its own scheduler
    force_zeros_for_empty_prompt: bool
    force_upcast: bool  # of the VAE, in half precision

    def vae_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the VAE's dtype if the other parts have `dtype`."""
        return torch.float32 if self.force_upcast and dtype == torch.float16 else dtype


def read_spec(source: ModelFiles) -> ModelSpec:
    """Read a model's properties; from the hub only small files are fetched."""

    def refuse(what: str) -> UserError:
        return UserError(f"{KEY}: {source.name} is {what}; {SUPPORTED}")

    if INDEX not in source.files:
        raise refuse(without_index(source.files))
    with loading(source.name):
        index = read_json(source, INDEX)
    if what := unsupported_index(index):
        raise refuse(what)
    two = bool((index.get("text_encoder_2") or [None])[-1])
    tokenizers = ("tokenizer", "tokenizer_2") if two else ("tokenizer",)
    encoders = ("text_encoder", "text_encoder_2") if two else ("text_encoder",)
    source.fetch("scheduler", "unet", "vae", *encoders, weights=False)
    with loading(source.name):
        parts = ("unet", "vae", *encoders)
        configs = {part: read_json(source, f"{part}/config.json") for part in parts}
        configs["scheduler"] = read_json(source, "scheduler/scheduler_config.json")
        if source.single:
            configs["scheduler"] |= scheduler_overrides(source.single)
    if what := unsupported_parts(configs):
        raise refuse(what)
    return ModelSpec(
        tokenizers,
        encoders,
        tuple(configs[encoder].get("hidden_size", 512) for encoder in encoders),
        # XL counts from the second-to-last layer.
        min(configs[e].get("num_hidden_layers", 12) for e in encoders) + 1 - len(encoders),
        configs["scheduler"],
        two and index.get("force_zeros_for_empty_prompt", True),
        two and configs["vae"].get("force_upcast", True),
    )


def read_json(source: ModelFiles, name: str) -> dict:
    return json.loads((source.folder / name).read_text(encoding="utf-8"))


def fetch_vocabulary(config: ModelConfig) -> dict[str, int]:
    """Fetch a model's tokenizer and return its tokens, to check words before loading weights."""
    source = resolve_model(config)
    source.fetch(*read_spec(source).tokenizers, weights=False)
    return vocabulary(config)


def load_token_tables(
    config: ModelConfig, fetch: bool = True
) -> list[tuple[CLIPTokenizer, torch.Tensor]]:
    """Load a base model's tokenizers and their embedding tables (V, D), float32.

    There is one of each for every text encoder; nothing else of the model is loaded. Without
    `fetch`, the hub is not queried.
    """
    source = resolve_model(config, fetch)
    spec = read_spec(source)
    source.fetch(*spec.tokenizers, *spec.text_encoders)
    with loading(source.name):
        parts = map(source.weights, spec.text_encoders)
        files = [[source.folder / name for name in names] for names in parts]
        files = [[source.single]] if source.single else files
        tables = [table for part in files for table in token_tables(part)]
        tokenizers = [tokenizer_for(source, part) for part in spec.tokenizers]
        return list(zip(tokenizers, tables, strict=True))


def tokenizer_for(source: ModelFiles, part: str) -> CLIPTokenizer:
    """Read a tokenizer; raise OSError without a vocabulary, which transformers 5 does not check."""
    if source.single:
        return tokenizer_of(source, part)
    if not any(Path(part, name).as_posix() in source.files for name in VOCABULARY_FILES):
        raise FileNotFoundError(f"the tokenizer has neither {' nor '.join(VOCABULARY_FILES)}")
    return CLIPTokenizer.from_pretrained(source.folder, subfolder=part)
