"""The benchmarks run on tiny models; the figures here mean nothing."""

import json
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from forked import Forked
from tiny import ROOT

from benchmarks import __main__ as benchmarks
from benchmarks import measure, memory, resident, scale, spread
from benchmarks.measure import operations, table
from detsd.__main__ import main
from detsd.config import FinetuneConfig, GenerateConfig, load_config


def test_every_table_comes_out(capsys, monkeypatch, photos):
    monkeypatch.setattr(benchmarks.finetune, "IMAGES", str(photos))
    monkeypatch.setattr(measure, "ROUNDS", 1)
    sections = ["finetune", "generate", "data"]  # the other sections start processes
    benchmarks.main(["--smoke", "--models", "sd1", "sdxl", "--only", *sections])
    text = capsys.readouterr().out
    for name in ("sd1", "sdxl"):
        rows = re.findall(rf"\| {name} \| 2 \| .*\|", text)
        assert len(rows) == 3  # fine-tuning, its variants, generation
        for row in rows:
            figures = [
                cell for cell in row.strip(" |").split(" | ")[2:] if re.fullmatch(r"[\d.]+", cell)
            ]
            assert len(figures) >= 3  # of textbook, ours and the UNet; images equal within a level
            assert all(float(figure) > 0 for figure in figures[:3])
    assert re.search(r"\| 100 \| [\d.]+ \| [\d.]+ \|", text)


def test_the_shipped_grid_is_measured_beside_other_settings(capsys, monkeypatch, tmp_path):
    grid = (ROOT / "generate_demo.yaml").read_text()
    small = re.sub(r"(num_inference_steps|seeds): .*", r"\1: 2", grid)
    (tmp_path / "small.yaml").write_text(small)
    monkeypatch.setattr(benchmarks.generate, "SHIPPED", str(tmp_path / "small.yaml"))
    many = "grid.num_inference_steps=12"
    benchmarks.main(["--only", "shipped", "--pairs", "1", "--set", many])
    (row,) = (line for line in capsys.readouterr().out.split("\n") if many in line)
    before, now, ratio, *of_processor = map(float, row.strip(" |").split(" | ")[1:])
    assert ratio == pytest.approx(now / before, rel=0.02)
    assert of_processor[2] > 1  # a sixth of the passes


def test_a_grid_over_many_processes_runs_without_a_model(tmp_path, monkeypatch):
    """Its stand-in for the pipeline has everything that a grid needs."""
    small = ["--images", "40", "--ranks", "2", "--side", "16", "--seconds", "1"]
    monkeypatch.setattr(sys, "argv", ["scale", *small])
    with Forked(tmp_path, scale.main) as run:  # it replaces the pipeline for good
        assert run.end() == [0], run.said
    assert re.search("^40 images of .* over 2 ranks$", run.said[0], re.M)
    assert re.search("^mixed steps: .*% of the ranks' time lost$", run.said[0], re.M)


def test_memory_is_measured_of_commands_that_are_valid(tmp_path, monkeypatch):
    """It is that of the process that ran; if it fails, its output is shown."""
    commands = resident.save_commands(tmp_path, {"pretrained_model_name_or_path": "demo_model"}, 64)
    for name, kind in (("finetune", FinetuneConfig), ("generate", GenerateConfig)):
        word, path = commands[name]
        assert word == name
        load_config(path, kind=kind)
    program = tmp_path / "detsd.py"
    program.write_text("import sys; x = b'x' * 400_000_000; sys.exit('gone' in sys.argv)")
    assert 0.4 < resident.peak(["finetune"], tmp_path, tmp_path / "out") < 0.5
    with pytest.raises(RuntimeError, match="detsd"):
        resident.peak(["gone"], tmp_path, tmp_path / "out")


