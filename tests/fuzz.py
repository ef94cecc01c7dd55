"""Damaged inputs for every reader: the result must be right, or a sentence.

    python -m tests.fuzz --count 20000 --seed 1

Valid files are changed: keys are dropped, values replaced with other types, bytes flipped, the end
cut off. A file with a checksum whose bytes are changed must be refused or read as before. It prints
a line for each reader: inputs, right results, sentences, faults, the slowest input in seconds of
CPU, the most memory above that of the libraries. Exit code 1 after a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parent))

import conftest  # noqa: F401  - which sets what the libraries read
import hypothesis.strategies as st
import torch
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, Phase, given, seed, settings
from layouts import LAYOUTS
from picture_files import KINDS
from PIL import Image
from safetensors.torch import save as safetensors_bytes
from test_data import concepts as concepts_config
from test_foreign import graph
from tiny import save_tiny_model

from detsd.__main__ import main as detsd
from detsd.cli.generate import remake_hyperparameters
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.prompts import prompt_warnings
from detsd.concepts.reading import read_concepts
from detsd.concepts.source import word_problem
from detsd.config import (
    EvaluateConfig,
    FinetuneConfig,
    GenerateConfig,
    ModelConfig,
    load_config,
    parse_config,
)
from detsd.data.images import read_images
from detsd.evaluate.preflight import check_evaluate
from detsd.generate.preflight import check_generate
from detsd.generate.shards import image_path, stored_images
from detsd.models.loading import load_base_model
from detsd.runs.folder import RunFolder, read_metadata
from detsd.train.checkpoint import Checkpoints, latest_concepts
from detsd.train.preflight import check_finetune
from detsd.train.resume import check_resume
from detsd.train.step import TrainStep
from detsd.utils import png
from detsd.utils.errors import UserError

SECONDS, MEGABYTES = 30, 1200  # CPU time and memory above the libraries', at most, per input

ODD = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(10**30), 10**400, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", " ", "a", "0", "nan", "../..", "/", "a/b", "~", "x" * 300, "\0",
    "é" * 200, "\ud83d", "\x1b[31m", "{}", "*", "uuid:../..", "a=b=c", "日本", "<|endoftext|>",
    [], {}, [[]], [None], {"": None}, {"type": "const"}, {"type": "int", "minval": 1},
    [1, "a", None], {"a": {"a": {"a": []}}},
)  # fmt: skip


# ---- changes -------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut off the end, cut out a part, double a part, or insert other bytes."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 30, 400))
        way = rng.randrange(6)
        if way <= 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif way == 2:
            del data[at:]
        elif way == 3:
            del data[at : at + length]
        elif way == 4:
            data[at:at] = data[at : at + length]
        else:
            data[at : at + length] = rng.randbytes(rng.choice((1, length)))
    return bytes(data)


def places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield the containers and keys in a value."""
    if depth < 9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys if isinstance(value, dict | list) else ():
            yield value, key
            if isinstance(value[key], dict | list):
                yield from places(value[key], depth + 1)


