"""Control: the frozen ViT with each client's own linear head, no federation at all."""

from collections.abc import Mapping

from torch import Tensor, nn

from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs
from lscl.federation.method import Method, Stage
from lscl.federation.payload import Payload, Shapes
from lscl.federation.search_space import LogRange
from lscl.federation.sketch import CLASS, FROZEN_VIT, HEAD, IMAGE, Sketch
from lscl.registry import register


@register
class LocalHead(Method):
    r"""Each client trains only a linear classifier on the frozen features, and no client sends anything. This control
    is the baseline for every system with a ViT that adapts it or shares something. Such a system that does not beat
    it has gained nothing from the federation.

    Client $k$ minimises the cross-entropy of a linear head over the classes of its task, as in Eq. 3 without an
    update:

    $$L = \frac1b\sum_i \mathrm{CE}\big(W_k\,\phi(x_i) + b_k,\; y_i\big).$$

    - Trained: the head, weights $(C, d)$ and bias $(C)$.
    - Up and down: nothing.
    - Payload: up 0 bytes, down 0 bytes.

    A system without a ViT can lose to it because its own features are weaker. The paper has no such control. There is
    no augmentation, because the frozen feature is computed once. The published code of the paper's authors crops and
    mirrors.
    """

    name, label, role = "local_head", "local head", "floor"
    place, turn, quick = 13, 0, ("demo", "colab")
    tuned = {"lr": 0.003}
    search_space = {"lr": LogRange(1e-4, 1)}
    costs = Costs
    sketch = Sketch(row=(IMAGE, FROZEN_VIT, HEAD, CLASS))

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
