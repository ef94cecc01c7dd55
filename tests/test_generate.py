"""The grid: counted, sharded, killed, resumed, remade from one of its images."""

import dataclasses
import json
import logging
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from forked import Forked, in_two_ranks
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator
from tiny import ROOT
from transformers import CLIPTextModel

from detsd.__main__ import main
from detsd.cli.generate import grid_config
from detsd.cli.parser import parser
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.writing import write_concepts
from detsd.config import GenerateConfig, GridConfig, load_config, parse_config
from detsd.generate.grid import Grid
from detsd.runs.open import open_run
from detsd.sampling.engine import Sampler
from detsd.sampling.jobs import batches, grid_jobs
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.utils import contact_sheets, png
from detsd.utils.errors import UserError


@pytest.fixture
def concepts(tmp_path) -> Path:
    folder = tmp_path / "concepts"
    folder.mkdir()
    rows = torch.linspace(-1, 1, 32).view(2, 16)
    write_concepts(
        [LearnedConcept("blob-thing", "", (rows,)), LearnedConcept("zyx-two", "", (-rows,))], folder
    )
    return folder


@pytest.fixture
def given(tiny_model, concepts) -> dict:
    """Return a grid: 2 prompts x 2 steps x 2 scales x 3 seeds in batches of 4."""
    return {
        "model": {"pretrained_model_name_or_path": str(tiny_model)},
        "concepts": {"files": str(concepts)},
        "grid": {
            "prompts": ["a photo of a blob-thing", "a zyx-two on a blob-thing/table"],
            "num_inference_steps": [2, 3],
            "guidance_scales": [1, 4.5],
            "seeds": [3, 1, 2],
        },
        "output": {"batch_size": 4, "checkpoint_freq": 2},
    }


@pytest.fixture
def slow_grid(given, tmp_path) -> Path:
    """Write the grid as a file, with enough steps to be caught half-way."""
    given["grid"]["num_inference_steps"] = [12, 13]
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"name": "t", "hyperparameters": given}))
    return path


def generate(given: dict, folder: Path) -> Grid:
    """Make a grid in this process."""
    with open_run(folder) as run:
        made = Grid(parse_config(given, "test", GenerateConfig), run)
        assert made.generate()
    return made


def call(*arguments) -> int:
    """Run a command line in this process; return its exit code."""
    return main(list(map(str, arguments)))


def pixels(folder: Path) -> dict[str, bytes]:
    return {p.name: Image.open(p).tobytes() for p in sorted((folder / "images").glob("*"))}


