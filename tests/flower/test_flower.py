"""The rounds over Flower: a stub grid calls the client app in this process, with a fresh client for every message as on a real node."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.run import run
from lscl.flower import client_app, server_app
from lscl.flower import grid as grid_transport
from lscl.flower.messages import describe, pack, understand, unpack, written_on
from lscl.methods import METHODS

EXTRA = 1000  # node numbers are not client numbers


class StubGrid:
    """Nodes in this process. lost(exchange, client): what happens instead of an answer, None = nothing odd."""

    def __init__(self, config, settings=None, lost=lambda exchange, client: None, run_id=1):
        self.run_config = {"experiment": describe(config), "min-clients": 0, "timeout": 5.0, "max-mb": 512.0, **(settings or {})}
        self.lost, self.replies, self.sent, self.run_id = lost, {}, [], run_id
        self.contexts = {EXTRA - k: Context(run_id, EXTRA - k, {"client": k}, RecordDict(), self.run_config) for k in range(config.clients)}
        self.nodes = [SimpleNamespace(node_id=EXTRA - k, name=f"client{k}", last_activated_at=str(k)) for k in range(config.clients)]

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
        return [self.replies.pop(one) for one in sorted(self.replies, reverse=True)]  # never in the order of the clients

    def answer(self, message, node):
        try:
            return client_app.app(message, self.contexts[node])
        except LsclError as error:
            return Message(Error(code=0, reason=str(error)), reply_to=message)

    def serve(self):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.run_id, 1, 1
        server_app.app(self, SimpleNamespace(run_config=self.run_config))


@pytest.fixture
def over_flower(places, monkeypatch, tree):
    """over_flower(config, settings, lost, grid): the record of a run over a stub grid, and the grid."""
    monkeypatch.setenv("LSCL_PRIVATE", str(places / "private"))
    monkeypatch.setenv("LSCL_DATA_DIR", str(tree))
    monkeypatch.setattr(grid_transport, "PAUSE", 0)

    next_run = itertools.count(1)

    def make(config, settings=None, lost=lambda exchange, client: None, grid=StubGrid):
        grid = grid(config, settings, lost, next(next_run))
        grid.serve()
        return json.loads((places / "results" / "federation" / "runs" / f"{config.name}.json").read_text(encoding="utf-8")), grid

    return make


def exchanges_in(message):
    return [int(name) for name in message.content.array_records]


def compared(record):
    return json.dumps({name: value for name, value in record.items() if name not in records.TIMES}, sort_keys=True)


def alone(config):
    """The record of the run in one process, as it was written."""
    made = run(config, quiet=True)
    return json.loads((records.folder("smoke", made["dirty"]) / f"{config.name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_record_of_one_process(over_flower, smoke, name):
    config = smoke(method=name)
    record, _ = over_flower(config)
    assert compared(record) == compared(alone(config))


def test_nothing_private_is_in_any_message(over_flower, smoke, places):
    """What goes up is the payload; the state stays in the client's folder."""
    config = smoke()
    _, grid = over_flower(config)
    assert {name for message in grid.sent for record in message.content.values() for name in record} == {"payload", "client", "exchange", "nonce"}
    kept = sorted(path.name for path in (places / "private" / config.name / "client1").glob("*.safetensors"))
    assert kept == ["000003.safetensors", "000004.safetensors", "000005.safetensors"]


def modes(folder):
    """The modes of a folder and all that is in it: those of folders, those of files."""
    there = [folder, *folder.rglob("*")]
    return [{path.stat().st_mode & 0o777 for path in there if path.is_dir() == kind} for kind in (True, False)]


def test_only_the_owner_can_read_what_clients_and_server_keep(over_flower, smoke, places):
    """Also what an earlier version left open to all."""
    config = smoke(method="local_head")
    with pytest.raises(LsclError):
        over_flower(config, {"timeout": 0.01}, lambda exchange, client: "gone" if (exchange, client) == (2, 1) else None)
    kept = [places / "private" / config.name, places / "results" / "federation" / "state" / config.name]
    assert [modes(folder) for folder in kept] == [[{0o700}, {0o600}]] * 2
    for folder in kept:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    with pytest.raises(LsclError):
        over_flower(config, {"timeout": 0.01}, lambda exchange, client: "gone" if (exchange, client) == (3, 1) else None)
    assert [modes(folder) for folder in kept] == [[{0o700}, {0o600}]] * 2
    assert modes(places / "results" / "federation")[0] == {0o755, 0o700}  # what is not private stays as it was
    over_flower(config)
    assert modes(kept[0]) == [{0o700}, {0o600}]


