"""What a client does when the server asks."""

import pytest
import torch

from lscl.federation.method import Phase, Stage
from lscl.federation.training import answer, fit
from lscl.models.cnn import TORCHVISION


@pytest.fixture
def setting(federation, smoke):
    method, clients = federation(smoke())
    clients[0].task = 0
    return method, clients[0]


def batches_of(client, epochs, batch, seed=0):
    """The positions that `fit` trains on, step by step."""
    seen, weight = [], torch.nn.Parameter(torch.ones(1))

    def loss(_, part):
        seen.append(part.index.tolist())
        return (weight * len(part.index)).sum()

    fit(client, Phase([{"params": [weight], "lr": 0.1}], loss, epochs, batch), torch.Generator().manual_seed(seed))
    return seen, weight.item()


def test_every_epoch_sees_every_image_of_the_task_once_in_a_new_order(setting):
    _, client = setting
    count = len(client.train_index)
    steps = -(-count // 4) - (count % 4 == 1)
    seen, _ = batches_of(client, 2, 4)
    assert len(seen) == 2 * steps and all(2 <= len(part) <= 5 for part in seen)
    first, second = (sum(seen[start : start + steps], []) for start in (0, steps))
    assert sorted(first) == sorted(second) == client.train_index.tolist() and first != second


def test_the_order_depends_on_the_generator_alone(setting):
    _, client = setting
    torch.manual_seed(1)
    one = batches_of(client, 1, 4)
    torch.manual_seed(2)
    assert batches_of(client, 1, 4) == one and batches_of(client, 1, 4, seed=1)[0] != one[0]


def test_every_phase_starts_with_a_fresh_adam(setting):
    """Adam's first step is the learning rate, whatever the gradient; with a used one it would not be."""
    _, client = setting
    _, once = batches_of(client, 1, 100)
    assert once == pytest.approx(0.9, abs=1e-6)
    assert batches_of(client, 1, 100)[1] == once


def test_no_batch_is_a_single_image_left_over(setting):
    """BatchNorm cannot train on one value per channel."""
    _, client = setting
    count = len(client.train_index)
    for batch in range(2, count):
        seen, _ = batches_of(client, 1, batch)
        assert min(map(len, seen)) >= 2 and sorted(sum(seen, [])) == client.train_index.tolist()


@pytest.mark.parametrize("name", [name for name in TORCHVISION if name not in ("vgg16_bn", "resnet18")])
def test_a_deep_cnn_trains_on_small_images_with_any_number_of_them(federation, smoke, toy, name):
    """Their last maps have one pixel, so a batch of one image would be an error."""
    config = smoke(cnn=name, clients=1, tasks=1, classes_per_task=1, private_classes=1, batch=2, image_size=32)
    method, clients = federation(config, toy(1, 3, 1, size=32))
    upload = answer(method, clients[0], Stage(0, 0), method.broadcast(0, Stage(0, 0)))
    assert all(value.isfinite().all() for value in upload.values())


def test_training_is_in_training_mode_and_the_upload_in_evaluation_mode(setting):
    method, client = setting
    modes = []

    class Watched(type(method)):
        def loss(self, client, batch):
            modes.append(("loss", client.model.training))
            return super().loss(client, batch)

        def upload(self, client, stage):
            modes.append(("upload", client.model.training))
            return super().upload(client, stage)

    method.__class__ = Watched
    answer(method, client, Stage(0, 0), method.broadcast(0, Stage(0, 0)))
    assert set(modes) == {("loss", True), ("upload", False)}


def test_a_task_starts_once_and_ends_once(setting):
    method, client = setting
    calls = []

    class Watched(type(method)):
        def start_task(self, client):
            calls.append(("start", client.task, client.round))

        def end_task(self, client):
            calls.append(("end", client.task, client.round))
            super().end_task(client)

    method.__class__ = Watched
    for stage in (Stage(1, 0), Stage(1, 1), Stage(1, 1, "finish")):
        answer(method, client, stage, method.broadcast(0, stage))
    assert calls == [("start", 1, 0), ("end", 1, 1)]


def test_a_clients_answer_is_the_same_whatever_was_drawn_before(setting, federation, smoke):
    method, client = setting
    torch.manual_seed(1)
    one = answer(method, client, Stage(0, 0), method.broadcast(0, Stage(0, 0)))
    after = torch.rand(1)
    method, clients = federation(smoke())
    torch.manual_seed(2)
    other = answer(method, clients[0], Stage(0, 0), method.broadcast(0, Stage(0, 0)))
    assert all(torch.equal(one[name], other[name]) for name in one)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)  # and draws nothing from the global generator


def test_the_finish_answers_with_right_answers_only(setting):
    method, client = setting
    answer(method, client, Stage(0, 0), method.broadcast(0, Stage(0, 0)))
    scores = answer(method, client, Stage(0, 0, "finish"), method.broadcast(0, Stage(0, 0, "finish")))
    assert set(scores) == {"correct", "total", "ridge"} and scores["total"].tolist() == [2, 2, 2]


def test_a_phase_changes_the_images_of_its_steps(setting):
    _, client = setting
    seen, weight = [], torch.nn.Parameter(torch.ones(1))

    def loss(_, part):
        seen.append(part)
        return weight.sum()

    phase = Phase([{"params": [weight], "lr": 0.1}], loss, 1, 4, augment=lambda images: images + 1)
    fit(client, phase, torch.Generator().manual_seed(0))
    for part in seen:
        plain = client.train.batch(part.index)
        assert torch.equal(part.images, plain.images + 1) and torch.equal(part.prefix, plain.prefix)
