"""What a client does when the server asks: take in the payload, train or evaluate, answer."""

import torch

from lscl.federation.client import Client
from lscl.federation.method import Method, Phase, Stage
from lscl.federation.metrics import evaluate
from lscl.federation.payload import Payload
from lscl.models.precision import MixedPrecision
from lscl.seeding import seeded


def answer(method: Method, client: Client, stage: Stage, payload: Payload) -> Payload:
    """One exchange seen from the client: the upload of a training stage, or the right answers after the last one."""
    with seeded(client.seed, stage.name, client.id, stage.task, stage.round):
        _enter(method, client, stage, payload)
        if stage.name == "finish":
            scores = evaluate(method, client)
            method.end_task(client)
            return scores
        for phase in method.phases(client, stage):
            seen = fit(client, phase, client.rng(f"batches-{stage.name}"), method.config.precision)
            method.optimised += seen  # in a line of its own, for the losses add to it, too
        client.model.eval()
        return method.upload(client, stage)


def catch_up(method: Method, client: Client, stage: Stage, payload: Payload) -> None:
    """An exchange that the client missed: what the server sent is taken in and a task is ended, but nothing is trained."""
    if stage.name == "finish":
        answer(method, client, stage, payload)
        return
    with seeded(client.seed, stage.name, client.id, stage.task, stage.round):
        _enter(method, client, stage, payload)


def _enter(method: Method, client: Client, stage: Stage, payload: Payload) -> None:
    """Go to the exchange's task and round, and take in what was sent."""
    new = stage.task != client.task
    client.task, client.round = stage.task, stage.round
    if new:
        method.start_task(client)
    method.receive(client, payload, stage)


def fit(client: Client, phase: Phase, generator: torch.Generator, precision: str = "fp32") -> int:
    """Train on the phase's images for `phase.epochs` passes, in an order drawn from `generator`, with a fresh Adam; -> images seen."""
    client.model.train()
    optimiser = torch.optim.Adam(phase.groups)
    index = client.train_index if phase.index is None else phase.index
    arithmetic = MixedPrecision(precision, client.device)
    for _ in range(phase.epochs):
        parts = list(index[torch.randperm(len(index), generator=generator)].split(phase.batch))
        if len(parts) > 1 and len(parts[-1]) < min(
            2, phase.batch
        ):  # BatchNorm cannot train on one image: it joins the batch before
            parts[-2:] = [torch.cat(parts[-2:])]
        for part in parts:
            with arithmetic.forward():
                loss = phase.loss(client, client.train.batch(part))
            arithmetic.step(loss, optimiser, phase.clip)
    return len(index) * phase.epochs
