"""Fine-tuning end to end: the invariants, resuming, layouts, refused input."""

import dataclasses
import itertools
import json
import math
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SAMPLES
from forked import Forked, in_two_ranks
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import ROOT, save_tiny_model

from detsd.__main__ import main
from detsd.cli.evaluate import evaluation_config
from detsd.cli.finetune import beside, grid_settings
from detsd.cli.generate import remake_hyperparameters
from detsd.cli.parser import parser
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.reading import read_concepts
from detsd.config import FinetuneConfig, TrainingConfig, load_config
from detsd.models import loading, objective
from detsd.runs.folder import read_metadata
from detsd.runs.local import LocalRun
from detsd.runs.open import open_run
from detsd.train import checkpoint
from detsd.train import step as train_step
from detsd.train.step import TrainStep, learning_rate, wants_compiler
from detsd.train.trainer import Trainer
from detsd.train.validation import Validation
from detsd.utils.progress import say


def rows_of(folder, step):
    found = read_concepts(folder / "checkpoints" / f"step-{step:08d}")
    return {c.name: c.embeddings[0] for c in found}


def metrics_of(folder, group="training"):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {m["steps_completed"]: m for m in lines if m["group"] == group}


def finetune(path, folder, *extra):
    return main(["finetune", str(path), "--output-dir", str(folder), *map(str, extra)])


