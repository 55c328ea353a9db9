"""One low-rank update of a linear layer for all images."""

import math

import torch
from torch import nn

from lscl.models.vit import LowRank


class StaticLoRA(nn.Module):
    """A (r, in) uniform, B (out, r) zero at the start (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, inputs).uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs)))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = scale

    def forward(self) -> LowRank:
        return LowRank(self.A, self.B, self.scale)
