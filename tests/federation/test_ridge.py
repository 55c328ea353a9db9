"""The closed-form head: against the normal equations, and as a second head that changes nothing else."""

import numpy as np
import pytest
import torch

from lscl.experiments.run import run
from lscl.federation import training
from lscl.federation.ridge import LAMBDA, fit_own_ridge, ridge_head, ridge_sums
from lscl.methods import METHODS

draw = torch.Generator().manual_seed(0)
FEATURES, LABELS = torch.randn(60, 7, generator=draw), torch.randint(5, (60,), generator=draw)


def normal_equations(features, labels, classes, strength):
    """Ridge regression by numpy, on the stacked problem [F; sqrt(l) I] W = [Y; 0]."""
    f, y = np.asarray(features, np.float64), np.eye(classes)[labels.numpy()]
    scale = strength * np.trace(f.T @ f) / f.shape[1]
    stacked = np.concatenate([f, scale**0.5 * np.eye(f.shape[1])])
    return np.linalg.lstsq(stacked, np.concatenate([y, np.zeros((f.shape[1], classes))]), rcond=None)[0].T


@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test_the_head_solves_the_regularised_least_squares_problem(strength):
    found = ridge_head(*ridge_sums(FEATURES, LABELS, 5), strength)
    assert found.dtype == torch.float64 and found.shape == (5, 7)
    assert np.abs(found.numpy() - normal_equations(FEATURES, LABELS, 5, strength)).max() < 1e-12


def test_sums_of_parts_add_up_and_the_scale_of_the_features_does_not_matter():
    whole = ridge_sums(FEATURES, LABELS, 5)
    parts = [ridge_sums(f, y, 5) for f, y in zip(FEATURES.split((10, 50)), LABELS.split((10, 50)))]
    assert all(torch.allclose(one, a + b, atol=1e-12) for one, a, b in zip(whole, *parts))
    other = ridge_head(*ridge_sums(1000 * FEATURES.double(), LABELS, 5), 0.1)
    assert torch.allclose(1000 * other, ridge_head(*whole, 0.1), atol=1e-12)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_features_without_a_solution_give_a_head_of_zeros(value):
    assert not ridge_head(*ridge_sums(torch.full((4, 3), value), torch.zeros(4, dtype=torch.int64), 2), 0.1).any()


def test_the_own_head_is_fitted_to_all_images_of_the_client_so_far(federation, smoke):
    """On features that do not drift it is the solution on all of them."""
    method, clients = federation(smoke(method="local_head"))
    client, index = clients[1], []
    for task in range(2):
        client.task = task
        found = fit_own_ridge(method, client)
        index += client.current.train
    batch = client.train.batch(torch.tensor(index))
    wanted = normal_equations(method.features_of(client, batch), batch.labels, 14, LAMBDA)
    assert np.abs(found.numpy() - wanted).max() < 1e-10


def test_a_system_without_features_has_no_such_head(federation, smoke):
    method, clients = federation(smoke(method="fed_ncm"))
    clients[0].task = 0
    assert fit_own_ridge(method, clients[0]) is None and clients[0].state == {}
    assert "ridge" not in run(smoke(method="fed_ncm"), quiet=True)


WITH_FEATURES = [name for name, kind in METHODS.items() if kind.has_features]


def test_all_systems_that_train_have_features():
    assert {name for name, kind in METHODS.items() if kind.trains} == set(WITH_FEATURES)


@pytest.mark.parametrize("name", WITH_FEATURES)
def test_the_second_head_changes_no_other_number_of_the_run(smoke, name, monkeypatch, places):
    """Draws, BatchNorm's statistics and whatever else decides the next task stay as they are without it."""
    config = smoke(method=name)
    with_it = run(config, quiet=True)
    monkeypatch.setenv("LSCL_ROOT", str(places / "without"))
    monkeypatch.setattr(METHODS[name], "has_features", False)
    monkeypatch.setattr(training, "fit_own_ridge", lambda method, client: None)
    without = run(config, quiet=True)
    assert set(with_it) - set(without) == {"ridge"}
    same = ("accuracy", "per_class", "bytes_up", "bytes_down", "optimised_images", "trained_images")
    assert all(with_it[key] == without[key] for key in same)
    assert np.array(with_it["ridge"]["accuracy"]["seen"], float).shape == (2, 3, 2)


@pytest.mark.parametrize("name", WITH_FEATURES)
def test_features_are_those_that_the_head_reads(federation, smoke, name):
    method, clients = federation(smoke(method=name))
    client = clients[0]
    client.task = 0
    client.model.eval()
    with torch.no_grad():
        batch = client.train.batch(client.train_index[:4])
        features = method.features_of(client, batch)
        assert features.shape[0] == 4 and features.ndim == 2
        assert torch.equal(method.head_logits(client, features), method.logits(client, batch))


def test_frozen_features_have_the_ridge_score_of_the_control_without_training(smoke):
    """Two ways to one number: the second head of an own linear head, and the control that is this head."""
    own, control = (run(smoke(method=name), quiet=True) for name in ("local_head", "local_ridge"))
    for mask in ("task", "seen"):
        assert own["ridge"]["accuracy"][mask] == control["accuracy"][mask]
