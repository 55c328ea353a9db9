"""Protection of CNN and generator from forgetting (paper section 4.3): the interface, and replacements of Eq. 4."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lscl.federation.client import Batch, Client
from lscl.federation.masking import masked_cross_entropy
from lscl.federation.method import Method
from lscl.federation.passes import map_batches
from lscl.methods.parts.buffer import sample_buffer, sample_positions
from lscl.methods.parts.continual import diagonal_fisher, distillation, ewc_penalty, replay_cross_entropy
from lscl.models.transfer import send

FISHER_IMAGES = 64  # of a task, for EWC
LWF_TEMPERATURE = 2.0


@dataclass(frozen=True)
class SmallContinual:
    """The interface of a method against forgetting. This one does nothing (continual = none); a subclass overrides.

    An object lives for one call: what a client has to remember stands in `Client.state`. A method of your own takes a
    place in the dictionary `lscl.methods.fed_lscl.CONTINUAL`; one whose runs are recorded comes as a system of its own,
    a registered subclass of `FedLSCL` whose property `continual` returns it.

    Args:
        method: the system; its config, its `trained_logits` and its counter `optimised` are at hand.
    """

    method: Method

    def logits(self, client: Client, batch: Batch) -> Tensor:
        """The scores of the head that is trained.

        Args:
            client: the one that trains.
            batch: b images.

        Returns:
            (b, C).
        """
        return self.method.trained_logits(client, self.method.features_of(client, batch))

    def start_task(self, client: Client) -> None:
        """Before the first round of a task."""

    def loss(self, client: Client, batch: Batch, logits: Tensor) -> Tensor:
        """The term that a training step adds to the cross-entropy, from the second task on.

        Args:
            client: the one that trains.
            batch: the images of the step, b of them.
            logits: of the batch, (b, C).

        Returns:
            The weighted term, ().
        """
        return torch.zeros((), device=logits.device)

    def end_task(self, client: Client) -> None:
        """After the evaluation of a task, when its images are in the buffer."""


def protected_parameters(client: Client) -> dict[str, nn.Parameter]:
    """The parameters of CNN and generator that are trained, by name: those that must not forget."""
    return {
        name: p
        for name, p in client.model.named_parameters()
        if p.requires_grad and name.startswith(("cnn.", "generator."))
    }


class EWC(SmallContinual):
    """Elastic weight consolidation: a pull to the weights of the previous task, by their Fisher information so far.

    Kirkpatrick et al. 2017 (arXiv 1612.00796). Client state, for each protected parameter: its Fisher information,
    summed over the tasks, and its value at the end of the previous one.
    """

    def loss(self, client: Client, batch: Batch, logits: Tensor) -> Tensor:
        parameters = protected_parameters(client)
        fisher, before = (
            {name: client.on_device(f"{kind}.{name}") for name in parameters} for kind in ("fisher", "before")
        )
        return self.method.config.ewc_weight * ewc_penalty(parameters, fisher, before)

    def end_task(self, client: Client) -> None:
        chosen = sample_positions(client.train_index, FISHER_IMAGES, client.rng("fisher"))
        parameters = protected_parameters(client)

        def log_likelihood(i: int) -> Tensor:
            batch = client.train.batch(chosen[i : i + 1])
            return -masked_cross_entropy(self.logits(client, batch), batch.labels, client.classes)

        fisher = diagonal_fisher(parameters, log_likelihood, len(chosen))
        for name, value in parameters.items():
            client.state[f"fisher.{name}"] = client.state.get(f"fisher.{name}", 0) + fisher[name].cpu()
            client.state[f"before.{name}"] = value.detach().cpu().clone()


class LwF(SmallContinual):
    """Learning without forgetting: on new images, classes of earlier tasks keep the scores they had before the task.

    Li and Hoiem 2016 (arXiv 1606.09282). Client state: the logits of the task's images before it, (n, C).
    """

    def start_task(self, client: Client) -> None:
        if client.task > 0:
            client.model.eval()
            client.state["previous.logits"] = map_batches(
                client.train, client.train_index, lambda batch: self.logits(client, batch)
            ).cpu()

    def old_classes(self, client: Client) -> Tensor:
        """Labels of the classes of earlier tasks, (k,)."""
        return torch.tensor(client.partition.seen_classes(client.id, client.task - 1))

    def loss(self, client: Client, batch: Batch, logits: Tensor) -> Tensor:
        rows = torch.searchsorted(client.train_index, batch.index)  # index lists are in ascending order
        before = client.on_device("previous.logits")[send(rows, logits.device)]  # (b, C)
        old = client.keep("lwf.classes", lambda: self.old_classes(client), client.task)
        return self.method.config.lwf_weight * distillation(logits, before, old, LWF_TEMPERATURE)


class Replay(SmallContinual):
    """Experience replay: the images of the buffer are trained on once more, over all classes seen so far.

    Chaudhry et al. 2019 (arXiv 1902.10486). As many images as the batch has, drawn from the buffer in every step.
    """

    def loss(self, client: Client, batch: Batch, logits: Tensor) -> Tensor:
        if len(client.state["buffer"]) == 0:
            return super().loss(client, batch, logits)
        kept = client.train.batch(client.state["buffer"][sample_buffer(client, len(batch.index))])
        self.method.optimised += len(kept.index)
        seen = torch.tensor(client.partition.seen_classes(client.id, client.task))
        term = replay_cross_entropy(self.logits(client, kept), kept.labels, seen)
        return self.method.config.replay_weight * term
