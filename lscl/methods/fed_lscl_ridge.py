"""Fed-LSCL with a closed-form head: written updates make the features, ridge regression reads them. Not in the paper.

`FedLSCL` writes the updates. What keeps sums over clients and tasks valid is here: one CNN, one generator, and a head
that the server solves.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lscl.config import Experiment, chosen_values
from lscl.errors import LsclError
from lscl.federation.client import Batch, Client
from lscl.federation.costs import OwnWork, Planned
from lscl.federation.limits import Check
from lscl.federation.method import Phase, Stage
from lscl.federation.payload import Payload, Shapes
from lscl.federation.search_space import LogRange, OneOf
from lscl.federation.sketch import CLASS, FROZEN_VIT, IMAGE, Part, Sketch
from lscl.methods.fed_lscl import FedLSCL, FedLSCLCosts, evaluation_mode
from lscl.methods.parts.closed_form import LAMBDAS, RidgeCosts, RidgeHead, RidgeParameters, SummedRidge
from lscl.methods.parts.fed_lscl_studies import with_weights
from lscl.methods.parts.lora import check_adapted_block
from lscl.models.vit import FrozenViT
from lscl.registry import register

SUMS = "sums"  # name of the exchange after the last round of a task

RANDOM = {"ridge_features": 2000, "ridge_lambda": 0.3}  # those of the control `fed_ridge`
SHARED: dict[str, Any] = {"cnn_start": "pretrained", "o2d": "average"}
OWN_RATES = {"lr": 3e-3, "lr_generator": 1e-3, "rank": 4}
# The tiny CNN of smoke has no weights; those of the large profiles' CNN were trained with images of 224 pixels.
_WHOLE = {**SHARED, "ridge_features": RANDOM["ridge_features"]}
_LARGE = {**_WHOLE, "cnn_size": 224}
SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"o2d": "average"},
    **{"demo": _WHOLE, "mini": _WHOLE, "full": _WHOLE, "colab": _LARGE, "paper": _LARGE},
}


def repaired(profile: str) -> dict[str, dict[str, Any]]:
    """The way from Fed-LSCL to this system: every step adds one thing to the step before, and then what it hangs on.

    Args:
        profile: whose tuned values the steps begin with.

    Returns:
        {label in the tables: what the run changes in the profile}.
    """
    own = {"method": FedLSCL.name}
    begun = {name: value for name, value in chosen_values(FedLSCL, profile).items() if name != "o2d_lambda"}
    plain = {"ridge_features": 0, "ridge_lambda": 0.03}
    steps: dict[str, dict[str, Any]] = {
        "Fed-LSCL": own,
        "+ CNN pre-trained": {**own, "cnn_start": "pretrained"},
        "+ one generator for all": {**own, **SHARED},
        "+ closed-form head": {**begun, **SHARED, **plain, "adapt": "every", "freeze_cnn": False},
        "+ CNN frozen": {**begun, **SHARED, **plain, "adapt": "every"},
        "+ only the first task adapts": {**begun, **SHARED, **plain},
        "+ random features": {**begun, **SHARED, **RANDOM},
        "+ rates of its own": {**SHARED, **RANDOM},
        "nothing adapts": {**SHARED, **RANDOM, "adapt": "none"},
        "every task adapts": {**SHARED, **RANDOM, "adapt": "every"},
        "every task adapts, no SM-CF": {**SHARED, **RANDOM, "adapt": "every", "continual": "none"},
        "generators fused by O2D": {**SHARED, **RANDOM, "o2d": "shared"},
        "static LoRA for the written one": {**RANDOM, "o2d": "average", "collaboration": "static"},
        "CNN drawn": {**SHARED, **RANDOM, "cnn_start": "drawn"},
    }
    if not begun:  # nothing was tuned in this profile
        del steps["+ rates of its own"]
    return {label: with_weights(change, profile) for label, change in steps.items()}


class FedLSCLRidgeCosts(FedLSCLCosts):
    """Fed-LSCL's training in the tasks that adapt, and sums and solutions in all."""

    def cnn_passes(self) -> float:
        """No backward pass through a frozen CNN."""
        return 1 if self.config.freeze_cnn else super().cnn_passes()

    def cnn_images(self) -> float:
        """A frozen CNN keeps nothing for a backward pass."""
        return 0 if self.config.freeze_cnn else super().cnn_images()

    def passes(self) -> float:
        """One for the sums, and where every task adapts those of Fed-LSCL."""
        return 1 / self.config.rounds + (super().passes() if self.config.adapt == "every" else 0)

    def parameters(self, run: Planned) -> float:
        """Those of Fed-LSCL, and the head, twice as large in float64."""
        head = 2.0 * run.classes * RidgeCosts(self.config).size(run)
        if self.config.adapt == "none":
            return head - run.classes * run.width
        auxiliary = run.classes * self.config.features if self.config.freeze_cnn else 0
        return super().parameters(run) - auxiliary + head

    def own_work(self, run: Planned) -> OwnWork:
        ridge = RidgeCosts(self.config).own_work(run)
        if self.config.adapt == "none":
            return ridge
        if self.config.adapt == "first":
            first = self.config.model_copy(update={"stop_after": 1})
            adapted = FedLSCLCosts(first).own_work(replace(run, config=first))
        else:
            adapted = super().own_work(run)
        looked = run.epoch * run.cnn.flops  # by the CNN at the images of the sums
        return OwnWork(adapted.clients + ridge.clients + looked, adapted.server + ridge.server)


