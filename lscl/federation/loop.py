"""The federated continual learning loop: tasks, rounds, broadcast, local work, upload, aggregation, evaluation.

No method is named here, and nothing but payloads passes between `method` (the server's side) and the transport (the clients).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lscl.errors import LsclError
from lscl.evaluation import MASKS
from lscl.federation.client import Client
from lscl.federation.payload import Payload, Shapes, num_bytes, seal
from lscl.federation.training import answer
from lscl.methods.base import Method, Stage


class Transport(Protocol):
    """Carries one exchange to the clients and back."""

    def ask(self, stage: Stage, downloads: Mapping[int, Payload]) -> Mapping[int, Payload | LsclError]:
        """Send downloads[k] to client k, return the clients' answers, or why there is none, in the order of their numbers."""


@dataclass
class InProcess:
    """All clients in this process, one after another. `done` counts clients served, for progress bars."""

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


def federate(method: Method, transport: Transport, done: int = 0, least: int | None = None, limit: int | None = None) -> Iterator[Round]:
    """Run the tasks of `method.config`, yielding after each round; the first `done` rounds are taken as finished.

    least: good answers that an exchange needs, None = those of all clients; limit: bytes of the largest answer allowed.

    Raises:
        LsclError: a client gave no answer or a bad one, and too few are left; the rounds before are as they were.
    """
    config, number = method.config, 0
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
            method.aggregate(uploads, stage)
            up, down = ([num_bytes(side.get(k, {})) for k in range(config.clients)] for side in (uploads, downloads))
            report = Round(task, stage.round, up, down, {}, faults=faults)
            aggregated = time.perf_counter()
            if stage is stages[-1]:
                finish = finish_of(stages)
                last = {k: seal(method.broadcast(k, finish), "server") for k in range(config.clients)}
                report.scores, faults = _collect(method, transport, finish, last, least, limit)
                report.faults += faults
                report.bytes_down = [a + num_bytes(p) for a, p in zip(report.bytes_down, last.values())]
                method.server_end_task(task)
            report.seconds = {
                "train": trained - start,
                "aggregate": aggregated - trained,
                "evaluate": time.perf_counter() - aggregated,
            }
            report.cpu_seconds, report.images = time.process_time() - cpu_start, method.optimised - seen
            yield report


def _collect(
    method: Method, transport: Transport, stage: Stage, downloads: Mapping[int, Payload], least: int | None, limit: int | None
) -> tuple[dict[int, Payload], list[str]]:
    """One exchange: -> the good answers, checked and copied, and why others were not taken."""
    answers, faults = {}, []
    for k, given in transport.ask(stage, downloads).items():
        try:
            if isinstance(given, LsclError):
                raise given
            answers[k] = seal(given, f"client {k}", *_valid(method, k, stage), limit)
        except LsclError as error:
            if least is None:
                raise
            faults.append(str(error))
    if len(answers) < (least or 0):
        where = f"task {stage.task + 1} round {stage.round + 1} ({stage.name})"
        raise LsclError(f"{where}: {len(answers)} good answers, at least {least} are needed: {'; '.join(faults)}")
    return answers, faults


def _valid(method: Method, client: int, stage: Stage) -> tuple[Shapes, Callable[[str], torch.dtype]]:
    """Shapes and types of a valid answer."""
    if stage.name != "finish":
        return method.expected(client, stage), method.dtype
    seen = (stage.task + 1) * method.config.classes_per_task
    return {"correct": (len(MASKS), seen), "total": (seen,)}, lambda name: torch.int64
