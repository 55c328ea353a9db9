"""Nodes in this process: a stub grid calls the client app, with a fresh client for every message as on a real node."""

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")
from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.run import run
from lscl.flower import client_app, server_app
from lscl.flower.messages import pack_config

EXTRA = 1000  # node numbers are not client numbers


class StubGrid:
    """Nodes in this process. lost(exchange, client): what happens instead of an answer, None = nothing odd."""

    def __init__(self, config, settings=None, lost=lambda exchange, client: None, run_id=1):
        self.run_config = {
            "experiment": pack_config(config),
            "min-clients": 0,
            "timeout": 5.0,
            "max-mb": 512.0,
            **(settings or {}),
        }
        self.lost, self.replies, self.sent, self.run_id = lost, {}, [], run_id
        self.contexts = {
            EXTRA - k: Context(run_id, EXTRA - k, {"client": k}, RecordDict(), self.run_config)
            for k in range(config.clients)
        }
        self.nodes = [
            SimpleNamespace(node_id=EXTRA - k, name=f"client{k}", last_activated_at=str(k))
            for k in range(config.clients)
        ]

    def get_nodes(self):
        return self.nodes

    def push_messages(self, messages):
        names = []
        for message in messages:
            name, node = str(len(self.sent)), message.metadata.dst_node_id
            names.append(name)
            message.metadata.__dict__["_message_id"] = name
            self.sent.append(message)
            odd = self.lost(max(exchanges_in(message)), EXTRA - node)
            if odd == "gone":
                continue
            reply = self.answer(message, node)
            if callable(odd):
                odd(reply)
            if odd != "late":
                self.replies[name] = reply
        return names

    def pull_messages(self, names):
        return [self.replies.pop(name) for name in names if name in self.replies]

    def answer(self, message, node):
        try:
            return client_app.app(message, self.contexts[node])
        except LsclError as error:
            return Message(Error(code=0, reason=str(error)), reply_to=message)

    def serve(self):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.run_id, 1, 1
        server_app.app(self, SimpleNamespace(run_config=self.run_config))


def exchanges_in(message):
    return [int(name) for name in message.content.array_records]


def alone(config):
    """The record of the run in one process, as it was written."""
    made = run(config, quiet=True)
    return json.loads((records.folder("smoke", made["dirty"]) / f"{config.name}.json").read_text(encoding="utf-8"))
