"""The pipeline: schedulers, concepts from all sources, pixels that depend only on their job."""

import dataclasses
import functools
import gc
import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from determined.common.api import errors as api_errors
from determined.experimental import client
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from tiny import ROOT, save_tiny_model
from transformers import CLIPConfig, CLIPImageProcessor

from demo_model.process import process
from detsd.__main__ import main
from detsd.cli.generate import remake_hyperparameters
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.prompts import prompt_warnings
from detsd.concepts.writing import write_concepts
from detsd.config import GenerateConfig, InferenceConfig, ModelConfig, parse_config
from detsd.models.loading import load_base_model, pick_dtype
from detsd.runs import download
from detsd.sampling.denoise import decode
from detsd.sampling.jobs import Job, grid_jobs, sample_jobs
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.sampling.stock import SCHEDULERS, latent_shape, make_scheduler
from detsd.utils.errors import UserError
from detsd.utils.png import encode, read_record

BLOB = LearnedConcept("blob-thing", "ball", (torch.ones(2, 16),))
JOB = Job("a blob-thing", 7, num_inference_steps=3)


@pytest.fixture
def concept_file(tmp_path):
    write_concepts([BLOB], tmp_path)
    return tmp_path / "blob-thing.safetensors"


@pytest.fixture
def pipe(tiny_model, concept_file):
    made = DetSDTextualInversionPipeline.from_pretrained(str(tiny_model))
    made.load_concepts(concept_file)
    return made


def pixels(made):
    return [np.asarray(m.image).astype(int) for m in made]


def test_concepts_come_and_go_without_a_trace(pipe, tmp_path):
    """Reloading a changed file, failing to reload a broken one and unloading show in the pixels."""
    prompt = [dataclasses.replace(JOB, prompt="a blob-thing beside a cube-thing")]
    image = lambda: pipe.make(prompt)[0].image.tobytes()  # noqa: E731
    plain = image()  # cube-thing is three ordinary words
    other = tmp_path / "other"
    other.mkdir()
    write_concepts([LearnedConcept("cube-thing", "", (torch.full((3, 16), 0.5),))], other)
    pipe.load_concepts(other)
    both = image()
    write_concepts([LearnedConcept("cube-thing", "", (torch.full((2, 16), -0.5),))], other)
    pipe.reload("cube-thing")
    changed = image()
    assert len({plain, both, changed}) == 3
    write_concepts([LearnedConcept("cube-thing", "", (torch.ones(2, 8),))], other)
    with pytest.raises(UserError, match="width"):
        pipe.reload("cube-thing")
    write_concepts([LearnedConcept("cone-thing", "", (torch.ones(2, 16),))], other)
    with pytest.raises(UserError, match="no longer holds concept 'cube-thing'"):
        pipe.reload("cube-thing")
    assert image() == changed
    pipe.unload("cube-thing")
    assert pipe.concepts == ["blob-thing"]
    assert image() == plain
    for call in (pipe.unload, pipe.reload):
        with pytest.raises(UserError, match="'cube-thing' is not loaded; name one that is: blob-t"):
            call("cube-thing")


def test_a_loaded_concept_changes_no_image_without_it(pipe, tmp_path):
    """It does not use the global generator, unlike stock diffusers when it loads a word."""
    call = functools.partial(pipe, "a photo", num_inference_steps=2, output_type="latent")
    torch.manual_seed(7)
    before = call().images
    write_concepts([LearnedConcept("cube-thing", "", (torch.ones(3, 16),))], tmp_path)
    torch.manual_seed(7)
    pipe.load_concepts(tmp_path)
    after = call().images
    pipe.unload("cube-thing")
    assert torch.equal(before, after)


def test_pixels_are_a_function_of_the_job(pipe):
    first = pipe.make([JOB])[0].image.tobytes()
    for change in ({"seed": 8}, {"copy": 1}, {"guidance_scale": 9.0}, {"negative_prompt": "red"}):
        assert pipe.make([dataclasses.replace(JOB, **change)])[0].image.tobytes() != first
    assert pipe.make([JOB])[0].image.tobytes() == first


