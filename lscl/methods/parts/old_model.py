"""What GLFC, TARGET and MFCL share: a frozen old global model on every client, and the classes it knows."""

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from lscl.federation.client import Client
from lscl.federation.method import HOLDS, Stage
from lscl.federation.payload import Payload, Shapes
from lscl.methods.fedavg import FedAvg

KNOWN = "known"  # U: the classes any client has had in earlier tasks (on the server: so far), (C,) bool
OLD = "old."  # prefix of the old model's names


def is_first_exchange(stage: Stage) -> bool:
    """Whether this is a task's first exchange."""
    return stage.name == "train" and stage.round == 0


def model_part(payload: Mapping[str, Tensor]) -> Payload:
    """The part of a payload, or of the server, that is the global model."""
    return {name: value for name, value in payload.items() if name.startswith(("cnn.", "head."))}


class OldModel(FedAvg):
    """FedAvg that tells clients, once per task, what the federation knew before the task.

    Up in round 0 of a task, beside the model: `holds`, the classes of the client's task; nothing else tells the server
    which classes exist. Down in round 0 of every later task: `known` = U, the classes of all earlier tasks of all
    clients. The global model of that round is the last one of the previous task, so a client copies it as its old model
    and no byte is sent twice. A class of a client's task counts as known even if the client has no image of it.
    """

    def initial_server(self) -> dict[str, Tensor]:
        return {**super().initial_server(), KNOWN: torch.zeros(self.num_classes, dtype=torch.bool)}

    def once_per_task(self, stage: Stage) -> Payload:
        """What goes down with the model in round 0 of every task but the first; clients keep it in their state."""
        return {KNOWN: self.server[KNOWN]}

    def broadcast(self, client: int, stage: Stage) -> Payload:
        extra = self.once_per_task(stage) if is_first_exchange(stage) and stage.task > 0 else {}
        return {**model_part(self.server), **extra}

    def receive(self, client: Client, payload: Payload, stage: Stage) -> None:
        model = model_part(payload)
        super().receive(client, model, stage)
        if stage.task == 0 or stage.name != "train":
            return
        if is_first_exchange(stage):
            client.state |= {f"{OLD}{name}": value.clone() for name, value in model.items()}
            client.state |= {name: value for name, value in payload.items() if name not in model}
        client.scratch["replay"] = client.rng("replay")
        client.scratch["old"] = frozen_copy(
            client.model, {n.removeprefix(OLD): v for n, v in client.state.items() if n.startswith(OLD)}
        )

    def old_columns(self, client: Client) -> Tensor:
        """O = U minus the classes of the client's task, (K,) labels: what is distilled, never what is being learned."""
        known = client.state[KNOWN]
        return client.keep("old columns", lambda: labels_in(known & ~self.holds(client)), client.task, known)

    def upload(self, client: Client, stage: Stage) -> Payload:
        return {**super().upload(client, stage), **({HOLDS: self.holds(client)} if is_first_exchange(stage) else {})}

    def upload_shapes(self, client: int, stage: Stage) -> Shapes:
        plain = super().upload_shapes(client, Stage(stage.task, stage.round, "model"))
        return {**plain, **({HOLDS: (self.num_classes,)} if is_first_exchange(stage) else {})}

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        super().aggregate(uploads, stage)
        if is_first_exchange(stage):
            self.server[KNOWN] = torch.stack(
                [self.server[KNOWN], *(payload[HOLDS] for payload in uploads.values())]
            ).any(0)

    def summed_names(self, stage: Stage) -> Collection[str]:
        """All of the model; and of the flags the server needs no more than how many clients have a class."""
        return self._averaged_names(stage) if self.config.averaging == "mean" else {HOLDS}

    def known_classes(self) -> Tensor:
        """The classes the server has been told of: (K,) labels."""
        return labels_in(self.server[KNOWN])

    def teacher(self) -> nn.Module:
        """The global model, frozen, where the server computes."""
        return frozen_copy(self.new_model(0), model_part(self.server)).to(self.device)


def labels_in(flags: Tensor) -> Tensor:
    """The labels of the classes whose flag is set: (C,) bool -> (K,)."""
    return flags.nonzero().squeeze(1)


def frozen_copy(like: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network with other numbers in it, in evaluation mode, without gradients for its parameters.

    Args:
        like: the network.
        state: its numbers, by the names of its `state_dict`.

    Returns:
        The copy.
    """
    network = copy.deepcopy(like)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)
