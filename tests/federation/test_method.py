"""What every method promises the loop."""

import pytest
import torch

from lscl.experiments.run import run
from lscl.federation.loop import InProcess, federate
from lscl.federation.masking import masked_cross_entropy
from lscl.federation.method import HOLDS, IMAGES, Stage
from lscl.federation.payload import seal
from lscl.federation.training import answer
from lscl.methods import METHODS

OWN_LOSS = {
    "l2p",
    "dualprompt",
    "glfc",
    "fedmgp",
    "pilora",
    "fed_lscl_ridge",
}  # a pull of the keys on top; a binary one per class; a loss for each phase; further terms; another head
OWN_GROUPS = {"dualprompt", "fedmgp", "lorm"}  # the slot of the task only; two phases; one LoRA factor per round
OWN_RATE = {
    "fedmgp",
    "pilora",
    "fed_lscl_ridge",
}  # trains with the true class's prompt, tests with the nearest key's; distances are flatter than scores; another head

FREE = {name for name, kind in METHODS.items() if not kind.trains}  # of training; tested with the method


def without(*names):
    """All methods but a few, for which a property does not hold."""
    return [name for name in METHODS if name not in names]


@pytest.mark.parametrize("name", METHODS)
def test_an_upload_has_the_promised_names_and_shapes(federation, smoke, name):
    method, clients = federation(smoke(method=name))
    stage = Stage(0, 0)
    for client in clients:
        upload = answer(method, client, stage, method.broadcast(client.id, stage))
        expected = method.upload_shapes(client.id, stage)
        assert set(upload) == set(expected)
        for key, shape in expected.items():
            assert len(shape) == upload[key].ndim and all(
                want in (None, have) for want, have in zip(shape, upload[key].shape)
            )


@pytest.mark.parametrize("name", METHODS)
def test_logits_are_one_row_per_image_over_all_classes(federation, smoke, name):
    method, clients = federation(smoke(method=name))
    clients[2].task = 0
    clients[2].model.eval()
    logits = method.logits(clients[2], clients[2].train.batch(torch.tensor([5, 80, 2])))
    assert logits.shape == (3, 14) and logits.isfinite().all()


@pytest.mark.parametrize("name", without(*OWN_LOSS))
def test_the_loss_is_the_cross_entropy_over_the_classes_of_the_task(federation, smoke, name):
    method, clients = federation(smoke(method=name))
    client, stage = clients[0], Stage(0, 0)
    client.task = 0
    method.receive(client, method.broadcast(0, stage), stage)
    client.model.eval()
    batch = client.train.batch(client.train_index[:6])
    expected = masked_cross_entropy(method.logits(client, batch), batch.labels, client.classes)
    assert torch.allclose(method.loss(client, batch), expected)


@pytest.mark.parametrize("name", without(*FREE))
def test_new_models_are_drawn_by_seed_and_client_alone(federation, smoke, name):
    method, _ = federation(smoke(method=name))
    other_seed, _ = federation(smoke(method=name, seed=1))
    torch.manual_seed(3)
    first = method.new_model(1).state_dict()
    torch.manual_seed(4)
    again, other = method.new_model(1).state_dict(), other_seed.new_model(1).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind.vit])
def test_the_foundation_model_is_never_changed(federation, smoke, name):
    method, clients = federation(smoke(method=name))
    before = {key: value.clone() for key, value in method.foundation.state_dict().items()}
    list(federate(method, InProcess(method, clients)))
    assert all(torch.equal(value, before[key]) for key, value in method.foundation.state_dict().items())
    assert not any(".vit." in key or "foundation" in key for key in clients[0].model.state_dict())


@pytest.mark.parametrize("name", without(*OWN_GROUPS, *FREE))
def test_every_trained_parameter_is_in_exactly_one_group(federation, smoke, name):
    method, clients = federation(smoke(method=name))
    (phase,) = method.phases(clients[0], Stage(0, 0))
    grouped = [id(parameter) for group in phase.groups for parameter in list(group["params"])]
    assert sorted(grouped) == sorted(
        id(parameter) for parameter in clients[0].model.parameters() if parameter.requires_grad
    )
    assert (phase.epochs, phase.batch) == (1, 8)


@pytest.mark.parametrize("name", without(*FREE))
def test_head_rows_outside_the_task_are_not_changed_by_training(federation, smoke, name):
    method, clients = federation(smoke(method=name))
    client, stage = clients[0], Stage(0, 0)
    head = client.model["head"] if "head" in dict(client.model.named_children()) else client.model
    method.receive(client, method.broadcast(0, stage), stage)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    answer(method, client, stage, method.broadcast(0, stage))
    inside = torch.zeros(14, dtype=torch.bool)
    inside[client.classes] = True
    for key, value in head.state_dict().items():
        assert torch.equal(value[~inside], before[key][~inside])
        assert (value[inside] != before[key][inside]).flatten(1 if value.ndim > 1 else 0).any()
        assert all((value[row] != before[key][row]).any() for row in client.classes)


@pytest.mark.parametrize("name", without(*OWN_RATE, *FREE))
def test_training_lowers_the_loss_on_the_clients_own_images(federation, smoke, name):
    method, clients = federation(smoke(method=name, epochs=15, lr=1e-2))
    client, stage = clients[0], Stage(0, 0)

    def loss():
        client.model.eval()
        batch = client.train.batch(client.train_index)
        with torch.no_grad():
            return float(masked_cross_entropy(method.logits(client, batch), batch.labels, client.classes))

    client.task = 0
    method.receive(client, method.broadcast(0, stage), stage)
    before = loss()
    answer(method, client, stage, method.broadcast(0, stage))
    assert loss() < 0.9 * before


