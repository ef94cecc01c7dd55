"""The bundled model: its format, its size, and the meaning of its weights."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image, ImageFilter
from safetensors import safe_open
from tiny import ROOT
from transformers import CLIPModel

from demo_model import captions, evaluate, lineup, logo, world
from demo_model.train.pictures import to_tensor
from demo_model.train.vae import psnr
from detsd.concepts.reading import read_concepts

MODEL = ROOT / "demo_model"
# Below the measured values (demo_model/sheets/figures.json), far above chance.
CLIP_RIGHT = {"right_of_256": 0.65, "background": 0.8, "color": 0.5}
VAE_LOGO, CONCEPT_MARGIN = 28.0, 0.92
LINEUP = 7  # of 8
CONTROL = {"color": 0.7, "background": 0.8, "style": 0.6, "position": 0.8, "number": 0.8}
PARTS = ("vae", "text_encoder", "unet", "clip", "tokenizer", "scheduler")


@pytest.fixture(scope="module")
def pipe():
    return evaluate.load(MODEL)


def test_sizes_and_dtype():
    files = [p for part in PARTS for p in (MODEL / part).iterdir()]
    assert sum(p.stat().st_size for p in files) < 50e6
    assert max(p.stat().st_size for p in files) < 15e6
    for path in files:
        assert path.suffix in (".safetensors", ".json", ".txt")
        if path.suffix == ".safetensors":
            with safe_open(str(path), "pt") as f:
                kinds = {f.get_slice(k).get_dtype() for k in f.keys()}  # noqa: SIM118
            assert kinds == {"F16"}, path


def test_it_is_a_stable_diffusion(pipe):
    assert type(pipe) is StableDiffusionPipeline
    assert pipe.vae.config.latent_channels == 8
    assert len(pipe.tokenizer) == 49408
    assert pipe.tokenizer.model_max_length == 77
    # The first ids of CLIP's table, as in every Stable Diffusion 1.x.
    assert pipe.tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert pipe.unet.config.cross_attention_dim == pipe.text_encoder.config.hidden_size
    c = pipe.scheduler.config
    assert (c.beta_start, c.beta_end, c.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    assert c.num_train_timesteps == 1000
    assert pipe.safety_checker is None
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    assert 64 <= size <= 128


def test_the_latents_have_unit_deviation(pipe):
    images = [world.picture(4, k)[0] for k in range(64)]
    x = to_tensor(np.stack([np.asarray(i) for i in images]), "cpu")
    with torch.no_grad():
        latents = pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor
    assert 0.9 < float(latents.std()) < 1.1


def test_the_stock_pipeline_draws_as_it_is_loaded():
    stock = StableDiffusionPipeline.from_pretrained(MODEL)
    stock.set_progress_bar_config(disable=True)
    image = stock(evaluate.PROMPTS[0], num_inference_steps=2).images[0]
    assert image.size == (64, 64)
    assert np.asarray(image).std() > 10


def test_bf16_draws_nearly_the_same():
    one = evaluate.load(MODEL)
    half = evaluate.load(MODEL).to(dtype=torch.bfloat16)
    # Older torch draws other noise in bf16 than in fp32: the test gives it, and DDIM adds none.
    for p in (one, half):
        p.scheduler = DDIMScheduler.from_config(p.scheduler.config)
    x = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    images = [
        np.asarray(
            p(
                evaluate.PROMPTS[0],
                num_inference_steps=4,
                guidance_scale=4.0,
                latents=x.to(p.dtype),
            ).images[0],
            float,
        )
        for p in (one, half)
    ]
    assert abs(images[0] - images[1]).mean() < 12


def test_clip_loads_and_shares_the_text_tower(pipe):
    clip = CLIPModel.from_pretrained(MODEL / "clip").float()
    index = json.loads((MODEL / "clip" / "model.safetensors.index.json").read_text())
    stored = {f for k, f in index["weight_map"].items() if k.startswith("text_model.")}
    assert stored == {"../text_encoder/model.safetensors"}
    table = clip.text_model.embeddings.token_embedding.weight
    assert torch.equal(table, pipe.text_encoder.get_input_embeddings().weight)
    report = evaluate.clip_report(MODEL / "clip", count=32)
    for name, share in CLIP_RIGHT.items():
        assert report[f"clip_{name}"] > share, report


def test_the_vae_keeps_the_logo(pipe):
    images = [logo.picture(k)[0] for k in range(0, 44, 2)]
    x = to_tensor(np.stack([np.asarray(i) for i in images]), "cpu")
    with torch.no_grad():
        y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mode()).sample
    assert psnr(y, x) > VAE_LOGO


def test_the_list_of_words_is_the_worlds():
    said = json.loads((MODEL / "vocabulary.json").read_text())
    assert said == captions.vocabulary()


@pytest.mark.parametrize("name", lineup.CASES)
def test_the_judge_of_the_line_up_knows_every_candidate(name):
    """It recognises each from a drawing that is blurred, washed out, noisy and moved."""
    case = lineup.CASES[name]
    judge = lineup.Judge(case, "flat", "white")
    assert len(case.others) == 9
    right = 0
    for k, change in enumerate(({}, *case.others)):
        rng = np.random.default_rng(k)
        place = {"x": 0.5 + rng.uniform(-0.03, 0.03), "radius": rng.uniform(0.36, 0.43)}
        drawn = world.render(lineup.scene_of(case, "flat", "white", 5, **place, **change))
        soft = np.asarray(drawn.filter(ImageFilter.GaussianBlur(1.2)), float) * 0.8 + 40
        noisy = (soft + rng.normal(0, 12, soft.shape)).clip(0, 255).astype(np.uint8)
        right += judge(Image.fromarray(noisy)) == k
    assert right >= 9


def test_a_small_line_up_of_the_demo_concept(pipe):
    """Damaged weights, or another model's rows, draw something else; chance is one in ten."""
    denoiser = evaluate.with_concepts(
        evaluate.load(MODEL), ROOT / "learned_embeddings_dict_demo.pt"
    )
    prompt = f"a flat vector illustration of a {evaluate.CONCEPT} on a white background"
    (made,) = evaluate.draw(denoiser.pipe, [denoiser.rewrite(prompt)], range(8), steps=20)
    judge = lineup.Judge(lineup.CASES["det-logo"], "flat", "white")
    assert sum(judge(image) == 0 for image in made) >= LINEUP


