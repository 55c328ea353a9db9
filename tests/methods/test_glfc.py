"""GLFC: exemplars, gradient compensation, relation distillation, the proxy server's choice of the old model."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lscl.federation.client import resize
from lscl.federation.loop import InProcess, federate
from lscl.federation.method import Stage
from lscl.federation.training import answer
from lscl.methods.glfc import binary_cross_entropy, gradient_compensation, labels_of
from lscl.methods.parts.buffer import herding
from lscl.methods.parts.inversion import build_encoder, parameter_gradient, recover_class
from lscl.methods.parts.old_model import model_part


@pytest.fixture
def second_task(second_task):
    """second_task(**values): method and first client in round 0 of the second task, moved on, in evaluation mode."""
    return partial(second_task, "glfc", moved=0.2)


# ---- losses


def test_compensation_by_hand():
    """g = |sigma(z_y) - 1| = 0.5, 0.75, 0.25 (new: mean 0.5) and 0.5, 0.9 (old: mean 0.7)."""
    z = lambda p: float(np.log(p / (1 - p)))
    logits = torch.zeros(5, 3)
    labels = torch.tensor([0, 1, 0, 2, 2])
    for row, p in enumerate((0.5, 0.25, 0.75, 0.5, 0.1)):
        logits[row, labels[row]] = z(p)
    weights = gradient_compensation(logits, labels, torch.tensor([True, True, True, False, False]))
    assert weights.tolist() == pytest.approx([1.0, 1.5, 0.5, 0.5 / 0.7, 0.9 / 0.7], rel=1e-5)
    alone = gradient_compensation(logits, labels, torch.ones(5, dtype=torch.bool))
    assert alone.mean().item() == pytest.approx(1) and not torch.allclose(alone, weights)
    assert gradient_compensation(torch.full((2, 3), 200.0), labels[:2], torch.tensor([True, True])).tolist() == [
        0,
        0,
    ]  # nothing left to learn


def test_the_loss_of_the_first_task_is_the_plain_binary_cross_entropy_over_the_classes_seen(federation, smoke):
    method, clients = federation(smoke(method="glfc"))
    client = clients[0]
    client.task = 0
    client.model.eval()
    batch = client.train.batch(client.train_index[:6])
    z, own = method.logits(client, batch).detach().double().numpy(), list(client.current.classes)
    p = 1 / (1 + np.exp(-z))
    y = np.eye(14)[batch.labels.numpy()]
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p))[:, own].mean()
    assert method.loss(client, batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("columns", ["global", "local"])
def test_the_loss_of_a_later_task_by_hand(second_task, columns):
    method, client = second_task(glfc_columns=columns, glfc_gc=0.6, glfc_rd=0.4)
    batch = client.train.batch(torch.cat([client.train_index[:5], client.state["exemplars"][:4]]))
    labels, own = batch.labels.tolist(), set(client.current.classes)
    known, seen = (
        set(client.state["known"].nonzero().flatten().tolist()),
        set(client.partition.seen_classes(client.id, 1)),
    )
    where = sorted(seen | known if columns == "global" else seen)
    old = sorted(known - own)
    sigma = lambda x: 1 / (1 + np.exp(-x))
    with torch.no_grad():
        z = method.logits(client, batch).double().numpy()
        z_old = client.scratch["old"]["head"](client.scratch["old"]["cnn"](batch.images)).double().numpy()
        found = method.loss(client, batch).item()
    bce = lambda y: -(y * np.log(sigma(z)) + (1 - y) * np.log(1 - sigma(z)))[:, where]
    onehot = np.eye(14)[labels]
    g = 1 - sigma(z[np.arange(9), labels])
    new = np.array([label in own for label in labels])
    assert new.tolist() == [True] * 5 + [False] * 4
    w = np.where(new, g / g[new].mean(), g / g[~new].mean())
    soft = onehot.copy()
    soft[:, old] = sigma(z_old)[:, old]
    expected = 0.6 * (w[:, None] * bce(onehot)).mean() + 0.4 * bce(soft).mean()
    assert found == pytest.approx(expected, rel=1e-5)


def test_targets_of_the_old_columns_are_the_old_models_answers_and_no_others(second_task):
    method, client = second_task()
    batch = client.train.batch(client.train_index[:6])
    onehot = F.one_hot(batch.labels, 14).float()
    soft, old = method.soft_targets(client, batch, onehot), method.old_columns(client)
    assert len(old) and not set(old.tolist()) & set(client.current.classes)
    answers = client.scratch["old"]["head"](client.scratch["old"]["cnn"](batch.images)).sigmoid()
    torch.testing.assert_close(soft[:, old], answers[:, old], rtol=1e-6, atol=0)
    rest = torch.ones(14, dtype=torch.bool).index_fill_(0, old, False)
    assert torch.equal(soft[:, rest], onehot[:, rest])


@pytest.mark.parametrize("off", [{"glfc_rd": 0.0}, {"glfc_gc": 0.0}, {"glfc_memory": 0}, {"glfc_columns": "local"}])
def test_each_part_changes_a_run_from_the_second_task_on(played, smoke, off):
    for rounds, same in ((2, True), (3, False)):
        one, other = (played(smoke(method="glfc", **more), rounds)[0] for more in ({}, off))
        assert all(torch.equal(value, other.server[key]) for key, value in model_part(one.server).items()) == same


# ---- exemplars


def test_exemplars_share_the_memory_equally_and_are_the_herded_ones(played, smoke, toy):
    _, clients, _ = played(smoke(method="glfc", glfc_memory=20), 2, toy(train=12))
    method, later, _ = played(smoke(method="glfc", glfc_memory=20), None, toy(train=12))
    for before, client in zip(clients, later):
        own = client.partition.tasks[client.id]
        first = before.state["exemplars"]
        counts = np.bincount(labels_of(client, first).numpy(), minlength=14)
        images = np.bincount(client.train.images.labels[list(own[0].train)], minlength=14)
        assert counts.tolist() == np.minimum(images, 20 // 3).tolist()
        kept = client.state["exemplars"]
        counts = np.bincount(labels_of(client, kept).numpy(), minlength=14)
        images += np.bincount(client.train.images.labels[list(own[1].train)], minlength=14)
        assert counts.tolist() == np.minimum(images, 20 // 6).tolist() and len(kept.unique()) == len(kept) <= 20
        for label in own[0].classes:  # what remains of an old class is the beginning of what was there
            one, other = (index[labels_of(client, index) == label] for index in (first, kept))
            assert torch.equal(other, one[: len(other)])
        index = client.train_index
        herded = herding(index, labels_of(client, index), method.features(client, index), 3)
        assert torch.equal(kept[-len(herded) :], herded)


@pytest.mark.parametrize("memory", [0, 2, 10_000])
def test_no_room_too_little_room_and_more_room_than_images(played, smoke, memory):
    _, clients, _ = played(smoke(method="glfc", glfc_memory=memory))
    for client in clients:
        everything = [image for task in client.partition.tasks[client.id] for image in task.train]
        expected = sorted(everything) if memory == 10_000 else []
        assert sorted(client.state["exemplars"].tolist()) == expected


def test_random_exemplars_are_the_option(played, smoke):
    one, other = (played(smoke(method="glfc", glfc_selection=name), 2)[1] for name in ("herding", "random"))
    assert any(not torch.equal(a.state["exemplars"], b.state["exemplars"]) for a, b in zip(one, other))
    again = played(smoke(method="glfc", glfc_selection="random"), 2)[1]
    assert all(torch.equal(a.state["exemplars"], b.state["exemplars"]) for a, b in zip(other, again))


def test_training_sees_the_task_and_the_exemplars(second_task):
    method, client = second_task()
    (phase,) = method.phases(client, Stage(1, 0))
    assert phase.index.tolist() == client.train_index.tolist() + client.state["exemplars"].tolist()
    assert len(client.state["exemplars"]) > 0


# ---- prototypes and proxy server


def test_the_server_recovers_every_class_of_a_task_from_the_gradients(played, federation, smoke):
    method, clients = federation(smoke(method="glfc"))
    for client in clients:
        upload = answer(method, client, Stage(0, 0), method.broadcast(client.id, Stage(0, 0)))
        assert upload["gradients"].shape == (3, 8136 + 769 * 14)
        assert [recover_class(one, 14) for one in upload["gradients"]] == sorted(client.current.classes)
    method, clients, _ = played(smoke(method="glfc"), 3)
    expected = [label for client in clients for label in sorted(client.current.classes)]
    assert method.server["proxy.labels"].tolist() == expected
    assert method.server["proxy.images"].shape == (9, 32, 32, 3) and method.server["proxy.images"].dtype == torch.uint8


def test_a_prototype_is_the_image_nearest_to_the_mean_disguised(played, smoke):
    method, clients, _ = played(smoke(method="glfc", glfc_perturb=0), 1)
    client = clients[0]
    f = F.normalize(method.features(client, client.train_index), dim=1)
    labels = labels_of(client, client.train_index)
    nearest = []
    for label in sorted(client.current.classes):
        own = (labels == label).nonzero().squeeze(1)
        nearest.append(client.train_index[own[(f[own] - f[own].mean(0)).norm(dim=1).argmin()]])
    batch = client.train.batch(torch.stack(nearest))
    found = method.prototype_gradients(client)
    pairs = zip(resize(batch.images, 32).split(1), batch.labels.split(1))
    assert torch.allclose(
        found, torch.stack([parameter_gradient(build_encoder(14, 42), *pair) for pair in pairs]), atol=1e-5
    )
    assert torch.equal(method.disguise(client, batch), batch.images)


def test_the_disguise_lowers_the_loss_on_the_image(played, smoke):
    method, clients, _ = played(smoke(method="glfc", glfc_perturb=50), 1)
    client = clients[0]
    batch = client.train.batch(client.train_index[:4])
    disguised = method.disguise(client, batch)
    onehot, columns = F.one_hot(batch.labels, 14).float(), method.columns(client)
    with torch.no_grad():
        loss = lambda images: binary_cross_entropy(
            client.model["head"](client.model["cnn"](images)), onehot, columns
        ).mean(1)
        assert (loss(disguised) < loss(batch.images)).all()
    assert (disguised - batch.images).abs().max() > 1e-3
    alone = method.disguise(client, client.train.batch(client.train_index[:1]))
    assert torch.allclose(alone, disguised[:1], atol=1e-2)


def test_a_step_of_the_disguise_is_one_on_the_pixels_between_0_and_1(played, smoke):
    method, clients, _ = played(smoke(method="glfc", glfc_perturb=1), 1)
    client = clients[0]
    batch = client.train.batch(client.train_index[:2])
    pixels = (batch.images * 0.25 + 0.5).requires_grad_()
    logits = client.model["head"](client.model["cnn"]((pixels - 0.5) / 0.25))
    columns, onehot = method.columns(client), F.one_hot(batch.labels, 14).float()
    loss = F.binary_cross_entropy_with_logits(logits[:, columns], onehot[:, columns], reduction="none").mean(1).sum()
    (slope,) = torch.autograd.grad(loss, [pixels])
    expected = pixels - 0.2 * (slope + 1e-5 * pixels)
    found = method.disguise(client, batch) * 0.25 + 0.5
    assert torch.allclose(found, expected, atol=1e-6) and (found - pixels).abs().max() > 1e-4


def test_the_proxy_keeps_the_better_model_and_starts_afresh_in_each_task(federation, smoke, monkeypatch):
    scores = iter([0.9, 0.5, 0.9, 0.2, 0.1, 0.3])
    method, clients = federation(smoke(method="glfc", rounds=3))
    monkeypatch.setattr(method, "score", lambda: torch.tensor(next(scores)))
    models, best = [], []
    for _ in federate(method, InProcess(method, clients)):
        models.append({key: value.clone() for key, value in model_part(method.server).items()})
        best.append(
            {
                key.removeprefix("best."): value.clone()
                for key, value in method.server.items()
                if key.startswith("best.")
            }
        )
    for number, chosen in enumerate((0, 0, 2, 3, 3, 5)):  # as good is good enough; 0.2 beats nothing of an earlier task
        assert all(torch.equal(value, models[chosen][key]) for key, value in best[number].items()) and best[number]
    for client in clients:
        assert all(torch.equal(client.state[f"old.{key}"], value) for key, value in models[2].items())


def test_the_old_model_is_the_best_not_the_last(federation, smoke, monkeypatch):
    sent = {}
    for proxy in (True, False):
        method, clients = federation(smoke(method="glfc", glfc_proxy=proxy))
        scores, models = [0.9, 0.1], []
        monkeypatch.setattr(method, "score", lambda scores=scores: torch.tensor(scores.pop(0)))
        for number, _ in enumerate(federate(method, InProcess(method, clients))):
            models.append(model_part(method.server))
            if number == 1:
                break
        payload = method.broadcast(0, Stage(1, 0))
        clients[0].task = 1
        method.receive(clients[0], payload, Stage(1, 0))
        sent[proxy] = (
            "old.head.bias" in payload,
            [torch.equal(clients[0].state["old.head.bias"], model["head.bias"]) for model in models],
        )
    assert sent == {True: (True, [True, False]), False: (False, [False, True])}


def test_the_score_is_the_share_of_right_answers_among_the_known_classes(played, smoke):
    method, *_ = played(smoke(method="glfc"), 2)
    known = method.known_classes()
    method.server["proxy.images"] = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    model = method.teacher()
    logits = model["head"](model["cnn"](torch.full((1, 3, 16, 16), -2.0)))[0]
    label = known[logits[known].argmax()]
    method.server["proxy.labels"] = torch.tensor([label, label, known[0] if known[0] != label else known[1], label])
    assert method.score().item() == 0.75
    method.server["proxy.images"], method.server["proxy.labels"] = (
        torch.zeros(0, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(0).long(),
    )
    assert method.score().item() == 0


def test_without_the_proxy_no_gradients_go_up_and_nothing_is_reconstructed(played, smoke):
    method, clients, _ = played(smoke(method="glfc", glfc_proxy=False))
    assert not any(key.startswith(("proxy", "best", "score")) for key in method.server) and method.sheet(1) is None
    assert "gradients" not in method.upload_shapes(0, Stage(1, 0))


def test_the_sheet_shows_one_reconstruction_of_each_gradient(played, smoke):
    method, *_ = played(smoke(method="glfc", glfc_steps=3, glfc_images=2), 1)
    assert method.server["proxy.images"].shape == (18, 32, 32, 3)
    assert np.array_equal(method.sheet(0), method.server["proxy.images"][1::2].numpy())
