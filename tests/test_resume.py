"""Fine-tunings that resume: on other processes, in another place, with other samples."""

import json
import os
import shutil
import time

import pytest
import torch
import yaml
from conftest import SAMPLES
from forked import Forked
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_finetune import finetune, metrics_of, rows_of, stop_after

from detsd.config import TrainingConfig
from detsd.runs.folder import RunFolder, read_metadata
from detsd.runs.tensorboard import TensorBoard
from detsd.train.resume import resumed_layout
from detsd.utils.errors import UserError
from detsd.utils.paths import content_digest


@pytest.mark.parametrize(
    ("batch", "accumulated", "samples", "processes", "expected"),
    [
        (4, 1, 4, 1, (4, 1)),
        (4, 1, 4, 2, (2, 1)),
        (4, 1, 4, 4, (1, 1)),
        (4, 1, 8, 1, (4, 2)),  # began on two
        (4, 2, 24, 1, (4, 6)),  # on three
        (4, 2, 24, 2, (4, 3)),
        (4, 1, 12, 2, (3, 2)),  # micro-batches no larger than those known to fit in memory
        (5, 1, 5, 5, (1, 1)),
        (4, 1, None, 2, (4, 1)),  # not known
    ],
)
def test_the_samples_of_a_step_are_shared_anew(batch, accumulated, samples, processes, expected):
    config = TrainingConfig(train_batch_size=batch, gradient_accumulation_steps=accumulated)
    found = resumed_layout(config, vars(config), samples, processes)
    assert (found.train_batch_size, found.gradient_accumulation_steps) == expected


def test_what_cannot_be_shared_is_refused():
    config = TrainingConfig(train_batch_size=4)
    with pytest.raises(
        UserError, match="4 samples per step, which 3 processes .* start 1, 2 or 4 processes$"
    ):
        resumed_layout(config, vars(config), 4, 3)
    one = TrainingConfig(train_batch_size=1)
    with pytest.raises(UserError, match="uses 1 sample per step, .* equally; start 1 process$"):
        resumed_layout(one, vars(one), 1, 2)
    other = vars(TrainingConfig(train_batch_size=2))
    with pytest.raises(UserError, match="train_batch_size 4 x .* x 1 process would be 4; change"):
        resumed_layout(config, other, 2, 1)


def test_another_number_of_processes_makes_the_same_training(experiment, tmp_path, capsys):
    """It has as many samples per step, and the same rate."""
    path = experiment(training={"scale_lr": True, "learning_rate": 0.0025})
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert finetune(path, whole) == 0
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints" / "step-00000008")
    facts = out / "checkpoints" / "step-00000004" / "metadata.json"
    facts.write_text(facts.read_text().replace('"samples_per_step": 4,', ""))  # an earlier version
    with Forked(tmp_path, lambda: finetune(path, out), ranks=2) as ranks:
        assert ranks.end() == [0, 0], ranks.said
        said = ranks.said[0]
    line = "4 samples per step, as before: 2 processes x train_batch_size 2 x gradient_accumu"
    assert said.count(line) == 1
    rows = [rows_of(folder, 8)["blob-thing"] for folder in (out, whole)]
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-6)
    for step, m in metrics_of(whole).items():
        assert metrics_of(out)[step]["learning_rate"] == m["learning_rate"] == 0.01
        assert metrics_of(out)[step]["loss"] == pytest.approx(m["loss"], rel=1e-5)
    more = ("--set", "training.num_sgd_steps=12")
    capsys.readouterr()
    assert finetune(path, out, *more, "--set", "training.train_batch_size=8") == 2
    assert "training.train_batch_size 8 x" in capsys.readouterr().err
    smaller = ("train_batch_size=2", "gradient_accumulation_steps=2")
    options = [word for text in smaller for word in ("--set", f"training.{text}")]
    for folder, given in ((out, options), (whole, ())):
        assert finetune(path, folder, *more, *given) == 0
        assert read_metadata(RunFolder(folder).checkpoint(12))["samples_per_step"] == 4
    rows = [rows_of(folder, 12)["blob-thing"] for folder in (out, whole)]
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-6)


