"""FedAvg + ViT: a frozen ViT whose classifier is trained on the clients and averaged on the server."""

from torch import Tensor, nn

from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs
from lscl.federation.method import Averaged, Method
from lscl.federation.search_space import LogRange
from lscl.methods.parts.heads import HeadShape, classifier
from lscl.registry import register


@register
class FedAvgViT(Method):
    """The backbone is untouched and its features are computed once; only the head travels.

    McMahan et al. 2017 (arXiv 1602.05629) on Dosovitskiy et al. 2020 (arXiv 2010.11929); the paper's baseline
    FedAvg+ViT. Trained, uploaded, returned: head W (C, d), b (C,).
    Payload: up 4 (d C + C) + 8 bytes, down 4 (d C + C) bytes; with head_merge = holders another C bytes up.

    Differences from the authors' habit (their code for this row is not public):
    1. a linear head instead of a two-layer MLP (option head = mlp): averaging an MLP mixes hidden units.
    2. head_merge = holders averages a row only over the clients that trained it; plain (default) is FedAvg.
    3. no augmentation (their published code bases crop and mirror): the frozen feature is computed once.
    """

    name, label, paper_name, citation = "fedavg_vit", "FedAvg + ViT", "FedAvg+ViT", "2010.11929"
    place, turn, quick = 3, 1, ("demo", "colab")
    tuned = {"lr": 0.026}
    search_space = {"lr": LogRange(1e-4, 3)}
    costs = Costs
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
