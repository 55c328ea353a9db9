"""Class means of all clients: exact, in any order, and no client can push them far."""

import pytest
import torch
import torch.nn.functional as F

from lscl.federation.method import Stage
from lscl.federation.payload import num_bytes
from lscl.methods.fed_ncm import class_cosines


def test_scores_are_cosines_with_the_class_means_after_the_mean_is_subtracted():
    draw = torch.Generator().manual_seed(0)
    features, labels = torch.randn(30, 6, generator=draw) + 5, torch.randint(3, (30,), generator=draw)
    onehot = F.one_hot(labels, 4).double()  # nobody has class 3
    found = class_cosines(features[:5], onehot.T @ features.double(), onehot.sum(0).long())
    centre = features.double().mean(0)
    for label in range(3):
        mean = features[labels == label].double().mean(0) - centre
        assert torch.allclose(found[:, label], F.cosine_similarity(features[:5] - centre, mean[None]), atol=1e-12)
    assert (found[:, 3] == -1).all()


def test_nothing_at_all_is_known_before_the_first_images(federation, smoke):
    method, clients = federation(smoke(method="fed_ncm"))
    logits = method.logits(clients[0], clients[0].train.batch(torch.arange(3)))
    assert (logits == -1).all()


def test_the_sums_are_those_of_all_images_in_one_place(played, smoke, pooled):
    method, clients, _ = played(smoke(method="fed_ncm"))
    features, labels = pooled(method, clients)
    onehot = F.one_hot(labels, 14).double()
    assert torch.allclose(method.server["sums"], onehot.T @ features, rtol=0, atol=1e-10)
    assert torch.equal(method.server["counts"], onehot.sum(0).long())


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_the_order_of_clients_and_tasks_does_not_matter(reordered, smoke, order):
    one, other = (reordered(smoke(method="fed_ncm"), *how)[0] for how in (((0, 1, 2), False), (order, True)))
    assert torch.allclose(one.server["sums"], other.server["sums"], rtol=0, atol=1e-10)
    assert torch.equal(one.server["counts"], other.server["counts"])


def test_a_task_is_one_exchange_with_the_bytes_of_the_docstring(played, smoke):
    method, _, log = played(smoke(method="fed_ncm", rounds=4))
    assert [(stage.task, stage.name) for stage, _, _ in log] == [
        (t, name) for t in (0, 1) for name in ("train", "finish")
    ]
    d, k, C = method.foundation.width, 3, 14
    for stage, downloads, uploads in log:
        if stage.name == "train":
            assert {num_bytes(sent) for sent in uploads.values()} == {8 * k * d + 8 * k}
        assert {num_bytes(sent) for sent in downloads.values()} == {8 * C * d + 8 * C if stage.name == "finish" else 0}


def test_a_sum_that_no_images_can_have_is_refused(federation, smoke):
    method, clients = federation(smoke(method="fed_ncm"))
    stage, client = Stage(0, 0), clients[0]
    client.task = 0
    sent, checks = method.upload(client, stage), method.checks(0, stage)
    assert all(checks[name](value) is None for name, value in sent.items())
    assert "has a sum of length" in checks["sums"](3 * sent["sums"])
    assert "the server knows" in checks["counts"](sent["counts"] + 1)
