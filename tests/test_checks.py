"""Mistakes are reported before anything large is loaded or anything is written."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import SAMPLES
from tiny import ROOT, WORDS

from detsd.__main__ import main
from detsd.cli.parser import parser
from detsd.config import ModelConfig, load_config
from detsd.models.support import vocabulary
from detsd.train.preflight import check_finetune
from detsd.utils.errors import UserError
from detsd.utils.paths import find

# Command line (@ is the test's folder), message.
MISTAKES = [
    ("finetune", "no experiment file was given"),
    ("finetune @/gone.yaml", "gone.yaml does not exist"),
    ("finetune generate_demo.yaml", "describes a grid of images; run it with generate"),
    ("generate finetune_demo.yaml", "describes a fine-tuning; run it with finetune"),
    ("finetune finetune_demo.yaml --set num_sgd_steps=3", "mean 'training.num_sgd_steps'?"),
    ("generate generate_demo.yaml --set seed=3", "did you mean 'grid.seeds'?"),
    ("finetune finetune_demo.yaml --set concepts.concept_strs=cat", "already a word"),
    ("finetune finetune_demo.yaml --set concepts.img_dirs=[gone]", "gone does not exist (looked"),
    ("finetune finetune_demo.yaml --set concepts.img_dirs=[@]", "no readable image"),
    ("finetune finetune_demo.yaml --set concepts.initializer_strs=['']", "[0] is empty"),
    ("finetune finetune_demo.yaml --set concepts.initializer_strs=“ring”", "in typographic quotes"),
    ("finetune finetune_demo.yaml --set concepts.concept_strs=„my-cat“", "'„my-cat“' is in typogr"),
    ("finetune finetune_demo.yaml --set concepts.initializer_strs=[a.pt]", "a.pt does not exist"),
    ("finetune finetune_demo.yaml --set concepts.initializer_strs=[@/typo]", "typo does not exist"),
    ("finetune finetune_demo.yaml --set concepts.initializer_strs=[./typo]", "typo does not exist"),
    ("finetune finetune_demo.yaml --set concepts.initializer_strs=[docs/typo]", "does not exist"),
    ("evaluate evaluate.yaml --set evaluation.images=@/gone", "evaluate.yaml has a problem"),
    ("evaluate evaluate.yaml --set model.pretrained_model_name_or_path=./x", "./x does not exist"),
    ("finetune finetune_demo.yaml --set model.pretrained_model_name_or_path=x", "OWNER/NAME"),
    ("finetune finetune_demo.yaml --set model.pretrained_model_name_or_path=@", "model_index.json"),
    ("finetune finetune_demo.yaml --warm-start @/gone", "gone does not exist"),
    ("finetune finetune_demo.yaml --output-dir LICENSE/x", "LICENSE is not a folder"),
    ("generate generate_demo.yaml --set concepts.files=[gone.pt]", "gone.pt does not exist"),
    ("generate --from @/gone.png", "gone.png does not exist"),
    ("show @/gone.pt", "gone.pt does not exist"),
    ("export @/gone.pt --format a1111", "gone.pt does not exist"),
    ("finetune @", "it is a folder"),
    ("evaluate evaluate.yaml learned_embeddings_dict_demo.pt", "not both"),
    ("show learned_embeddings_dict_demo.pt --plot @", "give e.g. vectors.png"),
    ("show learned_embeddings_dict_demo.pt --plot @/vectors", "give e.g. vectors.png"),
    ("export learned_embeddings_dict_demo.pt --format a1111 --output LICENSE", "--output LICENSE"),
    ("download . --output-dir @", "'.' is not a checkpoint uuid"),
    ("download 0123 --output-dir LICENSE", "LICENSE is not a folder"),
    ("app --concepts @/gone.pt", "gone.pt does not exist"),
    (f"app --model ./{'a' * 5000}/demo_model", "demo_model does not exist (looked in"),
    ("app --clip-skip 99", "--clip-skip is 99 but must be at most 31"),
    ("app --clip-skip -1", "--clip-skip is -1 but must be at least 0"),
    ("app --uuid a/b", "--uuid: 'a/b' is not a checkpoint uuid"),
    ("app --allow-host http://x", "--allow-host http://x is not a host name; give the name alone"),
    ("generate --from .", ". is not a file; name an image made with detsd"),
    ("finetune docs/app.png", "docs/app.png is not a text file; name an experiment file"),
    ("generate --set grid.seeds=1", "model.pretrained_model_name_or_path is missing; Stable Diff"),
    ("generate --set grid.seeds=1", "grid.prompts is missing; prompts, with or without concepts"),
    ("finetune finetune_demo.yaml --output-dir det_logos", "folder of concepts.img_dirs[0]: the"),
    ("finetune finetune_demo.yaml --output-dir ./docs/../det_logos", "become training images; na"),
    ("app --model @/gone", "gone does not exist"),
]

CALL = """
import json, sys
from detsd.__main__ import main
from detsd.cli.parser import parser
print(json.dumps([main(line.split()) for line in json.load(sys.stdin)]))
large = {"torch", "numpy", "diffusers", "transformers", "accelerate", "gradio"} & sys.modules.keys()
sys.exit(f"loaded {large}" if large else 0)
"""


def test_mistakes_are_told_before_the_libraries_are_loaded(tmp_path):
    lines = [line.replace("@", str(tmp_path)) for line, _ in MISTAKES]
    run = subprocess.run(
        [sys.executable, "-c", CALL], cwd=ROOT, input=json.dumps(lines), capture_output=True,
        text=True, env=os.environ, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [2] * len(MISTAKES)
    said = run.stderr.split("detsd: ")[1:]
    for (line, words), text in zip(MISTAKES, said, strict=True):
        assert words in text, line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("finetun", "argument COMMAND: invalid choice: 'finetun' (choose from "),
        ("finetune a.yaml --outputdir x",
         "there is no option --outputdir; did you mean --output-dir?"),
        ("show a.pt --jsn", "there is no option --jsn; did you mean --json?"),
        ("--bogus=1", "there is no option --bogus; python -m detsd --help explains the command"),
        ("finetune a.yaml --set inference.inference_prompts=a photo",
         "'photo' is one argument too many; put a text with spaces in quotes; python -m detsd "
         "finetune --help explains the command"),
        ("export a.pt", "the following arguments are required: --format; "),
        ("app --port x", "argument --port: invalid int value: 'x'; "),
        ("finetune a.yaml --output-dir=", "argument --output-dir: it is empty; give a name; "),
        ("evaluate a.pt --images=", "argument --images: it is empty; give a name; "),
        ("app --model=", "argument --model: it is empty; give a name; "),
    ],
)  # fmt: skip
def test_a_mistake_in_the_command_line_is_a_sentence_like_all_others(capsys, line, sentence):
    """Which log_policies recognise, where an entrypoint on a cluster has one."""
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"detsd: {sentence}")


def test_windows_is_told_at_once(monkeypatch, capsys):
    """Where the modules that lock folders are missing."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["--version"]) == 2
    assert capsys.readouterr().err == (
        "detsd: detsd runs on Linux and macOS; on Windows, run it in WSL\n"
    )


