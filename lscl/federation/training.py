"""A client's part of an exchange: receive the payload, train or evaluate, answer."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import torch

from lscl.federation.client import Client
from lscl.federation.method import Method, Phase, Stage
from lscl.federation.metrics import evaluate
from lscl.federation.payload import Payload
from lscl.federation.pipeline import batches
from lscl.federation.ridge import fit_own_ridge
from lscl.models.precision import MixedPrecision
from lscl.seeding import seeded


def answer(
    method: Method,
    client: Client,
    stage: Stage,
    payload: Payload,
    before_test: Callable[[Client], None] | None = None,
) -> Payload:
    """Carry out one exchange on the client.

    Args:
        method: the system.
        client: the client.
        stage: the exchange.
        payload: what the server sent.
        before_test: called with the client as it is tested; it must change nothing. None = nobody is told.

    Returns:
        The upload of a training stage, or the right answers (see `evaluate`) at the end of the task.
    """
    with seeded(client.seed, stage.name, client.id, stage.task, stage.round), _exchange(client):
        _enter(method, client, stage, payload)
        if stage.name == "finish":
            method.prepare_test(client)
            if before_test is not None:
                before_test(client)
            scores = evaluate(method, client, fit_own_ridge(method, client))
            method.end_task(client)
            return scores
        for phase in method.phases(client, stage):
            seen = fit(client, phase, client.rng(f"batches-{stage.name}"), method.config.precision)
            method.optimised += seen  # a statement of its own: losses add to it while `fit` runs
        client.model.eval()
        return method.upload(client, stage)


def catch_up(method: Method, client: Client, stage: Stage, payload: Payload) -> None:
    """Make up for an exchange that the client missed: receive the payload and end the task, but train nothing.

    Args:
        method: the system.
        client: the client.
        stage: the exchange.
        payload: what the server sent.
    """
    if stage.name == "finish":
        answer(method, client, stage, payload)
        return
    with seeded(client.seed, stage.name, client.id, stage.task, stage.round):
        _enter(method, client, stage, payload)


@contextmanager
def _exchange(client: Client) -> Iterator[None]:
    """Free at the end what the client has kept on its device for one exchange."""
    try:
        yield
    finally:
        client.kept.clear()


def _enter(method: Method, client: Client, stage: Stage, payload: Payload) -> None:
    """Go to the exchange's task and round, and receive the payload."""
    new = stage.task != client.task
    client.task, client.round = stage.task, stage.round
    if new:
        method.start_task(client)
    method.receive(client, payload, stage)


def fit(client: Client, phase: Phase, generator: torch.Generator, precision: str = "fp32") -> int:
    """Train the client's model for one phase, with a fresh Adam; in fp16 gradients are scaled as in the fit before.

    Args:
        client: the client.
        phase: images, loss, parameters and number of epochs.
        generator: draws the order of the images.
        precision: arithmetic, see `MixedPrecision`.

    Returns:
        Images that the optimiser has seen.
    """
    client.model.train()
    optimiser = torch.optim.Adam(phase.groups)
    index = client.train_index if phase.index is None else phase.index
    arithmetic = MixedPrecision(precision, client.device, client.state)
    with closing(batches(client.train, _steps(index, phase, generator))) as steps:
        for batch in steps:
            if phase.augment is not None:
                batch.images = phase.augment(batch.images)
            with arithmetic.forward():
                loss = phase.loss(client, batch)
            arithmetic.step(loss, optimiser, phase.clip)
    optimiser.zero_grad(set_to_none=True)  # else the gradients of all clients would lie on the device
    client.state |= arithmetic.scaling()
    return len(index) * phase.epochs


def _steps(index: torch.Tensor, phase: Phase, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """The positions of the images of each step, (b,): every epoch has all of them in a new order."""
    for _ in range(phase.epochs):
        parts = list(index[torch.randperm(len(index), generator=generator)].split(phase.batch))  # each (batch,)
        if len(parts) > 1 and len(parts[-1]) < min(2, phase.batch):
            parts[-2:] = [torch.cat(parts[-2:])]  # BatchNorm cannot train on one image
        yield from parts
