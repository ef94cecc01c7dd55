"""The denoising loop against the stock pipeline; noise, memory and stops of many jobs."""

import dataclasses
import json

import diffusers
import numpy as np
import pytest
import torch

from detsd.config.schema import LCM_STEPS
from detsd.models.base import Conditioning
from detsd.sampling import engine
from detsd.sampling.denoise import decode, denoise, guided_calls
from detsd.sampling.engine import Sampler
from detsd.sampling.jobs import Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.sampling.stock import OPTIONS, SCHEDULERS, make_scheduler
from detsd.utils import memory
from detsd.utils.errors import UserError

JOB = Job("a red ball", 7, num_inference_steps=4, guidance_scale=6.3)
OUT = "not enough memory: you tried to allocate 1 bytes"


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def pipe(request, tiny_model, tiny_v_model):
    folder = tiny_model if request.param == "epsilon" else tiny_v_model
    return DetSDTextualInversionPipeline.from_pretrained(str(folder), precision="fp32")


@pytest.fixture(scope="module")
def stock(tiny_model):
    """Load a pipeline with diffusers alone."""
    made = diffusers.StableDiffusionPipeline.from_pretrained(tiny_model)
    made.set_progress_bar_config(disable=True)
    return made


def pixels(made):
    return [np.asarray(m.image) for m in made]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_pixels_are_those_of_stock_diffusers(name, pipe):
    """Two images of two prompts are made at once, with guidance and without."""
    for scale in (6.3, 1.0):
        job = dataclasses.replace(JOB, scheduler_name=name, guidance_scale=scale)
        jobs = [job, dataclasses.replace(job, prompt="a dog", seed=8, negative_prompt="blue")]
        stock = pipe(
            [j.prompt for j in jobs],
            negative_prompt=[j.negative_prompt for j in jobs],
            generator=[j.generator for j in jobs],
            guidance_scale=scale,
            num_inference_steps=4,
            scheduler_name=name,
        )
        for ours, theirs in zip(pixels(pipe.make(jobs)), stock.images, strict=True):
            assert np.array_equal(ours, np.asarray(theirs))
            assert ours.std() > 0


# The samplers as diffusers' own classes and options, as docs/generating.md names them.
STOCK = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "lms-discrete": (diffusers.LMSDiscreteScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpmsolver++": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpmsolver++-karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "dpmsolver++-sde": (
        diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"},
    ),
    "dpmsolver++-sde-karras": (
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
}  # fmt: skip


