"""Losses and scores restricted to a set of classes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_logits(logits: Tensor, classes: Tensor) -> Tensor:
    """(b, C) -> (b, C) with -inf in every column that is not in `classes`."""
    allowed = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    allowed[classes.to(logits.device)] = True
    return logits.masked_fill(~allowed, float("-inf"))


def masked_cross_entropy(logits: Tensor, labels: Tensor, classes: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of (b, C) logits with all columns but `classes` left out (baselines 0.1: CE_A)."""
    return F.cross_entropy(mask_logits(logits, classes), labels, reduction=reduction)
