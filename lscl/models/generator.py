"""The parameter generator phi: it turns an image's CNN features into its low-rank update (paper section 4.2, Eq. 2)."""

import math

import torch
from torch import Tensor, nn

from lscl.models.vit import LowRank


def scale_features(f: Tensor) -> Tensor:
    """Scale the CNN's features for the generator: g = f / m; for layer-normalised f all |g_i| sum to at most 1.

    Adam moves every weight by about the learning rate, so one step moves an output by at most the learning rate times
    (sum_i |g_i| + 1): the weights together move it no further than the bias alone.

    Args:
        f: layer-normalised features, (n, m).

    Returns:
        (n, m).
    """
    return f / max(1, f.shape[1])


class Generator(nn.Linear):
    """The generator of Eq. 2: omega = W [g; 1], P = 4 r d numbers that split into A (r, d) and B (3d, r).

    A and B update the fused qkv of the adapted block. The bias alone is a static LoRA and starts like one: A drawn, B
    zero, so that the first forward pass equals the frozen ViT's. The weights make the update differ from image to
    image; they start at zero.

    Args:
        features: width m of the CNN's features; 0 = a static LoRA.
        width: width d of the ViT.
        rank: rank r of the update.
        scale: factor of B A x.
    """

    def __init__(self, features: int, width: int, rank: int, scale: float):
        super().__init__(features, rank * 4 * width)
        self.rank, self.width, self.scale = rank, width, scale
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()[: rank * width].uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width))

    def reset_parameters(self) -> None:
        """Do nothing, as `__init__` sets all values."""

    def split(self, omega: Tensor) -> LowRank:
        """Split the output into updates: omega (b, P) -> A (b, r, d) and B (b, 3d, r)."""
        a, b = omega.split([self.rank * self.width, 3 * self.width * self.rank], dim=1)  # (b, r d), (b, 3d r)
        A = a.view(-1, self.rank, self.width)  # (b, r, d)
        B = b.view(-1, 3 * self.width, self.rank)  # (b, 3d, r)
        return LowRank(A, B, self.scale)
