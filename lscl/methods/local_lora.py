"""Control: a static LoRA of the same place and rank instead of the written one, local like the head."""

import math

import torch
from torch import Tensor, nn

from lscl.config import Experiment
from lscl.federation.client import Batch, Client
from lscl.methods.local_head import LocalHead
from lscl.models.foundation import LowRank


class StaticLoRA(nn.Module):
    """One update for all images: A (r, d) uniform, B (3d, r) zero at the start (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, width: int, rank: int, scale: float):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, width).uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width)))
        self.B = nn.Parameter(torch.zeros(3 * width, rank))
        self.scale = scale

    def forward(self) -> LowRank:
        return LowRank(self.A, self.B, self.scale)


class LocalLoRA(LocalHead):
    """Tells whether writing an update per image adds anything to having one update per client.

    Trained: LoRA A, B in one block and the head. Uploaded and returned: nothing. Not in the paper.
    """

    @staticmethod
    def cut(config: Experiment) -> int | None:
        return config.block

    def build(self, client: int) -> nn.Module:
        lora = StaticLoRA(self.foundation.width, self.config.rank, self.config.lora_alpha / self.config.rank)
        return nn.ModuleDict({"lora": lora, "head": nn.Linear(self.foundation.width, self.num_classes)})

    def logits(self, client: Client, batch: Batch) -> Tensor:
        return client.model["head"](self.foundation.suffix(batch.prefix, client.model["lora"]()))