def test_a_run_that_was_moved_goes_on(experiment, measuring, tmp_path, tiny_model, photos, capsys):
    """Its model, pictures, evaluators and concept files move with it; other content is refused."""
    whole, start = tmp_path / "whole", tmp_path / "start"
    assert finetune(experiment("first.yaml", training={"num_sgd_steps": 1}), start) == 0
    given = yaml.safe_load(measuring.read_text())
    here = tmp_path / "here"
    shutil.copytree(tiny_model, here / "model")
    shutil.copytree(photos, here / "photos")
    for name in ("red", "blue"):
        shutil.copytree(tmp_path / name, here / name)
    shutil.copytree(start, here / "start")
    sections = given["hyperparameters"]
    sections["model"]["pretrained_model_name_or_path"] = "model"
    sections["concepts"] |= {"img_dirs": ["photos"], "initializer_strs": ["start"]}
    sections["measure"]["lineup"] = ["red", "blue"]
    (here / "x.yaml").write_text(yaml.safe_dump(given))
    warm = ("--warm-start", here / "start" / "checkpoints" / "step-00000001")
    assert finetune(here / "x.yaml", whole, *warm) == 0
    shutil.copytree(whole, here / "out")
    for step in (6, 8):
        shutil.rmtree(RunFolder(here / "out").checkpoint(step))
    there = tmp_path / "there"
    here.rename(there)
    moved = ("--warm-start", there / "start" / "checkpoints" / "step-00000001")
    assert finetune(there / "x.yaml", there / "out", *moved) == 0
    assert torch.equal(*(rows_of(f, 8)["blob-thing"] for f in (there / "out", whole)))
    assert metrics_of(there / "out", "validation") == metrics_of(whole, "validation")

    shutil.rmtree(RunFolder(there / "out").checkpoint(8))
    there.rename(here)
    weights = here / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    assert finetune(here / "x.yaml", here / "out") == 2
    assert "model.pretrained_model_name_or_path was" in capsys.readouterr().err
    content[-1] ^= 1
    weights.write_bytes(content)
    (here / "red" / "0.png").rename(here / "red" / "9.png")
    assert finetune(here / "x.yaml", here / "out") == 2
    said = capsys.readouterr().err
    assert "measure.lineup was" in said
    assert "model." not in said
    (here / "red" / "9.png").rename(here / "red" / "0.png")
    Image.new("RGB", (40, 40)).save(here / "photos" / "on_a_table_0.png")
    assert finetune(here / "x.yaml", here / "out") == 2
    assert "changed: blob-thing/on_a_table_0.png" in capsys.readouterr().err