@pytest.mark.parametrize(  # noise at the start; at each step, from each image's generator
    "name", ["ddim", "euler-ancestral", "dpmsolver++-sde", "lcm"]
)
def test_company_in_the_batch_does_not_show(pipe, name):
    """An image is bit-equal at equal batch size, and within one grey level at another size."""
    job = dataclasses.replace(JOB, scheduler_name=name)
    others = [dataclasses.replace(job, seed=s, prompt="a dog", guidance_scale=2.0) for s in (1, 2)]
    a, b, alone = (pixels(pipe.make(j)) for j in ([job, *others], [others[0], job, job], [job]))
    assert np.array_equal(a[0], b[1])
    assert np.array_equal(b[1], b[2])
    assert abs(a[0] - alone[0]).max() <= 1


def test_equal_to_stock_diffusers_with_the_same_concept(pipe, tiny_model, concept_file):
    stock = StableDiffusionPipeline.from_pretrained(tiny_model)
    stock.set_progress_bar_config(disable=True)
    stock.load_textual_inversion(str(concept_file))
    options = {"num_inference_steps": 3, "guidance_scale": 7.5, "output_type": "np"}
    want = stock("a blob-thing", generator=torch.Generator().manual_seed(7), **options).images[0]
    got = pipe("a blob-thing", generator=torch.Generator().manual_seed(7), **options).images[0]
    np.testing.assert_allclose(got, want, atol=1e-5)
    grid = pixels(pipe.make([dataclasses.replace(JOB, num_inference_steps=3)]))[0]
    assert abs(grid - np.round(want * 255)).max() <= 1


def test_call_takes_what_diffusers_takes(pipe):
    seen = []
    result = pipe(
        ["a blob-thing", "a dog"],
        24,  # positional height and width
        40,
        negative_prompt=["red", "blob-thing"],
        num_inference_steps=2,
        scheduler_name="euler",
        num_images_per_prompt=2,
        output_type="latent",
        callback_on_step_end=lambda p, step, t, kwargs: seen.append(step) or kwargs,
    )
    assert result.images.shape == (4, 4, 6, 10)
    assert seen == [0, 1]
    with pytest.raises(UserError, match=r"scheduler 'ddpm' is unknown; use one of ddim, pndm"):
        pipe("a dog", scheduler_name="ddpm")
    pipe.make([JOB])  # with DDIM; the pipeline keeps its own
    assert type(pipe.diffusers_pipeline.scheduler) is SCHEDULERS["euler"]


def test_clip_skip_takes_an_earlier_layer(pipe):
    """Stock diffusers raises an error with transformers 5."""
    encoder = pipe.vocabulary.text_encoders[0].encoder
    norm = next(m for name, m in encoder.named_modules() if name.endswith("final_layer_norm"))
    said = encoder(pipe.vocabulary.token_ids(["a blob-thing"]), output_hidden_states=True)
    seen = [
        pipe.diffusers_pipeline.encode_prompt(
            pipe.vocabulary.text("a blob-thing"), pipe.model.device, 1, False, clip_skip=skip
        )[0]
        for skip in (None, 0, 1)
    ]
    images = [
        pipe("a blob-thing", num_inference_steps=1, clip_skip=skip, output_type="latent",
             generator=torch.Generator().manual_seed(0)).images
        for skip in (0, 1)
    ]  # fmt: skip
    assert not torch.equal(*images)
    assert torch.equal(seen[0], seen[1])
    torch.testing.assert_close(seen[1], said.last_hidden_state)
    torch.testing.assert_close(seen[2], norm(said.hidden_states[-2]))
    assert not torch.equal(seen[1], seen[2])


