"""The controls that share nothing: a local head, and what holds for the local static LoRA too."""

import pytest
import torch

from lscl.federation.loop import InProcess, federate
from lscl.federation.method import Stage
from lscl.federation.training import answer

CONTROLS = ("local_head", "local_lora")


@pytest.mark.parametrize("name", CONTROLS)
def test_nothing_is_sent_or_kept_on_the_server(federation, smoke, name):
    method, clients = federation(smoke(method=name))
    reports = list(federate(method, InProcess(method, clients)))
    assert method.server == {} and all(sum(report.bytes_up + report.bytes_down) == 0 for report in reports)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_client_learns_the_same_alone(federation, smoke, name):
    method, clients = federation(smoke(method=name))
    list(federate(method, InProcess(method, clients)))
    alone_method, alone = federation(smoke(method=name))
    for t in range(2):
        for number in range(2):
            answer(alone_method, alone[1], Stage(t, number), {})
        answer(alone_method, alone[1], Stage(t, 1, "finish"), {})
    for key, value in clients[1].model.state_dict().items():
        assert torch.equal(value, alone[1].model.state_dict()[key])


@pytest.mark.parametrize("name", CONTROLS)
def test_the_model_goes_on_from_round_to_round_and_task_to_task(federation, smoke, name):
    method, clients = federation(smoke(method=name))
    client = clients[0]
    answer(method, client, Stage(0, 0), {})
    learnt = {key: value.clone() for key, value in client.model.state_dict().items()}
    method.receive(client, {}, Stage(0, 1))
    method.start_task(client)
    assert all(torch.equal(value, learnt[key]) for key, value in client.model.state_dict().items())


def test_all_clients_start_from_the_same_control(federation, smoke):
    for name in CONTROLS:
        method, clients = federation(smoke(method=name))
        assert all(
            torch.equal(value, clients[2].model.state_dict()[key])
            for key, value in clients[0].model.state_dict().items()
        )
