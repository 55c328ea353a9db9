"""Losses and scores restricted to a set of classes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_logits(logits: Tensor, classes: Tensor) -> Tensor:
    """Leave out classes.

    Args:
        logits: (b, C).
        classes: labels of the classes that compete.

    Returns:
        (b, C) with -inf in the columns of all other classes.
    """
    allowed = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    allowed[classes.to(logits.device)] = True
    return logits.masked_fill(~allowed, float("-inf"))


def masked_cross_entropy(logits: Tensor, labels: Tensor, classes: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy over some of the classes.

    Args:
        logits: (b, C).
        labels: (b,) int64, each in `classes`.
        classes: labels of the classes that compete.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (b,) with "none".
    """
    return F.cross_entropy(mask_logits(logits, classes), labels, reduction=reduction)
