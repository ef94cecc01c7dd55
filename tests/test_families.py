"""Stable Diffusion 1.x, 2.x and XL, compared with stock diffusers on tiny random models."""

import dataclasses
import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SAMPLES
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl
from forked import in_two_ranks
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, ROOT, ldm_vae, save_single_file, save_tiny_sdxl, vocabulary
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel
from transformers import CLIPTextModelWithProjection as CLIPTextModel2

from detsd.__main__ import main
from detsd.cli.evaluate import evaluation_config
from detsd.cli.parser import parser
from detsd.concepts.concept import FAMILIES as FAMILY_NAMES
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.prompts import prompt_warnings
from detsd.concepts.reading import read_concepts
from detsd.concepts.writing import write_concepts
from detsd.config import GenerateConfig, ModelConfig, load_config, parse_config
from detsd.data.images import frame
from detsd.generate import grid
from detsd.models import single_file
from detsd.models.base import BaseModel
from detsd.models.loading import load_base_model, load_safety_checker
from detsd.models.single_file import infer_prediction_type
from detsd.models.spec import load_token_tables, read_spec, resolve_model
from detsd.models.support import (
    model_problems,
    single_family,
    unsupported_index,
    unsupported_parts,
    without_index,
)
from detsd.runs.folder import RunFolder, read_metadata
from detsd.runs.local import LocalRun
from detsd.runs.open import open_run
from detsd.sampling.a1111 import a1111_fields
from detsd.sampling.jobs import Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.sampling.stock import make_scheduler
from detsd.train.step import TrainStep
from detsd.train.trainer import Trainer
from detsd.utils import png
from detsd.utils.errors import UserError

CPU = torch.device("cpu")
WIDTHS = {"sd1": (16,), "sd2": (24,), "sdxl": (16, 24)}
PROMPT = "a blob-thing on wood"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Save a tiny model of every family."""
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in FAMILIES.items()}


def blob(family: str) -> LearnedConcept:
    torch.manual_seed(1)
    return LearnedConcept(
        "blob-thing", "red ball", tuple(torch.randn(2, w) for w in WIDTHS[family])
    )


def stock(folder, concept: LearnedConcept | None = None):
    """Load the stock pipeline, with a concept as diffusers loads it."""
    two = (folder / "text_encoder_2").is_dir()
    pipe = (StableDiffusionXLPipeline if two else StableDiffusionPipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for rows, end in zip(concept.embeddings if concept else (), ("", "_2"), strict=False):
        parts = {"text_encoder": f"text_encoder{end}", "tokenizer": f"tokenizer{end}"}
        pipe.load_textual_inversion(
            {concept.name: rows},
            token=concept.name,
            **{name: getattr(pipe, part) for name, part in parts.items()},
        )
    return pipe


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("negative", ["", "red"])
def test_images_equal_those_of_stock_diffusers(family, negative, folders):
    concept = blob(family)
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(folders[family]))
    pipe.vocabulary.add(concept)
    job = Job(PROMPT, 7, negative, num_inference_steps=3, scheduler_name="euler", height=40)
    (made,) = pipe.make([job])
    theirs = stock(folders[family], concept)
    theirs.scheduler = make_scheduler(pipe.model, "euler")
    options = {"num_inference_steps": 3, "guidance_scale": 7.5, "height": 40, "width": 32}
    options |= {"negative_prompt": negative or None, "output_type": "np"}
    want = theirs(PROMPT, generator=torch.Generator().manual_seed(7), **options).images[0]
    assert abs(np.asarray(made.image).astype(int) - np.round(want * 255)).max() <= 1
    pipe.diffusers_pipeline.scheduler = make_scheduler(pipe.model, "euler")
    got = pipe(PROMPT, generator=torch.Generator().manual_seed(7), **options).images[0]
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_words_that_were_saved_into_a_model_keep_all_their_vectors(family, folders, tmp_path):
    """A job and a call make the same image as diffusers, which saved them."""
    own = dataclasses.replace(blob(family), name="red-ball")
    stock(folders[family], own).save_pretrained(tmp_path)
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(tmp_path))
    pipe.vocabulary.add(blob(family))
    prompt = "a red-ball beside a blob-thing"
    (made,) = pipe.make([Job(prompt, 7, num_inference_steps=2, scheduler_name="euler")])
    theirs = stock(tmp_path, blob(family))
    theirs.scheduler = make_scheduler(pipe.model, "euler")
    options = {"num_inference_steps": 2, "guidance_scale": 7.5, "output_type": "np"}
    want = theirs(prompt, generator=torch.Generator().manual_seed(7), **options).images[0]
    assert abs(np.asarray(made.image).astype(int) - np.round(want * 255)).max() <= 1
    pipe.diffusers_pipeline.scheduler = make_scheduler(pipe.model, "euler")
    got = pipe(prompt, generator=torch.Generator().manual_seed(7), **options).images[0]
    np.testing.assert_allclose(got, want, atol=1e-5)
    for encoder in pipe.vocabulary.text_encoders:
        words = encoder.tokenizer.convert_ids_to_tokens(encoder.ids([prompt])[0].tolist())
        assert {"red-ball", "red-ball_1"} <= set(words)
    pipe.vocabulary.add(dataclasses.replace(own, name="red ball"))  # its tokens are <red-ball|...>
    ids = pipe.vocabulary.token_ids(["a red ball beside a blob-thing"])[0].tolist()
    first = pipe.vocabulary.text_encoders[0].embedding.first_id
    assert [i - first for i in ids if i >= first] == [2, 3, 0, 1]
    assert all(i < first - 2 for i in ids if i < first)  # none of the saved word's ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("most", [64, 5])
def test_a_grid_of_few_prompts_drops_the_text_encoders(
    family, most, folders, tmp_path, monkeypatch
):
    """It drops them once the prompts are encoded; the images are bit-equal to those without."""
    monkeypatch.setattr(grid, "MAX_PROMPTS", most)
    concept, model = blob(family), {"pretrained_model_name_or_path": str(folders[family])}
    write_concepts([concept], tmp_path)
    given = {
        "prompts": [PROMPT, "a (blob-thing:1.3)", "a blob-thing on wood " * 20],
        "negative_prompts": ["", "(red:0.7)"],
        "num_inference_steps": 2, "guidance_scales": [1, 4], "prompt_weights": True,
    }  # fmt: skip
    sections = {"model": model, "concepts": {"files": str(tmp_path)}, "grid": given}
    with open_run(tmp_path / "out") as run:
        made = grid.Grid(parse_config(sections, "test", GenerateConfig), run)
        assert made.generate()
    sides = made.pipeline.vocabulary.text_encoders
    assert all(
        weight.is_meta == (most == 64 and "token_embedding" not in name)
        for side in sides
        for name, weight in side.encoder.named_parameters()
    )
    assert torch.equal(sides[0].embedding.rows, concept.embeddings[0])
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(folders[family]))
    pipe.load_concepts(tmp_path)
    for batch in made.batches:
        images = pipe.make([made.jobs[n] for n in batch], pad_batch_to=len(batch))
        for number, image in zip(batch, images, strict=True):
            assert np.array_equal(made.store.image(number), image.image)


@pytest.mark.parametrize("family", FAMILIES)
def test_clip_skip_is_that_of_diffusers_and_holds_for_negative_prompts(family, folders):
    concept, job = blob(family), Job(PROMPT, 7, "red", num_inference_steps=3)
    made = {}
    for skip in (0, 1):
        pipe = DetSDTextualInversionPipeline.from_pretrained(str(folders[family]), clip_skip=skip)
        pipe.vocabulary.add(concept)
        (made[skip],) = (np.asarray(m.image).astype(int) for m in pipe.make([job]))
        record = pipe.settings(job)
        assert record["model"].get("clip_skip", 0) == skip
        # A1111 counts from 1, and has no such choice for Stable Diffusion XL.
        text = png.parameters(record, a1111_fields(pipe.model, record))
        assert ("Clip skip: 2" in text) == (skip == 1 and family != "sdxl")
    assert abs(made[1] - made[0]).max() > 1
    theirs = stock(folders[family], concept)
    theirs.scheduler = make_scheduler(pipe.model, "ddim")
    if not hasattr(theirs.text_encoder, "text_model"):  # diffusers 0.42.1 looks for it in vain
        norm = theirs.text_encoder.final_layer_norm
        theirs.text_encoder.text_model = SimpleNamespace(final_layer_norm=norm)
    options = {"num_inference_steps": 3, "guidance_scale": 7.5}
    embeds = {}
    for key, prompt in (("", PROMPT), ("negative_", "red")):
        said = theirs.encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False,
            clip_skip=1,
        )  # fmt: skip
        embeds[f"{key}prompt_embeds"] = said[0]
        if family == "sdxl":
            embeds[f"{key}pooled_prompt_embeds"] = said[2]
    draw = {"generator": torch.Generator().manual_seed(7), "output_type": "np"}
    want = theirs(**embeds, **draw, **options).images[0]
    assert abs(made[1] - np.round(want * 255)).max() <= 1
    draw["generator"] = torch.Generator().manual_seed(7)
    (got,) = pipe(PROMPT, negative_prompt="red", **draw, **options).images
    np.testing.assert_allclose(got, want, atol=1e-5)
    plain = pipe(PROMPT, clip_skip=0, num_inference_steps=1, **draw | {"output_type": "latent"})
    assert plain.images.isfinite().all()  # a user who names it gets diffusers' own


def test_more_layers_than_there_are_cannot_be_left_out(folders):
    for family in FAMILIES:
        most = read_spec(resolve_model(ModelConfig(str(folders[family])))).max_clip_skip
        assert most == 1
        with pytest.raises(
            UserError, match=r"model.clip_skip is 2, but .* has only enough layers for 0 to 1"
        ):
            load_base_model(ModelConfig(str(folders[family]), clip_skip=2), CPU)


def save_vae(folder, path, **changes):
    """Write a model's VAE with other weights, as a folder, or as a file in either layout."""
    source = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    torch.manual_seed(5)
    vae = AutoencoderKL.from_config(dict(source.config) | changes)
    if path.suffix != ".safetensors":
        vae.save_pretrained(path)
    elif "original" in path.name:
        tensors = {f"first_stage_model.{k}": v for k, v in ldm_vae(vae).items()}
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path)
    else:
        save_file(vae.state_dict(), path)
    return vae


