"""GLFC's encoder: labels and images out of gradients."""

import pytest
import torch
import torch.nn.functional as F

from lscl.methods.parts.inversion import (
    build_encoder,
    gradient_gaps,
    parameter_gradient,
    reconstruct_images,
    recover_class,
)


@pytest.fixture
def pair():
    """An encoder for 10 classes and four noisy images with labels."""
    return (
        build_encoder(10, 42),
        torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        torch.tensor([3, 0, 9, 3]),
    )


def test_the_encoder_has_the_official_size_and_range():
    network = build_encoder(100, 42)
    assert sum(p.numel() for p in network.parameters()) == 85_036 == 8136 + 769 * 100
    for p in network.parameters():
        assert p.abs().max() <= 0.5 and p.std() > 0.15
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


def test_all_draw_the_same_encoder_from_the_seed():
    torch.manual_seed(1)
    first = build_encoder(10, 42)
    torch.manual_seed(2)
    assert all(torch.equal(*both) for both in zip(first.parameters(), build_encoder(10, 42).parameters()))
    assert not torch.equal(first.fc.weight, build_encoder(10, 43).fc.weight)


def test_the_gradient_is_that_of_the_cross_entropy(pair):
    network, images, labels = pair
    found = parameter_gradient(network, images[:1], labels[:1])
    F.cross_entropy(network(images[:1]), labels[:1]).backward()
    assert torch.allclose(found, torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert found.shape == (8136 + 7690,)


def test_the_class_is_the_only_row_with_a_negative_sum(pair):
    network, images, labels = pair
    for image, label in zip(images.split(1), labels.split(1)):
        found = parameter_gradient(network, image, label)
        assert recover_class(found, 10) == label
        rows = found[-7690:-10].view(10, 768).sum(1)
        assert (rows < 0).tolist() == [c == label for c in range(10)]


def reconstruct(network, received, start, **options):
    """The images of one search for the label 3."""
    return reconstruct_images(network, received[None], torch.tensor([3]), start=start, **options)[0]


def test_gaps_and_their_slopes_are_those_of_each_image_alone(pair):
    network, images, labels = pair
    received = torch.randn(4, 8136 + 7690, generator=torch.Generator().manual_seed(2))
    gaps, slopes = gradient_gaps(network, received, labels, images)
    for i in range(4):
        image = images[i : i + 1].clone().requires_grad_()
        loss = F.cross_entropy(network(image), labels[i : i + 1])
        parts = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
        gap = (torch.cat([part.flatten() for part in parts]) - received[i]).square().sum()
        gap.backward()
        assert torch.allclose(gaps[i], gap, rtol=1e-5) and torch.allclose(slopes[i], image.grad[0], atol=1e-5)


def test_the_reconstruction_comes_closer_to_the_gradient_and_to_the_image(pair):
    network, images, labels = pair
    target = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32) * torch.tensor([1.0, -0.5, 0.2]).view(1, 3, 1, 1)
    start = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    received = parameter_gradient(network, target, labels[:1])
    found = reconstruct(network, received, start, steps=8, iterations=20, keep=3)
    assert found.shape == (3, 3, 32, 32) and not torch.equal(found[0], found[1])
    gap = lambda x: float((parameter_gradient(network, x, labels[:1]) - received).square().sum())
    gaps = [gap(start), gap(found[:1]), gap(found[2:])]
    assert gaps[2] < gaps[1] < gaps[0] and gaps[2] < 0.1 * gaps[0]
    assert (found[2] - target[0]).square().mean() < 0.9 * (start - target).square().mean()


def test_fewer_steps_than_images_to_keep_give_as_many_as_there_are(pair):
    network, images, labels = pair
    received = parameter_gradient(network, images[:1], labels[:1])
    assert reconstruct(network, received, images[1:2], steps=2, iterations=1, keep=20).shape == (2, 3, 32, 32)


def test_a_search_that_leaves_the_finite_numbers_ends_where_it_was_and_the_others_go_on(pair):
    network, images, labels = pair
    received = parameter_gradient(network, images[:1], labels[:1])
    start, options = images[1:2], {"steps": 3, "iterations": 2, "keep": 3}
    both = torch.stack([received * 1e38, received])
    broken, good = reconstruct_images(network, both, torch.tensor([3, 3]), start=start.repeat(2, 1, 1, 1), **options)
    assert torch.equal(broken, start.expand(3, 3, 32, 32))
    assert torch.allclose(good, reconstruct(network, received, start, **options), atol=1e-5)
    assert not torch.allclose(good[2], start[0], atol=1e-3)
