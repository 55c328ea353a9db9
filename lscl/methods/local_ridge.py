"""Control: ridge regression on the frozen features of a client's own images, no federation at all."""

from collections.abc import Mapping

from torch import Tensor

from lscl.federation.client import Client
from lscl.federation.costs import OwnWork, Planned
from lscl.federation.limits import Check
from lscl.federation.method import Stage
from lscl.federation.payload import Payload, Shapes
from lscl.federation.ridge import ridge_head, ridge_sums
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
    """Nothing is trained and nothing sent: each client solves a ridge regression on the frozen features of its images.
    Beside an own head that is trained by Adam under a task mask, it tells what such a head never learns: the scale of
    one task's scores against another's.

    Closed form as in `fed_ridge`, on the sums of the client's own images; as continual learning it is ACIL (Zhuang et
    al. 2022, arXiv 2205.14922), with ridge_features = n the head of RanPAC (McDonnell et al. 2023, arXiv 2307.02251).
    Kept on the client: Gram matrix (D, D) and products (D, C) of all its images so far. Uploaded and returned: nothing.
    Payload: up 0 bytes, down 0 bytes.

    It measures what the questions asked here need at this scale, and so what a federation has to add; it is no verdict
    on a system elsewhere. lambda was chosen on the tuning seed 7 alone. Not in the paper.
    """

    name, label = "local_ridge", "own ridge head"
    place, turn, quick = 16, 16, ("demo", "colab")
    tuned = {"ridge_lambda": 0.032}
    search_space = LAMBDAS
    costs = OwnRidgeCosts

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
