"""Merging linear layers by regression on their inputs."""

import pytest
import torch

from lscl.methods.parts.gram import (
    InputSquares,
    damp_off_diagonal,
    gram_matrix,
    merge_inner_factors,
    merge_layers,
    merge_outer_factors,
    merge_tasks,
)
from lscl.methods.parts.o2d import pack_triangle, unpack_triangle
from lscl.models.vit import LowRank

RANK, WIDTH, OUT = 2, 6, 5


@pytest.fixture
def clients():
    """Three clients' inputs (n, in) of scales that differ by feature and client; their B and A, the shared A and B."""
    draw = torch.Generator().manual_seed(0)
    scales = torch.rand(3, WIDTH, generator=draw) * 3
    inputs = [torch.randn(20 + 10 * k, WIDTH, generator=draw) * scales[k] for k in range(3)]
    outer = [torch.randn(OUT, RANK, generator=draw) for _ in range(3)]
    inner = [torch.randn(RANK, WIDTH, generator=draw) for _ in range(3)]
    return inputs, outer, inner


def cost(layer, layers, diagonals):
    """sum_i ||(W - W_i) X_i^T||^2 for inputs whose Gram matrices are diagonal."""
    return float(
        sum(((layer.double() - other.double()).square() * diagonal).sum() for other, diagonal in zip(layers, diagonals))
    )


def diagonals_of(inputs):
    return [x.double().square().sum(0) for x in inputs]


def test_input_squares_sum_over_images_and_tokens_and_change_nothing():
    low, diagonal = LowRank(torch.randn(2, 6), torch.randn(5, 2), 1.0), torch.zeros(6, dtype=torch.float64)
    recorded = InputSquares(low, diagonal)
    total = torch.zeros(6, 6, dtype=torch.float64)
    for _ in range(2):
        x, out = torch.randn(3, 4, 6), torch.randn(3, 4, 5)
        assert torch.equal(recorded.add_to(out, x), low.add_to(out, x))
        total += gram_matrix(x.flatten(0, 1))
    assert torch.allclose(diagonal, total.diagonal(), rtol=1e-6)


def test_a_gram_matrix_survives_packing_and_damping_leaves_its_diagonal():
    moments = gram_matrix(torch.randn(9, 4))
    assert torch.allclose(unpack_triangle(pack_triangle(moments)), moments) and len(pack_triangle(moments)) == 10
    half = damp_off_diagonal(moments, 0.5)
    assert torch.equal(half.diagonal(), moments.diagonal()) and torch.allclose(half.triu(1), 0.5 * moments.triu(1))
    assert torch.equal(damp_off_diagonal(moments, 1.0), moments) and torch.equal(
        damp_off_diagonal(moments, 0.0), torch.diag(moments.diagonal())
    )


def test_the_merged_outer_factor_keeps_the_outputs_better_than_the_average(clients):
    inputs, outer, inner = clients
    A, diagonals = inner[0], diagonals_of(inputs)
    layers = [B @ A for B in outer]
    merged = merge_outer_factors(outer, A, diagonals)
    best = cost(merged @ A.double(), layers, diagonals)
    assert best < 0.98 * cost(sum(outer) / 3 @ A, layers, diagonals)
    for _ in range(20):
        assert best < cost((merged + 0.01 * torch.randn(OUT, RANK)) @ A.double(), layers, diagonals)


def test_the_merged_inner_factor_keeps_the_outputs_better_than_the_average(clients):
    inputs, outer, inner = clients
    B, diagonals = outer[0].double(), diagonals_of(inputs)
    layers = [B @ A.double() for A in inner]
    merged = merge_inner_factors(inner, diagonals)
    best = cost(B @ merged, layers, diagonals)
    assert best < 0.98 * cost(B @ (sum(inner) / 3).double(), layers, diagonals)
    for _ in range(20):
        assert best < cost(B @ (merged + 0.01 * torch.randn(RANK, WIDTH)), layers, diagonals)


