"""The server's side: the loop of one process, over Flower's grid."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from lscl import paths, records
from lscl.data.store import write_atomic
from lscl.errors import LsclError
from lscl.federation.flower.messages import pack, understand, unpack
from lscl.federation.loop import exchanges
from lscl.federation.payload import Payload
from lscl.methods.base import Method, Stage
from lscl.progress import Progress
from lscl.run import claim, make_record, play, setting

PAUSE = 0.2  # seconds between two looks for replies

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One run, from the last finished round on; the record goes to results/federation/runs/."""
    config, settings = understand(context.run_config), context.run_config
    least, limit = settings["min-clients"] or config.clients, int(settings["max-mb"] * 10**6)
    folder = paths.results() / "federation"
    state, progress, started = folder / "state" / config.name, Progress(config, every_round=True), time.perf_counter()
    with claim(state, wait=False):
        data, parts, method, _ = setting(config, progress)
        about = {**records.source(), "prepare": time.perf_counter() - started}
        transport = OverGrid(grid, method, least, settings["timeout"], limit, progress)
        reports, about = play(method, transport, [transport], state, about, progress, least=least, limit=limit)
        record = make_record(data, parts, method, reports, about)
        write_atomic(folder / "runs" / f"{config.name}.json", (json.dumps(record, separators=(",", ":")) + "\n").encode())
        shutil.rmtree(state, ignore_errors=True)


@dataclass
class OverGrid:
    """A transport that sends one message per client and exchange.

    nodes: the node of each client that is there; who: the client of each node that was asked; missed: what a client was sent and
    did not answer, by exchange. It is sent again with the next exchange, for other payloads may build on it.
    """

    grid: Grid
    method: Method
    least: int
    timeout: float
    limit: int
    progress: Progress
    nodes: dict[int, int] = field(default_factory=dict)
    who: dict[int, int] = field(default_factory=dict)
    missed: dict[int, dict[int, Payload]] = field(default_factory=dict)
    id: str = "-missed"
    task: int = -1

    def ask(self, stage: Stage, downloads: Mapping[int, Payload]) -> dict[int, Payload | LsclError]:
        number = exchanges(self.method).index(stage)
        self.find(self.least if self.nodes else len(downloads))
        due = {k: {**self.missed.get(k, {}), number: downloads[k]} for k in self.nodes}
        parcels = {k: {str(n): ArrayRecord({"payload": pack(payload)}) for n, payload in sent.items()} for k, sent in due.items()}
        replies = self.send({self.nodes[k]: RecordDict(parcel) for k, parcel in parcels.items()}, "train", self.timeout)
        answers = {}
        for k, download in downloads.items():
            reply = replies.get(self.nodes.get(k))
            if reply is not None and reply.has_content():
                self.missed.pop(k, None)
                answers[k] = opened(reply, f"client {k}", self.limit)
                self.progress.client(stage, k)
            else:
                self.missed.setdefault(k, {})[number] = download
                answers[k] = LsclError(f"client {k}: {reply.error.reason if reply else f'no answer within {self.timeout:g} s'}")
        return answers

    def find(self, wanted: int) -> None:
        """Wait until `wanted` clients are there, or until the time is over."""
        end = time.monotonic() + self.timeout
        while True:
            alive = set(self.grid.get_node_ids())
            for node, reply in self.send({node: RecordDict() for node in alive - set(self.who)}, "query.who", min(self.timeout, 60)).items():
                if reply.has_content():
                    self.who[node] = int(reply.content["who"]["client"])
            self.nodes = {k: node for node, k in self.who.items() if node in alive and 0 <= k < self.method.config.clients}
            if len(self.nodes) >= wanted or time.monotonic() > end:
                return
            time.sleep(PAUSE)

    def send(self, contents: Mapping[int, RecordDict], kind: str, timeout: float) -> dict[int, Message]:
        """Send to each node what is for it; -> the replies, errors among them, that came in time, by node."""
        messages = [Message(content, dst_node_id=node, message_type=kind, ttl=timeout) for node, content in contents.items()]
        waiting = {one: node for one, node in zip(self.grid.push_messages(messages), contents, strict=True) if one is not None}
        replies, end = {}, time.monotonic() + timeout
        while waiting and time.monotonic() < end:
            for reply in self.grid.pull_messages(list(waiting)):
                replies[waiting.pop(reply.metadata.reply_to_message_id)] = reply
            time.sleep(PAUSE if waiting else 0)
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


def opened(reply: Message, sender: str, limit: int) -> Payload | LsclError:
    """The payload in a reply, or what is wrong with it."""
    try:
        return unpack(reply.content["answer"]["payload"], sender, limit)
    except KeyError:
        return LsclError(f"payload of {sender}: there is none in the message")
    except LsclError as error:
        return error
