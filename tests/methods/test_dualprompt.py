"""FedAvg + DualPrompt."""

import pytest
import torch

from lscl.config import experiment
from lscl.errors import LsclError
from lscl.federation.loop import InProcess, federate
from lscl.federation.method import Stage
from lscl.federation.training import answer


def test_the_payload_has_the_size_of_the_formula(federation, smoke):
    method, clients = federation(smoke(method="dualprompt", dual_general_length=3, dual_task_length=4))
    down = 4 * (2 * 1 * 3 * 32 + 2 * 2 * 4 * 32 + 32 + 32 * 14 + 14)
    for report in federate(method, InProcess(method, clients)):
        assert report.bytes_up == [down + 8] * 3
        assert report.bytes_down == [down * (2 if report.scores else 1)] * 3


def test_sending_one_slot_equals_averaging_all(federation, smoke):
    """Slots that are not trained are the same on all clients and on the server after every round."""
    method, clients = federation(smoke(method="dualprompt"))
    for report in federate(method, InProcess(method, clients)):
        for task in range(report.task + 1 if report.scores else report.task):
            for client in clients:
                assert torch.equal(client.model["task"][task], method.server[f"task.{task}"])
                assert torch.equal(client.model["key"][task], method.server[f"key.{task}"])


def test_a_task_trains_its_own_slot_only(federation, smoke):
    method, clients = federation(smoke(method="dualprompt"))
    list(federate(method, InProcess(method, clients)))
    again, others = federation(smoke(method="dualprompt", tasks=2))
    ends = [dict(again.server)]
    for report in federate(again, InProcess(again, others)):
        if report.scores:
            ends.append({name: value.clone() for name, value in again.server.items()})
    start, first, second = ends
    assert torch.equal(second["task.0"], first["task.0"]) and not torch.equal(first["task.0"], start["task.0"])
    assert not torch.equal(second["task.1"], first["task.1"]) and torch.equal(first["key.1"], start["key.1"])


def test_a_new_task_starts_from_the_prefix_of_the_task_before_but_not_from_its_key(federation, smoke):
    method, clients = federation(smoke(method="dualprompt"))
    for report in federate(method, InProcess(method, clients)):
        if report.scores and report.task == 0:
            assert torch.equal(method.server["task.1"], method.server["task.0"])
            assert not torch.equal(method.server["key.1"], method.server["key.0"])
            break


def test_the_slot_is_that_of_the_nearest_key_among_the_tasks_met(federation, smoke):
    method, clients = federation(smoke(method="dualprompt"))
    client = clients[0]
    batch = client.train.batch(client.train_index[:4]) if client.task >= 0 else client.train.batch(torch.arange(4))
    features = method.foundation.feature(batch.last_token)
    with torch.no_grad():
        client.model["key"][1].copy_(features[2])
        client.task = 0
        assert method.choose_slots(client, batch).tolist() == [0] * 4
        client.task = 1
        client.model["key"][0].copy_(-features.mean(0))
        assert int(method.choose_slots(client, batch)[2]) == 1


def test_each_sample_gets_keys_and_values_of_its_own_slot(federation, smoke):
    """The defect of the widespread code: a sample's prefix must not depend on its place in the batch."""
    method, clients = federation(smoke(method="dualprompt"))
    client = clients[0]
    client.task = 1
    batch = client.train.batch(torch.arange(0, 80, 9))
    features = method.foundation.feature(batch.last_token)
    with torch.no_grad():
        client.model["key"][0].copy_(features[0] - features.mean(0))
        client.model["key"][1].copy_(features.mean(0) - features[0])
        slots = method.choose_slots(client, batch)
        assert set(slots.tolist()) == {0, 1}
        together = method.logits(client, batch)
        for i, slot in enumerate(slots.tolist()):
            image = client.train.batch(batch.index[i][None])
            own, another = (
                method.head_logits(client, method.prefixed_features(client, image, client.model["task"][one]))
                for one in (slot, 1 - slot)
            )
            assert torch.allclose(together[i], own[0], atol=1e-5)
            assert not torch.allclose(together[i], another[0], atol=1e-3)


def test_the_pull_moves_the_key_of_the_task_towards_the_features(federation, smoke):
    for pull in (0.0, 1.0):
        method, clients = federation(smoke(method="dualprompt", dual_pull=pull))
        client, stage = clients[0], Stage(0, 0)
        answer(method, client, stage, method.broadcast(0, stage))
        assert torch.equal(client.model["key"][0], method.server["key.0"]) is (pull == 0)


def test_more_blocks_than_the_vit_has_are_refused(federation, smoke, one_line):
    with pytest.raises(LsclError) as caught:
        federation(smoke(method="dualprompt", dual_task_blocks=3))
    one_line(caught, "dual_general_blocks + dual_task_blocks = 4", "tiny has 3 blocks")


def test_imagenet_r_has_its_official_values_in_the_profile_paper():
    config = experiment(profile="paper", dataset="imagenet_r", method="dualprompt")
    assert (config.dual_task_length, config.lr, config.rounds * config.epochs) == (20, 0.005 * config.batch / 256, 50)
    other = experiment(profile="paper", dataset="cifar100", method="dualprompt")
    assert (other.dual_task_length, other.lr, other.epochs) == (5, 0.03 * 16 / 256, 5)
