"""Several processes of one run: what they refuse, and how one that fails ends the others."""

import contextlib
import json
import logging
import os
import signal
import threading
import time
from importlib.metadata import version
from types import SimpleNamespace

import forked
import pytest
import torch
from forked import Forked
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from detsd.__main__ import main
from detsd.cli.common import print_error
from detsd.config import FinetuneConfig, load_config
from detsd.runs import peers, ranks
from detsd.runs.open import open_run
from detsd.runs.ranks import AcceleratedRanks, check_gpus
from detsd.runs.run import Run
from detsd.train.trainer import Trainer
from detsd.utils.errors import UserError


def opened_by_two(folder, body) -> tuple[list[int | None], list[str]]:
    """Run `body` on two ranks; return exit codes, None for a rank still running, and outputs."""

    def opened():
        try:
            with open_run(folder / "out", accelerate=True) as run:
                body(run)
        except UserError as error:
            print(f"detsd: {error}")
            return 2

    with Forked(folder, opened, ranks=2) as ranks:
        return ranks.end(), ranks.said


def fail() -> None:
    raise UserError("the disk of this node is gone")


def before_the_others_wait(run):
    if run.ranks.rank == 1:
        fail()
    run.gather([run.ranks.rank])


def as_the_one_that_goes_first(run):
    with run.ranks.local_main_process_first():
        if run.ranks.rank == 0:
            fail()


def as_one_that_goes_second(run):
    with run.ranks.local_main_process_first():
        if run.ranks.rank == 1:
            fail()
    run.gather([1])


def in_a_step(run):
    for step in range(3):
        if step == 2 and run.ranks.rank == 1:
            raise RuntimeError("CUDA out of memory")
        run.ranks.mean(torch.ones(3))


def while_the_chief_writes(run):
    run.save(1, {}, lambda folder: fail())


def when_asked_to_stop(run):
    if run.ranks.rank == 0:
        fail()
    run.should_stop()


def at_the_end(run):
    if run.ranks.rank == 1:
        fail()


PLACES = [
    before_the_others_wait,
    as_the_one_that_goes_first,
    as_one_that_goes_second,
    in_a_step,
    while_the_chief_writes,
    when_asked_to_stop,
    at_the_end,
]


def test_two_ranks_that_do_not_fail(tmp_path):
    def body(run):
        assert run.gather([run.ranks.rank]) == [0, 1]
        run.assert_equal_across_ranks(configuration={"a": 1})
        # All ranks learn of a stop in the same call: the next one, so that none waits for a GPU.
        asked = [run.ranks.any((k, run.ranks.rank) == (1, 1)) for k in range(4)]
        assert asked == [False, False, True, False]
        run.save(1, {}, lambda folder: (folder / "x").write_text("x"))

    codes, said = opened_by_two(tmp_path, body)
    assert codes == [0, 0], said


def test_an_error_of_both_ranks_is_printed_by_one(tmp_path, monkeypatch):
    """This holds even if the first is slow to fail or end; different errors are all printed."""
    monkeypatch.setattr(peers, "WAIT", 1.0)

    def body(slow, own):
        def run():
            rank = int(os.environ["RANK"])
            time.sleep(0.3 if rank == slow else 0)
            code = print_error(f"rank {rank} has no disk" if own else "learning_rate is -1")
            time.sleep(2 if rank == 0 else 0)
            return code

        return run

    for slow, own, count in ((0, False, 1), (1, False, 1), (0, True, 2)):
        with Forked(tmp_path, body(slow, own), ranks=2) as both:
            assert both.end() == [2, 2]
            said = both.said
        assert sum(text.count("detsd: ") for text in said) == count, said
        assert said[0].count("detsd: ") == 1


def test_torchrun_ends_its_report_with_the_error(tmp_path):
    """It has a traceback of its own, below which nobody looks for a sentence."""
    error = tmp_path / "error.json"

    def body():
        os.environ["TORCHELASTIC_ERROR_FILE"] = str(error)
        return main(["generate", str(tmp_path / "gone.yaml")])

    with Forked(tmp_path, body, ranks=2) as both:
        assert both.end() == [2, 2]
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(error))
    report = str(ChildFailedError("detsd", {0: failure}))
    sentence = f"detsd: {tmp_path / 'gone.yaml'} does not exist; name an experiment file"
    assert f"traceback : {sentence}\n====" in report
    assert "".join(both.said) == f"{sentence}\n"