def is_loaded(model, vae) -> bool:
    got = model.vae.state_dict()
    return all(torch.equal(got[key], value) for key, value in vae.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_another_vae_is_taken_from_a_folder_or_a_file(family, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)  # no hub, not even for a configuration
    job, made = Job("a dog", 7, num_inference_steps=2), []
    for name in ("folder", "plain.safetensors", "original.safetensors", "model/vae"):
        vae = save_vae(folders[family], tmp_path / name)
        given = str(tmp_path / name.removesuffix("/vae"))
        pipe = DetSDTextualInversionPipeline.from_pretrained(str(folders[family]), vae=given)
        assert is_loaded(pipe.model, vae)
        record, file = pipe.settings(job), pipe.model.vae_file
        assert record["model"]["vae"] == given
        assert record["vae_hash"] == hashlib.sha256(file.read_bytes()).hexdigest()[:10]
        text = png.parameters(record, a1111_fields(pipe.model, record))
        assert f", VAE hash: {record['vae_hash']}, VAE: {Path(given).name}" in text
        made += [np.asarray(m.image).astype(int) for m in pipe.make([job])]
    assert all((image == made[0]).all() for image in made)
    own = DetSDTextualInversionPipeline.from_pretrained(str(folders[family]))
    assert {"vae", "vae_hash"}.isdisjoint(own.settings(job) | own.settings(job)["model"])
    (plain,) = own.make([job])
    assert abs(np.asarray(plain.image).astype(int) - made[0]).max() > 1


def test_a_run_keeps_the_vae_that_it_began_with(experiment, folders, tmp_path, capsys):
    steps = {"num_sgd_steps": 2, "checkpoint_freq": 1}
    vae, other = tmp_path / "vae.safetensors", tmp_path / "original.safetensors"
    for path in (vae, other):
        save_vae(folders["sd1"], path)
    model = {"pretrained_model_name_or_path": str(folders["sd1"]), "vae": str(vae)}
    path, out = experiment(training=steps, model=model), str(tmp_path / "out")
    assert main(["finetune", str(path), "--output-dir", out]) == 0
    said = capsys.readouterr().out
    assert f"--vae {vae}" in said
    assert f"--set model.vae={vae}" in said
    begun = ["finetune", str(path), "--output-dir", out, "--set", "training.num_sgd_steps=3"]
    assert main([*begun, "--set", f"model.vae={other}"]) == 2
    assert f"model.vae was '{vae}', is '{other}'" in capsys.readouterr().err
    moved = vae.rename(tmp_path / "moved.safetensors")
    assert main([*begun, "--set", f"model.vae={moved}"]) == 0
    facts = read_metadata(RunFolder(Path(out)).latest())
    assert (facts["steps_completed"], facts["vae"]) == (3, str(moved))
    arguments = parser().parse_args(["evaluate", out])
    assert evaluation_config(arguments)[0].model.vae == str(moved)


@pytest.mark.usefixtures("configs")
def test_a_single_file_of_a_model_takes_another_vae(folders, tmp_path):
    file = save_single_file(folders["sd1"], tmp_path / "m.safetensors")
    vae = save_vae(folders["sd1"], tmp_path / "original.safetensors")
    given = ModelConfig(str(file), vae=str(tmp_path / "original.safetensors"))
    assert is_loaded(load_base_model(given, CPU), vae)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent_channels": 8}, "has latents of 8 channels, but the UNet was trained on latents"),
        ({"scaling_factor": 0.13025}, "the scaling factor 0.13025, but the UNet was trained on"),
        ({"_class_name": "AutoencoderTiny"}, "is of the class AutoencoderTiny; name the folder"),
        ({"block_out_channels": [8, 8]}, "has 2 sizes of layers, but the UNet was trained on 3"),
    ],
)
def test_a_vae_that_does_not_fit_is_refused(changes, words, folders, tmp_path):
    shutil.copytree(folders["sd1"] / "vae", tmp_path / "vae")
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(UserError, match="model.vae: ") as error:
        load_base_model(ModelConfig(str(folders["sd1"]), vae=str(tmp_path / "vae")), CPU)
    assert words in str(error.value)


