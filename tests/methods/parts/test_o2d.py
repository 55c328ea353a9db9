"""One-by-One Distillation: the closed form is the minimum of Eq. 5, and gradient steps go there."""

import pytest
import torch

from lscl.config import experiment
from lscl.methods.parts.o2d import (
    MOMENTUM,
    o2d_exact,
    o2d_loss,
    o2d_sgd,
    o2d_shared,
    pack_triangle,
    second_moments,
    unpack_triangle,
)


def problem(clients=4, outputs=6, m=3, strength=0.5, seed=0, dtype=torch.float64):
    """Generators W_k (P, m + 1), features F_k of unlike sizes and scales, their second moments."""
    draw = torch.Generator().manual_seed(seed)
    weights = [torch.randn(outputs, m + 1, generator=draw, dtype=dtype) for _ in range(clients)]
    scales = [torch.rand(m, generator=draw, dtype=dtype) + 0.3 for _ in range(clients)]
    features = [torch.randn(5 + 3 * k, m, generator=draw, dtype=dtype) * scales[k] + k / 3 for k in range(clients)]
    return weights, features, [second_moments(f) for f in features], strength


def by_features(k, weight, weights, features, strength):
    """Eq. 5 as written: mean over teachers of the mean over their features, lambda in mean eigenvalues."""
    teachers = [j for j in range(len(weights)) if j != k]
    total, eigenvalue = 0.0, 0.0
    for j in teachers:
        for f in features[j]:
            extended = torch.cat([f, torch.ones(1, dtype=torch.float64)])
            gap = weight @ extended - weights[j] @ extended
            total += float(gap @ gap) / len(features[j]) / len(teachers)
            eigenvalue += float(extended @ extended) / len(extended) / len(features[j]) / len(teachers)
    return total + strength * eigenvalue * float((weight - weights[k]).square().sum())


def test_the_loss_is_eq_5():
    weights, features, moments, strength = problem()
    for k in range(4):
        weight = weights[k] + torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
        assert float(o2d_loss(k, weight, weights, moments, strength)) == pytest.approx(
            by_features(k, weight, weights, features, strength), rel=1e-12
        )


@pytest.mark.parametrize("strength", [1e-3, 1.0, 30.0])
def test_the_gradient_of_the_loss_is_zero_at_the_closed_form(strength):
    weights, _, moments, _ = problem()
    for k, found in enumerate(o2d_exact(weights, moments, strength)):
        at = found.clone().requires_grad_()
        o2d_loss(k, at, weights, moments, strength).backward()
        own = weights[k].clone().requires_grad_()
        o2d_loss(k, own, weights, moments, strength).backward()
        assert at.grad.abs().max() < 1e-10 * own.grad.abs().max()


def test_no_perturbation_has_a_lower_loss_than_the_closed_form():
    weights, features, moments, strength = problem()
    draw = torch.Generator().manual_seed(3)
    for k, found in enumerate(o2d_exact(weights, moments, strength)):
        least = by_features(k, found, weights, features, strength)
        assert least < by_features(k, weights[k], weights, features, strength)
        for size in (1e-3, 1e-2, 1.0):
            for _ in range(5):
                step = size * torch.randn(found.shape, dtype=torch.float64, generator=draw)
                assert by_features(k, found + step, weights, features, strength) > least


def test_gradient_steps_converge_to_the_closed_form():
    weights, _, moments, strength = problem(clients=3)
    exact = o2d_exact(weights, moments, strength)
    near = o2d_sgd(weights, moments, strength, lr=1.0, epochs=4000)
    few = o2d_sgd(weights, moments, strength, lr=1.0, epochs=5)
    for k in range(3):
        start = (weights[k] - exact[k]).norm()
        assert (near[k] - exact[k]).norm() < 1e-3 * start < (few[k] - exact[k]).norm() < start


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_size_of_features_does_not_matter_to_the_gradient_steps(scale):
    """They are in proportion to the curvature: with its default the loss ends below its start and near the optimum."""
    weights, features, _, strength = problem(clients=5)
    moments = [second_moments(scale * f) for f in features]
    exact = o2d_exact(weights, moments, strength)
    for k, found in enumerate(o2d_sgd(weights, moments, strength, lr=1.0, epochs=100)):
        loss = lambda weight, k=k: o2d_loss(k, weight, weights, moments, strength)
        assert loss(found) <= min(1.05 * loss(exact[k]), loss(weights[k]))


