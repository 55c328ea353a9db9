"""Which images a client keeps."""

from collections.abc import Callable

import torch
from torch import Tensor

from lscl.federation.client import Client


def sample_buffer(client: Client, size: int) -> Tensor:
    """Rows of a client's buffer, drawn with replacement by the round's own generator.

    Args:
        client: with a buffer that is not empty.
        size: how many are wanted.

    Returns:
        (min(size, length of the buffer),) int64.
    """
    kept = len(client.state["buffer"])
    return torch.randint(kept, (min(size, kept),), generator=client.scratch["replay"])


def index_sample(index: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` of the positions `index` (n,), drawn without replacement."""
    return index[torch.randperm(len(index), generator=generator)[:count]]


def lowest_loss(index: Tensor, labels: Tensor, losses: Tensor, per_class: int) -> Tensor:
    """The positions of the `per_class` images with the lowest loss of every class (paper section 4.3).

    index, labels, losses: (n,). Ties are broken by position; classes in ascending order. -> (kept,) positions.
    """
    return _by_class(index, labels, lambda own: torch.argsort(losses[own], stable=True)[:per_class])


def herding(index: Tensor, labels: Tensor, features: Tensor, per_class: int) -> Tensor:
    """Of every class, `per_class` images whose mean feature is close to the mean of all (Rebuffi et al. 2017, iCaRL).

    index, labels: (n,), features: (n, m), compared at length 1. Greedy, no image twice; the first is the one nearest to the mean, and
    a shorter list is the beginning of a longer one. A class with fewer images is kept whole. -> (kept,) positions, class by class.
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    return _by_class(index, labels, lambda own: _herd(unit[own], per_class))


def _herd(unit: Tensor, count: int) -> Tensor:
    """Step k takes the row that brings the mean of the k rows taken closest to the mean of all. (n, m) -> (min(count, n),) rows."""
    mean, total, left, chosen = unit.mean(0), torch.zeros_like(unit[0]), torch.ones(len(unit), dtype=torch.bool), []
    for k in range(1, min(count, len(unit)) + 1):
        gap = (mean - (total + unit) / k).square().sum(1).masked_fill(~left, torch.inf)
        best = int(gap.argmin())
        left[best] = False
        total = total + unit[best]
        chosen.append(best)
    return torch.tensor(chosen, dtype=torch.int64)


def random(index: Tensor, labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """`per_class` images of every class, drawn without replacement. index, labels: (n,) -> (kept,) positions, class by class."""
    return _by_class(index, labels, lambda own: torch.randperm(len(own), generator=generator)[:per_class])


def first(index: Tensor, labels: Tensor, per_class: int) -> Tensor:
    """The first `per_class` of every class in the order given: how an ordered buffer shrinks. index, labels: (n,) -> (kept,)."""
    return _by_class(index, labels, lambda own: torch.arange(min(per_class, len(own))))


def _by_class(index: Tensor, labels: Tensor, order: Callable[[Tensor], Tensor]) -> Tensor:
    """Class by class in ascending order, the images that `order` picks among the places (n_c,) of that class."""
    kept = [torch.empty(0, dtype=index.dtype)]
    for label in labels.unique().tolist():
        own = (labels == label).nonzero().squeeze(1)
        kept.append(index[own[order(own)]])
    return torch.cat(kept)