def test_latents_are_never_clipped(tiny_model, pipe):
    """diffusers corrects a scheduler without these settings at loading; so do jobs."""
    stock = StableDiffusionPipeline.from_pretrained(tiny_model)
    for name in SCHEDULERS:
        pipe.model.sampling_scheduler_config.pop("clip_sample", None)
        pipe.model.sampling_scheduler_config.pop("steps_offset", None)
        made = make_scheduler(pipe.model, name)
        assert not getattr(made.config, "clip_sample", False)
        assert getattr(made.config, "steps_offset", 1) == stock.scheduler.config.steps_offset == 1


def test_as_many_steps_as_timesteps_are_refused(pipe):
    with pytest.raises(UserError, match="num_inference_steps: 1000 must be less than the 1000"):
        pipe.check([JOB, dataclasses.replace(JOB, num_inference_steps=1000)])
    pipe.check([dataclasses.replace(JOB, num_inference_steps=999)])
    few = dataclasses.replace(JOB, scheduler_name="lcm", num_inference_steps=50)
    pipe.check([few])
    with pytest.raises(UserError, match="^grid.num_inference_steps: 51 is more than the 50 of"):
        pipe.check([few, dataclasses.replace(few, num_inference_steps=51)], "grid")
    for name in ("ddim", "pndm"):  # they look up noise levels by timestep
        scheduler = make_scheduler(pipe.model, name)
        scheduler.set_timesteps(999)
        assert max(scheduler.timesteps) == 999
        scheduler.set_timesteps(1000)
        assert max(scheduler.timesteps) == 1000


@pytest.mark.parametrize("name", ["ddim", "euler-ancestral"])
def test_a_call_draws_its_noise_in_float32_too(name, tiny_model, monkeypatch):
    """This holds in every precision: in half precision, PyTorch 2.3's noise has few bits."""
    half = DetSDTextualInversionPipeline.from_pretrained(str(tiny_model), precision="bf16")
    drawn, real = [], torch.randn

    def randn(*shape, **options):
        drawn.append(options.get("dtype") or torch.float32)
        return real(*shape, **options)

    monkeypatch.setattr(torch, "randn", randn)
    options = {"num_inference_steps": 2, "scheduler_name": name, "num_images_per_prompt": 2}
    seed = torch.Generator().manual_seed
    two = half(["a ball", "a cat"], generator=seed(1), **options).images
    assert len(two) == 4
    seeds = [torch.Generator().manual_seed(k) for k in range(2)]
    assert len(half("a ball", 64, 32, generator=seeds, **options).images) == 2
    assert set(drawn) == {torch.float32}
    assert len(half("a ball", **options).images) == 2


def test_a_pipeline_that_nobody_holds_frees_its_memory_at_once(tiny_model):
    """It must not wait for garbage collection: on a GPU, another model may need the memory."""
    gc.collect()
    gc.disable()
    try:
        pipe = DetSDTextualInversionPipeline.from_pretrained(str(tiny_model))
        pipe("a ball", num_inference_steps=1)
        pipe.make([Job("a ball", 0, num_inference_steps=1)])
        parts = [weakref.ref(part) for part in (pipe.model.unet, pipe.model.vae)]
        del pipe
        assert [part() is None for part in parts] == [True, True]
    finally:
        gc.enable()


def test_images_prefer_fp16_and_training_bf16_on_gpus(monkeypatch):
    gpu = torch.device("cuda")
    for capability, training in (((7, 0), torch.float16), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a, c=capability: c)
        assert pick_dtype("auto", gpu) == torch.float16
        assert pick_dtype("auto", gpu, training=True) == training
    for device in (torch.device("cpu"), torch.device("mps")):
        assert pick_dtype("auto", device) == pick_dtype("auto", device, True) == torch.float32
    assert pick_dtype("fp32", gpu) == torch.float32