def changed(value: Any, rng: random.Random, odd: tuple = ODD) -> Any:
    """Drop, replace, double, swap or deepen parts of a value."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not (every := list(places(value))):
            break
        where, key = rng.choice(every)
        way = rng.randrange(6)
        if way == 0:
            del where[key]
        elif way == 1 and isinstance(where, dict):
            where[rng.choice(("a", "", "\ud83d", "steps_completed", "x" * 300))] = where[key]
        elif way == 2:
            where[key] = copy.deepcopy(rng.choice(rng.choice(every)[:1]))
        elif way == 3:
            where[key] = [where[key]] * rng.choice((1, 3, 40))
        else:
            where[key] = copy.deepcopy(rng.choice(odd))
    return value


# ---- readers -------------------------------------------------------------------------------------


class Reader:
    """A reader: inputs are made and read in its own folder, which the constructor fills."""

    def __init__(self, folder: Path):
        self.folder = folder

    def check(self, rng: random.Random) -> None:
        """Make an input and read it; a fault is any exception but UserError."""
        raise NotImplementedError


class ConceptFile(Reader):
    """Files of every layout, as bytes and as objects, and pickles of random operations."""

    WORD = "blob-thing"

    def __init__(self, folder: Path):
        super().__init__(folder)
        rows = [torch.randn(2, 16), torch.randn(2, 24)]
        writers = [(w, n) for ws, counts, _ in LAYOUTS.values() for w in ws for n in counts]
        self.files = []
        for k, (write, count) in enumerate(writers):
            (folder / str(k)).mkdir()
            path = write(folder / str(k) / self.WORD, self.WORD, [r.clone() for r in rows[:count]])
            if path.is_file():
                own = folder / f"{self.WORD}{path.suffix}"
                self.files.append((own, path.read_bytes(), self._read(path, own)))
        tensor = torch.randn(2, 16)
        self.tables = [
            {"x": {"initializer_strs": "ball", "learned_embeddings": tensor}},
            {"string_to_param": {"*": tensor}, "name": "x", "step": 7, "sd_checkpoint": "a"},
            {"x": tensor, "y": tensor}, {"emb_params": tensor}, {"bundle_emb.x.emb_params": tensor},
            {"clip_l": tensor, "clip_g": tensor}, {"x": tensor[0].to(torch.float16)},
        ]  # fmt: skip
        self.odd = (
            *ODD, tensor.int(), torch.empty(0), torch.full((2, 16), torch.nan), torch.ones(1, 1, 3),
            tensor.expand(9, 2, 16), torch.ones(1).expand(2**40), tensor.to_sparse(), (1, 2),
            torch.tensor(1.0), torch.nn.Parameter(tensor), tensor.bfloat16(), torch.Size([2]),
        )  # fmt: skip

    @staticmethod
    def _read(path: Path, own: Path) -> list[tuple]:
        shutil.copy(path, own)
        found = read_concepts(own)
        own.unlink()
        return [(c.name, *(r.tolist() for r in c.embeddings)) for c in found]

    def check(self, rng):
        way, whole = rng.randrange(5), None
        path = self.folder / "x.pt"
        if way <= 1:
            path, data, whole = rng.choice(self.files)
            data = damaged(data, rng)
            if not data.startswith(b"PK"):  # others have no checksum, or not for everything
                whole = None
        elif way == 2:
            file = io.BytesIO()
            zipped = rng.random() < 0.5
            with contextlib.suppress(Exception):  # cannot be written, e.g. an int of 400 digits
                table = changed(rng.choice(self.tables), rng, self.odd)
                torch.save(table, file, _use_new_zipfile_serialization=zipped)
            data = file.getvalue()
        elif way == 3:
            data = self._safetensors(rng)
        else:
            data = self._operations(rng)
        path.write_bytes(data)
        try:
            found = read_concepts(path)
        finally:
            path.unlink()
        assert found
        for c in found:
            assert isinstance(c, LearnedConcept)
            assert word_problem(c.name) is None
            c.initializer.encode()
            assert {len(r) for r in c.embeddings} == {c.num_vectors}
            assert all(r.dtype == torch.float32 and r.isfinite().all() for r in c.embeddings)
        if whole:
            assert [(c.name, *(r.tolist() for r in c.embeddings)) for c in found] == whole

    @staticmethod
    def _safetensors(rng: random.Random) -> bytes:
        """Return a file whose header is changed as JSON."""
        data = safetensors_bytes({"emb_params": torch.randn(2, 16)}, {"name": "x", "step": "7"})
        size = int.from_bytes(data[:8], "little")
        header = changed(json.loads(data[8 : 8 + size]), rng)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    @staticmethod
    def _operations(rng: random.Random) -> bytes:
        """Return a pickle of random operations, some of them names and tensors."""
        names = (
            b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ctorch\nFloatStorage\n", b"ctorch\nSize\n", b"cbuiltins\nset\n",
            b"c_codecs\nencode\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\nscalar\n",
            b"ctorch\nTensor\n", b"ctorch._utils\n_rebuild_sparse_tensor\n", b"cos\ngetcwd\n",
            b"ctorch.nn.modules.container\nParameterDict\n", b"cnumpy\nndarray\n",
        )  # fmt: skip
        other = (
            b"N", b"}", b"]", b")", b"(", b"K\x05", b"X\x01\0\0\0x", b"X\x07\0\0\0storage", b"\x85",
            b"\x86", b"\x87", b"R", b"b", b"s", b"a", b"e", b"u", b"t", b"2", b"0", b"Q", b"h\0",
            b"h\x01", b"\x94", b"\x81", b"\x88", b"J\xff\xff\xff\x7f", b"G?\xf0\0\0\0\0\0\0",
            b"X\x01\0\0\x000", b"\x8a\x09" + b"\xff" * 9, b"d", b"l",
        )  # fmt: skip
        count = rng.choice((5, 20, 80, 400))
        body = b"".join(rng.choice(names if rng.random() < 0.2 else other) for _ in range(count))
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", rng.choice((0, 8))) as archive:
            archive.writestr("a/data.pkl", b"\x80\x02" + body + b".")
            archive.writestr("a/data/0", b"\0" * 128)
        return file.getvalue()


class Picture(Reader):
    """Pictures of every kind that detsd reads, with damaged bytes."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.kinds = []
        for kind in KINDS:
            kind.write(folder / kind.file)
            self.kinds.append((kind.file, (folder / kind.file).read_bytes()))
            (folder / kind.file).unlink()
        Image.new("RGB", (8, 8)).save(folder / "whole.png")

    def check(self, rng):
        name, data = rng.choice(self.kinds)
        path = self.folder / name
        path.write_bytes(damaged(data, rng))
        try:
            found = list(read_images(self.folder, concepts_config(self.folder), 32, "img_dirs"))
        finally:
            path.unlink()
        assert found[-1].path.name == "whole.png"
        assert {(image.image.size, image.image.mode) for image in found} == {((32, 32), "RGB")}