def test_on_real_uploads_the_default_steps_end_within_a_twentieth_of_the_closed_form(played, few_glyphs):
    """The uploads of the first round of mini, with fewer images: the features and generators are trained ones."""
    config = experiment(profile="mini", method="fed_lscl", tasks=1, threads=1)
    _, _, log = played(config, 1, few_glyphs(40, 6, 1))
    uploads = log[0][2].values()
    weights = [torch.cat([sent["weight"], sent["bias"][:, None]], dim=1) for sent in uploads]
    moments, strength = [second_moments(sent["features"]) for sent in uploads], config.o2d_lambda
    assert (len(weights), config.features, config.o2d_epochs) == (5, 128, 100)
    exact = o2d_exact(weights, moments, strength)
    for k, found in enumerate(o2d_sgd(weights, moments, strength, config.o2d_lr, config.o2d_epochs)):
        start, least, end = (o2d_loss(k, one, weights, moments, strength) for one in (weights[k], exact[k], found))
        assert least <= end <= 1.05 * least < start


def test_the_steps_are_those_that_every_row_of_the_generator_would_take():
    weights, _, moments, strength = problem()
    found = o2d_sgd(weights, moments, strength, 0.7, 3)
    for k in range(4):
        teachers = [j for j in range(4) if j != k]
        mean = sum(moments[j] for j in teachers) / 3
        pull = strength * float(mean.trace()) / len(mean)
        steepest = max(float(torch.linalg.eigvalsh(moments[j])[-1]) for j in teachers) + pull
        student, velocity = weights[k].clone(), torch.zeros_like(weights[k])
        for step in range(9):
            j = teachers[step % 3]
            slope = 2 * (student - weights[j]) @ moments[j] + 2 * pull * (student - weights[k])
            velocity = slope if step == 0 else MOMENTUM * velocity + slope
            student = student - 0.7 / (2 * steepest) * (1 - step / 9) * (slope + MOMENTUM * velocity)
        assert torch.allclose(found[k], student, rtol=1e-10, atol=1e-12)


def test_gradient_steps_leave_the_uploads_as_they_were():
    weights, _, moments, strength = problem()
    before = [weight.clone() for weight in weights]
    o2d_sgd(weights, moments, strength, lr=1.0, epochs=2)
    o2d_exact(weights, moments, strength)
    assert all(torch.equal(one, other) for one, other in zip(weights, before))


def test_equal_second_moments_and_no_pull_give_the_mean_of_the_other_teachers():
    """Eq. 6 of the paper."""
    weights, _, moments, _ = problem()
    for k, found in enumerate(o2d_exact(weights, [moments[0]] * 4, 1e-12)):
        mean = sum(weights[j] for j in range(4) if j != k) / 3
        assert (found - mean).abs().max() < 1e-8


def test_unequal_second_moments_do_not_give_the_mean():
    weights, _, moments, _ = problem()
    for k, found in enumerate(o2d_exact(weights, moments, 1e-12)):
        others = [j for j in range(4) if j != k]
        mean = sum(weights[j] for j in others) / 3
        assert (found - mean).abs().max() > 0.1
        weighted = torch.linalg.solve(
            sum(moments[j] for j in others).T, sum(weights[j] @ moments[j] for j in others).T
        ).T
        assert (found - weighted).abs().max() < 1e-6


def test_a_strong_pull_keeps_the_own_generator():
    weights, _, moments, _ = problem()
    for found, own in zip(o2d_exact(weights, moments, 1e9), weights):
        assert (found - own).abs().max() < 1e-6


def test_the_pull_is_in_units_of_the_features():
    """Features ten times as large, weights a tenth: the same generators in other units (all but the constant 1)."""
    weights, features, _, strength = problem()
    moments = [second_moments(f)[:3, :3] for f in features]
    plain = o2d_exact([w[:, :3] for w in weights], moments, strength)
    scaled = o2d_exact([w[:, :3] / 10 for w in weights], [100 * c for c in moments], strength)
    assert all(torch.allclose(one / 10, other, rtol=1e-10) for one, other in zip(plain, scaled))


def test_the_order_of_the_clients_does_not_matter():
    weights, _, moments, strength = problem()
    plain, turned = o2d_exact(weights, moments, strength), o2d_exact(weights[::-1], moments[::-1], strength)
    assert all(torch.allclose(one, other, rtol=1e-12) for one, other in zip(plain, turned[::-1]))


@pytest.mark.parametrize("solve", [o2d_exact, lambda *given: o2d_sgd(*given, lr=1.0, epochs=3)])
def test_one_client_gets_its_own_generator_back(solve):
    weights, _, moments, strength = problem(clients=1)
    (found,) = solve(weights, moments, strength)
    assert torch.equal(found, weights[0]) and found.data_ptr() != weights[0].data_ptr()


@pytest.mark.parametrize("solve", [o2d_exact, lambda *given: o2d_sgd(*given, lr=1.0, epochs=3)])
def test_without_any_features_everybody_keeps_the_own_generator(solve):
    weights, _, _, strength = problem()
    moments = [second_moments(torch.empty(0, 3))] * 4
    assert all(torch.equal(one, other) for one, other in zip(solve(weights, moments, strength), weights))


