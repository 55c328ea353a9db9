"""Prototypes."""

import math

import pytest
import torch

from lscl.methods.parts.prototypes import class_means, merge_weights, prototype_distances


def test_a_distance_is_the_root_of_the_mean_squared_difference():
    features, prototypes = (
        torch.tensor([[1.0, 2.0, 3.0, 4.0]]),
        torch.tensor([[1.0, 2.0, 3.0, 0.0], [0.0, 1.0, 2.0, 3.0]]),
    )
    assert torch.allclose(prototype_distances(features, prototypes), torch.tensor([[2.0, 1.0]]))
    x, m = torch.randn(7, 32), torch.randn(5, 32)
    assert torch.allclose(prototype_distances(x, m), (x[:, None] - m).square().mean(2).sqrt(), atol=1e-5)


def test_at_the_prototype_itself_distance_and_gradient_are_finite():
    features = (1e3 * torch.randn(20, 64)).requires_grad_()
    found = prototype_distances(features, features.detach())
    found.sum().backward()
    assert found.isfinite().all() and features.grad.isfinite().all() and (found.diagonal() < 2).all()


def test_class_means_come_in_the_order_of_the_classes():
    features, labels = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]]), torch.tensor([4, 4, 1])
    assert class_means(features, labels, torch.tensor([1, 4])).tolist() == [[5.0, 5.0], [2.0, 1.0]]


def test_merge_weights_equal_a_calculation_by_hand():
    """Distances 3, 5, 7, so u = 1/3, 1/5, 1/7, which scale to 1, 0.3, 0."""
    copies, means = torch.tensor([[0.0], [4.0], [5.0]]), torch.tensor([[0.0], [3.0]])
    assert [sum(abs(float(c - m)) for m in means[:, 0]) for c in copies[:, 0]] == [3, 5, 7]
    scaled = [1, (1 / 5 - 1 / 7) / (1 / 3 - 1 / 7), 0]
    assert scaled[1] == pytest.approx(0.3)
    powers = [math.exp(value / 0.2) for value in scaled]
    assert merge_weights(copies, means, 0.2).tolist() == pytest.approx([power / sum(powers) for power in powers])


def test_the_nearest_copy_weighs_most_and_more_so_at_a_low_temperature():
    copies, means = torch.randn(5, 8), torch.randn(2, 8)
    total = torch.cdist(copies, means).sum(1)
    cold, warm = (merge_weights(copies, means, temperature) for temperature in (0.2, 5.0))
    assert cold.argsort(descending=True).tolist() == total.argsort().tolist() == warm.argsort(descending=True).tolist()
    assert cold.max() > warm.max() and float(cold.sum()) == pytest.approx(1) and (warm - 0.2).abs().max() < 0.05


@pytest.mark.parametrize("copies", [[[1.0, 1.0]], [[2.0, 0.0]] * 4, [[0.0, 0.0]] * 3])
def test_copies_that_are_equally_far_weigh_the_same(copies):
    weights = merge_weights(torch.tensor(copies), torch.zeros(1, 2), 0.2)
    assert weights.tolist() == [1 / len(copies)] * len(copies)


def test_a_copy_at_the_means_does_not_divide_by_zero():
    weights = merge_weights(torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]), torch.zeros(1, 2), 0.2)
    assert weights.isfinite().all() and weights[0] == pytest.approx(math.exp(5) / (math.exp(5) + 2), rel=1e-4)