class Settings(Reader):
    """The settings in a PNG file: for one image again, and in a grid's folder."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.record = {
            "job": 0, "prompt": "a blob-thing", "seed": 3, "negative_prompt": "", "width": 32,
            "guidance_scale": 4.0, "num_inference_steps": 2, "scheduler_name": "ddim", "height": 32,
            "guidance_interval": [0.2, 0.8], "spacing": None, "flagged": False, "batch_size": 1,
            "model": {"pretrained_model_name_or_path": "demo_model", "revision": None,
                      "precision": "fp32", "safety_checker": True},
            "concepts": {"blob-thing": {"source": str(folder / "a.pt"), "sha256": "0" * 16}},
        }  # fmt: skip
        (folder / "a.pt").touch()
        (folder / "images").mkdir()
        self.image = Image.frombytes("RGB", (32, 32), random.Random(0).randbytes(3072))
        self.whole = png.encode(self.image, self.record)

    def check(self, rng):
        path = image_path(self.folder, 0)
        data = self.whole
        if (way := rng.random()) < 0.8:
            info = png.PngInfo()
            if way < 0.5:
                key, text = png.CHUNK, json.dumps(changed(self.record, rng))
            elif way < 0.65:
                key, text = "prompt", json.dumps(changed(graph(), rng))
            else:
                key, text = "parameters", self._fields(rng)
            text = rng.choice((text, text, text, text[: rng.randrange(len(text) + 1)], "[" * 9999))
            info.add_text(key, text, zip=rng.random() < 0.3)
            file = io.BytesIO()
            self.image.save(file, "PNG", pnginfo=info)
            data = file.getvalue()
        if rng.random() < 0.3:
            data = damaged(data, rng)
        path.write_bytes(data)
        for _, record in stored_images(self.folder):
            assert record["job"] == 0
            assert isinstance(record["flagged"], bool)
            assert isinstance(png.parameters(record), str)
            assert png.read(path).tobytes() == self.image.tobytes()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            hyperparameters = remake_hyperparameters(path)
        config = parse_config(hyperparameters, str(path), GenerateConfig)
        check_generate(config, str(path))
        assert config.grid.all_seeds[0] >= 0

    def _fields(self, rng: random.Random) -> str:
        """Return A1111's text, with other values and brackets."""
        text = png.parameters(self.record)
        for _ in range(rng.choice((1, 2, 5))):
            at = rng.randrange(len(text))
            parts = (
                *map(str, ODD),
                "[a:",
                "]",
                "\n",
                ", ",
                ": ",
                '"',
                "<lora:",
                "embedding:",
                "[:|" * 9,
            )
            text = text[:at] + rng.choice(parts) + text[at + rng.choice((0, 0, 3, 20)) :]
        return text.replace("\0", "").encode("latin-1", "replace").decode("latin-1")


