"""What a system says that it needs; what a plan makes of it is tested with the cost model."""

import pytest

from lscl.config import experiment
from lscl.federation.costs import Costs, OwnWork, Planned
from lscl.models.counting import NOTHING, Blocks
from lscl.registry import METHODS

BLOCKS = Blocks(2, 10, 4, 16)


def planned(**values):
    config = experiment(profile="mini", dataset="cifar100", **values)
    return Planned(config, NOTHING, BLOCKS, 4, 8, 100, 1000.0, 5000.0)


def test_a_system_that_says_no_more_adds_nothing():
    run = planned(method="fedavg")
    costs = Costs(run.config)
    assert (costs.tokens(), costs.passes(), costs.step_flops(4), costs.parameters(run)) == (0, 0, 0.0, 0.0)
    assert costs.cnn_images() == costs.evaluations == 1 and costs.own_work(run) == OwnWork(0.0, 0.0, 0.0)


def test_shares_of_a_run():
    run = planned(method="fedavg", tasks=4, rounds=3)
    assert (run.later, run.rounds, run.ends) == (0.75, 12, 3)
    assert planned(method="fedavg", tasks=4, rounds=3, stop_after=1).later == 0


@pytest.mark.parametrize("name", METHODS)
def test_every_system_of_ours_says_what_it_costs(name):
    kind = METHODS[name]
    assert issubclass(kind.costs, Costs)
    found = kind.costs(planned(method=name).config)
    assert found.tokens() >= 0 and found.cnn_images() >= (name != "fed_lscl_ridge") and found.passes() >= 0


def test_prompts_stand_beside_the_tokens():
    assert METHODS["l2p"].costs(planned(method="l2p", l2p_top_k=3, l2p_length=4).config).tokens() == 12
    assert METHODS["fedmgp"].costs(planned(method="fedmgp", mgp_length=7).config).tokens() == 7


def test_a_written_update_is_work_in_every_step_and_a_static_one_is_none():
    written, static = (
        METHODS["fed_lscl"].costs(planned(collaboration=kind, rank=4).config) for kind in ("written", "static")
    )
    assert written.step_flops(8) == 6 * 4 * 4 * 8 * (128 + 1) and static.step_flops(8) == 0
