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


def sample_positions(index: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Some of the positions, drawn without replacement.

    Args:
        index: positions, (n,).
        count: how many at most.
        generator: of the draw.

    Returns:
        (min(count, n),) positions.
    """
    return index[torch.randperm(len(index), generator=generator)[:count]]


def lowest_loss(index: Tensor, labels: Tensor, losses: Tensor, per_class: int) -> Tensor:
    """The images with the lowest loss of every class (paper section 4.3); ties are broken by position.

    Args:
        index: positions of images, (n,).
        labels: their classes, (n,).
        losses: (n,).
        per_class: how many of a class.

    Returns:
        Their positions, (kept,), class by class in ascending order.
    """
    return _by_class(index, labels, lambda own: torch.argsort(losses[own], stable=True)[:per_class])


def herding(index: Tensor, labels: Tensor, features: Tensor, per_class: int) -> Tensor:
    """Of every class some images whose mean feature is close to the mean of all (Rebuffi et al. 2017, iCaRL).

    Greedy, no image twice; the first is the one nearest to the mean, and a shorter list is the beginning of a longer
    one. A class with fewer images is kept whole.

    Args:
        index: positions of images, (n,).
        labels: their classes, (n,).
        features: (n, m), compared at length 1.
        per_class: how many of a class.

    Returns:
        Their positions, (kept,), class by class in ascending order.
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    return _by_class(index, labels, lambda own: _herd(unit[own], per_class))


def _herd(unit: Tensor, count: int) -> Tensor:
    """Step k takes the row that brings the mean of k rows closest to that of all. (n, m) -> (min(count, n),) rows."""
    mean, total, left, chosen = unit.mean(0), torch.zeros_like(unit[0]), torch.ones(len(unit), dtype=torch.bool), []
    for k in range(1, min(count, len(unit)) + 1):
        gap = (mean - (total + unit) / k).square().sum(1).masked_fill(~left, torch.inf)
        best = int(gap.argmin())
        left[best] = False
        total = total + unit[best]
        chosen.append(best)
    return torch.tensor(chosen, dtype=torch.int64)


def random_per_class(index: Tensor, labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """Some images of every class, drawn without replacement.

    Args:
        index: positions of images, (n,).
        labels: their classes, (n,).
        per_class: how many of a class.
        generator: of the draw.

    Returns:
        Their positions, (kept,), class by class in ascending order.
    """
    return _by_class(index, labels, lambda own: torch.randperm(len(own), generator=generator)[:per_class])


def first_of_each_class(index: Tensor, labels: Tensor, per_class: int) -> Tensor:
    """The first images of every class in the order given: how an ordered buffer shrinks.

    Args:
        index: positions of images, (n,).
        labels: their classes, (n,).
        per_class: how many of a class.

    Returns:
        Their positions, (kept,), class by class in ascending order.
    """
    return _by_class(index, labels, lambda own: torch.arange(min(per_class, len(own))))


def _by_class(index: Tensor, labels: Tensor, order: Callable[[Tensor], Tensor]) -> Tensor:
    """Class by class in ascending order, the images that `order` picks among the places (n_c,) of that class."""
    kept = [torch.empty(0, dtype=index.dtype)]
    for label in labels.unique().tolist():
        own = (labels == label).nonzero().squeeze(1)
        kept.append(index[own[order(own)]])
    return torch.cat(kept)