def test_what_a_run_leaves_behind(experiment, tmp_path, tiny_model, capsys, monkeypatch):
    out = tmp_path / "blobs: no. 1, #2"  # YAML would read a mapping and a comment
    assert finetune(experiment(inference=SAMPLES), out) == 0
    said = capsys.readouterr().out
    assert "before_after.png" in said
    assert f"tensorboard --logdir {shlex.quote(str(out))} --samples_per_plugin images=100" in said
    next_ones = re.findall(r"^    python -m detsd (.*)$", said, re.M)
    assert [shlex.split(line)[0] for line in next_ones] == ["show", "app", "generate", "export"]
    assert parser().parse_args(shlex.split(next_ones[1])).model == str(tiny_model)
    monkeypatch.chdir(tmp_path)
    for line in (next_ones[0], *next_ones[2:]):
        assert main(shlex.split(line)) == 0
    assert len(list(tmp_path.glob(f"{out.name}-grid/images/*.png"))) == 9
    for step in (4, 8):
        folder = out / "checkpoints" / f"step-{step:08d}"
        assert {p.name for p in folder.iterdir()} == {
            "learned_embeddings_dict.pt", "blob-thing.safetensors", "trainer_state.pt",
            "metadata.json",
        }  # fmt: skip
        metadata = read_metadata(folder)
        assert metadata["steps_completed"] == step
        assert metadata["complete"] == (step == 8)
        assert metadata["concepts"] == ["blob-thing"]
    assert sorted(metrics_of(out)) == [2, 4, 6, 8]
    last = metrics_of(out)[8]
    assert {"loss", "mse", "learning_rate", "samples_per_second", "row_norm_mean"} <= set(last)
    validation = metrics_of(out, "validation")
    assert sorted(validation) == [4, 8]
    for m in validation.values():
        assert m["val_loss"] == m["val_loss_held_out"]
        assert m["val_gap"] == pytest.approx(m["val_loss_initializer"] - m["val_loss"])
    assert len(list((out / "samples").glob("*.png"))) == 3 * 2
    for name in ("before_after.png", "time_lapse.png", "time_lapse.gif"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100
    with Image.open(out / "time_lapse.gif") as gif:
        assert gif.n_frames == 3
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert [e.step for e in events.Scalars("validation/val_loss")] == [4, 8]
    samples = [tag for tag in tags["images"] if tag.startswith("samples/")]
    assert len(samples) == 2
    assert [e.step for e in events.Images(samples[0])] == [0, 4, 8]
    assert [e.step for e in events.Images("before_after")] == [8]
    assert [e.step for e in events.Images("training images/blob-thing")] == [0]


def test_each_sample_prompt_has_tags_of_its_own(experiment, tmp_path):
    """So do prompts that differ after 80 characters or by a slash; others keep their old tags."""
    start = "a wide view of a blob-thing " + 8 * "and another one "
    prompts = [
        start,
        f"{start} at night",
        "blob-thing | 1/2",
        "blob-thing | 1|2",
        "blob-thing 24/7",
    ]
    steps = {"num_sgd_steps": 1, "checkpoint_freq": 1}
    inference = {"inference_prompts": prompts, "num_inference_steps": 1, "seeds": [0]}
    assert finetune(experiment(training=steps, inference=inference), tmp_path / "out") == 0
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"), {"images": 0}).Reload()
    found = [tag for tag in events.Tags()["images"] if tag.startswith("samples/")]
    assert len(found) == len(prompts)
    assert all([e.step for e in events.Images(tag)] == [0, 1] for tag in found)
    assert all(tag.count("/") == 2 and tag.endswith("/seed 0-0") for tag in found)
    assert sum(tag.startswith(f"samples/{start[:80]} #") for tag in found) == 2
    assert "samples/blob-thing 24|7/seed 0-0" in found


def test_a_concept_knows_the_clip_skip_that_it_was_learned_with(
    experiment, tmp_path, capsys, caplog, tiny_model
):
    """Everything made with it uses it, too: grids, evaluations, resumed runs."""
    out, grid = tmp_path / "out", tmp_path / "grid"
    path = experiment(training={"num_sgd_steps": 4}, model={"clip_skip": 1})
    assert finetune(path, out) == 0
    said = capsys.readouterr().out
    assert "--clip-skip 1" in said
    assert "--set model.clip_skip=1" in said
    skipped = rows_of(out, 4)["blob-thing"]
    assert finetune(path, tmp_path / "last", "--set", "model.clip_skip=0") == 0
    assert not torch.allclose(skipped, rows_of(tmp_path / "last", 4)["blob-thing"], atol=1e-4)
    checkpoint = out / "checkpoints" / "step-00000004"
    assert read_metadata(checkpoint)["config"]["model"]["clip_skip"] == 1
    for name in ("learned_embeddings_dict.pt", "blob-thing.safetensors"):
        (concept,) = read_concepts(checkpoint / name)
        assert concept.clip_skip == 1
    assert evaluation_config(parser().parse_args(["evaluate", str(out)]))[0].model.clip_skip == 1
    assert finetune(path, out, "--set", "model.clip_skip=0") == 2
    assert "model.clip_skip was 1, is 0" in capsys.readouterr().err
    assert main(["show", str(out)]) == 0
    assert "learned with: model.clip_skip 1" in capsys.readouterr().out
    words = [f"concepts.files=[{json.dumps(str(out))}]", "grid.prompts=a blob-thing",
             f"model.pretrained_model_name_or_path={tiny_model}",
             "grid.num_inference_steps=1"]  # fmt: skip
    given = [word for text in words for word in ("--set", text)]
    for k, skip in enumerate((0, 1)):
        caplog.clear()
        run = ["generate", *given, "--set", f"model.clip_skip={skip}"]
        run += ["--output-dir", f"{grid}{k}"]
        assert main(run) == 0
        warned = "blob-thing was learned with model.clip_skip 1, but is used with 0" in caplog.text
        assert warned == (skip == 0)
        (image,) = tmp_path.glob(f"grid{k}/images/*.png")
        assert remake_hyperparameters(image)["model"].get("clip_skip", 0) == skip
        assert main([*run, "--set", f"model.clip_skip={1 - skip}"]) == 2  # another grid


def test_an_old_run_does_not_go_on_with_layers_left_out(experiment, tmp_path, capsys):
    out, path = tmp_path / "out", experiment()
    assert finetune(path, out, "--set", "training.num_sgd_steps=4") == 0
    for file in out.glob("checkpoints/*/metadata.json"):  # as written by a version without the key
        facts = json.loads(file.read_text())
        assert facts["config"]["model"].pop("clip_skip") == 0
        file.write_text(json.dumps(facts))
    assert finetune(path, out, "--set", "model.clip_skip=1") == 2
    assert "model.clip_skip was 0, is 1" in capsys.readouterr().err
    assert finetune(path, out) == 0


def test_complete_changed_and_warm_start(experiment, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    path = experiment()
    assert finetune(path, out) == 0
    before = rows_of(out, 8)["blob-thing"]
    capsys.readouterr()
    assert finetune(path, out) == 0
    assert "complete" in capsys.readouterr().out

    assert finetune(path, out, "--set", "training.learning_rate=0.5") == 2
    error = capsys.readouterr().err
    assert "training.learning_rate was 0.01, is 0.5" in error
    assert "Traceback" not in error

    start = out / "checkpoints" / "step-00000008"
    extra = ("--warm-start", start, "--set", "training.learning_rate=1e-9")
    assert finetune(path, again, *extra) == 0
    # Learned rows are taken over, at step 0, with the new, tiny rate: they hardly change.
    assert torch.allclose(rows_of(again, 8)["blob-thing"], before, atol=1e-6)
    assert metrics_of(again)[8]["learning_rate"] == 1e-9
    capsys.readouterr()
    assert finetune(path, again, *extra) == 0
    assert "complete" in capsys.readouterr().out
    other = out / "checkpoints" / "step-00000004"
    assert finetune(path, again, "--warm-start", other) == 2
    assert "already holds another run" in capsys.readouterr().err


def test_the_work_that_a_bar_counts_is_the_work_that_is_done(experiment, tmp_path):
    """From the start or from a checkpoint, the end leaves no work, and none is done twice."""
    change = {"num_sgd_steps": 7, "checkpoint_freq": 3}
    config = load_config(experiment(training=change, inference=SAMPLES))
    out = tmp_path / "out"
    counts = []
    for gone in ((), ("step-00000007", "step-00000006")):
        for name in gone:
            shutil.rmtree(out / "checkpoints" / name)
        with open_run(out, accelerate=True) as run:
            trainer = Trainer(config, run)
            began = {kind: work.done for kind, work in trainer.phases.items()}
            assert trainer.train()
        kinds = trainer.phases
        assert {kind: work.done for kind, work in kinds.items()} == {
            kind: work.total for kind, work in kinds.items()
        }
        counts.append({kind: work.total - began[kind] for kind, work in kinds.items()})
    # Samples: two of two steps, at 0, 3, 6 and 7; validation: one image at two timesteps.
    first = {"steps": 7, "validation": 3 * 2, "samples": 4 * 4, "decoding": 4}
    rest = {"steps": 4, "validation": 2 * 2, "samples": 2 * 4, "decoding": 2}
    # The time-lapse shows two images at each of the four steps, also after resuming.
    assert counts == [first | {"drawing": 8, "saving": 3}, rest | {"drawing": 8, "saving": 2}]


def test_more_steps_go_on_in_the_same_folder(experiment, tmp_path, capsys):
    """With a constant rate, the result is bit-equal to that of a run begun with more steps."""
    for shape, samples, words in (
        ("constant", {}, "12 steps instead of 8: the result equals that of a run"),
        ("cosine", SAMPLES, "a cosine schedule over 12 steps, starting at 0.0025 instead of 0"),
    ):
        out, whole = tmp_path / shape, tmp_path / "whole"
        path = experiment(training={"lr_scheduler": shape}, inference=samples)
        more = ("--set", "training.num_sgd_steps=12")
        assert finetune(path, out) == 0
        capsys.readouterr()
        assert finetune(path, out, *more) == 0
        assert words in capsys.readouterr().out
        if shape == "constant":
            assert finetune(path, whole, *more) == 0
            assert torch.equal(*(rows_of(f, 12)["blob-thing"] for f in (out, whole)))
    longer = load_config(path, [more[1]]).training
    assert metrics_of(out)[10]["learning_rate"] == learning_rate(9, longer, 4)
    assert sorted(metrics_of(out)) == [2, 4, 6, 8, 10, 12]
    capsys.readouterr()
    assert finetune(path, out, *more) == 0
    assert "complete" in capsys.readouterr().out
    for change in (
        ("--set", "training.num_sgd_steps=9"),
        (*more, "--set", "training.train_seed=1"),
    ):
        assert finetune(path, out, *change) == 2
        assert "another configuration" in capsys.readouterr().err
    with Image.open(out / "time_lapse.gif") as gif:
        assert gif.n_frames == 4


def test_two_concepts_at_once(experiment, tmp_path, photos, capsys):
    path = experiment(
        concepts={
            "concept_strs": ["blob-thing", "blob-thing-two"],
            "initializer_strs": ["red ball", "blue wooden cube"],
            "img_dirs": [str(photos)] * 2,
            "learnable_properties": ["object", "style"],
            "num_vectors": [None, 2],
        },
        inference={"inference_prompts": ["a blob-thing in the style of blob-thing-two"]},
    )
    out = tmp_path / "out"
    assert finetune(path, out) == 0
    assert f"the concepts are in {out}" in capsys.readouterr().out
    rows = rows_of(out, 8)
    assert {k: v.shape for k, v in rows.items()} == {
        "blob-thing": (2, 16),
        "blob-thing-two": (2, 16),
    }
    folder = out / "checkpoints" / "step-00000008"
    for name, own in rows.items():
        assert set(load_file(folder / f"{name}.safetensors")) == {name}
        assert torch.equal(load_file(folder / f"{name}.safetensors")[name], own)
    start = rows_of(out, 4)
    assert all(not torch.equal(rows[k], start[k]) for k in rows)
    # Without its last checkpoint, the run makes the same one again.
    shutil.rmtree(folder)
    assert finetune(path, out) == 0
    assert all(torch.equal(rows_of(out, 8)[k], rows[k]) for k in rows)
    assert sorted(metrics_of(out)) == [2, 4, 6, 8]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4 + 2 + 2  # and two starts


@pytest.mark.parametrize(
    "training",
    [
        {
            "optimizer_name": "sgd",
            "learning_rate": 1.0,
            "lr_scheduler": "linear",
            "lr_warmup_steps": 3,
        },
        {"norm_reg_weight": 0.1, "hidden_reg_weight": 0.1, "max_grad_norm": 0.5},
        {"min_snr_gamma": 5, "lr_scheduler": "cosine", "gradient_accumulation_steps": 2},
    ],
    ids=["sgd-linear", "regularised", "min-snr"],
)
def test_every_knob_of_training_on_both_targets(experiment, tmp_path, tiny_v_model, training):
    for k, model in enumerate((None, tiny_v_model)):
        section = {"pretrained_model_name_or_path": str(model)} if model else {}
        out = tmp_path / f"out{k}"
        path = experiment(model=section, training=training)
        assert finetune(path, out) == 0
        m = metrics_of(out)[8]
        assert m["loss"] >= m["mse"] > 0
        assert ("norm_reg" in m) == ("norm_reg_weight" in training)
        assert not torch.equal(rows_of(out, 8)["blob-thing"], rows_of(out, 4)["blob-thing"])


def test_half_precision_trains_float32_rows(experiment, tmp_path):
    out = tmp_path / "out"
    assert finetune(experiment(model={"precision": "bf16"}, inference=SAMPLES), out) == 0
    rows = rows_of(out, 8)["blob-thing"]
    assert rows.dtype == torch.float32
    assert not torch.equal(rows, rows.bfloat16().float())


def test_few_images_are_validated_on_themselves_and_the_name_says_so(experiment, tmp_path):
    for k in range(3):
        Image.new("RGB", (40, 40), (80 * k, 9, 9)).save(tmp_path / f"{k}.png")
    out = tmp_path / "out"
    assert finetune(experiment(concepts={"img_dirs": [str(tmp_path)]}), out) == 0
    last = metrics_of(out, "validation")[8]
    assert last["val_loss"] == last["val_loss_training_images"]
    assert "val_loss_held_out" not in last


def test_a_run_on_pictures_that_are_not_square(experiment, tmp_path):
    path = experiment(concepts={"img_aspect": 1.5}, inference=SAMPLES | {"seeds": [0]})
    assert finetune(path, tmp_path / "out") == 0
    assert (tmp_path / "out" / "before_after.png").is_file()
    assert metrics_of(tmp_path / "out", "validation")[8]["val_loss"] > 0


def test_a_masked_run_says_so_and_goes_on(experiment, tmp_path, photos, capsys):
    """Its masks must stay those that it began with."""
    folder = shutil.copytree(photos, tmp_path / "photos")
    for k in range(12):
        mask = Image.new("L", (48, 40))
        mask.paste(255, (20, 10, 40, 30))
        mask.save(folder / f"on_a_table_{k}-masklabel.png")
    concepts = {"img_dirs": [str(folder)], "mask": "files"}
    path = experiment(concepts=concepts)
    out, plain = tmp_path / "out", tmp_path / "plain"
    assert finetune(path, out) == 0
    assert "both masked" in capsys.readouterr().out
    last, rows = metrics_of(out, "validation")[8], rows_of(out, 8)["blob-thing"]
    assert last["val_loss"] == last["val_loss_held_out_masked"]
    shutil.rmtree(out / "checkpoints" / "step-00000008")
    assert finetune(path, out) == 0
    assert torch.equal(rows_of(out, 8)["blob-thing"], rows)
    assert finetune(path, plain, "--set", "concepts.mask=none") == 0
    assert not torch.equal(rows_of(plain, 8)["blob-thing"], rows)
    shutil.rmtree(out / "checkpoints" / "step-00000008")
    Image.new("L", (48, 40), 255).save(folder / "on_a_table_3-masklabel.png")
    assert finetune(path, out) == 2
    assert "changed: blob-thing/on_a_table_3.png" in capsys.readouterr().err
    (folder / "on_a_table_4-masklabel.png").unlink()
    assert finetune(path, tmp_path / "new") == 2
    assert "concepts.img_dirs[0]: concepts.mask is files, but" in capsys.readouterr().err


def losses_are(monkeypatch, phrase, by_step):
    """Make validations measure these losses."""
    monkeypatch.setattr(Validation, "loss", lambda *_: phrase)
    monkeypatch.setattr(Trainer, "_validate", lambda self, *_: by_step[self.state.steps_completed])


def stop_after(monkeypatch, steps):
    calls = iter([False] * (steps - 1) + [True])
    monkeypatch.setattr(LocalRun, "should_stop", lambda self: next(calls))


def test_the_best_checkpoint_is_kept(experiment, tmp_path, monkeypatch, capsys):
    """The run's folder means the best checkpoint, whatever else happens to the run."""
    losses_are(monkeypatch, 0.9, {2: 0.7, 4: 0.5, 6: 0.6, 8: 0.5, 10: 0.4, 12: 0.8})
    path = experiment(training={"checkpoint_freq": 2})
    whole, out = tmp_path / "whole", tmp_path / "out"
    best = whole / "learned_embeddings_dict.pt"
    assert finetune(path, whole) == 0
    assert f"is in {best}: step 4, the best (val_loss 0.5000)" in capsys.readouterr().out
    for source in (whole, best):
        (c,) = read_concepts(source)
        assert torch.equal(c.embeddings[0], rows_of(whole, 4)["blob-thing"])
        assert c.steps == 4
    told = {
        step: read_metadata(whole / "checkpoints" / f"step-{step:08d}")["best"]
        for step in (2, 4, 6, 8)
    }
    assert [told[k]["steps_completed"] for k in (2, 4, 6, 8)] == [2, 4, 4, 4]
    assert told[8] == {"steps_completed": 4, "val_loss": 0.5}
    assert main(["show", str(whole)]) == 0
    said = capsys.readouterr().out
    assert "1 concept, after 4 steps" in said
    assert "best of its run so far: step 4 (val_loss 0.5000)" in said
    assert finetune(path, whole) == 0
    assert "complete: the concept is in" in capsys.readouterr().out

    # Interrupted and resumed; its last checkpoints, and the best one itself, are deleted.
    with monkeypatch.context() as stopped:
        stop_after(stopped, 3)
        assert finetune(path, out) == 128
    (c,) = read_concepts(out)
    assert c.steps == 2
    assert finetune(path, out) == 0
    assert (out / best.name).read_bytes() == best.read_bytes()
    for step in (8, 6, 4):
        shutil.rmtree(out / "checkpoints" / f"step-{step:08d}")
        if step == 6:
            (out / best.name).unlink()
    assert finetune(path, out) == 0
    assert (out / best.name).read_bytes() == best.read_bytes()
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    more = ("--set", "training.num_sgd_steps=12")
    for folder, steps in ((out, 10), (whole, 10)):
        assert finetune(path, folder, *more) == 0
        assert read_concepts(folder)[0].steps == steps
    assert (out / best.name).read_bytes() == best.read_bytes()
    # The best one is deleted: no other one is called the best.
    (out / best.name).unlink()
    shutil.rmtree(out / "checkpoints" / "step-00000010")
    capsys.readouterr()
    assert finetune(path, out, *more) == 0
    assert capsys.readouterr().out.endswith("step-00000012/learned_embeddings_dict.pt\n")


def test_what_is_measured_at_checkpoints(measuring, photos, tmp_path, capsys):
    """Every validation measures; the best is chosen by it; a resumed run has the same values."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert finetune(measuring, whole) == 0
    assert "the best (val_loss " in capsys.readouterr().out
    told = metrics_of(whole, "validation")
    assert sorted(told) == [2, 4, 6, 8]
    for m in told.values():
        assert set(FinetuneConfig.measured) <= set(m)
        assert 0 <= m["score"] <= 1
        assert m["lineup"] in (0, 1 / 3, 2 / 3, 1)
    assert len({m["clip_image_similarity"] for m in told.values()}) > 1
    assert not list((whole / "samples").glob("*"))  # measured samples are not stored
    best = read_metadata(whole / "checkpoints" / "step-00000008")["best"]
    assert best["score"] == max(m["score"] for m in told.values())
    assert read_concepts(whole)[0].steps == best["steps_completed"]
    for step in (8, 6):
        shutil.rmtree(whole / "checkpoints" / f"step-{step:08d}")
    shutil.copytree(whole, out)
    assert finetune(measuring, out) == 0
    assert metrics_of(out, "validation") == told
    assert finetune(measuring, out, "--set", "training.best_metric=lineup") == 2
    assert "another configuration" in capsys.readouterr().err
    for given, words in (
        ("measure.num_samples=0 training.best_metric=score", "but nothing is measured"),
        ("measure.lineup=[] training.best_metric=lineup", "which needs measure.lineup"),
        (
            "evaluator.dino=null training.best_metric=dino_image_similarity",
            "which needs evaluator.dino",
        ),
        (f"measure.lineup=[{tmp_path / 'gone'}]", r"measure.lineup[0]: folder"),
        (f"measure.lineup=[{photos}/]", f"measure.lineup names only {photos}, the training"),
        ("evaluator.clip=null", "evaluator.clip"),
    ):
        options = [word for text in given.split() for word in ("--set", text)]
        assert finetune(measuring, tmp_path / "new", *options) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_diverged_run_reports_the_worst_of_what_it_measures(measuring, tmp_path, capsys):
    """A search by any of these metrics must not fail, as one by val_loss does not."""
    change = ("--set", "training.optimizer_name=sgd", "--set", "training.learning_rate=1e38")
    assert finetune(measuring, tmp_path / "out", *change) == 2
    assert "no longer finite" in capsys.readouterr().err
    (last,) = metrics_of(tmp_path / "out", "validation").values()
    assert {last[name] for name in FinetuneConfig.measured} == {-1e9}
    assert last["val_loss"] == 1e9


def test_measuring_begins_with_the_run(measuring, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    given = yaml.safe_load(measuring.read_text())
    sections = {k: given["hyperparameters"].pop(k) for k in ("measure", "evaluator")}
    measuring.write_text(yaml.safe_dump(given))
    with monkeypatch.context() as stopped:
        stop_after(stopped, 2)
        assert finetune(measuring, out) == 128
    for facts in out.glob("checkpoints/*/metadata.json"):  # of an earlier version
        told = json.loads(facts.read_text())
        del told["config"]["measure"], told["config"]["evaluator"]
        facts.write_text(json.dumps(told))
    given["hyperparameters"] |= sections
    measuring.write_text(yaml.safe_dump(given))
    assert finetune(measuring, out) == 2
    assert "this run began without it" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_goes_on(experiment, tmp_path, monkeypatch, capsys):
    """Its state has no validations; a user's file in its folder stays."""
    path = experiment(training={"checkpoint_freq": 2})
    out, best = tmp_path / "out", tmp_path / "out" / "learned_embeddings_dict.pt"
    with monkeypatch.context() as stopped:
        stop_after(stopped, 4)
        assert finetune(path, out) == 128
    for folder in (out / "checkpoints").iterdir():
        state, facts = (folder / name for name in ("trainer_state.pt", "metadata.json"))
        new = ("validations", "best_rows", "best_uuid")
        old = {k: v for k, v in torch.load(state).items() if k not in new}
        torch.save(old, state)
        told = json.loads(facts.read_text())
        del told["best"], told["settled"], told["config"]["training"]["stop_on_plateau"]
        facts.write_text(json.dumps(told))
    assert finetune(path, out) == 2
    assert f"holds {best.name}, which is not from a run" in capsys.readouterr().err
    best.unlink()
    assert read_concepts(out)[0].steps == 4  # the newest
    assert finetune(path, out) == 0
    assert read_concepts(best)[0].steps in (6, 8)
    assert "step 6" in capsys.readouterr().out or read_concepts(best)[0].steps == 8
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(best, other)
    assert finetune(path, other) == 2
    assert "name another folder" in capsys.readouterr().err


def test_a_run_ends_where_its_loss_has_levelled_off(experiment, tmp_path, monkeypatch, capsys):
    """Stopped and resumed, it ends at the same step with the same rows, bit for bit."""
    losses_are(monkeypatch, 0.9, {3: 0.6, 6: 0.5, 9: 0.49, 12: 0.495, 15: 0.49, 18: 0.48})
    change = {"num_sgd_steps": 18, "checkpoint_freq": 3}
    change |= {"stop_on_plateau": 3, "plateau_ratio": 0.05}
    brief = SAMPLES | {"seeds": [0], "num_inference_steps": 1}
    path = experiment(training=change, inference=brief)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert finetune(path, whole) == 0
    said = capsys.readouterr().out
    assert "ending at step 12 of 18: val_loss has levelled off (training.stop_on_plateau)" in said
    assert sorted(metrics_of(whole)) == [2, 4, 6, 8, 10, 12]
    assert (whole / "before_after.png").is_file()
    last = metrics_of(whole, "validation")[12]
    assert last["sgd_steps"] == 18  # to a search, it is a complete trial
    facts = read_metadata(whole / "checkpoints" / "step-00000012")
    assert facts["complete"] is True
    assert facts["best"]["steps_completed"] == 9
    assert finetune(path, whole) == 0
    assert "it ended at step 12 because val_loss had levelled off" in capsys.readouterr().out
    for stop in (10, 1):
        with monkeypatch.context() as stopped:
            stop_after(stopped, stop)
            assert finetune(path, out) == 128
    assert finetune(path, out) == 0
    for folder in (whole, out):
        assert max(int(p.name[5:]) for p in (folder / "checkpoints").iterdir()) == 12
    assert torch.equal(*(rows_of(f, 12)["blob-thing"] for f in (whole, out)))
    names = ("learned_embeddings_dict.pt", "samples/step-00000012-000.png")
    assert all((whole / n).read_bytes() == (out / n).read_bytes() for n in names)
    assert finetune(path, out, "--set", "training.stop_on_plateau=null") == 0
    assert read_concepts(out)[0].steps == 18


def test_a_warm_up_that_is_a_share_of_the_steps_grows_with_them(experiment, tmp_path, capsys):
    path, out = experiment(training={"lr_warmup_steps": 0.5}), tmp_path / "out"
    assert finetune(path, out) == 0
    assert metrics_of(out)[4]["learning_rate"] == 0.01
    assert finetune(path, out, "--set", "training.num_sgd_steps=12") == 0
    said = capsys.readouterr().out
    assert "follows a constant schedule over 12 steps, starting at 0.01 instead of 0" in said
    assert "the result equals" not in said


def test_learning_rate_shapes(experiment):
    base = {"learning_rate": 1.0, "num_sgd_steps": 100, "lr_warmup_steps": 10}
    for name, middle in (("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)):
        t = load_config(experiment(training=base | {"lr_scheduler": name})).training
        assert learning_rate(0, t, 8) == pytest.approx(0.1)
        assert learning_rate(10, t, 8) == pytest.approx(1.0)
        assert learning_rate(55, t, 8) == pytest.approx(middle)
        share = dataclasses.replace(t, lr_warmup_steps=0.095)  # rounded up, to the same 10
        assert [learning_rate(k, share, 8) for k in range(100)] == [
            learning_rate(k, t, 8) for k in range(100)
        ]
    scaled = load_config(experiment(training=base | {"scale_lr": True})).training
    assert learning_rate(20, scaled, 8) == 8.0


@pytest.mark.slow
def test_threads_do_not_change_a_run(tmp_path):
    """Two runs on two threads are equal: another rounding order would show after two steps."""
    changes = ("inference.inference_prompts=[]", "training.num_sgd_steps=4",
               "training.num_validation_timesteps=1", "training.max_validation_images=1",
               "concepts.img_dirs=[examples/ring_and_dot]")  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name in "ab":
            options = (f"--set={c}" for c in changes)
            assert finetune("finetune_demo.yaml", tmp_path / name, *options) == 0
    finally:
        torch.set_num_threads(before)
    a, b = (rows_of(tmp_path / name, 4)["det-logo"] for name in "ab")
    assert torch.equal(a, b)


@pytest.mark.slow
def test_resume_after_sigkill_is_bit_exact(experiment, tmp_path, capsys):
    """2N steps equal N steps, a kill, and the rest: rows, optimizer and metrics, bit for bit."""
    change = {"num_sgd_steps": 18, "checkpoint_freq": 3, "metric_report_freq": 3}
    path = experiment(training=change, inference=SAMPLES | {"seeds": [0]})
    assert finetune(path, tmp_path / "whole") == 0
    out = tmp_path / "killed"
    for step in (3, 9):
        with Forked(tmp_path, lambda: finetune(path, out)) as run:
            run.wait_until((out / "checkpoints" / f"step-{step:08d}" / "metadata.json").exists)
            run.kill()
            assert run.end() == [-signal.SIGKILL], "finished before it could be killed"
    assert finetune(path, out) == 0
    assert "resuming after step" in capsys.readouterr().out
    for step in (9, 18):
        assert torch.equal(
            rows_of(out, step)["blob-thing"], rows_of(tmp_path / "whole", step)["blob-thing"]
        )
    losses = {k: m["loss"] for k, m in metrics_of(out).items()}
    assert losses == {k: m["loss"] for k, m in metrics_of(tmp_path / "whole").items()}
    for a in sorted((tmp_path / "whole" / "samples").iterdir()):
        assert (out / "samples" / a.name).read_bytes() == a.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_between_checkpoints_and_resumes(experiment, tmp_path, number):
    path = experiment(training={"num_sgd_steps": 4000, "checkpoint_freq": 4000})
    out = tmp_path / "out"

    def run_until_stopped():
        signal.signal(number, signal.SIG_DFL)  # under nohup, SIGHUP is ignored
        return finetune(path, out)

    with Forked(tmp_path, run_until_stopped) as run:
        run.wait_until(lambda: "6/4000 steps" in run.said[0])
        os.kill(run.processes[0].pid, number)
        if number == signal.SIGHUP:
            os.kill(run.processes[0].pid, number)  # a shell repeats the signal
        assert run.end() == [128 + number], run.said
    assert "the same command continues" in run.said[0]
    (folder,) = (out / "checkpoints").iterdir()
    step = read_metadata(folder)["steps_completed"]
    assert step >= 6
    whole = experiment("short.yaml", training={"num_sgd_steps": step, "checkpoint_freq": step})
    assert finetune(whole, tmp_path / "whole") == 0
    assert torch.equal(
        rows_of(out, step)["blob-thing"], rows_of(tmp_path / "whole", step)["blob-thing"]
    )


@pytest.mark.slow
def test_a_reader_that_goes_stops_a_run_and_loses_nothing(experiment, tmp_path):
    """For example `detsd finetune ... | head`."""
    path = experiment(training={"num_sgd_steps": 4000, "checkpoint_freq": 4000})
    out = tmp_path / "out"

    def read(pipe):
        with open(pipe) as lines:
            while "steps" not in lines.readline():
                pass

    def into_a_pipe(*words):
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(writer)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        thread = threading.Thread(
            target=read if words[0] == "finetune" else os.close, args=[reader]
        )
        thread.start()
        if words[0] == "show":
            thread.join()
        return main([*map(str, words)])

    with Forked(tmp_path, lambda: into_a_pipe("finetune", path, "--output-dir", out)) as run:
        assert run.end() == [128 + signal.SIGTERM], run.said
        assert "Traceback" not in run.said[0]
    (folder,) = (out / "checkpoints").iterdir()
    assert read_metadata(folder)["steps_completed"] > 0
    with Forked(tmp_path, lambda: into_a_pipe("show", out)) as run:
        assert run.end() == [128 + signal.SIGPIPE], run.said
        assert run.said == [""]


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True])
def test_a_reader_of_results_that_goes_leaves_the_errors(tmp_path, both):
    """`detsd finetune ... | head` shows an error that comes later; `2>&1 | head` stops quietly."""

    def stop(*_):
        say("a warning", sys.stderr)
        os._exit(0)

    def lose_the_reader():
        reader, writer = os.pipe()
        for number in (1, 2)[: 1 + both]:
            os.dup2(writer, number)
        os.close(reader)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGTERM, stop)
        say("a line")

    with Forked(tmp_path, lose_the_reader) as run:
        assert run.end() == [0], run.said
        assert run.said == ["" if both else "a warning\n"]


def test_a_stop_between_reports_changes_nothing(experiment, tmp_path, monkeypatch):
    """With a report every 2 steps and a stop after 3, the next report's means are complete."""
    path = experiment()
    assert finetune(path, tmp_path / "whole") == 0
    out = tmp_path / "out"
    calls = iter([False, False, True])
    monkeypatch.setattr(LocalRun, "should_stop", lambda self: next(calls))
    assert finetune(path, out) == 128
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.undo()
    assert finetune(path, out) == 0
    assert torch.equal(rows_of(out, 8)["blob-thing"], rows_of(tmp_path / "whole", 8)["blob-thing"])
    for step, m in metrics_of(tmp_path / "whole").items():
        assert metrics_of(out)[step]["loss"] == m["loss"]


@pytest.mark.slow
def test_layouts_agree(experiment, tmp_path):
    """One process of batch 4, two of 2, and four accumulation steps of 1 train the same."""
    layouts = {
        name: experiment(f"{name}.yaml", training=change, inference=SAMPLES)
        for name, change in (
            ("one", {}),
            ("two", {"train_batch_size": 2}),
            ("four", {"train_batch_size": 1, "gradient_accumulation_steps": 4}),
        )
    }
    for name, path in layouts.items():
        if name == "two":
            in_two_ranks(tmp_path, lambda: finetune(layouts["two"], tmp_path / "two"))
        else:
            assert finetune(path, tmp_path / name) == 0
    rows = rows_of(tmp_path / "one", 8)["blob-thing"]
    for name in ("two", "four"):
        other = rows_of(tmp_path / name, 8)["blob-thing"]
        assert torch.allclose(other, rows, rtol=1e-5, atol=1e-6), (other - rows).abs().max()
        for group, key in (("training", "loss"), ("validation", "val_loss")):
            ours, theirs = (metrics_of(tmp_path / n, group) for n in ("one", name))
            assert sorted(ours) == sorted(theirs)
            for step, m in ours.items():
                assert theirs[step][key] == pytest.approx(m[key], rel=1e-5)
    # The samples at step 0 come from equal rows: they are equal to the bit on any number of ranks.
    for k in range(2):
        file = f"step-00000000-{k:03d}.png"
        pictures = [(tmp_path / n / "samples" / file).read_bytes() for n in layouts]
        assert pictures[0] == pictures[1] == pictures[2]


@pytest.mark.slow
def test_layouts_and_cpus_agree_to_the_bit_in_fp64(experiment, tmp_path, monkeypatch):
    """Micro-batches, ranks, threads, instruction sets and a stop leave no trace in the rows."""
    ways = {
        "one": {},
        "four": {"train_batch_size": 1, "gradient_accumulation_steps": 4},
        "two": {"train_batch_size": 2},
        "avx": {},
        "stopped": {},
    }
    paths = {
        name: experiment(f"{name}.yaml", model={"precision": "fp64"}, training=change,
                         inference=SAMPLES if name == "one" else {})
        for name, change in ways.items()
    }  # fmt: skip
    assert finetune(paths["one"], tmp_path / "one") == finetune(paths["four"], tmp_path / "four")
    in_two_ranks(tmp_path, lambda: finetune(paths["two"], tmp_path / "two"))
    # Without AVX2, torch draws other noise.
    instructions = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
                    "MKL_CBWR": "AVX2", "OMP_NUM_THREADS": "2"}  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "detsd", "finetune", paths["avx"], "--output-dir", tmp_path / "avx"],
        cwd=ROOT, env=os.environ | instructions, check=True,
    )  # fmt: skip
    with monkeypatch.context() as patch:
        calls = iter([False, False, True])
        patch.setattr(LocalRun, "should_stop", lambda self: next(calls))
        assert finetune(paths["stopped"], tmp_path / "stopped") == 128
    assert finetune(paths["stopped"], tmp_path / "stopped") == 0
    rows = rows_of(tmp_path / "one", 8)["blob-thing"]
    assert rows.dtype == torch.float32
    assert not torch.equal(rows, rows_of(tmp_path / "one", 4)["blob-thing"])
    losses = metrics_of(tmp_path / "one", "validation")
    for name in ways:
        assert torch.equal(rows_of(tmp_path / name, 8)["blob-thing"], rows), name
        for step, m in metrics_of(tmp_path / name, "validation").items():
            assert m["val_loss"] == pytest.approx(losses[step]["val_loss"], rel=1e-12)