def test_a_warning_of_both_ranks_is_printed_by_one(tmp_path):
    search = "searcher: {name: adaptive_asha, metric: images, time_metric: images, max_time: 8, "
    path = tmp_path / "rungs.yaml"
    path.write_text(
        f"{search}max_trials: 3, max_rungs: 9}}\nhyperparameters:\n  grid: {{prompts: [x]}}\n"
    )

    def body():
        logging.getLogger().handlers.clear()  # the test's own
        return main(["generate", str(path)])

    with Forked(tmp_path, body, ranks=2) as both:
        assert both.end() == [2, 2]
    assert "".join(both.said).count("WARNING: searcher.max_rungs: 9 becomes 1") == 1
    assert "".join(both.said).count("detsd: ") == 1


def test_notes_on_a_foreign_image_are_printed_by_one_rank(tmp_path):
    image, notes = tmp_path / "theirs.png", PngInfo()
    notes.add_text("parameters", "a ball\nSteps: 2, Sampler: Euler a, CFG scale: 4, Seed: 1")
    Image.new("RGB", (32, 32)).save(image, pnginfo=notes)
    gone = "model.pretrained_model_name_or_path=/gone"
    line = ["generate", "--from", str(image), "--set", gone]
    with Forked(tmp_path, lambda: main(line), ranks=2) as both:
        assert both.end() == [2, 2]
    assert "".join(both.said).count("was made with A1111") == 1
    assert "was made with A1111" in both.said[0]


@pytest.mark.parametrize("place", PLACES)
def test_a_rank_that_fails_ends_the_others_wherever_they_are(tmp_path, place):
    """The other ranks' resulting errors do not hide the reason."""
    codes, said = opened_by_two(tmp_path, place)
    assert not {0, None} & set(codes), said
    if place is in_a_step:
        assert "CUDA out of memory" in said[1]
        assert "Traceback" not in said[0]
    else:
        assert "".join(said).count("detsd: the disk of this node is gone") == 1
        assert "Traceback" not in "".join(said)


def test_a_collective_that_never_comes_back_is_left(tmp_path, monkeypatch):
    """NCCL waits so for a rank that is gone."""
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 1.0)

    def body(run):
        if run.ranks.rank == 1:
            fail()
        monkeypatch.setattr(AcceleratedRanks, "allgather", lambda *a: time.sleep(10_000))
        run.gather([1])

    codes, said = opened_by_two(tmp_path, body)
    assert codes == [1, 2], said


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_asked_to_stop_does_not_wait_for_one_that_was_killed(tmp_path, monkeypatch, killed):
    """The stop came before it waited, when it still had something to lose."""
    monkeypatch.setattr(ranks, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(forked, "TIMEOUT", 30)

    def body():
        with open_run(tmp_path / "out") as run:
            run.asked_to_stop()  # as a working rank does all the time
            (tmp_path / str(run.ranks.rank)).touch()
            while not (tmp_path / str(1 - run.ranks.rank)).exists():  # it has also begun
                time.sleep(0.01)
            gone = run.ranks.rank == killed
            os.kill(os.getpid(), signal.SIGKILL if gone else signal.SIGTERM)
            assert run.stop_signal == signal.SIGTERM

    with Forked(tmp_path, body, ranks=2) as both:
        codes, said = both.end(), both.said
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 128 + signal.SIGTERM, said
    assert said[0].endswith("stopped\n") == (killed == 1)


def test_ctrl_c_ends_a_rank_whose_chief_never_comes(tmp_path, monkeypatch):
    """This happens if both are interrupted while they start."""
    monkeypatch.setattr(forked, "TIMEOUT", 30)

    def body():
        if os.environ["RANK"] == "0":
            return 130
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with contextlib.suppress(KeyboardInterrupt), open_run(tmp_path / "out"):
            return 0
        return 130

    with Forked(tmp_path, body, ranks=2) as both:
        assert both.end() == [130, 130], both.said


def test_a_group_is_not_taken_apart_where_something_was_raised(tmp_path, monkeypatch):
    """Destroying it may wait for the other ranks, too."""
    taken = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: taken.append(1))
    with contextlib.suppress(UserError), open_run(tmp_path):
        fail()
    assert not taken
    with open_run(tmp_path):
        pass
    assert taken


