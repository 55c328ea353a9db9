"""MFCL: replay from a generator, the head-only loss, the old head."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from lscl.config import experiment
from lscl.federation.loop import InProcess, federate
from lscl.federation.masking import masked_cross_entropy
from lscl.federation.method import Stage
from lscl.methods.mfcl import SIGMA, imbalance, roughness
from lscl.methods.parts.synthesis import Statistics, batchnorm_layers, kl_gap


@pytest.fixture
def second_task(second_task):
    """second_task(**values): method and first client in round 0 of the second task, moved on, in evaluation mode."""
    return partial(second_task, "mfcl", moved=0.1)


def slopes(loss, parameters):
    """The largest gradient of each parameter; 0 where the loss does not depend on it."""
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [0.0 if one is None else one.abs().max().item() for one in found]


# ---- client


def test_the_loss_is_the_sum_of_its_three_terms(second_task):
    method, client = second_task(mfcl_ft=0.7, mfcl_kd=0.3)
    batch = client.train.batch(client.train_index[:6])
    with torch.no_grad():
        total = method.loss(client, batch).item()
        client.scratch["replay"] = client.rng("replay")
        replay, guessed = method.sample_replay(client)
        images, labels = torch.cat([batch.images, replay]), torch.cat([batch.labels, guessed])
        model, old = client.model, client.scratch["old"]
        f, f_old = model["cnn"](images), old["cnn"](images)
        known = set(client.state["known"].nonzero().flatten().tolist())
        own = set(client.current.classes)
        seen, distilled = torch.tensor(sorted(known | own)), torch.tensor(sorted(known - own))
        new = masked_cross_entropy(model["head"](f[:6]), batch.labels, client.classes)
        head = masked_cross_entropy(model["head"](f), labels, seen)
        gap = ((f - f_old) @ old["head"].weight.T).numpy()[:, distilled]
        kd = (gap**2).sum() / (14 * len(distilled))
    assert replay.shape == (8, 3, 16, 16) and len(distilled) > 0 and kd > 0
    assert total == pytest.approx((new + 0.7 * head + 0.3 * kd).item(), rel=1e-5)


def test_the_head_only_term_never_moves_the_body(second_task):
    method, client = second_task()
    images = client.train.batch(client.train_index[:6])
    f = client.model["cnn"](images.images)
    loss = method.head_term(client, f, images.labels)
    assert max(slopes(loss, list(client.model["cnn"].parameters()))) == 0
    assert min(slopes(loss, list(client.model["head"].parameters()))) > 0


def test_in_the_whole_loss_the_body_gets_nothing_of_the_head_only_term(second_task):
    found = []
    for weight in (0.0, 5.0):
        method, client = second_task(mfcl_ft=weight)
        loss = method.loss(client, client.train.batch(client.train_index[:6]))
        body, head = client.model["cnn"].cnn.layers[0].weight, client.model["head"].weight
        found.append(torch.autograd.grad(loss, [body, head]))
    assert torch.equal(found[0][0], found[1][0]) and not torch.equal(found[0][1], found[1][1])


def test_the_old_head_term_moves_the_body_only_and_the_old_model_never(second_task):
    method, client = second_task()
    images = method.sample_replay(client)[0]
    loss = method.old_head_term(client, client.model["cnn"](images), images)
    assert min(slopes(loss, [p for name, p in client.model["cnn"].named_parameters() if "weight" in name])) > 0
    assert max(slopes(loss, list(client.model["head"].parameters()))) == 0
    assert not any(
        p.requires_grad for part in ("old", "generator") for p in client.scratch[part].parameters() if part == "old"
    )


def test_the_old_head_term_is_zero_right_at_the_start_and_without_old_columns(played, smoke):
    method, clients, _ = played(smoke(method="mfcl"), 2)
    client = clients[0]
    client.task = 1
    method.receive(client, method.broadcast(0, Stage(1, 0)), Stage(1, 0))
    client.model.eval()
    images = method.sample_replay(client)[0]
    assert method.old_head_term(client, client.model["cnn"](images), images).item() == pytest.approx(0, abs=1e-12)
    client.state["known"] = method.holds(client)
    assert method.old_head_term(client, client.model["cnn"](images) + 1, images).item() == 0


def test_the_body_runs_once_per_step(second_task, monkeypatch):
    method, client = second_task()
    client.model.train()
    before = client.model["cnn"].cnn.layers[1].num_batches_tracked.item()
    method.loss(client, client.train.batch(client.train_index[:6]))
    assert client.model["cnn"].cnn.layers[1].num_batches_tracked.item() == before + 1


def test_replay_is_labelled_among_the_known_classes_by_the_old_model(second_task):
    method, client = second_task(mfcl_replay=40)
    images, labels = method.sample_replay(client)
    known = client.state["known"]
    assert known[labels].all() and not known.all() and not images.requires_grad
    old = client.scratch["old"]
    z = old["head"](old["cnn"](images))
    assert all(z[i, labels[i]] == z[i][known].max() for i in range(40))


def test_without_replay_terms_a_second_task_differs_from_fedavg_by_batchnorm_alone(second_task):
    method, client = second_task(mfcl_ft=0.0, mfcl_kd=0.0)
    batch = client.train.batch(client.train_index[:6])
    plain = masked_cross_entropy(method.logits(client, batch), batch.labels, client.classes)
    assert torch.allclose(method.loss(client, batch), plain)


# ---- server


def test_the_generator_is_kept_from_task_to_task_and_sent_once(federation, smoke):
    config = smoke(method="mfcl", tasks=3, classes_per_task=2)
    method, clients = federation(config)
    part = lambda state: {key: value.clone() for key, value in state.items() if key.startswith("generator.")}
    start, steps = part(method.server), []
    for report in federate(method, InProcess(method, clients)):
        sent = part(method.broadcast(0, Stage(report.task, report.round)))
        assert set(sent) == (set(start) if report.task > 0 and report.round == 0 else set())
        steps.append(method.server["generator.start.num_batches_tracked"].item())
        if report.task > 0 and report.round == 0:
            held = part(clients[1].state)
            assert all(torch.equal(value, held[key]) for key, value in part(method.server).items())
    assert steps == [0, 5, 5, 10, 10, 10]
    assert not torch.equal(start["generator.first.weight"], method.server["generator.first.weight"])


def test_training_brings_the_images_closer_to_the_statistics_and_spreads_the_classes(played, smoke):
    def found(**values):
        method, *_ = played(smoke(method="mfcl", epochs=4, mfcl_batch=32, mfcl_latent=16, **values), 2)
        teacher, generator = method.teacher(), method.load_generator(method.server).train()
        with Statistics(batchnorm_layers(teacher, "mfcl", "tiny")) as statistics, torch.no_grad():
            images = generator(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)))
            logits = teacher["head"](teacher["cnn"](images))[:, method.known_classes()]
        return kl_gap(statistics.batch(), statistics.running()).item(), imbalance(logits).item()

    few, many = found(mfcl_steps=1), found(mfcl_steps=40)
    assert many[0] < 0.7 * few[0]
    without, with_it = (found(mfcl_steps=40, mfcl_bn=0.0, mfcl_ie=weight)[1] for weight in (0.0, 10.0))
    assert with_it < 0.7 * without


def test_the_entropy_term_by_hand():
    alike = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    assert imbalance(alike).item() == pytest.approx(0, abs=1e-5)
    assert imbalance(torch.tensor([[90.0, 0.0, 0.0]] * 3)).item() == pytest.approx(1, abs=1e-5)
    p = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    assert imbalance(torch.tensor([[1.0, 0.0]])).item() == pytest.approx(
        1 + (p * np.log(p)).sum() / math.log(2), rel=1e-5
    )
    assert imbalance(torch.zeros(4, 1)).item() == pytest.approx(1)  # one class alone has no spread


def test_roughness_by_hand():
    assert roughness(torch.full((2, 3, 8, 8), 0.7)).item() == pytest.approx(0, abs=1e-12)
    image = torch.randn(1, 3, 7, 6, generator=torch.Generator().manual_seed(0))
    x, total = image.double().numpy()[0], []
    window = np.array([[math.exp(-(i * i + j * j) / (2 * SIGMA**2)) for j in range(-2, 3)] for i in range(-2, 3)])
    for c in range(3):
        for row in range(2, 5):
            for column in range(2, 4):
                near = x[c, row - 2 : row + 3, column - 2 : column + 3]
                total.append((x[c, row, column] - (near * window / window.sum()).sum()) ** 2)
    assert roughness(image).item() == pytest.approx(np.mean(total), rel=1e-5)


def test_the_teacher_has_no_hooks_left_and_is_not_changed(federation, smoke, monkeypatch):
    method, clients = federation(smoke(method="mfcl"))
    teachers, plain = [], method.teacher
    monkeypatch.setattr(method, "teacher", lambda: teachers.append(plain()) or teachers[-1])
    list(federate(method, InProcess(method, clients)))
    (teacher,) = teachers
    layers = [layer for layer in teacher.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert layers and not any(layer._forward_pre_hooks for layer in layers)
    sent = {key.removeprefix("old."): value for key, value in clients[0].state.items() if key.startswith("old.")}
    assert all(torch.equal(value, sent[key]) for key, value in teacher.state_dict().items())


def test_the_sheet_is_drawn_from_the_generator(played, smoke):
    method, *_ = played(smoke(method="mfcl"), 2)
    sheet = method.sheet(0)
    assert sheet.shape == (64, 16, 16, 3) and sheet.dtype == np.uint8 and sheet.std() > 5
    assert np.array_equal(sheet, method.sheet(0)) and method.sheet(1) is None


@pytest.mark.parametrize("profile", ["demo", "mini", "full", "colab", "paper"])
def test_every_profile_has_the_official_number_of_generated_images_in_a_step(profile):
    config = experiment(method="mfcl", profile=profile, dataset="cifar100")
    assert (config.mfcl_replay, config.mfcl_batch, config.mfcl_steps) == (128, 128, 100)


def test_generated_images_are_not_augmented(second_task, monkeypatch):
    method, client = second_task(augment="crop_flip")
    batch, phase = client.train.batch(client.train_index[:6]), method.phases(client, Stage(1, 0))[0]
    real, seen, term = phase.augment(batch.images), [], method.old_head_term
    batch.images = real
    monkeypatch.setattr(
        method, "old_head_term", lambda client, f, images: (seen.append(images), term(client, f, images))[1]
    )
    method.loss(client, batch)
    client.scratch["replay"] = client.rng("replay")
    assert torch.equal(seen[0][:6], real) and torch.equal(seen[0][6:], method.sample_replay(client)[0])