def test_a_mistake_leaves_no_folder_behind(experiment, tmp_path, capsys):
    """This includes a mistake found only after the model is loaded."""
    out = tmp_path / "out"
    late = "inference.num_inference_steps=1000"
    path = str(experiment(inference=SAMPLES))
    assert main(["finetune", path, "--set", late, "--output-dir", str(out)]) == 2
    assert "num_inference_steps" in capsys.readouterr().err
    assert not out.exists()


def test_all_that_is_missing_is_told_at_once(tmp_path):
    given = yaml.safe_load((ROOT / "finetune_demo.yaml").read_text())
    given["hyperparameters"]["concepts"] |= {"concept_strs": "dog", "img_dirs": "photos"}
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(given))
    with pytest.raises(UserError) as caught:
        check_finetune(load_config(path), str(path), tmp_path)
    text = str(caught.value)
    assert "2 problems" in text
    assert "'dog' is already a word" in text
    assert f"photos does not exist (looked in {tmp_path} and in {os.getcwd()})" in text


def test_settings_without_an_effect_are_told(caplog):
    """Each is a warning; a setting that has its default value is none."""
    path = ROOT / "finetune_demo.yaml"
    values = {
        "evaluator.clip": "owner/name", "measure.num_prompts": 4, "training.weight_decay": 0.01,
        "training.plateau_ratio": 0.2, "training.adam_beta2": 0.99, "concepts.shuffle_tags": True,
    }  # fmt: skip
    given = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    check_finetune(load_config(path, given), str(path))
    assert caplog.messages == [
        "evaluator.clip, measure.num_prompts have no effect while measure.num_samples is 0; set "
        "measure.num_samples to 4 or more",
        "training.weight_decay has no effect while training.optimizer_name is 'adam'; use adamw",
        "training.plateau_ratio has no effect while training.stop_on_plateau is null; set "
        "training.stop_on_plateau to 3 to 10",
    ]
    caplog.clear()
    given += ["concepts.append_file_name_to_text=false", "training.optimizer_name=sgd"]
    given += ["measure.num_samples=4", "training.stop_on_plateau=3"]
    check_finetune(load_config(path, given), str(path))
    assert caplog.messages == [
        "training.adam_beta2 has no effect while training.optimizer_name is 'sgd'; use adam or "
        "adamw",
        "concepts.shuffle_tags has no effect while concepts.use_caption_files is false and "
        "concepts.append_file_name_to_text is false; set one of the latter two to true",
    ]
    caplog.clear()
    for path in ROOT.glob("finetune_*.yaml"):
        if path.name != "finetune_search.yaml":  # a searcher gives its values
            check_finetune(load_config(path), str(path))
    assert caplog.messages == []


