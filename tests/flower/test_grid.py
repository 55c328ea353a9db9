"""The transport over Flower's grid: who is asked when, whose answer is taken, and what happens to absent clients."""

from types import SimpleNamespace

import httpx
import pytest
import torch

pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from stub_grid import EXTRA, StubGrid, alone, exchanges_in
from tests_root import compared

from lscl import cli
from lscl.config import experiment
from lscl.flower.messages import pack_record, read_metadata, unpack_record

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
    record, grid = over_flower(
        config, {"min-clients": 2, "timeout": 0.01}, lambda exchange, client: odd.get((exchange, client))
    )
    faults = [line for lines in record["faults"] for line in lines]
    assert len(faults) == len(odd) and all("no answer within 0.01 s" in line for line in faults)
    sent = [sorted(exchanges_in(message)) for message in grid.sent if message.metadata.dst_node_id == EXTRA - 1]
    last = max(exchange for exchange, client in odd if client == 1)
    assert next(numbers for numbers in sent if last + 1 in numbers) == [
        n for n in range(last + 2) if (n, 1) in odd or n == last + 1
    ]
    assert [len(numbers) for numbers in sent if min(numbers) > last + 1] == [1] * (sent[-1][0] - last - 1)
    if name == "fed_lscl":
        assert record["bytes_up"][-1][1] > 0 and None not in [row[0] for row in record["accuracy"]["task"][-1]]


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
    """Its message may have ended with it, and Flower does not say so; the client is asked again in the next round."""
    config = smoke(method="local_head")

    class Anew(StubGrid):
        def pull_messages(self, names):
            if "1" in names:
                self.nodes[1].last_activated_at = "again"
            return super().pull_messages(names)

    settings = {"min-clients": 2, "timeout": 600.0}
    record, grid = over_flower(
        config, settings, lambda exchange, client: "gone" if (exchange, client) == (0, 1) else None, Anew
    )
    assert record["faults"] == [["client 1: its node has restarted"]] + [[]] * (len(record["faults"]) - 1)
    assert exchanges_in([one for one in grid.sent if one.metadata.dst_node_id == EXTRA - 1][1]) == [0, 1]


def test_simulated_nodes_have_no_names_and_strangers_names_count_for_nothing(over_flower, smoke):
    config = smoke(method="local_head")

    class Simulated(StubGrid):
        def get_nodes(self):
            for node, context in self.contexts.items():
                context.node_config = {"partition-id": node}
            return [SimpleNamespace(node_id=node.node_id, name=None, last_activated_at=None) for node in self.nodes]

    class Strange(StubGrid):
        def get_nodes(self):
            odd = [
                SimpleNamespace(node_id=n, name=name, last_activated_at="9")
                for n, name in ((3, ""), (4, "client3"), (5, "client-1"))
            ]
            return [*odd, *self.nodes]

    whole, _ = over_flower(config)
    for kind in (Simulated, Strange):
        again, grid = over_flower(config, grid=kind)
        assert compared(again) == compared(whole)
        assert {message.metadata.dst_node_id for message in grid.sent} == {1000, 999, 998}


def spoil(change):
    """Change the payload of a reply in place."""

    def apply(reply):
        payload = unpack_record(reply.content["answer"], "test")
        changed = change(payload)
        reply.content["answer"] = changed if changed is not None else pack_record(payload, words_on(reply))

    return apply


def words_on(reply):
    return read_metadata(reply.content["answer"]["payload"].numpy().tobytes())


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


@pytest.mark.parametrize(
    "change", [lambda content: content.clear(), lambda content: content.update(answer=MetricRecord({"payload": 1}))]
)
def test_a_reply_without_a_payload_is_left_out(over_flower, smoke, change):
    odd = lambda exchange, client: (lambda reply: change(reply.content)) if (exchange, client) == (1, 1) else None
    record, _ = over_flower(smoke(method="local_head"), {"min-clients": 2}, odd)
    assert record["faults"][1] == ["payload of client 1: the message has none"]


def unknown_object(reply):
    raise KeyError("NoSuchType")  # as Flower where a client sends an object of a type that there is not


def set_content(value):
    """Give a reply a content that Flower's own classes would not give it."""
    return lambda reply: reply.__dict__.update(_content=value) or reply


