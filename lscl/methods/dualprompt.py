"""FedAvg + DualPrompt: one prefix for all tasks in the first blocks, one for each task in the next."""

import torch
from pydantic import Field
from torch import Tensor, nn

from lscl.config import WEIGHT
from lscl.errors import LsclError
from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs, Planned
from lscl.federation.method import Averaged, Phase, Stage
from lscl.federation.payload import Payload
from lscl.federation.search_space import LogRange
from lscl.federation.sketch import CLASS, FROZEN_VIT, HEAD, IMAGE, Part, Sketch
from lscl.methods.parts.prompts import OFFICIAL_LR, PromptedMethod, PromptVote, cosine_to_keys
from lscl.models.vit import Adapter
from lscl.registry import register


class DualPromptCosts(Costs):
    """The general prefix, and one for each task."""

    def in_front(self) -> tuple[int, int]:
        config = self.config
        return config.dual_general_blocks + config.dual_task_blocks, max(
            config.dual_general_length, config.dual_task_length
        )

    def parameters(self, run: Planned) -> float:
        config = self.config
        slot = config.dual_task_blocks * config.dual_task_length
        return 2 * run.width * (config.dual_general_blocks * config.dual_general_length + config.tasks * slot)


@register
class DualPrompt(PromptedMethod):
    r"""The ViT gets learned keys and values, called prefixes, in its attention layers. A general prefix in the first
    blocks serves all tasks, and a second prefix in the next blocks belongs to one task. At test time an image takes
    the task prefix whose key is most similar to its frozen feature.

    In an adapted block the prefix $(P_K, P_V)$ extends the keys and values of the attention:

    $$\mathrm{Attention}\big(Q,\; [P_K; K],\; [P_V; V]\big).$$

    In task $t$ the general prefix, the task prefix, its key $\kappa_t$ and the head are trained on

    $$L = \mathrm{CE} - \lambda\,\frac1b\sum_x \cos\big(\phi(x), \kappa_t\big).$$

    - Source: Wang et al. 2022 (arXiv 2204.04799), averaged by FedAvg.
    - Trained in task $t$, up and down: the general prefix $(G, 2, l_g, d)$ in $G$ blocks, the prefix of task $t$
      $(E, 2, l_e, d)$ in $E$ blocks, its key $(d)$, and the head, weights $(C, d)$ and bias $(C)$. Slots of earlier
      tasks do not change and do not travel again.
    - Payload: up $4(2Gl_gd + 2El_ed + d + dC + C) + 8$ bytes, down 8 bytes fewer. With `head_merge = holders` another
      $C$ bytes go up.

    Differences from the PyTorch code that most people use (JH-LEE-KR/dualprompt-pytorch) and its descendants:
    1. The official code reshapes the gathered prefixes without moving the axes. So the prefix of an image depends on
       its place in the batch, keys are used as values and values as keys. Here each image gets its own prefix.
    2. Only the slots of tasks met so far compete at test time. In the official code untrained keys compete too.
    3. Each image chooses its own slot, or the batch votes (option `prompt_batchwise`).
    4. Slots are numbered by the client's own tasks, so the same slot holds different classes on each client, as
       Fed-LSCL's setting asks.
    5. There are as many slots as tasks (official: 10).
    6. There is no augmentation (official: random resized crops and mirroring). The frozen feature and the input of
       the first block are computed once.
    7. On ImageNet-R the profile `paper` has the official prefixes of length 20, the rate 0.005 B / 256 and 50 epochs
       per task (5 rounds of 10). Everything else has the values for CIFAR-100, with rounds and epochs of the profile
       (official: 5 epochs per task).
    """

    name, label, paper_name, citation = "dualprompt", "FedAvg + DualPrompt", "FedAvg+DualP", "2204.04799"
    place, turn = 5, 12
    sizes = {
        "smoke": {"dual_general_blocks": 1, "dual_task_blocks": 2},  # the tiny ViT has three blocks
        ("paper", "imagenet_r"): {"dual_task_length": 20, "lr": 0.005 * 16 / 256, "epochs": 10},  # see difference 7
    }
    tuned = {"lr": 0.026, "dual_pull": 2}
    official = {"lr": OFFICIAL_LR}
    search_space = {"lr": LogRange(1e-4, 1), "dual_pull": LogRange(0.1, 10)}
    costs = DualPromptCosts
    sketch = Sketch(
        row=(IMAGE, FROZEN_VIT, HEAD, CLASS),
        helpers=(
            Part("key picks the task prefix", "trained", arrow="right", fed=True),
            Part("general and task prefix", "trained"),
        ),
        up="general prefix, the prefix and key of this task, head",
        server="average them, weighted by the number of images",
        down="the average",
        stays="prefixes and keys of earlier tasks, unchanged",
    )

    class Parameters(PromptVote, Averaged):
        """See `lscl.registry.Parameters`."""

        dual_general_blocks: int = Field(
            2, ge=1, le=1000, description="first blocks that get DualPrompt's general prefix"
        )
        dual_task_blocks: int = Field(3, ge=1, le=1000, description="following blocks, which get the prefix of a task")
        dual_general_length: int = Field(5, ge=1, le=1000, description="keys and values in the general prefix")
        dual_task_length: int = Field(
            5, ge=1, le=1000, description="keys and values in the prefix of a task (official: 5, on ImageNet-R 20)"
        )
        dual_pull: float = Field(
            1.0, **WEIGHT, description="weight of DualPrompt's pull of the task's key to the frozen feature"
        )

    def build(self, client: int) -> nn.Module:
        config, width = self.config, self.foundation.width
        if config.dual_general_blocks + config.dual_task_blocks > self.foundation.depth:
            raise LsclError(
                f"dual_general_blocks + dual_task_blocks = {config.dual_general_blocks + config.dual_task_blocks}: "
                f"{config.foundation} has {self.foundation.depth} blocks"
            )
        uniform = lambda *shape: nn.Parameter(torch.empty(shape).uniform_(-1, 1))
        return nn.ModuleDict(
            {
                "general": nn.ParameterList(
                    [uniform(config.dual_general_blocks, 2, config.dual_general_length, width)]
                ),
                "task": nn.ParameterList(
                    [uniform(config.dual_task_blocks, 2, config.dual_task_length, width) for _ in range(config.tasks)]
                ),
                "key": nn.ParameterList([uniform(width) for _ in range(config.tasks)]),
                "head": nn.Linear(width, self.num_classes),
            }
        )

    def sent_names(self, task: int) -> list[str]:
        """Names of what is trained and sent in a task."""
        return ["general.0", f"task.{task}", f"key.{task}", "head.weight", "head.bias"]

    def broadcast(self, client: int, stage: Stage) -> Payload:
        return {name: self.server[name] for name in self.sent_names(stage.task)}

    def upload(self, client: Client, stage: Stage) -> Payload:
        sent = super().upload(client, stage)
        names = self.sent_names(stage.task)
        return {name: value for name, value in sent.items() if name in names or name not in self.server}

    def server_end_task(self, task: int) -> None:
        """The next task's prefix starts as this one's; its key does not."""
        if task + 1 < self.config.tasks:
            self.server[f"task.{task + 1}"] = self.server[f"task.{task}"].clone()

    def adapters(self, client: Client, task_prefix: Tensor) -> dict[int, Adapter]:
        """The prefixes of the first blocks: the general one in blocks 0 .. G-1, that of a task in blocks G .. G+E-1.

        Args:
            client: the one whose general prefix is taken.
            task_prefix: keys and values, (E, 2, l, d), or (E, 2, b, l, d) for other ones per sample.

        Returns:
            Adapters by block.
        """
        general = client.model["general"][0]
        return {index: Adapter(keys=pair[0], values=pair[1]) for index, pair in enumerate([*general, *task_prefix])}

    def prefixed_features(self, client: Client, batch: Batch, task_prefix: Tensor) -> Tensor:
        """The ViT's feature with both prefixes.

        Args:
            client: the one whose general prefix is taken.
            batch: b images.
            task_prefix: as in `adapters`.

        Returns:
            (b, d).
        """
        return self.foundation.suffix(batch.prefix, self.adapters(client, task_prefix))

    def choose_slots(self, client: Client, batch: Batch) -> Tensor:
        """The task met so far whose key is most similar to the frozen feature.

        Args:
            client: the one whose keys are compared.
            batch: b images.

        Returns:
            (b,); the same for all if the batch votes.
        """
        keys = torch.stack(list(client.model["key"])[: client.task + 1])
        chosen = cosine_to_keys(self.foundation.feature(batch.last_token), keys).argmax(1)
        return chosen.mode().values.expand_as(chosen) if self.config.prompt_batchwise else chosen

    def features_of(self, client: Client, batch: Batch) -> Tensor:
        prefixes = torch.stack(list(client.model["task"]), dim=2)  # (E, 2, T, l, d)
        return self.prefixed_features(client, batch, prefixes[:, :, self.choose_slots(client, batch)])

    def head_logits(self, client: Client, features: Tensor) -> Tensor:
        return client.model["head"](features)

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        """One, of what is sent in the task."""
        (phase,) = super().phases(client, stage)
        parameters = dict(client.model.named_parameters())
        phase.groups = [{"params": [parameters[name] for name in self.sent_names(client.task)], "lr": self.config.lr}]
        return [phase]

    def loss(self, client: Client, batch: Batch) -> Tensor:
        """Cross-entropy with the slot of the task at hand - lambda mean_b cos(phi(x_b), key_t)."""
        features = self.prefixed_features(client, batch, client.model["task"][client.task])
        pull = cosine_to_keys(self.foundation.feature(batch.last_token), client.model["key"][client.task][None]).mean()
        return self.cross_entropy(client, batch, self.head_logits(client, features)) - self.config.dual_pull * pull
