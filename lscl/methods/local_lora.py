"""Control: a static LoRA of the same place and rank instead of the written one, local like the head."""

from torch import Tensor, nn

from lscl.config import Experiment
from lscl.federation.client import Batch, Client
from lscl.federation.search_space import LogRange, OneOf
from lscl.methods.local_head import LocalHead
from lscl.methods.parts.lora import OneBlock, OneBlockCosts, StaticLoRA, check_adapted_block
from lscl.registry import register


@register
class LocalLoRA(LocalHead):
    """Tells whether writing an update per image adds anything to having one update per client.

    Trained: LoRA A, B in one block and the head. Uploaded and returned: nothing. Not in the paper.
    """

    name, label = "local_lora", "own static LoRA"
    place, turn, quick = 12, 7, ("demo", "colab")
    tuned = {"lr": 1e-2}
    search_space = {"lr": LogRange(1e-4, 1e-1), "rank": OneOf((1, 2, 4, 8, 16, 32))}
    costs = OneBlockCosts

    Parameters = OneBlock
    check_foundation = staticmethod(check_adapted_block)

    @staticmethod
    def cut(config: Experiment) -> int | None:
        return config.block

    def build(self, client: int) -> nn.Module:
        lora = StaticLoRA(
            self.foundation.width,
            3 * self.foundation.width,
            self.config.rank,
            self.config.lora_alpha / self.config.rank,
        )
        return nn.ModuleDict({"lora": lora, "head": nn.Linear(self.foundation.width, self.num_classes)})

    def logits(self, client: Client, batch: Batch) -> Tensor:
        return client.model["head"](self.foundation.suffix(batch.prefix, client.model["lora"]()))
