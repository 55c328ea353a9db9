"""The federated continual learning loop: tasks, rounds, broadcast, local work, upload, aggregation, evaluation.

No method is named here, and nothing but payloads passes between `method` (the server's side) and the transport (the clients).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from lscl.errors import LsclError
from lscl.federation.client import Client
from lscl.federation.limits import Check, counts_check, equality_check
from lscl.federation.method import Method, Stage
from lscl.federation.metrics import MASKS
from lscl.federation.payload import Payload, Shapes, brief, is_finite, num_bytes, payload_magnitude, seal
from lscl.federation.training import answer

AMPLIFIED = 1000.0  # an aggregate is at most so many times larger than what went into it


class Transport(Protocol):
    """Carries one exchange to the clients and back."""

    def ask(self, stage: Stage, downloads: Mapping[int, Payload]) -> Mapping[int, Payload | LsclError]:
        """Send downloads[k] to client k, return the clients' answers, or why there is none, in the order of their numbers."""


@dataclass
class InProcess:
    """All clients in this process, one after another. `progress` is told of each client that has answered."""

    method: Method
    clients: list[Client]
    progress: object = None

    def ask(self, stage: Stage, downloads: Mapping[int, Payload]) -> dict[int, Payload]:
        answers = {}
        for client in self.clients:
            answers[client.id] = answer(self.method, client, stage, downloads[client.id])
            if self.progress is not None:
                self.progress(stage, client.id)
        return answers


@dataclass
class Round:
    """What the loop reports after a round. `scores`: the clients' right answers, only after the last round of a task.

    cpu_seconds: of this process, all its threads; other work on the machine hardly changes them.
    images: that an optimiser of this process has seen, on clients and server, repeats and made ones among them.
    faults: why an answer was not taken, one line each; such a client has 0 bytes up, or no scores.
    """

    task: int
    round: int
    bytes_up: list[int]
    bytes_down: list[int]
    seconds: dict[str, float]
    cpu_seconds: float = 0.0
    images: int = 0
    scores: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def finish_of(stages: list[Stage]) -> Stage:
    """The exchange behind a task's last training stage: the clients are tested and end the task."""
    return Stage(stages[-1].task, stages[-1].round, "finish")


def exchanges(method: Method) -> list[Stage]:
    """Every exchange of a run, in order."""
    tasks = [method.stages(task) for task in range(method.config.tasks_run)]
    return [stage for stages in tasks for stage in [*stages, finish_of(stages)]]


def federate(
    method: Method, transport: Transport, done: int = 0, least: int | None = None, limit: int | None = None
) -> Iterator[Round]:
    """Run the tasks of `method.config`, yielding after each round; the first `done` rounds are taken as finished.

    least: good answers that an exchange needs, None = those of all clients; limit: bytes of the largest answer allowed. With `least`, an
    answer that makes the aggregation fail is left out, too; without, whatever the aggregation raises is raised.

    Raises:
        LsclError: a client gave no answer or a bad one, and too few are left, or what the server would send next cannot be sent;
            the rounds before are as they were.
    """
    config, number, following = method.config, 0, dict(pairwise(exchanges(method)))
    for task in range(config.tasks_run):
        stages = method.stages(task)
        for stage in stages:
            number += 1
            if number <= done:
                continue
            start, cpu_start, seen = time.perf_counter(), time.process_time(), method.optimised
            downloads = {k: seal(method.broadcast(k, stage), "server") for k in range(config.clients)}
            uploads, faults = _collect(method, transport, stage, downloads, least, limit)
            trained = time.perf_counter()
            faults += _aggregate(method, uploads, stage, following[stage], least)
            up, down = ([num_bytes(side.get(k, {})) for k in range(config.clients)] for side in (uploads, downloads))
            report = Round(task, stage.round, up, down, {}, faults=faults)
            aggregated = time.perf_counter()
            if stage is stages[-1]:
                finish = finish_of(stages)
                last = {k: seal(method.broadcast(k, finish), "server") for k in range(config.clients)}
                report.scores, faults = _collect(method, transport, finish, last, least, limit)
                report.faults += faults
                report.bytes_down = [a + num_bytes(p) for a, p in zip(report.bytes_down, last.values())]
                report.faults += _end_task(method, task, following.get(finish), least)
            report.seconds = {
                "train": trained - start,
                "aggregate": aggregated - trained,
                "evaluate": time.perf_counter() - aggregated,
            }
            report.cpu_seconds, report.images = time.process_time() - cpu_start, method.optimised - seen
            yield report


