"""Federated ridge regression: the solution on all images in one place, in any order."""

import numpy as np
import pytest
import torch

from lscl.federation.loop import InProcess, federate
from lscl.federation.method import Stage
from lscl.federation.payload import num_bytes
from lscl.federation.ridge import ridge_head, ridge_sums
from lscl.methods.parts.o2d import pack_triangle, unpack_triangle

VARIANTS = {"frozen features": {}, "random features": {"ridge_features": 50, "ridge_lambda": 0.1}}
variants = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)


@variants
def test_the_head_is_the_solution_on_all_images_in_one_place(played, smoke, pooled, values):
    """By numpy, on the stacked problem, to 1e-10."""
    method, clients, _ = played(smoke(method="fed_ridge", **values))
    features, labels = (value.numpy() for value in pooled(method, clients))
    scale = method.config.ridge_lambda * np.square(features).sum() / features.shape[1]
    stacked = np.concatenate([features, scale**0.5 * np.eye(features.shape[1])])
    targets = np.concatenate([np.eye(14)[labels], np.zeros((features.shape[1], 14))])
    wanted = np.linalg.lstsq(stacked, targets, rcond=None)[0].T
    assert np.abs(method.server["weight"].numpy() - wanted).max() < 1e-10
    assert torch.equal(clients[2].model.weight, method.server["weight"])


@variants
@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_the_order_of_clients_and_tasks_does_not_matter(reordered, smoke, order, values):
    config = smoke(method="fed_ridge", **values)
    one, other = (reordered(config, *how)[0] for how in (((0, 1, 2), False), (order, True)))
    assert torch.allclose(one.server["weight"], other.server["weight"], rtol=0, atol=1e-10)


def test_after_the_first_task_it_is_the_solution_on_that_task(played, smoke, pooled):
    method, clients, _ = played(smoke(method="fed_ridge"), 1)
    wanted = ridge_head(*ridge_sums(*pooled(method, clients, tasks=1), 14), method.config.ridge_lambda)
    assert torch.allclose(method.server["weight"], wanted, rtol=0, atol=1e-10)


@variants
def test_a_task_is_one_exchange_with_the_bytes_of_the_docstring(played, smoke, values):
    method, _, log = played(smoke(method="fed_ridge", rounds=4, **values))
    assert [(stage.task, stage.name) for stage, _, _ in log] == [
        (t, name) for t in (0, 1) for name in ("train", "finish")
    ]
    D, k, C = values.get("ridge_features") or method.foundation.width, 3, 14
    for stage, downloads, uploads in log:
        if stage.name == "train":
            assert {num_bytes(sent) for sent in uploads.values()} == {4 * (D + k) * (D + k + 1)}
        assert {num_bytes(sent) for sent in downloads.values()} == {8 * C * D if stage.name == "finish" else 0}


def test_random_features_are_the_same_everywhere_and_hang_on_the_seed(federation, smoke):
    (one, _), (again, _), (other, _) = (
        federation(smoke(method="fed_ridge", ridge_features=9, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.projection, again.projection) and not torch.equal(one.projection, other.projection)
    assert one.projection.shape == (9, one.foundation.width)


def spoilt(moments, case, k=3):
    """Moments that no images can have."""
    other = moments.clone()
    if case == "labels":
        other[-1, -1] += 1
    elif case == "large":
        other[:-k, :-k] *= 1.5
    elif case == "products":  # larger than the features of these images allow
        other[:-k, -k:] *= 3
        other[-k:, :-k] *= 3
    elif case == "negative":
        other[:-k, :-k] -= torch.eye(len(other) - k)
    return other


CASES = {
    "labels": "has other numbers of images",
    "large": "features of these images reach",
    "products": "is no Gram matrix",
    "negative": "has squares of -",
}


@variants
@pytest.mark.parametrize("case", CASES)
def test_sums_that_no_images_can_have_are_refused(federation, smoke, case, values):
    method, clients = federation(smoke(method="fed_ridge", **values))
    client, stage = clients[0], Stage(0, 0)
    client.task = 0
    sent = method.upload(client, stage)["gram"]
    check = method.checks(0, stage)["gram"]
    assert check(sent) is None
    if case == "large" and values:
        method.__dict__["longest"] = float(unpack_triangle(sent)[:50, :50].trace() / len(client.train_index)) ** 0.5
        check = method.checks(0, stage)["gram"]  # the bound of random features is not tight: by the mean length
    assert CASES[case] in check(pack_triangle(spoilt(unpack_triangle(sent), case)))


class Liar(InProcess):
    """One client of three sends the largest sums that are let through, all for the wrong class."""

    def ask(self, stage, downloads):
        answers = super().ask(stage, downloads)
        if stage.name == "train":
            method, client = self.method, self.clients[1]
            counts = method.counts(1, stage)
            lie = torch.zeros(method.size, dtype=torch.float64)
            lie[0] = method.longest  # the same feature for every image
            both = torch.cat([lie.expand(len(counts), -1), torch.eye(len(counts))], dim=1)  # (k, D + k)
            answers[1]["gram"] = pack_triangle(both.T @ (counts[:, None] * both))
            assert client.id == 1
        return answers


def test_a_lying_client_takes_no_more_than_its_own_classes(federation, smoke):
    """With all that its checks let pass, it adds one direction; the others keep most of their accuracy."""
    found = []
    for transport in (InProcess, Liar):
        method, clients = federation(smoke(method="fed_ridge"))
        reports = list(federate(method, transport(method, clients), least=2))
        assert not any(report.faults for report in reports)
        scores = [reports[-1].scores[k] for k in (0, 2)]
        found.append(
            sum(int(one["correct"][0].sum()) for one in scores) / sum(int(one["total"].sum()) for one in scores)
        )
    honest, lied_to = found
    assert lied_to > honest - 0.15 and honest > 0.5


def test_a_client_that_is_away_is_missing_in_the_sums_alone(played, smoke, pooled, federation):
    method, clients = federation(smoke(method="fed_ridge"))

    class Away(InProcess):
        def ask(self, stage, downloads):
            answers = super().ask(stage, downloads)
            return {k: sent for k, sent in answers.items() if k != 1}

    list(federate(method, Away(method, clients), least=2))
    wanted = ridge_head(*ridge_sums(*pooled(method, [clients[0], clients[2]]), 14), method.config.ridge_lambda)
    assert torch.allclose(method.server["weight"], wanted, rtol=0, atol=1e-10)