def test_a_whole_layer_is_merged_by_its_true_outputs(clients):
    inputs, _, _ = clients
    layers = [torch.randn(OUT, WIDTH) for _ in inputs]

    def outputs(layer):
        return float(
            sum(((layer.double() - other.double()) @ x.double().T).square().sum() for other, x in zip(layers, inputs))
        )

    merged = merge_layers(layers, [gram_matrix(x) for x in inputs])
    assert outputs(merged) < 0.98 * outputs(sum(layers) / 3)
    assert all(outputs(merged) < outputs(merged + 0.01 * torch.randn(OUT, WIDTH)) for _ in range(20))


def test_equal_gram_matrices_give_the_average(clients):
    inputs, outer, inner = clients
    diagonals = diagonals_of(inputs[:1] * 3)
    assert torch.allclose(merge_outer_factors(outer, inner[0], diagonals).float(), sum(outer) / 3, atol=1e-6)
    assert torch.allclose(merge_inner_factors(inner, diagonals).float(), sum(inner) / 3, atol=1e-6)
    assert torch.allclose(merge_layers(outer, [torch.eye(RANK)] * 3).float(), sum(outer) / 3, atol=1e-6)


def test_one_client_gets_its_own_back(clients):
    inputs, outer, inner = clients
    diagonals = diagonals_of(inputs[:1])
    assert torch.allclose(merge_outer_factors(outer[:1], inner[0], diagonals).float(), outer[0], atol=1e-6)
    assert torch.equal(merge_inner_factors(inner[:1], diagonals).float(), inner[0])
    layer = torch.randn(OUT, WIDTH)
    assert torch.allclose(
        merge_layers([layer], [damp_off_diagonal(gram_matrix(inputs[0]), 0.5)]).float(), layer, atol=1e-5
    )


def test_inputs_that_are_always_zero_do_no_harm(clients):
    inputs, outer, inner = clients
    diagonals = [diagonal * torch.tensor([1, 0, 1, 1, 0, 1]) for diagonal in diagonals_of(inputs)]
    assert torch.allclose(merge_inner_factors(inner, diagonals)[:, [1, 4]].float(), (sum(inner) / 3)[:, [1, 4]])
    A, B = merge_tasks(inner, outer, diagonals)
    assert (B @ A)[:, [1, 4]].abs().max() == 0 and A.isfinite().all()
    nothing = [torch.zeros(WIDTH)] * 3
    assert all(
        value.isfinite().all()
        for value in (merge_outer_factors(outer, inner[0], nothing), merge_inner_factors(inner, nothing))
    )


def test_dependent_rows_of_the_shared_factor_do_no_harm(clients):
    inputs, outer, inner = clients
    A = inner[0].clone()
    A[1] = 2 * A[0]
    merged, diagonals = merge_outer_factors(outer, A, diagonals_of(inputs)), diagonals_of(inputs)
    assert merged.isfinite().all() and merged.abs().max() < 100
    layers = [B @ A for B in outer]
    assert cost(merged @ A.double(), layers, diagonals) <= cost(sum(outer) / 3 @ A, layers, diagonals)


def test_the_factors_of_the_tasks_are_the_regression_with_whole_matrices(clients):
    inputs, outer, inner = clients
    diagonals = diagonals_of(inputs)
    A, B = merge_tasks(inner, outer, diagonals)
    assert A.shape == (3 * RANK, WIDTH) and B.shape == (OUT, 3 * RANK)
    Q = sum(b.double() @ a.double() @ torch.diag(g) for a, b, g in zip(inner, outer, diagonals))
    assert torch.allclose(B @ A, Q @ torch.linalg.pinv(torch.diag(sum(diagonals))))
    one = merge_tasks(inner[:1], outer[:1], diagonals[:1])
    assert torch.allclose(one[1] @ one[0], outer[0].double() @ inner[0].double())


def test_the_regression_keeps_each_tasks_outputs_better_than_the_mean(clients):
    inputs, outer, inner = clients
    diagonals = diagonals_of(inputs)
    layers = [b @ a for a, b in zip(inner, outer)]
    A, B = merge_tasks(inner, outer, diagonals)
    assert cost(B @ A, layers, diagonals) < 0.98 * cost(sum(layers) / 3, layers, diagonals)
