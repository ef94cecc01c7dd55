"""Trials: the real harness and the real entrypoints against a stand-in master."""

import contextlib
import io
import json
import math
import multiprocessing
import os
import random
import re
import shlex
import signal
import threading
import time
import zipfile
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import requests
import torch
import yaml
from conftest import SAMPLES
from determined.cli import cli as det_cli
from determined.cli._declarative_argparse import add_args
from determined.common.api import errors
from determined.experimental import client
from determined.tensorboard.base import TensorboardManager
from forked import free_port
from PIL import Image
from standin import Dropped, Master, Refused, experiment_of, matched
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import ROOT, save_tiny_clip

from detsd.__main__ import main
from detsd.cli.parser import parser
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.reading import read_concepts
from detsd.concepts.writing import write_concepts
from detsd.config import FinetuneConfig, GenerateConfig, parse_config
from detsd.generate import store
from detsd.runs import determined as determined_run
from detsd.runs import download, ranks
from detsd.runs.download import deleted
from detsd.runs.folder import read_metadata
from detsd.runs.ranks import AcceleratedRanks, distributed_context
from detsd.train.trainer import Trainer
from detsd.train.validation import Validation
from detsd.utils import progress

CONCEPTS = ("blob-thing", "blob-thing-two")


@pytest.fixture
def two_concepts(experiment, photos):
    """Return an experiment with two concepts in 24 steps, and a checkpoint every 8."""
    path = experiment(
        concepts={
            "concept_strs": list(CONCEPTS),
            "initializer_strs": ["red ball", "blue box"],
            "img_dirs": [str(photos)] * 2,
        },
        training={"num_sgd_steps": 24, "checkpoint_freq": 8},
        inference=SAMPLES,
    )
    return experiment_of(path)


@pytest.fixture
def master(tmp_path, monkeypatch):
    """Yield a master; trials in this process and its forks do not wait between uploads."""
    monkeypatch.setattr(determined_run, "UPLOADS_APART", 0)
    monkeypatch.setattr(TensorboardManager, "sync", TensorboardManager._sync)
    with Master(tmp_path) as master:
        yield master
        assert master.refused == []


def rows(master, step, trial=7):
    return {c.name: c.embeddings[0] for c in read_concepts(master.stored(trial)[step])}


def pause(master, when):
    """Ask the trial to stop at a request to the master, before the response."""
    master.preempt_told.clear()

    def ask():
        master.preempt.set()
        if not master.preempt_told.wait(60):
            master.refused.append("nobody asked whether to stop")
        for thread in threading.enumerate():  # the harness's polling thread has it now
            if not getattr(thread, "_should_quit", True):
                thread.join(60)

    master.when(when, ask)


def progress_of(share):
    """Return a condition for `pause`: a report of progress `share`."""
    return lambda path, body: path.endswith("/progress") and body["progress"] >= share


def told(kind, steps=None):
    """Return a condition for `Master.when`: a request to .../KIND with at least `steps` steps."""

    def check(path, body):
        if not path.endswith(kind):
            return False
        where = body.get("metadata") or body.get("metrics") or {}
        done = where.get("steps_completed", where.get("stepsCompleted"))
        return steps is None or done >= steps

    return check


@pytest.mark.slow
def test_a_disturbed_trial_ends_where_an_undisturbed_one_does(two_concepts, master):
    """The trial is paused, killed, cut off from the master, and restarted."""
    master.run(two_concepts, trial=1)
    assert list(master.stored(1)) == [8, 16, 24]
    assert sorted(master.metrics("training", 1)) == list(range(2, 25, 2))
    validation = master.metrics("validation", 1)
    assert sorted(validation) == [8, 16, 24]
    for step, m in validation.items():
        assert set(FinetuneConfig.metrics) <= set(m)
        assert m["sgd_steps"] == step
    assert master.progress() == sorted(master.progress())
    assert master.progress()[-1] == 1.0
    last = master.stored(1)[24]
    assert {
        "learned_embeddings_dict.pt", "metadata.json", "before_after.png", "time_lapse.gif",
        *(f"{name}.safetensors" for name in CONCEPTS),
    } <= {p.name for p in last.iterdir()}  # fmt: skip
    assert len(list(last.rglob("*"))) < 12  # hundreds of samples are one file
    with zipfile.ZipFile(last / "samples.zip") as samples:
        assert len(samples.namelist()) == 8
        assert "samples/step-00000000-001.png" in samples.namelist()
    (events,) = master.folder.rglob("events.out.tfevents.*")
    seen = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
    assert [e.step for e in seen.Scalars("validation/val_loss")] == [8, 16, 24]
    samples = [tag for tag in seen.Tags()["images"] if tag.startswith("samples/")]
    assert len(samples) == 2
    assert [e.step for e in seen.Images(samples[0])] == [0, 8, 16, 24]

    wanted, away = random.randint(1, 10), random.randint(17, 24)
    print(f"asked to pause at step {wanted}, master away at step {away}")
    pause(master, progress_of(wanted / 24))
    master.run(two_concepts)
    assert len(master.acknowledged) == 1
    assert wanted <= max(master.stored()) < 16
    master.preempt.clear()

    # Killed between writing a checkpoint and reporting it: the files do not count.
    def kill():
        killed.kill()
        raise Dropped

    master.when(told("/checkpoints", 16), kill)
    with master.fork(two_concepts) as killed:
        assert killed.end() == [-signal.SIGKILL], killed.said
    assert max(master.stored()) < 16

    master.when(told("/metrics", away), lambda: master.refuse_connections(2))
    said = master.run(two_concepts)
    assert "resuming after step" in said
    assert set(master.stored()) >= {8, 16, 24}
    for name, learned in rows(master, 24, trial=1).items():
        assert torch.equal(rows(master, 24)[name], learned)
    for group in ("training", "validation"):
        undisturbed = master.metrics(group, 1)
        assert sorted(master.metrics(group)) == sorted(undisturbed)
        for step, m in master.metrics(group).items():
            names = {"loss", "mse", "val_loss", "val_gap", "learning_rate"} & set(m)
            assert {n: m[n] for n in names} == {n: undisturbed[step][n] for n in names}

    # No step is shown twice: neither that of a stopped process nor that of the next one.
    folders = {events.parent for events in master.folder.rglob("events.out.tfevents.*")}
    assert sorted(len(list(folder.iterdir())) for folder in folders) == [1, 3]
    for folder in folders:
        shown = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
        assert [e.step for e in shown.Scalars("training/loss")] == list(range(2, 25, 2))

    count = len(master.told)
    master.run(two_concepts)  # a finished run restarted: nothing more
    later = [path.rsplit("/")[-1] for path, _ in master.told[count:]]
    asked = set(later) & set(master.checkpoints().values())  # is the best still stored?
    assert len(asked) == 1
    assert sorted(set(later) - asked) == ["metadata", "progress", "start"]
    assert master.progress()[-1] == 1.0


