"""Similarity of samples to training images and prompts, by CLIP and, if one is given, DINO.

    encoders = load_encoders(EvaluatorConfig(), "demo_model", device)
    metrics = ConceptMetrics(encoders, images, prompts, lookalikes, num_samples)
    baselines, of_initializer = metrics.fit_baselines(samples_of_the_initializer)
    metrics.figures(samples, baselines)

The figures and both ends of each scale are those of textual inversion (arXiv 2208.01618, section
5): images of "a photo of a S*" are compared with the training images, and images of edited prompts
with these prompts without the word. DreamBooth (arXiv 2208.12242, section 4) calls the two figures
CLIP-I and CLIP-T, and complements the first with DINO. Features are unit vectors (N, D), float32.
"""

import re
from dataclasses import dataclass

import torch
from PIL import Image

from detsd.evaluate.encoders import ImageEncoder
from detsd.evaluate.lookalikes import FLAT, SAME, LookalikeClassifier, outlines

# ---- figures: features in, numbers out -----------------------------------------------------------


def mean_cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the mean cosine of all pairs of features (N, D) and (M, D): CLIP-I or DINO.

    An image is not compared with itself. A set compared with itself gives the mean similarity of
    its images, and 1 if it has only one.
    """
    cosines = a @ b.T
    others = cosines < SAME
    return float(cosines[others].mean()) if others.any() else 1.0


def text_similarity(images: torch.Tensor, texts: torch.Tensor) -> float:
    """Return the mean cosine of images (P * n, D), n per prompt, and texts (P, D): CLIP-T."""
    own = texts.repeat_interleave(len(images) // len(texts), dim=0)
    return float((images * own).sum(1).mean())


@dataclass(frozen=True)
class Baselines:
    """Both ends of both scales, which make the figures of different concepts comparable.

    The initializer's samples follow any prompt but do not show the concept; the training images
    show the concept but follow no prompt (the two baselines of arXiv 2208.01618, section 5). Each
    is therefore the upper end of one scale and the lower end of the other.
    """

    image_low: float  # samples of the initializer to the training images
    image_high: float  # the most typical training image to the others
    text_low: float  # the training images to the edited prompts
    text_high: float  # samples of the initializer to the edited prompts


def fit_baselines(
    images: torch.Tensor, texts: torch.Tensor, plain: torch.Tensor, edited: torch.Tensor
) -> Baselines:
    """Return the baselines of a concept.

    The mean similarity of the training images to each other cannot be the upper end: they show many
    scenes and differ from each other as much as any pictures, while samples of a plain prompt are
    near their middle. The upper end is the training image that is closest to the others.

    Args:
        images: features (M, D) of the training images.
        texts: features (P, D) of the edited prompts without the concept's word.
        plain: features (N, D) of the initializer's samples of the plain prompt.
        edited: features (P * n, D) of its samples of the edited prompts, n for each.
    """
    # For the bundled logo, the similarity of the pictures to each other is 0.708, that of samples
    # of the phrase to the pictures 0.711, and that of the most typical picture to the others 0.756.
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
    """Scale a figure by its baselines: 0 at the lower one and below, 1 at the upper one and above.

    If the two are equal, 0 replaces the lower one: a concept's images may differ from each other as
    much as the initializer's samples differ from them.
    """
    low = low if high - low >= FLAT else 0.0
    return min(1.0, max(0.0, (value - low) / max(high - low, FLAT)))


def score(image: float, text: float, baselines: Baselines) -> float:
    """Return the product of both similarities, which decides on the best checkpoint.

    Each is normalised by its baselines. The product is 0 for the initializer itself, which shows
    nothing of the concept, and for vectors that draw a training image regardless of the prompt.
    """
    return normalised(image, baselines.image_low, baselines.image_high) * normalised(
        text, baselines.text_low, baselines.text_high
    )


def without_word(template: str) -> str:
    """Return a template without its concept, as used in the paper: "a photo of on the moon"."""
    return " ".join(re.sub(r"(?:\b(?:an?|the) )?\{\}", " ", template).split())


# ---- one concept ---------------------------------------------------------------------------------


class ConceptMetrics:
    """The metrics of one concept's samples.

    Attributes:
        lineup: a classifier of look-alikes; None without look-alikes.
    """

    def __init__(
        self,
        encoders: dict[str, ImageEncoder],
        images: list[Image.Image],
        prompts: list[str],
        lookalikes: list[list[Image.Image]],
        num_samples: int,
    ):
        """Compute the features of the images and prompts to compare with.

        Args:
            images: the concept's training images.
            prompts: the edited prompts, with {} for the concept.
            lookalikes: images of each look-alike.
            num_samples: the number of samples of the plain prompt, which come first. The others
                are of the edited prompts, equally many for each.
        """
        self._num_samples, self._encoders = num_samples, encoders
        # If several features separate the images equally well, the classifier uses the first.
        self._extractors = {"clip": encoders["clip"].image_features}
        self._extractors |= {"outlines": outlines} if lookalikes else {}
        self._extractors |= {name: encoder.image_features for name, encoder in encoders.items()}
        sets = [images, *lookalikes]
        features = {k: [extract(each) for each in sets] for k, extract in self._extractors.items()}
        self._images = {name: own for name, (own, *_) in features.items()}
        self._texts = encoders["clip"].text_features([without_word(prompt) for prompt in prompts])
        self.lineup = LookalikeClassifier(features) if lookalikes else None

    def fit_baselines(self, samples: list[Image.Image]) -> tuple[Baselines, dict[str, float]]:
        """Return the baselines from samples of the initializer, and these samples' figures."""
        found, *features = self._measure(samples)
        return fit_baselines(self._images["clip"], self._texts, *features), found

    def figures(self, samples: list[Image.Image], baselines: Baselines) -> dict[str, float]:
        """Return the figures of the concept's samples; the larger, the better."""
        found = self._measure(samples)[0]
        image, text = found["clip_image_similarity"], found["clip_text_similarity"]
        return {"score": score(image, text, baselines)} | found

    def of_training_images(self, baselines: Baselines) -> dict[str, float | None]:
        """Return the figures of the training images themselves."""
        found = self._similarities(self._images, baselines.text_low)
        return found | ({"lineup": self.lineup.cv_accuracy} if self.lineup else {})

    def _measure(
        self, samples: list[Image.Image]
    ) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
        """Return figures, and CLIP features of the plain (N, D) and of the edited samples."""
        n = self._num_samples
        clip = self._extractors["clip"](samples)
        plain = {
            name: clip[:n] if name == "clip" else extract(samples[:n])
            for name, extract in self._extractors.items()
        }
        found = self._similarities(plain, text_similarity(clip[n:], self._texts))
        if self.lineup:
            found["lineup"] = self.lineup.share(plain[self.lineup.feature])
        return found, clip[:n], clip[n:]

    def _similarities(self, plain: dict[str, torch.Tensor], text: float) -> dict[str, float]:
        """Return the similarities of features to the training images, and to the prompts."""
        images = {
            f"{name}_image_similarity": mean_cosine(plain[name], self._images[name])
            for name in self._encoders
        }
        return images | {"clip_text_similarity": text}
