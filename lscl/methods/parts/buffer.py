"""Which images a client keeps."""

import torch
from torch import Tensor


def index_sample(index: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` of the positions `index` (n,), drawn without replacement."""
    return index[torch.randperm(len(index), generator=generator)[:count]]


def lowest_loss(index: Tensor, labels: Tensor, losses: Tensor, per_class: int) -> Tensor:
    """The positions of the `per_class` images with the lowest loss of every class (paper section 4.3).

    index, labels, losses: (n,). Ties are broken by position; classes in ascending order. -> (kept,) positions.
    """
    kept = [torch.empty(0, dtype=index.dtype)]
    for label in labels.unique().tolist():
        own = (labels == label).nonzero().squeeze(1)
        order = torch.argsort(losses[own], stable=True)[:per_class]
        kept.append(index[own[order]])
    return torch.cat(kept)