def test_a_digest_is_of_content_and_names_inside(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    size = 4096 * 4096 + 4096 * 1000  # so that chunks are read
    (folder / "large").write_bytes(bytes(size))
    (folder / "small").write_text("x")
    first = content_digest(folder)
    (folder / ".DS_Store").write_text("of a Mac")
    assert content_digest(shutil.move(folder, tmp_path / "b")) == first
    large = tmp_path / "b" / "large"
    before = content_digest(large)
    for place in (0, size // 2, size - 6000, size - 1):  # a tensor of 6,000 bytes, or the last byte
        with large.open("r+b") as file:
            file.seek(place)
            file.write(b"x" * min(6000, size - place))
        assert content_digest(large) != before
        large.write_bytes(bytes(size))
    large.write_bytes(bytes(size + 1))
    assert content_digest(large) != before
    assert content_digest(tmp_path / "b") != first
    large.write_bytes(bytes(size))
    assert content_digest(tmp_path / "b") == first
    (tmp_path / "b" / "small").rename(tmp_path / "b" / "other")
    assert content_digest(tmp_path / "b") != first
    assert content_digest(tmp_path / "gone") is None


def test_samples_and_reports_may_change_on_the_way(experiment, tmp_path, monkeypatch, capsys):
    """The rows are those of an undisturbed run; before/after pictures use the new prompts."""
    path = experiment(inference=SAMPLES)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert finetune(path, whole) == 0
    with monkeypatch.context() as stopped:
        stop_after(stopped, 5)
        assert finetune(path, out) == 128
    old = {p.name: p.read_bytes() for p in RunFolder(out).samples()}
    assert len(old) == 4
    prompts = ["a blob-thing on the moon"]
    changes = {"inference_prompts": prompts, "seeds": [3], "scheduler_name": "euler"}
    new = experiment("new.yaml", inference=changes, training={"metric_report_freq": 1})
    for stop in (1, None):  # stopped again before its next checkpoint
        with monkeypatch.context() as stopped:
            if stop:
                stop_after(stopped, 1)
                stopped.setattr("detsd.train.checkpoint.Checkpoints.save", lambda *_: None)
            assert finetune(new, out) == (128 if stop else 0)
    apart = out / "samples" / "before-step-00000005"
    assert {p.name: p.read_bytes() for p in apart.iterdir()} == old
    assert [p.name for p in RunFolder(out).samples()] == [
        "step-00000000-000.png", "step-00000008-000.png",
    ]  # fmt: skip
    assert torch.equal(*(rows_of(f, 8)["blob-thing"] for f in (out, whole)))
    assert sorted(metrics_of(out)) == [2, 4, 6, 7, 8]
    with Image.open(out / "time_lapse.gif") as gif:
        assert gif.n_frames == 2
    only = tmp_path / "only"
    assert finetune(new, only) == 0
    name = "step-00000000-000.png"
    assert (out / "samples" / name).read_bytes() == (only / "samples" / name).read_bytes()

    shutil.rmtree(RunFolder(out).checkpoint(8))
    capsys.readouterr()
    assert finetune(path, out) == 0  # changed back
    assert not apart.exists()
    assert all((out / "samples" / name).read_bytes() == file for name, file in old.items())


def test_samples_of_a_version_without_weights_are_not_mixed(experiment, tmp_path, monkeypatch):
    """Its checkpoints have no `prompt_weights`; plain prompts are read as before."""
    for prompt, apart in (("a (blob-thing:1.3)", 1), ("a blob-thing", 0)):
        path = experiment(inference={"inference_prompts": [prompt]})
        out = tmp_path / f"out-{apart}"
        with monkeypatch.context() as stopped:
            stop_after(stopped, 5)
            assert finetune(path, out) == 128
        for file in out.glob("checkpoints/step-*/metadata.json"):
            metadata = json.loads(file.read_text())
            assert metadata["config"]["inference"].pop("prompt_weights") is True
            file.write_text(json.dumps(metadata))
        assert finetune(path, out) == 0
        assert len(list(out.glob("samples/before-step-*"))) == apart


def test_what_measures_samples_stays(measuring, tmp_path, capsys):
    """Otherwise the baselines would be of other samples."""
    assert finetune(measuring, tmp_path / "out") == 0
    more = ("--set", "training.num_sgd_steps=10")
    options = ("--set", "inference.num_inference_steps=2")
    capsys.readouterr()
    assert finetune(measuring, tmp_path / "out", *more, *options) == 2
    assert "inference.num_inference_steps was 1, is 2" in capsys.readouterr().err
    prompts = ("--set", "inference.inference_prompts=[a blob-thing]")
    assert finetune(measuring, tmp_path / "out", *more, *prompts) == 0
    assert {"score", "lineup"} <= set(metrics_of(tmp_path / "out", "validation")[10])


def test_processes_of_one_second_are_shown_in_their_order(tmp_path, monkeypatch):
    """A later process may have a smaller number."""
    for pid, second, steps in ((500, 7.25, (1, 2, 3)), (30, 7.75, (3, 4))):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        monkeypatch.setattr(time, "time", lambda second=second: second)
        events = TensorBoard(tmp_path, steps[0])
        for step in steps:
            events.scalars(step, {"loss": pid}, "training")
        events.close()
    shown = EventAccumulator(str(tmp_path)).Reload().Scalars("training/loss")
    assert [(e.step, e.value) for e in shown] == [(1, 500), (2, 500), (3, 30), (4, 30)]
