"""The same regression on a client's own images: exact, alone, and nothing is sent."""

import pytest
import torch

from lscl.federation.loop import InProcess, federate
from lscl.federation.method import Stage
from lscl.federation.ridge import ridge_head, ridge_sums
from lscl.federation.training import answer, catch_up


def test_nothing_is_sent_or_kept_on_the_server(federation, smoke):
    method, clients = federation(smoke(method="local_ridge"))
    reports = list(federate(method, InProcess(method, clients)))
    assert method.server == {} and all(sum(report.bytes_up + report.bytes_down) == 0 for report in reports)
    assert len(reports) == 2


@pytest.mark.parametrize("values", [{}, {"ridge_features": 40}])
def test_each_head_is_the_solution_on_the_clients_own_images(played, smoke, pooled, values):
    method, clients, _ = played(smoke(method="local_ridge", **values))
    for client in clients:
        wanted = ridge_head(*ridge_sums(*pooled(method, [client]), 14), method.config.ridge_lambda)
        assert torch.allclose(client.model.weight, wanted, rtol=0, atol=1e-10)


def test_the_order_of_tasks_does_not_matter(reordered, smoke):
    (_, one), (_, other) = (reordered(smoke(method="local_ridge"), (0, 1, 2), back) for back in (False, True))
    for first, second in zip(one, other):
        assert torch.allclose(first.model.weight, second.model.weight, rtol=0, atol=1e-10)


def test_a_client_that_was_away_has_its_images_all_the_same(federation, smoke):
    method, (there, *_) = federation(smoke(method="local_ridge"))
    _, (away, *_) = federation(smoke(method="local_ridge"))
    for task in range(2):
        for stage in (Stage(task, 0), Stage(task, 0, "finish")):
            answer(method, there, stage, {})
            catch_up(method, away, stage, {})
    assert torch.equal(there.model.weight, away.model.weight) and there.model.weight.any()
