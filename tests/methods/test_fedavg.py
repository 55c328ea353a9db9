"""FedAvg on the small CNN; the payload of FedProx is the same."""

import pytest
import torch
from torch import nn

from lscl.errors import LsclError
from lscl.federation.loop import InProcess, federate
from lscl.federation.method import IMAGES, Stage
from lscl.federation.training import answer
from lscl.models import cnn


def test_the_payload_has_the_size_of_the_formula(federation, smoke):
    for name in ("fedavg", "fedprox"):
        method, clients = federation(smoke(method=name))
        cnn = clients[0].model["cnn"]
        layers = [module for module in cnn.modules() if isinstance(module, nn.BatchNorm2d)]
        numbers = sum(p.numel() for p in cnn.parameters()) + 2 * sum(layer.num_features for layer in layers)
        down = 4 * (numbers + 16 * 14 + 14) + 8 * len(layers)
        for report in federate(method, InProcess(method, clients)):
            assert report.bytes_up == [down + 8] * 3
            assert report.bytes_down == [down * (2 if report.scores else 1)] * 3


def test_batchnorm_statistics_are_averaged(federation, smoke):
    """T5."""
    method, clients = federation(smoke(method="fedavg"))
    stage = Stage(0, 0)
    uploads = {client.id: answer(method, client, stage, method.broadcast(client.id, stage)) for client in clients}
    method.aggregate(uploads, stage)
    names = [name for name in method.server if name.endswith(("running_mean", "running_var"))]
    total = sum(int(payload[IMAGES]) for payload in uploads.values())
    assert names
    for name in names:
        mean = sum(payload[name].double() * int(payload[IMAGES]) for payload in uploads.values()) / total
        assert torch.allclose(method.server[name].double(), mean, atol=1e-7)
        assert any(not torch.allclose(payload[name].double(), mean, atol=1e-7) for payload in uploads.values())
    counters = [name for name in method.server if name.endswith("num_batches_tracked")]
    assert all(method.server[name] == max(payload[name] for payload in uploads.values()) for name in counters)


def test_all_clients_are_tested_with_the_average(federation, smoke):
    method, clients = federation(smoke(method="fedavg"))
    list(federate(method, InProcess(method, clients)))
    for client in clients:
        assert all(torch.equal(value, method.server[key]) for key, value in client.model.state_dict().items())


def test_no_vit_is_loaded(federation, smoke):
    method, clients = federation(smoke(method="fedavg"))
    assert method.foundation is None and clients[0].train.prefix is None


def test_several_networks_cannot_be_averaged(federation, smoke, one_line):
    with pytest.raises(LsclError) as caught:
        federation(smoke(method="fedavg", cnn="tiny,small"))
    one_line(caught, "cnn = 'tiny,small'", "all clients need the same one")


def test_the_features_are_not_normalised(federation, smoke):
    method, clients = federation(smoke(method="fedavg"))
    assert isinstance(clients[0].model["cnn"], cnn.FeatureExtractor) and not clients[0].model["cnn"].norm
