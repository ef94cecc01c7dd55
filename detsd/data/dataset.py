"""Image folder -> tensors -> cached latents; sample index -> training sample.

Sample i's image, template, flip, posterior draw, timestep and noise are a pure function of
(seed, i): not of the rank, the batch split, or how often the run was interrupted. In aspect buckets
the image also depends on the samples per step, which a run keeps to its end.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from detsd.concepts.prompts import PromptRewriter
from detsd.config import ConceptsConfig
from detsd.data.captions import find_captions
from detsd.data.folder import ImageFolder
from detsd.data.images import CroppedImage, mask_tensor, read_images, to_tensor
from detsd.data.notes import Notes
from detsd.data.prompts import display_name, prompts_for, vary_tags
from detsd.models.base import BaseModel, TimeIds
from detsd.utils.progress import Bar, Phase

MAX_SHOWN = 6  # images of each concept that are kept for display

PIXELS_AT_ONCE = 2**21  # 8 images of 512 x 512; a VAE on a GPU takes them one by one


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
class TrainingImage:
    """A training image: its prompts and its VAE posterior (and that of its mirror image)."""

    path: Path
    concept: str
    digest: str  # of the pixels trained on, the prompts, and the mask
    prompts: tuple[str, ...]
    mean: torch.Tensor  # (views, 4, h, w), views = 1 or 2 with the flip
    std: torch.Tensor
    frame: TimeIds
    mask: torch.Tensor | None = None  # (views, 1, h, w) in [0, 1]: weight in training
    pixels: str = ""  # digest of the pixels alone, equal for copies

    @property
    def shape(self) -> tuple[int, int]:
        """The width and height trained on, in pixels."""
        return self.frame[5], self.frame[4]


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
        with torch.cuda.device(device):  # set in every thread: otherwise it would use the first GPU
            return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        parts = (self.x, self.noise, self.t, self.frames, self.mask)
        return Batch(self.prompts, *(None if part is None else change(part) for part in parts))


@torch.no_grad()
def encode_images(
    model: BaseModel, images: list[Image.Image], flip: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Encode images, those of equal shape together.

    Returns:
        The posterior mean and std (views, 4, h, w) of each, on the CPU.
    """
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    each = 1 + flip
    for shape in sorted({image.size for image in images}):
        numbers = [k for k, image in enumerate(images) if image.size == shape]
        views = [v for k in numbers for v in (images[k], ImageOps.mirror(images[k]))[:each]]
        pixels = torch.stack([to_tensor(v) for v in views])
        posterior = model.vae.encode(pixels.to(model.device, model.vae.dtype)).latent_dist
        mean, std = posterior.mean.float().cpu(), posterior.std.float().cpu()
        found |= dict(
            zip(numbers, zip(mean.split(each), std.split(each), strict=True), strict=True)
        )
    return [found[k] for k in range(len(images))]


def changed_images(old: dict[str, str], new: dict[str, str]) -> str:
    """Describe how the images of two starts of a run differ; "" if they do not."""
    kinds = {
        "new": new.keys() - old.keys(),
        "gone": old.keys() - new.keys(),
        "changed": {name for name in old.keys() & new.keys() if old[name] != new[name]},
    }
    return "; ".join(
        f"{kind}: {', '.join(sorted(names)[:5])}"
        + (f" and {len(names) - 5} more" * (len(names) > 5))
        for kind, names in kinds.items()
        if names
    )


