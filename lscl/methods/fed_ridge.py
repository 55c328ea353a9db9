"""Control: ridge regression on the frozen features of all clients' images, by Gram matrices that the server adds."""

from collections.abc import Collection, Mapping

from torch import Tensor

from lscl.federation.client import Client
from lscl.federation.limits import Check
from lscl.federation.method import Stage
from lscl.federation.payload import Payload, Shapes
from lscl.methods.parts.closed_form import LAMBDAS, RidgeCosts, RidgeMethod, RidgeParameters, SummedRidge
from lscl.methods.parts.noise import Noise
from lscl.registry import register


@register
class FedRidge(RidgeMethod, SummedRidge):
    """Nothing is trained: the server solves one ridge regression from frozen features to classes.
    It needs no images, only sums over them, so every task counts as much as the last one, and nothing is forgotten.

    The sums make it the exact solution of ridge regression on all images of all clients and tasks so far, whatever
    their order: recursive in ACIL (Zhuang et al. 2022, arXiv 2205.14922), federated in AFL (He et al. 2024,
    arXiv 2405.16240), on random ReLU features in RanPAC (McDonnell et al. 2023, arXiv 2307.02251). Up, once a task: the
    upper triangle of sum [h; y][h; y]^T, with h (D,) the features and y (k,) the one-hot label among the classes of the
    client's task. Down, for the test: the head W (C, D). Kept on the server: the summed Gram matrix (D, D), products
    (D, C) and W. D = d, the width of the frozen ViT, or ridge_features = n > 0 random features. What the server learns:
    class means and covariances of the frozen features; of a client with few images nearly the features themselves.
    Payload: up 4 (D + k)(D + k + 1) bytes, once a task; down 8 C D bytes, once a task.

    It measures what the questions asked here need at this scale, and so what a system has to add; a system that stays
    below it is not refuted for other models, more images or other data. Not in the paper.

    lambda on the features themselves was chosen on the tuning seed 7 by the trials that every system gets; on 2,000
    random ones it is 0.3, the best of a few values on that seed after two tasks. RanPAC chooses it anew in every task,
    on a fifth of the task's images.

    Differences from the sources:
    1. lambda is in units of the mean eigenvalue of the Gram matrix, so that one value serves any number of images.
    2. sums travel, not solutions (AFL merges the clients' solutions, with the same result); labels of a class that
       nobody has shown yet are zero for all images.
    3. with random features: 2,000 of them here, 10,000 in RanPAC, and no adapter is trained on the first task.
    4. 64-bit numbers throughout.
    """

    name, label = "fed_ridge", "federated ridge"
    place, turn, quick = 15, 15, ("demo", "colab")
    rows = ({}, {"ridge_features": 2000, "ridge_lambda": 0.3})
    tuned = {"ridge_lambda": 0.03}
    search_space = LAMBDAS
    costs = RidgeCosts
    defences = {f"noise {noise:g}": {"dp_noise": noise} for noise in (0.003, 0.01, 0.03, 0.1, 1.0)}
    head_names = ("weight",)

    class Parameters(RidgeParameters, Noise):
        """See `lscl.registry.Parameters`."""

    def initial_server(self) -> dict[str, Tensor]:
        return self.zero_sums()

    def upload(self, client: Client, stage: Stage) -> Payload:
        return self.packed_sums(client, self.frozen_feature)

    def releases(self) -> tuple[str, int]:
        """An image is in the sums of one task, which go up once."""
        return "image", 1

    def upload_shapes(self, client: int, stage: Stage) -> Shapes:
        return self.shapes_of_sums()

    def checks(self, client: int, stage: Stage) -> dict[str, Check]:
        return self.checks_of_sums(client, stage)

    def summed_names(self, stage: Stage) -> Collection[str]:
        """All, if a client sends a row for every class of the data set instead of those of its task."""
        return {"gram"}

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        self.add_sums(uploads, stage)
