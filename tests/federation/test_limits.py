"""What a client may say, number by number."""

import pytest
import torch

from lscl.federation.limits import (
    LIMIT,
    ROUNDING,
    STEP,
    class_sums_check,
    counts_check,
    equality_check,
    gram_check,
    joint_moments_check,
    largest_magnitude,
    range_check,
    reach_check,
)
from lscl.methods.parts.o2d import pack_triangle, second_moments, unpack_triangle


def test_what_the_server_knows_is_the_only_answer():
    check = equality_check(torch.tensor([3, 1]))
    assert check(torch.tensor([3, 1])) is None
    assert check(torch.tensor([1, 3])) == "is 1, 3, the server knows 3, 1"
    assert (
        equality_check(torch.arange(9))(torch.zeros(9))
        == "is 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, ..., the server knows 0, 1, 2, 3, 4, 5, 6, 7, ..."
    )


def test_numbers_lie_between_two_others():
    check = range_check(0, 5)
    assert check(torch.tensor([0.0, 5.0])) is None and check(torch.empty(0, 3)) is None
    assert check(torch.tensor([1.0, -0.5])) == "holds -0.5, allowed are 0 to 5"
    counters = range_check(torch.tensor(2**40), torch.tensor(2**40 + 16))
    assert counters(torch.tensor(2**40 + 16)) is None
    assert all(counters(torch.tensor(value)) for value in (2**40 - 1, 2**40 + 17, -1, 2**63 - 1))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_no_gradients_bring_adam_further_than_the_bound(seed, scale):
    """Rising, falling, rare and alternating gradients; the last is the worst case: g grows as (b2 / b1)^t."""
    draw, lr, steps = torch.Generator().manual_seed(seed), 0.1, 300
    start = torch.randn(6, generator=draw)
    moved = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([moved], lr=lr)
    for t in range(steps):
        kinds = [1.0, (-1.0) ** t, float(t % 50 == 49), 1.05**t, 0.9**t, (0.999 / 0.9) ** min(t, 200)]
        moved.grad = scale * torch.tensor(kinds)
        optimiser.step()
    assert reach_check(start, lr, steps)(moved.detach()) is None
    assert largest_magnitude(moved.detach() - start) > lr * steps / 8  # so the bound is of the right size
    beyond = start + STEP * lr * steps * 1.01 + steps * ROUNDING * 5
    assert "away from what was sent, training reaches 240" in reach_check(start, lr, steps)(beyond)


def test_rounding_of_large_numbers_counts_as_training():
    start = torch.tensor([1e6])
    assert reach_check(start, 1e-9, 10)(start + 1.0) is None
    assert reach_check(start, 1e-9, 10)(start + 100.0) is not None


@pytest.mark.parametrize(("count", "scale"), [(30, 1), (3, 1), (4, 0), (0, 1), (3, 1e5)])
def test_moments_of_features_are_gram_matrices_also_in_single_precision(count, scale):
    packed = pack_triangle(second_moments(scale * torch.randn(count, 8)))
    assert (
        gram_check(unpack_triangle, LIMIT**2)(packed) is None
        and gram_check(unpack_triangle, LIMIT**2)(packed.float()) is None
    )


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ([[1.0, 2.0], [2.0, 1.0]], "eigenvalue below zero"),
        ([[0.0, 1.0], [1.0, 0.0]], "eigenvalue below zero"),
        ([[-1.0, 0.0], [0.0, 1.0]], "squares of -1 to 1"),
        ([[1.0, 0.0], [0.0, 101.0]], "squares of 1 to 101, allowed are 0 to 100"),
    ],
)
def test_other_matrices_are_none(matrix, words):
    found = gram_check(unpack_triangle, 100.0)(pack_triangle(torch.tensor(matrix, dtype=torch.float64)))
    assert words in found


def test_right_answers_are_no_more_than_images_and_fewer_where_more_classes_compete():
    check = counts_check(torch.tensor([4, 2]))
    assert check(torch.tensor([[4, 2], [3, 2], [0, 2]])) is None
    assert "holds 0 to 5" in check(torch.tensor([[5, 2], [3, 2], [0, 2]]))
    assert "holds -1 to 4" in check(torch.tensor([[4, 2], [3, 2], [0, -1]]))
    assert check(torch.tensor([[1, 2], [2, 2], [0, 2]])) == "is larger where more classes compete"


def test_the_largest_number_of_none_is_zero():
    assert largest_magnitude(torch.empty(0)) == 0 and largest_magnitude(torch.tensor([-3.0, 2.0])) == 3


def test_a_sum_of_vectors_is_no_longer_than_all_of_them():
    check = class_sums_check(torch.tensor([2, 0]), 3.0)
    assert check(torch.tensor([[6.0, 0.0], [0.0, 0.0]])) is None
    assert check(torch.tensor([[6.1, 0.0], [0.0, 0.0]])) == "has a sum of length 6.1, 2 images reach 6.006"
    assert check(torch.tensor([[0.0, 0.0], [0.0, 1.0]])) == "has a sum of length 1, 0 images reach 0"


def joint(features, labels, classes=2):
    both = torch.cat([features, torch.eye(classes, dtype=torch.float64)[labels]], dim=1)
    return both.T @ both


def test_sums_of_features_and_labels_belong_together():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(9, 4, generator=draw, dtype=torch.float64)
    labels, length = torch.tensor([0] * 4 + [1] * 5), float(features.norm(dim=1).max())
    check = joint_moments_check(unpack_triangle, torch.tensor([4, 5]), length)
    moments = joint(features, labels)
    assert check(pack_triangle(moments)) is None
    assert "other numbers of images than the 4, 5" in check(pack_triangle(joint(features, labels.roll(1).clamp(max=0))))
    assert "features of these images reach" in check(pack_triangle(joint(3 * features, labels)))
    larger = moments.clone()
    larger[:4, 4:] *= 4
    larger[4:, :4] *= 4
    assert check(pack_triangle(larger)) == "is no Gram matrix: it has an eigenvalue below zero"