def test_more_processes_than_gpus_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(
        UserError, match="2 processes were started on a machine with 1 GPU; start 1"
    ):
        next(open_run(tmp_path).gen)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_gpus()


def test_cards_that_accelerate_would_refuse(monkeypatch):
    """For the RTX 40 series with an older driver, its launcher sets these; torchrun does not."""
    given = ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")
    for name in given:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    told = []

    def accelerator(**_):
        told.append([os.environ.get(name) for name in given])
        return SimpleNamespace(
            process_index=0, num_processes=1, local_process_index=0, device=torch.device("cpu")
        )

    monkeypatch.setattr(ranks, "Accelerator", accelerator)
    for known in (True, False):
        monkeypatch.setattr(ranks, "check_cuda_p2p_ib_support", lambda known=known: known)
        AcceleratedRanks()
    assert told == [[None, None], ["1", "1"]]


@pytest.mark.parametrize(
    ("what", "other", "words"),
    [
        (
            "configuration",
            {"training.learning_rate": 0.2},
            "training.learning_rate is 0.1 here and",
        ),
        ("package_versions", {"torch": "2.3"}, "package versions: torch is '2.6' here and '2.3'"),
        ("precision", {"dtype": "torch.float16"}, "dtype is 'torch.bfloat16' here and"),
        ("training_images", {"x/a.png": "1", "x/b.png": "2"}, "x/b.png is None here and '2' there"),
        ("base_model", {"commit": "1234"}, "base model: commit is None here and '1234' there"),
    ],
)
def test_ranks_that_differ_are_refused_by_name(what, other, words):
    facts = {
        "configuration": {"training.learning_rate": 0.1},
        "package_versions": {"torch": "2.6"},
        "precision": {"dtype": "torch.bfloat16"},
        "training_images": {"x/a.png": "1"},
        "base_model": {"commit": None},
    }
    run = Run()
    run.ranks = SimpleNamespace(allgather=lambda mine: [mine, mine, mine])
    run.assert_equal_across_ranks(**facts)
    run.ranks = SimpleNamespace(allgather=lambda mine: [mine, mine, mine | {what: other}])
    with pytest.raises(UserError, match="ranks 0 and 2 differ in their") as caught:
        run.assert_equal_across_ranks(**facts)
    assert words in str(caught.value)


def test_a_training_asks_all_that_must_be_equal(experiment, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(Run, "assert_equal_across_ranks", lambda self, **facts: asked.update(facts))
    with open_run(tmp_path / "out", accelerate=True) as run:
        Trainer(load_config(experiment()), run)
    assert asked["configuration"]["concepts.concept_strs"] == ["blob-thing"]
    assert asked["package_versions"]["torch"] == version("torch")
    assert asked["precision"] == {"dtype": "torch.float32"}
    assert len(asked["training_images"]) == 12
    assert asked["base_model"] == {"commit": None, "vae": None}


def test_what_is_measured_does_not_tell_the_number_of_ranks(measuring, tmp_path):
    """A tiny rate leaves the rows unchanged, since two ranks round them differently."""
    found = []
    for size in (1, 2):
        options = ["learning_rate=1e-12", "num_sgd_steps=2", f"train_batch_size={4 // size}"]
        config = load_config(measuring, [f"training.{option}" for option in options])

        def train(run, config=config):
            assert Trainer(config, run).train()

        if size == 2:
            codes, said = opened_by_two(tmp_path, train)
            assert codes == [0, 0], said
        else:
            with open_run(tmp_path / "one", accelerate=True) as run:
                train(run)
        lines = (tmp_path / ("one" if size == 1 else "out") / "metrics.jsonl").read_text()
        told = [json.loads(line) for line in lines.splitlines()]
        found.append([m for m in told if m["group"] == "validation"])
    assert found[0] == found[1]
    assert set(FinetuneConfig.measured) <= set(found[0][0])
