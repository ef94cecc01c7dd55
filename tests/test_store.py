"""The store of a grid's chief: shards that outlive garbage collection, contact sheets, lines."""

import contextlib
import itertools
import json
import threading
import time

import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

from benchmarks.scale import FolderRun
from detsd.config import GenerateConfig, GridConfig, parse_config
from detsd.generate import store
from detsd.generate.shards import still_kept, worth_saving
from detsd.generate.sheets import SHEET_COLUMNS, SHEET_TILES, ContactSheets, sheet_layout
from detsd.generate.store import ImageStore
from detsd.runs import open as open_runs
from detsd.runs.open import open_run
from detsd.runs.tensorboard import image_tags, masked_crc32c
from detsd.sampling.jobs import grid_jobs
from detsd.utils import png


@settings(deadline=None, max_examples=60)
@drawn(st.integers(1, 120), st.integers(1, 300), st.integers(0, 299))
def test_what_is_needed_is_among_what_is_kept(keeps, count, twice):
    """This always holds, and nothing is lost; one is stored twice after an interrupted response."""
    shards: list[tuple[int, int]] = []  # images, number of the checkpoint
    checkpoints = written = 0
    for number in range(count):
        first = len(shards) - still_kept(len(shards), keeps)
        held = 1 + sum(images for images, _ in shards[:first])
        checkpoints += 2 if number == twice and keeps > 3 else 1
        shards = [*shards[first:], (held, checkpoints)]
        written += held
        assert sum(images for images, _ in shards) == number + 1
        assert all(checkpoint > checkpoints - keeps for _, checkpoint in shards)
    if count <= keeps:
        assert written <= 2 * count


@settings(deadline=None, max_examples=60)
@drawn(st.integers(1, 1200), st.integers(1, 3000))
def test_checkpoints_by_time_write_a_small_multiple_of_the_images(keeps, count):
    """At one image a minute, a crash loses at most a tenth of the images, or two."""
    shards: list[int] = []
    written = new = 0
    for stored in range(1, count + 1):
        new += 1
        if not worth_saving(new, stored, keeps):
            assert new <= max(2, stored / 10)
            continue
        first = len(shards) - still_kept(len(shards), keeps)
        held, new = new + sum(shards[:first]), 0
        shards = [*shards[first:], held]
        written += held
    assert written <= 12 * count
    if keeps >= 2 * count:
        assert written == count