class State(Reader):
    """A run's folder with two checkpoints, of which anything in the newer one is changed."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        model = save_tiny_model(folder / "model")
        (folder / "photos").mkdir()
        for k in range(3):
            Image.new("RGB", (32, 32), (90 * k, 40, 40)).save(folder / "photos" / f"{k}.png")
        sections = {
            "model": {"pretrained_model_name_or_path": str(model)},
            "concepts": {"concept_strs": ["blob-thing"], "initializer_strs": ["red ball"],
                         "img_dirs": [str(folder / "photos")]},
            "training": {"num_sgd_steps": 4, "train_batch_size": 1, "checkpoint_freq": 2,
                         "max_validation_images": 1, "num_validation_timesteps": 2,
                         "metric_report_freq": 1},
            "inference": {"inference_prompts": ["a blob-thing"], "num_inference_steps": 1},
        }  # fmt: skip
        file = folder / "e.yaml"
        file.write_text(yaml.safe_dump({"name": "x", "hyperparameters": sections}))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert detsd(["finetune", str(file), "--output-dir", str(folder / "out")]) == 0
        self.config = load_config(file)
        self.run = RunFolder(folder / "out")
        self.newest = self.run.checkpoint(4)
        self.files = {p: p.read_bytes() for p in (*self.newest.iterdir(), self.run.metrics_file)}
        self.state = torch.load(self.newest / "trainer_state.pt", weights_only=True)
        self.base = load_base_model(self.config.model, torch.device("cpu"))
        self.concept = read_concepts(self.newest)[0]
        self.base.vocabulary.add(self.concept)

    def restored(self) -> tuple:
        """Restore the newest checkpoint; return the state with which a run would continue."""
        latest = self.run.latest()
        run = SimpleNamespace(
            latest=latest, latest_is_own=True, latest_uuid="", latest_name=str(latest),
            folder=self.run.path, print=lambda text: None, folder_is_kept=True, is_chief=True,
            begin_anew="name another folder", warm_start="--warm-start",
        )  # fmt: skip
        begun = latest_concepts(run, self.base.vocabulary.names)
        # A process ends at a damaged state; the next one begins with a new state.
        ranks = SimpleNamespace(mean=lambda gradient: gradient)
        step = TrainStep(self.base, self.config.training, ranks)
        checkpoints = Checkpoints(self.config, run, step, self.state["images"], {}, None, {})
        state = checkpoints.restore(begun, 1)
        moments = [
            v.tolist() if isinstance(v, torch.Tensor) else v
            for entry in step.optimizer.state_dict()["state"].values()
            for v in entry.values()
        ]
        vectors = [v.tolist() for v in step.vectors]
        learned = sorted(concept.name for concept in begun)
        return latest.name, learned, state.__dict__, moments, vectors, step.optimizer

    def check(self, rng):
        original = None
        try:
            way = rng.randrange(6)
            path = rng.choice([p for p in self.files if p.suffix in (".pt", ".json", ".jsonl")])
            if way <= 1:
                original = path.suffix == ".pt"
                path.write_bytes(damaged(self.files[path], rng))
            elif way == 2:
                with contextlib.suppress(Exception):  # what cannot be written
                    torch.save(changed(self.state, rng), self.newest / "trainer_state.pt")
            elif way <= 4:
                file = self.newest / "metadata.json"
                file.write_text(json.dumps(changed(json.loads(self.files[file]), rng)))
            else:
                lines = self.files[self.run.metrics_file].decode().splitlines()
                lines = [json.dumps(changed(json.loads(line), rng)) for line in lines]
                self.run.metrics_file.write_text("\n".join(lines))
            self._read(bool(original))
        finally:
            for path, data in self.files.items():
                path.write_bytes(data)

    def _read(self, unchanged: bool) -> None:
        for report in self.run.metrics():
            assert f"{report['group']} {report['steps_completed']:d}"
            assert all(f"{v:.4f}" for key, v in report.items() if key != "group")
        assert self.run.sampled_steps() == [0, 2, 4]
        self.run.forget_metrics_after(4)
        latest = check_resume(self.config, self.run.path, None)
        assert read_metadata(latest)["steps_completed"] in (2, 4)
        found = self.restored()
        assert isinstance(found[2]["samples_seen"], int)
        found[-1].step()
        if unchanged:
            assert repr(found[2]) == self.whole[2]
            assert found[:2] + found[3:5] == self.whole[:2] + self.whole[3:5]

    @property
    def whole(self) -> tuple:
        """The state restored from the intact checkpoint; found once."""
        if not hasattr(self, "_whole"):
            for path, data in self.files.items():
                path.write_bytes(data)
            name, learned, state, *rest = self.restored()
            self._whole = (name, learned, repr(state), *rest)
        return self._whole


class Configuration(Reader):
    """Experiment files and overrides."""

    FILES: ClassVar = {
        "finetune_demo.yaml": (FinetuneConfig, check_finetune),
        "finetune_search.yaml": (FinetuneConfig, check_finetune),
        "generate_demo.yaml": (GenerateConfig, check_generate),
        "evaluate.yaml": (EvaluateConfig, check_evaluate),
    }

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.texts = {name: (ROOT / name).read_text() for name in self.FILES}
        self.folder = folder

    def check(self, rng):
        name = rng.choice(list(self.FILES))
        kind, check = self.FILES[name]
        text, overrides = self.texts[name], []
        way = rng.randrange(4)
        if way <= 1:
            value = changed(yaml.safe_load(text), rng)
            text = json.dumps(value) if rng.random() < 0.5 else yaml.safe_dump(value)
        elif way == 2:
            text = self._lines(text, rng)
        if way == 3 or rng.random() < 0.3:
            overrides = [self._override(text, rng) for _ in range(rng.choice((1, 2)))]
        path = self.folder / name
        data = text.encode("utf-8", "surrogatepass")
        path.write_bytes(damaged(data, rng) if rng.random() < 0.1 else data)
        config = load_config(path, overrides, kind)
        check(config, str(path), ROOT)
        assert isinstance(config, kind)

    PARTS = ("&a", "*a", "&a [*a]", "[", "]", "{", "}", "!!set {a}", "? ", "- ", "<<: *a", "|", ">",
             "!!binary a", "\t", "0x1F", "1e3", "2020-01-01", "null", "---", "#", "'", '"', "%",
             "&b [*a, *a]", "x: &a {y: 1}", "\x85", "\ufeff", "!!python/name:os", "=")  # fmt: skip

    def _lines(self, text: str, rng: random.Random) -> str:
        """Put parts of YAML's syntax into the lines, or double, drop and indent lines."""
        lines = text.splitlines()
        for _ in range(rng.choice((1, 2, 5))):
            k, way = rng.randrange(len(lines)), rng.randrange(5)
            if way == 0 and len(lines) > 1:
                del lines[k]
            elif way == 1:
                lines.insert(k, rng.choice(lines))
            elif way == 2:
                lines[k] = " " * rng.randrange(9) + lines[k].lstrip()
            else:
                at = rng.randrange(len(lines[k]) + 1)
                lines[k] = f"{lines[k][:at]} {rng.choice(self.PARTS)} {lines[k][at:]}"
        return "\n".join(lines)

    def _override(self, text: str, rng: random.Random) -> str:
        sections = yaml.safe_load(self.texts["finetune_demo.yaml"])["hyperparameters"]
        section = rng.choice([*sections, "grid", "evaluation", "", "a"])
        keys = (
            "prompts",
            "seeds",
            "img_dirs",
            "files",
            "uuids",
            "num_sgd_steps",
            "mask",
            "",
            "a.b",
        )
        key = rng.choice([*sections.get(section, {}), *keys])
        value = rng.choice(
            [*map(repr, ODD), *self.PARTS, "[" * 500, "&a [*a]", "{a: b, c: [1, 2]}"]
        )
        return rng.choice((f"{section}.{key}={value}", f"{section}={value}", f"{key}{value}"))


