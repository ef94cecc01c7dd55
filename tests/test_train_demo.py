"""The bundled model's training loop: resumable at any moment, with the same results."""

import argparse
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPModel

from demo_model.train import clip as contrastive
from demo_model.train import growing, loop, networks, pictures, store, tokens, unet
from demo_model.train import vae as autoencoder
from demo_model.train.__main__ import STAGES
from demo_model.train.export import export


@pytest.fixture
def args(tmp_path, monkeypatch):
    for module in (pictures, unet):
        monkeypatch.setattr(module, "CHUNK", 16)  # pictures; enough here, and quickly drawn
    monkeypatch.setattr(pictures, "HELD_OUT", 32)
    monkeypatch.setattr(unet, "CHECKED", 32)
    monkeypatch.setattr(contrastive, "BATCH", 16)
    return argparse.Namespace(
        work_dir=tmp_path,
        device="cpu",
        steps=0,
        seed=0,
        batch=32,
        rate=None,
        every=500,
        pictures=48,
        window=32,
        workers=1,
        start_from=None,
        bf16=False,
    )


def fit(args, steps, stop_after=None, rate=1e-2):
    """Train a small network on noise; optionally raise SIGTERM during a step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def loss_of(step, rng):
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.randn(16, 4, generator=rng)
        return (model(x) - x.sum(1, keepdim=True)).pow(2).mean(), {}

    loop.fit("toy", model, loss_of, args, steps, {"": rate}, lambda m: {"checked": 1.0}, every=100)
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
    with pytest.raises(loop.Stop, match="after step 138 of 300"):
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


def test_a_run_goes_on_at_another_rate(args):
    fit(args, 200)
    before = torch.load(args.work_dir / "toy.pt", weights_only=True)["model"]
    fit(args, 400, rate=0.0)
    after = torch.load(args.work_dir / "toy.pt", weights_only=True)
    assert after["step"] == 400
    assert all(torch.equal(before[key], value) for key, value in after["model"].items())


def test_stages_start_from_the_right_shapes():
    vae, unet = networks.new_vae(), networks.new_unet()
    clip = networks.new_clip(networks.load_tokenizer())
    with torch.no_grad():
        posterior = vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist
        assert posterior.mean.shape == (1, 8, 16, 16)
        hidden = clip.text_model(torch.full((1, 77), 49407)).last_hidden_state
        assert hidden.shape == (1, 77, 128)
        assert unet(posterior.mean, 5, hidden).sample.shape == (1, 8, 16, 16)


def test_a_wider_network_begins_as_the_narrower_one(args, tmp_path):
    """It has twice the latent channels; every other one is an old one with the same values."""
    torch.manual_seed(0)
    wide = networks.new_unet()
    old = UNet2DConditionModel.from_config({**wide.config, "in_channels": 4, "out_channels": 4})
    old.save_pretrained(tmp_path / "unet")
    args.start_from = tmp_path
    growing.begin(args.start_from, "unet", wide)
    x, hidden = torch.randn(1, 8, 16, 16), torch.randn(1, 77, 128)
    with torch.no_grad():
        said = wide(x, 5, hidden).sample[:, ::2]
        torch.testing.assert_close(said, old(x[:, ::2], 5, hidden).sample)


def test_export_loads_in_the_libraries(args, tmp_path):
    """Exported random weights are equal in half precision, with the text tower stored once."""
    torch.manual_seed(0)
    for name, model in (
        ("vae", networks.new_vae()),
        ("unet", networks.new_unet()),
        ("clip", networks.new_clip(networks.load_tokenizer())),
    ):
        store.store(tmp_path / f"{name}.safetensors", model.state_dict())
    (tmp_path / "scaling_factor.json").write_text("0.51234567")
    args.export_to = tmp_path / "model"
    export(args)
    pipe = StableDiffusionPipeline.from_pretrained(args.export_to, safety_checker=None)
    clip = CLIPModel.from_pretrained(args.export_to / "clip")
    assert pipe.vae.config.scaling_factor == 0.51235
    for name, model in (("vae", pipe.vae), ("unet", pipe.unet), ("clip", clip)):
        saved = load_file(tmp_path / f"{name}.safetensors")
        for key, weight in model.state_dict().items():
            assert torch.equal(weight.half(), saved[key].half()), (name, key)


def test_every_stage_runs_and_the_export_draws(args, tmp_path, monkeypatch):
    """All run a few steps on a few pictures; each leaves other stages' weights unchanged."""
    monkeypatch.setattr(autoencoder, "vae_checks", lambda args: lambda vae: {})
    for name in ("rich", "core", "held"):  # in this process: a pool takes longer
        drawn = pictures.draw_captioned((name.replace("held", "core"), 0, 0, 48))
        np.save(tmp_path / f"{name}.npy", drawn[0])
        (tmp_path / f"{name}.json").write_text(json.dumps(drawn[1]))
    args.export_to = tmp_path / "model"
    saved = {}
    args.steps = 2
    for stage in STAGES.values():
        stage(args)
        saved |= {p.name: load_file(p) for p in tmp_path.glob("*.safetensors")}
    vae, decoder = saved["vae.safetensors"], saved["decoder.safetensors"]
    changed = {k.split(".")[0] for k in vae if not torch.equal(vae[k], decoder[k])}
    assert changed == {"decoder"}
    # The captions' words changed, all others are the same.
    before, after = saved["clip.safetensors"], saved["text.safetensors"]
    table = "text_model.embeddings.token_embedding.weight"
    moved = (before[table] != after[table]).any(1).nonzero().flatten().tolist()
    said = set(tokens.all_ids(args, networks.load_tokenizer(), "core").flatten().tolist())
    said |= set(tokens.all_ids(args, networks.load_tokenizer(), "held").flatten().tolist())
    said |= set(unet.words(networks.load_tokenizer()).tolist())
    assert moved
    assert set(moved) <= said
    judge = saved["judge.safetensors"]
    assert all(torch.equal(judge[k], after[k]) for k in after)
    pipe = StableDiffusionPipeline.from_pretrained(args.export_to, safety_checker=None)
    for key, weight in pipe.text_encoder.state_dict().items():
        stored = after[key if key in after else f"text_model.{key}"]
        assert torch.equal(weight.half(), stored.half()), key


