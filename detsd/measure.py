"""How near images come to what they should show: as CLIP sees it, and DINO where one is given.

    eyes = load_eyes(EvaluatorConfig(), "demo_model", device)
    yardstick = Yardstick(eyes, pictures, prompts, lookalikes, num_samples)
    ends, of_phrase = yardstick.anchors(samples_of_the_phrase)
    yardstick.figures(samples, ends)

What is measured, and the two ends of each scale, are those of textual inversion (arXiv 2208.01618,
section 5): images of "a photo of a S*" against the training images, images of edited prompts
against these prompts without the word. DreamBooth (arXiv 2208.12242, section 4) has the same under
the names CLIP-I and CLIP-T, and DINO for the first. Features are unit vectors (N, D), float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, CLIPTokenizer

from detsd.checks import evaluator_problems, own_clip
from detsd.config import EvaluatorConfig
from detsd.data.images import to_shape, to_tensor
from detsd.models.hub import CONFIG, WHOLE, Source, find
from detsd.models.spec import loading, read_json
from detsd.utils.errors import UserError
from detsd.utils.paths import resolve

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
    x = _squares(images, 64) / 2
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


def _squares(images: list[Image.Image], size: int) -> torch.Tensor:
    """Their centres (N, 3, size, size) in [-1, 1]."""
    return torch.stack([to_tensor(to_shape(image, (size, size), True)) for image in images])


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

    def __init__(self, ways: dict[str, list[torch.Tensor]]):
        """
        Args:
            ways: names of ways to see -> features (M, D) of the concept's pictures, and of each
                look-alike's; where none can be tried out, the first judges.
        """
        self.judge, self.right, best = "", None, -1.0
        self.chance = 1 / len(next(iter(ways.values())))
        for name, sets in ways.items():
            # Along the directions in which the pictures differ, of which there may be fewer.
            everything = torch.cat(sets)
            axes = torch.linalg.svd(everything - everything.mean(0), full_matrices=False).Vh.T
            features = [pictures @ axes for pictures in sets]
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
                self._axes, self._classify = axes, _classifier(features)

    def share(self, samples: torch.Tensor) -> float:
        """Share of samples, by the judge's features (N, D), that are taken for the concept.

        Whichever set is called the concept's, the shares add up to 1.
        """
        return float((self._classify(samples @ self._axes) == 0).float().mean())


# ---- evaluators ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Eye:
    """A network that sees images: CLIP, or DINO and its like, which know no words."""

    name: str  # as it was given
    model: Any
    processor: Any  # what makes pixels of images; None: [-1, 1] at the model's own size
    tokenizer: CLIPTokenizer | None  # None for a network without a text side
    commit: str | None  # of the hub, that it is of; None for a folder

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
            pixels = _squares(images, size)
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


def load_eyes(
    config: EvaluatorConfig,
    base_model: str,
    device: torch.device,
    commits: Mapping[str, str | None] | None = None,
) -> dict[str, Eye]:
    """The evaluators that are configured, as `clip` and `dino`; without the second one, the first.

    Where no CLIP is named, it is the one that lies in the base model's folder.

    Args:
        commits: of the hub's, where they have to be those that something was measured with before.

    Raises:
        UserError: no CLIP, or an evaluator that cannot be had or loaded.
    """
    for problem in evaluator_problems(config, base_model):
        raise UserError(problem)
    names = {"clip": config.clip or own_clip(base_model), "dino": config.dino}
    # Of both, before the weights of either come down.
    pinned = commits or {}
    sources = {w: _find(w, name, pinned.get(w)) for w, name in names.items() if name}
    return {which: _load(which, names[which], source, device) for which, source in sources.items()}


def _find(which: str, name: str, commit: str | None) -> Source:
    key, (title, kinds) = f"evaluator.{which}", KINDS[which]
    source = find(resolve(name), commit, key=key, index=CONFIG)
    with loading(name, REMEDY, key):
        kind = read_json(source, CONFIG).get("model_type")
    if kind not in kinds:  # the libraries would make one of random weights of it
        raise UserError(f"{key}: {name} is a model of the kind {kind!r}; name {title}")
    return source


def _load(which: str, name: str, source: Source, device: torch.device) -> Eye:
    source.fetch(WHOLE)
    folder, processor, tokenizer = source.folder, None, None
    own = {"trust_remote_code": False}  # else a terminal is asked whether to run a repository's
    with loading(name, REMEDY, source.key):
        model = AutoModel.from_pretrained(
            folder, use_safetensors=True, variant=source.variant(WHOLE), **own
        )
        if which == "dino" or "preprocessor_config.json" in source.files:
            processor = AutoImageProcessor.from_pretrained(folder, **own)
        if which == "clip":
            brings = source.files.keys() & {"tokenizer_config.json", "vocab.json"}
            # The bundled one reads the base model's texts.
            words = folder if brings else folder.parent / "tokenizer"
            tokenizer = CLIPTokenizer.from_pretrained(words)
        model.requires_grad_(False).eval().float().to(device)
    return Eye(name, model, processor, tokenizer, source.commit)


# ---- one concept ---------------------------------------------------------------------------------


class Yardstick:
    """What the samples of a concept are held against.

    Attributes:
        lineup: None without look-alikes.
    """

    def __init__(
        self,
        eyes: dict[str, Eye],
        pictures: list[Image.Image],
        prompts: list[str],
        lookalikes: list[list[Image.Image]],
        num_samples: int,
    ):
        """
        Args:
            pictures: that it was learned from.
            prompts: the edited ones, with {} in them.
            lookalikes: pictures of each.
            num_samples: how many of its samples are of the plain prompt: the first ones. The others
                are of the edited prompts, equally many of each.
        """
        self._num_samples, self._eyes = num_samples, eyes
        # Of ways to see that tell pictures apart equally well, the first judges.
        self._ways = {"clip": eyes["clip"].image_features}
        self._ways |= {"outlines": outlines} if lookalikes else {}
        self._ways |= {name: eye.image_features for name, eye in eyes.items()}
        sets = [pictures, *lookalikes]
        features = {name: [see(each) for each in sets] for name, see in self._ways.items()}
        self._real = {name: own for name, (own, *_) in features.items()}
        self._texts = eyes["clip"].text_features([without_word(prompt) for prompt in prompts])
        self.lineup = Lineup(features) if lookalikes else None

    def anchors(self, made: list[Image.Image]) -> tuple[Anchors, dict[str, float]]:
        """The ends of the scales, by samples of the phrase that it started from; their figures."""
        found, *seen = self._seen(made)
        return anchors(self._real["clip"], self._texts, *seen), found

    def figures(self, made: list[Image.Image], ends: Anchors) -> dict[str, float]:
        """What is measured on samples of the concept; the larger, the better."""
        found = self._seen(made)[0]
        image, text = found["clip_image_similarity"], found["clip_text_similarity"]
        return {"score": score(image, text, ends)} | found

    def of_pictures(self, ends: Anchors) -> dict[str, float | None]:
        """What is measured on the training images themselves."""
        found = self._similarities(self._real, ends.text_low)
        return found | ({"lineup": self.lineup.right} if self.lineup else {})

    def _seen(self, made: list[Image.Image]) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
        """Figures, and CLIP's features of the plain samples (N, D) and of the edited ones."""
        n = self._num_samples
        seen = self._ways["clip"](made)
        plain = {k: seen[:n] if k == "clip" else see(made[:n]) for k, see in self._ways.items()}
        found = self._similarities(plain, text_similarity(seen[n:], self._texts))
        if self.lineup:
            found["lineup"] = self.lineup.share(plain[self.lineup.judge])
        return found, seen[:n], seen[n:]

    def _similarities(self, plain: dict[str, torch.Tensor], text: float) -> dict[str, float]:
        images = {
            f"{name}_image_similarity": mean_cosine(plain[name], self._real[name])
            for name in self._eyes
        }
        return images | {"clip_text_similarity": text}