@pytest.mark.slow
def test_a_run_continues_on_another_number_of_processes(experiment, tmp_path):
    path = experiment(training={"num_sgd_steps": 4000, "checkpoint_freq": 4})
    out = tmp_path / "out"
    with Forked(tmp_path, lambda: finetune(path, out)) as run:
        run.wait_until(lambda: list(out.glob("checkpoints/step-*/metadata.json")))
        run.processes[0].terminate()
        assert run.end() == [128 + signal.SIGTERM], run.said
    before = sorted((out / "checkpoints").glob("step-*"))[-1]
    step = read_metadata(before)["steps_completed"]
    with Forked(tmp_path, lambda: finetune(path, out), ranks=2) as run:
        run.wait_until(lambda: "val_loss" in run.said[0])
    assert f"resuming after step {step}" in run.said[0]


def test_bad_input_is_one_sentence_and_exit_code_2(experiment, tmp_path, capsys, photos):
    other = save_tiny_model(tmp_path / "wide", width=32)
    out = tmp_path / "out"
    assert finetune(experiment(), out) == 0
    start = out / "checkpoints" / "step-00000008"
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "metadata.json").write_text("{}")
    (broken / "learned_embeddings_dict.pt").write_bytes(
        (start / "learned_embeddings_dict.pt").read_bytes()[:300]
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    capsys.readouterr()
    cases = [
        (["--set", f"concepts.img_dirs=[{tmp_path / 'gone'}]"], "concepts.img_dirs[0]"),
        (["--set", f"concepts.img_dirs=[{empty}]"], "no readable image"),
        (["--set", "concepts.concept_strs=[a-b, a-b]"], "twice"),
        (["--set", "concepts.concept_strs=[cat]"], "already a word"),
        (["--set", "concepts.initializer_strs=['']"], "concepts.initializer_strs[0] is empty"),
        (["--set", "training.optimizer_name=lion"], "training.optimizer_name"),
        (["--set", "training.num_sgd_steps=-1"], "training.num_sgd_steps"),
        (["--set", "concepts.img_size=100"], "concepts.img_size"),
        (["--set", "concepts.transparency_color=blurple"], "concepts.transparency_color"),
        (["--set", "model.pretrained_model_name_or_path=no/such-model"], "no/such-model"),
        (["--set", "nonsense"], "--set nonsense is not KEY=VALUE"),
        (["--set", "hyperparameters.training.num_sgd_steps=1"], "only det's --config needs; leave"),
        (["--warm-start", broken], "is damaged"),
        (["--warm-start", tmp_path / "nothing"], "does not exist"),
        (
            ["--warm-start", start, "--set", f"model.pretrained_model_name_or_path={other}"],
            "width is 32",
        ),
        (["--output-dir", experiment("file.yaml") / "x"], "--output-dir"),
    ]
    for number, (extra, words) in enumerate(cases):
        code = finetune(experiment(), tmp_path / f"new{number}", *extra)
        error = capsys.readouterr().err
        assert code == 2, extra
        assert words in error, error
        assert error.startswith("detsd: ")
        assert "Traceback" not in error
    assert main(["finetune", str(tmp_path / "gone.yaml")]) == 2
    assert main(["finetune"]) == 2
    (tmp_path / "bare.yaml").write_text("name: x\n")
    assert main(["finetune", str(tmp_path / "bare.yaml")]) == 2
    assert "no hyperparameters section" in capsys.readouterr().err
    assert rows_of(out, 8)["blob-thing"].shape == (2, 16)


def test_a_full_disk_leaves_earlier_checkpoints(experiment, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    real = torch.save

    def full(state, path, *args):
        if "step-00000008" in str(path):
            raise OSError(28, "No space left on device")
        real(state, path, *args)

    monkeypatch.setattr(torch, "save", full)
    assert finetune(experiment(), out) == 2
    assert "No space left" in capsys.readouterr().err
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.undo()
    assert finetune(experiment(), out) == 0


def test_nothing_unfinished_stays(experiment, tmp_path, monkeypatch, capsys):
    """This holds for two stops while a checkpoint is written, and after a kill."""
    out = tmp_path / "out"
    real = torch.save

    def asked_twice(state, path, *args):
        if "step-00000008" in str(path):
            raise SystemExit(130)
        real(state, path, *args)

    monkeypatch.setattr(torch, "save", asked_twice)
    with pytest.raises(SystemExit):
        finetune(experiment(), out)
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.undo()
    (out / "checkpoints" / ".step-00000005").mkdir()
    (out / "checkpoints" / ".step-00000005" / "metadata.json").touch()
    (out / "samples").mkdir()
    for name in (".step-00000005-000.png", ".of-the-user"):
        (out / "samples" / name).touch()
    assert finetune(experiment(), out) == 0
    assert not list(out.glob("checkpoints/.*"))
    assert [p.name for p in out.glob("samples/*")] == [".of-the-user"]


def test_a_disk_too_full_for_tensorboard_is_one_sentence(experiment, tmp_path, capfd):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, usual[1]))  # the training images are larger
    try:
        assert finetune(experiment(), tmp_path / "out") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    said = capfd.readouterr().err
    assert "File too large" in said
    assert "Traceback" not in said


