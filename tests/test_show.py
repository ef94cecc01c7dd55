"""The output of `show` for valid and invalid concept files and checkpoints."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import ROOT

from detsd.__main__ import main
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.reading import read_concepts
from detsd.concepts.writing import write_concepts
from detsd.config import ModelConfig
from detsd.evaluate.rows import describe, plot, report
from detsd.models import spec
from detsd.models.spec import load_token_tables
from detsd.utils import fonts
from detsd.utils.errors import UserError


def shown(path, model: str | None = None) -> str:
    """Return the output of `detsd show`."""
    return report(describe(path, model))


@pytest.fixture(scope="module")
def table(tiny_model):
    return load_token_tables(ModelConfig(str(tiny_model)))[0]


@pytest.fixture
def checkpoint(tmp_path, tiny_model, table):
    """Write a concept whose rows are those of `red` and twice those of `ball`."""
    tokenizer, rows = table
    red, ball = tokenizer("red ball", add_special_tokens=False).input_ids
    concept = LearnedConcept("blob-thing", "red ball", (torch.stack([rows[red], 2 * rows[ball]]),))
    other = LearnedConcept("other-thing", "dog", (torch.ones(1, 16),))
    write_concepts([concept, other], tmp_path)
    model = {"pretrained_model_name_or_path": str(tiny_model), "revision": None}
    facts = {"kind": "finetune", "steps_completed": 40, "config": {"model": model}}
    (tmp_path / "metadata.json").write_text(json.dumps(facts))
    return tmp_path


def test_a_checkpoint_is_compared_with_the_model_it_was_trained_on(checkpoint, tiny_model, table):
    text = shown(checkpoint)
    head, blob, other = text.split("\n\n")
    assert "2 concepts, after 40 steps" in head
    assert f"base model: {tiny_model} (trained on it)" in head
    assert f"{len(table[1])} rows, norm {table[1].norm(dim=1).mean():.3f}" in head
    assert "blob-thing\n  vectors: 2 of width 16\n  initializer: red ball\n" in blob
    first, second = (line.split() for line in blob.splitlines()[-2:])
    assert first[2:6] == ["red", "1.00", "red", "1.00,"]  # began as, nearest
    assert second[2:6] == ["ball", "1.00", "ball", "1.00,"]
    token = table[0]("ball", add_special_tokens=False).input_ids[0]
    assert float(second[1]) == pytest.approx(2 * float(table[1][token].norm()), abs=1e-3)
    assert other.startswith("other-thing\n  vectors: 1 of width 16\n  initializer: dog\n")


def test_a_file_of_a_checkpoint_says_the_same_of_its_concept(checkpoint):
    whole = shown(checkpoint / "learned_embeddings_dict.pt").split("\n\n")
    alone = shown(checkpoint / "blob-thing.safetensors").split("\n\n")
    assert alone[0].startswith(f"{checkpoint / 'blob-thing.safetensors'}: 1 concept, after 40")
    assert alone[1] == whole[1]


def test_the_bundled_concept_needs_no_model(capsys):
    assert main(["show", str(ROOT / "learned_embeddings_dict_demo.pt")]) == 0
    text = capsys.readouterr().out
    assert "base model: demo_model, the bundled one (width 128)" in text
    assert "det-logo-demo\n  vectors: 11 of width 128" in text
    assert "initializer: brain logo, sharp lines, connected circles, concept art" in text
    assert len(text.split("\n\n")[1].splitlines()) == 5 + 11


def test_a_file_of_another_tool_is_told_by_its_width(tmp_path, tiny_model):
    save_file({"cat-toy": torch.ones(2, 768)}, tmp_path / "learned_embeds.safetensors")
    text = shown(tmp_path / "learned_embeds.safetensors")
    assert "base model: Stable Diffusion 1.x" in text
    assert "name the base model with --model" in text
    assert "cat-toy\n  vectors: 2 of width 768\n  initializer: unknown" in text
    assert "norms: 27.713  27.713" in text
    with pytest.raises(UserError, match="vectors of width 16, .*safetensors of width"):
        shown(tmp_path / "learned_embeds.safetensors", str(tiny_model))


def test_a_base_model_that_is_gone_is_no_reason_to_say_nothing(checkpoint):
    facts = json.loads((checkpoint / "metadata.json").read_text())
    facts["config"]["model"]["pretrained_model_name_or_path"] = "/nowhere/model"
    (checkpoint / "metadata.json").write_text(json.dumps(facts))
    text = shown(checkpoint)
    assert "no comparison with the vocabulary" in text
    assert "/nowhere/model" in text
    assert "initializer: red ball" in text
    with pytest.raises(UserError, match="/nowhere/other"):
        shown(checkpoint, "/nowhere/other")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.pt", None, "does not exist; name a concept file, a checkpoint or a run folder"),
        ("noise.pt", b"\0noise", "is a damaged file, or one of an unknown kind"),
        ("noise.safetensors", b"noise", "is a text file, not a concept"),
        ("metadata.json", b"{", "is a text file, not a concept"),
    ],
)
def test_what_is_no_concept_file(tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["show", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert name in error
    assert "Traceback" not in error


@pytest.mark.parametrize("name", ["uuid:", "model:", "model:=x"])
def test_a_checkpoint_without_a_name(capsys, name):
    """As an unset shell variable leaves it; it does not stand for the current folder."""
    assert main(["show", name]) == 2
    assert capsys.readouterr().err.startswith(f"detsd: {name} does not exist; name a concept file")


def test_a_file_for_two_text_encoders(tmp_path):
    """Each width is separate; the bundled model's vocabulary is used where it fits."""
    concepts = {"small-thing": torch.ones(1, 128), "large-thing": torch.ones(2, 768)}
    save_file(concepts, tmp_path / "two.safetensors")
    head, *parts = shown(tmp_path / "two.safetensors").split("\n\n")
    assert "demo_model, the bundled one (width 128)" in head
    assert "base model: Stable Diffusion 1.x (width 768)" in head
    large, small = sorted(parts)
    assert "norms: 27.713  27.713" in large
    assert "nearest words" in small


