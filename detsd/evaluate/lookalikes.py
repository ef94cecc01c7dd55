"""A classifier that distinguishes the training images from pictures of look-alikes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image

from detsd.data.images import crop_or_resize, squared, to_tensor

SAME = 1 - 1e-5  # a larger cosine means that two images are the same one

FLAT = 1e-3  # length below which the ends of a scale count as equal

ANGLES = 8  # bins for the angles of edges

FOLDS = 5

SHRINKAGE = 0.5  # of the covariance towards a multiple of the identity, since images are few


def outlines(images: list[Image.Image]) -> torch.Tensor:
    """Return histograms of oriented gradients, unit vectors (N, 2048).

    As in Dalal and Triggs, CVPR 2005, on 64 x 64 pixels in cells of 4. They distinguish seven
    circles from eight, which a network trained on captions hardly can.
    """
    x = to_squares(images, 64) / 2
    across = F.pad(x[..., 2:] - x[..., :-2], (1, 1))
    down = F.pad(x[..., 2:, :] - x[..., :-2, :], (0, 0, 1, 1))
    steepest = (across**2 + down**2).argmax(1, keepdim=True)  # among the three colours
    across, down = across.gather(1, steepest)[:, 0], down.gather(1, steepest)[:, 0]  # (N, 64, 64)
    angle = torch.atan2(down, across) % torch.pi / torch.pi * ANGLES
    near, far = angle.floor() % ANGLES, (angle.floor() + 1) % ANGLES
    share = angle % 1
    votes = (
        torch.stack([(near == k) * (1 - share) + (far == k) * share for k in range(ANGLES)], dim=1)
        * torch.hypot(across, down)[:, None]
    )
    cells = F.avg_pool2d(votes, 8, 4, padding=2)  # (N, 8, 16, 16), each a mean over 8 x 8 pixels
    cells = cells / (cells.norm(dim=1, keepdim=True) + 0.02)
    return F.normalize(cells.flatten(1).sqrt(), dim=1)


def to_squares(images: list[Image.Image], size: int) -> torch.Tensor:
    """Return images as squares (N, 3, size, size) in [-1, 1]."""
    every = [crop_or_resize(squared(image), (size, size), True) for image in images]
    return torch.stack([to_tensor(image) for image in every])


def _fit_classifier(sets: list[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Fit linear discriminant analysis, which maps features (N, D) to the nearest set's number."""
    # With outlines, the nearest mean alone recognises 71 % of the det-logo's pictures among nine
    # look-alikes; discriminant analysis recognises all of them (dev/LOG.md).
    means = torch.stack([pictures.mean(0) for pictures in sets])
    rest = torch.cat([pictures - pictures.mean(0) for pictures in sets])
    spread = rest.T @ rest / max(1, len(rest) - len(sets))
    even = spread.diagonal().mean().clamp(min=1e-12) * torch.eye(len(spread))
    inverse = torch.linalg.inv((1 - SHRINKAGE) * spread + SHRINKAGE * even)

    def classify(features: torch.Tensor) -> torch.Tensor:
        apart = features[:, None] - means
        return ((apart @ inverse) * apart).sum(2).argmin(1)

    return classify


class LookalikeClassifier:
    """A classifier of samples: the concept, or one of its look-alikes.

    It uses the feature that separates the real images best in cross-validation: each fifth of a set
    is classified by the others.

    Attributes:
        feature: the name of that feature.
        cv_accuracy: share of the concept's own images that were classified as the concept; None
            if a set has only one image.
        chance: one over the number of sets.
    """

    def __init__(self, features: dict[str, list[torch.Tensor]]):
        """Choose a feature and fit the classifier.

        Args:
            features: name -> features (M, D) of the concept's images, then of each look-alike's.
                If nothing can be cross-validated, the first is used.
        """
        self.feature, self.cv_accuracy, best = "", None, -1.0
        self.chance = 1 / len(next(iter(features.values())))
        for name, sets in features.items():
            # Keep only the directions in which the images differ, which may be fewer.
            everything = torch.cat(sets)
            axes = torch.linalg.svd(everything - everything.mean(0), full_matrices=False).Vh.T
            projected = [images @ axes for images in sets]
            hits = _cross_validate(projected)
            balanced = sum(sum(h) / len(h) for h in hits) if hits[0] else 0.0
            if balanced > best:
                best, self.feature = balanced, name
                self.cv_accuracy = sum(hits[0]) / len(hits[0]) if hits[0] else None
                self._axes, self._classify = axes, _fit_classifier(projected)

    def share(self, samples: torch.Tensor) -> float:
        """Return the share of samples, by their features (N, D), classified as the concept.

        If each set in turn is taken as the concept's, the shares add up to 1.
        """
        return float((self._classify(samples @ self._axes) == 0).float().mean())


def _cross_validate(sets: list[torch.Tensor]) -> list[list[bool]]:
    """Return, for each set, whether the other folds classify each of its images correctly."""
    folds = min(FOLDS, *map(len, sets))
    hits: list[list[bool]] = [[] for _ in sets]
    for fold in range(folds if folds > 1 else 0):
        others = [[k for k in range(len(s)) if k % folds != fold] for s in sets]
        classify = _fit_classifier([s[k] for s, k in zip(sets, others, strict=True)])
        for number, images in enumerate(sets):
            hits[number] += (classify(images[fold::folds]) == number).tolist()
    return hits
