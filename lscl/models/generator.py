"""The parameter generator phi: it turns the CNN's features of an image into its low-rank update (paper section 4.2)."""

import math

import torch
from torch import Tensor, nn

from lscl.models.vit import LowRank


class Generator(nn.Linear):
    """omega = W [f; 1]: one linear layer m -> P = 4 r d, whose output is split into A (r, d) and B (3d, r).

    A and B update the fused qkv of the adapted block. The rows that write B start at zero, so that the first forward
    pass equals the frozen ViT's; the bias of the rows that write A starts like LoRA's A. The bias alone is a static
    LoRA; the weights make it differ from image to image.

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
            self.weight.zero_()[: rank * width].normal_(std=0.02)
            self.bias.zero_()[: rank * width].uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width))

    def reset_parameters(self) -> None:
        """Draw torch's own initial weights, which `__init__` then changes; nothing to draw for m = 0 features."""
        if self.in_features > 0:
            super().reset_parameters()

    def split(self, omega: Tensor) -> LowRank:
        """Split the output into updates: omega (b, P) -> A (b, r, d) and B (b, 3d, r)."""
        a, b = omega.split([self.rank * self.width, 3 * self.width * self.rank], dim=1)  # (b, r d), (b, 3d r)
        A = a.view(-1, self.rank, self.width)  # (b, r, d)
        B = b.view(-1, 3 * self.width, self.rank)  # (b, 3d, r)
        return LowRank(A, B, self.scale)