def test_an_old_models_size_is_mended_before_anything_goes_by_it(tiny_model, tmp_path):
    """Files from before diffusers 0.9 give 32 instead of 64; its pipeline corrects this."""
    folder = shutil.copytree(tiny_model, tmp_path / "old")
    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"_diffusers_version": "0.6.0"}))
    model = load_base_model(ModelConfig(str(folder)), torch.device("cpu"))
    assert model.image_size == 64 * model.vae_scale_factor
    size = model.image_size
    assert DetSDTextualInversionPipeline(model).diffusers_pipeline.unet.config.sample_size == 64
    assert model.image_size == size
    assert load_base_model(ModelConfig(str(tiny_model)), torch.device("cpu")).image_size == 32


def test_a_scale_of_one_needs_no_guidance(pipe):
    plain = dataclasses.replace(JOB, guidance_scale=1.0)
    assert plain.batch_key != JOB.batch_key
    other = dataclasses.replace(plain, negative_prompt="red")
    assert np.array_equal(*pixels(pipe.make([plain, other])))


def test_concepts_that_cannot_be_loaded(pipe, concept_file, tmp_path):
    with pytest.raises(UserError, match="'blob-thing' is loaded twice; load it once, or rename"):
        pipe.load_concepts(concept_file)
    write_concepts([LearnedConcept("cube-thing", "", (torch.ones(1, 16),)), BLOB], tmp_path)
    with pytest.raises(UserError, match="'blob-thing' is loaded twice"):
        pipe.load_concepts(tmp_path)  # and nothing else of the file
    with pytest.raises(UserError, match=r"missing\.pt does not exist"):
        pipe.load_concepts(tmp_path / "missing.pt")
    with pytest.raises(UserError, match="rows of width 128, but the text encoder's width is 16"):
        pipe.load_concepts(ROOT / "learned_embeddings_dict_demo.pt")
    assert pipe.concepts == ["blob-thing"]


def test_concepts_of_a_run_folder_and_under_another_word(pipe, tmp_path):
    """An image records the checkpoint; reloading takes the run's newest one."""
    run = tmp_path / "run"
    for step, name in ((1, "cube-thing"), (2, "cube-thing")):
        folder = run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        write_concepts([LearnedConcept(name, "", (torch.full((1, 16), float(step)),))], folder)
        if step == 1:
            assert pipe.load_concepts(f"{run}=cat-toy", run) == ["cat-toy", "cube-thing"]
            first = str(folder / "learned_embeddings_dict.pt")
    used = pipe.concept_fingerprints("a cat-toy and a cube-thing")
    assert used["cat-toy"]["source"] == f"{first}=cat-toy"
    assert used["cube-thing"]["source"] == first
    for name in ("cat-toy", "cube-thing"):
        pipe.reload(name)
    rows = {c.name: c.embeddings[0] for c in pipe.vocabulary.concepts()}
    assert torch.equal(rows["cat-toy"], torch.full((1, 16), 2.0))
    assert torch.equal(rows["cube-thing"], torch.full((1, 16), 2.0))
    assert "step-00000002" in pipe.concept_fingerprints("a cube-thing")["cube-thing"]["source"]


