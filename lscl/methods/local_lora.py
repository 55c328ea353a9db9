"""Control: a static LoRA in the same block instead of the written one, local like the head."""

from pydantic import Field
from torch import Tensor, nn

from lscl.config import RATE, Experiment
from lscl.federation.client import Batch, Client
from lscl.federation.method import Phase, Stage
from lscl.federation.search_space import LogRange, OneOf
from lscl.federation.sketch import CLASS, FROZEN_VIT, HEAD, IMAGE, Part, Sketch
from lscl.methods.local_head import LocalHead
from lscl.methods.parts.lora import OneBlock, OneBlockCosts, StaticLoRA, check_adapted_block
from lscl.registry import register


@register
class LocalLoRA(LocalHead):
    r"""Each client trains one LoRA for all its images and a linear head, and no client sends anything. The LoRA sits
    in the same block as the update that Fed-LSCL writes for each image, with a rank and rates of its own, chosen by
    trials. Where the features move, the comparison shows whether a separate update for every image adds anything.

    $$\mathrm{qkv}(z) = W_{\mathrm{qkv}}\,z + s\,B_k A_k z
    \qquad \text{with the same } A_k, B_k \text{ for all images.}$$

    - Trained: $A_k$, $B_k$ in one block, and the head, each with its own learning rate.
    - Up and down: nothing.
    - Payload: up 0 bytes, down 0 bytes.

    In `demo`, `mini` and `full` its rank is 2, and that of Fed-LSCL is 8. `collaboration = static` of Fed-LSCL compares
    at equal rank; there the server fuses the LoRAs. At the rates that the trials chose for these profiles the features
    of both systems hardly move, so their rows cannot show what a written update adds. `lscl sweep larger_rate` compares
    the written and the static update at a rate at which they move. The paper has no such control.

    There is no augmentation, because the input of the adapted block is computed once. The published code of the paper's
    authors crops and mirrors.
    """

    name, label = "local_lora", "local LoRA"
    place, turn, quick = 12, 7, ("demo", "colab")
    tuned = {"lr": 0.0032, "lr_lora": 2.4e-5, "rank": 2}
    official = {"lr_lora": 1e-3}  # the rate of everything in the code bases of the paper's authors
    search_space = {"lr": LogRange(1e-4, 1e-1), "lr_lora": LogRange(1e-5, 1e-2), "rank": OneOf((1, 2, 4, 8, 16, 32))}
    costs = OneBlockCosts
    sketch = Sketch(row=(IMAGE, FROZEN_VIT, HEAD, CLASS), helpers=(None, Part("one LoRA for all images", "trained")))

    class Parameters(OneBlock):
        """See `lscl.registry.Parameters`."""

        lr_lora: float = Field(1e-4, **RATE, description="Adam learning rate of the LoRA of the control local LoRA")

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

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        config, model = self.config, client.model
        groups = [
            {"params": list(model["lora"].parameters()), "lr": config.lr_lora},
            {"params": list(model["head"].parameters()), "lr": config.lr},
        ]
        return [Phase(groups, self.loss, config.epochs, config.batch)]

    def features_of(self, client: Client, batch: Batch) -> Tensor:
        return self.foundation.suffix(batch.prefix, client.model["lora"]())

    def head_logits(self, client: Client, features: Tensor) -> Tensor:
        return client.model["head"](features)
