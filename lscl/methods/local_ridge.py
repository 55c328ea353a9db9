"""Control: ridge regression on the frozen features of a client's own images, no federation at all."""

from collections.abc import Mapping

from torch import Tensor

from lscl.federation.client import Client
from lscl.federation.costs import OwnWork, Planned
from lscl.federation.limits import Check
from lscl.federation.method import Stage
from lscl.federation.payload import Payload, Shapes
from lscl.federation.ridge import ridge_head, ridge_sums
from lscl.federation.sketch import CLASS, FROZEN_VIT, IMAGE, Part, Sketch
from lscl.methods.parts.closed_form import LAMBDAS, RidgeCosts, RidgeMethod
from lscl.registry import register


class OwnRidgeCosts(RidgeCosts):
    """Every client keeps its own sums and solves for itself."""

    def parameters(self, run: Planned) -> float:
        """Gram matrix, products and head, in float64, without the head that every system is counted with."""
        size = self.size(run)
        return 2.0 * size * (size + run.classes) + super().parameters(run)

    def own_work(self, run: Planned) -> OwnWork:
        return OwnWork(self.sums(run) + run.config.clients * run.config.tasks_run * self.solution(run))


@register
class LocalRidge(RidgeMethod):
    r"""This control trains nothing and sends nothing: each client fits a ridge regression to its own frozen features.
    The regression covers all tasks of the client so far, so the scores of different tasks share one scale. Compared
    with the trained local head it shows what a head never learns under a task mask.

    The closed form is that of `fed_ridge`, on the sums of the client's own images:

    $$W_k = \Big(\sum_x y\,h^\top\Big)\Big(\sum_x h\,h^\top + \lambda\,\bar c\,I\Big)^{-1},$$

    where the unit $\bar c$ of $\lambda$ is the mean eigenvalue of the Gram matrix $\sum_x h\,h^\top$.

    - Source: ACIL (Zhuang et al. 2022, arXiv 2205.14922); with `ridge_features` above 0 the head of RanPAC (McDonnell
      et al. 2023, arXiv 2307.02251).
    - Trained: nothing.
    - Up and down: nothing.
    - Stays on the client: the Gram matrix $(D, D)$ and the products $(D, C)$ of all its images so far.
    - Payload: up 0 bytes, down 0 bytes.

    The control shows how much a federation must add at this scale. It says nothing about a system elsewhere.
    $\lambda$ was chosen on the tuning seed 7 alone. The paper has no such control.
    """

    name, label = "local_ridge", "local ridge head"
    place, turn, quick = 16, 16, ("demo", "colab")
    tuned = {"ridge_lambda": 0.032}
    search_space = LAMBDAS
    costs = OwnRidgeCosts
    sketch = Sketch(
        row=(IMAGE, FROZEN_VIT, Part("solved head"), CLASS), stays="sums of products of features and labels"
    )

    def initial_server(self) -> dict[str, Tensor]:
        return {}

    def receive(self, client: Client, payload: Payload, stage: Stage) -> None:
        """At the end of the task, add its sums and solve; a client that was away does it, too."""
        if stage.name != "finish":
            return
        sums = ridge_sums(*self.features_and_labels(client), self.num_classes)
        for name, new in zip(("gram", "products"), sums, strict=True):
            client.state[name] = client.state.get(name, 0) + new
        weight = ridge_head(client.state["gram"], client.state["products"], self.config.ridge_lambda)
        client.model.load_state_dict({"weight": weight})

    def upload_shapes(self, client: int, stage: Stage) -> Shapes:
        return {}

    def checks(self, client: int, stage: Stage) -> dict[str, Check]:
        return {}

    def upload(self, client: Client, stage: Stage) -> Payload:
        return {}

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        pass
