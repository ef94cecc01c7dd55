"""Samples per second of fine-tuning, compared with a textbook loop and with the UNet alone.

The textbook loop is that of most tutorials: in every step, the VAE encodes every image and the
tokenizer every prompt, and the optimizer holds the whole token table, of which all rows but the new
ones are restored afterwards. All use the same model, images, batch size, precision and device.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measure import in_turn, matmul_peak, operations, peak_memory, waits
from detsd.config import FinetuneConfig, parse_config
from detsd.data.dataset import TrainingData
from detsd.data.images import read_images, to_tensor
from detsd.models.base import BaseModel
from detsd.models.loading import load_base_model
from detsd.models.objective import prediction_target
from detsd.runs.open import open_run
from detsd.train import step as steps
from detsd.train.initializers import add_concepts
from detsd.train.trainer import Trainer

IMAGES = "det_logos"
ATTENTION = {
    "flash attention": SDPBackend.FLASH_ATTENTION,
    "cuDNN attention": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient attention": SDPBackend.EFFICIENT_ATTENTION,
}
COMPILERS = {
    "compiled": steps.compiled,
    "blocks compiled": lambda part: blocks_compiled(part, "BasicTransformerBlock"),
    "and ResNets": lambda part: blocks_compiled(part, "BasicTransformerBlock", "ResnetBlock2D"),
    "CUDA graphs": lambda part: torch.compile(part, mode="reduce-overhead", dynamic=False),
}
HEAD = [
    "model", "batch", "dtype", "textbook", "detsd", "detsd / textbook", "bare UNet", "and text",
    "step / UNet", "step / both", "TFLOP/s", "of the peak", "peak GB", "waits a step",
]  # fmt: skip


def configuration(model: dict, batch: int, **training) -> FinetuneConfig:
    """Return a fine-tuning on the shipped pictures and a base model."""
    return parse_config(
        {
            "model": model,
            "concepts": {
                "concept_strs": ["word-word"],
                "initializer_strs": ["brain logo, sharp lines"],
                "img_dirs": [IMAGES],
            },
            "training": {
                "train_batch_size": batch,
                "learning_rate": 1e-3,
                "max_validation_images": 1,
                "num_validation_timesteps": 1,
            }
            | training,
        },
        "benchmark",
    )


@contextlib.contextmanager
def trainer_of(config: FinetuneConfig) -> Iterator[Trainer]:
    """Yield a trainer whose run leaves nothing behind."""
    with TemporaryDirectory() as place, open_run(Path(place), accelerate=True) as run:
        trainer = Trainer(config, run)
        # Otherwise the thread that draws samples would keep it in memory, beside the next one.
        with contextlib.closing(trainer.batches):
            yield trainer


def textbook(config: FinetuneConfig, device: torch.device) -> Callable[[], None]:
    """Return a function that makes one step of the textbook loop."""
    model = load_base_model(config.model, device, training=True)  # in detsd's precision
    add_concepts(model.vocabulary, config.concepts)
    tables, frozen = [], []
    for side in model.vocabulary.text_encoders:
        whole = torch.cat([side.embedding.weight.float(), side.embedding.rows.detach()])
        embedding = torch.nn.Embedding.from_pretrained(whole.to(model.dtype), freeze=False)
        side.encoder.set_input_embeddings(embedding)
        tables.append(embedding.weight)
        frozen.append(side.embedding.weight)
    optimizer = torch.optim.AdamW(tables, config.training.learning_rate)
    folder = Path(config.concepts.img_dirs[0])
    shown = read_images(folder, config.concepts, model.image_size, "img_dirs")
    images = [to_tensor(each.image) for each in shown]
    batch, rng = config.training.train_batch_size, torch.Generator().manual_seed(0)

    def step() -> None:
        chosen = torch.randint(len(images), (batch,), generator=rng).tolist()
        pixels = torch.stack([images[k] for k in chosen]).to(device, model.vae.dtype)
        with torch.no_grad():
            x = model.vae.encode(pixels).latent_dist.sample() * model.vae.config.scaling_factor
        x = x.to(model.dtype)
        noise = torch.randn_like(x)
        t = torch.randint(0, model.scheduler.config.num_train_timesteps, (batch,), device=device)
        cond = model.encode_prompts(["a photo of a word-word"] * batch)
        noisy = model.scheduler.add_noise(x, noise, t)
        said = model.unet(
            noisy, t, cond.prompt_embeds, added_cond_kwargs=cond.added_cond_kwargs
        ).sample
        target = prediction_target(model.scheduler, x, noise, t)
        F.mse_loss(said.float(), target.float()).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for table, rows in zip(tables, frozen, strict=True):
                table[: len(rows)] = rows

    return step


def blocks_compiled(part: torch.nn.Module, *kinds: str) -> torch.nn.Module:
    """Return a model with the same weights, of which only blocks of these classes are compiled.

    Blocks of one class and shape share the compiled code.
    """
    shared = {id(tensor): tensor for tensor in (*part.parameters(), *part.buffers())}
    made = copy.deepcopy(part, shared)
    for block in made.modules():
        if type(block).__name__ in (*kinds, "CLIPEncoderLayer"):
            block.compile(dynamic=False)
    return made


def bare(model: BaseModel, batch: int, text: bool = False) -> Callable[[], None]:
    """Return a forward and backward pass of the frozen UNet alone, for the text states' gradient.

    Args:
        text: include the text encoders, for the gradient of a concept's rows.
    """
    config, size = model.unet.config, model.unet.config.sample_size
    x = torch.randn(batch, config.in_channels, size, size, device=model.device).to(model.dtype)
    t = torch.full((batch,), 500, device=model.device)
    prompts = [f"a photo of a {word}" for word in model.vocabulary.names or ["star"]] * batch
    with torch.no_grad():
        cond = model.encode_prompts(prompts[:batch])
    cond.prompt_embeds.requires_grad_(not text)

    def step() -> None:
        said = model.encode_prompts(prompts[:batch]) if text else cond
        found = model.unet(
            x, t, said.prompt_embeds, added_cond_kwargs=said.added_cond_kwargs
        ).sample
        found.float().pow(2).mean().backward()
        cond.prompt_embeds.grad = None
        for rows in model.vocabulary.rows:
            rows.grad = None

    return step


def variants(device: torch.device, compile_too: bool) -> list[str]:
    """Return the other ways of making the same step that `rows` tries on a device."""
    names = ["as it is", "drawn inline", "channels_last"]
    names += ATTENTION if device.type == "cuda" else []
    if compile_too:
        graphs = device.type == "cuda"
        names += [
            n for way in COMPILERS for n in (way, f"{way}, s") if graphs or "graphs" not in way
        ]
    return names


def rows(
    name: str, base: dict, batch: int, count: int, compile_too: bool
) -> tuple[list[object], list[object]]:
    """Return a row of each of the two tables."""
    settings = configuration(base, batch, compile="off")
    ways: dict[str, float | None] = {}
    began = time.perf_counter()
    with trainer_of(settings) as trainer:
        loading = time.perf_counter() - began
        model, device = trainer.model, trainer.model.device

        def step() -> None:
            trainer.step(trainer.batches, settings.training.learning_rate)

        step()
        # First, while nothing else is in memory.
        memory, told = peak_memory(step, device), waits(step, device)
        work, peak = operations(step, device), matmul_peak(device, model.dtype)
        seconds = in_turn(
            {
                "detsd": step,
                "textbook": textbook(settings, device),
                "UNet": bare(model, batch),
                "both": bare(model, batch, text=True),
            },
            count,
            device,
        )

        def again() -> float:
            """Return samples per second."""
            return batch / in_turn({"": step}, count, device)[""]

        ways["as it is"] = batch / seconds["detsd"]
        drawn, trainer.batches = trainer.batches, map(trainer.next_batch, itertools.count())
        ways["drawn inline"] = again()
        trainer.batches = drawn
        for kernel, backend in ATTENTION.items() if device.type == "cuda" else []:
            try:
                with sdpa_kernel(backend):
                    ways[kernel] = again()
            except RuntimeError:  # this GPU or precision has no such kernel
                ways[kernel] = None
        model.unet.to(memory_format=torch.channels_last)
        ways["channels_last"] = again()
    for way in (w for w in variants(device, compile_too) if w in COMPILERS):
        plain = steps.compiled
        steps.compiled = COMPILERS[way]
        try:
            torch.compiler.reset()  # drop functions compiled for other shapes or ways
            began = time.perf_counter()
            with trainer_of(configuration(base, batch, compile="on")) as trainer:
                ways[f"{way}, s"] = time.perf_counter() - began - loading
                ways[way] = again() if trainer.step.compiled else None
        finally:
            steps.compiled = plain
    rate = work / seconds["detsd"]
    main = [
        name, batch, model.dtype, batch / seconds["textbook"], batch / seconds["detsd"],
        seconds["textbook"] / seconds["detsd"], batch / seconds["UNet"], batch / seconds["both"],
        seconds["detsd"] / seconds["UNet"], seconds["detsd"] / seconds["both"], rate / 1e12,
        f"{rate / peak:.0%}", memory and memory / 1e9, told,
    ]  # fmt: skip
    return main, [name, batch, *(ways[way] for way in variants(device, compile_too))]


def data_rows(base: dict, counts: list[int], steps: int) -> list[list[object]]:
    """Measure the times of a step and of drawing a sample, by the number of images."""
    made = []
    with trainer_of(configuration(base, 8, compile="off")) as trainer:
        data: TrainingData = trainer.data
        training_images = data.images

        def step() -> None:
            trainer.step(trainer.batches, 1e-3)

        for count in counts:
            data.train_on([training_images[k % len(training_images)] for k in range(count)])
            numbers = itertools.count()
            seconds = in_turn(
                {"step": step, "sample": lambda n=numbers: data.sample(next(n))},
                steps,
                trainer.model.device,
            )
            made.append([count, 1000 * seconds["step"], 1000 * seconds["sample"]])
    return made