ABSENT = {
    "gone for a round": {(1, 1): "gone"},
    "gone behind a task and for the next round": {(2, 1): "gone", (3, 1): "gone"},
    "gone from the start": {(0, 1): "gone", (1, 1): "gone"},
    "late in a round": {(1, 1): "late"},
    "late at the end of a task": {(2, 1): "late"},
    "two of three gone, one after the other": {(1, 1): "gone", (3, 2): "gone"},
}


@pytest.mark.parametrize("name", ["fed_lscl", "lorm", "pilora", "mfcl"])
@pytest.mark.parametrize("case", ABSENT)
def test_a_round_goes_on_without_a_client_that_comes_back_later(over_flower, smoke, name, case):
    config, odd = smoke(method=name), ABSENT[case]
    record, grid = over_flower(config, {"min-clients": 2, "timeout": 0.01}, lambda exchange, client: odd.get((exchange, client)))
    faults = [line for lines in record["faults"] for line in lines]
    assert len(faults) == len(odd) and all("no answer within 0.01 s" in line for line in faults)
    sent = [sorted(exchanges_in(message)) for message in grid.sent if message.metadata.dst_node_id == EXTRA - 1]
    last = max(exchange for exchange, client in odd if client == 1)
    assert next(numbers for numbers in sent if last + 1 in numbers) == [n for n in range(last + 2) if (n, 1) in odd or n == last + 1]
    assert [len(numbers) for numbers in sent if min(numbers) > last + 1] == [1] * (sent[-1][0] - last - 1)
    if name == "fed_lscl":
        assert record["bytes_up"][-1][1] > 0 and None not in [row[0] for row in record["accuracy"]["task"][-1]]


def test_a_late_answer_is_the_clients_own_affair(over_flower, smoke):
    """It has trained, so it goes on from there; nothing it was sent is taken in twice."""
    config = smoke(method="local_head")
    on_time, _ = over_flower(config)
    late, _ = over_flower(config, {"min-clients": 2, "timeout": 0.01}, lambda exchange, client: "late" if (exchange, client) == (1, 1) else None)
    assert late["accuracy"] == on_time["accuracy"]


def test_too_few_clients_stop_the_run_at_the_last_finished_round_and_it_goes_on(over_flower, smoke, one_line):
    config = smoke(method="lorm")
    whole, _ = over_flower(config)
    with pytest.raises(LsclError) as caught:
        over_flower(config, {"timeout": 0.01}, lambda exchange, client: "gone" if (exchange, client) == (2, 1) else None)
    one_line(caught, "2 good answers, at least 3 are needed: client 1: no answer")
    again, grid = over_flower(config)
    assert compared(again) == compared(whole)
    assert min(min(exchanges_in(message)) for message in grid.sent) == 2  # the two rounds before were not done again


class Killed(BaseException):
    """Stands for SIGKILL: nothing between here and the test may handle it."""


@pytest.mark.parametrize("name", ["fed_lscl", "fedavg", "lorm", "pilora"])
def test_a_server_that_is_killed_anywhere_resumes_and_ends_as_if_it_had_not(over_flower, smoke, name, places):
    config = smoke(method=name)
    whole, grid = over_flower(config)
    exchanges = max(max(exchanges_in(message)) for message in grid.sent) + 1
    for point in range(exchanges):
        for client in (0, 2):  # with one answer behind it, and with all

            def kill(exchange, k, point=point, client=client):
                if (exchange, k) == (point, client):
                    raise Killed

            with pytest.raises(Killed):
                over_flower(config, lost=kill)
            again, _ = over_flower(config)
            assert compared(again) == compared(whole), (point, client)


def test_a_message_that_was_overtaken_does_not_undo_what_came_later(over_flower, smoke, places, one_line):
    config = smoke(method="local_head")
    _, grid = over_flower(config)
    state = {path: path.read_bytes() for path in (places / "private").rglob("*.safetensors")}
    first = grid.sent[0]
    with pytest.raises(LsclError) as caught:
        client_app.app(first, grid.contexts[first.metadata.dst_node_id])
    one_line(caught, "exchange 0 comes too late")
    assert state == {path: path.read_bytes() for path in (places / "private").rglob("*.safetensors")}


