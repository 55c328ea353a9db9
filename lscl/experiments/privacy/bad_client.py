"""The damage that one client's uploads can do to the others, without and with the server's checks.

The last training exchange of a run is aggregated again with another answer of one client, and the other clients are
tested. Only this one answer changes, so the damage is what a single exchange can do. The answers:

- `images`: it claims a million times as many images, so that its weight in the mean is nearly 1;
- `update`: its update with the opposite sign and a hundred times as long;
- `gram`: a matrix of sums of squares that no images have, with negative eigenvalues;
- `features`: features ten thousand times as long, all in one direction;
- `inside the checks`: its update with the opposite sign, as long as the server's checks allow.

Without checks the server takes what it gets. With checks an answer that fails one is left out, as in a federation with
`min_clients`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lscl.errors import LsclError, first_line
from lscl.experiments.privacy.observed import Exchange
from lscl.federation.client import Client
from lscl.federation.loop import finish_of
from lscl.federation.method import IMAGES, Method
from lscl.federation.metrics import MASKS, evaluate, task_accuracies
from lscl.federation.payload import Payload, is_finite, seal

TURNED, LONG, MANY = -100.0, 1e4, 10**6
HALVINGS, GROWTHS = 10, 30  # of the search for the longest change that the checks let through
Change = Callable[[Payload, Payload], Payload]  # what the client would send and what it got -> what it sends


@dataclass(frozen=True)
class Damage:
    """The damage by one answer to the other clients.

    Args:
        answer: its name.
        checks: whether the server checked it.
        outcome: "taken", or why it was not.
        honest: {mask: accuracy (%) of the other clients with the honest answer}.
        attacked: the same with the bad one.
    """

    answer: str
    checks: bool
    outcome: str
    honest: dict[str, float]
    attacked: dict[str, float]

    def row(self) -> dict[str, Any]:
        """The damage as JSON can hold it."""
        return asdict(self)


def _is_trained(name: str, up: Payload, down: Payload) -> bool:
    """Whether a tensor of the answer is trained: not measured, counted or BatchNorm's statistics."""
    if name.endswith(("running_mean", "running_var")):
        return False
    return name in down and up[name].is_floating_point() and up[name].shape == down[name].shape


def turn_round(up: Payload, down: Payload, factor: float = TURNED) -> Payload:
    """Multiply the client's change of the trained tensors by a factor.

    Args:
        up: the honest answer.
        down: what the client got.
        factor: a negative one undoes what was learned.

    Returns:
        The bad answer.
    """
    return {
        name: (down[name] + factor * (value - down[name])).to(value.dtype) if _is_trained(name, up, down) else value
        for name, value in up.items()
    }


def claim_images(up: Payload, down: Payload) -> Payload:
    """The update with the opposite sign, and the weight of a million times as many images.

    Args:
        up: the honest answer.
        down: what the client got.

    Returns:
        The bad answer.
    """
    return {**turn_round(up, down, -1.0), IMAGES: up[IMAGES] * MANY}


def negative_gram(up: Payload, _down: Payload) -> Payload:
    """All sums of squares with the wrong sign and enlarged.

    Args:
        up: the honest answer.
        _down: not read.

    Returns:
        The bad answer.
    """
    return {name: -10 * value if name.startswith("gram") else value for name, value in up.items()}


def long_features(up: Payload, _down: Payload) -> Payload:
    """Features, or sums of them, of a length and a direction of the client's choice.

    Args:
        up: the honest answer.
        _down: not read.

    Returns:
        The bad answer.
    """

    def along(value: Tensor) -> Tensor:
        if value.ndim != 2 or not value.is_floating_point():
            return value
        return LONG * value.abs().mean() * torch.eye(1, value.shape[1], dtype=value.dtype).expand_as(value)

    return {name: along(value) if name in ("features", "sums", "means") else value for name, value in up.items()}


def answers_against(up: Payload, down: Payload) -> dict[str, Change]:
    """The bad answers that are possible with the tensors of a payload.

    Args:
        up: the honest answer.
        down: what the client got.

    Returns:
        {name: honest answer and download -> bad answer}.
    """
    found: dict[str, Change] = {}
    trained = any(_is_trained(name, up, down) for name in up)
    if IMAGES in up:
        found["images"] = claim_images
    if trained:
        found["update"] = turn_round
    if any(name.startswith("gram") for name in up):
        found["gram"] = negative_gram
    if {"features", "sums", "means"} & set(up):
        found["features"] = long_features
    return found


