"""A device other than the CPU: the same numbers, no mixed devices, no waiting."""

import functools
import json
import shutil
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from conftest import SAMPLES
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from forked import Forked
from PIL import Image
from tiny import FAMILIES, save_tiny_clip, save_tiny_dino, save_tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPConfig, CLIPImageProcessor

from demo_model.process import process
from detsd.__main__ import main
from detsd.app.backend import Backend
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.reading import read_concepts
from detsd.concepts.writing import write_concepts
from detsd.config import load_config
from detsd.runs.open import open_run
from detsd.runs.ranks import Ranks
from detsd.sampling.jobs import Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.sampling.stock import SCHEDULERS
from detsd.train.trainer import Trainer

CPU = torch.device("cpu")


def apart(test):
    """Run a test in a fork: the pretended device permanently changes a process."""

    @functools.wraps(test)
    def run(**given):
        with Forked(given["tmp_path"], lambda: test(**given)) as fork:
            assert fork.end() == [0], fork.said[0]

    return run


@contextmanager
def on(device):
    """Make runs use a device; yield the operations that wait for it."""
    from pretend import watching

    Ranks.device = property(lambda self: device, lambda self, found: None)
    with pytest.MonkeyPatch.context() as patch, watching() as waits, sdpa_kernel(SDPBackend.MATH):
        patch.setattr(torch.nn.Module, "to", functools.partialmethod(moved, torch.nn.Module.to))
        yield waits


def moved(module, to, *where, **how):
    """Move a module, copying its weights even from the CPU to the CPU.

    The memory alignment of weights mapped from a file can change the last bits of a product.
    """
    for part in to(module, *where, **how).parameters():
        if part.device == CPU:
            part.data = part.data.clone()
    return module


def counted(waits):
    return Counter(str(wait) for wait in waits)


@apart
def test_the_pretended_device_is_as_strict_as_cuda(tmp_path):
    from pretend import DEVICE, watching

    here = torch.arange(6.0).view(2, 3)
    there, places = here.to(DEVICE), torch.tensor([0])
    assert there.device == DEVICE
    for mixed in (
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: torch.stack([there[0, 0], here[0, 0]]),
        lambda: there @ here.T,
        lambda: here[places.to(DEVICE)],
        lambda: there.index_put_((places,), here[:1]),
        lambda: here[0, 0].add_(there[0, 0]),
        lambda: torch.randn(2, device=DEVICE),
    ):
        with pytest.raises(RuntimeError, match="pretended:0"):
            mixed()
    read = {
        "_local_scalar_dense": lambda: bool((there > 2).any()),
        "nonzero": lambda: there.nonzero(),
        "index": lambda: there[there > 2],
        "equal": lambda: torch.equal(there, there),
        "_unique2": lambda: there.unique(),
        "_to_copy": lambda: there.cpu().numpy(),
        "copy_": lambda: torch.tensor([1.0], device=DEVICE),
    }
    for what, call in (
        *read.items(),
        ("index", lambda: there[places]),
        ("copy_", lambda: here.to(DEVICE)),
    ):
        with watching() as waits:
            call()
        assert [(w.what, w.unpinned) for w in waits] == [(what, False)]
    with watching() as waits:
        here.to(DEVICE, non_blocking=True)
    assert [(w.what, w.unpinned) for w in waits] == [("copy_", True)]
    with watching() as waits:
        rows = torch.zeros(2, 3, device=DEVICE).requires_grad_()
        (
            torch.where(there > 2, there, 0.0) * rows * here[1, 1] + torch.arange(3, device=DEVICE)
        ).sum().backward()
        rows.grad.clamp_(max=2).isfinite().all()
    assert not waits
    assert rows.grad.tolist() == [[0, 0, 0], [2, 2, 2]]


STEPS = {
    "fp32": ("sd1", {}),
    "bf16": ("sdxl", {"gradient_checkpointing": True, "optimizer_name": "adamw"}),
    "fp16": ("sd1", {"min_snr_gamma": None}),
}


