"""Evaluations: known answers, any number of ranks, interruptions, mistakes."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from forked import in_two_ranks
from PIL import Image
from tiny import ROOT, save_tiny_clip
from transformers import CLIPTokenizer

from detsd.__main__ import main
from detsd.cli.evaluate import evaluation_config
from detsd.cli.parser import parser
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.writing import write_concepts
from detsd.config import (
    EvaluateConfig,
    EvaluationConfig,
    LearnedConceptsConfig,
    ModelConfig,
    load_config,
)
from detsd.data.templates import EDITS, PLAIN
from detsd.evaluate import evaluation
from detsd.evaluate.report import table
from detsd.evaluate.samples import find_sample_sets
from detsd.models import loading
from detsd.models.spec import load_token_tables
from detsd.runs import download
from detsd.utils.errors import UserError
from detsd.utils.png import read

SMALL = {
    "num_samples": 3, "num_samples_per_prompt": 1, "num_inference_steps": 2,
    "num_error_timesteps": 5, "prompts": '["a {} on the grass", "pixel art of a {}"]',
}  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def lookalikes(tmp_path_factory) -> list[Path]:
    """Write two sets of plain pictures, clearly different from noise."""
    folders = []
    for colour in ("red", "navy"):
        folders.append(tmp_path_factory.mktemp("lookalikes") / colour)
        folders[-1].mkdir()
        for k in range(3):
            Image.new("RGB", (40 + k, 40), colour).save(folders[-1] / f"{k}.png")
    return folders


@pytest.fixture
def initializer_vectors(tiny_model) -> torch.Tensor:
    """Return the rows of "red ball"."""
    ((tokenizer, table),) = load_token_tables(ModelConfig(str(tiny_model)))
    assert isinstance(tokenizer, CLIPTokenizer)
    return table[tokenizer("red ball", add_special_tokens=False).input_ids].clone()


@pytest.fixture
def run(experiment, tmp_path, initializer_vectors) -> Path:
    """Make a fine-tuning's folder: the rows are the phrase's at step 4, and others at step 8."""
    config = load_config(experiment())
    folder = tmp_path / "my-run"
    for step, rows in ((4, initializer_vectors), (8, initializer_vectors.flip(0) * 3)):
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        concept = LearnedConcept("blob-thing", "red ball", (rows,), steps=step)
        write_concepts([concept], checkpoint)
        facts = {"kind": "finetune", "steps_completed": step, "config": dataclasses.asdict(config)}
        (checkpoint / "metadata.json").write_text(json.dumps(facts))
    return folder


def call(*arguments, **settings) -> int:
    """Run a command line in this process, at a small size; return its exit code."""
    pairs = (f"evaluation.{key}={value}" for key, value in (SMALL | settings).items())
    sets = [word for pair in pairs for word in ("--set", pair)]
    return main(["evaluate", *map(str, arguments), "--set", "output.batch_size=4", *sets])


def figures(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_all_checkpoints_of_a_run(run, clip, lookalikes, tmp_path, capsys, initializer_vectors):
    out = tmp_path / "out"
    given = [run, "--all-checkpoints", "--clip", clip, "--output-dir", out, "--lineup", *lookalikes]
    assert call(*given) == 0
    said = capsys.readouterr().out
    (found,) = figures(out)["concepts"]
    early, late = found["states"]
    # The phrase's own rows score exactly as the phrase.
    shared = found["phrase"].keys() - {"label", "phrase"}
    assert {
        "clip_image_similarity",
        "lineup",
        "denoising_error",
        "denoising_error_800_1000",
    } < shared
    assert all(early[key] == found["phrase"][key] for key in shared)
    assert any(late[key] != found["phrase"][key] for key in shared)
    assert (early["label"], late["label"]) == ("blob-thing, 4 steps", "blob-thing, 8 steps")
    assert found["phrase"]["phrase"] == "red ball"
    # Its own pictures are distinguished from the look-alikes.
    assert found["training_images"]["lineup"] > 0.6
    assert found["lineup"]["chance"] == pytest.approx(1 / 3)
    ends = found["anchors"]
    assert ends["image_low"] == found["phrase"]["clip_image_similarity"]
    assert ends["text_high"] == found["phrase"]["clip_text_similarity"]
    assert ends["text_low"] == found["training_images"]["clip_text_similarity"]
    assert found["best"] == max(found["states"], key=lambda state: state["score"])["label"]
    # Rows beside the vocabulary.
    rows = early["text_encoders"][0]["rows"]
    assert [row["norm"] for row in rows] == pytest.approx(initializer_vectors.norm(dim=1).tolist())
    assert [row["began_as"]["cosine"] for row in rows] == pytest.approx([1, 1])
    # The pictures for people.
    for label in (
        "training images",
        "the initializer",
        "blob-thing, 4 steps",
        "blob-thing, 8 steps",
    ):
        assert f"\n{label} " in said
    assert f"{early['clip_image_similarity']:.3f}" in said
    assert "best: blob-thing" in said
    assert "33% by chance" in said
    assert "unknown" not in said
    found["training_images"]["lineup"] = None  # of look-alikes with one image
    assert "whose accuracy is unknown: a folder has" in table({"concepts": [found]})
    for name in ("evaluation.png", "samples.png"):
        assert min(read(out / name).size) > 200
    assert len(list((out / "sheets").iterdir())) == 3  # for the phrase and both states
    assert len(list((out / "images").glob("*.png"))) == 3 * (3 + 2)
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    scores = [line["score"] for line in lines if line["group"] == "evaluation"]
    assert scores == [early["score"], late["score"]]


def test_an_interrupted_evaluation_goes_on(run, clip, tmp_path):
    out = tmp_path / "out"
    given = [run, "--clip", clip, "--output-dir", out]
    assert call(*given) == 0
    whole = (out / "evaluation.json").read_bytes()
    (out / "evaluation.json").unlink()
    gone = [out / "images" / f"job-{k:05d}.png" for k in (2, 3, 7)]
    for path in gone:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "images").glob("*.png")}
    assert call(*given) == 0
    assert (out / "evaluation.json").read_bytes() == whole
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert call(*given, first_seed=5) == 2  # other samples do not belong there


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(run, clip, tmp_path):
    given = [run, "--clip", clip, "--output-dir"]
    in_two_ranks(tmp_path, lambda: call(*given, tmp_path / "two"))
    assert call(*given, tmp_path / "one") == 0
    assert figures(tmp_path / "two") == figures(tmp_path / "one")


def test_edited_prompts_may_hold_other_braces(run):
    """Each {} is the concept; other braces are text, as in any prompt."""
    prompts = ["a {} in {red|blue}", "a {} beside a {}", "a {} }", "{0} and {}"]
    config = EvaluateConfig(
        ModelConfig("tiny"), LearnedConceptsConfig([str(run)]),
        evaluation=EvaluationConfig(
            str(ROOT / "det_logos"), prompts=prompts, num_samples=1, num_samples_per_prompt=1
        ),
    )  # fmt: skip
    _, concept = find_sample_sets(config)
    assert [job.prompt for job in concept.jobs[1:]] == [
        "a blob-thing in {red|blue}", "a blob-thing beside a blob-thing", "a blob-thing }",
        "{0} and blob-thing",
    ]  # fmt: skip


def test_the_words_and_labels_of_many_sources(run, tmp_path, initializer_vectors):
    """The sources are two states of a run, a copy, and a file of an object and a style."""
    shutil.copytree(run, tmp_path / "copy")
    two = [
        LearnedConcept(name, "blue box", (initializer_vectors,))
        for name in ("blob-thing", "zyx-two")
    ]
    (tmp_path / "file").mkdir()
    write_concepts(two, tmp_path / "file")
    files = [run / "checkpoints" / "step-00000004", run, tmp_path / "copy", tmp_path / "file"]
    config = EvaluateConfig(
        ModelConfig("tiny"), LearnedConceptsConfig([str(f) for f in files]),
        evaluation=EvaluationConfig(str(ROOT / "det_logos")),
    )  # fmt: skip
    sample_sets = find_sample_sets(config)
    words = [sample_set.concept.name for sample_set in sample_sets if sample_set.concept]
    assert len(set(words)) == 5
    assert "blob-thing-4" in words
    assert words[-1] == "zyx-two"
    labels = [sample_set.label for sample_set in sample_sets]
    assert labels[1:4] == ["my-run, 4 steps", "my-run, 8 steps", "copy, 8 steps"]
    write_concepts([dataclasses.replace(two[1], steps=1)], tmp_path / "file")
    alone = LearnedConceptsConfig([str(tmp_path / "file")])
    after_one = find_sample_sets(dataclasses.replace(config, concepts=alone))
    assert after_one[1].label == "zyx-two, 1 step"
    assert (
        labels.count("the initializer") == 3
    )  # one for each initializer, and each word that it replaces
    # Runs with the same name are numbered in the order given.
    shutil.copytree(run, tmp_path / "other" / run.name)
    files = LearnedConceptsConfig([str(run), str(tmp_path / "other" / run.name)])
    same = [s.label for s in find_sample_sets(dataclasses.replace(config, concepts=files))]
    assert same[1:] == ["blob-thing, 8 steps (no. 1)", "blob-thing, 8 steps (no. 2)"]
    seeds = {(job.seed, job.prompt.replace(words[0], "red ball")) for job in sample_sets[1].jobs}
    assert seeds == {(job.seed, job.prompt) for job in sample_sets[0].jobs}


def test_checkpoints_of_the_cluster(run, monkeypatch):
    asked = []

    def cached_checkpoint(uuid):
        asked.append(uuid)
        return run / "checkpoints" / "step-00000008"

    monkeypatch.setattr(download, "cached_checkpoint", cached_checkpoint)
    words = [UUID, f"{UUID[:-1]}0=my-word"]
    args = parser().parse_args(["evaluate", *words, "--images", "det_logos", "--model", "tiny"])
    config = evaluation_config(args)[0]
    assert (config.concepts.files, config.concepts.uuids) == ([], words)
    sample_sets = [sample_set for sample_set in find_sample_sets(config) if sample_set.concept]
    assert asked == [UUID, f"{UUID[:-1]}0"]
    assert [sample_set.concept.name for sample_set in sample_sets] == ["blob-thing", "my-word"]
    assert [sample_set.source for sample_set in sample_sets] == [
        f"uuid:{UUID}",
        f"uuid:{UUID[:-1]}0=my-word",
    ]


def test_the_prompts_name_the_concept():
    assert len(EDITS["dreambooth"]) == len(set(EDITS["dreambooth"])) == 25
    assert all(prompt.count("{}") == 1 for prompts in EDITS.values() for prompt in prompts)
    assert not set(PLAIN.values()) & {prompt for prompts in EDITS.values() for prompt in prompts}


def test_each_concept_of_a_run_has_its_own_ground(run, photos, tmp_path):
    """The second one has its own pictures, kind, and held-out images."""
    path = run / "checkpoints" / "step-00000008"
    facts = json.loads((path / "metadata.json").read_text())
    c = facts["config"]["concepts"]
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    c |= {
        "concept_strs": ["blob-thing", "zyx-two"], "img_dirs": [str(photos), str(other)],
        "initializer_strs": ["red ball"] * 2, "learnable_properties": ["object", "style"],
    }  # fmt: skip
    (path / "metadata.json").write_text(json.dumps(facts))
    rows = torch.ones(1, 16)
    write_concepts([LearnedConcept(n, "red ball", (rows,)) for n in c["concept_strs"]], path)
    config = EvaluateConfig(ModelConfig("tiny"), LearnedConceptsConfig([str(path)]))
    first, _, second, _ = find_sample_sets(config)
    assert [b.reference.folder for b in (first, second)] == [str(photos), str(other)]
    assert [b.reference.kind for b in (first, second)] == ["object", "style"]
    assert second.reference.concepts.img_dirs == [str(photos), str(other)]
    assert second.jobs[0].prompt == "a painting in the style of red ball"
    # Under another word, too, out of the run's file or its own.
    for source in (f"{path}=zyx-two=foo", f"{path}/zyx-two.safetensors=foo"):
        renamed = EvaluateConfig(ModelConfig("tiny"), LearnedConceptsConfig([source]))
        *_, last = find_sample_sets(renamed)
        assert (last.concept.name, last.reference) == ("foo", second.reference)
    c["concept_strs"] = ["blob-thing", "another"]
    (path / "metadata.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="learned blob-thing, another, none of them called zyx-two"):
        find_sample_sets(config)


def test_the_bundled_concept_as_it_stands(tmp_path, capsys):
    """The bundled model's own CLIP measures it, against its training images."""
    settings = {"num_samples": 2, "num_error_timesteps": 5}
    assert call("learned_embeddings_dict_demo.pt", "--output-dir", tmp_path, **settings) == 0
    found = figures(tmp_path)
    assert found["model"] == "demo_model"
    assert Path(found["clip"]).resolve() == ROOT / "demo_model" / "clip"
    (concept,) = found["concepts"]
    assert Path(concept["images"]).resolve() == ROOT / "det_logos"
    errors = [state["denoising_error"] for state in (concept["phrase"], *concept["states"])]
    assert errors[0] > errors[1]  # the concept was learned
    assert "det-logo-demo, " in capsys.readouterr().out


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """Fail if anything heavy is loaded."""
    monkeypatch.setattr(loading, "load_base_model", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(evaluation, "Grid", lambda *_, **__: pytest.fail("loaded"))


def change_folder(run: Path, folder: str) -> None:
    for path in run.rglob("metadata.json"):
        facts = json.loads(path.read_text())
        facts["config"]["concepts"]["img_dirs"] = [folder]
        path.write_text(json.dumps(facts))


UUID = "0b9a5b3c-52b0-4b3a-9d0e-0a1b2c3d4e5f"


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["{run}"], "evaluator.clip: {model} includes no CLIP to measure images"),
        (["{run}", "--clip", "{run}"], "evaluator.clip: {run} holds no config.json"),
        (["{file}", "--clip", "{clip}"], "{file}'s training images are not known; name"),
        (["{lost}", "--clip", "{clip}"], "{lost}'s training images are missing (folder /gone"),
        (["{run}", "--clip", "{clip}", "--images", "/gone"], "evaluation.images: folder /gone"),
        (["{run}", "--clip", "{clip}", "--lineup", "{run}"], "evaluation.lineup: folder {run}"),
        (["{run}", "--clip", "{clip}", "--lineup", "{photos}"], "lineup names only {photos}, the"),
        (["{clip}", "--clip", "{clip}"], "{clip} is a folder without a concept; name"),
        (["{wide}", "--clip", "{clip}", "--images", "{photos}"], "it has rows of width 24, but"),
        (["{run}", "--set", "evaluation.prompts=a cat"], "has 'a cat', which names no concept"),
        (["{run}", "--set", "evaluation.prompts=two {{}}s"], "underscore touches {{}}, so that"),
        (["{run}", "--set", "evaluation.prompts=a_{{}}_on_red"], "has 'a_{{}}_on_red', where"),
        (["{file}", "--all-checkpoints", "--clip", "{clip}"], "names no folder of a run with"),
        (["{root}/generate_demo.yaml"], "describes a grid of images; run it with generate"),
        ([], "nothing to evaluate was given and no cluster was found; run e.g."),
        (["--lineup", "{photos}", "{run}"], "before --lineup, which takes all that follows"),
        ([UUID, "--clip", "{clip}"], "no Determined master was found"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_a_sentence(
    run, clip, photos, tiny_model, tmp_path, capsys, monkeypatch, given, message
):
    shutil.copytree(run, tmp_path / "lost")
    change_folder(tmp_path / "lost", "/gone")
    for name, width in (("file", 16), ("wide", 24)):
        (tmp_path / name).mkdir()
        write_concepts([LearnedConcept("blob-thing", "", (torch.ones(1, width),))], tmp_path / name)
    monkeypatch.setenv("DET_MASTER", "http://127.0.0.1:9")
    names = {
        "run": run, "clip": clip, "photos": photos, "model": tiny_model, "root": ROOT,
        **{name: tmp_path / name for name in ("file", "wide", "lost")},
    }  # fmt: skip
    words = [word.format(**names) for word in given]
    if words and "generate" not in words[0]:
        words += ["--model", str(tiny_model)]
    assert main(["evaluate", *words, "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message.format(**names) in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_look_alikes_that_cannot_be_read_are_told_before_the_samples(
    run, clip, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(evaluation.Grid, "generate", lambda self: pytest.fail("samples are made"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.jpg").write_bytes(b"no picture")
    given = ["evaluate", str(run), "--clip", str(clip), "--lineup", str(tmp_path / "broken")]
    assert main([*given, "--output-dir", str(tmp_path / "out")]) == 2
    assert "evaluation.lineup: folder " in capsys.readouterr().err


def test_flagged_samples_are_not_measured(run, clip, tmp_path, monkeypatch, capsys):
    generate = evaluation.Grid.generate

    def prude(self):
        write = self.store._write
        self.store._write = lambda files: write([(n, how | {"flagged": True}, png)
                                                 for n, how, png in files])  # fmt: skip
        return generate(self)

    monkeypatch.setattr(evaluation.Grid, "generate", prude)
    assert call(run, "--clip", clip, "--output-dir", tmp_path / "out") == 2
    assert "has blacked out samples of" in capsys.readouterr().err


def test_the_command_line_and_the_file_say_the_same(tmp_path, run):
    file = tmp_path / "mine.yaml"
    experiment = yaml.safe_load((ROOT / "evaluate.yaml").read_text())
    file.write_text(yaml.safe_dump(experiment))
    args = parser().parse_args(["evaluate", str(file), "--lineup", "a", "b", "--clip", "c"])
    config, source, name = evaluation_config(args)
    assert (source, name) == (str(file), "mine")
    assert (config.evaluation.lineup, config.evaluator.clip) == (["a", "b"], "c")
    plain = evaluation_config(parser().parse_args(["evaluate", "learned_embeddings_dict_demo.pt"]))
    shipped = load_config(ROOT / "evaluate.yaml", kind=EvaluateConfig)
    assert (plain[0].evaluation, plain[0].evaluator) == (shipped.evaluation, shipped.evaluator)
    assert plain[2] == "evaluate-learned_embeddings_dict_demo"
    config, _, name = evaluation_config(parser().parse_args(["evaluate", f"{run}=my-word"]))
    assert name == "evaluate-my-run"
    for source in (run / "checkpoints" / "step-00000008", f"{run}/checkpoints/../"):
        assert evaluation_config(parser().parse_args(["evaluate", str(source)]))[2] == name
    assert config.model.pretrained_model_name_or_path != "demo_model"  # the run's own
    assert np.isclose(config.evaluation.guidance_scale, 4)
