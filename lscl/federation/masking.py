"""Losses and scores restricted to a set of classes."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lscl.models.precision import in_float32


def mask_logits(logits: Tensor, classes: Tensor) -> Tensor:
    """Leave out classes.

    Args:
        logits: (b, C).
        classes: labels of the classes that compete, on the CPU.

    Returns:
        (b, C) with -inf in the columns of all other classes.
    """
    return logits.masked_fill(_others(tuple(classes.tolist()), logits.shape[-1], logits.device), float("-inf"))


@lru_cache(maxsize=1024)
def _others(classes: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    """The classes that do not compete, (C,) bool; copied to the device once, because every step needs it."""
    others = torch.ones(count, dtype=torch.bool)
    others[list(classes)] = False
    return others.to(device)


@in_float32
def masked_cross_entropy(logits: Tensor, labels: Tensor, classes: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy over some of the classes.

    Args:
        logits: (b, C).
        labels: (b,) int64, each in `classes`.
        classes: labels of the classes that compete, on the CPU.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (b,) with "none".
    """
    return F.cross_entropy(mask_logits(logits, classes), labels, reduction=reduction)