@pytest.mark.slow
def test_a_rank_fails_and_the_trial_goes_on_on_another_number_of_slots(
    two_concepts, master, tmp_path, caplog
):
    two_concepts["hyperparameters"]["training"]["train_batch_size"] = 2
    failing = master.launch(two_concepts, slots=2)
    master.when(
        told("/checkpoints", 16),
        lambda: os.kill(master.ranks(failing)[1], signal.SIGKILL),
    )
    said = master.end(failing)
    assert failing.returncode not in (0, None), said
    assert "[rank=0]" in said
    assert "OMP_NUM_THREADS" not in said  # Accelerate's warning at every start
    assert list(master.stored()) == [8, 16]

    two_concepts["hyperparameters"]["training"]["train_batch_size"] = 4
    pause(master, progress_of(18 / 24))
    assert "resuming after step 16" in master.run(two_concepts)
    assert 18 <= max(master.stored()) < 20
    assert "partial checkpoint" not in caplog.text  # the harness's line
    master.preempt.clear()

    two_concepts["hyperparameters"]["training"]["train_batch_size"] = 2
    with master.fork(two_concepts, slots=2) as again:
        assert again.end() == [0, 0], again.said
    assert "resuming after step" in again.said[0]
    assert master.progress()[-1] == 1.0
    assert sorted(master.metrics("training")) == list(range(2, 25, 2))
    assert sorted(master.metrics("validation")) == [8, 16, 24]
    two_concepts["hyperparameters"]["training"]["train_batch_size"] = 4
    path = tmp_path / "undisturbed.yaml"  # off cluster, in this process: the same training
    path.write_text(yaml.safe_dump(two_concepts))
    assert main(["finetune", str(path), "--output-dir", str(tmp_path / "out")]) == 0
    for c in read_concepts(tmp_path / "out" / "checkpoints" / "step-00000024"):
        assert torch.allclose(rows(master, 24)[c.name], c.embeddings[0], rtol=1e-4, atol=1e-6)

    # Another trial starts from these rows, at step 0 and with its own rate.
    two_concepts["hyperparameters"]["training"]["learning_rate"] = 1e-9
    said = master.run(two_concepts, trial=8, source=master.checkpoints()[24])
    assert f"starting from the vectors of checkpoint {master.checkpoints()[24]}" in said
    assert master.metrics("training", 8)[2]["learning_rate"] == 1e-9
    for name, learned in rows(master, 24).items():
        assert torch.allclose(rows(master, 24, trial=8)[name], learned, atol=1e-6)


UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
CLOCK = r"\d\d:\d\d"


def assert_log(said, *patterns):
    """Check a log's lines one by one; a line every ten seconds may come between."""
    lines = said.splitlines()
    every_ten = rf"\[rank=0\] \d+/\d+ (steps|images)(, [^,]+)?(, {CLOCK} left)?"
    for pattern in patterns:
        while lines and not re.fullmatch(rf"\[rank=0\] {pattern}", lines[0]):
            assert re.fullmatch(every_ten, lines[0]), (pattern, lines[0], said)
            del lines[0]
        assert lines, (pattern, said)
        del lines[0]
    assert lines == [], said


@pytest.mark.slow
def test_the_whole_log_of_a_healthy_fine_tuning(experiment, master):
    """Through hook and launcher, on two slots, every line concerns the user."""
    training = {"num_sgd_steps": 8, "train_batch_size": 2, "register_model": "my-blob"}
    given = experiment_of(experiment(training=training, inference=SAMPLES))
    launched = master.launch(given, slots=2)
    said = master.end(launched)
    assert launched.returncode == 0, said
    (events,) = master.folder.rglob("events.out.tfevents.*")  # uploads are a second apart
    seen = EventAccumulator(str(events)).Reload()
    assert [e.step for e in seen.Scalars("validation/val_loss")] == [4, 8]
    steps = [
        rf"{step}/8 steps, loss \d\.\d{{4}}, \d+\.\d samples/s, {CLOCK} left"
        for step in (2, 4, 6, 8)
    ]
    validations = [
        rf"step {step}  val_loss \d\.\d{{4}}  \(initializer \d\.\d{{4}}\)" for step in (4, 8)
    ]
    assert_log(
        said,
        r"loading /\S+ \.\.\.",
        *steps[:2], validations[0], *steps[2:], validations[1],
        r"registered as version 1 of my-blob: blob-thing, step \d",
        rf"step \d of 8 is the best: val_loss \S+ \(initializer \S+\); checkpoint {UUID}.*",
        "next:",
        "  make a grid of images:",
        rf'    det e create generate_demo\.yaml \. .*uuids=\["{UUID}"\].*',
        "  download it to your own computer:",
        rf"    python -m detsd download {UUID}",
        "  view its metrics and images:",
        "    det tensorboard start 1",
    )  # fmt: skip


@pytest.mark.slow
def test_the_whole_log_of_a_healthy_grid(tiny_model, master):
    """It runs on one slot."""
    given = {
        "searcher": GRID_SEARCHER,
        "hyperparameters": {
            "model": {"pretrained_model_name_or_path": str(tiny_model)},
            "grid": {"prompts": ["a ball", "a box"], "num_inference_steps": 4, "num_seeds": 6},
            "output": {"batch_size": 2, "checkpoint_freq": 1},
        },
    }
    launched = master.launch(given, command="generate")
    said = master.end(launched)
    assert launched.returncode == 0, said
    assert_log(
        said,
        r"loading /\S+ \.\.\.",
        r"12/12 images, \d+\.\d\d images/s",
        rf"all 12 images: checkpoint {UUID}",
        "next:",
        "  download it to your own computer:",
        rf"    python -m detsd download {UUID}",
        "  view its metrics and images:",
        "    det tensorboard start 1",
    )


def test_an_answer_that_breaks_off_loses_nothing(experiment, master, monkeypatch):
    """It costs a restart for a metric, and nothing for a status; the page shows the status."""
    monkeypatch.setattr(progress, "LINE", 0)  # a line for every progress
    given = experiment_of(experiment())
    master.run(given, trial=1)
    states = [body["state"] for path, body in master.told if path.endswith("/runner/metadata")]
    for what in ("loading", "encoding the images of blob-thing", "2/8 steps"):
        assert any(state.startswith(what) for state in states), states
    assert master.metrics("start", 1)[0]["images_encoded"] == 12

    master.cut = told("/metrics", 6)
    with pytest.raises(errors.BadRequestException):
        master.run(given)
    assert list(master.stored()) == [4]
    master.cut = told("/progress")
    assert "resuming after step 4" in master.run(given)
    assert master.cut is None
    for group in ("training", "validation"):
        assert sorted(master.metrics(group)) == sorted(master.metrics(group, 1))
    for name, learned in rows(master, 8, trial=1).items():
        assert torch.equal(rows(master, 8)[name], learned)