def test_files_that_are_no_vae_are_refused(folders, tmp_path):
    save_vae(folders["sd1"], tmp_path / "wide.safetensors", latent_channels=8)
    save_file({"blob-thing": torch.zeros(1, 16)}, tmp_path / "concept.safetensors")
    torch.save({}, tmp_path / "anime.vae.pt")
    whole = load_file(folders["sd1"] / "vae" / "diffusion_pytorch_model.safetensors")
    del whole["decoder.conv_out.bias"]
    save_file(whole, tmp_path / "torn.safetensors")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("wide.safetensors", "has latents of 8 channels"),
        ("concept.safetensors", "it lacks the encoder and decoder of a VAE"),
        ("anime.vae.pt", "is a pickle, which can run code"),
        ("torn.safetensors", "it lacks some tensors of a VAE"),
        ("empty", "config.json"),
    ):
        with pytest.raises(UserError, match="model.vae: ") as error:
            load_base_model(ModelConfig(str(folders["sd1"]), vae=str(tmp_path / name)), CPU)
        assert words in str(error.value)
    gone = ModelConfig(str(folders["sd1"]), vae=str(tmp_path / "gone"))
    assert "model.vae: " in model_problems(gone)[0]
    for name in ("stabilityai/sd-vae-ft-mse", "a/b@main"):
        assert model_problems(dataclasses.replace(gone, vae=name)) == []


@pytest.mark.parametrize("name", ["euler", "dpmsolver++-karras"])
def test_a_guidance_interval_is_that_of_diffusers_modular_pipeline(name, folders):
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(folders["sdxl"]), precision="fp32")
    job = Job("a dog", 7, "red", 5.0, 7, name, guidance_interval=(0.3, 0.8))
    parts = ("vae", "unet", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")
    theirs = StableDiffusionXLAutoBlocks().init_pipeline()
    theirs.update_components(
        **{part: getattr(pipe.diffusers_pipeline, part) for part in parts},
        scheduler=make_scheduler(pipe.model, name),
        guider=ClassifierFreeGuidance(5.0, start=0.3, stop=0.8),
        force_zeros_for_empty_prompt=pipe.model.force_zeros_for_empty_prompt,
    )
    size = pipe.model.image_size
    (want,) = theirs(
        prompt="a dog", negative_prompt="red", num_inference_steps=7, height=size, width=size,
        generator=job.generator, output="images",
    )  # fmt: skip
    everywhere = dataclasses.replace(job, guidance_interval=None)
    made, other = (np.asarray(m.image).astype(int) for m in pipe.make([job, everywhere]))
    assert abs(made - np.asarray(want)).max() <= 1
    assert abs(other - np.asarray(want)).max() > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_in_half_precision_is_the_image_of_the_job(family, folders):
    """GPUs make images in fp16, where Stable Diffusion XL's VAE overflows; it stays in fp32."""
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(folders[family]), precision="fp16")
    (made,) = pipe.make([Job("a dog", 7, num_inference_steps=2)])
    options = {"num_inference_steps": 2, "guidance_scale": 7.5}
    got = pipe("a dog", generator=torch.Generator().manual_seed(7), **options).images[0]
    assert abs(np.asarray(made.image).astype(int) - np.asarray(got)).max() <= 2


def test_pooled_states_are_of_the_end_token_though_added_ids_are_larger(tmp_path):
    """The real model's configurations give 2 as the end token: then the largest id counts."""
    model = load_base_model(ModelConfig(str(save_tiny_sdxl(tmp_path, eos_token_id=2))), CPU)
    model.vocabulary.add(blob("sdxl"))
    side = model.vocabulary.text_encoders[1]
    prompts = [PROMPT, "a dog"]
    ids = side.ids([model.vocabulary.rewrite(p) for p in prompts])
    assert ids[0].max() >= side.embedding.first_id
    states = side.encoder.text_model(ids).last_hidden_state  # (2, 77, D)
    want = torch.stack(
        [
            side.encoder.text_projection.weight
            @ states[k, ids[k].tolist().index(side.tokenizer.eos_token_id)]
            for k in range(2)
        ]
    )
    got = model.encode_prompts(prompts).added_cond_kwargs["text_embeds"]
    torch.testing.assert_close(got, want)