def _collect(
    method: Method,
    transport: Transport,
    stage: Stage,
    downloads: Mapping[int, Payload],
    least: int | None,
    limit: int | None,
) -> tuple[dict[int, Payload], list[str]]:
    """One exchange: -> the good answers, checked and copied, and why others were not taken."""
    answers, faults = {}, []
    for k, given in transport.ask(stage, downloads).items():
        try:
            if isinstance(given, LsclError):
                raise given
            shapes, dtype, checks = _valid(method, k, stage)
            answers[k] = seal(given, f"client {k}", shapes, dtype, limit, checks)
        except LsclError as error:
            if least is None:
                raise
            faults.append(brief(error))
    _enough(answers, stage, least, faults)
    return answers, faults


def _enough(answers: Mapping[int, Payload], stage: Stage, least: int | None, faults: list[str]) -> None:
    if len(answers) < (least or 0):
        raise LsclError(
            f"{_where(stage)}: {len(answers)} good answers, at least {least} are needed: {'; '.join(faults)}"
        )


def _where(stage: Stage) -> str:
    return f"task {stage.task + 1} round {stage.round + 1} ({stage.name})"


def _valid(
    method: Method, client: int, stage: Stage
) -> tuple[Shapes, Callable[[str], torch.dtype], Mapping[str, Check]]:
    """Shapes, types and numbers of a valid answer."""
    if stage.name != "finish":
        return method.upload_shapes(client, stage), method.dtype, method.checks(client, stage)
    total = torch.from_numpy(method.census.test_images_so_far(client, stage.task))
    shapes = {"correct": (len(MASKS), len(total)), "total": (len(total),)}
    return shapes, lambda name: torch.int64, {"total": equality_check(total), "correct": counts_check(total)}


def _aggregate(
    method: Method, uploads: dict[int, Payload], stage: Stage, following: Stage, least: int | None
) -> list[str]:
    """Aggregate, if need be without the client whose answer makes it fail, which is taken out of `uploads`; -> why.

    If no single client is to blame the server stays as it was before.
    """
    before = method.server

    def attempt(chosen: dict[int, Payload]) -> Exception | None:
        method.server = dict(before)
        try:
            method.aggregate(chosen, stage)
            _check_server(method, following, AMPLIFIED * (1 + payload_magnitude(before, *chosen.values())))
        except Exception as error:
            method.server = before
            return error

    error = attempt(uploads)
    if error is None:
        return []
    if least is None:
        raise error
    for k in uploads:
        if attempt({other: payload for other, payload in uploads.items() if other != k}) is None:
            del uploads[k]
            faults = [f"client {k}: its answer makes the aggregation fail ({brief(error)})"]
            _enough(uploads, stage, least, faults)
            return faults
    return [f"server: {_where(stage)}: the aggregation fails ({brief(error)}), what was there before is kept"]


def _end_task(method: Method, task: int, following: Stage | None, least: int | None) -> list[str]:
    """End the task on the server; if that fails, the server stays as it was before; -> why."""
    before = method.server
    method.server = dict(before)
    try:
        method.server_end_task(task)
        _check_server(method, following)
    except Exception as error:
        method.server = before
        if least is None:
            raise
        _check_server(method, following)
        return [f"server: the end of task {task + 1} fails ({brief(error)}), what was there before is kept"]
    return []


def _check_server(method: Method, following: Stage | None, bound: float = math.inf) -> None:
    """Whether what the server holds, and what it is to send next, can be sent.

    Raises:
        LsclError: NaN, infinite, or larger than `bound`.
    """
    held = [("held", method.server)]
    held += (
        [(f"for client {k}", method.broadcast(k, following)) for k in range(method.config.clients)] if following else []
    )
    known = set()
    for where, payload in held:
        for name, value in payload.items():
            if id(value) in known:
                continue
            known.add(id(value))
            if not is_finite(value):
                raise LsclError(f"payload of server: {name} ({where}) holds NaN or infinite numbers")
    if (size := payload_magnitude(method.server)) > bound:
        raise LsclError(f"payload of server: numbers of {size:g}, allowed are {bound:g} after what went in")