def test_concepts_of_checkpoint_uuids(pipe, tmp_path, monkeypatch):
    """They are downloaded once; the client's errors become sentences. The client is a stand-in."""
    monkeypatch.setattr(download, "CACHE", tmp_path / "cache")
    asked = []

    class Checkpoint:
        def __init__(self, uuid):
            asked.append(uuid)
            self.uuid = uuid

        def download(self, path):
            folder = tmp_path / path
            folder.mkdir(parents=True)
            write_concepts([LearnedConcept(self.uuid, "", (torch.ones(1, 16),))], folder)

    monkeypatch.setattr(client, "get_checkpoint", Checkpoint)
    assert pipe.load_from_uuids(["thing-one", "thing-two"]) == ["thing-one", "thing-two"]
    assert pipe.concept_fingerprints("a thing-two")["thing-two"]["source"] == "uuid:thing-two"
    assert pipe.load_from_uuids(["thing-one=cat-toy"]) == ["cat-toy"]
    assert pipe.concept_fingerprints("a cat-toy")["cat-toy"]["source"] == "uuid:thing-one=cat-toy"
    pipe.reload("cat-toy")
    with pytest.raises(UserError, match="twice"):
        pipe.load_from_uuids(["thing-one"])
    assert asked == ["thing-one", "thing-two"]

    def refuse(error):
        def get(uuid):
            raise error

        monkeypatch.setattr(client, "get_checkpoint", get)

    missing = api_errors.NotFoundException.__new__(api_errors.NotFoundException)
    refuse(missing)
    with pytest.raises(UserError, match="checkpoint abc is unknown to the master"):
        pipe.load_from_uuids(["abc"])
    refuse(api_errors.MasterNotFoundException("no"))
    with pytest.raises(UserError, match="no Determined master was found"):
        pipe.load_from_uuids(["abc"])
    refuse(api_errors.UnauthenticatedException())
    with pytest.raises(UserError, match="the master asks for a login; run det user login"):
        pipe.load_from_uuids(["abc"])
    refuse(ValueError("state unknown"))
    with pytest.raises(UserError, match=r"cannot be downloaded \(ValueError: state unknown\)"):
        pipe.load_from_uuids(["abc"])


def test_a_master_that_asks_for_a_login_is_told_in_a_sentence(monkeypatch, capsys):
    def refuse(name):
        raise api_errors.UnauthenticatedException()

    monkeypatch.setattr(client, "get_experiment", refuse)
    monkeypatch.setattr(client, "get_model", refuse)
    for command, what in (("search 5", "experiment 5"), ("show model:my-cat", "model 'my-cat'")):
        assert main(command.split()) == 2
        assert capsys.readouterr().err == (
            f"detsd: {what} cannot be looked up: the master asks for a login; run det user login\n"
        )


def test_a_master_that_breaks_off_is_told_in_a_sentence(monkeypatch, capsys):
    """This covers the second request for a version, too."""

    class Cut:
        def get_version(self, number):
            raise ConnectionError("Connection aborted.\nReset by peer")

    monkeypatch.setattr(client, "get_experiment", lambda number: Cut().get_version(number))
    monkeypatch.setattr(client, "get_model", lambda name: Cut())
    for command, what, hint in (
        ("search 5", "experiment 5", "det e describe 5"),
        ("show model:my-cat:2", "model 'my-cat'", "det model list"),
    ):
        assert main(command.split()) == 2
        assert capsys.readouterr().err == (
            f"detsd: {what} cannot be looked up (ConnectionError: Connection aborted. Reset by "
            f"peer); see whether {hint} works\n"
        )


def test_doubts_about_prompts(pipe):
    pipe.vocabulary.add(LearnedConcept("det-logo-demo", "", (torch.ones(1, 16),)))
    assert (
        prompt_warnings("a photo of a det-logo-demo and a blob-thing, close-up", pipe.vocabulary)
        == []
    )
    (doubt,) = prompt_warnings("a photo of a det-logo", pipe.vocabulary)
    assert (
        "says 'det-logo', which is not a loaded concept (loaded: blob-thing, det-logo-demo)"
        in doubt
    )
    for spelt in ("DET-LOGO-DEMO", "det logo demo", "Det_Logo demo", "Blob Thing", "blobthing"):
        (doubt,) = prompt_warnings(f"a photo of a {spelt}, close-up", pipe.vocabulary)
        assert f"says {spelt!r}, which is not a loaded concept" in doubt
    assert prompt_warnings("a photo of a blob, and of another thing", pipe.vocabulary) == []
    long = "very " * 80 + "blob-thing"
    assert prompt_warnings(long, pipe.vocabulary) == []
    assert pipe.vocabulary.chunk_count(long) == 2
    (doubt,) = prompt_warnings(long, pipe.vocabulary, weighted=False)  # as for captions
    assert "84 tokens but the model reads 77" in doubt
    assert "concept blob-thing among them" in doubt