def test_a_checkpoint_comes_after_enough_time(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(open_runs, "LocalRun", FolderRun)
    monkeypatch.setattr(FolderRun, "storage", tmp_path / "storage", raising=False)
    monkeypatch.setattr(FolderRun, "resident", [], raising=False)
    FolderRun.storage.mkdir()
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    kept = opened(checkpoint_seconds=30)
    for n, now in enumerate((10, 29, 31, 35, 60, 61, 62)):  # four at once are due in any case
        clock[0] = float(now)
        kept.add(files(kept, [n]))
        kept._writer.submit(int).result()  # what was given to it before is done
    stored = sorted(path.name for path in FolderRun.storage.iterdir())
    assert stored == ["00000003", "00000006"]
    assert not kept.finish()
    assert (FolderRun.storage / "00000007").is_dir()


def test_one_step_and_two_steps():
    jobs = grid_jobs(GridConfig(["a"], num_inference_steps=[1, 2], num_seeds=1), 32)
    (page,) = sheet_layout(jobs)
    assert [label.partition(", ")[2] for label in page.column_labels] == ["1 step", "2 steps"]
    settings = [store._image_name(job)[1].split(", ") for job in jobs]
    assert [parts[1] for parts in settings] == ["1 step", "2 steps"]


def test_contact_sheets_hold_every_image_once_and_are_bounded():
    grid = GridConfig(
        ["a", "b"], scheduler_names=["ddim", "euler"], num_seeds=30,
        guidance_scales=[float(k) for k in range(1, 41)],
    )  # fmt: skip
    jobs = grid_jobs(grid, 32)
    found = sheet_layout(jobs)
    numbers = [n for page in found for n in page.numbers]
    assert sorted(numbers) == list(range(len(jobs)))
    assert len({page.title for page in found}) == len(found)
    for page in found:
        assert len(page.numbers) == sum(map(len, page.cells)) <= SHEET_TILES
        for row, label in zip(page.cells, page.row_labels, strict=True):
            assert {f"seed {jobs[n].seed}" for n in row} == {label}
        assert len(page.column_labels) == len(page.cells[0]) <= SHEET_COLUMNS


def test_the_checksum_is_tensorboards():
    for data in (b"", b"1", bytes(range(256)) * 5):
        assert masked_crc32c(data) == pywrap_tensorflow.masked_crc32c(data)


@pytest.fixture
def opened(tmp_path, capsys):
    """Return a function that opens a store of 12 images of two prompts, without a model."""

    def open_(folder="out", latest=None, num_seeds=3, prompts=("a", "b"), **output):
        given = {
            "model": {"pretrained_model_name_or_path": "none"},
            "grid": {"prompts": [*prompts], "guidance_scales": [1, 2], "num_seeds": num_seeds},
            "output": output,
        }
        config = parse_config(given, "test", GenerateConfig)
        jobs = grid_jobs(config.grid, 16)

        def settings_of(number):
            job = jobs[number]
            return {
                "job": number, "prompt": job.prompt, "negative_prompt": "", "seed": job.seed,
                "guidance_scale": job.guidance_scale, "num_inference_steps": 50,
                "scheduler_name": "ddim", "width": 16, "height": 16, "concepts": {},
                "model": {"pretrained_model_name_or_path": "none"},
            }  # fmt: skip

        run = stack.enter_context(open_run(tmp_path / folder))
        if latest:
            run.latest, run.latest_uuid = latest, latest.name
        run.begin()
        return ImageStore(run, config, jobs, settings_of, "", 4)

    with contextlib.ExitStack() as stack:
        yield open_


def files(kept: ImageStore, numbers) -> list:
    how = {"flagged": False, "batch_size": 2}
    return [
        (n, how, png.encode(Image.new("RGB", (16, 16), (9 * n, 0, 0)), kept.settings(n) | how))
        for n in numbers
    ]


def test_tensorboard_gets_the_files_as_they_are(opened, tmp_path):
    kept = opened()
    kept.begin()
    made = files(kept, range(12))
    assert kept.add(made[:5])
    assert kept.add(made[5:])
    assert kept.finish()
    kept.run.flush()
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"), {IMAGES: 0}).Reload()
    tags = events.Tags()["images"]
    assert len(tags) == 12 + 2
    (event,) = events.Images("b/guidance 2, 50 steps, ddim/seed 1")
    assert event.encoded_image_string == made[10][2]
    assert (event.width, event.height) == (16, 16)


def test_of_several_prompts_no_two_share_a_tag(opened, tmp_path):
    """None makes its own group; a tag without a clash is the same as in earlier versions."""
    kept = opened(prompts=("fish and/or chips", "fish and|or chips", "9/11"), num_seeds=1)
    made = files(kept, range(6))
    kept.add(made)
    assert kept.finish()
    kept.run.flush()
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"), {IMAGES: 0}).Reload()
    shown = {tag: events.Images(tag) for tag in events.Tags()["images"]}
    assert len(shown) == 6 + 3
    assert all(len(images) == 1 for images in shown.values())
    assert shown["9|11/guidance 2, 50 steps, ddim/seed 0"][0].encoded_image_string == made[5][2]
    groups = {tag.split("/")[0] for tag in shown if not tag.startswith("sheets/")}
    assert len(groups) == 3
    assert all(g == "9|11" or g.startswith("fish and|or chips #") for g in groups)


@settings(deadline=None)
@drawn(st.lists(st.tuples(st.text("ab/|", max_size=6), st.sampled_from("xy")), unique=True))
def test_tags_are_as_many_as_images(names):
    tags = image_tags(names, max_length=4)
    assert len(set(tags)) == len(names)
    assert all(tag.count("/") == 1 for tag in tags)
    short = {text: text[:4].replace("/", "|") for text, _ in names}
    for tag, (text, end) in zip(tags, names, strict=True):
        if list(short.values()).count(short[text]) == 1:
            assert tag == f"{short[text]}/{end}"


def test_equal_titles_are_numbered():
    """Two concepts' initializers have equal titles, and each has a contact sheet."""
    titles = [("sheets", "the initializer"), ("sheets", "zip"), ("sheets", "the initializer")]
    assert image_tags(titles) == ["sheets/the initializer", "sheets/zip",
                                  "sheets/the initializer (2)"]  # fmt: skip


def test_many_images_are_shown_on_sheets_alone(opened, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "MAX_TAGS", 11)
    kept = opened()
    kept.begin()
    assert "TensorBoard gets contact sheets instead of 12 single images" in capsys.readouterr().out
    kept.add(files(kept, range(12)))
    assert kept.finish()
    kept.run.flush()
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"), {IMAGES: 0}).Reload()
    assert sorted(events.Tags()["images"]) == ["sheets/a", "sheets/b"]
    with Image.open(tmp_path / "out" / "sheets" / "sheet-000.jpg") as sheet:
        (event,) = events.Images("sheets/a")
        assert (event.width, event.height) == sheet.size


@pytest.mark.parametrize("crashes", [False, True])
def test_no_checkpoint_waits_for_a_contact_sheet(opened, tmp_path, monkeypatch, crashes):
    """None is lost: it is in a later checkpoint, or a resumed run draws it."""
    monkeypatch.setattr(open_runs, "LocalRun", FolderRun)
    monkeypatch.setattr(FolderRun, "storage", tmp_path / "storage", raising=False)
    monkeypatch.setattr(FolderRun, "resident", [], raising=False)
    FolderRun.storage.mkdir()
    may_draw, draw = threading.Event(), ContactSheets._draw

    def drawn_late(*place):
        assert may_draw.wait(120)
        draw(*place)

    monkeypatch.setattr(ContactSheets, "_draw", drawn_late)
    kept = opened()
    for numbers in (range(6), range(6, 10)):  # a whole sheet, and most of another
        kept.add(files(kept, numbers))
    kept._writer.submit(int).result(60)  # everything is written
    stored = sorted(FolderRun.storage.iterdir())
    assert [path.name for path in stored] == ["00000006", "00000010"]
    assert not list(FolderRun.storage.rglob("*.png"))
    may_draw.set()
    if crashes:
        kept = opened("another", latest=stored[-1])
        kept.begin()
    kept.add(files(kept, [10, 11]))
    assert kept.finish()
    sheets = sorted(path.name for path in FolderRun.storage.rglob("*.png"))
    assert sheets == ["sheet-000.png", "sheet-001.png"]
    again = opened("again", latest=FolderRun.storage / "00000012")
    assert len(again.finished) == 12
    again.begin()
    assert not again._sheets._drawing  # a finished grid restarted: nothing more
    assert again.finish()


def test_a_grid_in_checkpoints_grows(opened, tmp_path, monkeypatch):
    """Even after a crash, images match by settings, and contact sheets are the new grid's."""
    monkeypatch.setattr(open_runs, "LocalRun", FolderRun)
    monkeypatch.setattr(FolderRun, "storage", tmp_path / "storage", raising=False)
    monkeypatch.setattr(FolderRun, "resident", [], raising=False)
    FolderRun.storage.mkdir()
    kept = opened()
    kept.add(files(kept, range(12)))
    assert kept.finish()
    before = {p: p.read_bytes() for p in FolderRun.storage.rglob("*.*")}
    grown = opened("grown", FolderRun.storage / "00000012", num_seeds=4)
    assert (len(grown.jobs), len(grown.finished), grown.grown) == (16, 12, True)
    assert grown.problem == ""
    grown.begin()
    # Job 3 is the first new one; its number belongs to another image; the last four are free.
    missing = [job for job in range(16) if job not in grown.finished]
    assert missing == [3, 7, 11, 15]
    assert [grown.numbers[job] for job in missing] == [12, 13, 14, 15]
    grown.add(files(grown, missing[:2]))
    grown._writer.submit(grown._save).result()  # and a crash
    latest = FolderRun.storage / "00000014"
    again = opened("again", latest, num_seeds=4)
    assert sorted(again.finished) == [job for job in range(16) if job not in missing[2:]]
    again.begin()
    again.add(files(again, missing[2:]))
    assert again.finish()
    assert {p: p.read_bytes() for p in before} == before
    numbers = {
        json.loads(line)["job"]
        for path in FolderRun.storage.rglob("manifest.jsonl")
        for line in path.read_text().splitlines()
    }
    assert numbers == set(range(16))
    last = opened("last", FolderRun.storage / "00000016", num_seeds=4)
    assert len(last.finished) == 16
    for job in range(16):
        drawn_as = job if job in missing else 3 * (job // 4) + job % 4  # with three seeds
        assert last.image(job).getpixel((0, 0)) == (9 * drawn_as, 0, 0)
    sheets = {p.parent.parent.name for p in FolderRun.storage.rglob("sheet-*.png")}
    assert "00000016" in sheets


@pytest.mark.parametrize(("way", "each"), [("sheets", False), ("images", True), ("auto", True)])
def test_the_way_of_tensorboard_can_be_told(opened, way, each):
    assert opened(tensorboard=way).logs_each is each


def test_metrics_come_while_nothing_is_stored(opened, tmp_path, monkeypatch):
    clock = itertools.count(0, 6)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    kept = opened()
    assert kept.rate == 0
    for n in range(10):
        kept.add(files(kept, [n]))
        kept._writer.submit(int).result()  # what was given to it before is done
    rate = kept.rate
    assert not kept.finish()
    assert kept.rate == rate > 0  # measured until the last image came
    told = [json.loads(s) for s in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["steps_completed"] for line in told]
    assert len(steps) > 3
    assert steps == sorted(set(steps))
    assert steps[-1] == 10
    assert all(line["images_per_second"] > 0 for line in told)
