"""Passes without gradients over many images."""

from collections.abc import Callable
from contextlib import closing

import torch
from torch import Tensor

from lscl.federation.client import Batch, Inputs
from lscl.federation.pipeline import batches

BATCH = 200  # images per forward pass; another number would change the last bits of a run


@torch.no_grad()
def map_batches(inputs: Inputs, index: Tensor, output: Callable[[Batch], Tensor], size: int = BATCH) -> Tensor:
    """Compute something for many images, batch by batch.

    Args:
        inputs: the split.
        index: (n,) positions of the images.
        output: a batch of b images -> (b, ...).
        size: images per batch.

    Returns:
        (n, ...), in the order of `index`.
    """
    with closing(batches(inputs, index.split(size))) as parts:  # (size,) positions each
        return torch.cat([output(batch) for batch in parts])  # (n, ...)