def test_a_lookalike_of_one_image_is_told(tmp_path, caplog):
    shutil.copy(next((ROOT / "det_logos").glob("*.jpg")), tmp_path)
    path, given = ROOT / "finetune_demo.yaml", ["measure.num_samples=4"]
    for others, told in ((str(tmp_path), True), ("examples/ring_and_dot", False)):
        caplog.clear()
        check_finetune(load_config(path, [*given, f"measure.lineup={others}"]), str(path))
        assert (f"{tmp_path} has only one image, so the" in caplog.text) == told


def test_paths_beside_the_configuration_come_first(tmp_path, monkeypatch):
    beside, working = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (beside / "mine", working / "mine", working / "theirs"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(working)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = beside / "a.yaml"
    path.write_text((ROOT / "finetune_demo.yaml").read_text())

    def paths(name):
        config = load_config(
            path,
            [f"concepts.img_dirs={name}", f"model.pretrained_model_name_or_path={name}"],
        )
        assert config.model.pretrained_model_name_or_path == config.concepts.img_dirs[0]
        return config.concepts.img_dirs[0]

    assert paths("mine") == str(beside / "mine")
    assert paths("theirs") == "theirs"  # in the working directory
    assert paths("~/project") == str(beside)
    assert paths("nowhere/model") == "nowhere/model"  # perhaps on the hub
    # If the configuration is in the working directory, names stay as they are.
    assert find("mine/", (beside / "a.yaml").relative_to(beside).parent) == "mine/"


def test_words_are_found_in_either_file_of_a_tokenizer(tiny_model, tmp_path):
    """transformers 4 writes vocab.json, transformers 5 tokenizer.json."""
    ours, tiny = (vocabulary(ModelConfig(str(m))) for m in ("demo_model", tiny_model))
    assert ours["cat</w>"] > 0
    for word, k in tiny.items():
        assert k == ours[word] or k >= WORDS
    assert vocabulary(ModelConfig(str(tmp_path))) == {}
    assert vocabulary(ModelConfig("nobody/never-fetched")) == {}


def test_a_tilde_in_an_option_is_the_home_directory(monkeypatch, tmp_path):
    """A shell does not expand it after `=`: a folder named ~ would be created."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for command, option, name in (
        (["finetune"], "--output-dir", "output_dir"), (["finetune"], "--warm-start", "warm_start"),
        (["generate"], "--output-dir", "output_dir"), (["evaluate", "x"], "--images", "images"),
        (["show", "x"], "--plot", "plot"),
        (["export", "x", "--format", "kohya"], "--output", "output"),
    ):  # fmt: skip
        args = parser().parse_args([*command, f"{option}=~/run"])
        assert getattr(args, name) == tmp_path / "run"
    assert parser().parse_args(["finetune", "~/a.yaml"]).config == tmp_path / "a.yaml"
    for command, name in (
        (["app"], "model"), (["app"], "vae"), (["show", "x"], "model"), (["evaluate"], "model"),
        (["evaluate"], "clip"), (["evaluate"], "dino"),
    ):  # fmt: skip
        args = parser().parse_args([*command, f"--{name}=~/anime"])
        assert getattr(args, name) == str(tmp_path / "anime")
    assert parser().parse_args(["app", "--concepts=~/a.pt"]).concepts == [str(tmp_path / "a.pt")]
