"""FedProx: what it adds to FedAvg."""

import pytest
import torch

from lscl.federation.method import Stage
from lscl.federation.training import answer


@pytest.mark.parametrize("mu", [0.0, 0.01, 3.0])
def test_fedprox_adds_half_mu_times_the_squared_distance(federation, smoke, mu):
    """Against a hand-computed value: every one of n parameters is moved by 0.01."""
    method, clients = federation(smoke(method="fedprox", prox_mu=mu))
    plain, _ = federation(smoke(method="fedavg"))
    client, stage = clients[0], Stage(0, 0)
    client.task = 0
    method.receive(client, method.broadcast(0, stage), stage)
    client.model.eval()
    with torch.no_grad():
        for parameter in client.model.parameters():
            parameter += 0.01
    batch = client.train.batch(client.train_index[:6])
    count = sum(p.numel() for p in client.model.parameters())
    assert float((method.loss(client, batch) - plain.loss(client, batch)).detach()) == pytest.approx(
        mu / 2 * count * 1e-4, rel=1e-3, abs=1e-6
    )


def test_fedprox_stays_closer_to_what_it_received(federation, smoke):
    drift = {}
    for mu in (0.0, 10.0):
        method, clients = federation(smoke(method="fedprox", prox_mu=mu, epochs=3))
        stage = Stage(0, 0)
        answer(method, clients[0], stage, method.broadcast(0, stage))
        drift[mu] = sum(
            float((p.detach() - method.server[name]).square().sum()) for name, p in clients[0].model.named_parameters()
        )
    assert drift[10.0] < 0.5 * drift[0.0]
