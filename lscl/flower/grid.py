"""A transport over Flower's grid: it sends payloads as messages and returns the answers that arrive in time."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
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
class GridTransport:
    """A transport that sends one message per client and exchange.

    least: clients whose nodes must be connected; timeout: seconds for an exchange; limit: bytes of an answer.
    nodes: the connected node of each client; started: when each node was activated; missed: by client and exchange,
    payloads without an answer. They go out again with the next exchange, for other payloads may build on them.
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
        """Do one exchange with all clients.

        Args:
            stage: the exchange.
            downloads: the payload for each client.

        Returns:
            the answer of each client, or what is wrong with it.
        """
        number = exchanges(self.method).index(stage)
        self.find_nodes(self.least if self.nodes else len(downloads))
        tickets = {k: ticket(k, number) for k in self.nodes}
        replies = self.send({k: {**self.missed.get(k, {}), number: downloads[k]} for k in self.nodes}, tickets)
        answers: dict[int, Payload | LsclError] = {}
        for k, download in downloads.items():
            reply = replies.get(k)
            if reply is None or reply.has_error():
                self.missed.setdefault(k, {})[number] = download
                late = f"no answer within {self.timeout:g} s" if k in self.nodes else "none of its nodes is connected"
                answers[k] = LsclError(f"client {k}: {shorten(reply.error.reason) if reply else late}")
                continue
            self.missed.pop(k, None)
            self.progress.client(stage, k)
            try:
                answers[k] = unpack_record(reply.content.get("answer"), f"client {k}", self.limit, tickets[k])
            except LsclError as error:
                answers[k] = error
        return answers

    def find_nodes(self, wanted: int) -> None:
        """Look for connected nodes until `wanted` clients have one or the time is over.

        A node that was registered as client3 is client 3. Nodes without names are simulated: each can be any client.
        """
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
        """Send each client its payloads and its ticket, and wait for the replies.

        It does not wait for a node that has restarted in the meantime, as the message may have been lost with the old
        process.

        Args:
            due: by client, the payload of each exchange that is due.
            tickets: by client, what the message asks for.

        Returns:
            by client, the replies that came in time, errors among them.
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
            for name, k in list(waiting.items()):
                reply = self.pull(name, messages[k])
                if reply is None and self.nodes[k] in anew:
                    reply = _failed(messages[k], "its node has restarted")
                if reply is not None:
                    replies[waiting.pop(name)] = reply
            time.sleep(min(PAUSE, end - now) if waiting else 0)
        return replies

    def pull(self, name: str, asked: Message) -> Message | None:
        """Look for the reply to one message.

        Each is pulled on its own: Flower makes objects of what a client sent, and where that fails, everything that is
        pulled together is lost. Whom a reply names as its message is not read, for the client writes it.

        Args:
            name: the id of the message.
            asked: the message.

        Returns:
            the reply, or an error in its place if it cannot be read; None if there is none yet.

        Raises:
            httpx.TransportError: the SuperLink cannot be reached, which is no client's fault.
        """
        try:
            reply = next(iter(self.grid.pull_messages([name])), None)
            if reply is None or (isinstance(reply, Message) and (reply.has_error() or _has_records(reply))):
                return reply
        except httpx.TransportError:
            raise
        except Exception as error:  # the bytes are the client's, so it may be any
            return _failed(asked, f"its answer cannot be read ({type(error).__name__}: {shorten(error)})")
        return _failed(asked, "its answer is no message with records")

    def private_state(self) -> dict[str, Tensor]:
        """The payloads that clients have missed, as one flat dictionary for saving."""
        empty = {"": torch.empty(0)}  # keeps the place of a payload of nothing
        sent = [(k, n, payload) for k, payloads in self.missed.items() for n, payload in payloads.items()]
        return {f"{k}.{n}.{name}": value for k, n, payload in sent for name, value in {**empty, **payload}.items()}

    def load_private_state(self, saved: dict[str, Tensor]) -> None:
        """Restore what `private_state` returned."""
        self.missed = {}
        for key, value in saved.items():
            k, number, name = key.split(".", 2)
            payload = self.missed.setdefault(int(k), {}).setdefault(int(number), {})
            payload |= {name: value} if name else {}


def _has_records(reply: Message) -> bool:
    return reply.has_content() and isinstance(reply.content, RecordDict)


def _failed(asked: Message, reason: str) -> Message:
    return Message(Error(code=0, reason=reason), reply_to=asked)
