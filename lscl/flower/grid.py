"""A transport over Flower's grid: what the loop hands it goes out as messages, what comes back in time are the answers."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from lscl.errors import LsclError, shorten
from lscl.experiments.progress import Progress
from lscl.federation.loop import exchanges
from lscl.federation.method import Method, Stage
from lscl.federation.payload import Payload
from lscl.flower.messages import pack_record, ticket, unpack_record

PAUSE = 0.5  # seconds between two looks for nodes and answers


@dataclass
class OverGrid:
    """A transport that sends one message per client and exchange.

    nodes: the node of each client that is there; started: when each node was; missed: what a client was sent and did not answer, by
    exchange. It is sent again with the next exchange, for other payloads may build on it.
    """

    grid: Grid
    method: Method
    least: int
    timeout: float
    limit: int
    progress: Progress
    nodes: dict[int, int] = field(default_factory=dict)
    started: dict[int, str | None] = field(default_factory=dict)
    missed: dict[int, dict[int, Payload]] = field(default_factory=dict)
    id: str = "-missed"
    task: int = -1

    def ask(self, stage: Stage, downloads: Mapping[int, Payload]) -> dict[int, Payload | LsclError]:
        number = exchanges(self.method).index(stage)
        self.find(self.least if self.nodes else len(downloads))
        tickets = {k: ticket(k, number) for k in self.nodes}
        replies, answers = (
            self.send({k: {**self.missed.get(k, {}), number: downloads[k]} for k in self.nodes}, tickets),
            {},
        )
        for k, download in downloads.items():
            reply = replies.get(k)
            if reply is None or reply.has_error():
                self.missed.setdefault(k, {})[number] = download
                late = f"no answer within {self.timeout:g} s" if k in self.nodes else "no node of it is there"
                answers[k] = LsclError(f"client {k}: {shorten(reply.error.reason) if reply else late}")
                continue
            self.missed.pop(k, None)
            self.progress.client(stage, k)
            try:
                answers[k] = unpack_record(reply.content.get("answer"), f"client {k}", self.limit, tickets[k])
            except LsclError as error:
                answers[k] = error
        return answers

    def find(self, wanted: int) -> None:
        """Look which nodes are there, until `wanted` clients are or the time is over. A node that was registered as client3 is
        client 3; nodes without names are simulated, each can be any client."""
        end = time.monotonic() + self.timeout
        while True:
            alive = sorted(self.grid.get_nodes(), key=lambda node: (node.last_activated_at or "", node.node_id))
            names = {f"client{k}": k for k in range(self.method.config.clients)}
            self.nodes = {names[node.name]: node.node_id for node in alive if node.name in names}
            if not any(node.name for node in alive):
                self.nodes = dict(zip(names.values(), sorted(node.node_id for node in alive)))
            self.started = {node.node_id: node.last_activated_at for node in alive}
            if len(self.nodes) >= wanted or time.monotonic() > end:
                return
            time.sleep(PAUSE)

    def send(
        self, due: Mapping[int, Mapping[int, Payload]], tickets: Mapping[int, Mapping[str, str]]
    ) -> dict[int, Message]:
        """Send to each client the payloads of its exchanges and its ticket; -> the replies, errors among them, that came in time, by client.

        Nobody waits for a node that has started anew since: what it was sent may have ended with it.
        """
        messages, replies = {}, {}
        for k, payloads in due.items():
            content = {
                "to": ConfigRecord(dict(tickets[k])),
                **{str(n): pack_record(payload) for n, payload in payloads.items()},
            }
            messages[k] = Message(
                RecordDict(content), dst_node_id=self.nodes[k], message_type="train", ttl=self.timeout
            )
        waiting = {name: k for name, k in zip(self.grid.push_messages(list(messages.values())), messages) if name}
        end = time.monotonic() + self.timeout
        while waiting and (now := time.monotonic()) < end:
            anew = {
                node.node_id
                for node in self.grid.get_nodes()
                if self.started.get(node.node_id, "") != node.last_activated_at
            }
            for reply in self.grid.pull_messages(list(waiting)):
                replies[waiting.pop(reply.metadata.reply_to_message_id)] = reply
            for name, k in list(waiting.items()):
                if self.nodes[k] in anew:
                    replies[waiting.pop(name)] = Message(
                        Error(code=0, reason="its node has started anew"), reply_to=messages[k]
                    )
            time.sleep(min(PAUSE, end - now) if waiting else 0)
        return replies

    def private_state(self) -> dict[str, Tensor]:
        """What was missed, as one flat dictionary, for saving."""
        there = {"": torch.empty(0)}  # keeps the place of a payload of nothing
        sent = [(k, n, payload) for k, payloads in self.missed.items() for n, payload in payloads.items()]
        return {f"{k}.{n}.{name}": value for k, n, payload in sent for name, value in {**there, **payload}.items()}

    def load_private_state(self, saved: dict[str, Tensor]) -> None:
        """Undo `private_state`."""
        self.missed = {}
        for key, value in saved.items():
            k, number, name = key.split(".", 2)
            payload = self.missed.setdefault(int(k), {}).setdefault(int(number), {})
            payload |= {name: value} if name else {}
