"""Every reader with malformed input: the result is right, or a sentence (tests/fuzz.py)."""

import json
import random
import shutil
import struct
import subprocess
import sys
import zipfile

import fuzz
import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from PIL import Image
from test_finetune import finetune

from detsd.concepts import pickles, safe_load
from detsd.concepts.reading import read_concepts
from detsd.runs.folder import RunFolder, read_metadata
from detsd.runs.run import unpack
from detsd.utils import png
from detsd.utils.errors import UserError


@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_reader_is_right_or_says_why_not(name, tmp_path):
    reader, right, refused = fuzz.READERS[name](tmp_path), [], []

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(fuzz.INPUTS)
    def check(rng: random.Random):
        try:
            reader.check(rng)
            right.append(rng)
        except UserError as error:
            refused.append(str(error))

    check()
    assert right
    assert all(refused)


# ---- concept files -------------------------------------------------------------------------------


def archive(path, operations: bytes, **members: bytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/data.pkl", operations)
        for name, data in members.items():
            packed.writestr(f"a/{name}", data)
    return path


UNFOLDING = {
    "lists": b"\x80\x02" + b"]" * 30_000_000 + b".",
    "tuples in each other": b"\x80\x02}N" + b"\x85" * 1_000_000 + b"Ns.",
    "copies of a text": b"\x80\x04X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"\x94"
    + b"c_codecs\nencode\n\x94" + b"h\x01h\0X\x06\0\0\0latin1\x86R" * 5000 + b".",
    "copies of a table": b"\x80\x02}\x94(" + b"".join(b"J" + struct.pack("<i", k) + b"N"
    for k in range(50_000)) + b"u" + b"ccollections\nOrderedDict\n\x94" + b"h\x01h\0\x85R" * 5000
    + b".",
    "a long name": b"\x80\x02ctorch._utils\n_rebuild_" + b"x" * 10**6 + b"\n.",
}  # fmt: skip


@pytest.mark.parametrize("kind", UNFOLDING)
def test_a_pickle_that_unfolds_is_refused_before_it_does(tmp_path, kind, monkeypatch):
    path = archive(tmp_path / "x.pt", UNFOLDING[kind])
    assert path.stat().st_size < 300_000
    copied = []
    monkeypatch.setattr(pickles, "MAX_COPIED", 2**20)
    monkeypatch.setattr(torch, "as_strided", lambda *a: copied.append(a))
    with pytest.raises(UserError, match=r"x\.pt (is damaged|holds code)"):
        read_concepts(path)


def test_a_key_of_tuples_in_each_other_is_no_word(tmp_path):
    """It may be as deep as pickles allow, where converting it to text fails."""
    path = archive(tmp_path / "x.pt", b"\x80\x02}N" + b"\x85" * 19_990 + b"Ns.")
    with pytest.raises(UserError, match="a PyTorch file of another kind"):
        read_concepts(path)


def test_thousands_of_files_in_an_archive_are_refused_before_they_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_load, "MAX_DIRECTORY", 1000)
    path = archive(tmp_path / "x.pt", b"\x80\x02}.", **{f"data/{k}": b"" for k in range(40)})
    with pytest.raises(UserError, match="an archive .zip. of too many files"):
        read_concepts(path)