def test_a_master_that_is_away_leaves_two_lines(experiment, master, caplog):
    """One when it stops answering, one when it is back; a search does not ask it meanwhile."""
    given = experiment_of(experiment(training={"num_sgd_steps": 9999, "checkpoint_freq": 9999}))
    asked = []

    def go_away():
        asked.append(master.asked[7])
        master.refuse_connections(2)

    metrics = told("/metrics")
    # Even if the steps are fast, the search was asked before, and is asked again afterwards.
    master.when(lambda *request: master.asked[7] > 0 and metrics(*request), go_away)
    master.when(lambda *request: asked and metrics(*request), lambda: master.judged.add(7))
    said = master.run(given | {"searcher": ASHA})
    about = [line for line in said.splitlines() if line.startswith("the master")]
    assert about[0] == "the master does not answer; reports to it wait until it does"
    assert re.fullmatch(r"the master answers again, after \d+ s", about[1])
    assert len(about) == 2
    assert caplog.text == ""  # nothing from urllib3 and the harness
    assert 0 < asked[0] < master.asked[7]


def test_a_connection_that_breaks_for_a_moment_leaves_no_line(experiment, master, caplog):
    """A proxy may close an idle connection; the next try succeeds."""

    def drop():
        raise Dropped

    master.when(told("/metrics", 4), drop)
    assert "the master" not in master.run(experiment_of(experiment()))
    assert caplog.text == ""
    assert sorted(master.metrics("training")) == [2, 4, 6, 8]


GRID_SEARCHER = {"name": "single", "metric": "images", "smaller_is_better": False}

ASHA = {
    "name": "adaptive_asha", "metric": "val_loss", "time_metric": "sgd_steps", "max_time": 8,
    "max_trials": 4,
}  # fmt: skip


def test_a_trial_that_the_searcher_is_done_with(experiment, master):
    """It gets no signal: it asks, saves and ends, without mentioning preemption."""
    given = experiment_of(
        experiment(
            training={"num_sgd_steps": 9999, "checkpoint_freq": 9999},
        )
    )

    def busy():
        raise Refused("busy")  # the trial must not end for this

    master.when(lambda path, body: path == "/api/v1/trials/7", busy)
    master.when(told("/metrics", 40), lambda: master.judged.add(7))
    began = time.monotonic()
    said = master.run(given | {"searcher": ASHA})
    assert master.refused.pop() == "/api/v1/trials/7: busy"
    assert 0 < master.asked[7] <= time.monotonic() - began
    assert master.acknowledged == set()
    last = max(master.stored())
    assert 40 < last < 9999
    line = f"ended by the search after step {last} of 9999, saved as checkpoint "
    assert said.splitlines()[-1] == line + master.checkpoints()[last]
    assert json.loads((master.stored()[last] / "metadata.json").read_text())["complete"] is False

    given["hyperparameters"]["training"]["num_sgd_steps"] = 8
    master.run(given, trial=8)  # a searcher that ends no trials is not asked
    assert master.asked[8] == 0


def test_a_trial_of_a_search_that_diverges(experiment, master):
    """It reports finite values for its last step and the reason, and succeeds: no restart helps."""
    given = experiment_of(experiment(training={"optimizer_name": "sgd", "learning_rate": 1e38}))
    given |= {"searcher": ASHA, "log_policies": POLICIES}
    said = master.run(given)
    assert "no longer finite at step 2" in said
    assert matched(given, said) == []
    ((step, m),) = master.metrics("validation").items()
    assert (step, m["val_loss"], m["sgd_steps"]) == (2, 1e9, 8)
    assert set(FinetuneConfig.metrics) <= set(m)
    assert master.checkpoints() == {}
    for thread in threading.enumerate():  # a finished trial does not ask the master
        if thread.name == "searcher":
            thread.join(60)
            assert not thread.is_alive()


def test_a_best_checkpoint_that_is_deleted_is_not_offered(experiment, master, monkeypatch):
    """This holds for one deleted before the run resumes, and for one deleted at its end."""
    losses = {1: 0.5, 2: 0.3, 3: 0.6, 4: 0.5, 5: 0.4, 6: 0.7}
    monkeypatch.setattr(Validation, "loss", lambda *_: 0.9)
    monkeypatch.setattr(Trainer, "_validate", lambda self, *_: losses[self.state.steps_completed])
    training = {"num_sgd_steps": 4, "checkpoint_freq": 1, "metric_report_freq": 1}
    given = experiment_of(experiment(training=training | {"train_batch_size": 1}))

    def end(**storage):
        said = master.run(given | {"checkpoint_storage": storage})
        assert commands_of(said)["download it to your own computer"][-1] in said.split("; ")[-1]
        return next(line for line in said.splitlines() if " is the best: " in line)

    line = end()
    assert line.endswith(f"; checkpoint {master.checkpoints()[2]}")
    master.collect_garbage(1)
    given["hyperparameters"]["training"]["num_sgd_steps"] = 6
    line, newest = end(), master.checkpoints()[6]
    assert line.startswith("step 2 of 6 is the best: val_loss 0.3000")
    assert line.endswith(f"; checkpoint_storage has deleted it; the newest is checkpoint {newest}")
    line = end(save_trial_best=0, save_experiment_best=0, save_trial_latest=2)
    assert line.endswith(
        "; checkpoint_storage deletes it (save_trial_best: 0, save_experiment_best: 0); the newest "
        f"is checkpoint {newest}"
    )


def test_the_best_checkpoint_is_registered_once(experiment, master, monkeypatch, caplog):
    """It is the one that the master keeps as the best, even after a pause and a restart."""
    losses = {1: 0.5, 2: 0.3, 3: 0.6, 4: 0.5}
    monkeypatch.setattr(Validation, "loss", lambda *_: 0.9)
    monkeypatch.setattr(Trainer, "_validate", lambda self, *_: losses[self.state.steps_completed])
    training = {"num_sgd_steps": 4, "checkpoint_freq": 1, "metric_report_freq": 1}
    training |= {"train_batch_size": 1, "register_model": "my blob"}
    given = experiment_of(experiment(training=training))
    pause(master, progress_of(2 / 4))  # the best checkpoint is the one from which it resumes
    master.run(given)
    master.preempt.clear()
    assert list(master.stored()) == [1, 2]
    assert master.models == {}

    def no(path, body):
        return path.endswith("/versions") and "checkpointUuid" in body

    def refuse():
        raise Refused("you may not")

    master.when(no, refuse)
    master.run(given)
    assert "could not be registered as 'my blob'" in caplog.text
    assert master.refused.pop().endswith("you may not")
    for _ in range(2):  # a finished trial restarted
        said = master.run(given)
        assert ", version 1 of my blob\n" in said
    assert "registered" not in said
    ((name, (version,)),) = master.models.items()
    assert name == "my blob"
    told = master.metrics("validation")
    best = min(told, key=lambda step: told[step]["val_loss"])
    assert version["checkpoint"]["uuid"] == master.checkpoints()[best]
    assert version["checkpoint"]["metadata"]["best"] == {"steps_completed": 2, "val_loss": 0.3}
    assert version["name"] == "blob-thing, step 2"
    assert "- val_loss: 0.3" in version["notes"]