def test_every_round_looks_again_which_node_serves_a_client(over_flower, smoke):
    """A new node of a client, in the place of one that is gone, goes on with the client's state."""
    config, moved = smoke(method="local_head"), []

    class Moving(StubGrid):
        def get_nodes(self):
            if len(self.sent) == config.clients and not moved:
                moved.append(self.nodes.pop(1))
                self.nodes.append(SimpleNamespace(node_id=7, name="client1", last_activated_at="9"))
                self.contexts[7] = self.contexts[EXTRA - 1]
            return self.nodes

    whole, _ = over_flower(config)
    again, grid = over_flower(config, grid=Moving)
    assert compared(again) == compared(whole)
    asked = [message.metadata.dst_node_id for message in grid.sent]
    assert set(asked[: config.clients]) == {1000, 999, 998} and set(asked[config.clients :]) == {1000, 7, 998}


def test_nobody_waits_for_a_node_that_has_started_anew(over_flower, smoke):
    """Its message may have ended with it, and Flower says nothing of that; the client is asked again in the next round."""
    config = smoke(method="local_head")

    class Anew(StubGrid):
        def pull_messages(self, names):
            if "1" in names:
                self.nodes[1].last_activated_at = "again"
            return super().pull_messages(names)

    settings = {"min-clients": 2, "timeout": 600.0}
    record, grid = over_flower(config, settings, lambda exchange, client: "gone" if (exchange, client) == (0, 1) else None, Anew)
    assert record["faults"] == [["client 1: its node has started anew"]] + [[]] * (len(record["faults"]) - 1)
    assert exchanges_in([one for one in grid.sent if one.metadata.dst_node_id == EXTRA - 1][1]) == [0, 1]


def test_a_node_that_serves_another_client_refuses(over_flower, smoke):
    config = smoke(method="local_head")

    class Mistaken(StubGrid):
        def get_nodes(self):
            self.contexts[EXTRA - 1].node_config["client"] = 2
            return self.nodes

    record, _ = over_flower(config, {"min-clients": 2}, grid=Mistaken)
    assert {line for lines in record["faults"] for line in lines} == {"client 1: this node is client 2, the message is for client 1"}


def test_simulated_nodes_have_no_names_and_strangers_names_count_for_nothing(over_flower, smoke):
    config = smoke(method="local_head")

    class Simulated(StubGrid):
        def get_nodes(self):
            for node, context in self.contexts.items():
                context.node_config = {"partition-id": node}
            return [SimpleNamespace(node_id=node.node_id, name=None, last_activated_at=None) for node in self.nodes]

    class Strange(StubGrid):
        def get_nodes(self):
            odd = [SimpleNamespace(node_id=n, name=name, last_activated_at="9") for n, name in ((3, ""), (4, "client3"), (5, "client-1"))]
            return [*odd, *self.nodes]

    whole, _ = over_flower(config)
    for kind in (Simulated, Strange):
        again, grid = over_flower(config, grid=kind)
        assert compared(again) == compared(whole)
        assert {message.metadata.dst_node_id for message in grid.sent} == {1000, 999, 998}


def test_a_client_that_lost_its_disk_says_so_and_is_left_out(over_flower, smoke, places):
    config = smoke(method="local_head")

    def lost(exchange, client):
        if (exchange, client) == (2, 1):
            for path in (places / "private" / config.name / "client1").glob("*.safetensors"):
                path.unlink()

    record, _ = over_flower(config, {"min-clients": 2}, lost)
    faults = [line for lines in record["faults"] for line in lines]
    assert faults == [f"client 1: exchange {n} is asked for, but the state here is that of exchange -1" for n in (2, 3, 4, 5)]


def spoil(change):
    """Change the payload of a reply in place."""

    def apply(reply):
        payload = unpack(reply.content["answer"], "test")
        changed = change(payload)
        reply.content["answer"] = changed if changed is not None else pack(payload, words_on(reply))

    return apply


def words_on(reply):
    return written_on(reply.content["answer"]["payload"].numpy().tobytes())