def test_start_from_an_export(args, tmp_path):
    args.start_from = networks.MODEL
    for part, model in (("vae", networks.new_vae()), ("unet", networks.new_unet())):
        growing.begin(args.start_from, part, model)
        files = (networks.MODEL / part).glob("*.safetensors")
        weights = {k: v for file in files for k, v in load_file(file).items()}
        assert all(torch.equal(v.half(), weights[k]) for k, v in model.state_dict().items())
    clip = networks.new_clip(networks.load_tokenizer())
    growing.begin(args.start_from, "clip", clip)
    text = load_file(networks.MODEL / "text_encoder" / "model.safetensors")
    assert all(torch.equal(clip.state_dict()[k].half(), v) for k, v in text.items())


# ---- a larger UNet from a smaller one ------------------------------------------------------------


def enlarged(**change):
    """Return the bundled UNet, and what it grows into with a changed configuration."""
    old, new = (
        networks.new_unet(),
        UNet2DConditionModel.from_config({**networks.new_unet().config, **change}),
    )
    for network in (old, new):
        growing.begin(networks.MODEL, "unet", network)
    x, hidden = torch.randn(2, 8, 16, 16), torch.randn(2, 77, 128)
    with torch.no_grad():
        return [network(x, torch.tensor([5, 700]), hidden).sample for network in (old, new)]


@pytest.mark.parametrize(
    "change",
    [
        {"layers_per_block": 2},
        {"layers_per_block": [2, 1, 1]},
        {
            "down_block_types": ["CrossAttnDownBlock2D"] * 3,
            "up_block_types": ["CrossAttnUpBlock2D"] * 3,
        },
    ],
    ids=["two layers", "two at the top", "attention at the top"],
)
def test_a_deeper_unet_begins_as_the_same_function(change):
    torch.manual_seed(0)
    before, after = enlarged(**change)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "most"), [(64, 0.5), (144, 0.01)])
