"""FedAvg + ViT: a frozen ViT whose linear classifier is trained on the clients and averaged on the server."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lscl.federation.client import Batch, Client
from lscl.federation.payload import Payload, Shapes
from lscl.methods.base import IMAGES, Method, Stage
from lscl.methods.parts.averaging import average_rows

HOLDS = "holds"  # name of the classes of the client's task in an upload: (C,) bool


class FedAvgViT(Method):
    """The backbone is untouched and its features are computed once; only the head travels.

    McMahan et al. 2017 (arXiv 1602.05629) on Dosovitskiy et al. 2020 (arXiv 2010.11929); the paper's baseline FedAvg+ViT.
    Trained, uploaded, returned: head W (C, d), b (C,). Payload: d C + C floats up and down (up: + one number and C flags).

    Differences from the authors' habit (their code for this row is not public):
    1. a linear head instead of a two-layer MLP: averaging an MLP mixes hidden units.
    2. `head_merge="holders"` averages a row only over the clients that trained it; "plain" (default) is FedAvg.
    """

    def build(self, client: int) -> nn.Module:
        return nn.Linear(self.foundation.width, self.num_classes)

    def logits(self, client: Client, batch: Batch) -> Tensor:
        return client.model(self.foundation.suffix(batch.prefix))

    def expected(self, client: int, stage: Stage) -> Shapes:
        return {**super().expected(client, stage), HOLDS: (self.num_classes,)}

    def upload(self, client: Client, stage: Stage) -> Payload:
        holds = torch.zeros(self.num_classes, dtype=torch.bool)
        holds[client.classes] = True
        return {**super().upload(client, stage), HOLDS: holds}

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        holders = {k: payload[HOLDS] for k, payload in uploads.items()}
        if self.config.head_merge == "plain":
            super().aggregate({k: {name: v for name, v in payload.items() if name != HOLDS} for k, payload in uploads.items()}, stage)
            return
        weights = {k: float(payload[IMAGES]) for k, payload in uploads.items()}
        self.server = {
            name: average_rows(before, {k: payload[name] for k, payload in uploads.items()}, holders, weights) for name, before in self.server.items()
        }