def tags(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"), {IMAGES: 0})
    events.Reload()
    return events


def test_the_shipped_grids_are_counted_without_running():
    count = {}
    for name in ("generate_grid.yaml", "generate_demo.yaml"):
        jobs = grid_jobs(load_config(ROOT / name, kind=GenerateConfig).grid, 64)
        assert len(set(jobs)) == len(jobs)
        count[name] = len(jobs)
    assert count == {"generate_grid.yaml": 480, "generate_demo.yaml": 18}


def test_batches_hold_every_job_once_and_agree_in_what_they_must():
    grid = GridConfig(
        ["a", "b"], ["", "c"], ["ddim", "euler"], [2, 3], [1.0, 3.0, 5.0], num_seeds=5
    )
    jobs = grid_jobs(grid, 32)
    found = batches(jobs, 7)
    assert sorted(n for batch in found for n in batch) == list(range(240))
    assert all(len({jobs[n].batch_key for n in batch}) == 1 for batch in found)
    assert max(map(len, found)) == 7
    # Batches mix prompts and scales, so only the last batch of each kind is short.
    assert sum(len(batch) < 7 for batch in found) == 8


@pytest.mark.slow
def test_what_a_grid_leaves_behind(given, tmp_path, monkeypatch):
    drawn = []
    sheet = contact_sheets.sheet
    monkeypatch.setattr(contact_sheets, "sheet", lambda *a: drawn.append(a) or sheet(*a))
    made = generate(given, tmp_path / "out")
    folder = tmp_path / "out"

    # files, numbered as the jobs, with the settings inside
    assert sorted(pixels(folder)) == [f"job-{n:05d}.png" for n in range(24)]
    lines = [json.loads(s) for s in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [line["job"] for line in lines] == list(range(24))
    for line in lines:
        file = line.pop("file")
        assert png.read_record(folder / file) == line
    job, record = made.jobs[23], lines[23]
    assert record["prompt"] == job.prompt == "a zyx-two on a blob-thing/table"
    assert (record["seed"], record["guidance_scale"], record["num_inference_steps"]) == (2, 4.5, 3)
    assert set(record["concepts"]) == {"blob-thing", "zyx-two"}  # both, in one prompt
    assert record["model"]["precision"] == "fp32"
    with Image.open(folder / "images" / "job-00023.png") as image:
        text = image.text["parameters"].splitlines()
    assert text[0] == job.prompt
    assert text[1].startswith("Steps: 3, Sampler: DDIM, CFG scale: 4.5, Seed: 2, Size: 32x32, ")

    # contact sheets: one per prompt, seeds down, settings across, under their labels
    assert len(list((folder / "sheets").glob("*.png"))) == 2
    rows, row_labels, column_labels, title = min(drawn, key=lambda given: given[3])  # from threads
    assert title == "a photo of a blob-thing"
    assert row_labels == ["seed 3", "seed 1", "seed 2"]
    assert column_labels == [
        "guidance 1, 2 steps", "guidance 4.5, 2 steps",
        "guidance 1, 3 steps", "guidance 4.5, 3 steps",
    ]  # fmt: skip
    number = next(
        n
        for n, j in enumerate(made.jobs)
        if (j.prompt, j.seed, j.num_inference_steps, j.guidance_scale) == (title, 1, 3, 1.0)
    )
    with Image.open(made.store.path(number)) as image:
        assert rows[1][2].tobytes() == contact_sheets.as_tile(image).tobytes()

    # TensorBoard: every image has its own tag
    events = tags(folder)
    found = [t for t in events.Tags()["images"] if not t.startswith("sheets/")]
    assert len(found) == 24
    assert len(events.Tags()["images"]) == 26
    (event,) = events.Images("a zyx-two on a blob-thing|table/guidance 4.5, 3 steps, ddim/seed 2")
    (tmp_path / "logged.png").write_bytes(event.encoded_image_string)
    assert Image.open(tmp_path / "logged.png").tobytes() == pixels(folder)["job-00023.png"]


@pytest.mark.slow
def test_two_ranks_make_the_pixels_of_one(given, tmp_path):
    generate(given, tmp_path / "1")
    in_two_ranks(tmp_path, lambda: generate(given, tmp_path / "2"))
    one, two = pixels(tmp_path / "1"), pixels(tmp_path / "2")
    assert len(one) == 24
    assert one == two
    assert len(set(one.values())) == 24
    assert (tmp_path / "1" / "manifest.jsonl").read_text() == (
        tmp_path / "2" / "manifest.jsonl"
    ).read_text()


@pytest.mark.slow
def test_killed_at_several_moments_and_finished_by_two_ranks(slow_grid, given, tmp_path):
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    generate(given, whole)
    kept: dict[Path, int] = {}
    for ranks, count in ((1, 3), (1, 9), (2, 24)):
        with Forked(
            tmp_path, lambda: call("generate", slow_grid, "--output-dir", folder), ranks
        ) as grid:
            if count < 24:
                grid.wait_until(lambda n=count: len(list(folder.glob("images/job-*.png"))) >= n)
                grid.kill()
            assert grid.end() == ([0, 0] if count == 24 else [-signal.SIGKILL]), grid.said
        now = {p: p.stat().st_mtime_ns for p in folder.glob("images/job-*.png")}
        assert now == now | kept  # finished images are neither lost nor made again
        kept = now
    assert pixels(folder) == pixels(whole)
    assert len((folder / "manifest.jsonl").read_text().splitlines()) == 24
    # Every start writes new event files, and they hold every image once.
    events = tags(folder)
    assert all(len(events.Images(tag)) == 1 for tag in events.Tags()["images"])
    assert len(events.Tags()["images"]) == 26


@pytest.mark.slow
def test_sigterm_stores_what_is_made(slow_grid, tmp_path):
    with Forked(
        tmp_path, lambda: call("generate", slow_grid, "--output-dir", tmp_path / "out")
    ) as grid:
        grid.wait_until(lambda: list(tmp_path.glob("out/images/job-*.png")))
        grid.processes[0].terminate()
        assert grid.end() == [128 + signal.SIGTERM], grid.said
    assert "the same command continues from here" in grid.said[0]
    stored = len(list(tmp_path.glob("out/images/job-*.png")))
    assert 0 < stored < 24
    assert len((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()) == stored


@pytest.mark.slow
def test_an_image_is_made_again_from_itself(given, concepts, tmp_path, capsys):
    generate(given, tmp_path / "out")
    source = tmp_path / "out" / "images" / "job-00017.png"
    assert call("generate", "--from", source, "--output-dir", tmp_path / "again") == 0
    assert f"the same pixels as {source}" in capsys.readouterr().out
    assert pixels(tmp_path / "again")["job-00000.png"] == pixels(tmp_path / "out")[source.name]
    # into a folder that differs from that of another grid's image with the same number
    for path, name in ((source, "from-out-job-00017"), (tmp_path / "bare.png", "from-bare")):
        shutil.copyfile(source, tmp_path / "bare.png")
        assert grid_config(parser().parse_args(["generate", "--from", str(path)]))[2] == name
    sample = tmp_path / "run" / "samples" / "step-00000004-000.png"
    sample.parent.mkdir(parents=True)
    shutil.copyfile(source, sample)
    line = ["generate", "--from", str(sample)]
    assert grid_config(parser().parse_args(line))[2] == "from-run-step-00000004-000"
    # and its neighbours
    near = tmp_path / "near"
    assert (
        call("generate", "--from", source, "--set", "grid.seeds=[1, 9]", "--output-dir", near) == 0
    )
    assert len(pixels(near)) == 2
    # with its concepts at another place
    moved = f"concepts.files={concepts.rename(tmp_path / 'moved')}"
    capsys.readouterr()
    assert call("generate", "--from", source, "--output-dir", tmp_path / "gone") == 2
    assert f"{concepts}/learned_embeddings_dict.pt does not exist" in capsys.readouterr().err
    assert call("generate", "--from", source, "--set", moved, "--output-dir", tmp_path / "b") == 0
    assert f"the same pixels as {source}" in capsys.readouterr().out
    # a picture saved by an editor
    Image.open(source).convert("RGB").save(tmp_path / "bare.png")
    capsys.readouterr()
    assert call("generate", "--from", tmp_path / "bare.png") == 2
    assert "bare.png holds no settings of detsd" in capsys.readouterr().err


def test_an_image_whose_concept_was_learned_anew(given, concepts, tmp_path, capsys):
    given["grid"] = {"prompts": "a zyx-two", "negative_prompts": "a dog", "num_inference_steps": 2}
    generate(given, tmp_path / "out")
    source = tmp_path / "out" / "images" / "job-00000.png"
    with Image.open(source) as image:
        assert image.text["parameters"].splitlines()[1] == "Negative prompt: a dog"
    write_concepts([LearnedConcept("zyx-two", "", (torch.ones(2, 16),))], concepts)
    assert call("generate", "--from", source, "--output-dir", tmp_path / "again") == 0
    assert "of 255; it was made with other vectors of zyx-two" in capsys.readouterr().out
    assert call("generate", "--from", tmp_path / "gone.png") == 2
    assert "gone.png does not exist" in capsys.readouterr().err


def test_every_rank_of_a_small_grid_has_work(given, tmp_path, monkeypatch):
    """Three ranks make four of twelve similar images each, unless batches must be full."""
    given["grid"] |= {"prompts": "a zyx-two", "num_inference_steps": 2, "guidance_scales": 4}
    given["grid"]["seeds"] = list(range(12))
    for fill, sizes in ((False, [4, 4, 4]), (True, [12])):
        given["output"] = {"fill_batches": fill}
        with open_run(tmp_path / str(fill)) as run:
            monkeypatch.setattr(run.ranks, "size", 3)
            monkeypatch.setattr(run, "gather", lambda values: values)
            made = Grid(parse_config(given, "test", GenerateConfig), run)
        assert [len(batch) for batch in made.batches] == sizes
        assert made.pad_batch_to == (16 if fill else 1)


def test_texts_are_encoded_once(given, tmp_path, monkeypatch):
    encode, asked = CLIPTextModel.forward, []

    def counted(self, *ids, **options):
        asked.append(ids)
        return encode(self, *ids, **options)

    monkeypatch.setattr(CLIPTextModel, "forward", counted)
    generate(given, tmp_path / "out")
    assert len(asked) == 3  # two prompts and the empty negative one, in six batches


def test_pictures_brought_by_hand_are_left_alone(given, tmp_path):
    made = generate(given, tmp_path / "out")
    before = pixels(tmp_path / "out")
    made.store.path(5).rename(made.store.folder / "best.png")
    Image.new("RGB", (8, 8)).save(made.store.folder / "photo.png")
    generate(given, tmp_path / "out")
    after = pixels(tmp_path / "out")
    assert after.pop("photo.png")
    assert after.pop("best.png") == before["job-00005.png"]
    assert after == before


def test_a_damaged_image_is_made_again(given, tmp_path):
    made = generate(given, tmp_path / "out")
    before = pixels(tmp_path / "out")
    path = made.store.path(5)
    path.write_bytes(path.read_bytes()[:200])
    generate(given, tmp_path / "out")
    assert pixels(tmp_path / "out") == before


def test_another_grid_keeps_out_of_the_folder(given, concepts, tmp_path):
    generate(given, tmp_path / "out")
    before = pixels(tmp_path / "out")
    given["grid"]["seeds"] = [3, 1, 7]
    with pytest.raises(UserError, match=r"job-00002\.png is from a different grid.*seed"):
        generate(given, tmp_path / "out")
    given["grid"]["seeds"] = [3, 1, 2]
    write_concepts([LearnedConcept("blob-thing", "", (torch.ones(1, 16),))], concepts)  # retrained
    given["grid"]["prompts"] = "a photo of a blob-thing"
    with pytest.raises(
        UserError, match=r"a different grid than this one \(it differs in its concepts\)"
    ):
        generate(given, tmp_path / "out")
    assert pixels(tmp_path / "out") == before


def test_files_at_another_place_are_the_same_grid(
    given, concepts, tiny_model, tmp_path, monkeypatch
):
    """Of a concept the vectors count, not its file; a model's path may be spelled another way."""
    generate(given, tmp_path / "out")
    before = pixels(tmp_path / "out")
    moved = shutil.copytree(concepts, tmp_path / "moved")
    monkeypatch.chdir(tiny_model.parent)
    given["concepts"]["files"] = str(moved)
    given["model"]["pretrained_model_name_or_path"] = f"./{tiny_model.name}"
    assert generate(given, tmp_path / "out").store.resumed_count == len(before)
    given["grid"]["seeds"] = [*given["grid"]["seeds"], 9]  # each image is looked for by its content
    grown = generate(given, tmp_path / "out")
    assert grown.store.resumed_count == len(before)
    assert pixels(tmp_path / "out").items() > before.items()
    given["model"]["pretrained_model_name_or_path"] = str(
        shutil.copytree(tiny_model, tmp_path / "m")
    )
    with pytest.raises(
        UserError, match=r"a different grid than this one \(it differs in its model\)"
    ):
        generate(given, tmp_path / "out")  # the copy may be another model


def test_a_finished_grid_can_grow(given, tmp_path):
    """It grows by seeds, a prompt, a scale, a sampler; old images are neither lost nor remade."""
    folder, whole = tmp_path / "out", tmp_path / "whole"
    given["output"]["fill_batches"] = True  # so that batches do not matter
    generate(given, folder)
    first = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.glob("images/job-*.png")}
    sheets = {p: p.read_bytes() for p in folder.glob("sheets/*.png")}
    smaller = json.loads(json.dumps(given["grid"]))
    given["grid"]["seeds"] = [3, 9, 1, 2]
    given["grid"]["prompts"] = ["a zyx-two on the grass", *given["grid"]["prompts"]]
    given["grid"]["guidance_scales"] = [1, 2.5, 4.5]
    with open_run(folder) as run:
        grid = Grid(parse_config(given, "test", GenerateConfig), run)
        assert len(grid.store.finished) == 24
        assert len(grid.jobs) == 72
        assert sum(len(batch) for batch, _ in grid._todo()) == 48
    assert {p: p.read_bytes() for p in folder.glob("sheets/*.png")} == sheets  # nothing was added
    grown = generate(given, folder)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in first} == first
    lines = [json.loads(s) for s in (folder / "manifest.jsonl").read_text().splitlines()]
    assert sorted(line["job"] for line in lines) == list(range(72))
    for line in lines:
        file = line.pop("file")
        assert file == f"images/job-{line['job']:05d}.png"
        assert png.read_record(folder / file) == line
    straight = generate(given, whole)
    for job in range(72):  # and so are its contact sheets
        a, b = (Image.open(grid.store.path(job)).tobytes() for grid in (grown, straight))
        assert a == b
    assert {p.name: Image.open(p).tobytes() for p in folder.glob("sheets/*")} == {
        p.name: Image.open(p).tobytes() for p in whole.glob("sheets/*")
    }
    before = {p: p.stat().st_mtime_ns for p in folder.glob("images/job-*.png")}
    assert generate(given, folder).store.resumed_count == 72
    assert {p: p.stat().st_mtime_ns for p in folder.glob("images/job-*.png")} == before
    given["grid"] = smaller  # a grid does not shrink
    with pytest.raises(UserError, match="is from a different grid than this one"):
        generate(given, folder)


@pytest.mark.slow
def test_growing_is_interrupted_and_goes_on_on_two_ranks(slow_grid, given, tmp_path):
    folder = tmp_path / "out"
    assert call("generate", slow_grid, "--output-dir", folder) == 0
    first = {p: p.stat().st_mtime_ns for p in folder.glob("images/job-*.png")}
    more = ["--set", "grid.seeds=[4, 3, 1, 2]", "--output-dir", folder]
    for ranks, count in ((1, 27), (2, 32)):
        with Forked(tmp_path, lambda: call("generate", slow_grid, *more), ranks) as grid:
            if count < 32:
                grid.wait_until(lambda: len(list(folder.glob("images/job-*.png"))) >= 27)
                grid.kill()
            assert grid.end() == ([0, 0] if count == 32 else [-signal.SIGKILL]), grid.said
        now = {p: p.stat().st_mtime_ns for p in folder.glob("images/job-*.png")}
        assert now == now | first
        first = now
    records = [png.read_record(p) for p in sorted(folder.glob("images/job-*.png"))]
    assert [record["job"] for record in records] == list(range(32))
    settings = {(r["prompt"], r["seed"], r["num_inference_steps"], r["guidance_scale"])
                for r in records}  # fmt: skip
    assert len(settings) == 32


def test_a_batch_that_does_not_fit_is_halved(given, tmp_path, monkeypatch, caplog):
    whole = generate(given, tmp_path / "whole")
    make = Sampler._make_at_once
    asked = []

    def cramped(self, jobs, *rest):
        asked.append(len(jobs))
        if len(jobs) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return make(self, jobs, *rest)

    monkeypatch.setattr(Sampler, "_make_at_once", cramped)
    generate(given, tmp_path / "halved")
    assert asked == [4] + [2] * 12
    assert "a batch of 4 images does not fit into memory; continuing with 2" in caplog.text
    for n in range(24):
        a, b = (
            np.asarray(Image.open(tmp_path / name / "images" / whole.store.path(n).name), int)
            for name in ("whole", "halved")
        )
        assert abs(a - b).max() <= 1
    monkeypatch.setattr(
        Sampler,
        "_make_at_once",
        lambda *_: (_ for _ in ()).throw(RuntimeError("can't allocate memory")),
    )
    with pytest.raises(
        UserError, match="not even one image of 32 x 32 fits into the memory of cpu"
    ):
        generate(given, tmp_path / "none")


def test_a_flagged_image_is_said_to_be_flagged(given, tmp_path, monkeypatch, caplog):
    make = Sampler._make_at_once

    def prude(self, jobs, *rest):
        return [dataclasses.replace(m, flagged=j.seed == 2) for j, m in
                zip(jobs, make(self, jobs, *rest), strict=True)]  # fmt: skip

    monkeypatch.setattr(Sampler, "_make_at_once", prude)
    given["grid"] |= {"prompts": "a zyx-two", "num_inference_steps": 2, "guidance_scales": 4}
    made = generate(given, tmp_path / "out")
    assert [made.store.finished[n]["flagged"] for n in range(3)] == [False, False, True]
    assert "job-00002.png is black: the model's safety checker flagged it" in caplog.text
    events = tags(tmp_path / "out")
    (event,) = events.Images("a zyx-two/guidance 4, 2 steps, ddim/seed 2")
    (tmp_path / "logged.png").write_bytes(event.encoded_image_string)
    tile = contact_sheets.notice("flagged by the safety checker", (32, 32))
    assert Image.open(tmp_path / "logged.png").tobytes() == tile.tobytes()


def test_searchers_may_vary_any_field(given, tmp_path):
    """A searcher's trial gets scalars instead of lists, and whole floats as int."""
    given["grid"] = {
        "prompts": "a zyx-two", "negative_prompts": "a dog", "scheduler_names": "euler",
        "num_inference_steps": 2.0, "guidance_scales": 3, "first_seed": 11,
    }  # fmt: skip
    made = generate(json.loads(json.dumps(given)), tmp_path / "out")
    (job,) = made.jobs
    assert (job.seed, job.guidance_scale, job.scheduler_name) == (11, 3.0, "euler")


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ({"prompts": []}, "grid.prompts is empty, so there is nothing to make"),
        ({"seeds": []}, "grid.seeds is empty"),
        ({"seeds": [1, 2, 1]}, "grid.seeds has 1 twice, which would make the same images twice"),
        ({"prompts": ["a", "a"]}, "grid.prompts has 'a' twice"),
        ({"seeds": [1], "num_seeds": 3}, "is given together with grid.first_seed or num_seeds"),
        ({"seeds": [2**32]}, "must be at most 4294967295"),
        ({"width": 100}, "grid.width is 100 but must be a multiple of 8"),
        ({"scheduler_names": "ddpm"}, "grid.scheduler_names is 'ddpm' but must be one of ddim"),
        ({"guidance_scale": 3}, "did you mean 'guidance_scales'?"),
    ],
)
def test_grids_that_make_no_sense(grid, sentence, given):
    given["grid"] = {"prompts": "a zyx-two"} | grid
    with pytest.raises(UserError) as caught:
        parse_config(given, "test", GenerateConfig)
    assert sentence in str(caught.value)


