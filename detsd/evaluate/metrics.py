"""How near images come to what they should show: as CLIP sees it, and DINO where one is given.

    encoders = load_encoders(EvaluatorConfig(), "demo_model", device)
    yardstick = ConceptMetrics(encoders, pictures, prompts, lookalikes, num_samples)
    ends, of_phrase = yardstick.anchors(samples_of_the_phrase)
    yardstick.figures(samples, ends)

What is measured, and the two ends of each scale, are those of textual inversion (arXiv 2208.01618,
section 5): images of "a photo of a S*" against the training images, images of edited prompts
against these prompts without the word. DreamBooth (arXiv 2208.12242, section 4) has the same under
the names CLIP-I and CLIP-T, and DINO for the first. Features are unit vectors (N, D), float32.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from PIL import Image

from detsd.evaluate.encoders import ImageEncoder
from detsd.evaluate.lookalikes import FLAT, SAME, LookalikeClassifier, outlines

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
class Baselines:
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
) -> Baselines:
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
    return Baselines(
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


def score(image: float, text: float, anchors: Baselines) -> float:
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


# ---- one concept ---------------------------------------------------------------------------------


class ConceptMetrics:
    """What the samples of a concept are held against.

    Attributes:
        lineup: None without look-alikes.
    """

    def __init__(
        self,
        encoders: dict[str, ImageEncoder],
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
        self._num_samples, self._eyes = num_samples, encoders
        # Of ways to see that tell pictures apart equally well, the first judges.
        self._ways = {"clip": encoders["clip"].image_features}
        self._ways |= {"outlines": outlines} if lookalikes else {}
        self._ways |= {name: eye.image_features for name, eye in encoders.items()}
        sets = [pictures, *lookalikes]
        features = {name: [see(each) for each in sets] for name, see in self._ways.items()}
        self._real = {name: own for name, (own, *_) in features.items()}
        self._texts = encoders["clip"].text_features([without_word(prompt) for prompt in prompts])
        self.lineup = LookalikeClassifier(features) if lookalikes else None

    def anchors(self, made: list[Image.Image]) -> tuple[Baselines, dict[str, float]]:
        """The ends of the scales, by samples of the phrase that it started from; their figures."""
        found, *seen = self._seen(made)
        return anchors(self._real["clip"], self._texts, *seen), found

    def figures(self, made: list[Image.Image], ends: Baselines) -> dict[str, float]:
        """What is measured on samples of the concept; the larger, the better."""
        found = self._seen(made)[0]
        image, text = found["clip_image_similarity"], found["clip_text_similarity"]
        return {"score": score(image, text, ends)} | found

    def of_pictures(self, ends: Baselines) -> dict[str, float | None]:
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