def test_a_table_takes_the_place_of_the_rows_measured_anew(monkeypatch, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Benchmarks\n\nWhat is measured.\n\n## Another machine\n\nIts tables.\n")
    monkeypatch.setattr(benchmarks, "README", readme)

    def keep(about: str, batch: int, rate: float, columns: str = "rate") -> list[str]:
        rows = [["demo", batch, rate]]
        benchmarks.keep(
            "## This machine",
            about,
            benchmarks.Table("Training", ["model", "batch", columns], rows, 2),
        )
        text = readme.read_text()
        assert text.startswith("# Benchmarks\n\nWhat is measured.\n\n## Another machine\n\nIts tab")
        assert text.count("## This machine\n") == text.count("### Training\n") == 1
        return re.findall(r"\| demo \| (.*) \|", text)

    assert keep("Libraries 1.", 1, 5.0) == ["1 | 5"]
    benchmarks.keep("## This machine", "Libraries 1.", benchmarks.Table("Data", ["n"], [[10]]))
    assert keep("Libraries 1.", 8, 6.0) == ["1 | 5", "8 | 6"]
    assert keep("Libraries 1.", 1, 7.0) == ["1 | 7", "8 | 6"]
    assert "### Data" in readme.read_text()
    assert keep("Libraries 1.", 1, 7.0, "another rate") == ["1 | 7"]
    assert keep("Libraries 2.", 4, 9.0, "another rate") == ["4 | 9"]
    assert "### Data" not in readme.read_text()


def test_the_spread_is_that_of_real_runs_and_measured_once(experiment, tmp_path, monkeypatch):
    path = experiment(training={"max_sample_grad_norm": 0.01})
    monkeypatch.setattr(spread, "FILE", str(path))
    monkeypatch.setattr(spread, "KEPT", tmp_path / "kept" / "spread.jsonl")
    monkeypatch.setattr(spread, "CONCEPTS", {"blob-thing": []})
    threads = torch.get_num_threads()

    def lines(*layouts):
        return [*spread.measured(["blob-thing"], layouts, [1, 2], ["training.num_sgd_steps=4"], 0)]

    try:
        first = lines("1:4x1", "1:2x2")
    finally:
        torch.set_num_threads(threads)
    assert [(line["seed"], line["layout"]) for line in first] == [
        (1, "1:4x1"), (1, "1:2x2"), (2, "1:4x1"), (2, "1:2x2"),
    ]  # fmt: skip
    same = ("--set", "training.train_seed=2", "--set", "training.num_sgd_steps=4")
    assert main(["finetune", str(path), "--output-dir", str(tmp_path / "out"), *same]) == 0
    said = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    (loss,) = [line["val_loss"] for line in said if line["group"] == "validation"]
    assert first[2]["val_loss"] == loss
    assert first[3]["val_loss"] == pytest.approx(loss, rel=1e-3)
    assert first[0]["val_loss"] != loss

    monkeypatch.delattr(spread, "train")
    assert lines("1:2x2", "1:4x1")[0] == first[1]
    with pytest.raises(NameError):
        lines("1:1x4")


@pytest.mark.parametrize("layout", ["8x1", "1:8", "0:8x1", "1:8x0"])
def test_a_layout_that_is_none_is_told(layout, capsys):
    with pytest.raises(SystemExit):
        benchmarks.main(["--only", "spread", "--layouts", layout])
    assert f"{layout!r} is not THREADS:BATCHxACCUMULATION" in capsys.readouterr().err


def test_the_spread_within_a_seed_is_not_that_of_the_seeds():
    lines = [
        {"concept": "a", "seed": seed, "val_loss": seed + 0.001 * k}
        for seed in (1, 2)
        for k in (0, 2)
    ]
    assert spread.rows(lines) == [
        ["a", 1, 2, "1.0010", "0.0014", None, None],
        ["a", 2, 2, "2.0010", "0.0014", None, None],
        ["a", "all", 4, "1.5010", "0.0014", None, None],
    ]


def test_operations_are_counted():
    a, b, device = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 4, 5), torch.device("cpu")
    assert operations(lambda: a @ b, device) == 2 * 3 * 4 * 5
    k, attend = b.mT, torch.nn.functional.scaled_dot_product_attention
    assert operations(lambda: attend(a, k, k), device) == 2 * (2 * 3 * 4 * 5)


def test_tables_are_markdown():
    assert table(["a", "b"], [[1.0, None], [123.4, "c"]]).splitlines() == [
        "| a | b |", "| --- | --- |", "| 1 | – |", "| 123 | c |",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_memory_that_the_guide_names_is_what_the_shapes_give(monkeypatch, capsys):
    monkeypatch.setattr(F, "scaled_dot_product_attention", F.scaled_dot_product_attention)
    memory.main()  # replaces it
    guide = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| Stable Diffusion .*?\| ([\d.]+ GB \|.*) \|$", guide, re.M)
    counted = [
        re.findall(r"[\d.]+", line)[-4:] for line in capsys.readouterr().out.split("\n")[1:4]
    ]
    assert [re.findall(r"[\d.]+", row) for row in rows] == [
        [weights, kept, twice] for weights, _, kept, twice in counted
    ]
    assert f"takes {counted[0][1]} GB" in guide  # the VAE