def test_a_client_without_features_still_learns_from_the_others():
    weights, _, moments, strength = problem(clients=2)
    moments[0] = second_moments(torch.empty(0, 3))
    first, second = o2d_exact(weights, moments, strength)
    assert torch.equal(second, weights[1]) and (first - weights[0]).norm() > 0.1


@pytest.mark.parametrize("solve", [o2d_exact, lambda *given: o2d_sgd(*given, lr=1.0, epochs=3)])
def test_generators_keep_their_type(solve):
    weights, _, moments, strength = problem(dtype=torch.float32)
    assert all(found.dtype == torch.float32 for found in solve(weights, moments, strength))


def test_second_moments_are_the_mean_of_outer_products():
    f = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert second_moments(f).tolist() == [[5.0, -0.5, 2.0], [-0.5, 2.5, 0.5], [2.0, 0.5, 1.0]]
    assert second_moments(f).dtype == torch.float64
    assert torch.equal(second_moments(torch.empty(0, 2)), torch.zeros(3, 3))


@pytest.mark.parametrize("size", [1, 2, 5, 17, 129])
def test_packing_is_undone_by_unpacking(size):
    half = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    symmetric = half + half.T
    packed = pack_triangle(symmetric)
    assert packed.shape == (size * (size + 1) // 2,) and torch.equal(unpack_triangle(packed), symmetric)
    assert pack_triangle(torch.tensor([[1, 2, 3], [2, 4, 5], [3, 5, 6]])).tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("n", "m"), [(3, 4), (18, 16), (100, 128), (333, 65), (41, 512)])
def test_packed_second_moments_are_the_second_moments_bit_for_bit(n, m):
    moments = second_moments(torch.randn(n, m, generator=torch.Generator().manual_seed(n)))
    assert torch.equal(unpack_triangle(pack_triangle(moments)), moments)


# ---- one generator for all


@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_the_shared_generator_is_where_the_loss_over_all_uploads_is_flat(strength):
    weights, features, moments, _ = problem()
    at = o2d_shared(weights, moments, strength).requires_grad_()
    ones = [torch.cat([f, torch.ones(len(f), 1, dtype=torch.float64)], dim=1) for f in features]
    fits = [((at - one) @ x.T).square().sum() / len(x) for one, x in zip(weights, ones, strict=True)]
    eigenvalue = sum(float(x.square().sum()) / len(x) / x.shape[1] for x in ones) / len(ones)
    loss = sum(fits) / len(fits) + strength * eigenvalue * (at - sum(weights) / len(weights)).square().sum()
    (slope,) = torch.autograd.grad(loss, at)
    assert slope.abs().max() < 1e-10 and loss.detach() > 0


def test_the_shared_generator_is_the_mean_where_all_see_the_same_or_nothing():
    weights, _, moments, _ = problem(dtype=torch.float64)
    mean = sum(weights) / len(weights)
    assert torch.allclose(o2d_shared(weights, [moments[0]] * 4, 0.5), mean, atol=1e-10)
    assert torch.allclose(o2d_shared(weights, moments, 1e9), mean, atol=1e-6)
    assert torch.equal(o2d_shared(weights, [torch.zeros(4, 4, dtype=torch.float64)] * 4, 0.5), mean)
    assert not torch.allclose(o2d_shared(weights, moments, 1e-3), mean, atol=1e-2)
    assert o2d_shared([one.float() for one in weights], moments, 0.5).dtype == torch.float32


@pytest.mark.parametrize("m", [16, 128])
def test_the_constant_sets_the_unit_of_lambda_so_the_bias_is_fused_and_most_of_the_weights_stay(m):
    """The unit is 1 / m for layer-normalised features, and beside 1 no direction of such features weighs much."""
    draw = torch.Generator().manual_seed(0)
    normalised = torch.nn.functional.layer_norm(torch.randn(4000, m, generator=draw, dtype=torch.float64), (m,))
    moments = second_moments(normalised / m)
    assert float(moments.trace()) / (m + 1) == pytest.approx(1 / m, rel=1e-4)
    bias, weight = torch.zeros(1, m + 1, dtype=torch.float64), torch.zeros(1, m + 1, dtype=torch.float64)
    bias[0, -1], weight[0, :-1] = 1, torch.randn(m, generator=draw, dtype=torch.float64)
    for own, least, most in ((bias, 0, 0.02), (weight, 0.7, 1)):
        fused = o2d_exact([own, torch.zeros_like(own)], [moments, moments], 0.17)[0]
        assert least <= float(fused.norm() / own.norm()) <= most