@pytest.mark.parametrize("precision", STEPS)
@apart
def test_a_step_gives_the_same_rows_and_waits_for_nothing(precision, experiment, tmp_path):
    from pretend import DEVICE

    family, training = STEPS[precision]
    config = load_config(
        experiment(
            model={
                "pretrained_model_name_or_path": str(FAMILIES[family](tmp_path / "model")),
                "precision": precision,
            },
            training={
                "num_sgd_steps": 4,
                "metric_report_freq": 8,
                "train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "min_snr_gamma": 5.0,
                "norm_reg_weight": 0.1,
                "hidden_reg_weight": 0.1,
                "max_sample_grad_norm": 0.01,
                **training,
            },
        )
    )
    rows = []
    for device in (CPU, DEVICE):
        out = tmp_path / device.type
        with on(device) as waits, open_run(out, accelerate=True) as run:
            trainer = Trainer(config, run)
            assert trainer.step.vectors[0].device == device
            stops = []  # recorded at the end of every step
            run.should_stop = lambda at=stops, now=waits: at.append(len(now))
            assert trainer.train()
            steps = waits[stops[0] : stops[2]]  # two steps, and everything between them
            rows.append([matrix.detach().cpu() for matrix in trainer.step.vectors])
    assert all(map(torch.equal, *rows))
    # The samples lie in pinned memory where the device is CUDA's: of four tensors each, one copy.
    assert counted(w for w in steps if w.unpinned) == {"copy_ in dataset.py _each": 2 * 2 * 4}
    # The fp16 scaler checks whether to skip the step: once per device.
    waited = {"_local_scalar_dense in step.py __call__": 2} if precision == "fp16" else {}
    assert counted(w for w in steps if not w.unpinned) == waited


@apart
def test_a_fine_tuning_tells_and_leaves_the_same(experiment, photos, tiny_model, tmp_path):
    """This covers masks, validation, samples, measures, and resuming from a checkpoint."""
    from pretend import DEVICE

    for path in photos.iterdir():  # each picture has another half as its subject
        with Image.open(path) as picture:
            half = Image.new("L", picture.size)
            half.paste(255, (0, 0, 24, 40) if path.stem[-1] in "02468" else (24, 0, 48, 40))
            picture.putalpha(half)
            (tmp_path / "cut-out").mkdir(exist_ok=True)
            picture.save(tmp_path / "cut-out" / path.name)
    path = experiment(
        concepts={"img_dirs": [str(tmp_path / "cut-out")], "mask": "alpha"},
        training={"num_sgd_steps": 4, "checkpoint_freq": 2, "train_batch_size": 2},
        inference=SAMPLES,
        measure={"num_samples": 2, "num_prompts": 1},
        evaluator={
            "clip": str(save_tiny_clip(tmp_path / "clip")),
            "dino": str(save_tiny_dino(tmp_path / "dino")),
        },
    )

    def finetune(device):
        with on(device) as waits:
            assert main(["finetune", str(path), "--output-dir", str(tmp_path / device.type)]) == 0
        assert bool(waits) == (device == DEVICE)

    def left(folder):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        told = [{k: v for k, v in m.items() if "second" not in k} for m in lines]
        files = {p.name: p.read_bytes() for p in folder.rglob("*") if p.suffix in (".png", ".gif")}
        (concept,) = read_concepts(folder / "checkpoints" / "step-00000004")
        return told, files, concept.digest

    finetune(CPU)
    finetune(DEVICE)
    told, files, digest = left(tmp_path / "cpu")
    assert {m["group"] for m in told} == {"start", "training", "validation"}
    assert len(files) == 3 * 2 + 3
    assert left(tmp_path / "pretended") == (told, files, digest)
    shutil.rmtree(tmp_path / "pretended" / "checkpoints" / "step-00000004")
    finetune(DEVICE)
    again = left(tmp_path / "pretended")
    assert again[1:] == (files, digest)
    assert again[0][-2:] == told[-2:]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@apart
