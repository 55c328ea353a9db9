"""One low-rank update of a linear layer for all images."""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from lscl.config import SCALE, Experiment
from lscl.federation.costs import Costs, Planned
from lscl.models.vit import FrozenViT, LowRank, check_block
from lscl.registry import Parameters


class LoRARank(Parameters):
    """For systems with a low-rank update."""

    rank: int = Field(4, ge=1, le=1024, description="rank r of the update (authors' code: 4)")


class OneBlock(LoRARank):
    """For systems that update the qkv layer of one block."""

    profile_values: ClassVar = {"smoke": {"block": 1}}  # the tiny ViT has three blocks
    block: int = Field(
        3, ge=0, le=1000, description="transformer block that gets the update, 0-based (paper Fig. 3: 3)"
    )
    lora_alpha: float = Field(16.0, **SCALE, description="scale s = lora_alpha / rank (authors' code: 16)")


class OneBlockCosts(Costs):
    """A and B for qkv in one block."""

    def parameters(self, run: Planned) -> float:
        return 4 * self.config.rank * run.width


def check_adapted_block(config: Experiment, foundation: FrozenViT) -> None:
    """For methods that update one block.

    Args:
        config: with `block`.
        foundation: the frozen ViT, or one of its shape.

    Raises:
        LsclError: the ViT has no such block.
    """
    check_block(config, foundation.depth)


class StaticLoRA(nn.Module):
    """A (r, in) uniform, B (out, r) zero at the start (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, inputs).uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs)))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = scale

    def forward(self) -> LowRank:
        """The update scale * B A."""
        return LowRank(self.A, self.B, self.scale)