def test_the_safety_checker_stays_on_and_says_so(tmp_path, caplog):
    """The checker is tiny and random, with thresholds that flag everything or nothing."""
    folder = save_tiny_model(tmp_path / "model")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "image_size": 32, "patch_size": 16}  # fmt: skip
    config = CLIPConfig(vision_config=tower, text_config={"hidden_size": 16}, projection_dim=16)
    for threshold, flagged in ((2.0, False), (-2.0, True)):
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(config)
        checker.concept_embeds_weights.data.fill_(threshold)
        stock = StableDiffusionPipeline.from_pretrained(
            folder,
            safety_checker=checker,
            feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
        )
        stock.save_pretrained(tmp_path / str(flagged))
        pipe = DetSDTextualInversionPipeline.from_pretrained(str(tmp_path / str(flagged)))
        (made,) = pipe.make([JOB])
        assert made.flagged is flagged
        assert bool(np.asarray(made.image).max() == 0) is flagged


def test_jobs_are_prompts_times_seeds_times_copies():
    config = InferenceConfig(inference_prompts=["a", "b"], seeds=[1, 2], img_per_prompt=3)
    jobs = sample_jobs(config, 32)
    assert len(set(jobs)) == 12
    assert (jobs[0].prompt, jobs[0].seed, jobs[0].copy) == ("a", 1, 0)
    assert (jobs[-1].prompt, jobs[-1].seed, jobs[-1].copy) == ("b", 2, 2)


def test_saved_images_hold_the_settings_that_make_them_again(pipe, tmp_path):
    jobs = [JOB, dataclasses.replace(JOB, prompt="a red/blue dog", seed=8)]
    made = pipe.make(jobs)
    first, second = pipe.save(jobs, made, tmp_path / "new" / "folder")
    assert second.name.startswith("a_red_blue_dog-seed8-")
    record = read_record(first)
    assert record["concepts"]["blob-thing"]["source"] == pipe.sources["blob-thing"]
    assert (record["batch_size"], record["flagged"], record["width"]) == (2, False, 32)
    assert parse_config(remake_hyperparameters(first), "", GenerateConfig).grid.seeds == [7]
    long = f"../{'a' * 5000}"  # no file can have this name
    hostile = record | {"concepts": {"blob-thing": {"source": long, "sha256": ""}}}
    (tmp_path / "long.png").write_bytes(encode(made[0].image, hostile))
    assert remake_hyperparameters(tmp_path / "long.png")["concepts"]["files"] == [long]
    part = dataclasses.replace(JOB, guidance_interval=(0.2, 0.8), spacing="trailing")
    (path,) = pipe.save([part], made[:1], tmp_path)
    grid = parse_config(remake_hyperparameters(path), "", GenerateConfig).grid
    assert grid_jobs(grid, 32) == [dataclasses.replace(part, width=32, height=32)]
    with Image.open(path) as image:
        facts = image.text["parameters"]
    assert "Guidance interval: 0.2 to 0.8, Timestep spacing: trailing" in facts
    copy = dataclasses.replace(JOB, copy=1)  # the same seed; its file records its own
    (other,) = pipe.save([copy], made[:1], tmp_path / "new" / "folder")
    again = dataclasses.replace(JOB, seed=read_record(other)["seed"])
    assert torch.equal(again.generator.get_state(), copy.generator.get_state())
    alone = [dataclasses.replace(made[0], batch_size=1)]
    assert pipe.save(jobs[:1], alone, tmp_path)[0].name != first.name  # made in another batch size
    assert pipe.save(jobs, made, tmp_path / "new" / "folder") == [first, second]