def test_images_are_the_same_and_their_steps_wait_for_nothing(family, tmp_path):
    """This covers every sampler, guidance per image or none, and batches of several steps."""
    from pretend import DEVICE

    model = FAMILIES[family](tmp_path / "model")
    precision = "fp16" if family == "sdxl" else "fp32"
    cases = [(7.5, 2), (2.0, 2), (1.0, 3)]  # two batches of 2 and 3 steps
    made = []
    for device in (CPU, DEVICE):
        with on(device) as waits:
            pipe = DetSDTextualInversionPipeline.from_pretrained(
                str(model), device=device, precision=precision
            )
            rows = [torch.linspace(-1, 1, 2 * n).view(2, n) for n in pipe.vocabulary.widths]
            pipe.vocabulary.add(LearnedConcept("blob-thing", "", tuple(rows)))
            told, looks = {}, []
            for name in SCHEDULERS:
                jobs = [
                    Job("a blob-thing", k, "red" * k, scale, steps, name, 32, 40)
                    for k, (scale, steps) in enumerate(cases)
                ]
                waits.clear()
                images = pipe.make(jobs, encodings=told, on_step=looks.append)
                made.append([image.image.tobytes() for image in images])
                if device == CPU:
                    continue
                # Noise, scales and timesteps of each batch are copied before its steps.
                count = 2 * 3
                if name == "euler-ancestral" or "sde" in name:
                    count += len(looks)  # they draw noise between steps, on the CPU like all noise
                elif name == "lcm":  # except in the last step
                    count += len(looks) - 2
                elif name == "unipc":  # diffusers copies its coefficients in every step
                    count += 18
                steps = counted(w for w in waits if w.where.startswith("denoise.py"))
                assert steps == {"copy_ in denoise.py denoise": count}, name
                looks.clear()
            job = Job("a blob-thing", 0, num_inference_steps=5)
            picture = Image.linear_gradient("L").convert("RGB")
            made.append([i.tobytes() for parts in process(pipe, job, picture)[1:] for i in parts])
            call = pipe("a blob-thing", num_inference_steps=2, generator=job.generator)
            made.append([image.tobytes() for image in call.images])
    half = len(made) // 2
    assert made[:half] == made[half:]


@apart
def test_figures_grids_and_previews_are_the_same(photos, tmp_path):
    """This includes the model's safety checker, and reading the concept's file."""
    from pretend import DEVICE

    model = save_tiny_model(tmp_path / "model")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=tower, text_config={"hidden_size": 16}, projection_dim=16)
    )
    StableDiffusionPipeline.from_pretrained(
        model,
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
    ).save_pretrained(model)
    rows = torch.linspace(-1, 1, 32).view(2, 16)
    (tmp_path / "concept").mkdir()
    write_concepts([LearnedConcept("blob-thing", "red ball", (rows,))], tmp_path / "concept")
    clip = save_tiny_clip(tmp_path / "clip")
    file = tmp_path / "concept" / "blob-thing.safetensors"
    settings = {
        "model.pretrained_model_name_or_path": model,
        "concepts.files": file,
        "grid.prompts": '["a blob-thing"]',
        "grid.num_inference_steps": [1, 2],
        "grid.guidance_scales": [1, 3],
        "grid.num_seeds": 1,
    }
    grid = ["generate", *(word for k, v in settings.items() for word in ("--set", f"{k}={v}"))]
    others = shutil.copytree(photos, tmp_path / "others")
    figures = ["evaluate", file, "--images", photos, "--lineup", others, "--model", model]
    figures += ["--clip", clip, "--dino", save_tiny_dino(tmp_path / "dino")]
    for key in ("num_samples", "num_samples_per_prompt", "num_inference_steps"):
        figures += ["--set", f"evaluation.{key}=1"]
    figures += ["--set", 'evaluation.prompts=["a {} on the grass"]']
    left = []
    for device in (CPU, DEVICE):
        out = tmp_path / device.type
        with on(device) as waits:
            for name, words in (("grid", grid), ("figures", figures)):
                waits.clear()
                assert main([*map(str, words), "--output-dir", str(out / name)]) == 0
                assert bool(waits) == (device == DEVICE)
            pipe = DetSDTextualInversionPipeline.from_pretrained(
                str(model), device=device, concepts=[file]
            )
            assert pipe.sampler.checks_safety
            jobs = [Job("a blob-thing", 0, num_inference_steps=2)]
            *_, end = Backend(pipe, out / "made").generate(jobs, previews=True)
            end.preview.save(out / "preview.png")
            pipe.reload("blob-thing")
            assert torch.equal(pipe.vocabulary.concepts()[0].embeddings[0], rows)
        files = (p for p in out.rglob("*") if p.suffix == ".png" or p.name == "evaluation.json")
        left.append({p.relative_to(out): p.read_bytes() for p in files})
    assert left[0] == left[1]
    assert len(left[0]) >= 12
