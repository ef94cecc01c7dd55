"""Configurations that are invalid, expand to huge values, or name impossible paths."""

import pytest

from detsd.config import FinetuneConfig, GenerateConfig, load_config
from detsd.config.schema import repeated
from detsd.config.yaml_text import MAX_VALUES, parse_yaml
from detsd.generate import shards
from detsd.generate.preflight import check_generate
from detsd.runs import download
from detsd.train.preflight import check_finetune
from detsd.utils.contact_sheets import _wrapped
from detsd.utils.errors import UserError

GRID = "name: x\nhyperparameters:\n  model: {pretrained_model_name_or_path: demo_model}\n"
ALIASES = "".join(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]\n" for k in range(1, 40))
MERGES = "".join(f"a{k}: &a{k} {{<<: [*a{k - 1}, *a{k - 1}]}}\n" for k in range(1, 40))


def read(tmp_path, text: str, *overrides: str, kind=GenerateConfig):
    """Load and check a configuration as the command does."""
    path = tmp_path / "e.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    config = load_config(path, list(overrides), kind)
    check = check_finetune if kind is FinetuneConfig else check_generate
    check(config, str(path), tmp_path)
    return config


@pytest.mark.parametrize(
    "lines",
    [
        "  grid: &g {prompts: *g}",
        "  grid: {prompts: &p [*p]}",
        "  grid: {prompts: [x]}\nother: &o {deep: [1, *o]}",
        "  grid: {prompts: " + "[" * 9999,
        "  grid: {prompts: " + "{a: " * 99 + "1" + "}" * 99 + "}",
        "  grid: {prompts: [x], num_seeds: {type: const}}",
        "  grid: {prompts: [x], num_seeds: {type: [1, 2]}}",
        "  grid: {? !!set {a, b} : 1}",
        "  grid: {? [a, b] : 1}",
        "  grid: {3: 1, null: 2, 2020-01-01: 3}",
        "  grid: [prompts, seeds]",
        '  grid: {prompts: ["\\ud83d"]}',
        '  grid: {"\\ud83d\\e[31m": 1}',
        "  grid: {prompts: [x]}\n  concepts: {uuids: [a/b]}",
        "  grid: {prompts: [x]}\n  concepts: {uuids: ../..}",
        "  grid: {prompts: [x]}\n  concepts: {uuids: ['', '..=word']}",
        "  grid: {prompts: [x]}\n  concepts: {files: 'uuid:../..=word'}",
        f"  grid: {{prompts: [x]}}\n  concepts: {{files: {'w' * 300}}}",
        f"  grid: {{prompts: [x]}}\n  concepts: {{files: {'w/' * 3000}c.pt=word}}",
        "  grid: {prompts: [x], " + ", ".join(f"k{k}: 1" for k in range(3000)) + "}",
    ],
)
def test_what_is_no_configuration_is_a_sentence(tmp_path, lines):
    with pytest.raises(UserError) as told:
        read(tmp_path, GRID + lines)
    assert str(tmp_path / "e.yaml") in str(told.value)
    assert len(str(told.value)) < 12_000


@pytest.mark.parametrize(
    "start", ["a0: &a0 [x, x]\n" + ALIASES, "a0: &a0 {x: 1}\n" + MERGES], ids=["lists", "merges"]
)
def test_aliases_that_stand_for_more_than_the_memory_holds_are_refused(tmp_path, start):
    with pytest.raises(UserError, match=f"more than {MAX_VALUES:,} values with aliases expanded"):
        read(tmp_path, start + GRID + "  grid: {prompts: *a39}")


def test_aliases_are_written_out_where_they_are_few():
    assert parse_yaml("a: &a {x: 5e-4, y: [1, 2]}\nb: {<<: *a, z: *a}") == {
        "a": {"x": 5e-4, "y": [1, 2]},
        "b": {"x": 5e-4, "y": [1, 2], "z": {"x": 5e-4, "y": [1, 2]}},
    }


