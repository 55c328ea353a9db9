"""FedProx: FedAvg with a pull to the received weights."""

from pydantic import Field
from torch import Tensor

from lscl.config import WEIGHT
from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs
from lscl.federation.method import Stage
from lscl.federation.payload import Payload
from lscl.federation.search_space import LogRange
from lscl.federation.sketch import CLASS, CNN, HEAD, IMAGE, Part, Sketch
from lscl.methods.fedavg import FedAvg
from lscl.methods.parts.augmentation import AUGMENTED
from lscl.registry import register


@register
class FedProx(FedAvg):
    r"""FedProx adds one term to the local loss of FedAvg: it pulls every weight towards the one that the client
    received. So clients with different data drift apart less within a round. The server averages as in FedAvg.

    With the received weights $w_{\mathrm{r}}$ each client minimises

    $$L = \mathrm{CE} + \frac{\mu}{2}\,\lVert w - w_{\mathrm{r}}\rVert^2.$$

    - Source: Li et al. 2020 (arXiv 1812.06127).
    - Trained, up and down: as in FedAvg.
    - Stays on the client: $w_{\mathrm{r}}$, for the round.
    - Payload: as in FedAvg, up $4(|\theta| + mC + C) + 8L + 8$ bytes, down 8 bytes fewer.

    Differences from other codes:
    1. The norm is squared. The FedProx in the released MFCL code adds norms without the square, and such a pull never
       weakens near the received weights.
    2. BatchNorm means and variances are not parameters, so nothing pulls them.
    3. Optimiser, augmentation and start are those of FedAvg (its differences 3 to 5).
    """

    name, label, paper_name, citation = "fedprox", "FedProx", "FedProx", "1812.06127"
    place, turn = 2, 3
    sizes = AUGMENTED
    tuned = {"lr": 4.9e-4, "prox_mu": 3.8e-3}
    search_space = {"lr": LogRange(1e-4, 1e-1), "prox_mu": LogRange(1e-3, 10)}
    costs = Costs
    sketch = Sketch(
        row=(IMAGE, CNN, HEAD, CLASS),
        helpers=(None, Part("received weights pull", "kept")),
        up="CNN and head",
        server="average them, weighted by the number of images",
        down="the average",
    )

    class Parameters(FedAvg.Parameters):
        """See `lscl.registry.Parameters`."""

        prox_mu: float = Field(0.01, **WEIGHT, description="weight of FedProx's pull to the received weights")

    def receive(self, client: Client, payload: Payload, stage: Stage) -> None:
        super().receive(client, payload, stage)
        client.scratch["received"] = [p.detach().clone() for p in client.model.parameters()]

    def loss(self, client: Client, batch: Batch) -> Tensor:
        drift = sum(
            (p - start).square().sum()
            for p, start in zip(client.model.parameters(), client.scratch["received"], strict=True)
        )
        return super().loss(client, batch) + self.config.prox_mu / 2 * drift
