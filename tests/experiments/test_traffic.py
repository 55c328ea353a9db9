"""What a run will send, from the shapes that its system declares."""

import math

import pytest

from lscl.config import experiment
from lscl.experiments.run import run
from lscl.experiments.traffic import planned_traffic, traffic_table
from lscl.methods import METHODS

BY_THE_RUN = ("mfcl", "pilora", "target")  # what they send down depends on what the server makes in the run


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if not kind.surrogate])
def test_the_plan_is_what_a_run_sends_to_the_byte(name, tmp_path):
    config = experiment(method=name, profile="smoke", test_images_per_class=1, images_per_class=5)
    up, down = planned_traffic(config)
    record = run(config, quiet=True)
    assert math.isnan(up) == (name == "mfcl") and math.isnan(down) == (name in BY_THE_RUN)
    if name != "mfcl":
        assert up == sum(map(sum, record["bytes_up"]))
    if name not in (*BY_THE_RUN, "glfc"):
        assert down == sum(map(sum, record["bytes_down"]))


def test_a_folder_is_unknown_before_it_is_read(smoke):
    assert all(map(math.isnan, planned_traffic(smoke())))


def test_the_table_sums_up_the_seeds_of_a_system():
    runs = [experiment(method=name, profile="smoke", seed=seed) for name in ("fedavg", "target") for seed in (1, 2)]
    head, fedavg, target = traffic_table(runs).splitlines()
    assert "--keep-payloads" in head
    assert fedavg.split()[1:4] == ["fedavg", "2", f"{2 * planned_traffic(runs[0])[0] / 1e9:.3f}"]
    assert target.split()[-1] == "unknown"


def test_a_cnn_that_starts_from_trained_weights_needs_none_for_a_plan():
    drawn, trained = (
        planned_traffic(experiment(profile="mini", dataset="cifar100", stop_after=1, cnn_start=start))
        for start in ("drawn", "pretrained")
    )
    assert drawn == trained