def test_a_wider_unet_begins_nearly_as_the_same_function(width, most):
    """Norms weight the old channels equally if each is copied equally often."""
    torch.manual_seed(0)
    before, after = enlarged(block_out_channels=(width, 96, 192))
    assert (after - before).pow(2).mean() < most * before.pow(2).mean()


# ---- new pictures, and going on elsewhere --------------------------------------------------------


def window_at(args, *steps):
    torch.manual_seed(0)
    encoder = networks.new_vae().eval()
    place = torch.arange(49408)
    window = unet.Window(args, encoder, place)
    for step in steps:
        window.move_to(step)
    return window


def test_new_pictures_are_a_function_of_seed_and_step(args):
    """A step has the same samples however it is reached; another seed has others."""
    gone, jumped = window_at(args, 0, 3, 40), window_at(args, 40)
    assert sorted(gone.held) == list(pictures.chunks_of(40 * 32, args.window)) == [20, 21]
    for key in ("latents", "ids", "share"):
        assert torch.equal(getattr(gone, key), getattr(jumped, key)), key
    batches = [w.sample(41, loop.generator(0, 41)) for w in (gone, jumped)]
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    args.batch = 128  # a quarter of the steps reach the same pictures
    assert torch.equal(window_at(args, 10).latents, jumped.latents)
    args.seed = 3
    assert not torch.equal(window_at(args, 10).latents, jumped.latents)


def test_new_pictures_come_from_other_processes_as_from_this_one():
    chunks = pictures.FreshChunks(5, 2)
    try:
        images, captions, logos = chunks.draw(7)
    finally:
        chunks.close()
    mine = pictures.draw_chunk(5, 7)
    assert np.array_equal(images, mine[0])
    assert (captions, logos) == mine[1:]
    assert all(len(texts) == pictures.CAPTIONS_PER_PICTURE for texts in captions)


def test_an_export_and_its_small_file_are_enough_to_go_on(args, tmp_path):
    """Step, seed, rate and weights are read from it, without the work folder."""
    args.work_dir, args.start_from = tmp_path / "first", tmp_path / "bundled"
    kept_out = shutil.ignore_patterns("training.json", "work")
    shutil.copytree(networks.MODEL, args.start_from, ignore=kept_out)
    args.seed, args.rate, args.steps, args.export_to = 7, 1e-4, 2, tmp_path / "export"
    args.work_dir.mkdir()
    unet.train_unet(args)
    export(args)
    said = json.loads((args.export_to / "training.json").read_text())
    assert said == {"step": 2, "samples": 64, "seed": 7, "rate": 1e-4}

    args.work_dir, args.start_from = tmp_path / "second", args.export_to
    args.seed, args.rate = 0, None
    args.work_dir.mkdir()
    for file in (tmp_path / "first").glob("held.*"):  # redrawn, they would be the same
        file.rename(args.work_dir / file.name)
    with pytest.raises(loop.Stop, match="has been trained for 2 steps; ask for more with --steps"):
        unet.train_unet(args)
    args.steps = 3
    unet.train_unet(args)
    assert args.seed == 7
    state = torch.load(args.work_dir / "unet.pt", weights_only=True)
    assert (state["step"], state["start"]) == (3, 2)
    said = json.loads((args.work_dir / "training.json").read_text())
    assert said == {"step": 3, "samples": 96, "seed": 7, "rate": 1e-4}
    assert unet.read_progress(args) == said
    # The warm-up starts again: the first step moves no weight far from the export's.
    before = growing.exported(args.export_to, "unet")
    after = load_file(args.work_dir / "unet.safetensors")
    assert 0 < max((after[k] - before[k]).abs().max() for k in before) < 1e-4


def test_the_average_is_over_a_tenth_of_the_steps():
    """The standard deviation of the weights' ages is a tenth of the training's length."""
    steps = 4000
    weight, left = np.zeros(steps), 1.0
    for step in reversed(range(steps)):
        weight[step] = loop.lengthening(step) * left
        left *= 1 - loop.lengthening(step)
    assert weight.sum() == pytest.approx(1)
    mean = (weight * np.arange(steps)).sum()
    spread = np.sqrt((weight * (np.arange(steps) - mean) ** 2).sum())
    assert spread / steps == pytest.approx(0.1, rel=0.02)
