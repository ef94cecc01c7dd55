"""Training samples, drawn by index from encoded training images.

Sample i's image, template, flip, posterior draw, timestep and noise are a pure function of
(seed, i). They do not depend on the rank, the batch split or interruptions of the run. With aspect
buckets, the image also depends on the samples per step, which stay the same throughout a run.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from PIL import Image

from detsd.concepts.prompts import PromptRewriter
from detsd.config import ConceptsConfig
from detsd.data.latents import TrainingImage, read_concept
from detsd.data.prompts import display_name, vary_tags
from detsd.models.base import BaseModel, TimeIds


class Stream(IntEnum):
    """Streams of random numbers, kept apart so that adding one changes no other."""

    ORDER = 0  # order of the images in an epoch, by bucket
    CHOICES = 1  # choice of template and flip
    DRAW = 2  # draw from the posterior, and noise
    VALIDATION = 3
    TAGS = 4
    BUCKETS = 5  # order of the steps
    PHRASES = 6  # samples for the search for a phrase


def _normal(shape: tuple[int, ...], *parts: int) -> torch.Tensor:
    """Draw standard normal numbers on the CPU, so that every device gets the same."""
    # numpy's SeedSequence mixes the parts well into one seed; PyTorch uses only 32 bits of it.
    seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Sample:
    """A training sample: a latent, its prompt, its noise and timestep."""

    prompt: str
    x: torch.Tensor  # (4, h, w), a draw from the posterior, scaled
    noise: torch.Tensor  # (4, h, w)
    t: int
    frame: TimeIds
    mask: torch.Tensor | None = None  # (1, h, w)


@dataclass(frozen=True)
class Batch:
    """The samples of a step."""

    prompts: list[str]
    x: torch.Tensor  # (B, 4, h, w)
    noise: torch.Tensor  # (B, 4, h, w)
    t: torch.Tensor  # (B,)
    frames: torch.Tensor  # (B, 6)
    mask: torch.Tensor | None = None  # (B, 1, h, w)

    @property
    def noising(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The latents, noise and timesteps, as `denoising_error` takes them."""
        return self.x, self.noise, self.t

    @staticmethod
    def of(samples: Sequence[Sample]) -> Batch:
        """Stack samples, on the CPU."""
        return Batch(
            [s.prompt for s in samples],
            torch.stack([s.x for s in samples]),
            torch.stack([s.noise for s in samples]),
            torch.tensor([s.t for s in samples]),
            torch.tensor([s.frame for s in samples], dtype=torch.float32),
            None if samples[0].mask is None else torch.stack([s.mask for s in samples]),
        )

    def on(self, device: torch.device) -> Batch:
        """Copy to a device; from pinned memory, without waiting for the copy."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self, device: torch.device) -> Batch:
        """Copy to pinned memory for a GPU; for another device, return as it is."""
        if device.type != "cuda":
            return self
        with torch.cuda.device(device):  # set per thread; otherwise the first GPU is used
            return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        parts = (self.x, self.noise, self.t, self.frames, self.mask)
        return Batch(self.prompts, *(None if part is None else change(part) for part in parts))


class TrainingData:
    """All images of all concepts, encoded once, and the samples drawn from them.

    Attributes:
        images: the images to train on.
        validation: the images for the validation loss: held out if a concept has ten images or
            more, else taken from the training images.
        held_out: whether every concept has images held out.
        masked: whether parts of the images are ignored, in training and validation alike.
        digests: "concept/file" -> digest, of all images.
        pictures: concept -> a few of its images, for display.
        shapes: concept -> the number of its images for each width and height they are cut to.
    """

    def __init__(
        self,
        config: ConceptsConfig,
        model: BaseModel,
        seed: int,
        max_validation: int,
        crops: dict[str, list[Image.Image]] | None = None,
        samples_per_step: int = 1,
    ):
        """Read and encode all images; if `crops` is given, also add them to it by concept.

        All samples of a step, `samples_per_step` over all processes, have the same shape.
        """
        self.seed, self.samples_per_step = seed, samples_per_step
        self.start = np.random.default_rng((seed, Stream.CHOICES)).uniform()  # of the timesteps
        self.scaling = float(model.vae.config.scaling_factor)
        self.num_timesteps = int(model.scheduler.config.num_train_timesteps)
        self.masked = config.mask != "none"
        self.shuffle, self.drop_out = config.shuffle_tags, config.tag_drop_out
        self.words = PromptRewriter(dict.fromkeys(config.concept_strs, ""))
        self.images: list[TrainingImage] = []
        self.validation: list[TrainingImage] = []
        self.held_out = True
        self.digests: dict[str, str] = {}
        self.pictures: dict[str, list[Image.Image]] = {}
        self.shapes: dict[str, Counter[tuple[int, int]]] = {}
        for k, name in enumerate(config.concept_strs):
            kept = None if crops is None else crops.setdefault(name, [])
            images, self.pictures[name] = read_concept(model, config, k, kept)
            self.digests |= {f"{name}/{display_name(i.path)}": i.digest for i in images}
            self.shapes[name] = Counter(image.shape for image in images)
            self._split(images, k, max_validation)
        self.train_on(self.images)

    def train_on(self, images: list[TrainingImage]) -> None:
        """Draw the samples from these images."""
        by_shape: dict[tuple[int, int], list[TrainingImage]] = {}
        for image in images:
            by_shape.setdefault(image.shape, []).append(image)
        self.images, self._buckets = images, [by_shape[shape] for shape in sorted(by_shape)]
        cached = functools.lru_cache(64)
        self._order, self._steps = cached(self._draw_order), cached(self._draw_steps)

    def _split(self, images: list[TrainingImage], k: int, max_validation: int) -> None:
        """Split the images of concept number `k` into training and held-out ones.

        Copies of a picture count as one and stay together.
        """
        copies: dict[str, list[TrainingImage]] = {}
        for image in images:
            copies.setdefault(image.pixels, []).append(image)
        pictures = list(copies)
        n = len(pictures)
        order = np.random.default_rng((self.seed, Stream.VALIDATION, k)).permutation(n)
        held = set(order[: min(max_validation, max(1, n // 10))].tolist()) if n >= 10 else set()
        self.held_out &= bool(held)
        held_pictures = {pictures[j] for j in held}
        self.images += [image for image in images if image.pixels not in held_pictures]
        chosen = sorted(held) or range(min(n, max_validation))
        self.validation += [copies[pictures[j]][0] for j in chosen]

    @property
    def resolutions(self) -> dict[str, tuple[int, int] | None]:
        """The most common width and height of each concept's images; None: square."""
        found = {}
        for name, shapes in self.shapes.items():
            # In a tie, the shape closest to a square, then the landscape one.
            width, height = max(shapes, key=lambda s: (shapes[s], min(s) / max(s), s))
            found[name] = None if width == height else (width, height)
        return found

    def sample(self, i: int) -> Sample:
        """Draw training sample number i, a pure function of (seed, i).

        Timesteps follow a golden-ratio sequence: uniform, and spread evenly over any stretch of
        samples, so that the loss of a batch depends more on the vectors than on the timesteps
        drawn.
        """
        image = self._image(i)  # the whole function takes 0.09 ms, for 10 or 10,000 images
        rng = np.random.default_rng((self.seed, Stream.CHOICES, i))
        prompt = image.prompts[int(rng.integers(len(image.prompts)))]
        view = int(rng.integers(len(image.mean)))
        if self.shuffle or self.drop_out:
            own = np.random.default_rng((self.seed, Stream.TAGS, i))
            prompt = vary_tags(prompt, self.words, own, self.shuffle, self.drop_out)
        t = int((self.start + i * 0.6180339887498949) % 1 * self.num_timesteps)
        return self._noised(image, view, prompt, t, Stream.DRAW, i)

    def _image(self, i: int) -> TrainingImage:
        """Return the image of training sample number i; all images of a step have the same shape.

        The shape is chosen per step, not per micro-batch, so that the samples do not depend on how
        they are divided among processes. A cycle has as many steps as there are images, and each
        bucket gets as many of them as it has images, so all images are used equally often. Within a
        bucket of n images, each is used once in n consecutive samples.
        """
        step, offset = divmod(i, self.samples_per_step)
        cycle, place = divmod(step, len(self.images))
        buckets, counts = self._steps(cycle)
        images = self._buckets[bucket := buckets[place]]
        number = (cycle * len(images) + counts[place]) * self.samples_per_step + offset
        epoch, place = divmod(number, len(images))
        return images[self._order(epoch, bucket)[place]]

    def _draw_order(self, epoch: int, bucket: int) -> np.ndarray:
        """Return the order (n,) of a bucket's images in an epoch; a batch may span two epochs."""
        key = (self.seed, Stream.ORDER, epoch)
        rng = np.random.default_rng((*key, bucket) if bucket else key)
        return rng.permutation(len(self._buckets[bucket]))

    def _draw_steps(self, cycle: int) -> tuple[list[int], list[int]]:
        """Return the bucket of each step of a cycle, and the number of its earlier steps."""
        sizes = [len(images) for images in self._buckets]
        rng = np.random.default_rng((self.seed, Stream.BUCKETS, cycle))
        buckets = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        counts = np.empty_like(buckets)
        for bucket, size in enumerate(sizes):
            counts[buckets == bucket] = np.arange(size)
        return buckets.tolist(), counts.tolist()

    def validation_samples(self, k: int, timesteps: int) -> list[Sample]:
        """Draw the fixed samples of validation image k: fixed prompt, noise and even timesteps."""
        image = self.validation[k]
        prompt = image.prompts[k % len(image.prompts)]
        times = [int((j + 0.5) / timesteps * self.num_timesteps) for j in range(timesteps)]
        return [
            self._noised(image, 0, prompt, t, Stream.VALIDATION, k * timesteps + j)
            for j, t in enumerate(times)
        ]

    def noisy_samples(self, name: str, count: int, low: float, high: float) -> list[Sample]:
        """Draw fixed samples of a concept's images, at timesteps from fraction `low` to `high`.

        Their prompts are captions, or the word and the words of the file name, because a template's
        medium would be a guess.
        """
        images = [image for image in self.images if image.concept == name]
        np.random.default_rng((self.seed, Stream.PHRASES)).shuffle(images)
        # In golden-ratio steps, so that even the first few are spread evenly.
        shares = [low + (high - low) * ((i + 0.5) * 0.6180339887498949 % 1) for i in range(count)]
        samples = []
        for i, share in enumerate(shares):
            image, t = images[i % len(images)], int(share * self.num_timesteps)
            prompt, *templates = image.prompts
            prompt = PromptRewriter({name: ""}).cut_before(prompt) if templates else prompt
            samples.append(self._noised(image, 0, prompt, t, Stream.PHRASES, i))
        return samples

    def _noised(
        self, image: TrainingImage, view: int, prompt: str, t: int, stream: Stream, i: int
    ) -> Sample:
        """Draw latent number `i` of a stream from an image's posterior, and its noise."""
        mean, std = image.mean[view], image.std[view]
        draw, noise = _normal((2, *mean.shape), self.seed, stream, i)
        mask = None if image.mask is None else image.mask[view]
        return Sample(prompt, (mean + std * draw) * self.scaling, noise, t, image.frame, mask)
