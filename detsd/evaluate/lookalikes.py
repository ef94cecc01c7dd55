"""A classifier that tells the training images from pictures of look-alikes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image

from detsd.data.images import crop_or_resize, to_tensor

SAME = 1 - 1e-5  # cosine from which on two pictures are one and the same

FLAT = 1e-3  # length below which a scale has no ends

ANGLES = 8  # of edges

FOLDS = 5

SHRINKAGE = 0.5  # of the spread within sets towards one that is even: pictures are few


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
    return torch.stack([to_tensor(crop_or_resize(image, (size, size), True)) for image in images])


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


class LookalikeClassifier:
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
