"""How near images come to what they should show: as CLIP sees it, and DINO where one is given.

    eye = load_eye(EvaluatorConfig(), "demo_model", device)
    seen = [eye.image_features(pictures), eye.image_features(samples)]
    mean_cosine(seen[1], seen[0])

What is measured, and the two ends of each scale, are those of textual inversion (arXiv 2208.01618,
section 5): images of "a photo of a S*" against the training images, images of edited prompts
against these prompts without the word. DreamBooth (arXiv 2208.12242, section 4) has the same under
the names CLIP-I and CLIP-T, and DINO for the first. Features are unit vectors (N, D), float32.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, CLIPModel, CLIPTokenizer

from detsd.checks import evaluator_problems, own_clip
from detsd.config import EvaluatorConfig
from detsd.data import to_square, to_tensor
from detsd.errors import UserError
from detsd.hub import CONFIG, WHOLE, Source, find
from detsd.kinds import loading, read_json
from detsd.names import resolve

AT_ONCE = 32  # images through an evaluator
SAME = 1 - 1e-5  # cosine from which on two pictures are one and the same
FLAT = 1e-3  # length below which a scale has no ends
ANGLES = 8  # of edges
FOLDS = 5
REMEDY = "name a folder, or a model on the hub, with its weights in safetensors"
KINDS = {  # of evaluators: what they are called, and what their configurations say
    "clip": ("a CLIP", ("clip",)),
    "dino": ("a DINO", ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")),
}
SHRINKAGE = 0.5  # of the spread within sets towards one that is even: pictures are few


# ---- figures: features in, numbers out -----------------------------------------------------------


def mean_cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean cosine of all pairs of features (N, D) and (M, D): CLIP-I, or DINO's.

    No picture is compared with itself: a set against itself gives how alike its pictures are, and 1
    where there is only one.
    """
    cosines = a @ b.T
    others = cosines < SAME
    return float(cosines[others].mean()) if others.any() else 1.0