def test_concepts_on_a_full_disk_are_told_like_the_rest(experiment, tmp_path, capsys, monkeypatch):
    """A real limit on file size is reported by the system like a full disk."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    real = checkpoint.write_concepts

    def full(concepts, folder):
        if "step-00000008" in str(folder):
            concepts = [LearnedConcept("x", "", (torch.ones(1, 500_000),))]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, usual[1]))
        try:
            real(concepts, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)

    monkeypatch.setattr(checkpoint, "write_concepts", full)
    assert finetune(experiment(), tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "step-00000008 cannot be written" in said
    assert "File too large" in said
    assert "Traceback" not in said


def test_a_sample_is_made_again_from_itself(experiment, tmp_path, capsys, monkeypatch):
    """Also after its run was moved; no file holds the vectors of step 0."""
    words = {"inference_prompts": ["a blob-thing and a (blob-thing:1.2)", "a ball"]}
    given = words | {"negative_prompt": "red", "img_per_prompt": 3, "guidance_interval": [0, 0.5]}
    assert finetune(experiment(inference=given), tmp_path / "out") == 0
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    for k in (1, 4, 11):
        sample = moved / "samples" / f"step-00000004-{k:03d}.png"
        capsys.readouterr()
        out = tmp_path / f"again-{k}"
        assert main(["generate", "--from", str(sample), "--output-dir", str(out)]) == 0
        assert f"job-00000.png: the same pixels as {sample}" in capsys.readouterr().out
    step = moved / "checkpoints" / "step-00000004"
    (moved / "samples" / "before-step-00000008").mkdir()  # where other prompts' samples go
    aside = moved / "samples" / "before-step-00000008" / "step-00000004-001.png"
    here = moved / "samples" / aside.name
    shutil.copy(here, aside)
    monkeypatch.chdir(aside.parent)
    for sample in (here, aside, Path(aside.name)):
        named = remake_hyperparameters(sample)["concepts"]["files"]
        assert named == [str(step / "learned_embeddings_dict.pt")]
    step.rename(tmp_path / "elsewhere")
    assert main(["generate", "--from", str(here)]) == 2
    assert f"files[0]: {step}/learned_embeddings_dict.pt does not exist" in capsys.readouterr().err
    assert main(["generate", "--from", str(moved / "samples" / "step-00000000-000.png")]) == 2
    assert "contact sheets, samples of step 0 and those of a " in capsys.readouterr().err


def test_what_a_power_cut_has_torn_is_dropped(experiment, tmp_path, capsys, caplog):
    """This covers every file that a run reads again: metrics, samples, metadata."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    path = experiment(inference=SAMPLES | {"seeds": [0]})
    assert finetune(path, whole) == 0
    shutil.copytree(whole, out)
    for metadata in ("", "null", '{"kind": "fine'):
        (out / "checkpoints" / "step-00000008" / "metadata.json").write_text(metadata)
        with (out / "metrics.jsonl").open("a") as f:
            f.write('\n{"group": "training", "steps_comp')
        sample = out / "samples" / "step-00000004-000.png"
        sample.write_bytes(sample.read_bytes()[:200])
        capsys.readouterr()
        assert finetune(path, out) == 0
        assert "resuming after step 4" in capsys.readouterr().out
        assert torch.equal(rows_of(out, 8)["blob-thing"], rows_of(whole, 8)["blob-thing"])
        assert read_metadata(out / "checkpoints" / "step-00000008")["complete"]
        assert sorted(metrics_of(out)) == [2, 4, 6, 8]
    with Image.open(out / "time_lapse.gif") as gif:
        assert gif.n_frames == 2  # without the truncated one