class Prompt(Reader):
    """Prompts of brackets, weights, concepts and any characters, with concepts of odd words."""

    WORDS = ("det-logo", "det-logo-demo", "(a:1.3)", "[x]", "a.b", "日本", "blob thing")
    PARTS = (*WORDS, "a", "photo", "of", ",", ".", "(", ")", "[", "]", ":", "1.3", "0.5", "|", "\\",
             "((", "))", "{", "}", "<", ">", "++", "-", "--", "BREAK", "AND", " ", "  ", "\n",
             "é", "\u0301", "\u200d", "👩", "<|endoftext|>", "</w>", "_", "16:9")  # fmt: skip

    def __init__(self, folder: Path):
        super().__init__(folder)
        model = save_tiny_model(folder / "model")
        base = load_base_model(ModelConfig(str(model)), torch.device("cpu"))
        self.vocabulary = base.vocabulary
        for k, word in enumerate(self.WORDS):
            self.vocabulary.add(LearnedConcept(word, "red ball", (torch.randn(1 + k % 3, 16),)))

    def check(self, rng):
        count = rng.choice((1, 4, 12, 40, 3000 if rng.random() < 0.01 else 5))
        glue = rng.choice(("", " "))
        prompt = glue.join(rng.choice(self.PARTS) for _ in range(count))
        if rng.random() < 0.01:
            prompt = rng.choice("([{:") * 30_000 + prompt
        v = self.vocabulary
        ids = v.token_ids([prompt])
        assert ids.shape == (1, 77)
        for line in prompt_warnings(prompt, v):
            assert isinstance(line, str)
        assert isinstance(v.with_initializers(prompt), str)
        first = v.text_encoders[0].embedding.first_id
        placed = first + sum(c.num_vectors for c in v.concepts())
        assert int(ids.max()) < placed
        plain = f"a photo of {rng.choice(self.WORDS)} here"
        assert int(v.token_ids([plain]).max()) >= first


