"""A head in closed form: for the controls that train nothing, and for systems that solve one on adapted features."""

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from pydantic import Field
from torch import Tensor, nn

from lscl.config import SCALE
from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs, OwnWork, Planned
from lscl.federation.limits import LIMIT, Check, joint_moments_check
from lscl.federation.method import Method, Phase, Stage
from lscl.federation.passes import map_batches
from lscl.federation.payload import Payload, Shapes
from lscl.federation.ridge import LAMBDA, ridge_head
from lscl.federation.search_space import LogRange
from lscl.methods.parts.noise import clip_length, noisy_joint_moments
from lscl.methods.parts.o2d import pack_triangle, unpack_triangle
from lscl.registry import Parameters
from lscl.seeding import torch_generator

LAMBDAS = {"ridge_lambda": LogRange(1e-4, 10)}


def features_and_labels(client: Client, feature: Callable[[Batch], Tensor]) -> tuple[Tensor, Tensor]:
    """All images of a client's task.

    Args:
        client: whose.
        feature: a batch of b images -> (b, D).

    Returns:
        Features (n, D) in float64 and labels (n,), on the CPU.
    """
    index = client.train_index
    features = map_batches(client.train, index, feature).double().cpu()
    return features, client.train.batch(index).known_labels


class TaskSums(Method):
    """A system whose clients send sums over the images of a task, which the server can check."""

    @cached_property
    def longest(self) -> float:
        """A bound for the length of what the head reads: of a feature of the ViT, frozen or adapted."""
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


class ClosedForm(TaskSums):
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
        return features_and_labels(client, self.frozen_feature)

    def dtype(self, name: str) -> torch.dtype:
        return torch.float64

    def broadcast(self, client: int, stage: Stage) -> Payload:
        """Nothing before the sums are up; the head for the test."""
        return {name: self.server[name] for name in self.head_names} if stage.name == "finish" else {}


def joint_moments(features: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """The sums sum [h; y][h; y]^T over images, with y the one-hot label among some classes.

    Args:
        features: h, (n, D) float64.
        labels: (n,), each in `classes`.
        classes: (k,).

    Returns:
        (D + k, D + k) float64: the Gram matrix of the features, their sums by class, and the numbers of images.
    """
    both = torch.cat([features, (labels[:, None] == classes).double()], dim=1)  # (n, D + k)
    return both.T @ both


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


class RidgeFeatures(TaskSums):
    """What a ridge regression reads: a feature f of the ViT, or D = n random features ReLU(R f).

    R (n, d) is standard normal, and every client draws the same one from the seed of the run, as RanPAC has it (arXiv
    2307.02251).
    """

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

    def head_inputs(self, f: Tensor) -> Tensor:
        """What the head reads of a feature.

        Args:
            f: (b, d).

        Returns:
            f itself, or ReLU(R f) (b, n).
        """
        return (f @ self.placed_projection.T).relu() if self.config.ridge_features else f

    @cached_property
    def longest(self) -> float:
        """A bound for the length of what the head reads: that of f, times the largest singular value of R."""
        if not self.config.ridge_features:
            return super().longest
        return super().longest * float(torch.linalg.matrix_norm(self.projection.double(), 2))


class SummedRidge(RidgeFeatures):
    """A ridge regression whose Gram matrix and products the server sums over clients and tasks.

    Server: `gram` (D, D), `products` (D, C) and the head (C, D), all float64. In an upload: `gram`, the upper triangle
    of sum [h; y][h; y]^T, ((D + k)(D + k + 1) / 2,) float64.
    """

    head_name = "weight"  # of the head on the server and on its way to the clients

    def zero_sums(self) -> dict[str, Tensor]:
        """The server's tensors before the first sums."""
        zeros = lambda *shape: torch.zeros(shape, dtype=torch.float64)
        D, C = self.size, self.num_classes
        return {"gram": zeros(D, D), "products": zeros(D, C), self.head_name: zeros(C, D)}

    def packed_sums(self, client: Client, feature: Callable[[Batch], Tensor]) -> Payload:
        """The sums over the images of a client's task; with dp_noise > 0 of clipped features, and noisy.

        Args:
            client: whose.
            feature: what the head reads of a batch of b images -> (b, D).

        Returns:
            `gram`.
        """
        (features, labels), noise = features_and_labels(client, feature), self.config.dp_noise
        if noise == 0:
            return {"gram": pack_triangle(joint_moments(features, labels, client.classes))}
        clip = min(self.config.dp_clip, self.longest)
        moments = joint_moments(clip_length(features, clip), labels, client.classes)
        counts = moments.diagonal()[-len(client.classes) :]
        return {"gram": pack_triangle(noisy_joint_moments(moments, counts, clip, noise, client.rng("noise-gram")))}

    def shapes_of_sums(self) -> Shapes:
        """Name and shape of the sums in an upload."""
        both = self.size + self.config.classes_per_task
        return {"gram": (both * (both + 1) // 2,)}

    def checks_of_sums(self, client: int, stage: Stage) -> dict[str, Check]:
        """They are a Gram matrix, of as many images as the server knows, with features no longer than the ViT's are.

        Args:
            client: its number.
            stage: of the task.

        Returns:
            The check of `gram`.
        """
        return {"gram": joint_moments_check(unpack_triangle, self.counts(client, stage), self.longest)}

    def add_sums(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        """Add the sums of the clients and solve.

        Args:
            uploads: of the clients by their numbers.
            stage: of the task.
        """
        size, gram, products = self.size, self.server["gram"].clone(), self.server["products"].clone()
        for k, payload in uploads.items():
            moments = unpack_triangle(payload["gram"])
            gram += moments[:size, :size]
            products.index_add_(1, self.classes(k, stage), moments[:size, size:])
        weight = ridge_head(gram, products, self.config.ridge_lambda)
        self.server.update({"gram": gram, "products": products, self.head_name: weight})


class RidgeMethod(RidgeFeatures, ClosedForm):
    """A system that trains nothing and whose head is a ridge regression on the frozen feature."""

    Parameters = RidgeParameters

    def frozen_feature(self, batch: Batch) -> Tensor:
        """What the head reads.

        Args:
            batch: b images.

        Returns:
            f (b, d), or ReLU(R f) (b, n).
        """
        return self.head_inputs(super().frozen_feature(batch))

    def build(self, client: int) -> nn.Module:
        return RidgeHead(self.num_classes, self.size)

    def logits(self, client: Client, batch: Batch) -> Tensor:
        return client.model(self.frozen_feature(batch))