def test_two_processes_keep_out_of_one_folder(experiment, tmp_path, capsys):
    out = tmp_path / "out"
    with open_run(out):
        before = sorted(p for p in out.rglob("*") if p.is_file())
        assert finetune(experiment(), out) == 2
        assert f"{out} is in use by process {os.getpid()} on " in capsys.readouterr().err
        assert sorted(p for p in out.rglob("*") if p.is_file()) == before
    assert finetune(experiment(training={"num_sgd_steps": 1}), out) == 0


def overflow_at(monkeypatch, steps):
    """Make the loss of these steps (from 0) overflow, as it does in fp16 now and then."""
    real, calls = TrainStep.loss, itertools.count()

    def loss(self, batch):
        found, parts = real(self, batch)
        factor = math.inf if next(calls) in steps else 1.0
        return found * factor, {name: value * factor for name, value in parts.items()}

    monkeypatch.setattr(TrainStep, "loss", loss)


def test_one_overflow_in_fp16_is_left_out(experiment, tmp_path, monkeypatch):
    out = tmp_path / "out"
    overflow_at(monkeypatch, {2, 6, 7})
    path = experiment(model={"precision": "fp16"})
    assert finetune(path, out) == 0
    told = metrics_of(out)
    assert {step: "loss" in m for step, m in told.items()} == {2: True, 4: True, 6: True, 8: False}
    assert all(math.isfinite(v) for m in told.values() for v in m.values() if v != m["group"])
    state = torch.load(out / "checkpoints" / "step-00000008" / "trainer_state.pt")
    assert state["scaler"]["scale"] == 65536 / 2**3


