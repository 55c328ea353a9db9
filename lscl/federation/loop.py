"""The federated continual learning loop: tasks, rounds, broadcast, local work, upload, aggregation, evaluation.

This module names no system. Only payloads pass between `method` (the server's side) and the transport (the clients).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from lscl.errors import LsclError, RejectedPayload, shorten
from lscl.federation.client import Client
from lscl.federation.limits import Check, counts_check, equality_check
from lscl.federation.method import Method, Stage
from lscl.federation.metrics import MASKS, RIDGE_MASKS
from lscl.federation.payload import Payload, Shapes, is_finite, num_bytes, payload_magnitude, seal
from lscl.federation.training import answer

AMPLIFIED = 1000.0  # an aggregate may be at most this many times larger than its inputs


class Transport(Protocol):
    """Carries one exchange to the clients and back."""

    def ask(self, stage: Stage, downloads: Mapping[int, Payload]) -> Mapping[int, Payload | LsclError]:
        """Send each client its payload and wait for the answers.

        Args:
            stage: the exchange.
            downloads: {client: payload}.

        Returns:
            {client: its answer, or the error that explains why there is none}, in the order of the clients' numbers.
        """


@dataclass
class InProcess:
    """Runs all clients in this process, one after another.

    Args:
        method: the system.
        clients: all clients.
        progress: called with the stage and the client's number after each answer; None = nobody is told.
        before_test: called with each client as it is tested at the end of a task, see `training.answer`.
    """

    method: Method
    clients: list[Client]
    progress: Callable[[Stage, int], None] | None = None
    before_test: Callable[[Client], None] | None = None

    def ask(self, stage: Stage, downloads: Mapping[int, Payload]) -> dict[int, Payload]:
        """Let each client answer its payload.

        Args:
            stage: the exchange.
            downloads: {client: payload}.

        Returns:
            {client: its answer}.
        """
        answers = {}
        for client in self.clients:
            answers[client.id] = answer(self.method, client, stage, downloads[client.id], self.before_test)
            if self.progress is not None:
                self.progress(stage, client.id)
        return answers


@dataclass
class Round:
    """The report of one round.

    Args:
        task: number of the task, from 0.
        round: number of the round in the task, from 0.
        bytes_up: bytes of each client's upload.
        bytes_down: bytes of each client's downloads.
        seconds: wall-clock time of the parts "train", "aggregate" and "evaluate".
        cpu_seconds: CPU time of all threads of this process; other work on the machine hardly changes it.
        images: images that the optimisers of this process have seen, repeated and synthetic ones included.
        scores: {client: right answers} after the last round of a task, else empty; see `metrics.evaluate`.
        faults: why an answer was rejected, one line each; such a client has 0 bytes up, or no scores.
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
    """The exchange after a task's last training stage: the clients are tested and end the task."""
    return Stage(stages[-1].task, stages[-1].round, "finish")


def exchanges(method: Method) -> list[Stage]:
    """All exchanges of a run, in order."""
    tasks = [method.stages(task) for task in range(method.config.tasks_run)]
    return [stage for stages in tasks for stage in [*stages, finish_of(stages)]]


def federate(
    method: Method, transport: Transport, done: int = 0, least: int | None = None, limit: int | None = None
) -> Iterator[Round]:
    """Run all tasks and report after each round.

    With `least`, the loop also drops an answer that makes the aggregation fail; without it, the failure is raised.

    Args:
        method: the system, with its config and the server's state.
        transport: the way to the clients.
        done: rounds that an earlier call finished.
        least: valid answers that an exchange needs; None = those of all clients.
        limit: largest answer in bytes; None = any.

    Yields:
        The report of each round from number `done` on.

    Raises:
        LsclError: too few clients gave a valid answer, or the server's next payload cannot be sent; the state of the
            rounds before is unchanged.
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
    """Carry out one exchange: -> the valid answers, checked and copied, and why others were rejected."""
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
            faults.append(shorten(error))
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
    """Shapes, types and checks of a client's valid answer."""
    if stage.name != "finish":
        return method.upload_shapes(client, stage), method.dtype, method.checks(client, stage)
    total = torch.from_numpy(method.census.test_images_so_far(client, stage.task))
    shapes: Shapes = {"correct": (len(MASKS), len(total)), "total": (len(total),)}
    checks = {"total": equality_check(total), "correct": counts_check(total)}
    if method.has_features:
        shapes = {**shapes, "ridge": (len(RIDGE_MASKS), len(total))}
        checks["ridge"] = counts_check(total)
    return shapes, lambda name: torch.int64, checks


def _aggregate(
    method: Method, uploads: dict[int, Payload], stage: Stage, following: Stage, least: int | None
) -> list[str]:
    """Aggregate; drop the one client from `uploads` whose answer makes it fail; -> what went wrong.

    If no single client is to blame, the server keeps its state.
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
            faults = [f"client {k}: its answer makes the aggregation fail ({shorten(error)})"]
            _enough(uploads, stage, least, faults)
            return faults
    return [f"server: {_where(stage)}: the aggregation fails ({shorten(error)}), what was there before is kept"]


def _end_task(method: Method, task: int, following: Stage | None, least: int | None) -> list[str]:
    """End the task on the server; if that fails, the server keeps its state; -> what went wrong."""
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
        return [f"server: the end of task {task + 1} fails ({shorten(error)}), what was there before is kept"]
    return []


def _check_server(method: Method, following: Stage | None, bound: float = math.inf) -> None:
    """Check that the server's state and its next payloads can be sent.

    Raises:
        RejectedPayload: they hold NaN or infinite numbers, or the state has numbers larger than `bound`.
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
                raise RejectedPayload(f"payload of server: {name} ({where}) holds NaN or infinite numbers")
    if (size := payload_magnitude(method.server)) > bound:
        raise RejectedPayload(f"payload of server: numbers of {size:g}, allowed are {bound:g} after what went in")