def read_concept(
    model: BaseModel, config: ConceptsConfig, k: int, crops: list[Image.Image] | None = None
) -> tuple[list[TrainingImage], list[Image.Image]]:
    """Read and encode the images of concept number `k`; return them, and a few for display.

    Args:
        crops: a list to which all images are added in the form trained on.
    """
    name, kind = config.concept_strs[k], config.learnable_properties[k]
    size = config.img_size or model.image_size
    key = f"concepts.img_dirs[{k}]"
    folder = ImageFolder.scan(Path(config.img_dirs[k]), key)
    captions = find_captions(folder) if config.use_caption_files else {}
    total = len(folder.images)
    read = read_images(folder, config, size, key, model.bucket_step, model.vae_scale_factor)
    images: list[TrainingImage] = []
    shown: list[Image.Image] = []
    notes = Notes(folder, config, captions)
    at_once = max(1, min(16, PIXELS_AT_ONCE // size**2))
    phases = {"images": Phase(1, total=total)}
    with Bar(phases, f"encoding the images of {name}", leave=False) as bar:
        while batch := list(itertools.islice(read, at_once)):
            encoded = encode_images(model, [i.image for i in batch], config.horizontal_flip)
            for image, posterior in zip(batch, encoded, strict=True):
                if len(images) % -(-total // MAX_SHOWN) == 0:
                    shown.append(image.image)
                if crops is not None:
                    crops.append(image.image)
                notes.add(image)
                texts = prompts_for(image.path, name, kind, config, captions.get(image.path))
                images.append(_training_image(image, name, tuple(texts), posterior, config.mask))
            bar.done("images", len(batch))
    notes.log({image.path: image.pixels for image in images})
    return images, shown


def _training_image(
    image: CroppedImage,
    name: str,
    prompts: tuple[str, ...],
    posterior: tuple[torch.Tensor, torch.Tensor],
    kind: str,
) -> TrainingImage:
    """Combine an image's posterior, prompts and mask of a `kind`."""
    seen = hashlib.blake2b(image.image.tobytes(), digest_size=8)
    pixels = seen.hexdigest()
    seen.update("\0".join(prompts).encode())
    mask = mask_tensor(image, kind)
    if mask is not None:
        seen.update(mask.numpy().tobytes())
        mask = torch.stack([mask, mask.flip(-1)][: len(posterior[0])])
    own = image.path, name, seen.hexdigest(), prompts
    return TrainingImage(*own, *posterior, image.frame, mask, pixels)


class TrainingData:
    """All images of all concepts, encoded once, and the samples drawn from them.

    Attributes:
        images: those that are trained on.
        validation: those of the validation loss: held out if a concept has ten images or more,
            else taken from the training images.
        held_out: whether every concept has images held out.
        masked: whether parts of the images are ignored, in training and validation alike.
        digests: "concept/file" -> digest, of all images.
        pictures: concept -> a few of its images, for display.
        shapes: concept -> the number of its images by the width and height they are cut to.
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
        """Read and encode all images; with `crops`, add them there, too, by concept.

        Args:
            samples_per_step: over all processes; the samples of a step have one shape.
        """
        self.seed, self.samples_per_step = seed, samples_per_step
        self.start = np.random.default_rng((seed, Stream.CHOICES)).uniform()  # of the timesteps
        kept = functools.lru_cache(64)
        self._order, self._steps = kept(self._draw_order), kept(self._draw_steps)
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
        self._order.cache_clear()
        self._steps.cache_clear()

    def _split(self, images: list[TrainingImage], k: int, max_validation: int) -> None:
        """Split the images of concept number `k` into training and held-out ones.

        Copies of a picture count as one, and are not split.
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
        """The width and height of most images of each concept; None: square."""
        found = {}
        for name, shapes in self.shapes.items():
            # In a tie, the one nearest to a square, then a landscape.
            width, height = max(shapes, key=lambda s: (shapes[s], min(s) / max(s), s))
            found[name] = None if width == height else (width, height)
        return found

    def sample(self, i: int) -> Sample:
        """Draw training sample number i, a pure function of (seed, i).

        Timesteps follow a golden-ratio sequence: uniform, and spread evenly over any stretch of
        samples, so that the loss of a batch depends more on the vectors than on the timesteps
        drawn.
        """
        image = self._image(i)  # all of this takes 0.09 ms, with 10 images as with 10,000
        rng = np.random.default_rng((self.seed, Stream.CHOICES, i))
        prompt = image.prompts[int(rng.integers(len(image.prompts)))]
        view = int(rng.integers(len(image.mean)))
        if self.shuffle or self.drop_out:
            own = np.random.default_rng((self.seed, Stream.TAGS, i))
            prompt = vary_tags(prompt, self.words, own, self.shuffle, self.drop_out)
        t = int((self.start + i * 0.6180339887498949) % 1 * self.num_timesteps)
        return self._noised(image, view, prompt, t, Stream.DRAW, i)

    def _image(self, i: int) -> TrainingImage:
        """Return the image of training sample number i; those of one step have one shape.

        A micro-batch cannot determine the shape: the samples would then depend on how they are
        shared among processes. In as many steps as there are images, each bucket gets as many as
        it has images, so that all images come up equally often; within a bucket of n images, each
        comes up once in n consecutive samples.
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
        """Return the bucket of each step of a cycle, and how many of its steps came before it."""
        sizes = [len(images) for images in self._buckets]
        rng = np.random.default_rng((self.seed, Stream.BUCKETS, cycle))
        buckets = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        counts = np.empty_like(buckets)
        for bucket, size in enumerate(sizes):
            counts[buckets == bucket] = np.arange(size)
        return buckets.tolist(), counts.tolist()

    def validation_samples(self, k: int, timesteps: int) -> list[Sample]:
        """Draw the fixed samples of validation image k: even timesteps, fixed noise and prompt."""
        image = self.validation[k]
        prompt = image.prompts[k % len(image.prompts)]
        times = [int((j + 0.5) / timesteps * self.num_timesteps) for j in range(timesteps)]
        return [
            self._noised(image, 0, prompt, t, Stream.VALIDATION, k * timesteps + j)
            for j, t in enumerate(times)
        ]

    def noisy_samples(self, name: str, count: int, low: float, high: float) -> list[Sample]:
        """Draw fixed samples of a concept's images, one after the other.

        Their prompts are captions, or the word and the file's name: a template's medium is a guess.

        Args:
            low, high: the shares of the timesteps between which theirs are spread.
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
