"""What the controls share: nothing is trained, and the bound of the features holds."""

import pytest
import torch

from lscl.config import check_options
from lscl.errors import LsclError
from lscl.experiments.run import run
from lscl.federation.costs import Planned
from lscl.methods import METHODS
from lscl.methods.parts.closed_form import RidgeCosts
from lscl.models.counting import NOTHING, Blocks
from lscl.results import traffic_frame

FREE = [name for name, kind in METHODS.items() if not kind.trains]


def test_the_three_controls_train_nothing():
    assert FREE == ["fed_ncm", "fed_ridge", "local_ridge"]


@pytest.mark.parametrize("name", FREE)
def test_rounds_and_epochs_change_nothing_and_are_refused(smoke, name, one_line):
    one, other = (run(smoke(method=name, rounds=rounds, epochs=rounds), quiet=True) for rounds in (1, 3))
    assert all(one[key] == other[key] for key in ("accuracy", "bytes_up", "bytes_down"))
    assert len(one["bytes_up"]) == 2 and one["trained_images"] == one["optimised_images"] == 0
    assert one["trained_parameters"] == [0, 0, 0]
    with pytest.raises(LsclError) as caught:
        check_options(["rounds"], [name])
    one_line(caught, "rounds is an option of", f"not of {name}")


@pytest.mark.parametrize("name", FREE)
def test_a_task_has_one_exchange_whatever_the_rounds(smoke, name):
    record = run(smoke(method=name, rounds=3), quiet=True)
    assert traffic_frame([record], draft=True).groupby("task")["exchange"].nunique().tolist() == [1, 1]


@pytest.mark.parametrize("name", FREE)
def test_a_run_goes_on_behind_a_stop(smoke, in_pieces, name):
    in_pieces(smoke(method=name), 2)


@pytest.mark.parametrize("values", [{}, {"ridge_features": 30}])
def test_no_feature_is_longer_than_the_bound(federation, smoke, values):
    method, clients = federation(smoke(method="fed_ridge", **values))
    features = method.frozen_feature(clients[0].train.batch(torch.arange(80)))
    longest = float(features.norm(dim=1).max())
    assert longest <= method.longest < 5 * longest


def test_the_costs_are_those_of_gram_matrix_and_solution(smoke):
    plain, random = (smoke(method="fed_ridge", ridge_features=n) for n in (0, 100))
    run_of = lambda config: Planned(config, NOTHING, Blocks(0, 1, 8, 8), 8, 3, 10, 50.0, 0.0)
    assert RidgeCosts(plain).sums(run_of(plain)) == 50 * 2 * 8 * 18
    assert RidgeCosts(random).sums(run_of(random)) == 50 * (2 * 100 * 8 + 2 * 100 * 110)
    assert RidgeCosts(random).own_work(run_of(random)).server == 2 * (100**3 / 3 + 2 * 100**2 * 10)
