"""Image folder -> tensors -> cached latents; sample index -> training example.

Sample i's image, template, flip, posterior draw, timestep and noise are a pure function of
(seed, i): not of the rank, the batch split, or how often the run was interrupted.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from detsd.concepts.prompts import PromptRewriter
from detsd.config import ConceptsConfig
from detsd.data.folder import list_images
from detsd.data.images import read_images, read_mask, to_tensor
from detsd.data.prompts import display_name, prompts_for, vary_tags
from detsd.models.base import BaseModel, TimeIds
from detsd.utils.progress import Bar, Phase

logger = logging.getLogger("detsd")

PICTURES = 6  # of each concept kept as images

# Streams of random numbers, kept apart so that adding one changes no other.
ORDER, CHOICES, DRAW, VALIDATION, TAGS = range(5)

PIXELS_AT_ONCE = 2**21  # 8 images of 512 x 512, which a VAE on a GPU sees one by one


def _normal(shape: tuple[int, ...], *parts: int) -> torch.Tensor:
    """Standard normal numbers, drawn on the CPU so that every device gets the same.

    By several numbers, well mixed (numpy's SeedSequence) into one seed; PyTorch heeds 32 bits.
    """
    seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- latents and examples ------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingImage:
    """One training image: its prompts and the VAE posterior of it (and of its mirror image).

    `digest` tells whether it is still the same: of the pixels that are trained on, the prompts, and
    the mask.
    """

    path: Path
    digest: str
    prompts: tuple[str, ...]
    mean: torch.Tensor  # (views, 4, h, w), views = 1 or 2 with the flip
    std: torch.Tensor
    frame: TimeIds
    mask: torch.Tensor | None = None  # (views, 1, h, w) in [0, 1]: what trains


@dataclass(frozen=True)
class Sample:
    """One training sample: what is shown, under which words, how much noised."""

    prompt: str
    x: torch.Tensor  # (4, h, w), a draw from the posterior, scaled
    noise: torch.Tensor  # (4, h, w)
    t: int
    frame: TimeIds
    mask: torch.Tensor | None = None  # (1, h, w)


@dataclass(frozen=True)
class Batch:
    """Training samples as a step takes them."""

    prompts: list[str]
    x: torch.Tensor  # (B, 4, h, w)
    noise: torch.Tensor  # (B, 4, h, w)
    t: torch.Tensor  # (B,)
    frames: torch.Tensor  # (B, 6)
    mask: torch.Tensor | None = None  # (B, 1, h, w)

    @property
    def noising(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, noise and timesteps, as `denoising_error` takes them."""
        return self.x, self.noise, self.t

    @staticmethod
    def of(examples: Sequence[Sample]) -> Batch:
        """Examples stacked, on the CPU."""
        return Batch(
            [e.prompt for e in examples],
            torch.stack([e.x for e in examples]),
            torch.stack([e.noise for e in examples]),
            torch.tensor([e.t for e in examples]),
            torch.tensor([e.frame for e in examples], dtype=torch.float32),
            None if examples[0].mask is None else torch.stack([e.mask for e in examples]),
        )

    def on(self, device: torch.device) -> Batch:
        """The same on a device; from pinned memory it is copied while others compute."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self, device: torch.device) -> Batch:
        """The same in memory from which a GPU copies by itself; as it is for other devices."""
        if device.type != "cuda":
            return self
        with torch.cuda.device(device):  # said anew in every thread: it would open the first GPU
            return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        parts = (self.x, self.noise, self.t, self.frames, self.mask)
        return Batch(self.prompts, *(None if part is None else change(part) for part in parts))


@torch.no_grad()
def encode_images(
    model: BaseModel, images: list[Image.Image], flip: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each image's posterior mean and std (views, 4, h, w) on the CPU, encoded at once."""
    views = [v for i in images for v in ([i, ImageOps.mirror(i)] if flip else [i])]
    pixels = torch.stack([to_tensor(v) for v in views])
    posterior = model.vae.encode(pixels.to(model.device, model.vae.dtype)).latent_dist
    mean, std = posterior.mean.float().cpu(), posterior.std.float().cpu()
    each = len(views) // len(images)
    return list(zip(mean.split(each), std.split(each), strict=True))


def changed_images(old: dict[str, str], new: dict[str, str]) -> str:
    """How the images of two starts of one run differ, in words; "" where they do not."""
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


class TrainingData:
    """All images of all concepts, encoded once, and the samples drawn from them.

    `images` are trained on; `validation` are (image, fixed timesteps) for the validation loss, held
    out where a concept has ten images or more, else taken from the training images. `masked` says
    whether parts of the images count for nothing, in training and validation alike.
    """

    def __init__(self, config: ConceptsConfig, model: BaseModel, seed: int, max_validation: int):
        self.seed = seed
        self.start = np.random.default_rng((seed, CHOICES)).uniform()  # of the timesteps
        # The order (n,) of the images in an epoch; a batch may end one and begin one.
        self._order = functools.lru_cache(4)(
            lambda epoch, n: np.random.default_rng((seed, ORDER, epoch)).permutation(n)
        )
        self.scaling = float(model.vae.config.scaling_factor)
        self.num_timesteps = int(model.scheduler.config.num_train_timesteps)
        size = config.img_size or model.image_size
        at_once = max(1, min(16, PIXELS_AT_ONCE // size**2))
        self.images: list[TrainingImage] = []
        self.pictures: dict[str, list[Image.Image]] = {}  # a few of each concept, to be looked at
        self.digests: dict[str, str] = {}  # "concept/file" -> digest, of all images
        self.validation: list[TrainingImage] = []
        self.held_out, self.masked = True, config.mask != "none"
        self.shuffle, self.drop_out = config.shuffle_tags, config.tag_drop_out
        self.words = PromptRewriter(dict.fromkeys(config.concept_strs, ""))
        for k, (name, folder, kind) in enumerate(
            zip(config.concept_strs, config.img_dirs, config.learnable_properties, strict=True)
        ):
            training_images = []
            images = read_images(Path(folder), config, size, f"concepts.img_dirs[{k}]")
            total = len(list_images(Path(folder))) if Path(folder).is_dir() else 0
            shown = self.pictures.setdefault(name, [])
            with Bar(
                {"images": Phase(1, total=total)}, f"encoding the images of {name}", leave=False
            ) as bar:
                while batch := list(itertools.islice(images, at_once)):
                    encoded = encode_images(model, [i for _, i, _ in batch], config.horizontal_flip)
                    for (path, image, where), (mean, std) in zip(batch, encoded, strict=True):
                        prompts = tuple(prompts_for(path, name, kind, config))
                        seen = hashlib.blake2b(image.tobytes(), digest_size=8)
                        seen.update("\0".join(prompts).encode())
                        mask = read_mask(path, where, config, mean.shape[:1:-1])
                        if mask is not None:
                            seen.update(mask.numpy().tobytes())
                            mask = torch.stack([mask, mask.flip(-1)][: len(mean)])
                        if len(training_images) % -(-total // PICTURES) == 0:
                            shown.append(image)
                        training_images.append(
                            TrainingImage(path, seen.hexdigest(), prompts, mean, std, where, mask)
                        )
                    bar.done("images", len(batch))
            self.digests |= {f"{name}/{display_name(s.path)}": s.digest for s in training_images}
            n = len(training_images)
            order = np.random.default_rng((seed, VALIDATION, k)).permutation(n)
            held = set(order[: min(max_validation, max(1, n // 10))].tolist()) if n >= 10 else set()
            self.held_out &= bool(held)
            self.images += [s for j, s in enumerate(training_images) if j not in held]
            self.validation += [
                training_images[j] for j in (sorted(held) or range(min(n, max_validation)))
            ]

    def example(self, i: int) -> Sample:
        """Training sample number i, a pure function of (seed, i).

        Each image comes up once in len(images) consecutive samples. Timesteps follow a golden-ratio
        sequence: uniform, and spread evenly over any stretch of samples, so that the loss of a
        batch says more about the rows than about the timesteps drawn.
        """
        n = len(self.images)
        epoch, place = divmod(i, n)
        image = self.images[self._order(epoch, n)[place]]
        rng = np.random.default_rng((self.seed, CHOICES, i))
        prompt = image.prompts[int(rng.integers(len(image.prompts)))]
        view = int(rng.integers(len(image.mean)))
        if self.shuffle or self.drop_out:
            own = np.random.default_rng((self.seed, TAGS, i))
            prompt = vary_tags(prompt, self.words, own, self.shuffle, self.drop_out)
        t = int((self.start + i * 0.6180339887498949) % 1 * self.num_timesteps)
        return self._noised(image, view, prompt, t, DRAW, i)

    def validation_examples(self, k: int, timesteps: int) -> list[Sample]:
        """The fixed examples of validation image k: even timesteps, fixed noise and prompt."""
        image = self.validation[k]
        prompt = image.prompts[k % len(image.prompts)]
        times = [int((j + 0.5) / timesteps * self.num_timesteps) for j in range(timesteps)]
        return [
            self._noised(image, 0, prompt, t, VALIDATION, k * timesteps + j)
            for j, t in enumerate(times)
        ]

    def _noised(
        self, image: TrainingImage, view: int, prompt: str, t: int, stream: int, i: int
    ) -> Sample:
        mean, std = image.mean[view], image.std[view]
        draw, noise = _normal((2, *mean.shape), self.seed, stream, i)
        mask = None if image.mask is None else image.mask[view]
        return Sample(prompt, (mean + std * draw) * self.scaling, noise, t, image.frame, mask)
