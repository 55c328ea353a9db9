"""Checks of the numbers in a client's answers: they change nothing, and every honest answer passes.

Trained numbers lie near what the server sent: no step of Adam moves a number by more than 7.3 learning rates (with
betas 0.9 and 0.999, by Cauchy and Schwarz: (1 - b1) / sqrt(1 - b2) / sqrt(1 - b1^2 / b2)). A client can therefore move
an average by at most STEP learning rates times the steps of a round. Measured numbers have a fixed bound.

In honest runs of the profiles smoke and demo, trained numbers moved by one learning rate in a step, and measured ones
reached 6. With learning rates 100 to 300 times too large, features reached 3e3 and variances 1e5.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# A finite tensor of the right type and shape -> what is wrong with it; None if nothing is.
Check = Callable[[Tensor], str | None]

STEP = 8.0  # learning rates that a number may move in a step
# Largest absolute value of a measured number: a feature, a gradient, a BatchNorm mean. Variances and squares: LIMIT^2.
LIMIT = 1e6
SLACK = 1e-3  # relative; features are float32, and their bound is made for exact numbers
ROUNDING = 1e-6  # relative error of a float32 number in a step, and of the trace of a Gram matrix


def equality_check(known: Tensor) -> Check:
    """Check that a tensor is one that the server knows already."""
    return lambda value: None if torch.equal(value, known) else f"is {_brief(value)}, the server knows {_brief(known)}"


def range_check(low: float | Tensor, high: float | Tensor) -> Check:
    """Check that all numbers lie between two bounds.

    Args:
        low: smallest allowed value, or a tensor of them.
        high: largest allowed value, or a tensor of them.

    Returns:
        The check.
    """

    def check(value: Tensor) -> str | None:
        outside = (value < low) | (value > high)
        return f"holds {value[outside][0].item():g}, allowed are {_range(low, high)}" if outside.any() else None

    return check


def reach_check(start: Tensor, rate: float, steps: int) -> Check:
    """Check that Adam can have reached a tensor.

    Args:
        start: the tensor that training started from.
        rate: learning rate.
        steps: most steps.

    Returns:
        The check.
    """

    def check(value: Tensor) -> str | None:
        reach = steps * (STEP * rate + ROUNDING * largest_magnitude(start))
        gap = largest_magnitude(value - start)
        return f"is {gap:g} away from what was sent, training reaches {reach:g} at most" if gap > reach else None

    return check


def gram_check(unpack: Callable[[Tensor], Tensor], high: float) -> Check:
    """Check that a packed symmetric matrix of sums of squares and products is a Gram matrix.

    Args:
        unpack: packed numbers -> (n, n) matrix.
        high: largest allowed sum of squares.

    Returns:
        The check: no square below zero or above `high`, no eigenvalue below zero.
    """

    def check(value: Tensor) -> str | None:
        moments = unpack(value.double())
        diagonal = moments.diagonal()
        if diagonal.min() < 0 or diagonal.max() > high:
            return f"has squares of {diagonal.min():g} to {diagonal.max():g}, allowed are 0 to {high:g}"
        shift = ROUNDING * diagonal.sum() + torch.finfo(torch.float64).tiny
        below = torch.linalg.cholesky_ex(moments + shift * torch.eye(len(moments), dtype=torch.float64)).info > 0
        return "is no Gram matrix: it has an eigenvalue below zero" if below else None

    return check


def class_sums_check(counts: Tensor, length: float) -> Check:
    """Check sums of feature vectors by class.

    Args:
        counts: vectors of each class, (k,).
        length: a bound for the length of each of them.

    Returns:
        The check of a tensor (k, d): no sum is longer than its vectors can make it.
    """

    def check(value: Tensor) -> str | None:
        found, reach = value.norm(dim=1), (1 + SLACK) * length * counts
        if (found <= reach).all():
            return None
        worst = int((found - reach).argmax())
        return f"has a sum of length {found[worst]:g}, {counts[worst]} images reach {reach[worst]:g}"

    return check


def joint_moments_check(unpack: Callable[[Tensor], Tensor], counts: Tensor, length: float) -> Check:
    """Check the packed sums of products of features and one-hot labels, sum [f; y][f; y]^T.

    That these form a Gram matrix ties the sums by class to those of squares: nobody can enlarge one of them alone.

    Args:
        unpack: packed numbers -> (d + k, d + k) matrix.
        counts: images of each class, (k,): what the block of the labels must have on its diagonal.
        length: a bound for the length of each feature vector.

    Returns:
        The check.
    """
    most = (1 + SLACK) * length**2 * float(counts.sum())
    gram = gram_check(unpack, math.inf)

    def check(value: Tensor) -> str | None:
        moments = unpack(value)
        known = torch.diag(counts.to(moments.dtype))
        if not torch.equal(moments[-len(counts) :, -len(counts) :], known):
            return f"has other numbers of images than the {_brief(counts)} that the server knows"
        squares = float(moments.diagonal()[: -len(counts)].sum())
        if squares > most:
            return f"has squares that sum up to {squares:g}, features of these images reach {most:g}"
        return gram(value)

    return check


def counts_check(total: Tensor) -> Check:
    """Check right answers by (mask, class): at most `total` (classes,), and no fewer where fewer classes compete."""

    def check(value: Tensor) -> str | None:
        if (value < 0).any() or (value > total).any():
            return f"holds {value.min()} to {value.max()} right answers, allowed are 0 to {_brief(total)}"
        return "is larger where more classes compete" if (value[1:] > value[:-1]).any() else None

    return check


def largest_magnitude(value: Tensor) -> float:
    """The largest absolute value of a tensor; 0 if it is empty."""
    return max(map(abs, map(float, value.aminmax()))) if value.numel() else 0.0


def _range(low: float | Tensor, high: float | Tensor) -> str:
    return " to ".join(_brief(one) if isinstance(one, Tensor) else f"{one:g}" for one in (low, high))


def _brief(value: Tensor) -> str:
    text = ", ".join(map(str, value.flatten()[:8].tolist()))
    return text if value.numel() <= 8 else f"{text}, ..."