OWN_MERGE = {
    "fed_lscl",
    "fed_lscl_ridge",
    "pilora",
    "lorm",
}  # tested with the method: other names on the server; solved in float64


@pytest.mark.parametrize("name", without(*OWN_MERGE, *FREE))
def test_one_client_alone_gets_its_upload_back(federation, smoke, name):
    """T1: with one client and one round the server holds what was uploaded."""
    method, clients = federation(smoke(method=name, clients=1, rounds=1))
    stage = Stage(0, 0)
    upload = seal(
        answer(method, clients[0], stage, method.broadcast(0, stage)), "client 0", method.upload_shapes(0, stage)
    )
    method.aggregate({0: upload}, stage)
    sent = set(upload) & set(method.server)
    assert all(torch.equal(upload[key], method.server[key]) for key in sent) and (sent or not upload)


@pytest.mark.parametrize("name", METHODS)
def test_what_an_image_gets_does_not_depend_on_its_place_in_the_batch(federation, smoke, name):
    """T2: loss and scores under a permutation of the batch."""
    method, clients = federation(smoke(method=name))
    client, stage = clients[0], Stage(0, 0)
    answer(method, client, stage, method.broadcast(0, stage))
    client.model.eval()
    index, order = client.train_index[:6], torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        one, other = (client.train.batch(chosen) for chosen in (index, index[order]))
        assert torch.allclose(method.loss(client, other), method.loss(client, one), atol=1e-5)
        assert torch.allclose(method.logits(client, other), method.logits(client, one)[order], atol=1e-5)
        alone = torch.cat([method.logits(client, client.train.batch(i[None])) for i in index])
        assert torch.allclose(alone, method.logits(client, one), atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_no_image_is_ever_uploaded(federation, smoke, name):
    """T4: nothing of the size of an image, or of a batch of them, goes up."""
    method, clients = federation(smoke(method=name))
    pixels = clients[0].train.images.images[0].size
    for number, stage in enumerate(method.stages(0)):
        for client in clients:
            client.round = number
            for value in answer(method, client, stage, seal(method.broadcast(client.id, stage), "server")).values():
                assert value.numel() != pixels and (value.ndim < 2 or value[0].numel() != pixels)


def shifted(uploads, names, weights, size):
    """The uploads with something moved from client 1 to client 0: every weighted sum stays."""
    draw = torch.Generator().manual_seed(0)
    moved = {k: dict(payload) for k, payload in uploads.items()}
    for name in names:
        delta = size * torch.randn(uploads[0][name].shape, generator=draw, dtype=torch.float64)
        for k, sign in ((0, 1), (1, -1)):
            value, step = uploads[k][name].double().clone(), sign * delta / weights[k]
            rows = ... if value.ndim == 0 else slice(min(len(value), len(step)))  # features: as many as both have
            value[rows] += step[rows]
            moved[k][name] = value.to(uploads[k][name].dtype)
    return moved


def aggregated(method, server, uploads, stage):
    method.server = dict(server)
    method.aggregate({k: dict(payload) for k, payload in uploads.items()}, stage)
    return {name: value.double() for name, value in method.server.items() if value.is_floating_point()}


def same_server(method, server, uploads, stage, names, size):
    """Whether the server cannot tell the shifted uploads from the true ones, with sums or with means of images."""
    plain, alike = aggregated(method, server, uploads, stage), []
    for weights in ({0: 1.0, 1: 1.0}, {k: float(payload.get(IMAGES, 1)) for k, payload in uploads.items()}):
        other = aggregated(method, server, shifted(uploads, names, weights, size), stage)
        alike.append(all(torch.allclose(plain[name], other[name], atol=3e-6) for name in plain))
    return any(alike)


SUMS = [*without("glfc", "mfcl", "target", "fedmgp"), "target"]  # the others add images of the server's own


@pytest.mark.parametrize("name", SUMS)
def test_names_that_only_need_sums_are_exactly_those_that_are_declared(federation, smoke, name, monkeypatch):
    method, clients = federation(smoke(method=name))
    if hasattr(method, "classes"):  # sums by class: both clients' rows are of the same classes
        first = method.classes
        monkeypatch.setattr(method, "classes", lambda client, stage: first(0, stage))
    stage, server = Stage(0, 0), dict(method.server)
    uploads = InProcess(method, clients).ask(stage, {k: seal(method.broadcast(k, stage), "server") for k in range(3)})
    uploads = {k: seal(payload, "test") for k, payload in uploads.items()}
    floating = {name for name, value in uploads[0].items() if value.is_floating_point()}
    declared = set(method.summed_names(stage))
    assert declared <= set(uploads[0]) | {HOLDS}
    if floating & declared:
        assert same_server(method, server, uploads, stage, sorted(floating & declared), 1e-3)
    if floating - declared:
        assert not same_server(method, server, uploads, stage, sorted(floating - declared), 0.5)


def test_a_median_needs_single_uploads_and_averaged_generators_only_sums(federation, smoke):
    declared = lambda **values: set(federation(smoke(**values))[0].summed_names(Stage(0, 0)))
    assert declared(method="fedavg", averaging="median") == set()
    assert declared() == set() and declared(o2d="average") == {IMAGES, "weight", "bias"}
    assert "gradients" not in declared(method="glfc") and "head.weight" in declared(method="glfc")


@pytest.mark.parametrize("averaging", ["clipped", "median"])
def test_an_average_that_withstands_a_client_trains_too(smoke, averaging):
    for name in ("fedavg", "fedavg_vit", "l2p", "dualprompt", "target"):
        record = run(smoke(method=name, averaging=averaging, stop_after=1), quiet=True)
        assert "faults" not in record