def test_a_collapsed_scale_is_a_divergence(experiment, tmp_path, monkeypatch, capsys):
    overflow_at(monkeypatch, range(100))
    change = {"num_sgd_steps": 20, "checkpoint_freq": 20, "metric_report_freq": 1}
    path = experiment(model={"precision": "fp16"}, training=change)
    assert finetune(path, tmp_path / "out") == 2
    assert "no longer finite at step 17" in capsys.readouterr().err


def test_validation_is_made_in_bounded_batches(experiment, tmp_path, monkeypatch):
    change = {"num_sgd_steps": 1, "num_validation_timesteps": 20}
    path = experiment(training=change)
    real, sizes, losses = objective.squared_error, set(), []

    def error(prediction, *args):
        sizes.add(len(prediction))
        return real(prediction, *args)

    monkeypatch.setattr(objective, "squared_error", error)
    for at_once in (8, 20):
        monkeypatch.setattr(objective, "MAX_TIMESTEPS", at_once)
        assert finetune(path, tmp_path / str(at_once)) == 0
        losses.append(metrics_of(tmp_path / str(at_once), "validation")[1]["val_loss"])
    assert sizes == {4, 8, 20}
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_the_printed_grid_asks_for_a_style_as_one(experiment):
    concepts = {
        "concept_strs": ["blob-thing", "my-style"],
        "initializer_strs": ["red ball", "bright picture"],
        "img_dirs": ["a", "b"],
        "learnable_properties": ["object", "style"],
    }
    config = load_config(experiment(concepts=concepts))
    prompts = json.loads(grid_settings(config, {}, lambda prompt: None)["grid.prompts"])
    assert prompts == ["a photo of a blob-thing", "a painting in the style of my-style"]