def text_similarity(images: torch.Tensor, texts: torch.Tensor) -> float:
    """Mean cosine of images (P * n, D), n of each prompt, and their own texts (P, D): CLIP-T."""
    own = texts.repeat_interleave(len(images) // len(texts), dim=0)
    return float((images * own).sum(1).mean())


@dataclass(frozen=True)
class Anchors:
    """The ends of both scales, by which their figures become comparable.

    A phrase that anybody could write draws what its prompt says and not the concept; the training
    images show the concept and nothing that a prompt says (the two baselines of arXiv 2208.01618,
    section 5). So each is the upper end of one scale and the lower end of the other.
    """

    image_low: float  # samples of the phrase to the training images
    image_high: float  # the most typical training image to the others
    text_low: float  # the training images to the edited prompts
    text_high: float  # samples of the phrase to the edited prompts


def anchors(
    images: torch.Tensor, texts: torch.Tensor, plain: torch.Tensor, edited: torch.Tensor
) -> Anchors:
    """The anchors of a concept.

    The training images among themselves are on average no upper end: in many scenes they are as
    unlike each other as anything, while samples of a plain prompt come near the middle of them. The
    one of them that is nearest to the others is.

    Args:
        images: features (M, D) of the training images.
        texts: of the edited prompts without the word (P, D).
        plain, edited: of samples of the phrase: (N, D), and (P * n, D), n of each prompt.
    """
    cosines = images @ images.T
    others = cosines < SAME
    each = (cosines * others).sum(1) / others.sum(1).clamp(min=1)
    return Anchors(
        mean_cosine(plain, images),
        float(each.max()) if others.any() else 1.0,
        float((images @ texts.T).mean()),
        text_similarity(edited, texts),
    )


def normalised(value: float, low: float, high: float) -> float:
    """Where a figure lies between its anchors: 0 at the lower, 1 at the upper and beyond.

    Where the lower one is no lower, it is taken for 0: a concept's pictures may be as unlike each
    other as the phrase's are to them.
    """
    low = low if high - low >= FLAT else 0.0
    return min(1.0, max(0.0, (value - low) / max(high - low, FLAT)))


def score(image: float, text: float, anchors: Anchors) -> float:
    """The rule that names the best checkpoint: the highest product of both similarities.

    Each is normalised by its anchors. The product falls to 0 for the phrase itself, which has
    nothing of the concept, and for rows that draw a training image whatever the prompt says.
    """
    return normalised(image, anchors.image_low, anchors.image_high) * normalised(
        text, anchors.text_low, anchors.text_high
    )


def without_word(template: str) -> str:
    """A template without its concept, as the paper compares it: "a photo of {} on the moon"."""
    return " ".join(re.sub(r"(?:\b(?:an?|the) )?\{\}", " ", template).split())


# ---- the line-up ---------------------------------------------------------------------------------


def outlines(images: list[Image.Image]) -> torch.Tensor:
    """Which way edges run, and where: unit vectors (N, 2048).

    Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) of 64 x 64 pixels in cells of 4:
    what tells seven circles from eight, which a network that was taught by captions hardly sees.
    """
    x = torch.stack([to_tensor(to_square(image, 64, True)) for image in images]) / 2
    across = F.pad(x[..., 2:] - x[..., :-2], (1, 1))
    down = F.pad(x[..., 2:, :] - x[..., :-2, :], (0, 0, 1, 1))
    steepest = (across**2 + down**2).argmax(1, keepdim=True)  # of the three colours
    across, down = across.gather(1, steepest)[:, 0], down.gather(1, steepest)[:, 0]  # (N, 64, 64)
    angle = torch.atan2(down, across) % torch.pi / torch.pi * ANGLES
    near, far = angle.floor() % ANGLES, (angle.floor() + 1) % ANGLES
    share = angle % 1
    votes = (
        torch.stack([(near == k) * (1 - share) + (far == k) * share for k in range(ANGLES)], dim=1)
        * torch.hypot(across, down)[:, None]
    )
    cells = F.avg_pool2d(votes, 8, 4, padding=2)  # (N, 8, 16, 16), each of twice its own side
    cells = cells / (cells.norm(dim=1, keepdim=True) + 0.02)
    return F.normalize(cells.flatten(1).sqrt(), dim=1)


def _classifier(sets: list[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Linear discriminant analysis: features (N, D) to the number of the nearest of the sets.

    Distances are measured in units of how the pictures of one set differ, as by their grounds.
    """
    means = torch.stack([pictures.mean(0) for pictures in sets])
    rest = torch.cat([pictures - pictures.mean(0) for pictures in sets])
    spread = rest.T @ rest / max(1, len(rest) - len(sets))
    even = spread.diagonal().mean().clamp(min=1e-12) * torch.eye(len(spread))
    inverse = torch.linalg.inv((1 - SHRINKAGE) * spread + SHRINKAGE * even)

    def classify(features: torch.Tensor) -> torch.Tensor:
        apart = features[:, None] - means
        return ((apart @ inverse) * apart).sum(2).argmin(1)

    return classify


class Lineup:
    """Is a sample of a concept, or of one of its look-alikes?

    Of several ways to see, the one judges that tells the real pictures apart best, those of a fifth
    of each set by the others.

    Attributes:
        judge: the name of that way.
        right: share of the concept's own pictures that it took for the concept; None where a set
            has but one picture.
        chance: one over the number of sets.
    """

    def __init__(
        self,
        ways: dict[str, Callable[[list[Image.Image]], torch.Tensor]],
        sets: list[list[Image.Image]],
    ):
        """
        Args:
            ways: images to features, by their names; where none can be tried out, the first judges.
            sets: pictures of the concept, and of each look-alike.
        """
        self.chance, self.judge, self.right, best = 1 / len(sets), "", None, -1.0
        for name, way in ways.items():
            features = [way(pictures) for pictures in sets]
            # Along the directions in which the pictures differ, of which there may be fewer.
            everything = torch.cat(features)
            axes = torch.linalg.svd(everything - everything.mean(0), full_matrices=False).Vh.T
            features = [pictures @ axes for pictures in features]
            folds = min(FOLDS, *map(len, sets))
            hits: list[list[bool]] = [[] for _ in sets]
            for fold in range(folds if folds > 1 else 0):
                others = [[k for k in range(len(s)) if k % folds != fold] for s in sets]
                classify = _classifier([f[k] for f, k in zip(features, others, strict=True)])
                for number, pictures in enumerate(features):
                    hits[number] += (classify(pictures[fold::folds]) == number).tolist()
            told = sum(sum(h) / len(h) for h in hits) if hits[0] else 0.0
            if told > best:
                best, self.judge = told, name
                self.right = sum(hits[0]) / len(hits[0]) if hits[0] else None
                self._see = lambda images, way=way, axes=axes: way(images) @ axes
                self._classify = _classifier(features)

    def share(self, samples: list[Image.Image]) -> float:
        """Share of samples that are taken for the concept.

        Whichever set is called the concept's, the shares add up to 1.
        """
        return float((self._classify(self._see(samples)) == 0).float().mean())


# ---- evaluators ----------------------------------------------------------------------------------


class Eye:
    """A network that sees images: CLIP, or DINO and its like, which know no words.

    Attributes:
        name: as it was given.
        commit: of the hub, that it is of; None for a folder.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        processor: Any,
        tokenizer: CLIPTokenizer | None,
        commit: str | None = None,
    ):
        """
        Args:
            processor: what makes pixels of images; None: [-1, 1] at the model's own size.
            tokenizer: None for a network without a text side.
        """
        self.name, self.model, self.commit = name, model, commit
        self.processor, self.tokenizer = processor, tokenizer

    @torch.no_grad()
    def image_features(self, images: list[Image.Image]) -> torch.Tensor:
        """Unit vectors (N, D), float32 on the CPU; in the order of the images."""
        parts = [
            self._seen(self._pixels(images[k : k + AT_ONCE]))
            for k in range(0, len(images), AT_ONCE)
        ]
        return F.normalize(torch.cat(parts).float().cpu(), dim=1)

    def _pixels(self, images: list[Image.Image]) -> torch.Tensor:
        if self.processor:
            pixels = self.processor(images=images, return_tensors="pt").pixel_values
        else:
            size = self.model.config.vision_config.image_size
            pixels = torch.stack([to_tensor(to_square(image, size, True)) for image in images])
        return pixels.to(self.model.device)

    def _seen(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.tokenizer:
            return self.model.visual_projection(self.model.vision_model(pixels).pooler_output)
        return self.model(pixels).last_hidden_state[:, 0]  # the class token's

    @torch.no_grad()
    def text_features(self, prompts: list[str]) -> torch.Tensor:
        """Unit vectors (N, D), float32 on the CPU. Of CLIP only."""
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids.to(self.model.device)
        told = self.model.text_projection(self.model.text_model(ids).pooler_output)
        return F.normalize(told.float().cpu(), dim=1)


def load_eye(config: EvaluatorConfig, base_model: str, device: torch.device) -> Eye:
    """The CLIP that is configured, or else the one that lies in the base model's folder.

    Raises:
        UserError: none, or one that cannot be had or loaded.
    """
    for problem in evaluator_problems(config, base_model):
        raise UserError(problem)
    name = config.clip or own_clip(base_model)
    with _fetched(name, "clip") as source:
        model = _load(CLIPModel, source, device)
        own = source.files.keys() & {"tokenizer_config.json", "vocab.json"}
        # The bundled one reads the base model's texts.
        tokenizer = CLIPTokenizer.from_pretrained(
            source.folder if own else source.folder.parent / "tokenizer"
        )
        seen = "preprocessor_config.json" in source.files
        processor = AutoImageProcessor.from_pretrained(source.folder) if seen else None
        return Eye(name, model, processor, tokenizer, source.commit)


def load_second_eye(config: EvaluatorConfig, device: torch.device) -> Eye | None:
    """The DINO that is configured; None where none is.

    Raises:
        UserError: it cannot be had or loaded.
    """
    if not config.dino:
        return None
    with _fetched(config.dino, "dino") as source:
        model = _load(AutoModel, source, device)
        processor = AutoImageProcessor.from_pretrained(source.folder)
        return Eye(config.dino, model, processor, None, source.commit)


def _load(cls: Any, source: Source, device: torch.device) -> Any:
    model = cls.from_pretrained(source.folder, use_safetensors=True, variant=source.variant(WHOLE))
    return model.requires_grad_(False).eval().float().to(device)


@contextlib.contextmanager
def _fetched(name: str, which: str) -> Iterator[Source]:
    """The files of an evaluator; what goes wrong over them as one sentence.

    The libraries would make a model of random weights of one of another kind.
    """
    key, (title, kinds) = f"evaluator.{which}", KINDS[which]
    source = find(resolve(name), key=key, index=CONFIG)
    with loading(name, REMEDY, key):
        kind = read_json(source, CONFIG).get("model_type")
    if kind not in kinds:
        raise UserError(f"{key}: {name} is a model of the kind {kind!r}; name {title}")
    source.fetch(WHOLE)
    with loading(name, REMEDY, key):
        yield source
