"""The loop: which exchanges happen in which order, what they carry, and what they cost."""

import pytest
import torch
from tests_root import Recorder

from lscl.errors import LsclError
from lscl.federation.loop import InProcess, exchanges, federate
from lscl.federation.method import HOLDS, IMAGES, Stage
from lscl.federation.training import answer, catch_up
from lscl.methods import METHODS


def played(federation, config):
    method, clients = federation(config)
    transport = Recorder(method, clients)
    return method, transport, list(federate(method, transport))


def test_a_task_is_its_rounds_and_a_finish(federation, smoke):
    method, transport, reports = played(federation, smoke(method="local_head"))
    stages = [Stage(t, *rest) for t in range(2) for rest in ((0,), (1,), (1, "finish"))]
    assert [stage for stage, _, _ in transport.log] == stages
    assert [(report.task, report.round) for report in reports] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [sorted(report.scores) for report in reports] == [[], [0, 1, 2], [], [0, 1, 2]]
    assert [len(report.scores[2]["total"]) for report in reports if report.scores] == [3, 6]


def test_fedavg_with_one_client_and_one_round_returns_the_upload(federation, smoke):
    config = smoke(method="fedavg_vit", clients=1, rounds=1, tasks=1)
    method, transport, _ = played(federation, config)
    _, downloads, uploads = transport.log[0]
    assert set(method.server) == {"out.weight", "out.bias"}
    for name, value in method.server.items():
        assert torch.equal(value, uploads[0][name]) and not torch.equal(value, downloads[0][name])
        assert torch.equal(transport.log[1][1][0][name], value)  # and sends it to the client for the test


def test_fedavg_averages_what_was_uploaded_by_the_number_of_images(federation, smoke):
    method, transport, _ = played(federation, smoke(method="fedavg_vit", rounds=1, tasks=1, private_classes=1))
    uploads = transport.log[0][2]
    counts = [len(client.partition.tasks[client.id][0].train) for client in transport.clients]
    assert [int(uploads[k][IMAGES]) for k in range(3)] == counts and len(set(counts)) > 1
    for name in ("out.weight", "out.bias"):
        mean = sum(uploads[k][name].double() * counts[k] for k in range(3)) / sum(counts)
        assert torch.allclose(method.server[name].double(), mean, atol=1e-7)


def test_finished_rounds_are_not_done_again(federation, smoke):
    config = smoke(method="local_head")
    whole = played(federation, config)[1].log
    for done in range(5):
        method, clients = federation(config)
        transport = Recorder(method, clients)
        reports = list(federate(method, transport, done=done))
        left = [stage for stage, _, _ in whole if stage.task * 2 + stage.round >= done]
        assert len(reports) == 4 - done and [stage for stage, _, _ in transport.log] == left


def test_bytes_of_fedavg_equal_a_count_by_hand(federation, smoke):
    for merge, flags in (("plain", 0), ("holders", 14)):
        _, _, reports = played(federation, smoke(method="fedavg_vit", head_merge=merge))
        head = 4 * (14 * 32 + 14)  # W (C, d) and b (C,) in float32
        for report in reports:
            assert report.bytes_up == [head + 8 + flags] * 3  # and the number of images (int64), a flag for each class
            assert report.bytes_down == [head * (2 if report.scores else 1)] * 3  # the finish sends the model once more


def test_bytes_of_fed_lscl_equal_a_count_by_hand(federation, smoke):
    _, transport, reports = played(federation, smoke(buffer_per_class=2))
    generator = 4 * (4 * 4 * 32) * (16 + 1)  # P = 4 r d rows of m + 1 numbers in float32
    for report in reports:
        for k, client in enumerate(transport.clients):
            seen = client.partition.seen_classes(k, report.task)
            counts = client.partition.counts(client.train.images.labels, 14)[k].sum(0)
            kept = sum(min(2, counts[label]) for label in seen)
            assert report.bytes_up[k] == generator + 4 * 16 * kept
            assert report.bytes_down[k] == generator * (2 if report.scores else 1)