def test_the_process_ends_in_the_image_and_in_the_picture(pipe):
    picture = Image.new("RGB", (50, 40), (250, 20, 20))
    times, reverse, forward = process(pipe, JOB, picture, moments=3)
    assert len(reverse) == len(forward) == len(times) == 3
    assert times == sorted(times, reverse=True)
    assert times[-1] == 0
    assert reverse[-1].tobytes() == pipe.make([JOB])[0].image.tobytes()
    shape = (1, *latent_shape(pipe.model))
    used = torch.randn(shape, generator=JOB.generator)  # used by the image itself, as well
    pixels = decode(pipe.model.vae, used)
    decoded = pipe.diffusers_pipeline.image_processor.postprocess(pixels)
    assert reverse[0].tobytes() == decoded[0].tobytes()
    # At the start both are the same noise, except for the picture's remainder in it.
    start, end = (
        np.abs(np.asarray(reverse[k], int) - np.asarray(forward[k], int)).mean() for k in (0, -1)
    )
    assert start < end / 2
    assert len(process(pipe, JOB, picture, moments=99)[0]) == 4  # three steps


def test_the_plain_prompt_has_the_phrases(pipe):
    pipe.vocabulary.add(LearnedConcept("cube-thing", "", (torch.ones(1, 16),)))
    assert (
        pipe.vocabulary.with_initializers("a blob-thing and a cube-thing") == "a ball and a thing"
    )


def test_a_job_takes_what_numpy_and_json_give(pipe, tmp_path):
    """Seeds of an array and an interval as a list give the same image and the same file."""
    job = dataclasses.replace(JOB, guidance_interval=(0.2, 0.8))
    given = Job(
        np.str_(JOB.prompt), np.arange(8)[7], guidance_scale=np.float64(7.5),
        num_inference_steps=np.int32(3), guidance_interval=[0.2, 0.8],
    )  # fmt: skip
    assert given == job
    assert {type(value) for value in vars(given).values()} <= {*map(type, vars(job).values())}
    made = pipe.make([given])
    assert np.array_equal(*pixels([made[0], pipe.make([job])[0]]))
    assert pipe.save([given], made, tmp_path) == pipe.save([job], made, tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"seed": -1}, r"job\.seed is -1 but must be a whole number from 0 to 4294967295$"),
        ({"seed": 2**32}, "job.seed is 4294967296"),
        ({"seed": 1.5}, "job.seed is 1.5"),
        ({"num_inference_steps": 0}, "job.num_inference_steps is 0 but must be a whole number"),
        ({"num_inference_steps": 1000}, "must be less than the 1000 timesteps of"),
        ({"width": 36, "height": 0}, "job.width is 36 but must be a multiple of 8; job.height is"),
        ({"spacing": "even"}, "job.spacing is 'even' but must be one of leading, trailing, linsp"),
        ({"guidance_interval": [0.8, 0.2]}, "job.guidance_interval is .* but must be .start, stop"),
        ({"scheduler_name": "lcm", "num_inference_steps": 60}, "60 is more than the 50 of the lcm"),
        ({"scheduler_name": "Euler a"}, "is unknown; .*; did you mean 'euler-ancestral'"),
    ],
)
def test_a_job_that_no_configuration_could_name_is_refused(pipe, change, problem):
    """Otherwise an image is smaller than its file says, or a library fails without a reason."""
    with pytest.raises(UserError, match=problem):
        pipe.make([dataclasses.replace(JOB, **change)])


def test_a_script_may_name_one_concept_or_a_list(tiny_model, concept_file):
    """As in a configuration; a string was taken apart into letters."""
    load = functools.partial(DetSDTextualInversionPipeline.from_pretrained, tiny_model)
    for concepts in (concept_file, str(concept_file), [concept_file], (concept_file,)):
        assert load(concepts=concepts).concepts == ["blob-thing"]
        plain = load()
        assert plain.load_concepts(concepts) == ["blob-thing"]
    uuid = "0" * 8 + "-0000" * 3 + "-" + "0" * 12
    for call in (load().load_from_uuids, lambda uuids: load(uuids=uuids)):
        with pytest.raises(UserError, match=f"checkpoint {uuid} "):
            call(uuid)
    with pytest.raises(UserError, match="precision is 'float16' but must be"):
        load(precision="float16")