UNREADABLE = {
    "an object of no known type": (unknown_object, "cannot be read (KeyError: 'NoSuchType')"),
    "no message": (lambda reply: RecordDict(), "is no message with records"),
    "a message of nothing": (set_content(None), "is no message with records"),
    "a message with one record": (set_content(ArrayRecord({})), "is no message with records"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_reply_that_flower_cannot_make_costs_nobody_else_an_answer(over_flower, smoke, case):
    make, says = UNREADABLE[case]

    class Odd(StubGrid):
        def pull_messages(self, names):
            return [make(reply) if names == ["4"] else reply for reply in super().pull_messages(names)]

    record, _ = over_flower(smoke(method="fedavg_vit"), {"min-clients": 2}, grid=Odd)
    assert record["faults"] == [[], [f"client 1: its answer {says}"], [], []]
    assert [min(row) > 0 for row in record["bytes_up"]] == [True, False, True, True]


def test_a_reply_belongs_to_the_message_that_was_asked_for_whatever_it_says(over_flower, smoke):
    config = smoke(method="local_head")
    foreign = lambda exchange, client: lambda reply: reply.metadata.__dict__.update(_reply_to_message_id="not-asked")
    whole, _ = over_flower(config)
    again, _ = over_flower(config, lost=foreign)
    assert compared(again) == compared(whole) and "faults" not in again


def test_a_superlink_that_is_away_is_no_clients_fault(over_flower, smoke):
    class Away(StubGrid):
        def pull_messages(self, names):
            raise httpx.ConnectError("connection refused")

    with pytest.raises(httpx.ConnectError):
        over_flower(smoke(method="local_head"), {"min-clients": 2}, grid=Away)


def test_a_test_answer_that_is_refused_takes_nothing_from_the_other_accuracies(over_flower, smoke, capsys):
    """The last exchange of the run is number 5."""
    odd = lambda exchange, client: (lambda reply: reply.content.clear()) if (exchange, client) == (5, 1) else None
    record, _ = over_flower(smoke(method="local_head"), {"min-clients": 2}, odd)
    cli._show_accuracy(record)
    said = capsys.readouterr().out
    assert said.startswith("  after task 2, 2 of 3 clients gave a good test answer: means are over these\n")
    assert said.count("means are") == 1 and "nan" not in said


def test_an_answer_of_another_round_or_of_another_client_is_refused(over_flower, smoke):
    """Whatever is in it: names, shapes and numbers of such an answer fit."""
    kept = {}

    def odd(exchange, client):
        def change(reply):
            kept[exchange, client] = reply.content["answer"]
            reply.content["answer"] = kept[
                {(1, 1): (0, 1), (3, 2): (3, 1), (4, 1): (4, 1)}.get((exchange, client), (exchange, client))
            ]

        return change

    record, _ = over_flower(smoke(method="fedavg_vit"), {"min-clients": 2}, odd)
    assert record["faults"] == [
        [],
        ["payload of client 1: it answers exchange 0 of client 1 instead of exchange 1 of client 1"],
        ["payload of client 2: it answers exchange 3 of client 1 instead of exchange 3 of client 2"],
        [],
    ]


def test_an_answer_to_an_earlier_message_of_the_same_exchange_is_refused(over_flower, smoke):
    """As of a run before, that was the same up to there: a message's number is drawn anew."""
    config, kept = smoke(method="local_head"), {}
    keep = lambda exchange, client: lambda reply: kept.update({(exchange, client): reply.content["answer"]})
    over_flower(config, lost=keep)
    replay = lambda exchange, client: (
        lambda reply: reply.content.update(answer=kept[exchange, client]) if (exchange, client) == (2, 1) else None
    )
    record, _ = over_flower(config, {"min-clients": 2}, replay)
    assert record["faults"][1] == [
        "payload of client 1: it answers an earlier message instead of exchange 2 of client 1"
    ]
    assert record["accuracy"]["task"][0][1] == [None, None]


@pytest.mark.parametrize(
    "words", [{}, {"client": "1"}, {"client": "1", "exchange": "1", "nonce": "\n" + "0" * 10_000, "more": ""}]
)
def test_an_answer_without_its_ticket_is_refused_in_one_line(over_flower, smoke, words):
    odd = lambda exchange, client: (
        spoil(lambda payload: pack_record(payload, words)) if (exchange, client) == (1, 1) else None
    )
    record, _ = over_flower(smoke(method="local_head"), {"min-clients": 2}, odd)
    (line,) = record["faults"][1] or record["faults"][0]
    assert line.startswith("payload of client 1: it answers ") and "\n" not in line and len(line) < 700


def test_a_registered_system_and_data_set_are_federated_like_ours(over_flower, toys):
    config = experiment(**toys)
    record, _ = over_flower(config)
    assert (
        compared(record) == compared(alone(config)) and record["method"] == "toy" and record["dataset"] == "toy_images"
    )
