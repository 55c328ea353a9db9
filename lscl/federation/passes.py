"""Passes without gradients over many images."""

from collections.abc import Callable

import torch
from torch import Tensor

from lscl.federation.client import Batch, Inputs

BATCH = 200  # images per forward pass; part of what makes a run repeat bit for bit


@torch.no_grad()
def map_batches(inputs: Inputs, index: Tensor, output: Callable[[Batch], Tensor]) -> Tensor:
    """output(batch), (b, ...), of all images at the positions `index` (n,), in that order: (n, ...)."""
    return torch.cat([output(inputs.batch(part)) for part in index.split(BATCH)])
