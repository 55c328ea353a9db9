"""One client: its images as the networks take them, its stream of tasks, its private state."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lscl.federation.client import resize


@pytest.fixture
def client(federation, smoke):
    return federation(smoke())[1][1]


def test_a_batch_has_labels_images_and_tokens_of_the_same_positions(client, toy):
    data, index = toy(), torch.tensor([70, 3, 14])
    batch = client.train.batch(index)
    assert batch.labels.tolist() == data.train.labels[[70, 3, 14]].tolist() == [11, 0, 2]
    assert batch.images.shape == (3, 3, 16, 16) and batch.images.dtype == torch.float32
    assert torch.equal(batch.prefix, torch.from_numpy(client.train.prefix[[70, 3, 14]])) and batch.prefix.shape == (
        3,
        17,
        32,
    )


def test_pixels_0_to_255_become_minus_2_to_2_channels_first(client, toy):
    pixels = toy().train.images[5]
    image = client.train.batch(torch.tensor([5])).images[0].numpy()
    assert np.allclose(image, (pixels.transpose(2, 0, 1) / 255 - 0.5) / 0.25, atol=1e-6)
    assert image.min() >= -2 and image.max() <= 2


def test_resizing_leaves_images_of_that_size_alone():
    images = torch.rand(2, 3, 32, 32)
    assert resize(images, 32) is images
    assert resize(images, 16).shape == (2, 3, 16, 16) and resize(images, 48).shape == (2, 3, 48, 48)
    assert resize(torch.full((1, 3, 64, 64), 0.3), 32).sub(0.3).abs().max() < 1e-6


def test_the_cnn_may_see_the_images_at_another_size(client, toy):
    index = torch.tensor([5, 7])
    small = client.train.batch(index).images
    large = replace(client.train, side=24).batch(index).images
    assert large.shape == (2, 3, 24, 24) and torch.equal(large, resize(small, 24))


def test_the_current_task_follows_the_partition(client):
    for task in range(2):
        client.task = task
        part = client.partition.tasks[1][task]
        assert client.current == part and client.classes.tolist() == list(part.classes)
        assert client.train_index.tolist() == list(part.train) and client.test_index(task).tolist() == list(part.test)
        assert set(client.train.batch(client.train_index).labels.tolist()) == set(part.classes)
        assert set(client.test.batch(client.test_index(task)).labels.tolist()) == set(part.classes)


def test_draws_depend_on_purpose_client_task_and_round_only(client, federation, smoke):
    def draw(one, purpose, task, number):
        one.task, one.round = task, number
        return one.rng(purpose).initial_seed()

    other = federation(smoke())[1][0]
    seen = {draw(one, *key) for one in (client, other) for key in (("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1))}
    assert len(seen) == 8
    assert draw(client, "a", 0, 0) == draw(federation(smoke())[1][1], "a", 0, 0)


def test_private_state_is_the_whole_model_and_everything_kept(client, federation, smoke):
    client.state["buffer"] = torch.tensor([3, 1])
    client.scratch["losses"] = torch.ones(3)
    for parameter in client.model.parameters():
        torch.nn.init.normal_(parameter)
    saved = {name: value.clone() for name, value in client.private_state().items()}
    assert not any("losses" in name for name in saved)
    fresh = federation(smoke())[1][1]
    fresh.state["old"] = torch.zeros(1)
    fresh.load_private_state(saved)
    assert set(fresh.state) == {"buffer"} and torch.equal(fresh.state["buffer"], client.state["buffer"])
    assert all(torch.equal(value, fresh.model.state_dict()[name]) for name, value in client.model.state_dict().items())
