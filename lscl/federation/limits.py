"""What a client may say: checks of the numbers in its answers. A check only reads; an honest answer passes as it is.

What was trained lies near what was sent: no step of Adam moves a number by more than 7.3 learning rates (with betas 0.9 and 0.999,
by Cauchy and Schwarz: (1 - b1) / sqrt(1 - b2) / sqrt(1 - b1^2 / b2)). So nothing that a client says about a trained number can move an
average by more than STEP learning rates times the steps of a round. What was measured, not trained, has a fixed bound.
In honest runs of the profiles smoke and demo trained numbers moved by one learning rate in a step, and what was measured came to 6;
with learning rates 100 to 300 times too large features came to 3e3, variances to 1e5.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Check = Callable[
    [Tensor], str | None
]  # a finite tensor of the right type and shape -> what is wrong with it, None = nothing

STEP = 8.0  # learning rates that a number may move in a step
LIMIT = 1e6  # largest size of a number that was measured: a feature, a gradient, a mean of BatchNorm; a variance or a square: LIMIT^2
ROUNDING = 1e-6  # of a float32 number in a step, and of the trace of a Gram matrix


def equality_check(known: Tensor) -> Check:
    """The server knows it."""
    return lambda value: None if torch.equal(value, known) else f"is {_brief(value)}, the server knows {_brief(known)}"


def range_check(low: float | Tensor, high: float | Tensor) -> Check:
    """All numbers lie in low..high, which may be tensors of their own."""

    def check(value: Tensor) -> str | None:
        outside = (value < low) | (value > high)
        return f"holds {value[outside][0].item():g}, allowed are {_range(low, high)}" if outside.any() else None

    return check


def reach_check(start: Tensor, rate: float, steps: int) -> Check:
    """What Adam can have made of `start` with a learning rate in so many steps."""

    def check(value: Tensor) -> str | None:
        reach = steps * (STEP * rate + ROUNDING * largest_magnitude(start))
        gap = largest_magnitude(value - start)
        return f"is {gap:g} away from what was sent, training reaches {reach:g} at most" if gap > reach else None

    return check


def gram_check(unpack: Callable[[Tensor], Tensor], high: float) -> Check:
    """A packed symmetric matrix of sums of squares and products: none below zero, or above `high`."""

    def check(value: Tensor) -> str | None:
        moments = unpack(value.double())
        diagonal = moments.diagonal()
        if diagonal.min() < 0 or diagonal.max() > high:
            return f"has squares of {diagonal.min():g} to {diagonal.max():g}, allowed are 0 to {high:g}"
        shift = ROUNDING * diagonal.sum() + torch.finfo(torch.float64).tiny
        below = torch.linalg.cholesky_ex(moments + shift * torch.eye(len(moments), dtype=torch.float64)).info > 0
        return "is no Gram matrix: it has an eigenvalue below zero" if below else None

    return check


def counts_check(total: Tensor) -> Check:
    """Right answers by (mask, class): at most as many as there are images, and no fewer where fewer classes compete."""

    def check(value: Tensor) -> str | None:
        if (value < 0).any() or (value > total).any():
            return f"holds {value.min()} to {value.max()} right answers, allowed are 0 to {_brief(total)}"
        return "is larger where more classes compete" if (value[1:] > value[:-1]).any() else None

    return check


def largest_magnitude(value: Tensor) -> float:
    """The largest absolute value, 0 of nothing."""
    return max(map(abs, map(float, value.aminmax()))) if value.numel() else 0.0


def _range(low: float | Tensor, high: float | Tensor) -> str:
    return " to ".join(_brief(one) if isinstance(one, Tensor) else f"{one:g}" for one in (low, high))


def _brief(value: Tensor) -> str:
    text = ", ".join(map(str, value.flatten()[:8].tolist()))
    return text if value.numel() <= 8 else f"{text}, ..."
