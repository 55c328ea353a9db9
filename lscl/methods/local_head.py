"""Control: the frozen ViT with each client's own linear head, no federation at all."""

from collections.abc import Mapping

from torch import Tensor, nn

from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs
from lscl.federation.method import Method, Stage
from lscl.federation.payload import Payload, Shapes
from lscl.federation.search_space import LogRange
from lscl.registry import register


@register
class LocalHead(Method):
    """What a client reaches alone with the frozen features: the honest floor for every system that adapts or shares.

    Trained: head W (C, d), b (C,). Uploaded and returned: nothing. Not in the paper.
    """

    name, label, role = "local_head", "own head only", "floor"
    place, turn, quick = 13, 0, ("demo", "colab")
    tuned = {"lr": 0.003}
    search_space = {"lr": LogRange(1e-4, 1)}
    costs = Costs

    def build(self, client: int) -> nn.Module:
        return nn.Linear(self.foundation.width, self.num_classes)

    def initial_server(self) -> dict[str, Tensor]:
        return {}

    def features_of(self, client: Client, batch: Batch) -> Tensor:
        return self.foundation.suffix(batch.prefix)

    def head_logits(self, client: Client, features: Tensor) -> Tensor:
        return client.model(features)

    def upload_shapes(self, client: int, stage: Stage) -> Shapes:
        return {}

    def upload(self, client: Client, stage: Stage) -> Payload:
        return {}

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        pass