def is_let_through(method: Method, exchange: Exchange, client: int, up: Payload) -> str | None:
    """Whether the server's checks let an answer through.

    Args:
        method: the system.
        exchange: in which it is sent.
        client: who sends it.
        up: the answer.

    Returns:
        Why not; None if they do.
    """
    stage, server = exchange.stage, method.server
    method.server = dict(exchange.server)  # the checks compare with what it sent
    try:
        shapes, checks = method.upload_shapes(client, stage), method.checks(client, stage)
        seal(up, f"client {client}", shapes, method.dtype, None, checks)
    except LsclError as error:
        return first_line(error)
    finally:
        method.server = server
    return None


def farthest_inside(method: Method, exchange: Exchange, client: int) -> Payload | None:
    """The update with the opposite sign, as long as the checks allow.

    Args:
        method: the system.
        exchange: the last one of the training.
        client: who sends it.

    Returns:
        The bad answer; None if the client trains nothing that travels.
    """
    up, down = dict(exchange.uploads[client]), dict(exchange.downloads[client])
    if not any(_is_trained(name, up, down) for name in up):
        return None
    fits = lambda factor: is_let_through(method, exchange, client, turn_round(up, down, factor)) is None
    factor = -1.0
    for _ in range(HALVINGS):
        if fits(factor):
            break
        factor /= 2
    for _ in range(GROWTHS):
        if not fits(1.5 * factor):
            break
        factor *= 1.5
    return turn_round(up, down, factor) if fits(factor) else None


def aggregate_again(method: Method, exchange: Exchange, uploads: dict[int, Payload]) -> str:
    """Aggregate an exchange once more, from the state in which the server was before it.

    Args:
        method: the system; its server holds the result afterwards, or is as before if nothing came of it.
        exchange: the last one of the training.
        uploads: the answers to be used.

    Returns:
        "taken", or why nothing came of it.
    """
    method.server = dict(exchange.server)
    try:
        method.aggregate(uploads, exchange.stage)
    except Exception as error:  # whatever a bad answer breaks is the finding
        method.server = dict(exchange.server)
        return f"the aggregation fails: {first_line(error)[:150]}"
    return "taken"


def accuracy_of_others(method: Method, clients: list[Client], exchange: Exchange, bad: int) -> dict[str, float]:
    """Test all clients but one on their tasks so far, with what the server sends them now.

    Args:
        method: the system, with its server after an aggregation.
        clients: all of them.
        exchange: the last one of the training.
        bad: who is left out.

    Returns:
        {mask: percent}; a client that gets numbers that are not finite counts 0.
    """
    finish, found = finish_of([exchange.stage]), []
    for client in clients:
        if client.id == bad:
            continue
        client.load_private_state(exchange.states[client.id])
        client.task, client.round = exchange.stage.task, exchange.stage.round
        payload = {name: value.clone() for name, value in method.broadcast(client.id, finish).items()}
        if not all(map(is_finite, payload.values())):
            found.append(np.zeros(len(MASKS)))
            continue
        method.receive(client, payload, finish)
        found.append(task_accuracies(evaluate(method, client), method.config.classes_per_task).mean(1))
    return {mask: round(float(value), 4) for mask, value in zip(MASKS, np.mean(found, 0))}


def measure_damage(method: Method, clients: list[Client], exchange: Exchange, bad: int) -> list[Damage]:
    """Every bad answer, without and with checks.

    Args:
        method: the system after a run.
        clients: of the run.
        exchange: its last training exchange.
        bad: the bad client.

    Returns:
        The damages. Method and clients must not be used afterwards.
    """
    up, down = dict(exchange.uploads[bad]), dict(exchange.downloads[bad])
    method.server = dict(exchange.server)
    inside = farthest_inside(method, exchange, bad)
    bad_answers = {name: change(up, down) for name, change in answers_against(up, down).items()}
    if inside is not None:
        bad_answers["inside the checks"] = inside

    def test(uploads: dict[int, Payload]) -> tuple[str, dict[str, float]]:
        outcome = aggregate_again(method, exchange, uploads)
        return outcome, accuracy_of_others(method, clients, exchange, bad)

    others = {k: payload for k, payload in exchange.uploads.items() if k != bad}
    _, honest = test({**others, bad: up})
    left_out, without = None, {}
    damages = []
    for name, answer in bad_answers.items():
        outcome, attacked = test(dict(sorted({**others, bad: answer}.items())))
        damages.append(Damage(name, False, outcome, honest, attacked))
        method.server = dict(exchange.server)
        why = is_let_through(method, exchange, bad, answer)
        if why is None:
            damages.append(Damage(name, True, outcome, honest, attacked))
            continue
        if left_out is None:
            left_out, without = test(others)
        damages.append(Damage(name, True, why[:200], honest, without))
    return damages
