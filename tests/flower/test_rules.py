"""When a round of a federation counts."""

import pytest

pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")
from lscl.config import experiment
from lscl.errors import LsclError
from lscl.flower.rules import rules


def test_the_server_takes_no_other_rules_from_flower_either(one_line):
    """`flwr run` can be called by hand, with any run config."""
    config = experiment(profile="smoke")
    given = {"experiment": "{}", "min-clients": 2, "timeout": 5.0, "max-mb": 1.0}
    assert rules(config, given).min_clients == 2
    for name, value in (("min-clients", 4), ("timeout", float("nan")), ("max-mb", float("inf")), ("max-mb", "much")):
        with pytest.raises(LsclError) as caught:
            rules(config, given | {name: value})
        one_line(caught, f"{name} = ")
