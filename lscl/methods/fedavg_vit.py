"""FedAvg + ViT: a frozen ViT whose classifier is trained on the clients and averaged on the server."""

from torch import Tensor, nn

from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs
from lscl.federation.method import Averaged, Method
from lscl.federation.search_space import LogRange
from lscl.federation.sketch import CLASS, FROZEN_VIT, HEAD, IMAGE, Sketch
from lscl.methods.parts.heads import HeadShape, classifier
from lscl.registry import register


@register
class FedAvgViT(Method):
    r"""Each client trains a linear classifier on the features of the frozen ViT. The server averages the classifiers,
    weighted by the number of images. The ViT never changes, so its features are computed once and only the
    classifier travels.

    $$W = \sum_k \frac{n_k}{\sum_j n_j}\,W_k,
    \qquad W_k \text{ trained on } \mathrm{CE}\big(W_k\,\phi(x) + b_k,\; y\big).$$

    - Source: McMahan et al. 2017 (arXiv 1602.05629) on Dosovitskiy et al. 2020 (arXiv 2010.11929); the paper's
      baseline FedAvg+ViT.
    - Trained, up and down: the head, weights $(C, d)$ and bias $(C)$.
    - Payload: up $4(dC + C) + 8$ bytes, down $4(dC + C)$ bytes. With `head_merge = holders` another $C$ bytes go up.

    Differences from the authors' habits (their code for this row is not public):
    1. The head is linear instead of a two-layer MLP (option `head = mlp`), because averaging an MLP mixes hidden
       units.
    2. `head_merge = holders` averages a row only over the clients that trained it; `plain` (default) is FedAvg.
    3. There is no augmentation, because the frozen feature is computed once. Their published code crops and mirrors.
    """

    name, label, paper_name, citation = "fedavg_vit", "FedAvg + ViT", "FedAvg+ViT", "2010.11929"
    place, turn, quick = 3, 1, ("demo", "colab")
    tuned = {"lr": 0.026}
    search_space = {"lr": LogRange(1e-4, 3)}
    costs = Costs
    sketch = Sketch(
        row=(IMAGE, FROZEN_VIT, HEAD, CLASS),
        up="the head",
        server="average the heads, weighted by the number of images",
        down="the average",
    )
    defences = {"clipped changes": {"averaging": "clipped"}, "median": {"averaging": "median"}}

    class Parameters(HeadShape, Averaged):
        """See `lscl.registry.Parameters`."""

    head_rows = ("out.weight", "out.bias")

    def build(self, client: int) -> nn.Module:
        return classifier(self.config, self.foundation.width, self.num_classes)

    def features_of(self, client: Client, batch: Batch) -> Tensor:
        return self.foundation.suffix(batch.prefix)

    def head_logits(self, client: Client, features: Tensor) -> Tensor:
        return client.model(features)
