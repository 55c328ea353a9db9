"""FedAvg: each client trains the whole small CNN, the server averages."""

from torch import Tensor, nn

from lscl.errors import LsclError
from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs
from lscl.federation.method import Averaged, Method, Phase, Stage
from lscl.federation.search_space import LogRange
from lscl.methods.parts.augmentation import AUGMENTED, Augmentation, augmentation
from lscl.models.cnn import small_cnn
from lscl.registry import register


@register
class FedAvg(Method):
    """Local training of a small CNN, weighted averaging of all its parameters; no memory, nothing against forgetting.

    McMahan et al. 2017 (arXiv 1602.05629). Trained, uploaded, returned: CNN (P numbers, BatchNorm means and variances
    with them, one int64 counter for each of its L BatchNorm layers) and head W (C, m), b (C,).
    Payload: up 4 (P + m C + C) + 8 L + 8 bytes, down 4 (P + m C + C) + 8 L bytes; with head_merge = holders C bytes
    more up.

    Differences from the official codes of this field:
    1. BatchNorm means and variances are averaged too (fed-mammoth exchanges parameters only, so that its server model
       keeps the statistics of an untrained network); of the integer counters the largest is kept.
    2. the cross-entropy runs over the classes of the client's task, as in the code bases of the paper's authors.
    3. the CNN starts untrained: nothing in the paper says otherwise.
    4. Adam at `lr` with a fresh state each round, without weight decay or schedule (there mostly SGD with both).
    5. random crops by an eighth of the side, which are the official 4 of 32 pixels; glyphs are not mirrored, because
       that can make one the other, and images of a data set that is not ours are not augmented unless `augment` says so
       (`lscl.methods.parts.augmentation`).

    In the profiles demo and mini a client takes some 80 Adam steps in a task, too few to train a CNN: there FedAvg, and
    what is built on it, shows what 60 images of a class allow, not what the system can do. In full it takes some 310.
    """

    name, label, paper_name, citation = "fedavg", "FedAvg", "FedAvg", "1602.05629"
    place, turn, quick = 1, 2, ("colab",)
    sizes = AUGMENTED
    tuned = {"lr": 8.8e-4}
    search_space = {"lr": LogRange(1e-4, 1e-1)}
    costs = Costs
    defences = {"clipped changes": {"averaging": "clipped"}, "median": {"averaging": "median"}}

    class Parameters(Averaged, Augmentation):
        """See `lscl.registry.Parameters`."""

    vit, cnn = False, True
    head_rows = ("head.weight", "head.bias")
    brightness = 0.0  # largest change of the brightness of training images, where they are augmented

    def build(self, client: int) -> nn.Module:
        if "," in self.config.cnn:
            raise LsclError(
                f"cnn = {self.config.cnn!r}: {self.config.method} averages the networks, so all clients need the "
                "same one"
            )
        return nn.ModuleDict(
            {"cnn": small_cnn(self.config, 0, norm=False), "head": nn.Linear(self.config.features, self.num_classes)}
        )

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        """One phase, on augmented images; crops are drawn by the generator "augment" of the round."""
        (phase,) = super().phases(client, stage)
        phase.augment = augmentation(self.config.augment, client.rng("augment"), self.brightness)
        return [phase]

    def features_of(self, client: Client, batch: Batch) -> Tensor:
        return client.model["cnn"](batch.images)

    def head_logits(self, client: Client, features: Tensor) -> Tensor:
        return client.model["head"](features)
