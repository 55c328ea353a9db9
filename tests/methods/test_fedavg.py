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


def noted_images(method, client, monkeypatch):
    """The CNN's images in the steps of a round, and in the test behind it."""
    seen, plain = [], method.features_of
    monkeypatch.setattr(
        method,
        "features_of",
        lambda client, batch: (seen.append((client.model.training, batch)), plain(client, batch))[1],
    )
    for name in ("train", "finish"):
        answer(method, client, Stage(0, 0, name), method.broadcast(client.id, Stage(0, 0)))
    return seen


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "glfc", "target", "mfcl"])
def test_images_are_augmented_in_training_and_never_in_a_test(federation, smoke, monkeypatch, name):
    method, clients = federation(smoke(method=name, augment="crop_flip"))
    seen = noted_images(method, clients[0], monkeypatch)
    assert {training for training, _ in seen} == {True, False}
    for training, batch in seen:
        plain = batch.inputs.batch(batch.index).images
        assert batch.images.shape == plain.shape and torch.equal(batch.images, plain) != training


def test_crops_have_draws_of_their_own(federation, smoke, monkeypatch):
    """The order of the images, and what a global generator does, stay out of it; each round has other crops."""
    orders, images = [], []
    for how, other in (("none", 0), ("crop", 0), ("crop", 1)):
        method, clients = federation(smoke(method="fedavg", augment=how))
        torch.manual_seed(other)
        trained = [batch for training, batch in noted_images(method, clients[0], monkeypatch) if training]
        orders.append([batch.index.tolist() for batch in trained])
        images.append(torch.cat([batch.images for batch in trained]))
    assert orders[0] == orders[1] == orders[2]
    assert torch.equal(images[1], images[2]) and not torch.equal(images[0], images[1])
    first, second = (method.phases(clients[0], Stage(0, 0))[0].augment(images[0]) for clients[0].round in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("name", "most"), [("fedavg", 0), ("mfcl", 0), ("glfc", 63 / 255), ("target", 63 / 255)])
def test_brightness_changes_where_the_official_code_changes_it(federation, smoke, name, most):
    method, clients = federation(smoke(method=name, augment="crop"))
    clients[0].task = 0
    changed = method.phases(clients[0], Stage(0, 0))[0].augment(torch.zeros(64, 3, 16, 16))[:, 0, 8, 8] * 0.25 + 0.5
    assert (changed / 0.5 - 1).abs().max().item() == pytest.approx(most, rel=0.1)