BAD = {
    "NaN": (lambda p: p["weight"].fill_(torch.nan), "weight holds NaN"),
    "infinite": (lambda p: p["bias"].fill_(torch.inf), "bias holds NaN or infinite"),
    "a name too few": (lambda p: p.pop("bias"), "bias missing"),
    "a name too many": (lambda p: p.update(image=torch.zeros(3)), "image missing or not allowed"),
    "shape": (lambda p: p.update(bias=p["bias"][:5].clone()), "bias has shape (5,)"),
    "type": (lambda p: p.update(bias=p["bias"].double()), "bias has type torch.float64"),
    "size": (lambda p: p.update(features=torch.zeros(10**6, 16)), "allowed are 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_payload_is_left_out_named_and_counted(over_flower, smoke, case, capfd):
    change, says = BAD[case]

    def only_change(payload):
        change(payload)

    odd = lambda exchange, client: spoil(only_change) if (exchange, client) == (1, 1) else None
    record, _ = over_flower(smoke(), {"min-clients": 2, "max-mb": 1.0}, odd)
    (line,) = [line for lines in record["faults"] for line in lines]
    assert line.startswith("payload of client 1: ") and says in line
    assert line in " ".join(capfd.readouterr().err.split())
    assert record["bytes_up"][1][1] == 0 and min(record["bytes_up"][1][k] for k in (0, 2)) > 0
    assert [min(row) > 0 for row in record["bytes_up"]] == [True, False, True, True]


@pytest.mark.parametrize("data", [b"", b"no tensors", bytes(8), b"\xff" * 100])
def test_bytes_that_are_no_payload_are_one_line(data, one_line):
    import numpy as np
    from flwr.app import Array

    with pytest.raises(LsclError) as caught:
        unpack(ArrayRecord({"payload": Array(np.frombuffer(data, np.uint8))}), "client 1")
    one_line(caught, "payload of client 1: cannot be read")


@pytest.mark.parametrize("change", [lambda content: content.clear(), lambda content: content.update(answer=MetricRecord({"payload": 1}))])
def test_a_reply_without_a_payload_is_left_out(over_flower, smoke, change):
    odd = lambda exchange, client: (lambda reply: change(reply.content)) if (exchange, client) == (1, 1) else None
    record, _ = over_flower(smoke(method="local_head"), {"min-clients": 2}, odd)
    assert record["faults"][1] == ["payload of client 1: there is none in the message"]


def test_the_config_travels_whole_but_for_the_places_of_a_machine(smoke, monkeypatch, tree):
    config = smoke(o2d_upload="gram", stop_after=1)
    assert str(tree) not in describe(config)
    monkeypatch.setenv("LSCL_DATA_DIR", str(tree))
    assert understand({"experiment": describe(config)}) == config


def test_an_answer_of_another_round_or_of_another_client_is_refused(over_flower, smoke):
    """Whatever is in it: names, shapes and numbers of such an answer fit."""
    kept = {}

    def odd(exchange, client):
        def change(reply):
            kept[exchange, client] = reply.content["answer"]
            reply.content["answer"] = kept[{(1, 1): (0, 1), (3, 2): (3, 1), (4, 1): (4, 1)}.get((exchange, client), (exchange, client))]

        return change

    record, _ = over_flower(smoke(method="fedavg_vit"), {"min-clients": 2}, odd)
    assert record["faults"] == [
        [],
        ["payload of client 1: it answers exchange 0 of client 1, asked was exchange 1 of client 1"],
        ["payload of client 2: it answers exchange 3 of client 1, asked was exchange 3 of client 2"],
        [],
    ]


def test_an_answer_to_an_earlier_message_of_the_same_exchange_is_refused(over_flower, smoke):
    """As of a run before, that was the same up to there: a message's number is drawn anew."""
    config, kept = smoke(method="local_head"), {}
    keep = lambda exchange, client: lambda reply: kept.update({(exchange, client): reply.content["answer"]})
    over_flower(config, lost=keep)
    replay = lambda exchange, client: lambda reply: reply.content.update(answer=kept[exchange, client]) if (exchange, client) == (2, 1) else None
    record, _ = over_flower(config, {"min-clients": 2}, replay)
    assert record["faults"][1] == ["payload of client 1: it answers an earlier message of it, asked was exchange 2 of client 1"]
    assert record["accuracy"]["task"][0][1] == [None, None]


@pytest.mark.parametrize("words", [{}, {"client": "1"}, {"client": "1", "exchange": "1", "nonce": "\n" + "0" * 10_000, "more": ""}])
def test_an_answer_without_its_ticket_is_refused_in_one_line(over_flower, smoke, words):
    odd = lambda exchange, client: spoil(lambda payload: pack(payload, words)) if (exchange, client) == (1, 1) else None
    record, _ = over_flower(smoke(method="local_head"), {"min-clients": 2}, odd)
    (line,) = record["faults"][1] or record["faults"][0]
    assert line.startswith("payload of client 1: it answers ") and "\n" not in line and len(line) < 700