def test_mistakes_end_with_a_sentence(slow_grid, tmp_path, capsys):
    for arguments, sentence in (
        (["generate"], "no experiment file was given and no cluster was found"),
        (["generate", tmp_path / "no.yaml"], "no.yaml does not exist"),
        (["generate", slow_grid, "--set", f"concepts.files={tmp_path}/no.pt"], "no.pt does not"),
        (["generate", slow_grid, "--set", "grid.prompts=[]"], "grid.prompts is empty"),
        (["generate", slow_grid, "--set", "grid.num_inference_steps=2000"], "less than the 1000"),
    ):
        assert call(*arguments, "--output-dir", tmp_path / "out") == 2
        assert sentence in capsys.readouterr().err


def test_a_misspelt_concept_is_pointed_out(given, tmp_path, caplog, monkeypatch):
    """The warning comes once, before the model is loaded, which may take minutes."""
    given["grid"] = {"prompts": "a blob-thin", "num_inference_steps": 1}
    sentence = "'blob-thin', which is not a loaded concept (loaded: blob-thing, zyx-two)"
    generate(given, tmp_path / "out")
    assert caplog.text.count(sentence) == 1
    caplog.clear()
    monkeypatch.setattr(DetSDTextualInversionPipeline, "from_pretrained", None)
    with pytest.raises(TypeError):
        generate(given, tmp_path / "another")
    assert sentence in caplog.text


def test_ranks_point_out_each_thing_once(given, tmp_path):
    """The second neither repeats what the first has said of all jobs, nor says it of its own."""
    given["grid"] = {"prompts": ["a blob-thin", "a ball"], "num_inference_steps": 1, "num_seeds": 4}

    def body():
        logging.getLogger("detsd").addHandler(logging.StreamHandler(sys.stdout))
        generate(given, tmp_path / "out")

    with Forked(tmp_path, body, ranks=2) as ranks:
        assert ranks.end() == [0, 0], ranks.said
        said = "".join(ranks.said)
    assert len(list((tmp_path / "out" / "images").iterdir())) == 8
    assert said.count("'blob-thin', which is not a loaded concept") == 1
    assert said.count("grid.num_inference_steps: 1 gives noise with the ddim sampler") == 1
    assert said.count("num_inference_steps: 1 gives noise") == 1


def test_a_fine_tunings_folder_is_refused(given, tmp_path):
    step = tmp_path / "out" / "checkpoints" / "step-00000004"
    step.mkdir(parents=True)
    (step / "metadata.json").write_text('{"steps_completed": 4}')
    with pytest.raises(UserError, match="holds a fine-tuning; give the images another folder"):
        generate(given, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