def test_the_table_of_a_search(experiment, master, monkeypatch, capsys):
    """It has the best trial first, its next commands, a diverged trial, and one without a value."""
    training = {"checkpoint_freq": 2}
    searcher = ASHA | {"max_trials": 9, "divisor": 2, "max_rungs": 3}
    storage = {"save_trial_latest": 1, "save_trial_best": 0, "save_experiment_best": 1}
    for trial, rate, steps in ((7, 0.01, 8), (8, 0.02, 4), (9, 1e38, 8), (10, 0.03, 8)):
        optimizer = {"optimizer_name": "sgd"} if rate > 1 else {"optimizer_name": "adamw"}
        own = {"learning_rate": rate, "num_sgd_steps": steps} | optimizer
        given = experiment_of(experiment(training=training | own))
        given |= {"searcher": searcher | {"max_time": steps}, "checkpoint_storage": storage}
        if trial == 10:
            master._prepare(given, trial)
            continue
        master.run(given, trial=trial)
        master.states[trial] = "COMPLETED"
    assert master.collect_garbage(1) > 0
    login(master, monkeypatch)
    capsys.readouterr()
    assert main(["search", "1"]) == 0
    out = capsys.readouterr().out
    title, head, *lines = out.splitlines()
    assert title == "val_loss of 4 trials:"
    assert head.split("  ")[0] == "trial"
    assert re.split("  +", head) == [
        "trial", "state", "at 2", "at 4", "at 8", "best", "step", "learning_rate",
        "num_sgd_steps", "optimizer_name", "checkpoint",
    ]  # fmt: skip
    rows = {row[0]: row for row in (re.split("  +", line) for line in lines[:4])}
    for trial, rate, steps in (("7", "0.01", "8"), ("8", "0.02", "4")):
        told_ = master.metrics("validation", int(trial)).items()
        values = {step: metrics["val_loss"] for step, metrics in told_}
        best = min(values, key=values.get)
        (left,) = master.checkpoints(int(trial)).values()
        assert rows[trial] == [
            trial, "COMPLETED", *(f"{values[s]:.4f}" for s in (2, 4, 8) if s in values),
            f"{values[best]:.4f}", str(best), rate, steps, "adamw", left,
        ]  # fmt: skip
    assert rows["9"][:4] == ["9", "COMPLETED", "diverged", "diverged"]
    assert rows["9"][-1] == "none"
    assert rows["10"] == ["10", "RUNNING", "0.03", "8", "adamw", "none"]
    assert [line.split()[0] for line in lines[:4]][-2:] == ["9", "10"]
    said = "\n".join(lines[4:])
    first = int(lines[0].split()[0])
    ((step, uuid),) = master.checkpoints(first).items()
    assert said.startswith(f"the best: trial {first} at step {step}, val_loss ")
    assert f"--config searcher.source_checkpoint_uuid={uuid}" in said
    assert f"--config hyperparameters.training.learning_rate={rows[str(first)][-4]}" in said
    assert f"detsd evaluate {uuid}" in said
    assert main(["search", "2"]) == 2
    assert capsys.readouterr().err == (
        "detsd: the master has no experiment 2; det e list shows all experiments\n"
    )


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errors.UnauthenticatedException(), "the master asks for a login; run det user login"),
        (errors.ForbiddenException("not for you"), "see whether det e describe 7 works"),
        (ConnectionError("reset by peer"), "(ConnectionError: reset by peer); see whether det e d"),
    ],
)
def test_a_search_that_cannot_be_looked_up_is_a_sentence(monkeypatch, capsys, error, sentence):
    def refused(number):
        raise error

    monkeypatch.setattr("determined.experimental.client.get_experiment", refused)
    assert main(["search", "7"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("detsd: experiment 7 cannot be looked up")
    assert sentence in said


def test_checkpoints_that_others_stored_do_not_stop_the_table_of_a_search(monkeypatch, capsys):
    trial = SimpleNamespace(
        id=3, state=SimpleNamespace(name="COMPLETED"), hparams=None, iter_metrics=lambda group: [
            SimpleNamespace(steps_completed=5, metrics={"val_loss": 0.5})
        ],
    )  # fmt: skip
    kept = [
        SimpleNamespace(metadata=m, uuid=str(m), training=SimpleNamespace(trial_id=3))
        for m in (None, {}, {"steps_completed": 5})
    ]
    searcher = {"name": "random", "metric": "val_loss"}
    experiment = SimpleNamespace(
        config={"searcher": searcher}, list_checkpoints=lambda *_: kept, list_trials=lambda: [trial]
    )
    monkeypatch.setattr("determined.experimental.client.get_experiment", lambda _: experiment)
    assert main(["search", "7"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("val_loss of 1 trial:\n")
    assert "the best: trial 3 at step 5, val_loss 0.5000" in said


def test_a_run_off_cluster_begins_with_a_checkpoint_of_the_cluster(
    experiment, master, monkeypatch, tmp_path, capsys
):
    """Its uuid, in upper or lower case, is in the option or under the cluster's key."""
    monkeypatch.setattr(download, "CACHE", tmp_path / "cache")
    path = experiment(training={"num_sgd_steps": 2, "checkpoint_freq": 2})
    master.run(experiment_of(path))
    ((_, checkpoint),) = master.stored().items()
    (learned,), uuid = read_concepts(checkpoint), checkpoint.name
    login(master, monkeypatch)
    given = yaml.safe_load(path.read_text())
    keyed = tmp_path / "keyed.yaml"
    searcher = {"name": "single", "metric": "val_loss", "source_checkpoint_uuid": uuid}
    keyed.write_text(yaml.safe_dump(given | {"searcher": searcher}))
    still = ("--set", "training.learning_rate=1e-9")
    for k, (file, option) in enumerate((
        (path, ["--warm-start", uuid.upper()]), (path, ["--warm-start", f"uuid:{uuid}"]),
        (keyed, []),
    )):  # fmt: skip
        out = tmp_path / f"out{k}"
        run = ["finetune", str(file), "--output-dir", str(out), *option, *still]
        assert main(run) == 0
        assert uuid in capsys.readouterr().out.lower()
        (found,) = read_concepts(out / "checkpoints" / "step-00000002")
        torch.testing.assert_close(found.embeddings[0], learned.embeddings[0], atol=1e-6, rtol=0)
        monkeypatch.chdir(tmp_path)  # and resumes from any working directory
        assert main([*run, "--set", "training.num_sgd_steps=3"]) == 0
    assert main(["show", uuid.upper()]) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 1
    searcher = searcher | {"source_checkpoint_uuid": None, "source_trial_id": 1}
    keyed.write_text(yaml.safe_dump(given | {"searcher": searcher}))
    assert main(["finetune", str(keyed), "--output-dir", str(tmp_path / "no")]) == 2
    assert "searcher.source_trial_id, which works only on a cluster" in capsys.readouterr().err


def test_models_of_the_registry_stand_for_their_checkpoints(
    experiment, master, monkeypatch, tmp_path, capsys
):
    """They have a name or name and version, in a trial and off cluster; the uuid is recorded."""
    monkeypatch.setattr(download, "CACHE", tmp_path / "cache")
    training = {"num_sgd_steps": 4, "checkpoint_freq": 2, "register_model": "my-blob"}
    given = experiment_of(experiment(training=training))
    master.run(given)
    (version,) = master.models["my-blob"]
    first = version["checkpoint"]["uuid"]
    shown = master._described(first)["metadata"]  # det model list-versions prints all of it
    assert "config" not in shown
    assert (shown["num_sgd_steps"], shown["learning_rate"]) == (4, 0.01)
    assert shown["best"]["steps_completed"] == shown["steps_completed"]
    assert len(json.dumps(shown)) < 700
    assert read_metadata(master.store(first))["config"]["training"]["num_sgd_steps"] == 4

    grid = {
        "model": given["hyperparameters"]["model"], "concepts": {"models": "my-blob"},
        "grid": {"prompts": "a blob-thing", "num_inference_steps": 30, "num_seeds": 8},
        "output": {"batch_size": 1, "checkpoint_freq": 1},
    }  # fmt: skip
    experiment_ = {"hyperparameters": grid, "searcher": GRID_SEARCHER}
    monkeypatch.setattr(store, "MAX_PENDING", 1)  # no image is made while one waits to be stored
    pause(master, told("/checkpoints", 1))
    said = master.run(experiment_, trial=8, command="generate")
    assert f"model my-blob: version 1, checkpoint {first}" in said
    master.preempt.clear()
    master.run(given, trial=9)  # another version, while the grid is paused
    second = master.models["my-blob"][1]["checkpoint"]["uuid"]
    said = master.run(experiment_, trial=8, command="generate")
    assert "model my-blob" not in said
    assert re.search("[1-7] of 8 images already exist", said)
    newest = master.stored(8)[8]
    assert read_metadata(newest)["models"] == {"my-blob": first}
    (line,) = {line.split('"source": ')[1][:50] for line in manifest(newest)}
    assert line.startswith(f'"uuid:{first}"')

    login(master, monkeypatch)
    path = tmp_path / "grid.yaml"
    for models, uuid in (("my-blob", second), ("my-blob:1=other-word", first)):
        word = "other-word" if "=" in models else "blob-thing"
        grid["grid"]["prompts"] = f"a {word}"
        path.write_text(
            yaml.safe_dump({"hyperparameters": grid | {"concepts": {"models": models}}})
        )
        out = tmp_path / word
        assert main(["generate", str(path), "--output-dir", str(out)]) == 0
        assert f'"source": "uuid:{uuid}' in (out / "manifest.jsonl").read_text()
    capsys.readouterr()
    assert main(["show", "model:my-blob:1"]) == 0
    assert "blob-thing" in capsys.readouterr().out
    assert main(["download", "model:my-blob", "--output-dir", str(tmp_path / "got")]) == 0
    assert (tmp_path / "got" / "learned_embeddings_dict.pt").is_file()
    for name, sentence in (
        (
            "my-blob:3",
            "model 'my-blob' has no version 3; det model list-versions shows all versions",
        ),
        ("our-blob", "the registry has no model 'our-blob'; det model list shows all models"),
    ):
        assert main(["show", f"model:{name}"]) == 2
        assert capsys.readouterr().err == f"detsd: {sentence}\n"
    # Off cluster, a grid resumes with the version that it began with, and names the newer one.
    grid |= {"concepts": {"models": "my-blob"}}
    grid["grid"] |= {"prompts": "a blob-thing", "num_seeds": 9}
    path.write_text(yaml.safe_dump({"hyperparameters": grid}))
    master.run(given, trial=10)
    third = master.models["my-blob"][2]["checkpoint"]["uuid"]
    capsys.readouterr()
    out = tmp_path / "blob-thing"
    assert main(["generate", str(path), "--output-dir", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"model my-blob: checkpoint {second}, with which this run began" in said
    assert f"the newer version 3, checkpoint {third}, give --output-dir a new folder" in said
    assert "8 of 9 images already exist" in said
    found = set(re.findall('"source": "uuid:([^"]*)"', (out / "manifest.jsonl").read_text()))
    assert found == {second}


def manifest(checkpoint):
    return (checkpoint / "manifest.jsonl").read_text().splitlines()


def test_a_trial_of_a_search_that_has_settled(experiment, master):
    """For the searcher, it has reached its last step: it counts, and another begins."""
    training = {"num_sgd_steps": 8, "checkpoint_freq": 2, "stop_on_plateau": 2}
    training |= {"learning_rate": 1e-12, "plateau_ratio": 1}
    given = experiment_of(experiment(training=training))
    said = master.run(given | {"searcher": ASHA})
    assert "ending at step 4 of 8" in said
    assert [m["sgd_steps"] for m in master.metrics("validation").values()] == [2, 8]
    assert master.progress()[-1] == 1.0
    assert json.loads((master.stored()[4] / "metadata.json").read_text())["complete"] is True
    count = len(master.told)
    master.run(given | {"searcher": ASHA})  # restarted: nothing more
    later = {path.rsplit("/")[-1] for path, _ in master.told[count:]}
    assert later.isdisjoint({"metrics", "checkpoints"})


def commands_of(said):
    """Return a trial's proposed next commands by purpose, after checking that they are real."""
    det = det_cli.make_parser()
    add_args(det, det_cli.all_args_description)
    lines = said[said.index("\nnext:\n") :].splitlines()[2:]
    found = {
        what.strip(" :"): shlex.split(line) for what, line in zip(*[iter(lines)] * 2, strict=True)
    }
    for command in found.values():
        if command[0] == "det":
            det.parse_args(command[1:])
        else:
            assert command[:3] == ["python", "-m", "detsd"]
            parser().parse_args(command[3:])
    return found


def test_the_end_of_a_fine_tuning_says_what_to_do_with_it(
    experiment, master, monkeypatch, tmp_path
):
    """The commands name its best checkpoint; a restart after the end prints them again."""
    monkeypatch.chdir(ROOT)  # the command line looks for its files there
    clip = save_tiny_clip(tmp_path / "clip")
    path = experiment(
        training={"checkpoint_freq": 2, "best_metric": "val_loss"},
        inference=SAMPLES,
        measure={"num_samples": 1, "num_prompts": 1},
        evaluator={"clip": str(clip)},
    )
    given = experiment_of(path)
    said = master.run(given)
    validations = master.metrics("validation")
    best = min(validations, key=lambda step: (validations[step]["val_loss"], step))
    m, uuid = validations[best], master.checkpoints()[best]
    line = next(line for line in said.splitlines() if " is the best: " in line)
    pattern = (
        r"step (\d) of 8 is the best: val_loss ([\d.]+) \(initializer ([\d.]+)\), score [\d.]+, "
        r"clip_image_similarity ([-\d.]+) \(initializer [-\d.]+\), "
        r"clip_text_similarity [-\d.]+ \(initializer [-\d.]+\); checkpoint (\S+)"
    )
    names = ("val_loss", "val_loss_initializer", "clip_image_similarity")
    assert re.fullmatch(pattern, line).groups() == (
        str(best), *(f"{m[name]:.4f}" for name in names), uuid,
    )  # fmt: skip
    commands = commands_of(said)
    assert commands["download it to your own computer"][-2:] == ["download", uuid]
    assert commands["view its metrics and images"] == ["det", "tensorboard", "start", "1"]
    create = commands["make a grid of images"]
    assert create[:5] == ["det", "e", "create", "generate_demo.yaml", "."]
    assert set(create[5::2]) == {"--config"}
    grid = experiment_of(ROOT / "generate_demo.yaml")
    for key, value in (setting.split("=", 1) for setting in create[6::2]):
        *sections, name = key.split(".")
        place = grid
        for section in sections:
            place = place[section]
        place[name] = yaml.safe_load(value)
    config = parse_config(grid["hyperparameters"], "the command", GenerateConfig)
    assert config.concepts.uuids == [uuid]
    assert (config.concepts.files, config.grid.prompts) == ([], SAMPLES["inference_prompts"])
    assert (
        grid["hyperparameters"]["grid"]["spacing"] is config.grid.spacing is None
    )  # not the file's
    assert said[said.index(line) :] == (again := master.run(given))[again.index(line) :]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("PAUSED", "paused"), ("STOPPING_CANCELED", "canceled"), ("RUNNING", "preempted"),
        ("ERROR", "stopped"),
    ],
)  # fmt: skip
def test_a_stop_says_why(experiment, master, state, words):
    master.state = state
    given = experiment_of(experiment(training={"num_sgd_steps": 200, "checkpoint_freq": 200}))
    pause(master, progress_of(2 / 200))
    last_line = master.run(given).splitlines()[-1]
    ((step, uuid),) = master.checkpoints().items()
    assert last_line == f"{words} after step {step} of 200, saved as checkpoint {uuid}"


def test_the_end_of_a_grid_says_what_to_do_with_it(tiny_model, master, monkeypatch):
    given = {
        "searcher": GRID_SEARCHER,
        "hyperparameters": {
            "model": {"pretrained_model_name_or_path": str(tiny_model)},
            "grid": {"prompts": "a ball", "num_seeds": 8, "num_inference_steps": 20},
            "output": {"batch_size": 1, "checkpoint_freq": 1},
        },
    }
    monkeypatch.setattr(store, "MAX_PENDING", 1)
    master.state = "PAUSED"
    pause(master, told("/checkpoints", 2))
    last_line = master.run(given, command="generate").splitlines()[-1]
    made, uuid = list(master.checkpoints().items())[-1]
    assert last_line == f"paused after {made} of 8 images, saved as checkpoint {uuid}"
    master.preempt.clear()
    said = master.run(given, command="generate")
    uuid = master.checkpoints()[8]
    assert f"\nall 8 images: checkpoint {uuid}\nnext:\n" in said
    assert [command[-1] for command in commands_of(said).values()] == [uuid, "1"]


POLICIES = experiment_of(ROOT / "finetune_const.yaml")["log_policies"]


def test_a_mistake_costs_no_restart(experiment, master, tmp_path):
    """The line that ends the restarts contains the whole message."""
    given = experiment_of(experiment()) | {"max_restarts": 2, "log_policies": POLICIES}
    hyperparameters = given["hyperparameters"]
    for section, key, value, words in (
        ("concepts", "img_dirs", [str(tmp_path / "gone")], "gone"),
        ("training", "num_sgd_step", 3, "num_sgd_step is not a known key"),
        ("training", "learning_rate", -1, "learning_rate"),
    ):
        wrong = hyperparameters | {section: hyperparameters[section] | {key: value}}
        (said,) = master.live(given | {"hyperparameters": wrong})
        assert "Traceback" not in said
        (line,) = [line for line in said.splitlines() if line.startswith("detsd: ")]
        assert words in line
    given["searcher"] = ASHA | {"metric": "accuracy"}  # nothing reports it
    (said,) = master.live(given)
    assert "searcher.metric: accuracy" in said

    name = "RuntimeError: the loss of a bus"
    assert matched(given, f"Traceback (most recent call last):\n  File\n{name}") == []
    # The label is the name of the last policy that matches, including the master's own.
    full = "CUDA out of memory. Tried to allocate 2.00 GiB."
    for line in (
        f"torch.OutOfMemoryError: {full}",
        f"detsd: this training does not fit into the memory of cuda:0 ({full}); lower",
    ):
        found = matched(given, f"[rank=1] Traceback\n[rank=1] {line}")
        assert "training.train_batch_size" in found[-1]["name"]
        assert found[-1]["action"] == "cancel_retries"
    assert matched(given, f"WARNING: a batch of 4 did not fit ({full})") == []


def test_a_fork_from_a_checkpoint_that_was_deleted(experiment, master, monkeypatch, tmp_path):
    """The master accepts its uuid; the trial ends in one run, and names those left."""
    given = experiment_of(experiment(training={"checkpoint_freq": 2}))
    given |= {"max_restarts": 2, "log_policies": POLICIES}
    given["checkpoint_storage"] = {"save_trial_latest": 1, "save_trial_best": 1}
    given["checkpoint_storage"]["save_experiment_best"] = 0
    master.run(given)
    before = master.checkpoints()
    assert master.collect_garbage(2) == 2
    left = ", ".join(f"{before[step]} (step {step})" for step in (8, 6))
    sentence = (
        f"checkpoint {before[2]} was deleted: checkpoint_storage of its experiment 1 keeps "
        f"save_experiment_best: 0, save_trial_best: 1, save_trial_latest: 1; name one that "
        f"is left: {left}"
    )
    (said,) = master.live(given, trial=8, source=before[2])
    assert [line for line in said.splitlines() if line.startswith("detsd")] == [
        f"detsd: {sentence}"
    ]
    assert "Traceback" not in said

    # The same sentence for concepts.uuids and for detsd download.
    grid = {"model": given["hyperparameters"]["model"], "grid": {"prompts": "a ball"}}
    grid |= {"concepts": {"uuids": [before[2]]}}
    (said,) = master.live(
        given | {"hyperparameters": grid, "searcher": GRID_SEARCHER}, trial=9, command="generate"
    )
    assert said.splitlines()[-1] == f"detsd: {sentence}"
    login(master, monkeypatch)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert main(["download", before[2], "--output-dir", str(tmp_path / "got")]) == 2
    assert said.getvalue() == f"detsd: {sentence}\n"
    master.collect_garbage(0)
    assert deleted(before[2]).endswith("; none of that experiment is left")


def test_a_finished_grid_that_is_continued_with_more_seeds_grows(tiny_model, master):
    """`det e continue` runs the same trial again, with the changed configuration."""

    def continued(seeds):
        grid = {"prompts": ["a ball", "a box"], "num_inference_steps": 2, "num_seeds": seeds}
        model = {"pretrained_model_name_or_path": str(tiny_model)}
        settings = {"model": model, "grid": grid, "output": {"batch_size": 1}}
        given = {"searcher": GRID_SEARCHER, "hyperparameters": settings}
        said = master.run(given, trial=8, command="generate")
        return said, [json.loads(line) for line in manifest(master.stored(8)[2 * seeds])]

    _, before = continued(2)
    said, after = continued(3)
    assert "6/6 images" in said
    assert "ERROR" not in said
    facts = [
        {(image["prompt"], image["seed"]): image["file"] for image in images}
        for images in (before, after)
    ]
    assert [len(images) for images in facts] == [4, 6]
    assert facts[0].keys() < facts[1].keys()


def test_a_fork_that_does_not_fit_says_what_to_do_on_a_cluster(experiment, master, tmp_path):
    """The message suits a cluster, which has no command line and no folder."""
    given = experiment_of(experiment()) | {"max_restarts": 2, "log_policies": POLICIES}
    master.run(given)
    learned = master.checkpoints()[8]
    images = [{"prompts": "a ball", "num_seeds": n, "num_inference_steps": 2} for n in (1, 2)]
    grids = [
        {"model": given["hyperparameters"]["model"], "grid": grid, "output": {"batch_size": 1}}
        for grid in images
    ]
    master.run(
        {"hyperparameters": grids[0], "searcher": GRID_SEARCHER}, trial=8, command="generate"
    )
    stored = master.checkpoints(8)[1]
    concepts = given["hyperparameters"]["concepts"] | {"concept_strs": ["other-thing"]}
    other = given | {"hyperparameters": given["hyperparameters"] | {"concepts": concepts}}
    for trial, experiment_, source, sentence in (
        (
            9, other, learned,
            f"checkpoint {learned} does not hold concept 'other-thing' but blob-thing; name "
            "another one, or change concepts.concept_strs",
        ),
        (
            10, given, stored,
            f"checkpoint {stored} holds no concept, like all checkpoints of a grid; name one "
            "of a fine-tuning in searcher.source_checkpoint_uuid",
        ),
    ):  # fmt: skip
        (said,) = master.live(experiment_, trial=trial, source=source)
        assert said.splitlines()[-1] == f"detsd: {sentence}"
    grids[1]["grid"]["scheduler_names"] = "euler"
    changed = given | {"hyperparameters": grids[1], "searcher": GRID_SEARCHER}
    (said,) = master.live(changed, trial=8, command="generate")
    (line,) = [line for line in said.splitlines() if line.startswith("detsd: ")]
    assert line.endswith("; start a new experiment")
    assert "--output-dir" not in said


def login(master, monkeypatch):
    """Make this process a user's, off cluster."""
    env = {"DET_MASTER": f"http://127.0.0.1:{master.server.server_port}", "DET_USER": "u"}
    for name, value in (env | {"DET_USER_TOKEN": "s"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(client, "_determined", None)


@pytest.mark.slow
def test_a_grid_of_images_through_failures(tiny_model, master, tmp_path, monkeypatch):
    """Twelve images use a checkpoint's concepts: each is made once, and correctly."""
    learned = torch.linspace(-1, 1, 32).reshape(2, 16)
    source = master.store("source")
    source.mkdir(parents=True)
    write_concepts([LearnedConcept(name, "", (learned,)) for name in CONCEPTS], source)
    (source / "metadata.json").write_text(json.dumps({"steps_completed": 9, "trial_id": 5}))
    given = {
        "searcher": GRID_SEARCHER,
        "checkpoint_storage": {"save_trial_latest": 8},
        "hyperparameters": {
            "model": {"pretrained_model_name_or_path": str(tiny_model)},
            "grid": {
                "prompts": ["a photo of a blob-thing", "a blob-thing-two beside a blob-thing"],
                "guidance_scales": [2, 3.5],
                "seeds": [0, 1, 2],
                "num_inference_steps": 20,  # long enough to be caught half-way
            },
            "output": {"batch_size": 1, "checkpoint_freq": 1},
        },
    }
    path = tmp_path / "undisturbed.yaml"  # off cluster, in this process: the same images
    path.write_text(yaml.safe_dump(given))
    out = tmp_path / "out"
    files = f"concepts.files=[{source}]"
    assert main(["generate", str(path), "--output-dir", str(out), "--set", files]) == 0

    def images(folder):
        found = {}
        for p in sorted((folder / "images").glob("*.png")):
            with Image.open(p) as image:
                found[p.name] = image.tobytes()
        return found

    undisturbed = images(out)
    assert len(undisturbed) == 12
    options = {"command": "generate", "source": "source"}

    def lose():
        failing.processes[1].kill()
        failing.processes[0].terminate()  # as torchrun does then

    master.when(told("/checkpoints", 2), lose)
    with master.fork(given, slots=2, **options) as failing:
        codes = failing.end()
    assert codes[0] not in (0, None), failing.said
    assert codes[1] == -signal.SIGKILL
    assert failing.said[1] == ""  # only one rank prints the error
    before = max(master.stored())
    assert 0 < before < 12

    monkeypatch.setattr(store, "MAX_PENDING", 1)  # no image is made while one waits to be stored
    pause(master, told("/checkpoints", before + 2))
    assert f"{before} of 12 images already exist" in master.run(given, **options)
    assert before + 2 <= max(master.stored()) < 12
    assert len(master.acknowledged) == 1
    master.preempt.clear()
    collected = master.collect_garbage(8)

    def kill():
        killed.kill()
        raise Dropped

    master.when(told("/checkpoints", 12), kill)
    with master.fork(given, slots=2, **options) as killed:
        assert killed.end() == [-signal.SIGKILL] * 2, killed.said
    assert max(master.stored()) < 12
    collected += master.collect_garbage(8)

    master.when(told("/metrics", 12), lambda: master.refuse_connections(2))
    master.cut = told("/checkpoints", 12)  # the master has it, but the trial does not know
    master.run(given, **options)
    assert master.cut is None
    collected += master.collect_garbage(8)
    print(f"{collected} checkpoints collected")

    # One command downloads images from several checkpoints.
    last = master.checkpoints()[12]
    login(master, monkeypatch)
    fetched = tmp_path / "fetched"
    assert json.loads((master.store(last) / "metadata.json").read_text())["shards"]
    assert main(["download", last, "--output-dir", str(fetched)]) == 0
    assert images(fetched) == undisturbed
    manifest = [json.loads(line) for line in (fetched / "manifest.jsonl").read_text().splitlines()]
    assert [record["job"] for record in manifest] == list(range(12))
    assert [sorted(manifest[n]["concepts"]) for n in (0, 11)] == [["blob-thing"], list(CONCEPTS)]
    assert manifest[0]["concepts"]["blob-thing"]["source"] == "uuid:source"
    assert len(list((fetched / "sheets").glob("*.png"))) == 2
    reported = master.metrics("validation")
    assert reported == {n: {"images": n} for n in reported}
    assert all(m["images_per_second"] > 0 for m in master.metrics("training").values())
    assert max(master.progress()) == 1.0

    count = len(master.told)
    master.run(given, **options)  # a finished grid restarted: nothing more
    assert not [path for path, _ in master.told[count:] if path.endswith("metrics")]
    tags = set()
    for events in master.folder.glob("storage/**/events.out.tfevents.*"):
        seen = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
        tags |= set(seen.Tags()["images"])
    assert len([tag for tag in tags if not tag.startswith("sheets/")]) == 12


@pytest.mark.slow
def test_an_evaluation_is_paused_and_goes_on(tiny_model, photos, master, tmp_path, monkeypatch):
    """Its results are those of a run off cluster."""
    concept = LearnedConcept("blob-thing", "red ball", (torch.ones(2, 16),), steps=9)
    write_concepts([concept], tmp_path)
    given = {
        "searcher": GRID_SEARCHER,
        "checkpoint_storage": {"save_trial_latest": 8},
        "hyperparameters": {
            "model": {"pretrained_model_name_or_path": str(tiny_model)},
            "concepts": {"files": str(tmp_path)},
            "evaluator": {"clip": str(save_tiny_clip(tmp_path / "clip"))},
            "evaluation": {
                "images": str(photos), "prompts": ["pixel art of a {}"], "num_samples": 3,
                "num_samples_per_prompt": 1, "num_inference_steps": 12, "num_error_timesteps": 5,
            },
            "output": {"batch_size": 1, "checkpoint_freq": 1},
        },
    }  # fmt: skip
    monkeypatch.setattr(store, "MAX_PENDING", 1)  # no image is made while one waits to be stored
    pause(master, told("/checkpoints", 2))
    master.run(given, command="evaluate")
    assert 2 <= max(master.stored()) < 8
    master.preempt.clear()
    said = master.run(given, command="evaluate")
    assert "of 8 images already exist" in said
    assert f"\nmetrics, samples and plot: checkpoint {master.checkpoints()[8]}\nnext:" in said
    assert commands_of(said)["view its metrics and images"][-1] == "1"
    last = master.stored()[8]
    found = json.loads((last / "evaluation.json").read_text())
    assert {"evaluation.png", "samples.png", "images.zip"} <= {p.name for p in last.iterdir()}
    (state,) = found["concepts"][0]["states"]
    assert master.metrics("evaluation")[1]["score"] == state["score"]
    path = tmp_path / "same.yaml"
    path.write_text(yaml.safe_dump(given))
    assert main(["evaluate", str(path), "--output-dir", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found
    count = len(master.told)
    master.run(given, command="evaluate")  # a finished one restarted: nothing more
    assert not [path for path, _ in master.told[count:] if path.endswith("metrics")]


def test_the_interface_that_leads_to_the_chief_is_chosen_for_gloo(monkeypatch):
    monkeypatch.setattr(ranks, "Accelerator", MagicMock())
    for name, value in {
        "LOCAL_RANK": "0",
        "GROUP_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    for name, wanted in (
        ("", "lo"),
        ("DET_INTER_NODE_NETWORK_INTERFACE", "eth9"),
        ("GLOO_SOCKET_IFNAME", "ib0"),
    ):
        with monkeypatch.context() as patch:
            patch.delenv("GLOO_SOCKET_IFNAME", raising=False)
            if name:
                patch.setenv(name, wanted)
            AcceleratedRanks()
            assert os.environ["GLOO_SOCKET_IFNAME"] == wanted
            os.environ.pop("GLOO_SOCKET_IFNAME")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    AcceleratedRanks()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def a_node(rank, port, out):
    """Run one of two nodes of one process each, which know only the chief's address."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": str(rank), "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    context = distributed_context()
    out.put((port, context.allgather((rank, context.local_rank))))
    context.allgather(None)  # no rank leaves while another still listens


def test_two_grids_of_two_nodes_on_one_machine_do_not_meet():
    fork = multiprocessing.get_context("fork")
    out = fork.SimpleQueue()
    ports = [free_port(), free_port()]
    nodes = [fork.Process(target=a_node, args=(r, p, out)) for p in ports for r in (0, 1)]
    for node in nodes:
        node.start()
    found = [out.get() for _ in nodes]
    assert sorted(found) == [(port, [(0, 0), (1, 0)]) for port in sorted(ports * 2)]
    for node in nodes:
        node.join(60)
        assert node.exitcode == 0
    assert not torch.distributed.is_initialized()


def test_the_stand_in_refuses_what_a_master_would(tmp_path):
    def metrics(step, **values):
        body = {"trialRunId": 1, "stepsCompleted": step, "metrics": {"avgMetrics": values}}
        return "/api/v1/trials/7/metrics", {"group": "validation", "metrics": body}

    with Master(tmp_path) as master:
        master._runs[7] = 1
        for (path, body), refused in (
            (metrics(8, val_loss=0.5), False),
            (metrics(8, val_loss=0.5), False),  # the same again
            (metrics(8, val_loss=0.6), True),
            (metrics(9, val_loss=math.nan), True),
            (metrics(9, val_loss=[0.5]), True),
            (metrics(9, val_loss="0.5"), True),
            (("/api/v1/trials/7/progress", {"progress": 1.0}), False),
            (("/api/v1/trials/7/progress", {"progress": 1.01}), True),
            (("/api/v1/checkpoints", {"uuid": "u", "metadata": {"trial_id": 7}}), True),
            (("/api/v1/trials/7/unheard-of", {}), True),
        ):
            count = len(master.refused)
            url = f"http://127.0.0.1:{master.server.server_port}{path}"
            answer = requests.post(url, json.dumps(body), timeout=10)  # json= would refuse a NaN
            assert (answer.status_code, len(master.refused) - count) == (
                (400, 1) if refused else (200, 0)
            ), (path, body)
        assert master.metrics("validation") == {8: {"val_loss": 0.5}}
