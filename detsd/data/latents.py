"""Training images as latents: read, cropped, and encoded once by the VAE."""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps

from detsd.config import ConceptsConfig
from detsd.data.captions import find_captions
from detsd.data.folder import ImageFolder
from detsd.data.images import CroppedImage, mask_tensor, read_images, to_tensor
from detsd.data.notes import log_notes
from detsd.data.prompts import prompts_for
from detsd.models.base import BaseModel, TimeIds
from detsd.utils.progress import Bar, Phase

MAX_SHOWN = 6  # images of each concept that are kept for display

PIXELS_AT_ONCE = 2**21  # 8 images of 512 x 512; a VAE on a GPU takes them one by one


@dataclass(frozen=True)
class TrainingImage:
    """A training image: its prompts and its VAE posterior (and that of its mirror image)."""

    path: Path
    concept: str
    digest: str  # of the training pixels, the prompts, and the mask
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


@torch.no_grad()
def encode_images(
    model: BaseModel, images: list[Image.Image], flip: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the posterior mean and std (views, 4, h, w) of each image, on the CPU.

    Images of equal shape are encoded together.
    """
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for shape in {image.size for image in images}:
        numbers = [k for k, image in enumerate(images) if image.size == shape]
        views = [[images[k], ImageOps.mirror(images[k])][: 1 + flip] for k in numbers]
        pixels = torch.stack([to_tensor(view) for each in views for view in each])
        posterior = model.vae.encode(pixels.to(model.device, model.vae.dtype)).latent_dist
        means, stds = posterior.mean.float().cpu(), posterior.std.float().cpu()
        pairs = zip(means.split(1 + flip), stds.split(1 + flip), strict=True)
        found.update(zip(numbers, pairs, strict=True))
    return [found[k] for k in range(len(images))]


def changed_images(old: dict[str, str], new: dict[str, str]) -> str:
    """Describe how a run's images differ between two starts; "" if they do not."""
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

    If `crops` is given, all images are added to it as they are trained on.
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
    several: list[str] = []
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
                several += [image.path.name] * image.several
                texts = prompts_for(image.path, name, kind, config, captions.get(image.path))
                images.append(_training_image(image, name, tuple(texts), posterior, config.mask))
            bar.done("images", len(batch))
    log_notes(folder.path, config, images, captions, several)
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
