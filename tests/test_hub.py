"""Models of the hub, against a stand-in: downloads, records and messages."""

import io
import json
import shutil
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hub import serve
from huggingface_hub import constants, utils
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import save_tiny_clip
from transformers import CLIPModel

from detsd.__main__ import main
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.writing import write_concepts
from detsd.config import EvaluatorConfig, ModelConfig
from detsd.evaluate.encoders import load_encoders
from detsd.models import hub as model_hub
from detsd.models import hub_access
from detsd.models.hub import WHOLE, ModelFiles
from detsd.models.loading import load_base_model, load_safety_checker
from detsd.models.spec import resolve_model
from detsd.models.vae import pinned
from detsd.runs.folder import read_metadata
from detsd.runs.local import LocalRun
from detsd.utils.errors import UserError
from detsd.utils.png import read_record

CPU = torch.device("cpu")
NAME = "tiny/model"


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_model):
    """Yield a hub that serves the tiny model, with a new cache and no token."""
    for name in ("HF_AUTH_TOKEN", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serve() as made:
        made.add(NAME, tiny_model)
        made.tokens = {"hf_reader": {NAME}, "hf_other": set()}
        monkeypatch.setattr(constants, "ENDPOINT", made.endpoint)
        template = made.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        utils.close_session()
        yield made
    utils.close_session()


@pytest.fixture
def no_waiting(monkeypatch):
    """Record the seconds that this thread would wait, instead of waiting."""
    waits = []

    def sleep(seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():
            waits.append(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    return waits


def refusal(**config) -> str:
    with pytest.raises(UserError) as caught:
        load_base_model(ModelConfig(NAME, **config), CPU)
    return str(caught.value)


def test_only_what_is_needed_is_fetched_and_only_once(hub, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "full")
    for extra in ("README.md", "v1.ckpt", "unet/diffusion_pytorch_model.bin", "vae/x.onnx",
                  "unet/diffusion_pytorch_model.non_ema.safetensors",
                  "safety_checker/model.safetensors"):  # fmt: skip
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_text("not asked for")
    commit = hub.add(NAME, folder)
    model = load_base_model(ModelConfig(NAME), CPU)
    assert model.commit == commit
    wanted = {p.relative_to(tiny_model).as_posix() for p in tiny_model.rglob("*") if p.is_file()}
    assert sorted(hub.downloads()) == sorted(wanted)
    assert torch.equal(
        load_file(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"],
        model.unet.conv_in.weight,
    )
    hub.asked.clear()
    assert load_base_model(ModelConfig(NAME), CPU).commit == commit
    assert hub.downloads() == []


def test_another_vae_of_the_hub_is_kept_to_its_commit(hub, tiny_model):
    """The model's own VAE is not downloaded."""
    begun = hub.add("tiny/vae", tiny_model / "vae")
    model = load_base_model(ModelConfig(NAME, vae="tiny/vae"), CPU)
    assert model.settings["vae"] == f"tiny/vae@{begun}"
    assert not [name for name in hub.downloads() if name.startswith("vae/diffusion")]
    assert model.vae_file.name == "diffusion_pytorch_model.safetensors"
    newer = hub.add("tiny/vae", tiny_model / "vae")
    for vae, commit in (
        ("tiny/vae", newer),
        (model.settings["vae"], begun),
        ("tiny/vae@main", newer),
    ):
        found = load_base_model(ModelConfig(NAME, vae=vae), CPU).settings["vae"]
        assert found == f"tiny/vae@{commit}"
    assert pinned("tiny/vae", model.settings["vae"]) == f"tiny/vae@{begun}"
    assert pinned("tiny/other", model.settings["vae"]) == "tiny/other"
    assert pinned(None, model.settings["vae"]) is None
    with pytest.raises(UserError, match="model.vae: tiny/gone is neither a folder"):
        load_base_model(ModelConfig(NAME, vae="tiny/gone"), CPU)


def test_a_gated_model_says_so_with_and_without_a_token(hub, monkeypatch):
    hub.models[NAME].gated = True
    said = refusal()
    assert f"{NAME} is gated; accept its licence on {hub.endpoint}/{NAME}" in said
    assert "set HF_AUTH_TOKEN" in said
    monkeypatch.setenv("HF_AUTH_TOKEN", "hf_other")
    assert "this token's account has no access to it" in refusal()
    monkeypatch.setenv("HF_AUTH_TOKEN", "hf_reader")
    assert load_base_model(ModelConfig(NAME), CPU).commit == hub.models[NAME].main
    assert hub.seen_tokens == {"", "hf_other", "hf_reader"}


def test_a_private_or_missing_model_and_a_wrong_token_or_revision(hub, monkeypatch):
    hub.models[NAME].private = True
    assert "can be seen without a token; check the spelling, or set HF_AUTH_TOKEN" in refusal()
    monkeypatch.setenv("HF_AUTH_TOKEN", "hf_other")
    assert "nor a hub model that this token can see; check the spelling" in refusal()
    monkeypatch.setenv("HF_AUTH_TOKEN", "hf_expired")
    said = refusal()
    assert "the hub does not accept this token" in said
    assert "hf_expired" not in said
    monkeypatch.setenv("HF_AUTH_TOKEN", "hf_reader")
    assert "has no revision v9; set model.revision" in refusal(revision="v9")
    with pytest.raises(UserError, match="neither a folder here nor a hub model"):
        load_base_model(ModelConfig("outputs/a/folder"), CPU)
    monkeypatch.setenv("HF_AUTH_TOKEN", "“hf_reader”")
    assert "HF_AUTH_TOKEN holds a character that no token has" in refusal()
    assert "reader" not in refusal()


def test_a_refused_safety_checker_is_told_like_a_refused_model(hub, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "checked")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    for part in ("safety_checker", "feature_extractor"):
        (folder / part).mkdir(exist_ok=True)
        (folder / part / "config.json").write_text("{}")
        (folder / part / "model.safetensors").write_text("")
    hub.add(NAME, folder, refused="safety_checker")
    with pytest.raises(UserError, match=f"{NAME} is gated; accept its licence"):
        load_safety_checker(ModelConfig(NAME), CPU, torch.float32)


def test_what_is_no_complete_model_is_told_before_its_weights_are_fetched(
    hub, tiny_model, tmp_path
):
    folder = shutil.copytree(tiny_model, tmp_path / "pickled")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    hub.add(NAME, folder)
    assert f"{NAME} has no unet with safetensors weights on the hub" in refusal()
    other = shutil.copytree(tiny_model, tmp_path / "other")
    scheduler = other / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"epsilon"', '"sample"'))
    hub.add(NAME, other)
    assert "predicts 'sample'" in refusal()
    (other / "model_index.json").unlink()
    hub.add(NAME, shutil.copytree(other, tmp_path / "bare"))
    assert (
        f"{NAME} is not a model in the diffusers format (it has no model_index.json)" in refusal()
    )
    assert not [path for path in hub.downloads() if path.endswith(".safetensors")]


def test_mistakes_are_told_before_the_weights_are_fetched(hub, tmp_path, experiment, capsys):
    """The vocabulary shows mistakes in words; the text encoder's width shows those in concepts."""
    model = {"pretrained_model_name_or_path": NAME}
    path = experiment(model=model, concepts={"concept_strs": ["cat"]})
    assert main(["finetune", str(path), "--output-dir", str(tmp_path / "a")]) == 2
    assert "'cat' is already a word" in capsys.readouterr().err
    write_concepts([LearnedConcept("blob-thing", "", (torch.ones(1, 32),))], tmp_path)
    grid = {"model": model, "grid": {"prompts": "x"}, "concepts": {"files": str(tmp_path)}}
    (tmp_path / "grid.yaml").write_text(json.dumps({"hyperparameters": grid}))
    assert main(["generate", str(tmp_path / "grid.yaml"), "--output-dir", str(tmp_path / "b")]) == 2
    assert "32" in capsys.readouterr().err
    assert hub.downloads()
    assert not [name for name in hub.downloads() if name.endswith(".safetensors")]


def test_without_a_network_the_cache_serves_and_its_commit_is_recorded(
    hub, monkeypatch, caplog, tiny_model, no_waiting
):
    said = []
    for endpoint, offline in (("http://127.0.0.1:9", False), (hub.endpoint, True)):
        with monkeypatch.context() as cut:
            cut.setattr(constants, "ENDPOINT", endpoint)
            cut.setattr(constants, "HF_HUB_OFFLINE", offline)
            said.append(refusal())
    assert "the hub (http://127.0.0.1:9) cannot be reached (" in said[0]
    assert no_waiting == [1, 2, 4, 8, 15, 30, 60]  # and none offline
    assert caplog.text.count("retrying for up to 120 s") == 1
    assert "HF_HUB_OFFLINE forbids asking the hub" in said[1]
    for sentence in said:
        assert f"the cache {constants.HF_HUB_CACHE}" in sentence
        assert f"hf download {NAME}" in sentence
        assert "scheduler_config" not in sentence
    resolve_model(ModelConfig(NAME)).fetch("scheduler", "tokenizer", "text_encoder", "vae")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert f"{NAME} has no unet with safetensors weights among the files fetched" in refusal()
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    resolve_model(ModelConfig(NAME)).fetch("unet")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    caplog.clear()
    assert load_base_model(ModelConfig(NAME), CPU).commit == hub.models[NAME].main
    assert f"as fetched before, at {hub.models[NAME].main}" in caplog.text
    assert len(no_waiting) == 7  # cached files are used at once


@pytest.mark.parametrize("there", ["", "model_index.json", "scheduler/scheduler_config.json"])
def test_a_hub_whose_name_does_not_resolve_for_a_moment_is_asked_again(
    hub, monkeypatch, there, caplog
):
    """This holds for the first file and later ones; a refusal is reported at once."""
    waits = []

    def reach(at: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", at)
        template = at + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    def sleep(seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():
            waits.append(seconds)
            if len(waits) == 2:
                reach(hub.endpoint)

    download = hub_access.hf_hub_download

    def lost(name, file, **options):  # the library has already tried five times
        if file == there and len(waits) < 2:
            raise LocalEntryNotFoundError("see above") from OSError(-2, "Name is not known")
        return download(name, file, **options)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(hub_access, "hf_hub_download", lost)
    if not there:
        reach("http://nowhere.invalid")
    source = resolve_model(ModelConfig(NAME))
    source.fetch("scheduler")
    assert waits == [1, 2]
    assert caplog.text.count("cannot be reached (") == 1
    assert caplog.text.count("retrying for up to 120 s") == 1
    hub.models[NAME].private = True
    assert "neither a folder here nor a hub model" in refusal()
    assert waits == [1, 2]


def test_a_busy_hub_is_asked_again_as_late_as_it_wishes(hub, no_waiting):
    hub.busy = 2
    assert load_base_model(ModelConfig(NAME), CPU).commit == hub.models[NAME].main
    assert no_waiting == [7, 7]
    hub.busy = 3
    assert load_base_model(ModelConfig(NAME), CPU).commit == hub.models[NAME].main  # the cached one
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.busy = 8
    assert "answers 429 Too Many Requests, and the cache" in refusal()


def test_a_busy_hub_is_asked_again_by_an_older_library(hub, no_waiting, monkeypatch, caplog):
    """Before 1.0, huggingface_hub used requests, whose responses have no `reason_phrase`."""
    download = hub_access.hf_hub_download

    def busy(*names, **options):
        if no_waiting:
            return download(*names, **options)
        error = HfHubHTTPError.__new__(HfHubHTTPError, "busy")
        error.response = SimpleNamespace(status_code=503, headers={})
        raise error

    monkeypatch.setattr(hub_access, "hf_hub_download", busy)
    resolve_model(ModelConfig(NAME))
    assert no_waiting == [1]
    assert "answers 503 Service Unavailable; retrying for up to 120 s" in caplog.text


def test_a_connection_that_is_cut_goes_on_where_it_was_or_ends_in_a_sentence(
    hub, no_waiting, tmp_path
):
    hub.cut = 1
    assert load_base_model(ModelConfig(NAME), CPU).commit == hub.models[NAME].main
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.cut = -1
    said = refusal()
    assert "the connection to the hub broke off" in said
    assert "run the same command again" in said
    weights = [p for p in (tmp_path / "cache").rglob("*.safetensors") if p.exists()]
    assert weights == []  # files with the final name are complete
    hub.cut = 0
    load_base_model(ModelConfig(NAME), CPU)


def test_a_download_shows_that_it_moves(hub, monkeypatch, capsys):
    """It shows bars on a terminal, and lines in a log."""
    monkeypatch.setattr(model_hub, "LINE", 0.05)
    monkeypatch.setattr(model_hub, "SMALL", 0)
    hub.delay = 0.4
    load_base_model(ModelConfig(NAME), CPU)
    said = capsys.readouterr().err
    assert f"fetching {NAME}: " in said
    assert said.count(" of ") >= 2, said
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.delay = 0

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    load_base_model(ModelConfig(NAME), CPU)
    shown = sys.stderr.getvalue()
    assert "diffusion_pytorch_model.safetensors: 100%" in shown.replace("\r", "\n")


def test_no_room_is_told_before_the_download(hub, monkeypatch):
    resolve_model(ModelConfig(NAME)).fetch("scheduler")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 10))
    hub.asked.clear()
    assert "has room for 0.0 MB; make room, or set HF_HOME" in refusal()
    assert hub.downloads() == []


def test_the_commit_that_was_used_is_used_again(hub, tiny_model, tmp_path, experiment, monkeypatch):
    """This holds for a remade image, and for a resumed fine-tuning and grid."""
    first = hub.models[NAME].main
    write_concepts([LearnedConcept("blob-thing", "", (torch.ones(1, 16),))], tmp_path)
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "hyperparameters: {model: {pretrained_model_name_or_path: tiny/model}, grid: "
        "{num_inference_steps: 2, prompts: a blob-thing}, concepts: {files: "
        f"{tmp_path / 'blob-thing.safetensors'}}}}}"
    )
    assert main(["generate", str(grid), "--output-dir", str(tmp_path / "one")]) == 0
    image = tmp_path / "one" / "images" / "job-00000.png"
    assert read_record(image)["model"]["revision"] == first
    run = ["finetune", str(experiment(model={"pretrained_model_name_or_path": NAME})),
           "--output-dir", str(tmp_path / "run")]  # fmt: skip
    with monkeypatch.context() as stopped:
        steps = iter(range(1, 9))
        stopped.setattr(LocalRun, "should_stop", lambda self: next(steps) == 4)
        assert main(run) == 128
    checkpoints = tmp_path / "run" / "checkpoints"
    assert read_metadata(checkpoints / "step-00000004")["commit"] == first

    changed = shutil.copytree(tiny_model, tmp_path / "changed")
    weights = changed / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v * 1.5 for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    assert hub.add(NAME, changed) == load_base_model(ModelConfig(NAME), CPU).commit != first
    assert main(run) == 0
    assert read_metadata(checkpoints / "step-00000008")["commit"] == first
    more = [str(grid), "--set", "grid.num_seeds=2", "--output-dir", str(tmp_path / "one")]
    assert main(["generate", *more]) == 0
    assert read_record(image.with_name("job-00001.png"))["model"]["revision"] == first
    assert main(["generate", "--from", str(image), "--output-dir", str(tmp_path / "two")]) == 0
    again = tmp_path / "two" / "images" / "job-00000.png"
    assert np.array_equal(np.asarray(Image.open(image)), np.asarray(Image.open(again)))
    assert read_record(again)["model"] == read_record(image)["model"]


# ---- evaluators ----------------------------------------------------------------------------------

CLIP = "tiny/clip"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Write an evaluator's repository: weights of all kinds, with sharded safetensors."""
    folder = save_tiny_clip(tmp_path_factory.mktemp("clip"))
    model = CLIPModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    for extra in ("README.md", "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5",
                  "open_clip_model.safetensors", "model.fp16.safetensors", "onnx/model.onnx",
                  "onnx/config.json"):  # fmt: skip
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_text("not asked for")
    return folder


def evaluator_refusal(name: str = CLIP) -> str:
    """Return the message about a CLIP; that about a DINO of this name is the same."""
    said = []
    for key in ("clip", "dino"):
        with pytest.raises(UserError) as caught:
            load_encoders(EvaluatorConfig(**{key: name}), "demo_model", CPU)
        assert str(caught.value).startswith(f"evaluator.{key}: {name} ")
        said.append(str(caught.value).replace(f"evaluator.{key}: ", ""))
    assert said[0] == said[1]
    return said[0]


def test_of_an_evaluator_what_is_needed_is_fetched_and_only_once(hub, clip, monkeypatch, caplog):
    commit = hub.add(CLIP, clip)
    eye = load_encoders(EvaluatorConfig(CLIP), "demo_model", CPU)["clip"]
    assert (eye.name, eye.commit) == (CLIP, commit)
    weights = {p.name for p in clip.glob("model-*-of-*.safetensors")}
    small = {p.name for p in clip.glob("*.json")} | {p.name for p in clip.glob("*.txt")}
    fetched = hub.downloads()
    assert sorted(fetched) == sorted(weights | small - {"pytorch_model.bin.index.json"})
    assert "model.safetensors.index.json" in fetched
    pictures = [Image.new("RGB", (32, 32), "red")]
    seen = eye.image_features(pictures)
    assert torch.equal(
        seen, load_encoders(EvaluatorConfig(str(clip)), "x", CPU)["clip"].image_features(pictures)
    )
    hub.asked.clear()
    load_encoders(EvaluatorConfig(CLIP), "demo_model", CPU)
    assert hub.downloads() == []
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    again = load_encoders(EvaluatorConfig(CLIP), "demo_model", CPU)["clip"]
    assert again.commit == commit
    assert f"using {CLIP} as fetched before, at {commit}" in caplog.text
    assert torch.equal(seen, again.image_features(pictures))


def test_of_weights_that_are_there_twice_one_kind_is_taken(tmp_path):
    pieces = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    names = ["config.json", "model.fp16.safetensors", *pieces, "vae/model.safetensors"]

    def weights() -> list[str]:
        return ModelFiles("x", tmp_path, dict.fromkeys(names, 1)).weights(WHOLE)

    assert weights() == pieces
    names.append("model.safetensors")
    assert weights() == ["model.safetensors"]


def test_an_evaluator_that_cannot_be_had_is_told_like_a_model(hub, clip, monkeypatch, no_waiting):
    hub.add(CLIP, clip, gated=True)
    assert f"is gated; accept its licence on {hub.endpoint}/{CLIP}" in evaluator_refusal()
    monkeypatch.setenv("HF_AUTH_TOKEN", "hf_other")
    assert "this token's account has no access to it" in evaluator_refusal()
    misspelt = evaluator_refusal("tiny/clib")
    assert "neither a folder here nor a hub model that this token can see" in misspelt
    monkeypatch.setenv("HF_AUTH_TOKEN", "hf_expired")
    with pytest.raises(UserError, match=r"evaluator\.dino: the hub does not accept this token"):
        load_encoders(EvaluatorConfig(dino=CLIP), "demo_model", CPU)
    monkeypatch.delenv("HF_AUTH_TOKEN")
    hub.busy = 16
    assert "answers 429 Too Many Requests, and the cache" in evaluator_refusal()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = evaluator_refusal()
    assert "cannot be reached (" in said
    assert f"hf download {CLIP}" in said


def test_what_is_no_evaluator_is_told_before_its_weights_are_fetched(hub, clip, tmp_path):
    hub.add("tiny/both", clip)
    with pytest.raises(UserError, match=r"evaluator\.dino: tiny/both is .* 'clip'; name a DINO"):
        load_encoders(EvaluatorConfig(dino="tiny/both"), "demo_model", CPU)
    assert hub.downloads() == ["config.json"]
    assert f"{NAME} holds no config.json; name another model" in evaluator_refusal(NAME)
    pickled = shutil.copytree(clip, tmp_path / "pickled")
    for path in pickled.glob("model*.safetensors"):
        path.unlink()
    hub.add(CLIP, pickled)
    with pytest.raises(UserError) as caught:
        load_encoders(EvaluatorConfig(CLIP), "demo_model", CPU)
    assert str(caught.value) == (
        f"evaluator.clip: {CLIP} has no safetensors weights on the hub; use a complete model"
    )
    assert not [name for name in hub.downloads() if not name.endswith(".json")]


def test_an_evaluation_tells_of_which_commit_its_evaluator_was(hub, clip, photos, tmp_path):
    commit = hub.add(CLIP, clip)
    write_concepts([LearnedConcept("blob-thing", "", (torch.ones(1, 16),))], tmp_path)
    small = ("num_samples=1", "num_samples_per_prompt=1", "num_inference_steps=1",
             "num_error_timesteps=5", "prompts=a {}")  # fmt: skip
    sets = [word for pair in small for word in ("--set", f"evaluation.{pair}")]
    words = ["evaluate", str(tmp_path / "blob-thing.safetensors"), "--model", NAME, "--clip", CLIP]
    words += ["--images", str(photos), "--output-dir", str(tmp_path / "out"), *sets]
    assert main(words) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (found["clip"], found["clip_commit"]) == (CLIP, commit)
    assert found["commit"] == hub.models[NAME].main
    assert found["dino"] is None


def test_a_fine_tuning_measures_with_the_commits_that_it_began_with(
    hub, clip, tmp_path, experiment, capsys
):
    """Its anchors depend on them; a wrong name is reported before the base model's weights load."""
    first = hub.add(CLIP, clip)
    sections = {
        "model": {"pretrained_model_name_or_path": NAME},
        "measure": {"num_samples": 1, "num_prompts": 1},
        "training": {"num_sgd_steps": 1},
    }
    run = ["--output-dir", str(tmp_path / "run")]
    wrong = experiment("wrong.yaml", **sections, evaluator={"clip": "tiny/clib"})
    assert main(["finetune", str(wrong), *run]) == 2
    assert "evaluator.clip: tiny/clib is neither" in capsys.readouterr().err
    assert not [name for name in hub.downloads() if name.endswith(".safetensors")]

    right = experiment("right.yaml", **sections, evaluator={"clip": CLIP})
    assert main(["finetune", str(right), *run]) == 0
    assert hub.add(CLIP, shutil.copytree(clip, tmp_path / "clip")) != first
    assert main(["finetune", str(right), "--set", "training.num_sgd_steps=2", *run]) == 0
    for step in ("step-00000001", "step-00000002"):
        told = read_metadata(tmp_path / "run" / "checkpoints" / step)
        assert told["evaluators"] == {"clip": first}
