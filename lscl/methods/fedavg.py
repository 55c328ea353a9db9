"""FedAvg: each client trains the whole small CNN, the server averages."""

from torch import Tensor, nn

from lscl.errors import LsclError
from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs
from lscl.federation.method import Averaged, Method, Phase, Stage
from lscl.federation.search_space import LogRange
from lscl.federation.sketch import CLASS, CNN, HEAD, IMAGE, Sketch
from lscl.methods.parts.augmentation import AUGMENTED, Augmentation, augmentation
from lscl.models.cnn import small_cnn
from lscl.registry import register


@register
class FedAvg(Method):
    r"""Each client trains a whole small CNN on the images of its current task. The server averages all parameters,
    weighted by the number of images, and sends the average to every client. Nothing protects earlier tasks, so this
    is the baseline that shows how much plain averaging forgets.

    With $n_k$ images on client $k$ and parameters $\theta_k$ after local training,

    $$\theta = \sum_k \frac{n_k}{\sum_j n_j}\,\theta_k.$$

    - Source: McMahan et al. 2017 (arXiv 1602.05629).
    - Trained, up and down: the CNN with $|\theta|$ numbers, which include the means and variances of BatchNorm; an
      int64 counter for each of its $L$ BatchNorm layers; the head, weights $(C, m)$ and bias $(C)$.
    - Payload: up $4(|\theta| + mC + C) + 8L + 8$ bytes, down $4(|\theta| + mC + C) + 8L$ bytes. With
      `head_merge = holders` another $C$ bytes go up.

    Differences from common code for this method:
    1. The server averages BatchNorm means and variances too. The fed-mammoth code exchanges parameters only, so its
       server model keeps the statistics of an untrained network. Of the integer counters the server keeps the
       largest.
    2. The cross-entropy runs over the classes of the client's task, as in the code of the paper's authors.
    3. The CNN starts untrained. The paper does not say otherwise.
    4. Adam runs at `lr` with a fresh state in each round, without weight decay or schedule. The other codes mostly
       use SGD with both.
    5. Training images are cropped at random by an eighth of the side, which is the official 4 of 32 pixels. Glyphs
       are not mirrored, because a mirrored glyph can be another class. Images of other people's data sets are not
       augmented unless `augment` says so (`lscl.methods.parts.augmentation`).

    In `mini` a client takes about 80 Adam steps in a task of CIFAR-100 (60 images per class) and 60 in a task of the
    glyphs (24 images per class). In `demo` (10 images per class) it takes 10 and 15. That is too few to train a CNN.
    There FedAvg and the systems built on it show what so few images and steps allow, not what the system can do. In
    `full` a client takes about 315 steps in a task of CIFAR-100.
    """

    name, label, paper_name, citation = "fedavg", "FedAvg", "FedAvg", "1602.05629"
    place, turn, quick = 1, 2, ("colab",)
    sizes = AUGMENTED
    tuned = {"lr": 8.8e-4}
    search_space = {"lr": LogRange(1e-4, 1e-1)}
    costs = Costs
    sketch = Sketch(
        row=(IMAGE, CNN, HEAD, CLASS),
        up="CNN and head",
        server="average them, weighted by the number of images",
        down="the average",
    )
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