def test_stable_diffusion_xl_is_told_both_encoders_and_the_frame(folders):
    model = load_base_model(ModelConfig(str(folders["sdxl"])), CPU)
    cond = model.encode_prompts(["a dog", "a cat"], [(48, 40, 4, 0, 32, 32), (1, 2, 3, 4, 5, 6)])
    assert cond.prompt_embeds.shape == (2, 77, 40)
    assert cond.added_cond_kwargs["time_ids"].tolist() == [
        [48, 40, 4, 0, 32, 32],
        [1, 2, 3, 4, 5, 6],
    ]
    assert model.encode_prompts(["a dog"]).added_cond_kwargs["time_ids"].tolist() == [
        [32, 32, 0, 0, 32, 32]
    ]
    hidden, nothing, pooled, _ = stock(folders["sdxl"]).encode_prompt("a dog")
    torch.testing.assert_close(cond.prompt_embeds[:1], hidden)
    torch.testing.assert_close(cond.added_cond_kwargs["text_embeds"][:1], pooled)
    away = model.as_negative(model.encode_prompts(["", "red"]), ["", "red"])
    assert torch.equal(away.prompt_embeds[:1], nothing)
    assert not away.added_cond_kwargs["text_embeds"][0].any()
    assert away.prompt_embeds[1].any()
    other = dataclasses.replace(model, force_zeros_for_empty_prompt=False)
    assert other.as_negative(other.encode_prompts([""]), [""]).prompt_embeds.any()


def test_frames_say_where_a_square_was_cut_out():
    assert frame(640, 480, (32, 32), center_crop=False) == (480, 640, 0, 0, 32, 32)
    assert frame(64, 32, (32, 32), center_crop=True) == (32, 64, 0, 16, 32, 32)
    assert frame(100, 400, (50, 50), center_crop=True) == (400, 100, 75, 0, 50, 50)
    assert frame(32, 32, (32, 32), center_crop=True) == (32, 32, 0, 0, 32, 32)
    assert frame(300, 100, (48, 24), center_crop=True) == (100, 300, 0, 12, 24, 48)
    assert frame(300, 100, (48, 24), center_crop=False) == (100, 300, 0, 0, 24, 48)


@pytest.fixture
def tuned(experiment, tmp_path, folders):
    """Fine-tune a family in this process; return the exit code."""

    def run(family, out, *extra):
        file = experiment(
            model={"pretrained_model_name_or_path": str(folders[family])},
            training={"norm_reg_weight": 0.1, "hidden_reg_weight": 0.1},
            inference=SAMPLES,
        )
        return main(["finetune", str(file), "--output-dir", str(tmp_path / out), *extra])

    return run


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_every_family_is_learned_resumed_shown_and_drawn(
    family, tuned, tmp_path, folders, monkeypatch, capsys
):
    assert tuned(family, "whole") == 0
    checks = iter([False, False, False, False, False, True])  # stopped at step 6, past a checkpoint
    monkeypatch.setattr(LocalRun, "should_stop", lambda self: next(checks))
    assert tuned(family, "parts") == 128
    monkeypatch.undo()
    assert tuned(family, "parts") == 0
    said = capsys.readouterr().out
    assert "resuming after step 6" in said
    export = re.findall(r"-m detsd (export .*)$", said, re.M)[-1].split()
    assert main([*export, "--output", str(tmp_path / "exported")]) == 0  # as printed
    capsys.readouterr()
    last = "checkpoints/step-00000008"
    (whole,), (parts,) = (read_concepts(tmp_path / name / last) for name in ("whole", "parts"))
    assert whole.widths == WIDTHS[family]
    assert all(map(torch.equal, whole.embeddings, parts.embeddings))
    (start,) = read_concepts(tmp_path / "whole/checkpoints/step-00000004")
    assert not any(map(torch.equal, whole.embeddings, start.embeddings))  # in every encoder
    assert main(["show", str(tmp_path / "whole" / last)]) == 0
    assert f"of width {' and '.join(map(str, WIDTHS[family]))}" in capsys.readouterr().out
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(folders[family]))
    pipe.load_concepts(tmp_path / "whole" / last)
    (made,) = pipe.make([Job("a photo of a blob-thing", 1, num_inference_steps=2)])
    sample = tmp_path / "whole/samples/step-00000008-001.png"
    assert sample.is_file()
    assert made.image.size == (32, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_sample_outweighs_the_others(family, experiment, tmp_path, folders, monkeypatch):
    """The split of a step's samples into micro-batches makes no difference either."""
    model = {"pretrained_model_name_or_path": str(folders[family])}
    with open_run(tmp_path / "out", accelerate=True) as run:
        trainer = Trainer(load_config(experiment(model=model)), run)
    batch = trainer.next_batch(0)
    assert len(batch.prompts) == 4
    encode, states = BaseModel.encode_prompts, []

    def seen(self, *args):
        cond = encode(self, *args)
        states.append(cond.prompt_embeds)
        cond.prompt_embeds.retain_grad()
        return cond

    monkeypatch.setattr(BaseModel, "encode_prompts", seen)

    def gradients(limit, batches):
        t = {"max_sample_grad_norm": limit, "gradient_accumulation_steps": len(batches)}
        config = dataclasses.replace(trainer.config.training, **t)
        step = TrainStep(trainer.model, config, run.ranks)
        states.clear()
        for vectors in step.vectors:
            vectors.grad = None
        for each in batches:
            (step.loss(each)[0] / len(batches)).backward()
        norms = torch.cat([s.grad.flatten(1).norm(dim=1) for s in states]) * len(batch.prompts)
        return [vectors.grad for vectors in step.vectors], norms

    free, norms = gradients(None, [batch])
    limit = float(norms.median())
    whole, clipped = gradients(limit, [batch])
    assert torch.allclose(clipped, norms.clamp(max=limit), rtol=1e-4)
    assert norms.max() > 1.01 * limit > clipped.max()
    assert not any(map(torch.allclose, free, whole))
    singles = [
        dataclasses.replace(batch._each(lambda x, k=k: x[k : k + 1]), prompts=[prompt])
        for k, prompt in enumerate(batch.prompts)
    ]
    for a, b in zip(whole, gradients(limit, singles)[0], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))
    assert all(map(torch.equal, free, gradients(1e9, [batch])[0]))


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_new_rows_change(family, experiment, tmp_path, folders):
    model = {"pretrained_model_name_or_path": str(folders[family])}
    decay = {"num_sgd_steps": 2, "optimizer_name": "adamw", "weight_decay": 0.1}
    config = load_config(experiment(model=model, training=decay, inference=SAMPLES))
    with open_run(tmp_path / "out", accelerate=True) as run:
        trainer = Trainer(config, run)
        assert trainer.train()
    assert not any(map(torch.equal, trainer.step.vectors, trainer.step.initial_vectors))
    fresh = load_base_model(config.model, CPU)
    for parts in (
        lambda m: [m.unet, m.vae],
        lambda m: [s.encoder for s in m.vocabulary.text_encoders],
    ):
        for trained, untouched in zip(parts(trainer.model), parts(fresh), strict=True):
            now, before = trained.state_dict(), untouched.state_dict()
            changed = [k for k in before if not torch.equal(now[k], before[k])]
            assert [k.split(".")[-1] for k in changed] == ["rows"] * ("learned.rows" in str([*now]))
            learning = [k for k, p in trained.named_parameters() if p.requires_grad]
            assert learning == changed