@register
class FedLSCLRidge(SummedRidge, FedLSCL):
    r"""The clients train one generator of written updates together, and only in the first task. After that the adapted
    features of an image never change, so the server can add up statistics over clients and tasks. It solves the
    classifier from these sums by ridge regression, as the control federated ridge does for frozen features.

    Sums over clients and tasks are valid only if all clients adapt an image in the same way, now and later. So the
    CNN is public, frozen and the same everywhere, and there is one generator. With adapted features $h(x)$ and
    one-hot labels $y$

    $$W = \Big(\sum_x y\,h^\top\Big)\Big(\sum_x h\,h^\top + \lambda\,\bar c\,I\Big)^{-1},$$

    where the unit $\bar c$ of $\lambda$ is the mean eigenvalue of the Gram matrix $\sum_x h\,h^\top$.

    RanPAC (McDonnell et al. 2023, arXiv 2307.02251) adapts in the first task, and its head reads random features. AFL
    (He et al. 2024, arXiv 2405.16240) sums the statistics of such a head over clients. Here Fed-LSCL's generator
    adapts the ViT: it writes a different update for every image, and the clients train it together.

    - Trained: the generator $\phi$ of shape $P \times (m+1)$, $P = 4rd$, and on each client a head $h_k$ that only
      serves this training.
    - Up in the rounds of a task that adapts: $\phi$.
    - Up after the last round of every task: the upper triangle of $\sum [h; y][h; y]^\top$, with $h$ of length $D$
      and $y$ over the $k$ classes of the client's task.
    - Down: $\phi$, the same for all clients; for the test the head $W$ of shape $C \times D$.
    - Stays on the client: the CNN, $h_k$ and all images.
    - Payload: in a round up $4P(m+1) + 8$ bytes, down $4P(m+1)$ bytes. For the sums up $4(D+k)(D+k+1)$ bytes, down
      $4P(m+1)$ bytes if the task adapts, else 0. For the test down $8CD$ bytes.
    - Privacy: the server learns the generators, and class means and covariances of the adapted features. For a client
      with few images these come close to the features themselves. The server gets no image and no private CNN.

    $D = d$, the width of the ViT, or `ridge_features` random features. This system is ours and not in the paper.

    Every step from Fed-LSCL to this system is a setting, and so is every step back. `lscl sweep repaired` runs them
    all:
    `adapt = first`; `every` (the generator keeps training, and the sums of earlier tasks describe features that no
    longer exist); `none` (equal to the control `fed_ridge` to the bit). The options `freeze_cnn`, `cnn_start`, `o2d`,
    `collaboration` (written, static) and `continual` work as in `fed_lscl`.

    Choices where the sources are silent, in addition to those of `fed_lscl`:
    1. The CNN is frozen in evaluation mode, and all clients share one random projection to $m$. With
       `freeze_cnn = false` each client trains its own CNN, and the server adds sums of different features.
    2. The heads $h_k$ start equal and stay private. They train under the task mask as in Eq. 3 and are never tested.
    3. `o2d = average` is FedAvg. `o2d = shared` is Eq. 5 over all uploads, without a student that has its own
       generator. The personalised forms `exact` and `sgd` are allowed; then clients have different features.
    4. Random features and the unit of $\lambda$ are those of `fed_ridge`.
    5. RanPAC's class means and its choice of $\lambda$ in every task are left out.
    """

    name, label, role = "fed_lscl_ridge", "Fed-LSCL + ridge", "variant"
    place, turn, rows = 17, 17, ()
    sizes = SIZES
    tuned = {**OWN_RATES, "ridge_lambda": RANDOM["ridge_lambda"]}
    official = {"ridge_lambda": RANDOM["ridge_lambda"]}
    search_space = {
        "lr": LogRange(1e-4, 1e-1),
        "lr_generator": LogRange(1e-5, 1e-1),
        "rank": OneOf((1, 2, 4, 8, 16, 32)),
        **LAMBDAS,
    }
    studies = {"repaired": repaired}
    costs = FedLSCLRidgeCosts
    sketch = Sketch(
        row=(IMAGE, FROZEN_VIT, Part("solved head"), CLASS),
        helpers=(
            Part("public frozen CNN", "frozen", arrow="right", fed=True),
            Part("generator, trained in task 1", "trained"),
        ),
        up="the generator in task 1; after every task sums of the adapted features",
        server="average the generators; add the sums and solve the head",
        down="the same generator and head for all",
    )
    head_name = "head"

    class Parameters(RidgeParameters, FedLSCL.Parameters):
        """See `lscl.registry.Parameters`."""

        profile_values: ClassVar = {}
        adapt: Literal["first", "every", "none"] = Field(
            "first",
            description="with a closed-form head: the tasks that train the generator: the first, every one, or none",
        )
        freeze_cnn: bool = Field(
            True, description="with a closed-form head: one frozen CNN for all clients, or each client trains its own"
        )

    @staticmethod
    def check_foundation(config: Experiment, foundation: FrozenViT) -> None:
        check_adapted_block(config, foundation)
        if config.collaboration == "cnn":
            raise LsclError(
                "collaboration = 'cnn': without the ViT there are no features to sum, "
                "fed_lscl_ridge allows written and static"
            )
        if config.freeze_cnn and config.adapt != "none" and "," in config.cnn:
            raise LsclError(
                f"cnn = {config.cnn!r}: with freeze_cnn = true all clients have the same CNN, give one name"
            )

        if config.dp_noise > 0:
            raise LsclError(
                f"dp_noise = {config.dp_noise:g}: sums of features that the same images have adapted have no account, "
                "leave it out (fed_lscl and fed_ridge have one)"
            )

    @classmethod
    def trains_in(cls, config: Experiment, task: int) -> bool:
        return config.adapt == "every" or (config.adapt == "first" and task == 0)

    @classmethod
    def trains_cnn(cls, config: Experiment) -> bool:
        return config.adapt != "none" and super().trains_cnn(config)

    @staticmethod
    def cut(config: Experiment) -> int | None:
        return None if config.adapt == "none" else config.block

    def adapts(self, stage: Stage) -> bool:
        """Whether clients train in the task of an exchange."""
        return self.trains_in(self.config, stage.task)

    def stages(self, task: int) -> list[Stage]:
        """The rounds of a task that adapts, and one exchange for the sums."""
        rounds = super().stages(task) if self.trains_in(self.config, task) else []
        return [*rounds, Stage(task, self.config.rounds, SUMS)]

    # -- client
    def build(self, client: int) -> nn.Module:
        config, ridge = self.config, RidgeHead(self.num_classes, self.size)
        if config.adapt == "none":
            return nn.ModuleDict({"ridge": ridge})
        model = super().build(0 if config.freeze_cnn else client)
        if config.freeze_cnn and "cnn" in model:
            model["cnn"].requires_grad_(False)
            model.pop("auxiliary")
        model["ridge"] = ridge
        return model

    def cnn_features(self, client: Client, batch: Batch) -> Tensor:
        """f = theta(x); of a frozen CNN as it is at the test, without a gradient.

        Args:
            client: the one whose CNN looks.
            batch: b images.

        Returns:
            (b, m); with a static LoRA m = 0.
        """
        if not self.config.freeze_cnn or "cnn" not in client.model:
            return super().cnn_features(client, batch)
        with torch.no_grad(), evaluation_mode(client.model["cnn"]):
            return super().cnn_features(client, batch)

    def features_of(self, client: Client, batch: Batch) -> Tensor:
        if self.config.adapt == "none":
            return self.foundation.suffix(batch.prefix)
        return super().features_of(client, batch)

    def head_logits(self, client: Client, features: Tensor) -> Tensor:
        """W h, with h what the head reads of a feature."""
        return client.model["ridge"](self.head_inputs(features))

    def start_task(self, client: Client) -> None:
        if self.trains_in(self.config, client.task):
            super().start_task(client)

    def receive(self, client: Client, payload: Payload, stage: Stage) -> None:
        head = stage.name == "finish"
        super().receive(client, {} if head else payload, stage)
        if head:
            client.model["ridge"].load_state_dict({"weight": payload[self.head_name]})

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        """Head and generator, and the CNN if it is not frozen; nothing for the sums."""
        if stage.name == SUMS:
            return []
        (phase,) = super().phases(client, stage)
        trained = ({**group, "params": [p for p in group["params"] if p.requires_grad]} for group in phase.groups)
        return [replace(phase, groups=[group for group in trained if group["params"]])]

    def upload(self, client: Client, stage: Stage) -> Payload:
        if stage.name != SUMS:
            return super().upload(client, stage)
        return self.packed_sums(client, lambda batch: self.head_inputs(self.features_of(client, batch)))

    def end_task(self, client: Client) -> None:
        """Keep what later training needs, if there is any."""
        if self.config.adapt == "every":
            super().end_task(client)

    # -- server
    @property
    def shares_generator(self) -> bool:
        """Whether there is a generator to share, a fusion that shares it, and a task that trains it."""
        return self.config.adapt != "none" and super().shares_generator

    def initial_server(self) -> dict[str, Tensor]:
        return {**super().initial_server(), **self.zero_sums()}

    def broadcast(self, client: int, stage: Stage) -> Payload:
        """The generator while its task adapts, the head for the test."""
        if stage.name == "finish":
            return {self.head_name: self.server[self.head_name]}
        return super().broadcast(client, stage) if self.adapts(stage) else {}

    def upload_shapes(self, client: int, stage: Stage) -> Shapes:
        return self.shapes_of_sums() if stage.name == SUMS else super().upload_shapes(client, stage)

    def checks(self, client: int, stage: Stage) -> dict[str, Check]:
        return self.checks_of_sums(client, stage) if stage.name == SUMS else super().checks(client, stage)

    def summed_names(self, stage: Stage) -> Collection[str]:
        """The sums, and the generators if they are averaged."""
        return {"gram"} if stage.name == SUMS else super().summed_names(stage)

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        """Fuse the generators; behind the rounds of the task, add the sums and solve."""
        if stage.name == SUMS:
            self.add_sums(uploads, stage)
        else:
            super().aggregate(uploads, stage)
