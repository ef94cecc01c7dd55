"""The bundled model's training loop: resumable at any moment, on the same path."""

import argparse
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from demo_model import train


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(
        work_dir=tmp_path, device="cpu", steps=0, pictures=48, start_from=None, bf16=False
    )


def fit(args, steps, stop_after=None):
    """Train a small network on noise; optionally raise SIGTERM in the middle of a step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def loss_of(step, rng):
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.randn(16, 4, generator=rng)
        return (model(x) - x.sum(1, keepdim=True)).pow(2).mean(), {}

    train.fit("toy", model, loss_of, args, steps, {"": 1e-2}, lambda m: {"checked": 1.0}, every=100)
    return model


@pytest.fixture(autouse=True)
def signals():
    kept = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_stop_and_resume_is_bit_exact(args, tmp_path):
    undisturbed = argparse.Namespace(**vars(args) | {"work_dir": tmp_path / "undisturbed"})
    undisturbed.work_dir.mkdir()
    whole = fit(undisturbed, 300)
    with pytest.raises(train.Stop, match="after step 138 of 300"):
        fit(args, 300, stop_after=137)
    resumed = fit(args, 300)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_can_be_prolonged(args):
    """The rate falls only at the end, so more steps continue the same path."""
    fit(args, 200)
    state = torch.load(args.work_dir / "toy.pt", weights_only=True)
    assert state["step"] == 200
    fit(args, 400)
    assert torch.load(args.work_dir / "toy.pt", weights_only=True)["step"] == 400
    log = (args.work_dir / "toy.log").read_text().splitlines()
    assert [line.split('"step": ')[1].split(",")[0] for line in log] == ["100", "200", "300", "400"]


def test_stages_start_from_the_right_shapes():
    vae, unet = train.new_vae(), train.new_unet()
    clip = train.new_clip(train.load_tokenizer())
    with torch.no_grad():
        posterior = vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist
        assert posterior.mean.shape == (1, 8, 16, 16)
        hidden = clip.text_model(torch.full((1, 77), 49407)).last_hidden_state
        assert hidden.shape == (1, 77, 128)
        assert unet(posterior.mean, 5, hidden).sample.shape == (1, 8, 16, 16)


def test_a_wider_network_begins_as_the_narrower_one(args, tmp_path):
    """Twice the latent channels, of which every other is an old one and is told the same."""
    torch.manual_seed(0)
    wide = train.new_unet()
    old = train.UNet2DConditionModel.from_config(
        {**wide.config, "in_channels": 4, "out_channels": 4}
    )
    old.save_pretrained(tmp_path / "unet")
    args.start_from = tmp_path
    train.begin(args, "unet", wide)
    x, hidden = torch.randn(1, 8, 16, 16), torch.randn(1, 77, 128)
    with torch.no_grad():
        said = wide(x, 5, hidden).sample[:, ::2]
        torch.testing.assert_close(said, old(x[:, ::2], 5, hidden).sample)


def test_export_loads_in_the_libraries(args, tmp_path):
    """Random weights through the export: equal to half precision, the text tower stored once."""
    torch.manual_seed(0)
    for name, model in (
        ("vae", train.new_vae()),
        ("unet", train.new_unet()),
        ("clip", train.new_clip(train.load_tokenizer())),
    ):
        train.finish(tmp_path / f"{name}.safetensors", model)
    (tmp_path / "scaling_factor.json").write_text("0.51234567")
    args.export_to = tmp_path / "model"
    train.export(args)
    pipe = train.StableDiffusionPipeline.from_pretrained(args.export_to, safety_checker=None)
    clip = train.CLIPModel.from_pretrained(args.export_to / "clip")
    assert pipe.vae.config.scaling_factor == 0.51235
    for name, model in (("vae", pipe.vae), ("unet", pipe.unet), ("clip", clip)):
        saved = load_file(tmp_path / f"{name}.safetensors")
        for key, weight in model.state_dict().items():
            assert torch.equal(weight.half(), saved[key].half()), (name, key)


def test_every_stage_runs_and_the_export_draws(args, tmp_path, monkeypatch):
    """A few steps of all of them on a few pictures; each leaves alone what is not its own."""
    monkeypatch.setattr(train, "vae_checks", lambda args: lambda vae: {})
    for name in ("rich", "core", "held"):  # drawn here: a pool of processes takes longer
        drawn = train._draw((name.replace("held", "core"), 0, 0, 48))
        train.np.save(tmp_path / f"{name}.npy", drawn[0])
        (tmp_path / f"{name}.json").write_text(train.json.dumps(drawn[1]))
    args.export_to = tmp_path / "model"
    saved = {}
    args.steps = 2
    for stage in train.STAGES.values():
        stage(args)
        saved |= {p.name: load_file(p) for p in tmp_path.glob("*.safetensors")}
    vae, decoder = saved["vae.safetensors"], saved["decoder.safetensors"]
    changed = {k.split(".")[0] for k in vae if not torch.equal(vae[k], decoder[k])}
    assert changed == {"decoder"}
    # The words of the captions moved, all others are as they were.
    before, after = saved["clip.safetensors"], saved["text.safetensors"]
    table = "text_model.embeddings.token_embedding.weight"
    moved = (before[table] != after[table]).any(1).nonzero().flatten().tolist()
    said = set(train.all_ids(args, train.load_tokenizer(), "core").flatten().tolist())
    said |= set(train.all_ids(args, train.load_tokenizer(), "held").flatten().tolist())
    assert moved
    assert set(moved) <= said
    judge = saved["judge.safetensors"]
    assert all(torch.equal(judge[k], after[k]) for k in after)
    pipe = train.StableDiffusionPipeline.from_pretrained(args.export_to, safety_checker=None)
    for key, weight in pipe.text_encoder.state_dict().items():
        stored = after[key if key in after else f"text_model.{key}"]
        assert torch.equal(weight.half(), stored.half()), key


def test_start_from_an_export(args, tmp_path):
    args.start_from = train.HERE
    for part, model in (("vae", train.new_vae()), ("unet", train.new_unet())):
        train.begin(args, part, model)
        files = (train.HERE / part).glob("*.safetensors")
        weights = {k: v for file in files for k, v in load_file(file).items()}
        assert all(torch.equal(v.half(), weights[k]) for k, v in model.state_dict().items())
    clip = train.new_clip(train.load_tokenizer())
    train.begin(args, "clip", clip)
    text = load_file(train.HERE / "text_encoder" / "model.safetensors")
    assert all(torch.equal(clip.state_dict()[k].half(), v) for k, v in text.items())
