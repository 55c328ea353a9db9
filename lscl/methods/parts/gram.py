"""Merging linear layers by regression on their inputs: closed forms, in float64.

The layer nearest to all W_i, measured by its outputs, min_W sum_i ||(W - W_i) X_i^T||_F^2, is

    W = (sum_i W_i G_i)(sum_i G_i)^+    with the Gram matrices G_i = X_i^T X_i; X_i: (tokens, in), W_i: (out, in)

(LoRM, arXiv 2410.17961; RegMean, arXiv 2212.09849). Of a diagonal G only the diagonal (in,) is ever kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lscl.models.vit import Addition


@dataclass(frozen=True)
class InputSquares:
    """An addition that also sums the squares of its layer's inputs over images and tokens: the diagonal of X^T X.

    Args:
        addition: what is added to the layer's output.
        diagonal: (in,) float64, summed up in place.
    """

    addition: Addition
    diagonal: Tensor

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """The layer's output with the addition; the inputs are counted.

        Args:
            out: the frozen layer's output, (b, N, out).
            x: its input, (b, N, in).

        Returns:
            (b, N, out).
        """
        self.diagonal.add_(x.square().sum((0, 1), dtype=torch.float64))
        return self.addition.add_to(out, x)


def gram_matrix(features: Tensor) -> Tensor:
    """X^T X in float64. (n, d) -> (d, d)."""
    return features.double().T @ features.double()


def damp_off_diagonal(moments: Tensor, alpha: float) -> Tensor:
    """The matrix with smaller numbers off its diagonal.

    Args:
        moments: (d, d).
        alpha: factor off the diagonal, 0 to 1.

    Returns:
        (d, d).
    """
    return alpha * moments + (1 - alpha) * torch.diag(moments.diagonal())


def merge_outer_factors(factors: Sequence[Tensor], A: Tensor, diagonals: Sequence[Tensor]) -> Tensor:
    """B = (sum_i B_i M_i)(sum_i M_i)^+ with M_i = A diag(g_i) A^T, for layers B_i A that share A.

    Args:
        factors: the B_i, (out, r) each.
        A: (r, in).
        diagonals: the g_i, (in,) each.

    Returns:
        B, (out, r).
    """
    A = A.double()
    return merge_layers(factors, [(A * diagonal.double()) @ A.T for diagonal in diagonals])


def merge_inner_factors(factors: Sequence[Tensor], diagonals: Sequence[Tensor]) -> Tensor:
    """A = (sum_i A_i G_i)(sum_i G_i)^+ for layers B A_i that share B: a weighted mean for each input.

    An input that was zero everywhere has no weights; there it is the plain mean.

    Args:
        factors: the A_i, (r, in) each.
        diagonals: of the G_i, (in,) each.

    Returns:
        A, (r, in).
    """
    weights = torch.stack([diagonal.double() for diagonal in diagonals])
    weights = torch.where(weights.sum(0) > 0, weights, torch.ones_like(weights))
    return sum(factor.double() * weight for factor, weight in zip(factors, weights, strict=True)) / weights.sum(0)


def merge_layers(layers: Sequence[Tensor], moments: Sequence[Tensor]) -> Tensor:
    """W = (sum_i W_i G_i)(sum_i G_i)^+ with whole Gram matrices.

    Args:
        layers: the W_i, (out, q) each.
        moments: the G_i, (q, q) each, symmetric.

    Returns:
        W, (out, q).
    """
    products = sum(layer.double() @ moment.double() for layer, moment in zip(layers, moments, strict=True))
    return products @ torch.linalg.pinv(sum(moment.double() for moment in moments), hermitian=True)


def merge_tasks(inner: Sequence[Tensor], outer: Sequence[Tensor], diagonals: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Q S^+ with Q = sum_t B_t A_t G_t and S = sum_t G_t, as two factors.

    The G_t are diagonal, so Q S^+ = sum_t B_t (A_t diag(g_t / sum_u g_u)): no matrix of the layer's size is formed. An
    input that was zero everywhere gets no update, as S^+ has it.

    Args:
        inner: the A_t, (r_t, in) each.
        outer: the B_t, (out, r_t) each.
        diagonals: the g_t, (in,) each.

    Returns:
        A (sum of r_t, in) and B (out, sum of r_t).
    """
    total = sum(diagonal.double() for diagonal in diagonals)
    shares = [torch.where(total > 0, diagonal.double() / total, torch.zeros_like(total)) for diagonal in diagonals]
    A = torch.cat([factor.double() * share for factor, share in zip(inner, shares, strict=True)])
    return A, torch.cat([factor.double() for factor in outer], dim=1)