def test_nothing_is_counted_where_nothing_travels(federation, smoke):
    for method in ("local_head", "local_lora"):
        _, transport, reports = played(federation, smoke(method=method))
        assert all(report.bytes_up == report.bytes_down == [0, 0, 0] for report in reports)
        assert all(uploads == {0: {}, 1: {}, 2: {}} for stage, _, uploads in transport.log if stage.name == "train")


@pytest.mark.parametrize("name", ["fed_lscl", "fedavg_vit"])
def test_server_and_clients_share_no_memory(federation, smoke, name):
    method, clients = federation(smoke(method=name))
    server = {value.untyped_storage().data_ptr() for value in method.server.values()}

    class Checked(InProcess):
        def ask(self, stage, downloads):
            received = {
                value.untyped_storage().data_ptr() for payload in downloads.values() for value in payload.values()
            }
            assert not received & server
            return super().ask(stage, downloads)

    next(federate(method, Checked(method, clients)))
    mine = {value.untyped_storage().data_ptr() for client in clients for value in client.private_state().values()}
    assert not mine & {value.untyped_storage().data_ptr() for value in method.server.values()}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda payload, start: payload.update(image=torch.zeros(3, 16, 16)), "image missing or not allowed"),
        (lambda payload, start: payload.pop(start + "bias"), "bias missing"),
        (lambda payload, start: payload.update({start + "bias": payload[start + "bias"][:5]}), "bias has shape (5,)"),
        (lambda payload, start: payload[start + "weight"].fill_(torch.nan), "weight holds NaN"),
        (lambda payload, start: payload.update({start + "weight": 3}), "weight is a int"),
    ],
)
@pytest.mark.parametrize("name", ["fed_lscl", "fedavg_vit"])
def test_a_spoiled_upload_stops_the_run_and_names_the_client(federation, smoke, name, spoil, words, one_line):
    method, clients = federation(smoke(method=name))

    class Spoiled(InProcess):
        def ask(self, stage, downloads):
            answers = super().ask(stage, downloads)
            with torch.no_grad():
                spoil(answers[1], "out." if name == "fedavg_vit" else "")
            return answers

    before = {key: value.clone() for key, value in method.server.items()}
    with pytest.raises(LsclError) as caught:
        next(federate(method, Spoiled(method, clients)))
    one_line(caught, "payload of client 1: ", words)
    assert all(torch.equal(value, before[key]) for key, value in method.server.items())


def test_progress_hears_of_every_client(federation, smoke):
    method, clients = federation(smoke(method="local_head", tasks=1))
    heard = []
    list(
        federate(
            method, InProcess(method, clients, lambda stage, client: heard.append((stage.round, stage.name, client)))
        )
    )
    assert heard == [
        (number, name, k) for number, name in ((0, "train"), (1, "train"), (1, "finish")) for k in range(3)
    ]


def test_seconds_are_measured_for_every_part_of_a_round(federation, smoke):
    _, _, reports = played(federation, smoke(method="fedavg_vit", tasks=1))
    assert all(
        set(report.seconds) == {"train", "aggregate", "evaluate"} and min(report.seconds.values()) >= 0
        for report in reports
    )
    assert all(0 < report.cpu_seconds < 60 for report in reports)
    assert reports[0].seconds["train"] > 0 and reports[1].seconds["evaluate"] > 0


def test_the_holds_flags_are_the_classes_of_the_task(federation, smoke):
    _, transport, _ = played(federation, smoke(method="fedavg_vit", head_merge="holders"))
    for stage, _, uploads in transport.log:
        if stage.name == "train":
            for k, payload in uploads.items():
                assert payload[HOLDS].nonzero().squeeze(1).tolist() == sorted(
                    transport.clients[k].partition.tasks[k][stage.task].classes
                )


