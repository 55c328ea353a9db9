"""Control: ridge regression on the frozen features of all clients' images, by Gram matrices that the server adds."""

from collections.abc import Collection, Mapping

from torch import Tensor

from lscl.federation.client import Client
from lscl.federation.limits import Check
from lscl.federation.method import Stage
from lscl.federation.payload import Payload, Shapes
from lscl.federation.sketch import CLASS, FROZEN_VIT, IMAGE, Part, Sketch
from lscl.methods.parts.closed_form import LAMBDAS, RidgeCosts, RidgeMethod, RidgeParameters, SummedRidge
from lscl.methods.parts.noise import Noise
from lscl.registry import register


@register
class FedRidge(RidgeMethod, SummedRidge):
    r"""This control trains nothing: the server fits one linear classifier to the frozen features of all clients. The
    clients send sums over their images, from which the server solves a ridge regression exactly. Sums do not depend
    on the order of tasks, so nothing is forgotten.

    With features $h(x)$ of length $D$ and one-hot labels $y$, over all images of all clients and tasks so far,

    $$W = \Big(\sum_x y\,h^\top\Big)\Big(\sum_x h\,h^\top + \lambda\,\bar c\,I\Big)^{-1},$$

    where the unit $\bar c$ of $\lambda$ is the mean eigenvalue of the Gram matrix $\sum_x h\,h^\top$.

    - Source: recursive in ACIL (Zhuang et al. 2022, arXiv 2205.14922), federated in AFL (He et al. 2024, arXiv
      2405.16240), on random ReLU features in RanPAC (McDonnell et al. 2023, arXiv 2307.02251).
    - Trained: nothing.
    - Up, once per task: the upper triangle of $\sum [h; y][h; y]^\top$, with $y$ over the $k$ classes of the client's
      task.
    - Down, for the test: the head $W$ of shape $C \times D$.
    - Stays on the server: the summed Gram matrix $(D, D)$, the products $(D, C)$ and $W$.
    - Payload: up $4(D+k)(D+k+1)$ bytes, once per task; down $8CD$ bytes, once per task.
    - Privacy: the server learns class means and covariances of the frozen features. For a client with few images
      these come close to the features themselves.

    $D = d$, the width of the frozen ViT, or `ridge_features` random features.

    The control shows how much a system must add at this scale. A system below it is not refuted for other models,
    more images or other data. The paper has no such control.

    $\lambda$ for the features themselves was chosen on the tuning seed 7, by the trials that every system gets. For
    2,000 random features it is 0.3, the best of a few values on that seed after two tasks; those runs were not
    recorded. RanPAC chooses it in every task, on a fifth of the task's images.

    Differences from the sources:
    1. $\lambda$ has the unit $\bar c$, so one value serves any number of images.
    2. Clients send sums, not solutions. AFL merges the clients' solutions, with the same result. Labels of a class
       that no client has shown yet are zero for all images.
    3. There are 2,000 random features here and 10,000 in RanPAC, and no adapter is trained in the first task.
    4. All numbers are 64-bit.
    """

    name, label = "fed_ridge", "federated ridge"
    place, turn, quick = 15, 15, ("demo", "colab")
    rows = ({}, {"ridge_features": 2000, "ridge_lambda": 0.3})
    row_notes = ("", "2,000 random features")
    tuned = {"ridge_lambda": 0.03}
    search_space = LAMBDAS
    costs = RidgeCosts
    sketch = Sketch(
        row=(IMAGE, FROZEN_VIT, Part("solved head"), CLASS),
        up="sums of products of features and labels",
        server="add the sums and solve one ridge regression",
        down="the solved head",
    )
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