def test_many_concepts_that_a_few_bytes_stand_for_are_refused(tmp_path):
    """Each may have about 16 million numbers; together they would fill the memory."""
    wide = torch.ones(1).expand(2**14, 768)
    torch.save({f"word-{k}": wide for k in range(9)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="a file of 113,246,208 numbers, not a concept"):
        read_concepts(tmp_path / "x.pt")


def test_the_ceilings_hold_in_a_process_of_their_own(tmp_path):
    """In MB above the libraries' memory; SECURITY.md gives 1,000 for files of 256 MB."""
    paths = [archive(tmp_path / f"{k}.pt", data) for k, data in enumerate(UNFOLDING.values())]
    script = (
        "import sys, torch\n"
        "from detsd.concepts.reading import read_concepts\n"
        "from detsd.utils.errors import UserError\n"
        "def peak():  # ru_maxrss would begin with the parent's\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if 'VmHWM' in line) / 1e3\n"
        "before = peak()\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_concepts(path)\n"
        "    except UserError: pass\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, paths)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 300


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
def test_a_flipped_bit_of_a_concept_is_found(tmp_path, at):
    path = tmp_path / "x.pt"
    torch.save({"x": torch.randn(64, 768)}, path)
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.pt is damaged \(Bad CRC-32"):
        read_concepts(path)


# ---- states --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    state = fuzz.State(tmp_path_factory.mktemp("state"))
    yield state
    for path, data in state.files.items():
        path.write_bytes(data)


@pytest.fixture
def state(trained):
    trained.run.checkpoint(4).mkdir(exist_ok=True)
    for path, data in trained.files.items():
        path.write_bytes(data)
    return trained


LACKING = {
    "a bit": None,
    "the window": lambda s: s | {"window": None},
    "the moments": lambda s: s | {"optimizer": s["optimizer"] | {"state": {}}},
    "a moment": lambda s: s["optimizer"]["state"][0].pop("exp_avg") is not None and s,
    "the samples": lambda s: {k: v for k, v in s.items() if k != "samples_seen"},
    "the best vectors": lambda s: s | {"best_rows": (torch.zeros(9, 9),)},
    "a number": lambda s: s | {"validations": {2: {"val_loss": "low"}}},
}


@pytest.mark.parametrize("lacking", LACKING)
def test_a_state_without_a_part_is_named_with_the_checkpoint_before(state, lacking):
    path = state.newest / "trainer_state.pt"
    if change := LACKING[lacking]:
        torch.save(change(torch.load(path, weights_only=True)), path)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(UserError) as told:
        state.restored()
    assert str(told.value).startswith(f"{path} is damaged (")
    assert str(told.value).endswith(f"; delete {state.newest} to continue from step-00000002")
    shutil.rmtree(state.newest)
    assert state.restored()[0] == "step-00000002"


def test_a_damaged_concept_of_a_state_is_named_with_the_checkpoint_before(state):
    path = state.newest / "learned_embeddings_dict.pt"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match="is damaged .* to continue from step-00000002"):
        state.restored()


@pytest.mark.parametrize(
    "metadata",
    [[], {}, 5, {"steps_completed": 8}, {"steps_completed": 4, "config": 5},
     {"steps_completed": 4, "config": {"training": None}}, {"steps_completed": 4, "best": [1]},
     {"steps_completed": 4, "digests": "x"}, {"steps_completed": 4, "samples_per_step": 0}],
    ids=str,
)  # fmt: skip
def test_metadata_of_another_shape_or_step_are_named(state, metadata):
    (state.newest / "metadata.json").write_text(json.dumps(metadata))
    assert state.run.latest() == state.newest
    with pytest.raises(UserError) as told:
        read_metadata(state.newest)
    assert str(told.value).startswith(f"{state.newest / 'metadata.json'} is damaged (")
    assert str(told.value).endswith("to continue from step-00000002")


def test_a_number_of_steps_that_is_none_is_no_longer_schedule(state):
    file = state.newest / "metadata.json"
    facts = json.loads(file.read_text())
    facts["config"]["training"]["num_sgd_steps"] = {}
    file.write_text(json.dumps(facts))
    assert state.restored()[0] == "step-00000004"


def test_metrics_with_odd_fields_are_left_out(tmp_path, caplog):
    run = RunFolder(tmp_path)
    whole = {"group": "training", "steps_completed": 1, "loss": 0.5}
    odd = [whole | {"group": []}, whole | {"loss": "low"}, whole | {"steps_completed": "1"}, [], 5]
    run.metrics_file.write_text("\n".join(map(json.dumps, [whole, *odd])))
    assert run.metrics() == [whole]
    run.forget_metrics_after(1)
    assert "metrics.jsonl: removing 5 damaged lines" in caplog.text
    assert run.metrics_file.read_text() == json.dumps(whole) + "\n"


def test_pictures_of_a_state_that_are_no_archive_are_named(tmp_path):
    (tmp_path / "samples.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"samples\.zip is damaged"):
        unpack(tmp_path / "samples.zip", tmp_path)


def test_files_of_the_users_own_beside_those_of_a_run(experiment, tmp_path):
    """Manual copies match the patterns of file names, but not the names themselves."""
    out, path = tmp_path / "out", experiment(inference={"inference_prompts": ["a blob-thing"]})
    (out / "samples").mkdir(parents=True)
    mine = [out / "samples" / "step-final.png", out / "samples" / "step-1-old.png"]
    for name in mine:
        Image.new("RGB", (8, 8)).save(name)
    (out / "checkpoints" / "step-backup").mkdir(parents=True)
    (out / "checkpoints" / "step-backup" / "metadata.json").write_text('{"steps_completed": 99}')
    assert finetune(path, out) == 0
    assert all(name.is_file() for name in mine)
    run = RunFolder(out)
    assert run.latest() == run.checkpoint(8)
    assert run.sampled_steps() == [0, 4, 8]
    assert run.concept_files()[-1].parent == run.checkpoint(8)


# ---- settings of images --------------------------------------------------------------------------


def test_an_image_whose_pixels_are_cut_is_made_again(tmp_path):
    settings = fuzz.Settings(tmp_path)
    path = fuzz.image_path(tmp_path, 0)
    path.write_bytes(settings.whole)
    assert [record["job"] for _, record in fuzz.stored_images(tmp_path)] == [0]
    place = settings.whole.index(b"IDAT") + 300
    for data in (
        settings.whole[:place] + settings.whole[place + 9 :],
        settings.whole[:place] + b"\0" * 9 + settings.whole[place + 9 :],
    ):
        path.write_bytes(data)
        assert png.read_record(path) is None
        assert list(fuzz.stored_images(tmp_path)) == []
        with pytest.raises(UserError, match="holds (no )?settings of detsd"):
            fuzz.remake_hyperparameters(path)


# ---- prompts -------------------------------------------------------------------------------------


def test_thirty_thousand_brackets_are_read_in_their_time(tmp_path):
    reader = fuzz.Prompt(tmp_path)
    vocabulary = reader.vocabulary
    for bracket in "([{":
        prompt = f"{bracket * 30_000} a photo of det-logo"
        assert vocabulary.token_ids([prompt]).shape == (1, 77)
        assert all(map(str.strip, fuzz.prompt_warnings(prompt, vocabulary)))


def test_the_command_counts_what_became_of_its_inputs(capsys):
    assert fuzz.main(["--count", "9", "--seed", "3", "--reader", "configuration"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("configuration: 9 inputs, ")
    assert ", 0 faults, slowest " in line
