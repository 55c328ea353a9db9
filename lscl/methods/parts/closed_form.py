"""What the controls share that train nothing: a frozen feature and a head in closed form."""

from functools import cached_property

import torch
from pydantic import Field
from torch import Tensor, nn

from lscl.config import SCALE
from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs, OwnWork, Planned
from lscl.federation.limits import LIMIT
from lscl.federation.method import Method, Phase, Stage
from lscl.federation.passes import map_batches
from lscl.federation.payload import Payload
from lscl.federation.ridge import LAMBDA
from lscl.federation.search_space import LogRange
from lscl.registry import Parameters
from lscl.seeding import torch_generator

LAMBDAS = {"ridge_lambda": LogRange(1e-4, 10)}


class ClosedForm(Method):
    """A system that trains nothing: one exchange per task, in which sums may travel, and a head made of them.

    The sums are in float64, so that their order matters in the last digits only.
    """

    trains = False
    head_names: tuple[str, ...] = ()  # tensors of the server that the clients' head is made of

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        """None: nothing is trained."""
        return []

    def frozen_feature(self, batch: Batch) -> Tensor:
        """What the head reads: the frozen ViT's feature.

        Args:
            batch: b images.

        Returns:
            (b, d).
        """
        return self.foundation.suffix(batch.prefix)

    def features_and_labels(self, client: Client) -> tuple[Tensor, Tensor]:
        """All images of a client's task.

        Args:
            client: whose.

        Returns:
            Features (n, d) in float64 and labels (n,), on the CPU.
        """
        index = client.train_index
        features = map_batches(client.train, index, self.frozen_feature).double().cpu()
        return features, client.train.batch(index).known_labels

    @cached_property
    def longest(self) -> float:
        """A bound for the length of what `frozen_feature` gives."""
        return min(self.foundation.largest_feature, LIMIT * self.foundation.width**0.5)

    def classes(self, client: int, stage: Stage) -> Tensor:
        """The classes of a client's task, in the order of its sums.

        Args:
            client: its number.
            stage: of the task.

        Returns:
            (k,).
        """
        return torch.tensor(self.census.parts.tasks[client][stage.task].classes)

    def counts(self, client: int, stage: Stage) -> Tensor:
        """A client's images of each of these classes, as the server knows them.

        Args:
            client: its number.
            stage: of the task.

        Returns:
            (k,) int64.
        """
        classes = self.classes(client, stage)
        return torch.from_numpy(self.census.train[client, stage.task])[classes].long()

    def dtype(self, name: str) -> torch.dtype:
        return torch.float64

    def broadcast(self, client: int, stage: Stage) -> Payload:
        """Nothing before the sums are up; the head for the test."""
        return {name: self.server[name] for name in self.head_names} if stage.name == "finish" else {}


class RidgeParameters(Parameters):
    """For systems whose head is a ridge regression."""

    ridge_features: int = Field(
        0, ge=0, le=10**5, description="random ReLU features on top of the frozen ones, 0 = none (RanPAC: 10000)"
    )
    ridge_lambda: float = Field(
        LAMBDA, **SCALE, description="strength of the ridge, in mean eigenvalues of the Gram matrix of the features"
    )


class RidgeHead(nn.Module):
    """W (C, D) in float64, zero until it is fitted."""

    weight: Tensor

    def __init__(self, num_classes: int, size: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_classes, size, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """Scores: (b, D) -> (b, C)."""
        return features.double() @ self.weight.T


class RidgeCosts(Costs):
    """Random features, Gram matrix and solution; nothing is trained."""

    def parameters(self, run: Planned) -> float:
        """The head, twice as large in float64, without the one that every system is counted with."""
        return run.classes * (2 * self.size(run) - run.width)

    def size(self, run: Planned) -> int:
        """D, the length of what the head reads."""
        return self.config.ridge_features or run.width

    def sums(self, run: Planned) -> float:
        """FLOPs of all random features and Gram matrices."""
        size = self.size(run)
        random = 2.0 * self.config.ridge_features * run.width
        return run.epoch * (random + 2.0 * size * (size + run.classes))

    def solution(self, run: Planned) -> float:
        """FLOPs of one factorisation and its use."""
        size = self.size(run)
        return size**3 / 3 + 2.0 * size**2 * run.classes

    def own_work(self, run: Planned) -> OwnWork:
        return OwnWork(self.sums(run), run.config.tasks_run * self.solution(run))


class RidgeMethod(ClosedForm):
    """Ridge regression on the frozen feature f, or on D = n random features ReLU(R f), R (n, d) standard normal.

    Random features are those of RanPAC (arXiv 2307.02251); every client draws the same R from the seed of the run.
    """

    Parameters = RidgeParameters

    @property
    def size(self) -> int:
        """D, the length of what the head reads."""
        return self.config.ridge_features or self.foundation.width

    @cached_property
    def projection(self) -> Tensor:
        """R, (n, d)."""
        draw = torch_generator(self.config.seed, "ridge-features")
        return torch.randn(self.config.ridge_features, self.foundation.width, generator=draw)

    @cached_property
    def placed_projection(self) -> Tensor:
        """R where the frozen ViT is."""
        return self.projection.to(next(self.foundation.parameters()).device)

    def frozen_feature(self, batch: Batch) -> Tensor:
        """What the head reads.

        Args:
            batch: b images.

        Returns:
            f (b, d), or ReLU(R f) (b, n).
        """
        f = super().frozen_feature(batch)
        return (f @ self.placed_projection.T).relu() if self.config.ridge_features else f

    @cached_property
    def longest(self) -> float:
        """A bound for the length of what `frozen_feature` gives: that of f, times the largest singular value of R."""
        if not self.config.ridge_features:
            return super().longest
        return super().longest * float(torch.linalg.matrix_norm(self.projection.double(), 2))

    def build(self, client: int) -> nn.Module:
        return RidgeHead(self.num_classes, self.size)

    def logits(self, client: Client, batch: Batch) -> Tensor:
        return client.model(self.frozen_feature(batch))
