"""The command that disturbs runs at random points, and the faults that it finds."""

import dataclasses
import os
import time

import forked
import psutil
import pytest
import soak


@pytest.mark.slow
def test_a_few_trials_of_the_soak(capsys):
    names = ["finetune killed", "generate full disk"]
    assert soak.main(["--trials", "2", "--seed", "5", "--only", *names]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24].strip() for line in lines[:2]] == names
    assert all(line.endswith("no fault") for line in lines[:2])
    assert "SIGKILLs" in lines[0]
    assert "full disk" in lines[1]


def test_a_fault_has_a_line_a_seed_and_an_exit_code(monkeypatch, capsys):
    def faulty(trial):
        trial.faults["SIGKILLs"] += 1
        trial.expect(trial.rng.random() < 0, "rows differ")

    monkeypatch.setitem(soak.SCENARIOS, "killed", (faulty, 1))
    monkeypatch.setattr(soak, "save_work", lambda place: [soak.Work("finetune", ())])
    monkeypatch.setattr(soak, "ON_TWO", ())
    monkeypatch.setattr(soak.Trial, "whole", lambda trial, ranks=1: None)
    assert soak.main(["--trials", "2", "--seed", "7", "--only", "finetune killed"]) == 1
    said = capsys.readouterr().out
    assert "2 trials, 2 SIGKILLs: 2 FAULTS, such as: rows differ; --only 'finetune killed'" in said
    assert "--trials 1 --seed 7" in said


def test_a_trial_that_has_to_be_ended_is_a_fault(monkeypatch, tmp_path):
    """So is one with a process that has to be ended; neither leaves a process behind."""
    monkeypatch.setattr(soak, "ON_TWO", ())
    monkeypatch.setattr(soak.Trial, "whole", lambda trial, ranks=1: None)
    works, pids = [soak.Work("finetune", ())], tmp_path / "pids"

    def waits():
        with pids.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(1000)

    def ended(scenario, name):
        monkeypatch.setitem(soak.SCENARIOS, "killed", (scenario, 1))
        place = tmp_path / name
        place.mkdir()
        return soak.run_trial("finetune killed", 1, works, place).problems

    monkeypatch.setattr(forked, "TIMEOUT", 1)
    monkeypatch.setattr(soak, "TIMEOUT", 1)
    assert ended(lambda trial: trial.start(2, waits), "start") == ["a process had to be ended"]
    monkeypatch.setattr(soak, "TRIAL_SECONDS", 2)
    monkeypatch.setattr(soak, "TIMEOUT", 1000)
    assert ended(lambda trial: trial.start(1, waits), "trial") == ["the trial had to be ended"]
    found = [int(line) for line in pids.read_text().splitlines()]
    assert len(found) == 3
    until = time.monotonic() + 30  # an orphan is a zombie until init has seen it
    while any(alive(pid) for pid in found):
        assert time.monotonic() < until, found
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_every_difference_is_found(tmp_path):
    whole = soak.Left({"a": b"1", "b": b"2"}, {"loss": [(1, 0.5)]}, 5, 1.0)
    assert soak.differences(whole, whole) == []
    other = soak.Left({"a": b"x", "c": b"3"}, {"loss": [(1, 0.5), (1, 0.5)]}, 5, 1.0)
    assert soak.differences(other, whole) == [
        "c is too many", "b is missing", "a differs", "TensorBoard's loss differs",
    ]  # fmt: skip
    stopped = dataclasses.replace(whole, files=whole.files | {"checkpoints/step-00000003/x": b""})
    assert soak.differences(stopped, whole, stops=True) == []
    assert soak.differences(stopped, whole) != []
    (tmp_path / "checkpoints" / ".step-00000003").mkdir(parents=True)
    (tmp_path / ".lock").touch()
    assert soak.hidden(tmp_path) == ["checkpoints/.step-00000003"]