@pytest.mark.parametrize("num_vectors", [74, 80])
def test_more_vectors_than_a_prompt_has_room_for(experiment, tmp_path, capsys, caplog, num_vectors):
    path = experiment(concepts={"num_vectors": num_vectors})
    assert finetune(path, tmp_path / "out") == 2
    assert "concepts.num_vectors[0]" in capsys.readouterr().err
    assert not [record for record in caplog.records if record.name.startswith("detsd")]


def test_a_user_without_home_and_entry(tmp_path, tiny_model):
    """Containers run as such users; the terminal knows only ASCII."""
    code = (
        "import pwd, sys; pwd.getpwuid = lambda uid: {}[f'uid not found: {uid}']\n"
        "from detsd.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    grid = {"prompts": "a “quoted” naïve ball", "num_inference_steps": 1}
    config = {"model": {"pretrained_model_name_or_path": str(tiny_model)}, "grid": grid}
    (tmp_path / "grid.yaml").write_text(json.dumps({"hyperparameters": config}))
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME")}
    env |= {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", "grid.yaml", "--output-dir", "naïve"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "images: na?ve/images" in done.stdout
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("report_freq", [1, 2])
def test_a_diverged_run_reports_a_finite_value_and_ends(experiment, tmp_path, capsys, report_freq):
    out = tmp_path / "out"
    change = {"optimizer_name": "sgd", "learning_rate": 1e38, "metric_report_freq": report_freq}
    assert finetune(experiment(training=change), out) == 2
    assert "no longer finite" in capsys.readouterr().err
    last = list(metrics_of(out, "validation").values())[-1]
    assert last["val_loss"] == 1e9
    assert last["sgd_steps"] == 8  # all of its steps: a search counts it as complete
    for told in metrics_of(out).values():  # after step 1 the rows' norms overflow, not the loss
        assert all(map(math.isfinite, told.values()))


def test_a_stop_stores_no_diverged_rows(experiment, tmp_path, monkeypatch, capsys):
    """This holds between two reports, too: a trial must resume from usable rows."""
    change = {"optimizer_name": "sgd", "learning_rate": 1e38, "metric_report_freq": 8}
    calls = iter([False, False, True])
    monkeypatch.setattr(LocalRun, "should_stop", lambda self: next(calls))
    assert finetune(experiment(training=change), tmp_path / "out") == 2
    assert "no longer finite at step 3" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/checkpoints/*"))


def test_samples_of_nothing_learned_are_pointed_out(experiment, tmp_path, caplog):
    """This happens if a user changes the concept's word but not the prompts."""
    prompts = ["a photo of a det-logo", "a photo of a blob-thing"]
    path = experiment(inference={"inference_prompts": prompts}, training={"num_sgd_steps": 1})
    assert finetune(path, tmp_path / "out") == 0
    (said,) = [r.getMessage() for r in caplog.records if "names none" in r.getMessage()]
    assert "'a photo of a det-logo', which names none of this run's concepts (blob-thing)" in said


def test_a_run_goes_on_with_the_images_it_began_with(
    experiment, tmp_path, photos, monkeypatch, capsys, caplog
):
    """Otherwise a held-out image could have been trained on. Captions are checked as well."""
    folder = shutil.copytree(photos, tmp_path / "photos")
    long = "a {} on " + "very " * 80 + "old wood"
    (folder / "on_a_table_0.txt").write_text(long)
    path = experiment(concepts={"img_dirs": [str(folder)], "use_caption_files": True})
    out = tmp_path / "out"
    calls = iter([False, False, True])
    with monkeypatch.context() as stopped:
        stopped.setattr(LocalRun, "should_stop", lambda self: next(calls))
        assert finetune(path, out) == 128
    assert "its last words are cut off; shorten it" in caplog.text
    (folder / "on_a_table_7.png").rename(folder / "b.png")
    assert finetune(path, out) == 2
    said = capsys.readouterr().err
    assert "(new: blob-thing/b.png; gone: blob-thing/on_a_table_7.png)" in said
    assert "--warm-start keeps what was learned" in said
    (folder / "b.png").rename(folder / "on_a_table_7.png")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert finetune(path, out) == 0
    assert "this run began with 1 CPU threads and continues with 3" in caplog.text
    assert "set OMP_NUM_THREADS=1 to avoid this" in caplog.text


def test_what_prompts_of_other_programs_have_is_told_once(experiment, tmp_path, photos, caplog):
    """This covers captions, sample prompts and their negative prompt."""
    folder = shutil.copytree(photos, tmp_path / "photos")
    for k in (0, 1):
        caption = f"a blob-thing, (red:1.{k}), <lora:x{k}:0.8>, a {{b|c{k}}}"
        (folder / f"on_a_table_{k}.txt").write_text(caption)
    prompts = {"inference_prompts": ["a blob-thing AND a dog", "a blob-thing AND a cat"]}
    path = experiment(
        concepts={"img_dirs": [str(folder)], "use_caption_files": True},
        inference=prompts | {"negative_prompt": "__bad__", "num_inference_steps": 1},
    )
    assert finetune(path, tmp_path / "out") == 0
    said = [record.getMessage() for record in caplog.records]
    for part in (
        "has <lora:x0:0.8> (a LoRA", "has {b|c0} (a choice", "has weights, which are ignored",
        "has AND (two prompts", "the prompt '__bad__' has __bad__ (a wildcard",
        "inference.num_inference_steps: 1 gives noise with the ddim sampler",
    ):  # fmt: skip
        assert len([line for line in said if part in line]) == 1, part


def test_start_from_a_concept_file(experiment, tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    assert finetune(experiment(), out) == 0
    file = out / "checkpoints" / "step-00000008" / "blob-thing.safetensors"
    brief = {"learning_rate": 1e-9, "num_sgd_steps": 1}
    for k, source in enumerate((file, out)):  # the run's folder means its newest checkpoint
        path = experiment(concepts={"initializer_strs": [str(source)]}, training=brief)
        assert finetune(path, again / str(k)) == 0
        learned = rows_of(again / str(k), 1)["blob-thing"]
        assert torch.allclose(learned, rows_of(out, 8)["blob-thing"], atol=1e-6)


@pytest.mark.parametrize("start", ["red.bin", "RED.PT", "red.safetensors=ball", "folder"])
def test_a_path_is_never_a_phrase(experiment, tmp_path, monkeypatch, capsys, start):
    path = experiment(concepts={"initializer_strs": [start]})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert finetune(path, tmp_path / "out") == 2
    assert start.partition("=")[0] in capsys.readouterr().err


def test_warm_start_from_any_concept(experiment, tmp_path, capsys):
    """It may be a run's folder, or another tool's file under another word."""
    file = tmp_path / "learned_embeds.safetensors"
    save_file({"<toy>": torch.randn(2, 16)}, file)
    path = experiment(training={"learning_rate": 1e-9, "num_sgd_steps": 1, "checkpoint_freq": 1})
    first, second = tmp_path / "first", tmp_path / "second"
    assert finetune(path, first, "--warm-start", file) == 2
    assert "FILE=WORD" in capsys.readouterr().err
    start = f"{file}=blob-thing"
    assert finetune(path, first, "--warm-start", start) == 0
    assert finetune(path, second, "--warm-start", first) == 0
    for out in (first, second):
        assert torch.allclose(rows_of(out, 1)["blob-thing"], load_file(file)["<toy>"], atol=1e-6)
    assert finetune(path, first, "--warm-start", start) == 0  # complete


def test_no_token_is_ever_written(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_AUTH_TOKEN", "hf_secretsecretsecret")
    out = tmp_path / "out"
    assert finetune(experiment(inference=SAMPLES), out) == 0
    assert main(["finetune", str(experiment()), "--set", "model.pretrained_model_name_or_path=a/b",
                 "--output-dir", str(tmp_path / "hub")]) == 2  # fmt: skip
    captured = capsys.readouterr()
    assert "hf_secret" not in captured.out + captured.err
    for path in out.rglob("*"):
        if path.is_file():
            assert b"hf_secret" not in path.read_bytes()


@pytest.mark.slow
def test_the_demo_learns_the_logo(tmp_path):
    """After a third of the demo's steps, the held-out loss is below the phrase's."""
    changes = ("inference.inference_prompts=[]", "training.num_sgd_steps=50",
               "training.checkpoint_freq=50")  # fmt: skip
    assert finetune("finetune_demo.yaml", tmp_path, *(f"--set={c}" for c in changes)) == 0
    last = metrics_of(tmp_path, "validation")[50]
    assert last["val_loss"] == last["val_loss_held_out"]
    assert last["val_loss"] < 0.95 * last["val_loss_initializer"]  # measured: .913


def test_the_compiled_step_is_the_plain_one(experiment, tmp_path, monkeypatch, caplog):
    """They agree within rounding, also in micro-batches; resuming is exact; a failure is a line."""

    def compile_by(backend):
        monkeypatch.setattr(
            train_step, "compiled", partial(torch.compile, backend=backend, dynamic=False)
        )

    compile_by("eager")  # the same graphs, without minutes of compiling

    def train(name, setting, **training):
        training["compile"] = setting
        path = experiment(f"{name}.yaml", training=training)
        assert finetune(path, tmp_path / name) == 0
        return rows_of(tmp_path / name, 8)["blob-thing"]

    plain, compiled = train("plain", "off"), train("compiled", "on")
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-4)
    last = tmp_path / "compiled" / "checkpoints" / "step-00000008"
    shutil.rmtree(last)
    assert torch.equal(train("compiled", "on"), compiled)
    compile_by("aot_eager")  # and the gradients' graphs
    halves = train("halves", "on", train_batch_size=2, gradient_accumulation_steps=2)
    torch.testing.assert_close(halves, compiled, rtol=1e-3, atol=1e-4)
    assert "continuing uncompiled" not in caplog.text
    compile_by(lambda *_: 1 / 0)
    assert torch.equal(train("failing", "on"), plain)
    assert "training.compile: continuing uncompiled (" in caplog.text


def test_a_training_too_large_for_the_memory(experiment, tmp_path, monkeypatch, capsys):
    """A sentence names the keys, whether the model or its activations do not fit."""
    full = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def fails(*_, **__):
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "loss", fails)
        assert finetune(experiment(), tmp_path / "out") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("detsd: this training does not fit into the memory of cpu (CUDA out")
        assert "lower training.train_batch_size" in line
    monkeypatch.setattr(loading, "load_part", fails)
    assert finetune(experiment(), tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be loaded; free the device's memory, or use half precision" in line


@pytest.mark.parametrize(
    ("setting", "device", "steps", "expected"),
    [
        ("auto", "cpu", 9999, False), ("auto", "cuda", 9999, True), ("auto", "cuda", 999, False),
        ("on", "cpu", 1, True), ("off", "cuda", 9999, False),
    ],
)  # fmt: skip
def test_what_is_compiled(setting, device, steps, expected):
    config = TrainingConfig(compile=setting, num_sgd_steps=steps)
    assert wants_compiler(config, torch.device(device)) is expected


def test_a_run_in_the_current_folder_ends_like_any_other(experiment, tmp_path, monkeypatch, capsys):
    """The folder `.` has no name after which that of a grid could be called."""
    path = experiment(training={"num_sgd_steps": 1})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (".", "..//here", "sub/.."):
        assert main(["finetune", str(path), "--output-dir", folder]) == 0
    said = capsys.readouterr().out
    assert f" --output-dir {tmp_path / 'here-grid'}\n" in said
    assert beside(Path("outputs/a"), "-grid") == Path("outputs/a-grid")
    assert beside(Path("/"), "-grid") == Path("/root-grid")