@pytest.mark.parametrize("spacing", [None, "leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("pipe", ["epsilon"], indirect=True)
def test_samplers_and_spacings_are_those_of_diffusers(name, spacing, pipe, stock, monkeypatch):
    """The latents are the same, for two images at once."""
    kind, options = STOCK[name]
    if spacing:
        options = options | {"timestep_spacing": spacing}
    monkeypatch.setattr(stock, "scheduler", kind.from_config(stock.scheduler.config, **options))
    jobs = [
        dataclasses.replace(JOB, seed=seed, scheduler_name=name, spacing=spacing) for seed in (3, 4)
    ]
    theirs = stock(
        JOB.prompt,
        num_images_per_prompt=2,
        generator=[job.generator for job in jobs],
        guidance_scale=6.3,
        num_inference_steps=4,
        output_type="latent",
    ).images
    latents = []
    pipe.make(jobs, on_step=lambda now: latents.append(now.latents))
    assert torch.equal(latents[-1], theirs)


def test_the_spacing_of_a_saved_copy_is_that_of_its_file(model):
    """diffusers writes defaults: a saved copy of Stable Diffusion 1.x says leading."""
    config = {k: v for k, v in model.sampling_scheduler_config.items() if k != "timestep_spacing"}
    copy = json.loads(diffusers.PNDMScheduler.from_config(config).to_json_string())
    for name, own in (("ddim", "leading"), ("euler", "linspace"), ("dpmsolver++", "linspace")):
        for sampler, spacing in ((config, own), (copy, "leading")):
            changed = dataclasses.replace(model, sampling_scheduler_config=sampler)
            assert make_scheduler(changed, name).config.timestep_spacing == spacing
            named = make_scheduler(changed, name, "trailing")
            assert named.config.timestep_spacing == "trailing"


def test_spacings_differ(tiny_model):
    """They differ where they matter: a latent consistency model has its own."""
    pipe = DetSDTextualInversionPipeline.from_pretrained(str(tiny_model), precision="fp32")
    for name in ("ddim", "euler", "unipc"):
        images = {
            pipe.make([dataclasses.replace(JOB, scheduler_name=name, spacing=spacing)])[
                0
            ].image.tobytes()
            for spacing in ("leading", "trailing", "linspace")
        }
        assert len(images) == 3, name


@pytest.mark.parametrize("steps", [10, 61])  # diffusers makes 62 timesteps of 61: the last is -1
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_that_ends_in_pure_noise_holds_for_every_sampler(name, steps, model):
    """It is that of a model trained with rescaled betas; a perfect model's images show it."""
    steps = min(steps, LCM_STEPS) if name == "lcm" else steps
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    config |= {"prediction_type": "v_prediction", "set_alpha_to_one": True}
    trained = diffusers.DDPMScheduler.from_config(dict(model.scheduler.config) | config)
    marked = dataclasses.replace(
        model, scheduler=trained, sampling_scheduler_config=dict(trained.config)
    )
    picture = torch.linspace(-1, 1, 16).view(1, 4, 2, 2)

    def perfect(x, t, **_):
        alpha = trained.alphas_cumprod[int(t)]
        noise = (x - alpha.sqrt() * picture) / (1 - alpha).sqrt()
        return [alpha.sqrt() * noise - (1 - alpha).sqrt() * picture]

    generators = [torch.Generator().manual_seed(1)]
    none = Conditioning(torch.zeros(1, 1, 1))
    sampler = make_scheduler(marked, name)
    torch.testing.assert_close(sampler.alphas_cumprod, trained.alphas_cumprod, rtol=1e-5, atol=1e-7)
    made = denoise(
        perfect,
        sampler,
        steps,
        torch.cat([torch.randn(1, 4, 2, 2, generator=g) for g in generators]),
        none,
        None,
        torch.ones(1),
        generators,
    )
    assert sampler.timesteps[-1] >= 0
    assert len(sampler.timesteps) == {"heun": 2 * steps - 1, "pndm": steps + 1}.get(name, steps)
    # PNDM leaves this much noise on a picture with any schedule.
    torch.testing.assert_close(made, picture, rtol=0, atol=0.1 if name == "pndm" else 1e-5)


@pytest.mark.parametrize(
    ("name", "steps", "interval", "calls"),
    [
        ("ddim", 10, (0.2, 0.8), [2, 3, 4, 5, 6, 7]),
        ("ddim", 10, (0.25, 0.49), [2, 3]),
        ("ddim", 10, (0.01, 0.09), []),
        ("ddim", 100, (0.29, 0.57), [*range(29, 57)]),  # 0.29 * 100 is less than 29
        ("ddim", 7, None, [*range(7)]),
        ("ddim", 7, (0.0, 1.0), [*range(7)]),
        ("heun", 4, (0.25, 0.75), [2, 3, 4, 5]),  # of seven calls: two per step, one in the last
        ("heun", 4, (0.75, 1.0), [6]),
        ("pndm", 4, (0.0, 0.25), [0, 1]),  # the first step is made twice
        ("pndm", 4, (0.75, 1.0), [4]),
    ],
)
def test_a_guidance_interval_counts_steps(name, steps, interval, calls, pipe):
    scheduler = make_scheduler(pipe.model, name)
    scheduler.set_timesteps(steps)
    guided = guided_calls(scheduler, steps, interval)
    assert len(guided) == {"heun": 2 * steps - 1, "pndm": steps + 1}.get(name, steps)
    assert [k for k, call in enumerate(guided) if call] == calls


@pytest.mark.parametrize("name", ["euler-ancestral", "heun"])
def test_steps_outside_of_a_guidance_interval_are_one_pass(name, pipe, monkeypatch):
    """This also holds with a scale per image; null and [0, 1] mean all steps."""
    sizes, forward = [], type(pipe.model.unet).forward

    def counted(self, x, *args, **options):
        sizes.append(len(x))
        return forward(self, x, *args, **options)

    monkeypatch.setattr(type(pipe.model.unet), "forward", counted)
    job = dataclasses.replace(JOB, scheduler_name=name, guidance_interval=(0.25, 0.75))
    jobs = [job, dataclasses.replace(job, seed=9, guidance_scale=3.0)]
    part = pixels(pipe.make(jobs))
    each = 2 if name == "heun" else 1
    assert sizes == ([2] * each + [4] * 2 * each + [2] * each)[: 4 * each - (each - 1)]
    assert [2 * call + 2 for call in pipe.guided_calls(job)] == sizes
    full = [dataclasses.replace(j, guidance_interval=(0.0, 1.0)) for j in jobs]
    everywhere = [dataclasses.replace(j, guidance_interval=None) for j in jobs]
    all_steps = pixels(pipe.make(everywhere))
    for a, b, c in zip(part, pixels(pipe.make(full)), all_steps, strict=True):
        assert np.array_equal(b, c)
        assert not np.array_equal(a, c)
    unguided = dataclasses.replace(job, guidance_scale=1.0)
    assert pipe.guided_calls(unguided) == [False] * len(pipe.guided_calls(job))
    assert job.batch_key != everywhere[0].batch_key


def through(dtype, name, scales, seeds, unet=None):
    """Return the latents of a UNet that predicts its text states, in a dtype."""

    def speak(x, t, encoder_hidden_states, **_):
        assert x.dtype == dtype
        return [encoder_hidden_states[:, :1, :1, None].expand(x.shape)]

    generators = [torch.Generator().manual_seed(s) for s in seeds]
    words = torch.linspace(0.5, 0.75, len(seeds)).to(dtype).view(-1, 1, 1)
    return denoise(
        unet or speak,
        SCHEDULERS[name](**OPTIONS.get(name, {})),
        5,
        torch.cat([torch.randn(1, 4, 2, 2, generator=g) for g in generators]),
        Conditioning(words),
        Conditioning(torch.zeros_like(words)),
        torch.tensor(scales),
        generators,
    )


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_same_noise_in_every_precision(name):
    """At the start and between steps, the noise is the same if the predictions are."""
    full = through(torch.float32, name, [2.0, 4.0], [1, 2])
    for dtype in (torch.bfloat16, torch.float16):
        half = through(dtype, name, [2.0, 4.0], [1, 2])
        assert half.dtype == torch.float32
        assert torch.equal(half, full)


def test_each_image_has_its_own_scale():
    both = through(torch.bfloat16, "ddim", [3.005, 7.55], [1, 1])
    for k, scale in enumerate((3.005, 7.55)):
        assert torch.equal(both[k], through(torch.bfloat16, "ddim", [scale] * 2, [1, 1])[k])
    assert not torch.equal(both[0], both[1])


def test_conditionings_are_joined_with_all_that_is_added():
    parts = [
        Conditioning(torch.full((1, 77, 2), k), {"ids": torch.full((1, 6), k)}) for k in (1, 2)
    ]
    both = Conditioning.cat(parts)
    assert both.prompt_embeds.shape == (2, 77, 2)
    assert both.added_cond_kwargs["ids"][:, 0].tolist() == [1, 2]
    assert Conditioning.cat([Conditioning(parts[0].prompt_embeds)]).added_cond_kwargs is None


def test_any_jobs_come_back_in_their_order(pipe):
    """Three samplers and sizes, three jobs of each, two at once: each image is as made alone."""
    jobs = [
        dataclasses.replace(JOB, seed=seed, scheduler_name=name, width=width)
        for seed in (1, 2, 3)
        for name, width in (("ddim", 32), ("euler-ancestral", None), ("pndm", 24))
    ]
    told = []
    made = pipe.make(jobs, max_batch_size=2, on_step=told.append)
    assert [m.image.size for m in made] == [(32, 32), (32, 32), (24, 32)] * 3
    assert [m.batch_size for m in made] == [2] * 6 + [1] * 3
    for job, together in zip(jobs, pixels(made), strict=True):
        (alone,) = pixels(pipe.make([job]))
        assert abs(together.astype(int) - alone).max() <= 1
    shares = [p.share for p in told]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert sorted({n for p in told for n in p.numbers}) == list(range(9))
    assert {(p.step, p.steps, len(p.latents)) for p in told if p.numbers == [0, 3]} == {
        (k, 4, 2) for k in (1, 2, 3, 4)
    }
    assert {p.steps for p in told if p.numbers[0] == 2} == {5}  # PNDM takes one more


def test_what_is_made_before_a_stop_stays(pipe):
    seen = []
    batches = pipe.sampler.make_batches(
        [JOB] * 5, max_batch_size=2, on_step=seen.append, should_stop=lambda: len(seen) == 2 * 4 + 1
    )
    assert [list(batch) for batch in batches] == [[0, 1], [2, 3]]
    assert len(seen) == 9  # in the third batch, after its first step
    assert list(pipe.sampler.make_batches([JOB], should_stop=lambda: True)) == []


def test_a_batch_that_does_not_fit_is_halved_for_good(pipe, monkeypatch, caplog):
    whole = pixels(pipe.make([JOB] * 5))
    make, asked = Sampler._make_at_once, []

    def cramped(self, jobs, *rest):
        asked.append(len(jobs))
        if len(jobs) * (jobs[0].width or 32) > room:
            raise RuntimeError(OUT)
        return make(self, jobs, *rest)

    monkeypatch.setattr(Sampler, "_make_at_once", cramped)
    monkeypatch.setattr(pipe.sampler, "max_pixels", pipe.sampler.max_pixels)
    room = 2 * 32
    made = pipe.make([JOB] * 5)
    assert asked == [5, 2, 2, 1]
    assert all(abs(a.astype(int) - b).max() <= 1 for a, b in zip(whole, pixels(made), strict=True))
    assert "a batch of 5 images does not fit into memory; continuing with 2" in caplog.text
    asked.clear()
    pipe.make([JOB] * 3)  # it knows the limit now
    pipe.make([dataclasses.replace(JOB, width=16)] * 4)  # and counts in pixels
    pipe.make([JOB], pad_batch_to=4)
    assert asked == [2, 1, 4, 2]
    room = 0
    with pytest.raises(UserError, match="not even one image of 32 x 32 fits into the memory of"):
        pipe.make([JOB])
    monkeypatch.setattr(engine, "denoise", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(pipe.sampler, [JOB], {}, None, None, 1)


def test_images_beyond_the_range_of_a_precision_are_told(pipe, monkeypatch, caplog):
    """Some VAEs of fine-tunes make black images in fp16, without any safety checker."""
    real = engine.decode

    def overflowing(vae, latents):
        pixels = real(vae, latents)
        pixels[1, 0, 3, 5] = float("nan")
        return pixels

    monkeypatch.setattr(engine, "decode", overflowing)
    pipe.make([dataclasses.replace(JOB, seed=k) for k in range(3)])
    assert "1 of 3 images exceeded the range of torch.float32" in caplog.text
    assert "set model.precision to bf16 or fp32" in caplog.text


def test_on_a_gpu_the_vae_sees_one_image_at_a_time(tiny_model):
    """This holds for grids, training samples, the page's previews and encoding of pictures."""
    model = DetSDTextualInversionPipeline.from_pretrained(str(tiny_model)).model
    vae, seen = model.vae, []
    for part in (vae.encoder, vae.decoder):
        part.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))

    def there_and_back():
        seen.clear()
        with torch.no_grad():
            latents = vae.encode(torch.zeros(3, 3, 32, 32)).latent_dist.mean
        return decode(vae, latents), list(seen)

    at_once, (encoded, decoded) = there_and_back()
    assert encoded == decoded == 3
    on_gpu = dataclasses.replace(model, device=torch.device("cuda"))
    DetSDTextualInversionPipeline(on_gpu)  # as every user of a model makes it
    one_by_one, sizes = there_and_back()
    assert sizes == [1] * 6
    torch.testing.assert_close(one_by_one, at_once)


def test_memory_that_pytorch_keeps_counts_as_free(monkeypatch):
    """A GPU has 10 GB, with 8 reserved and 2 of these in use; PyTorch 2.3 needs its number."""
    asked = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: asked.append(d) or (2e9, 10e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda d: 8e9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda d: 2e9)
    for name in ("cuda", "cuda:1"):
        assert memory.free_memory(torch.device(name)) == 8e9
    assert asked == [3, 1]
    fits = memory.fitting_batch_size(torch.device("cuda"), torch.float16, 512, 512)
    assert fits == 0.8 * 8e9 // (2300 * 512 * 512 * 2)


@pytest.mark.parametrize(
    ("message", "full"),
    [
        (OUT, True),
        ("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory",
         True),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("GET was unable to find an engine to execute this computation", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)  # fmt: skip
def test_running_out_of_memory_is_told_from_other_errors(message, full):
    assert memory.is_out_of_memory(RuntimeError(message)) is full
    assert memory.is_out_of_memory(torch.cuda.OutOfMemoryError(message))
