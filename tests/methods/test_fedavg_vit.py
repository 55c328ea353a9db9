"""FedAvg + ViT."""

import pytest
import torch

from lscl.federation.loop import InProcess, federate
from lscl.federation.method import HOLDS, IMAGES, Stage


@pytest.fixture
def uploads(federation, smoke):
    """Uploads by hand of two clients: 14 rows, of which client 0 holds 0 and 1, client 1 holds 1 and 2."""
    made = {}
    for k, (value, count, held) in enumerate([(1.0, 30, (0, 1)), (5.0, 10, (1, 2))]):
        holds = torch.zeros(14, dtype=torch.bool)
        holds[list(held)] = True
        made[k] = {
            IMAGES: torch.tensor(count),
            "out.weight": torch.full((14, 32), value),
            "out.bias": torch.full((14,), -value),
            HOLDS: holds,
        }
    return made


def test_plain_averages_every_row_over_all_clients(federation, smoke, uploads):
    method, _ = federation(smoke(method="fedavg_vit", clients=2))
    method.aggregate(uploads, Stage(0, 0))
    assert set(method.server) == {"out.weight", "out.bias"}
    assert (method.server["out.weight"] == 2).all() and (method.server["out.bias"] == -2).all()


def test_holders_averages_a_row_over_those_that_trained_it(federation, smoke, uploads):
    method, _ = federation(smoke(method="fedavg_vit", clients=2, head_merge="holders"))
    before = {key: value.clone() for key, value in method.server.items()}
    method.aggregate(uploads, Stage(0, 0))
    assert set(method.server) == {"out.weight", "out.bias"}
    assert method.server["out.weight"][:3, 7].tolist() == [1, 2, 5] and method.server["out.bias"][:3].tolist() == [
        -1,
        -2,
        -5,
    ]
    assert all(torch.equal(value[3:], before[key][3:]) for key, value in method.server.items())


def test_the_two_merges_differ_in_a_run(federation, smoke):
    heads = []
    for merge in ("plain", "holders"):
        method, clients = federation(smoke(method="fedavg_vit", head_merge=merge))
        list(federate(method, InProcess(method, clients)))
        heads.append(method.server["out.weight"])
    assert not torch.allclose(*heads)


def test_all_clients_are_tested_with_the_same_head(federation, smoke):
    method, clients = federation(smoke(method="fedavg_vit"))
    list(federate(method, InProcess(method, clients)))
    for client in clients:
        assert all(torch.equal(value, method.server[key]) for key, value in client.model.state_dict().items())


def test_only_the_features_behind_the_last_block_are_used(federation, smoke):
    method, clients = federation(smoke(method="fedavg_vit"))
    assert method.foundation.block == method.foundation.depth and clients[0].train.prefix.shape == (84, 1, 32)
    batch = clients[0].train.batch(torch.tensor([3, 4]))
    pixels = torch.from_numpy(clients[0].train.images.images[[3, 4]])
    with torch.no_grad():
        features = method.foundation.vit.forward_features(method.foundation.preprocess(pixels))[:, 0]
        assert torch.allclose(method.logits(clients[0], batch), clients[0].model(features), atol=1e-5)