def test_a_concept_of_another_family_is_refused_by_both_names(folders, tmp_path):
    write_concepts([dataclasses.replace(blob("sdxl"), model="some/xl-model")], tmp_path)
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(folders["sd2"]))
    with pytest.raises(UserError) as caught:
        pipe.load_concepts(tmp_path)
    for words in ("'blob-thing'", str(folders["sd2"]), "width 16 and 24, but the text encoder's"):
        assert words in str(caught.value)
    assert str(caught.value).endswith(
        "; it was learned on some/xl-model: name that base model, or another concept"
    )


def test_both_files_of_a_pair_are_one_concept_and_a_sentence_says_so(folders, tmp_path, capsys):
    (tmp_path / "own").mkdir()
    write_concepts([blob("sdxl")], tmp_path / "own")
    line = ["export", str(tmp_path / "own"), "--format", "diffusers", "--output", str(tmp_path)]
    assert main(line) == 0
    pair = [tmp_path / "blob-thing.safetensors", tmp_path / "blob-thing_2.safetensors"]
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(folders["sdxl"]))
    with pytest.raises(UserError, match=r"load it once .either file of a pair stands for both., o"):
        pipe.load_concepts(*pair)
    capsys.readouterr()
    assert main(["show", str(pair[0])]) == 0
    assert "\nbase model: another model (text widths 16 and 24)\n" in capsys.readouterr().out


# ---- what is supported, and what is not --------------------------------------------------------


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_the_supported_families_are_told_by_their_small_files(folders):
    for family, folder in folders.items():
        assert not unsupported_index(read(folder, "model_index.json"))
        kind = read_spec(resolve_model(ModelConfig(str(folder))))
        assert kind.widths == WIDTHS[family]
        assert kind.force_zeros_for_empty_prompt is kind.force_upcast is (family == "sdxl")
        half = kind.vae_dtype(torch.float16)
        assert half == (torch.float32 if family == "sdxl" else torch.float16)
        assert kind.vae_dtype(torch.bfloat16) == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "FluxPipeline"}, "of an unsupported kind (Flux)"),
        ({"_class_name": "StableDiffusion3Pipeline"}, "(Stable Diffusion 3)"),
        ({"_class_name": "StableDiffusionXLInpaintPipeline"}, "(Stable Diffusion XL Inpaint)"),
        ({"_class_name": "PixArtAlphaPipeline"}, "(Pix Art Alpha)"),
        ({"text_encoder": [None, None]}, "the refiner of Stable Diffusion XL"),
        ({"text_encoder": ["transformers", "XLMRobertaModel"]}, "text_encoder is XLMRobertaModel"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "its vae is AutoencoderTiny"),
    ],
)
def test_what_another_index_says(changes, words, folders):
    index = read(folders["sdxl"], "model_index.json")
    assert words in unsupported_index(index | changes)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("unet", {"in_channels": 9}, "an inpainting model (its UNet takes 9 channels"),
        ("unet", {"in_channels": 8}, "a model for editing images"),
        ("unet", {"time_cond_proj_dim": 256}, "a consistency model"),
        ("unet", {"class_embed_type": "projection"}, "takes class labels"),
        ("unet", {"addition_embed_type": None}, "no size and no pooled text"),
        ("unet", {"projection_class_embeddings_input_dim": 60}, "does not take the pooled text"),
        ("scheduler", {"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDM"),
        ("scheduler", {"prediction_type": "sample"}, "predicts 'sample'"),
    ],
)
def test_what_other_parts_say(part, changes, words, folders):
    folder = folders["sdxl"]
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    configs = {name: read(folder, f"{name}/config.json") for name in names}
    configs["scheduler"] = read(folder, "scheduler/scheduler_config.json")
    assert not unsupported_parts(configs)
    assert words in unsupported_parts(configs | {part: configs[part] | changes})


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_training_noise_does_not_depend_on_the_models_sampler(name, folders, tmp_path):
    """These samplers' own `add_noise` has the levels in reverse order before `set_timesteps`."""
    folder = shutil.copytree(folders["sd1"], tmp_path / "other-sampler")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": name}))
    t, signal, noise = torch.tensor([0, 999]), torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    first, last = load_base_model(ModelConfig(str(folder)), CPU).scheduler.add_noise(
        signal, noise, t
    )
    assert first < 0.05 < 0.99 < last


