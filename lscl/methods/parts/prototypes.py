"""Prototypes instead of a classifier, and how a server weights the clients' copies (PILoRA, arXiv 2401.02094)."""

import torch
from torch import Tensor

from lscl.models.precision import in_float32

LEAST = 1e-8  # below it, a squared distance has no useful gradient and a distance no useful inverse


@in_float32
def prototype_distances(features: Tensor, prototypes: Tensor) -> Tensor:
    """D_c(x) = sqrt(||x - m_c||^2 / d).

    The square is expanded, so that rounding can make it slightly negative: it is clamped before the root.

    Args:
        features: x, (b, d).
        prototypes: m, (C, d).

    Returns:
        (b, C).
    """
    squared = features.square().sum(1, keepdim=True) - 2 * features @ prototypes.T + prototypes.square().sum(1)
    return (squared / features.shape[1]).clamp(min=LEAST).sqrt()


def class_means(features: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """The mean feature of each class.

    Args:
        features: (n, d).
        labels: (n,).
        classes: (k,), all of which occur among the labels.

    Returns:
        (k, d).
    """
    return torch.stack([features[labels == label].mean(0) for label in classes])


def merge_weights(copies: Tensor, means: Tensor, temperature: float) -> Tensor:
    """How much each copy of a prototype counts: more, if it is nearer to the class means of those who hold the class.

        u_i = 1 / sum_j ||copy_i - mean_j||, scaled to 0..1 over the copies;  w = softmax(u / temperature)

    Copies that are equally far from the means (0 / 0 in the scaling), and one copy alone, get equal weights.

    Args:
        copies: (n, d).
        means: (h, d).
        temperature: of the softmax.

    Returns:
        w, (n,) float64 with sum 1.
    """
    gaps = torch.cdist(copies.double(), means.double(), compute_mode="donot_use_mm_for_euclid_dist")  # (n, h)
    nearness = 1 / gaps.sum(1).clamp(min=LEAST)
    spread = nearness.max() - nearness.min()
    scaled = (nearness - nearness.min()) / spread if spread > 0 else torch.zeros_like(nearness)
    return torch.softmax(scaled / temperature, 0)
