"""FedProx: FedAvg with a pull to the received weights."""

from pydantic import Field
from torch import Tensor

from lscl.config import WEIGHT
from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs
from lscl.federation.method import Stage
from lscl.federation.payload import Payload
from lscl.federation.search_space import LogRange
from lscl.methods.fedavg import FedAvg
from lscl.methods.parts.augmentation import AUGMENTED
from lscl.registry import register


@register
class FedProx(FedAvg):
    """The local loss gains (mu / 2) ||w - w_received||^2, so that clients with other data drift apart less.

    Li et al. 2020 (arXiv 1812.06127). Trained, uploaded, returned, payload: as FedAvg; a client keeps w_received for
    the round.

    Differences from other codes:
    1. the norm is squared (the FedProx of the released MFCL code sums norms that are not, a pull that never weakens).
    2. BatchNorm means and variances are no parameters and are not pulled.
    3. optimiser, augmentation and start as in FedAvg (its differences 3 to 5).
    """

    name, label, paper_name, citation = "fedprox", "FedProx", "FedProx", "1812.06127"
    place, turn = 2, 3
    sizes = AUGMENTED
    tuned = {"lr": 4.9e-4, "prox_mu": 3.8e-3}
    search_space = {"lr": LogRange(1e-4, 1e-1), "prox_mu": LogRange(1e-3, 10)}
    costs = Costs

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
