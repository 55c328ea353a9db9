"""The federated continual learning loop: tasks, rounds, broadcast, local work, upload, aggregation, evaluation.

No method is named here, and nothing but payloads passes between `method` (the server's side) and the transport (the clients).
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from lscl.federation.client import Client
from lscl.federation.payload import Payload, num_bytes, seal
from lscl.federation.training import answer
from lscl.methods.base import Method, Stage


class Transport(Protocol):
    """Carries one exchange to the clients and back."""

    def ask(self, stage: Stage, downloads: Mapping[int, Payload]) -> dict[int, Payload]:
        """Send downloads[k] to client k, return the clients' answers in the order of their numbers."""


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
    """

    task: int
    round: int
    bytes_up: list[int]
    bytes_down: list[int]
    seconds: dict[str, float]
    cpu_seconds: float = 0.0
    scores: dict[int, dict[str, Tensor]] = field(default_factory=dict)


def federate(method: Method, transport: Transport, done: int = 0) -> Iterator[Round]:
    """Run the tasks of `method.config`, yielding after each round; the first `done` rounds are taken as finished."""
    config, number = method.config, 0
    for task in range(config.tasks_run):
        stages = method.stages(task)
        for stage in stages:
            number += 1
            if number <= done:
                continue
            start, cpu_start = time.perf_counter(), time.process_time()
            downloads = {k: seal(method.broadcast(k, stage), "server") for k in range(config.clients)}
            uploads = transport.ask(stage, downloads)
            uploads = {k: seal(payload, f"client {k}", method.expected(k, stage)) for k, payload in uploads.items()}
            trained = time.perf_counter()
            method.aggregate(uploads, stage)
            report = Round(task, stage.round, *([num_bytes(p) for p in side.values()] for side in (uploads, downloads)), {})
            aggregated = time.perf_counter()
            if stage is stages[-1]:
                finish = Stage(task, stage.round, "finish")
                last = {k: seal(method.broadcast(k, finish), "server") for k in range(config.clients)}
                report.scores = transport.ask(finish, last)
                report.bytes_down = [a + num_bytes(p) for a, p in zip(report.bytes_down, last.values())]
                method.server_end_task(task)
            report.seconds = {
                "train": trained - start,
                "aggregate": aggregated - trained,
                "evaluate": time.perf_counter() - aggregated,
            }
            report.cpu_seconds = time.process_time() - cpu_start
            yield report