def test_an_unsupported_model_is_refused_before_its_weights_are_read(folders, tmp_path):
    """The folder has no weights: looking for them would give another sentence."""
    folder = tmp_path / "inpainting"
    shutil.copytree(folders["sd1"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = read(folder, "unet/config.json")
    (folder / "unet/config.json").write_text(json.dumps(config | {"in_channels": 9}))
    with pytest.raises(UserError, match="is an inpainting model .* detsd supports Stable Diff"):
        load_base_model(ModelConfig(str(folder)), CPU)
    shutil.copy(folders["sd1"] / "unet/config.json", folder / "unet/config.json")
    with pytest.raises(UserError, match="concept 'blob-thing' does not fit"):
        load_base_model(ModelConfig(str(folder)), CPU, [blob("sdxl")])
    (folder / "model_index.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is a LoRA, not a base model"):
        load_base_model(ModelConfig(str(folder)), CPU)
    assert "name that file" in without_index(["model.safetensors", "README.md"])
    assert "one part of a model" in without_index(["config.json", "x.safetensors"])
    assert "not a model in the diffusers format" in without_index(["README.md"])


def test_an_installed_package_puts_no_watermark_into_images(folders, monkeypatch):
    """diffusers does by default if invisible-watermark is installed."""
    there = "is_invisible_watermark_available"
    monkeypatch.setattr(pipeline_stable_diffusion_xl, there, lambda: True)
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(folders["sdxl"]))
    assert pipe.diffusers_pipeline.watermark is None


# ---- the forms that a model comes in -----------------------------------------------------------


def states(model):
    cond = model.encode_prompts(["a dog"])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = model.unet(
            noise, 500, cond.prompt_embeds, added_cond_kwargs=cond.added_cond_kwargs
        ).sample
        return cond.prompt_embeds, said, model.vae.decode(noise).sample


def test_halves_alone_load_without_being_told(folders, tmp_path):
    """A folder may have only .fp16 weights; beside full ones, these are ignored."""
    halves = save_tiny_sdxl(tmp_path / "halves", variant="fp16")
    whole = shutil.copytree(folders["sdxl"], tmp_path / "whole")
    a, b = (load_base_model(ModelConfig(str(f)), CPU) for f in (halves, whole))
    assert a.unet.dtype == a.vae.dtype == torch.float32
    for name, weight in b.unet.state_dict().items():
        assert torch.equal(a.unet.state_dict()[name], weight.half().float()), name
    for file in halves.rglob("*.fp16.safetensors"):
        shutil.copy(file, whole / file.relative_to(halves))
    c = load_base_model(ModelConfig(str(whole)), CPU)
    assert all(map(torch.equal, states(c), states(b)))
    half = load_base_model(ModelConfig(str(whole), precision="fp16"), CPU)
    assert (half.unet.dtype, half.vae.dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_weights_that_lack_a_tensor_are_refused(part, folders, tmp_path):
    """The libraries log it, initialize the tensor at random, and continue."""
    folder = shutil.copytree(folders["sd1"], tmp_path / "damaged")
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    lost = next(name for name in sorted(tensors) if name.endswith(".weight"))
    save_file({k: v for k, v in tensors.items() if k != lost}, file, {"format": "pt"})
    words = rf"damaged cannot .* weights of {part} lack 1 of its tensors, first .*{lost}\)"
    with pytest.raises(UserError, match=words):
        load_base_model(ModelConfig(str(folder)), CPU)


def test_a_text_encoder_under_other_names_is_refused(folders, tmp_path):
    """transformers 4 sees one saved by transformers 5 so: no name matches."""
    folder = shutil.copytree(folders["sd1"], tmp_path / "renamed")
    (file,) = (folder / "text_encoder").glob("*.safetensors")
    renamed = {f"other.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(renamed, file, {"format": "pt"})
    words = rf"lack {len(renamed)} of its tensors, .* another version of transformers seems"
    with pytest.raises(UserError, match=words):
        load_base_model(ModelConfig(str(folder)), CPU)


def test_a_model_saved_with_a_lora_is_refused(folders, tmp_path):
    """peft puts the layers that a LoRA changes under other names; diffusers finds none of them."""
    folder = shutil.copytree(folders["sd1"], tmp_path / "with-lora")
    (file,) = (folder / "unet").glob("*.safetensors")
    renamed = {n.replace(".to_q.", ".to_q.base_layer."): t for n, t in load_file(file).items()}
    save_file(renamed, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"unet lack .*again after unload_lora_weights\(\)"):
        load_base_model(ModelConfig(str(folder)), CPU)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_model_from_which_a_word_was_unloaded_is_read(family, folders, tmp_path):
    """diffusers took the word's rows from the table, and saved the old vocab_size."""
    folder = shutil.copytree(folders[family], tmp_path / "unloaded")
    for file in folder.glob("text_encoder*/config.json"):
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 3}))
    a, b = (load_base_model(ModelConfig(str(f)), CPU) for f in (folder, folders[family]))
    assert all(map(torch.equal, states(a), states(b)))


@pytest.mark.parametrize("read", [load_base_model, load_token_tables])
def test_a_tokenizer_without_its_vocabulary_is_refused(read, folders, tmp_path):
    """transformers 5 makes one of two tokens, for which all prompts are the same."""
    folder = shutil.copytree(folders["sd1"], tmp_path / "cut-off")
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="neither vocab.json nor tokenizer.json"):
        read(ModelConfig(str(folder)), *[CPU] * (read is load_base_model))


