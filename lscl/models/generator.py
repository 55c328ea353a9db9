"""The parameter generator phi: it writes the low-rank update of one image from the CNN's features (paper section 4.2)."""

import math

import torch
from torch import Tensor, nn

from lscl.models.vit import LowRank


class Generator(nn.Linear):
    """omega = W [f; 1], one linear layer m -> P = r d + 3 d r, split into A (r, d) and B (3d, r) for the fused qkv.

    The rows that write B start at zero, so that the first forward equals the frozen ViT; the bias of the A rows starts
    like LoRA's A. The bias alone is a static LoRA; the weights are what differs from image to image.
    """

    def __init__(self, features: int, width: int, rank: int, scale: float):
        super().__init__(features, rank * 4 * width)
        self.rank, self.width, self.scale = rank, width, scale
        with torch.no_grad():
            self.weight.zero_()[: rank * width].normal_(std=0.02)
            self.bias.zero_()[: rank * width].uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width))

    def reset_parameters(self) -> None:
        """torch's own start, from which __init__ goes on; there is none for m = 0 features, a static LoRA."""
        if self.in_features > 0:
            super().reset_parameters()

    def split(self, omega: Tensor) -> LowRank:
        """(b, P) -> A: (b, r, d), B: (b, 3d, r)."""
        a, b = omega.split([self.rank * self.width, 3 * self.width * self.rank], dim=1)
        return LowRank(a.view(-1, self.rank, self.width), b.view(-1, 3 * self.width, self.rank), self.scale)
