"""Noise on what goes up: how long, how large, and that the server still takes it."""

import math

import pytest
import torch
from tests_root import compared

from lscl.experiments.run import run
from lscl.methods.parts.closed_form import joint_moments
from lscl.methods.parts.noise import (
    add_noise,
    clip_length,
    nearest_gram,
    noisy_block,
    noisy_joint_moments,
    noisy_sums,
)
from lscl.methods.parts.o2d import pack_triangle, unpack_triangle


def draw():
    return torch.Generator().manual_seed(0)


def test_vectors_are_shortened_and_never_lengthened():
    found = clip_length(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), 1.0)
    assert torch.allclose(found, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_the_noise_has_the_deviation_asked_for():
    found = add_noise(torch.ones(20000), 0.5, draw())
    assert found.mean() == pytest.approx(1, abs=0.02) and found.std() == pytest.approx(0.5, abs=0.02)
    assert found.dtype == torch.float32


def test_a_block_is_clipped_as_one_vector_and_its_noise_is_in_units_of_its_sensitivity():
    parts = {"a": torch.full((300, 100), 3.0), "b": torch.full((100,), 4.0)}
    exact = noisy_block(parts, 1.0, 0.0, draw())
    assert math.sqrt(sum(float(value.square().sum()) for value in exact.values())) == pytest.approx(1.0, rel=1e-4)
    noisy = noisy_block(parts, 1.0, 0.25, draw())
    assert (noisy["a"] - exact["a"]).std() == pytest.approx(2 * 1.0 * 0.25, rel=0.05)


def test_the_nearest_gram_matrix_has_no_negative_eigenvalue_and_is_the_matrix_itself_if_it_is_one():
    noise = torch.randn(10, 10, generator=draw(), dtype=torch.float64)
    broken, good = pack_triangle(noise + noise.T), pack_triangle(noise @ noise.T)
    assert torch.linalg.eigvalsh(unpack_triangle(nearest_gram(broken)))[0] > -1e-9
    assert torch.allclose(nearest_gram(good), good)


def test_neighbouring_sums_are_no_farther_apart_than_the_noise_assumes():
    """Another image in the place of one: the worst of many draws against the sensitivity of the noise."""
    clip, worst, classes = 1.3, {"sums": 0.0, "gram": 0.0}, torch.arange(3)
    for seed in range(200):
        one = torch.Generator().manual_seed(seed)
        h, labels = torch.randn(5, 4, generator=one, dtype=torch.float64), torch.randint(3, (5,), generator=one)
        h = clip_length(10 * h, clip)
        other = torch.cat([-h[:1] if seed % 2 else h[1:2], h[1:]])
        pair = [joint_moments(value, labels, classes) for value in (h, other)]
        worst["gram"] = max(worst["gram"], float((pack_triangle(pair[0]) - pack_triangle(pair[1])).norm()))
        worst["sums"] = max(worst["sums"], float((pair[0][:4, 4:] - pair[1][:4, 4:]).norm()))
    assert clip < worst["sums"] <= 2 * clip + 1e-9
    assert clip < worst["gram"] <= math.sqrt(2 * clip**4 + 4 * clip**2)


def test_noisy_moments_are_those_of_as_many_images_and_without_noise_those_of_the_images():
    h = clip_length(torch.randn(20, 6, generator=draw(), dtype=torch.float64), 1.0)
    labels = torch.arange(20) % 3
    moments = joint_moments(h, labels, torch.arange(4))  # of the last class there is no image
    counts = moments.diagonal()[-4:]
    assert torch.allclose(noisy_joint_moments(moments, counts, 1.0, 0.0, draw()), moments, atol=1e-9)
    noisy = noisy_joint_moments(moments, counts, 1.0, 3.0, draw())
    assert torch.equal(noisy[-4:, -4:], torch.diag(counts)) and torch.linalg.eigvalsh(noisy)[0] > -1e-6
    assert noisy.diagonal()[:6].sum() <= 20 + 1e-6 and not torch.allclose(noisy, moments, atol=0.1)


def test_noisy_sums_are_no_longer_than_their_images_can_make_them():
    counts = torch.tensor([0, 1, 50])
    found = noisy_sums(torch.zeros(3, 40, dtype=torch.float64), counts, 1.0, 2.0, draw())
    assert (found.norm(dim=1) <= counts + 1e-9).all() and found[2].norm() > 1


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"o2d_upload": "gram"},
        {"o2d": "average"},
        {"o2d": "none"},
        {"method": "fed_ncm"},
        {"method": "fed_ridge"},
        {"method": "fed_ridge", "ridge_features": 20},
    ],
)
@pytest.mark.parametrize("noise", [1e-3, 1e3])
def test_the_server_takes_what_is_noisy(smoke, values, noise):
    """Whatever the noise, the upload stays inside the server's checks."""
    record = run(smoke(**values, dp_noise=noise), quiet=True)
    assert record["privacy"]["noise"] == noise and "faults" not in record


@pytest.mark.parametrize("values", [{}, {"method": "fed_ncm"}, {"method": "fed_ridge"}])
def test_noise_is_off_by_default_and_repeats_where_it_is_on(smoke, values, monkeypatch, tmp_path):
    plain = smoke(**values)
    assert (
        plain.dp_noise == 0
        and plain.digest == smoke(**values, dp_noise=0.0).digest != smoke(**values, dp_noise=1).digest
    )
    first = run(smoke(**values, dp_noise=1.0), quiet=True)
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "other"))
    assert compared(run(smoke(**values, dp_noise=1.0), quiet=True)) == compared(first)