@pytest.mark.parametrize(
    "metadata", ['{"kind": "generate", "steps_completed": 480, "config": {}}', "[]", "{"]
)
def test_metadata_that_is_not_the_concepts_own(checkpoint, metadata):
    (checkpoint / "metadata.json").write_text(metadata)
    for path in (checkpoint, checkpoint / "blob-thing.safetensors"):
        text = shown(path)
        assert "steps" not in text
        assert "trained on it" not in text
        assert "initializer: red ball" in text


def test_a_model_is_fetched_only_when_named(checkpoint, monkeypatch):
    asked, find = [], spec.resolve_files
    monkeypatch.setattr(spec, "resolve_files", lambda *a: asked.append(a) or find(*a))
    facts = json.loads((checkpoint / "metadata.json").read_text())
    facts["config"]["model"]["pretrained_model_name_or_path"] = "nobody/never-fetched"
    (checkpoint / "metadata.json").write_text(json.dumps(facts))
    assert "--model nobody/never-fetched fetches it from the hub" in shown(checkpoint)
    assert asked.pop()[-1] is False
    with pytest.raises(UserError, match="nobody/never-fetched is not a folder here"):
        shown(checkpoint, "nobody/never-fetched")
    assert asked.pop()[-1] is True


def test_json_says_what_the_text_says(checkpoint, capsys):
    assert main(["show", str(checkpoint), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == describe(checkpoint)
    assert report(facts) == shown(checkpoint)
    assert facts["steps"] == 40
    assert [c["name"] for c in facts["concepts"]] == ["blob-thing", "other-thing"]
    ((encoder,), _) = (c["text_encoders"] for c in facts["concepts"])
    assert encoder["width"] == 16
    learned = read_concepts(checkpoint)[0].embeddings[0]
    assert [row["norm"] for row in encoder["rows"]] == pytest.approx(learned.norm(dim=1).tolist())
    for row, word in zip(encoder["rows"], ("red", "ball"), strict=True):
        cosines = [near["cosine"] for near in row["nearest"]]
        assert cosines == sorted(cosines, reverse=True)
        assert len(cosines) == 5
        assert row["began_as"] == row["nearest"][0] == {"word": word, "cosine": cosines[0]}


def test_a_run_folder_stands_for_its_newest_checkpoint(checkpoint, tmp_path):
    run = tmp_path / "run"
    for step in (20, 40):
        shutil.copytree(checkpoint, run / "checkpoints" / f"step-{step:08d}",
                        ignore=shutil.ignore_patterns("run"))  # fmt: skip
    facts = describe(run)
    assert "step-00000040" in facts.pop("source")
    known = describe(checkpoint)
    del known["source"]
    assert facts == known


def test_a_picture_shows_words_of_any_letters(tmp_path, monkeypatch, caplog, recwarn):
    """Vocabularies of hub models have words such as `$$` and 日本."""
    from matplotlib import font_manager, get_data_path

    other = f"{get_data_path()}/fonts/ttf/LastResortHE-Regular.ttf"  # has all characters
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [other])
    fonts._file.cache_clear()
    fonts._installed.cache_clear()
    near = [{"word": word, "cosine": 0.5} for word in ("$$", "日本", "a$b$")]
    row = {"norm": 1.0, "began_as": {"word": "$$", "cosine": 1.0}, "nearest": near}
    encoder = {"rows": [row, row], "width": 64}
    facts = {
        "concepts": [{"name": "$x^{$ 日", "text_encoders": [encoder]}],
        "vocabularies": [{"norm_low": 0.5, "norm_high": 1.5}],
    }
    plot(facts, tmp_path / "words.png")
    fonts._file.cache_clear()
    fonts._installed.cache_clear()
    with Image.open(tmp_path / "words.png") as picture:
        assert min(picture.size) > 100
    assert not caplog.records
    assert not [w for w in recwarn if "lyph" in str(w.message)]


def test_a_picture_of_rows_and_words(checkpoint, tmp_path, capsys):
    file = tmp_path / "new" / "rows.png"
    assert main(["show", str(checkpoint), "--plot", str(file)]) == 0
    assert f"picture: {file}" in capsys.readouterr().out
    with Image.open(file) as picture:
        assert min(picture.size) > 100
        colours = {pixel for _, pixel in picture.convert("RGB").getcolors(1 << 20)}
    assert (59, 111, 182) in colours  # bars
    foreign = tmp_path / "foreign.safetensors"
    save_file({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, foreign)
    plot(describe(foreign), tmp_path / "two.png")  # no vocabulary to compare with, two encoders
    assert main(["show", str(checkpoint), "--plot", str(tmp_path / "rows.nonsense")]) == 2
    assert main(["show", str(checkpoint), "--plot", f"{file}/rows.png"]) == 2
    said = capsys.readouterr().err
    assert "rows.nonsense" in said
    assert f"{file} cannot be used (File exists)" in said