def test_the_list_of_exchanges_is_what_happens(federation, smoke):
    for name in ("local_head", "lorm"):
        method, transport, _ = played(federation, smoke(method=name))
        assert exchanges(method) == [stage for stage, _, _ in transport.log]


class Gaps(InProcess):
    """Client 1 gives no answer in the exchanges `away` (task, round or "finish"), and catches up when it is back."""

    away = ()

    def ask(self, stage, downloads):
        self.missed = getattr(self, "missed", [])
        answers = {}
        for client in self.clients:
            if client.id == 1 and (stage.task, stage.round if stage.name == "train" else stage.name) in self.away:
                self.missed.append((stage, downloads[1]))
                answers[1] = LsclError("client 1: no answer")
                continue
            while client.id == 1 and self.missed:
                catch_up(self.method, client, *self.missed.pop(0))
            answers[client.id] = answer(self.method, client, stage, downloads[client.id])
        return answers


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("away", [((0, 1), (0, "finish"), (1, 0)), ((0, 0),), ((1, "finish"),)])
def test_every_method_goes_on_without_a_client_and_takes_it_back(federation, smoke, name, away):
    method, clients = federation(smoke(method=name))
    transport = Gaps(method, clients)
    transport.away = away
    reports = list(federate(method, transport, least=2))
    rounds = {(report.task, report.round) for report in reports}
    assert sum(len(report.faults) for report in reports) == len(
        [one for one in away if one in rounds or one[1] == "finish"]
    )
    for report in reports:
        gone = (report.task, report.round) in away
        assert report.bytes_up[1] == 0 or not gone
        assert min(report.bytes_up[0], report.bytes_up[2]) > 0 or max(report.bytes_up) == 0
        if report.scores:
            assert sorted(report.scores) == [k for k in range(3) if k != 1 or (report.task, "finish") not in away]


def test_a_client_that_missed_the_finish_is_as_if_it_had_not(federation, smoke):
    """Its state when it is back, but for what the others' aggregate brings, is that of a run without a gap."""
    states = []
    for away in ((), ((0, "finish"),)):
        method, clients = federation(smoke(continual="replay"))
        transport = Gaps(method, clients)
        transport.away = away
        for number, _ in enumerate(federate(method, transport, least=2), 1):
            if number == 3:
                break
        states.append(clients[1].private_state())
    assert set(states[0]) == set(states[1]) and all(
        torch.equal(value, states[1][name]) for name, value in states[0].items()
    )


def test_too_few_good_answers_stop_the_run_and_say_why(federation, smoke, one_line):
    method, clients = federation(smoke(method="fedavg_vit"))
    transport = Gaps(method, clients)
    transport.away = ((0, 1),)
    with pytest.raises(LsclError) as caught:
        list(federate(method, transport, least=3))
    one_line(caught, "task 1 round 2 (train): 2 good answers, at least 3 are needed: client 1: no answer")


def test_a_bad_answer_is_left_out_where_enough_are_good(federation, smoke):
    method, clients = federation(smoke(method="fedavg_vit"))
    other, others = federation(smoke(method="fedavg_vit"))

    class Spoiled(InProcess):
        def ask(self, stage, downloads):
            answers = super().ask(stage, downloads)
            if stage.name == "train":
                answers[1]["out.bias"] = answers[1]["out.bias"].double()
            else:
                answers[1]["total"] = answers[1]["total"][:1]
            return answers

    report = next(federate(method, Spoiled(method, clients), least=2))
    assert (
        report.faults == ["payload of client 1: out.bias has type torch.float64, allowed is torch.float32"]
        and report.bytes_up[1] == 0
    )
    without = Gaps(other, others)
    without.away = ((0, 0),)
    next(federate(other, without, least=2))
    assert all(torch.equal(value, other.server[name]) for name, value in method.server.items())
    last = list(federate(method, Spoiled(method, clients), done=1, least=2))
    assert "payload of client 1: total has shape (1,), allowed is (3,)" in last[0].faults and sorted(
        last[0].scores
    ) == [0, 2]