@pytest.fixture
def configs(tmp_path, folders, monkeypatch):
    """Replace the real configurations with those of the tiny families."""
    for family, folder in folders.items():
        small = shutil.copytree(
            folder, tmp_path / "configs" / family, ignore=shutil.ignore_patterns("*.safetensors")
        )
        pads = ("<|endoftext|>", "!") if family == "sdxl" else ("!" if family == "sd2" else None,)
        for end, pad in zip(("", "_2"), pads, strict=False):
            facts = {"pad_token": pad or "<|endoftext|>"}
            (small / f"tokenizer{end}/tokenizer_config.json").write_text(json.dumps(facts))
    file = tmp_path / "configs/sd2/scheduler/scheduler_config.json"
    scheduler = json.loads(file.read_text())
    del scheduler["prediction_type"]  # only the weights show it
    file.write_text(json.dumps(scheduler))
    monkeypatch.setattr(single_file, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(single_file, "VOCABULARY", vocabulary())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_the_folder(family, tmp_path, folders, configs):
    spec = {"modelspec.prediction_type": "v"} if family == "sd2" else None
    file = save_single_file(folders[family], tmp_path / "model.safetensors", spec)
    whole, single = (load_base_model(ModelConfig(str(p)), CPU) for p in (folders[family], file))
    for part in ("unet", "vae"):
        a, b = (getattr(model, part).state_dict() for model in (whole, single))
        assert a.keys() == b.keys()
        assert all(map(torch.equal, a.values(), b.values()))
    torch.testing.assert_close(states(whole), states(single))
    assert single.scheduler.config.prediction_type == whole.scheduler.config.prediction_type
    assert single.force_zeros_for_empty_prompt == whole.force_zeros_for_empty_prompt
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(file))  # asks for a checker, too
    pipe.vocabulary.add(blob(family))
    assert pipe.make([Job(PROMPT, 1, num_inference_steps=2)])[0].image.size == (32, 32)
    tables = load_token_tables(ModelConfig(str(file)))
    wanted = load_token_tables(ModelConfig(str(folders[family])))
    assert len(tables) == len(WIDTHS[family])
    for (tokenizer, table), (other, want) in zip(tables, wanted, strict=True):
        assert torch.equal(table, want)
        assert tokenizer.pad_token == other.pad_token


def test_the_marks_of_a_single_file_are_read(tmp_path, folders, configs):
    """Empty tensors mark v-prediction and zero terminal SNR; diffusers does not read them."""
    file = save_single_file(folders["sdxl"], tmp_path / "model.safetensors")
    plain = load_base_model(ModelConfig(str(file)), CPU)
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(load_file(file) | marks, file)
    marked = load_base_model(ModelConfig(str(file)), CPU)
    for model, kind, last in ((plain, "epsilon", 0.0047), (marked, "v_prediction", 0.0)):
        for scheduler in (model.scheduler, make_scheduler(model, "euler")):
            assert scheduler.config.prediction_type == kind
            assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(last, abs=1e-4)
    torch.testing.assert_close(states(plain), states(marked))


def test_stable_diffusion_2_is_asked_what_it_predicts(folders):
    unet = load_base_model(ModelConfig(str(folders["sd2"])), CPU).unet
    unet.conv_out.weight.zero_()
    for bias, predicted, size in ((-0.8, "v_prediction", 8), (0.5, "epsilon", 64)):
        unet.conv_out.bias.fill_(bias)  # its only output
        assert infer_prediction_type({}, unet)["prediction_type"] == predicted
        assert unet.config.sample_size == size
    assert infer_prediction_type({"prediction_type": "told"}, unet)["prediction_type"] == "told"


def test_the_configurations_that_come_along_are_the_real_models():
    """The published models' parameters are counted without allocating them."""
    counts = {
        "sd1": (859_520_964, 83_653_863, 123_060_480),
        "sd2": (865_910_724, 83_653_863, 340_387_840),
        "sdxl": (2_567_463_684, 83_653_863, 123_060_480, 694_659_840),
    }
    page = (ROOT / "docs" / "models.md").read_text()
    for family, wanted in counts.items():
        folder = single_file.CONFIGS / family
        index = read(folder, "model_index.json")
        assert not unsupported_index(index)
        with torch.device("meta"):
            parts = [
                UNet2DConditionModel.from_config(read(folder, "unet/config.json")),
                AutoencoderKL.from_config(read(folder, "vae/config.json")),
                CLIPTextModel(CLIPTextConfig(**read(folder, "text_encoder/config.json"))),
            ]
            if family == "sdxl":
                second = CLIPTextConfig(**read(folder, "text_encoder_2/config.json"))
                parts.append(CLIPTextModel2(second))
        assert tuple(sum(p.numel() for p in m.parameters()) for m in parts) == wanted
        widths = tuple(part.config.hidden_size for part in parts[2:])
        size = (sum(wanted) - wanted[1]) * 2 / 1e9  # in half precision, without the VAE
        row = rf"\| {FAMILY_NAMES[widths]} \| {' and '.join(map(str, widths))} \|.*\| {size:.2f} GB"
        assert re.search(row, page)
        names = ("unet", "vae", *(n for n in index if n.startswith("text_encoder")))
        configs = {name: read(folder, f"{name}/config.json") for name in names}
        configs["scheduler"] = read(folder, "scheduler/scheduler_config.json")
        assert not unsupported_parts(configs)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lora_unet_down.alpha"], "a LoRA"),
        (["double_blocks.0.x"], "Flux"),
        (["model.diffusion_model.joint_blocks.0.x"], "Stable Diffusion 3"),
        (["emb_params"], "perhaps a concept"),
        (["first_stage_model.x"], "only a VAE"),
        ([f"x{k}" for k in range(9)], "not a complete Stable Diffusion model"),
    ],
)
def test_single_files_of_other_kinds(names, words, tmp_path):
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=f"x.safetensors is .*{words}"):
        load_base_model(ModelConfig(str(tmp_path / "x.safetensors")), CPU)


def test_whole_single_files_of_other_kinds():
    whole = {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}
    text = "cond_stage_model.transformer.x"
    assert single_family(whole | {text: (1,), "first_stage_model.x": (1,)}) == ("sd1", "")
    assert "it has no VAE" in single_family(whole | {text: (1,)})[1]
    assert "refiner" in single_family(whole | {"conditioner.embedders.0.model.x": (1,)})[1]
    assert "unCLIP" in single_family(whole | {"embedder.model.x": (1,)})[1]
    assert "not CLIP" in single_family(whole)[1]
    nine = {"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}
    assert "an inpainting model" in single_family(nine)[1]


def test_pickles_and_missing_files_are_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "model.ckpt")
    (tmp_path / "text.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    for name, words in (
        ("model.ckpt", "is a pickle, which can run code when read; convert it"),
        ("text.safetensors", "is not a safetensors file"),
        ("gone.safetensors", "does not exist; name a file"),
    ):
        with pytest.raises(UserError, match=words):
            load_base_model(ModelConfig(str(tmp_path / name)), CPU)