@pytest.mark.parametrize(
    "override",
    [
        "grid.prompts=&a [*a]",
        "grid.prompts=&a {b: *a}",
        "grid.prompts={? [a, b] : 2}",
        "grid.prompts=!!set {a}",
        "grid.prompts=" + "[" * 9999,
        "grid.seeds=" + "9" * 5000,
        "grid.prompts=\udc80",
        ".".join("a" * 5000) + "=1",
        "grid=5",
        "grid.prompts.more=5",
        "..=1",
    ],
)
def test_overrides_that_are_none_are_a_sentence(tmp_path, override):
    with pytest.raises(UserError) as told:
        read(tmp_path, GRID + "  grid: {prompts: [x]}", override)
    assert len(str(told.value)) < 2000


@pytest.mark.parametrize("value", ["5", "text", "[1, 2]", "true", "1.5", "null"])
@pytest.mark.parametrize("searcher", ["", "searcher: {name: single, metric: val_loss}\n"])
def test_a_section_that_is_none_is_named(tmp_path, value, searcher):
    text = f"{searcher}{GRID}  concepts: {{}}\n  training: {value}"
    with pytest.raises(UserError, match="training must be a mapping of keys to values"):
        read(tmp_path, text, kind=FinetuneConfig)


def test_a_phrase_may_be_longer_than_a_file_name(tmp_path, photos):
    phrase = "a small red ball of wool " * 20
    config = read(
        tmp_path,
        f"{GRID}  concepts: {{concept_strs: blob-thing, img_dirs: {photos}, "
        f"initializer_strs: {phrase}}}",
        kind=FinetuneConfig,
    )
    assert config.concepts.initializer_strs == [phrase.strip()]
    for key in ("concepts.img_dirs", "model.pretrained_model_name_or_path"):
        with pytest.raises(UserError, match="does not exist"):
            read(tmp_path, GRID + "  concepts: {concept_strs: blob-thing, initializer_strs: ball, "
                 f"img_dirs: {photos}}}", f"{key}={'w/' * 3000}", kind=FinetuneConfig)  # fmt: skip


def test_repeated_values_are_found_in_one_pass():
    """An experiment may list 20,000 seeds; earlier, each was compared with all others."""

    class Seed(int):
        compared = 0
        __hash__ = int.__hash__

        def __eq__(self, other):
            Seed.compared += 1
            return int(self) == int(other)

    assert repeated([*map(Seed, range(20_000)), Seed(7), Seed(3), Seed(7)]) == [3, 7]
    assert Seed.compared < 20_000


def test_more_rungs_than_any_trials_make_is_a_warning(tmp_path, caplog):
    search = "searcher: {name: adaptive_asha, metric: images, time_metric: images, max_time: 8, "
    read(tmp_path, f"{search}max_trials: 3, max_rungs: 1000}}\n{GRID}  grid: {{prompts: [x]}}")
    assert "searcher.max_rungs: 1000 becomes 1 with max_trials: 3" in caplog.text
    assert "lower max_rungs" in caplog.text


def test_a_uuid_becomes_no_path_outside_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CACHE", tmp_path / "cache" / "checkpoints")
    (tmp_path / "cache" / "checkpoints").mkdir(parents=True)
    for uuid in ("", ".", "..", "../..", "a/b", "/etc", "a\0b", "x" * 300):
        with pytest.raises(UserError, match="not a checkpoint uuid"):
            download.cached_checkpoint(uuid)


def test_a_checkpoint_names_no_path_as_that_of_the_other_images(tmp_path, monkeypatch):
    asked = []

    def download_one(uuid, to):
        asked.append(uuid)
        to.mkdir()
        (to / "metadata.json").write_text('{"shards": ["../../elsewhere"]}')

    monkeypatch.setattr(shards, "download", download_one)
    with pytest.raises(UserError, match="damaged .'../../elsewhere' is not a checkpoint uuid"):
        shards.download_grid("given", tmp_path / "to" / "grid")
    assert asked == ["given"]
    assert not list((tmp_path / "to").iterdir())  # the same command can be given again


def test_a_word_of_thousands_of_letters_is_wrapped_in_their_time():
    lines = _wrapped("x" * 3000 + " " * 9999, 160, 14)  # it took 26 s
    assert "".join(lines) == "x" * 3000
    assert len(lines) > 100