READERS: dict[str, type[Reader]] = {
    "concept file": ConceptFile,
    "picture": Picture,
    "settings of a PNG": Settings,
    "state": State,
    "configuration": Configuration,
    "prompt": Prompt,
}

INPUTS = st.integers(0, 2**64 - 1).map(random.Random)  # the source of an input


# ---- the command ---------------------------------------------------------------------------------


@dataclass
class Result:
    """The results of a reader's inputs."""

    inputs: int = 0
    right: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds of CPU
    memory: float = 0.0  # MB above that of the libraries

    def line(self, name: str) -> str:
        """Return the line of a reader."""
        return (
            f"{name}: {self.inputs} inputs, {self.right} right, {self.refused} refused with "
            f"UserError, {len(self.faults)} faults, slowest {self.slowest:.2f} s, largest memory "
            f"{self.memory:.0f} MB"
        )


def timed(reader: Reader, rng: random.Random, result: Result) -> None:
    """Check an input; record the result."""
    began = time.process_time()
    signal.alarm(20 * SECONDS)
    try:
        reader.check(rng)
        result.right += 1
    except UserError:
        result.refused += 1
    except BaseException:
        result.faults.append(f"input {result.inputs}: {traceback.format_exc()}")
    signal.alarm(0)
    result.inputs += 1
    seconds = time.process_time() - began
    result.slowest = max(result.slowest, seconds)
    if seconds > SECONDS:
        result.faults.append(f"input {result.inputs - 1} took {seconds:.0f} s")


def resident() -> float:
    """Return the memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def fuzz(kind: type[Reader], count: int, number: int, answer: Callable[[Result], None]) -> None:
    """Check `count` inputs of a reader."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("no end")))
    result = Result()
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(OSError):
        reader = kind(Path(name))
        before = resident()

        @seed(number)
        @settings(
            max_examples=count, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(INPUTS)
        def every(rng: random.Random) -> None:
            timed(reader, rng, result)

        every()
        result.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before
    if result.memory > MEGABYTES:
        result.faults.append(f"{result.memory:.0f} MB of memory")
    answer(result)


def main(argv: list[str] | None = None) -> int:
    """Check every reader in a new process; return 1 after a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=6000, help="inputs of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS, action="append", help="only these")
    args = parser.parse_args(argv)
    readers = args.reader or list(READERS)
    failed = False
    for k, name in enumerate(readers):
        count = (args.count + k) // len(readers)
        start = multiprocessing.get_context("fork")
        ours, theirs = start.Pipe(duplex=False)
        work = start.Process(target=fuzz, args=(READERS[name], count, args.seed, theirs.send))
        work.start()
        theirs.close()
        try:
            result = ours.recv()
        except EOFError:
            work.join()
            result = Result(faults=[f"the process ended with {work.exitcode}"])
        work.join()
        print(result.line(name), flush=True)
        for fault in result.faults[:5]:
            print(fault, file=sys.stderr, flush=True)
        failed |= bool(result.faults)
    return int(failed)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