def test_a_safety_checker_that_is_a_pickle(folders, tmp_path):
    """It is read as tensors only; a setting omits it."""
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "image_size": 32, "patch_size": 16}  # fmt: skip
    sizes = CLIPConfig(vision_config=tower, text_config={"hidden_size": 16}, projection_dim=16)
    folder = shutil.copytree(folders["sd1"], tmp_path / "model")
    pipe = StableDiffusionPipeline.from_pretrained(
        folder,
        safety_checker=StableDiffusionSafetyChecker(sizes),
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
    )
    pipe.save_pretrained(folder)
    part = folder / "safety_checker"
    weights = load_file(part / "model.safetensors")
    torch.save(weights, part / "pytorch_model.bin")
    (part / "model.safetensors").unlink()
    checker, _ = load_safety_checker(ModelConfig(str(folder)), CPU, torch.float32)
    assert all(torch.equal(checker.state_dict()[k], v) for k, v in weights.items())
    (part / "pytorch_model.bin").write_bytes(pickle.dumps(shutil.rmtree))
    with pytest.raises(UserError, match="model.safety_checker: false makes images without it"):
        DetSDTextualInversionPipeline.from_pretrained(str(folder))
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(folder), safety_checker=False)
    assert pipe.settings(Job("a dog", 0))["model"]["safety_checker"] is False


# ---- memory, and prompts with weights ----------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_computing_activations_twice_changes_nothing_but_memory(
    family, experiment, tmp_path, folders
):
    rows = []
    for twice in (False, True):
        config = load_config(
            experiment(
                model={"pretrained_model_name_or_path": str(folders[family])},
                training={"gradient_checkpointing": twice, "num_sgd_steps": 2},
            )
        )
        with open_run(tmp_path / str(twice), accelerate=True) as run:
            trainer = Trainer(config, run)
            assert trainer.model.unet.is_gradient_checkpointing is twice
            trainer.train()
            rows.append(trainer.step.vectors)
    assert all(map(torch.equal, *rows))


def test_weights_reach_the_device_in_their_final_precision(folders, monkeypatch):
    moved, real = {}, torch.nn.Module.to

    def to(self, *args, **options):
        if isinstance(args[0] if args else None, torch.device):
            moved[type(self).__name__] = {p.dtype for p in self.parameters()}
        return real(self, *args, **options)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    load_base_model(ModelConfig(str(folders["sdxl"]), precision="bf16"), CPU)
    assert len(moved) == 4
    assert set(map(frozenset, moved.values())) == {frozenset({torch.bfloat16})}


def test_the_vae_is_on_the_device_only_while_it_is_needed(experiment, tmp_path, monkeypatch):
    calls, real = [], AutoencoderKL.to
    monkeypatch.setattr(
        AutoencoderKL, "to", lambda self, *a, **k: calls.append(a[0]) or real(self, *a, **k)
    )
    change = {"num_sgd_steps": 2, "checkpoint_freq": 2}
    with open_run(tmp_path / "out", accelerate=True) as run:
        trainer = Trainer(load_config(experiment(training=change, inference=SAMPLES)), run)
        assert calls == [run.ranks.device, "cpu"]  # for the training images
        trainer.train()
    assert calls[2:] == [run.ranks.device, "cpu"] * 2  # for the samples before and after
    with open_run(tmp_path / "without", accelerate=True) as run:
        Trainer(load_config(experiment(training=change)), run).train()
    assert calls[-1] == "meta"  # without samples it is dropped


def test_a_file_that_has_left_its_checkpoint_says_what_it_was_learned_on(
    tuned, tmp_path, folders, capsys
):
    assert tuned("sdxl", "out", "--set", "training.num_sgd_steps=1") == 0
    file = shutil.copy(tmp_path / "out/checkpoints/step-00000001/blob-thing.safetensors", tmp_path)
    capsys.readouterr()
    assert main(["show", str(file)]) == 0
    assert f"  learned on: {folders['sdxl']}, 1 step\n" in capsys.readouterr().out
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(folders["sd1"]))
    with pytest.raises(UserError, match=f"it was learned on {folders['sdxl']}: name"):
        pipe.load_concepts(file)


def test_weights_of_words_are_left_out_of_training_prompts_and_told(folders):
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(folders["sd1"]))
    pipe.vocabulary.add(blob("sd1"))
    ids = pipe.vocabulary.token_ids
    plain = ids(["a blob-thing on wood"])
    for prompt in ("a (blob-thing:1.3) on wood", "a (blob-thing)1.3 on (wood:.8)",
                   "((a blob-thing:1.1) on wood:2)"):  # fmt: skip
        assert torch.equal(ids([prompt]), plain)
        (doubt,) = prompt_warnings(prompt, pipe.vocabulary, weighted=False)
        assert "has weights, which are ignored here" in doubt
    for prompt in ("a photo (16:9)", "at noon (at 10:30)", "a (red) ball", "f(x) = 2"):
        assert pipe.vocabulary.text(prompt) == prompt
        assert prompt_warnings(prompt, pipe.vocabulary) == []
    assert all(map(pipe.vocabulary.is_plain, ("a photo (16:9)", "at noon (at 10:30)")))


@pytest.mark.slow
def test_a_grid_of_stable_diffusion_xl_on_two_ranks(folders, tmp_path):
    write_concepts([blob("sdxl")], tmp_path)
    hyperparameters = {
        "model": {"pretrained_model_name_or_path": str(folders["sdxl"])},
        "concepts": {"files": [str(tmp_path)]},
        "grid": {"prompts": [PROMPT, "a dog"], "seeds": [1, 2], "num_inference_steps": 2},
        "output": {"batch_size": 2},
    }
    file = tmp_path / "grid.yaml"
    file.write_text(json.dumps({"name": "grid", "hyperparameters": hyperparameters}))
    one, two = (tmp_path / name for name in ("one", "two"))
    assert main(["generate", str(file), "--output-dir", str(one)]) == 0
    in_two_ranks(tmp_path, lambda: main(["generate", str(file), "--output-dir", str(two)]))
    names = [f"images/job-{k:05d}.png" for k in range(4)]
    assert all((one / n).read_bytes() == (two / n).read_bytes() for n in names)
    assert len({(one / n).read_bytes() for n in names}) == 4
    assert (
        main(["generate", "--from", str(one / names[0]), "--output-dir", str(tmp_path / "x")]) == 0
    )
    assert (tmp_path / "x" / names[0]).is_file()
