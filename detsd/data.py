"""Image folder -> tensors -> cached latents; sample index -> training example.

Sample i's image, template, flip, posterior draw, timestep and noise are a pure function of
(seed, i): not of the rank, the batch split, or how often the run was interrupted.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps

from detsd.checks import list_images, mask_of, passed_over
from detsd.concepts.prompts import PromptRewriter
from detsd.config import ConceptsConfig
from detsd.models.base import BaseModel, Frame
from detsd.templates import TEMPLATES
from detsd.utils.errors import UserError
from detsd.utils.progress import Bar, Work

logger = logging.getLogger("detsd")

PICTURES = 6  # of each concept kept as images

# Streams of random numbers, kept apart so that adding one changes no other.
ORDER, CHOICES, DRAW, VALIDATION, TAGS = range(5)

PIXELS_AT_ONCE = 2**21  # 8 images of 512 x 512, which a VAE on a GPU sees one by one

A, B = TypeVar("A"), TypeVar("B")


def _normal(shape: tuple[int, ...], *parts: int) -> torch.Tensor:
    """Standard normal numbers, drawn on the CPU so that every device gets the same.

    By several numbers, well mixed (numpy's SeedSequence) into one seed; PyTorch heeds 32 bits.
    """
    seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- images --------------------------------------------------------------------------------------


def to_rgb(image: Image.Image, behind: str = "white") -> Image.Image:
    """The first frame, upright, as 8-bit RGB; transparency shows the colour `behind`."""
    image.seek(0)
    # A dark picture of 16 bits need not hold a value above 255; older versions of Pillow know such
    # a PNG file by "I" only.
    is_16_bit = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit and float greys: Pillow's own conversion clips instead of scaling.
        values = np.asarray(image, np.float64)
        if image.mode == "F" and values.max() <= 1:
            top = 1.0
        else:
            top = 65535.0 if is_16_bit or values.max() > 255 else 255.0
        image = Image.fromarray((values / top * 255).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, ImageColor.getrgb(behind))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def shape_of(size: int, aspect: float) -> tuple[int, int]:
    """Width and height of an aspect, of about as many pixels as a square of `size` a side.

    Multiples of 8, of which a VAE makes whole latents.
    """
    width, height = size * math.sqrt(aspect), size / math.sqrt(aspect)
    return tuple(max(8, round(side / 8) * 8) for side in (width, height))


def to_shape(
    image: Image.Image,
    shape: tuple[int, int],
    center_crop: bool,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """`shape` pixels wide and high: the centre crop, or the whole image squeezed."""
    if center_crop:
        return ImageOps.fit(image, shape, resample)
    return image.resize(shape, resample)


def frame(width: int, height: int, shape: tuple[int, int], center_crop: bool) -> Frame:
    """What `to_shape` makes of an image, as Stable Diffusion XL was told of its training images.

    The crop is counted in pixels of the scaled image (arXiv 2307.01952, section 2.2).
    """
    across, down = shape
    if not center_crop:
        return (height, width, 0, 0, down, across)
    scale = max(across / width, down / height)
    left, top = (
        max(0, round((side * scale - kept) / 2)) for side, kept in ((width, across), (height, down))
    )
    return (height, width, top, left, down, across)


def text_of(path: Path) -> str:
    r"""A file's name as text; bytes that are no UTF-8, as in names of old disks, as `\xe9`."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def ahead(call: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """`call(item)` of every item, in their order, made by threads that run a little ahead."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[B]] = deque()
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_images(
    folder: Path, config: ConceptsConfig, size: int, key: str
) -> Iterator[tuple[Path, Image.Image, Frame]]:
    """All readable images of a folder, cut to one shape, with their frames.

    Unreadable ones are named and skipped.

    Several are decoded at once, and only a few are held.

    Raises:
        UserError: no such folder, or no readable image in it.
    """
    if not folder.is_dir():
        raise UserError(f"{key}: folder {folder} does not exist; name a folder of images")
    if note := passed_over(folder):
        logger.warning("%s", note)
    shape = shape_of(size, config.img_aspect)

    def read(path: Path) -> tuple[Path, Image.Image | Exception, Frame | None]:
        try:
            with Image.open(path) as image:
                rgb = to_rgb(image, config.transparency_color)
        except Exception as error:  # broken files raise a dozen classes, struct.error among them
            return path, error, None
        where = frame(*rgb.size, shape, config.center_crop)
        return path, to_shape(rgb, shape, config.center_crop), where

    count = 0
    for path, image, where in ahead(read, list_images(folder), min(8, os.cpu_count() or 1)):
        if isinstance(image, Exception):
            logger.warning("%s cannot be read and is skipped (%s)", path, image)
            continue
        count += 1
        yield path, image, where
    if not count:
        raise UserError(
            f"{key}: folder {folder} holds no readable image; put JPEG, PNG or WebP files there"
            + (f" ({note})" if note else "")
        )


def read_mask(
    path: Path, where: Frame, config: ConceptsConfig, shape: tuple[int, int]
) -> torch.Tensor | None:
    """How much of each latent of a picture trains: (1, h, w) in [0, 1]; None without a mask.

    Cut out as the picture is. A latent counts by the share of its pixels that do.

    Args:
        where: the picture's frame.
        shape: latents across and down.

    Raises:
        UserError: no readable mask, one of another size, or one that leaves nothing.
    """
    if config.mask == "none":
        return None
    source = mask_of(path) if config.mask == "files" else path
    try:
        with Image.open(source) as image:
            if config.mask == "files":
                mask = to_rgb(image, "black").convert("L")
            else:
                image.seek(0)
                mask = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
    except Exception as error:  # as of pictures
        raise UserError(f"{source} cannot be read as a mask ({error}); save it again") from None
    height, width = where[:2]
    if mask.size != (width, height):
        raise UserError(
            f"{source} is {mask.width} x {mask.height} pixels, but its picture {path.name} is "
            f"{width} x {height}; make the mask as large as the picture"
        )
    mask = to_shape(mask, shape, config.center_crop, Image.Resampling.BOX)
    if not mask.getbbox():
        what = "is black" if config.mask == "files" else "is transparent"
        raise UserError(
            f"{source} {what} all over what is trained on, so that nothing of the picture would "
            "train; mend it, or leave the picture out"
        )
    return torch.from_numpy(np.asarray(mask).copy())[None].float() / 255


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


# ---- prompts -------------------------------------------------------------------------------------


def prompts_for(path: Path, name: str, kind: str, config: ConceptsConfig) -> list[str]:
    """The prompts that image `path` of concept `name` may be shown with.

    Raises:
        UserError: an empty caption file; a file name that is to be read and is no UTF-8.
    """
    sidecar = path.with_suffix(".txt")
    if config.use_caption_files and sidecar.is_file():
        try:
            # "-sig": some editors begin a file with a mark that would become three tokens.
            text = " ".join(sidecar.read_text(encoding="utf-8-sig").split())
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{sidecar} cannot be read as UTF-8 text; save it again") from None
        if not text:
            raise UserError(f"{sidecar} is empty; write a caption, or delete it")
        text = text.replace("{}", name)
        # A caption that does not say where the concept is begins with it.
        return [text if PromptRewriter({name: ""}).words_in(text) else f"{name}, {text}"]
    words = ""
    if config.append_file_name_to_text:  # on_a_beach.jpg -> on a beach
        if text_of(path) != path.name:
            raise UserError(
                f"{path.parent / text_of(path)}: the file name is no UTF-8, and "
                "concepts.append_file_name_to_text reads it; rename the file"
            )
        split = config.file_name_split_char
        words = " " + (path.stem.replace(split, " ") if split else path.stem)
    templates = list(TEMPLATES[kind])
    templates += ["{}"] * config.num_blank_prompts + ["a {}"] * config.num_a_prompts
    return [template.format(name) + words for template in templates]


def vary_tags(
    prompt: str, words: PromptRewriter, rng: np.random.Generator, shuffle: bool, drop_out: float
) -> str:
    """A prompt with its comma-separated parts in another order, or some of them left out.

    Those that have one of the `words` stay; where the others are shuffled, they come first.
    """
    tags = [tag.strip() for tag in prompt.split(",")]
    tags = [tag for tag in tags if words.words_in(tag) or rng.random() >= drop_out]
    if shuffle:
        rest = [tag for tag in tags if not words.words_in(tag)]
        tags = [tag for tag in tags if words.words_in(tag)]
        tags += [rest[k] for k in rng.permutation(len(rest))]
    return ", ".join(tags)


# ---- latents and examples ------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """One training image: its prompts and the VAE posterior of it (and of its mirror image).

    `digest` tells whether it is still the same: of the pixels that are trained on, the prompts, and
    the mask.
    """

    path: Path
    digest: str
    prompts: tuple[str, ...]
    mean: torch.Tensor  # (views, 4, h, w), views = 1 or 2 with the flip
    std: torch.Tensor
    frame: Frame
    mask: torch.Tensor | None = None  # (views, 1, h, w) in [0, 1]: what trains


@dataclass(frozen=True)
class Example:
    """One training sample: what is shown, under which words, how much noised."""

    prompt: str
    x: torch.Tensor  # (4, h, w), a draw from the posterior, scaled
    noise: torch.Tensor  # (4, h, w)
    t: int
    frame: Frame
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
    def of(examples: Sequence[Example]) -> Batch:
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

    `shots` are trained on; `validation` are (shot, fixed timesteps) for the validation loss, held
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
        self.shots: list[Shot] = []
        self.pictures: dict[str, list[Image.Image]] = {}  # a few of each concept, to be looked at
        self.digests: dict[str, str] = {}  # "concept/file" -> digest, of all images
        self.validation: list[Shot] = []
        self.held_out, self.masked = True, config.mask != "none"
        self.shuffle, self.drop_out = config.shuffle_tags, config.tag_drop_out
        self.words = PromptRewriter(dict.fromkeys(config.concept_strs, ""))
        for k, (name, folder, kind) in enumerate(
            zip(config.concept_strs, config.img_dirs, config.learnable_properties, strict=True)
        ):
            shots = []
            images = read_images(Path(folder), config, size, f"concepts.img_dirs[{k}]")
            total = len(list_images(Path(folder))) if Path(folder).is_dir() else 0
            shown = self.pictures.setdefault(name, [])
            with Bar(
                {"images": Work(1, total=total)}, f"encoding the images of {name}", leave=False
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
                        if len(shots) % -(-total // PICTURES) == 0:
                            shown.append(image)
                        shots.append(Shot(path, seen.hexdigest(), prompts, mean, std, where, mask))
                    bar.done("images", len(batch))
            self.digests |= {f"{name}/{text_of(s.path)}": s.digest for s in shots}
            n = len(shots)
            order = np.random.default_rng((seed, VALIDATION, k)).permutation(n)
            held = set(order[: min(max_validation, max(1, n // 10))].tolist()) if n >= 10 else set()
            self.held_out &= bool(held)
            self.shots += [s for j, s in enumerate(shots) if j not in held]
            self.validation += [shots[j] for j in (sorted(held) or range(min(n, max_validation)))]

    def example(self, i: int) -> Example:
        """Training sample number i, a pure function of (seed, i).

        Each image comes up once in len(shots) consecutive samples. Timesteps follow a golden-ratio
        sequence: uniform, and spread evenly over any stretch of samples, so that the loss of a
        batch says more about the rows than about the timesteps drawn.
        """
        n = len(self.shots)
        epoch, place = divmod(i, n)
        shot = self.shots[self._order(epoch, n)[place]]
        rng = np.random.default_rng((self.seed, CHOICES, i))
        prompt = shot.prompts[int(rng.integers(len(shot.prompts)))]
        view = int(rng.integers(len(shot.mean)))
        if self.shuffle or self.drop_out:
            own = np.random.default_rng((self.seed, TAGS, i))
            prompt = vary_tags(prompt, self.words, own, self.shuffle, self.drop_out)
        t = int((self.start + i * 0.6180339887498949) % 1 * self.num_timesteps)
        return self._noised(shot, view, prompt, t, DRAW, i)

    def validation_examples(self, k: int, timesteps: int) -> list[Example]:
        """The fixed examples of validation image k: even timesteps, fixed noise and prompt."""
        shot = self.validation[k]
        prompt = shot.prompts[k % len(shot.prompts)]
        times = [int((j + 0.5) / timesteps * self.num_timesteps) for j in range(timesteps)]
        return [
            self._noised(shot, 0, prompt, t, VALIDATION, k * timesteps + j)
            for j, t in enumerate(times)
        ]

    def _noised(self, shot: Shot, view: int, prompt: str, t: int, stream: int, i: int) -> Example:
        mean, std = shot.mean[view], shot.std[view]
        draw, noise = _normal((2, *mean.shape), self.seed, stream, i)
        mask = None if shot.mask is None else shot.mask[view]
        return Example(prompt, (mean + std * draw) * self.scaling, noise, t, shot.frame, mask)