def test_caption_control_on_fixed_pictures(pipe, monkeypatch):
    """A damaged weight file, or a world that no longer fits the model, gives chance (0.1)."""
    monkeypatch.setattr(evaluate, "ATTRIBUTES", tuple(CONTROL))
    control = evaluate.caption_control(evaluate.by_denoising(pipe), count=8)
    for attribute, share in CONTROL.items():
        assert control[attribute] >= share, control


def test_the_demo_concept():
    (concept,) = read_concepts(ROOT / "learned_embeddings_dict_demo.pt")
    assert concept.name == evaluate.CONCEPT
    assert concept.initializer == evaluate.PHRASE
    assert concept.embeddings[0].shape == (11, 128)


def test_the_demo_concept_beats_words():
    """On new logo pictures, its error is below the phrase's, with a full caption as well."""
    concept = ROOT / "learned_embeddings_dict_demo.pt"
    denoiser = evaluate.with_concepts(evaluate.load(MODEL), concept)
    errors = evaluate.concept_errors(denoiser, count=8)
    *vague, whole = (errors[text] for text in evaluate.BY_HAND)
    assert errors[evaluate.CONCEPT] < CONCEPT_MARGIN * errors[evaluate.PHRASE]
    assert errors[evaluate.CONCEPT] < min(vague)
    assert errors[evaluate.CONCEPT] < 1.01 * whole
