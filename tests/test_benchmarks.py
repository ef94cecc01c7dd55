"""The benchmarks run, on tiny models; what they measure here means nothing."""

import re

import torch

from benchmarks import __main__ as benchmarks
from benchmarks.measure import operations, table


def test_every_table_comes_out(capsys, monkeypatch, photos):
    monkeypatch.setattr(benchmarks.finetune, "IMAGES", str(photos))
    sections = ["finetune", "generate", "data"]  # the others start processes
    text = benchmarks.main(["--smoke", "--models", "sd1", "sdxl", "--only", *sections])
    assert text in capsys.readouterr().out
    for name in ("sd1", "sdxl"):
        rows = re.findall(rf"\| {name} \| 2 \| .*\|", text)
        assert len(rows) == 3  # fine-tuning, the same in other ways, generation
        for row in rows:
            assert all(float(rate) > 0 for rate in row.strip("| ").split(" | ")[2:5])
    assert re.search(r"\| 100 \| [\d.]+ \| [\d.]+ \|", text)


def test_a_machine_has_one_section(monkeypatch, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Benchmarks\n\nWhat is measured.\n\n## Another machine\n\nIts tables.\n")
    monkeypatch.setattr(benchmarks, "README", readme)
    for figures in ("old", "new"):
        monkeypatch.setattr(benchmarks, "measured", lambda *_, said=figures: said)
        title = benchmarks.main(["--write"]).split("\n", 1)[0]
    text = readme.read_text()
    assert text.count(title) == 1
    assert "new" in text
    assert "old" not in text
    assert "Its tables." in text


def test_operations_are_counted():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    assert operations(lambda: a @ b) == 2 * 3 * 4 * 5


def test_tables_are_markdown():
    assert table(["a", "b"], [[1.0, None], [123.4, "c"]]).splitlines() == [
        "| a | b |", "| --- | --- |", "| 1 | – |", "| 123 | c |",
    ]  # fmt: skip
