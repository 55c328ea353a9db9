"""What is recorded and what is missing."""

import pytest
from made_records import record

from lscl.experiments import sweeps
from lscl.publish import status


def of_set(name, count, dataset="cifar100"):
    """`count` records, one for each of the first runs of a named set."""
    runs = sweeps.runs_of(name, {"profile": "mini", "dataset": dataset}, sweeps.PLANS["mini"][dataset])
    return [{**record(run.method, run.seed), "dataset": dataset, "config_digest": run.digest} for run in runs[:count]]


def test_without_records_every_set_of_every_data_set_is_missing_whole():
    table = status.set_table([])
    assert len(table) == len(status.NAMED_SETS) * len(sweeps.PLANS["mini"])
    for row in table.itertuples():
        assert (
            row.runs.startswith("0 of ") and int(row.runs.split()[-1]) > 0 and row.minutes == "0" and row.commits == "–"
        )


@pytest.mark.parametrize("name", status.NAMED_SETS)
def test_a_record_counts_in_its_set_and_data_set(name):
    found = of_set(name, 2)
    table = status.set_table(found).set_index(["set", "data set"])
    wanted = len(sweeps.runs_of(name, {"profile": "mini", "dataset": "cifar100"}, sweeps.PLANS["mini"]["cifar100"]))
    row = table.loc[(status.NAMED_SETS[name], "CIFAR-100")]
    assert row["runs"] == f"2 of {wanted}" and row["minutes"] == "6" and row["commits"] == "abcdef0123"
    assert row["command"] == f"`lscl sweep {name} --dataset cifar100 --profile mini`"
    assert (table.xs(status.DATASET_LABELS["glyphs"], level=1)["minutes"] == "0").all()


def test_a_record_of_no_set_counts_nowhere():
    assert (status.set_table([{**record(), "config_digest": "0" * 12}])["minutes"] == "0").all()


def test_commits_are_told_once_and_an_installed_package_by_its_name():
    found = of_set("table1", 3)
    found[1]["commit"], found[2]["commit"] = found[0]["commit"], None
    assert status.set_table(found)["commits"].iloc[0] == "abcdef0123, installed package"


def test_digests_are_sorted_by_what_they_are_of_and_counted():
    rows = status.digest_table([record(), record(seed=1999), record("fedavg", weights_digest=None)]).to_numpy().tolist()
    assert rows == [
        ["images", "CIFAR-100", "`d1`", "3"],
        ["partition", "CIFAR-100", "`p1999`", "1"],
        ["partition", "CIFAR-100", "`p42`", "2"],
        ["frozen model", "CIFAR-100", "`w1`", "2"],
    ]


def test_versions_and_machines_are_counted():
    one, other = (
        record(),
        record(seed=1999, hardware={"cpu": "other cpu", "cores": 8, "memory_gb": 64, "gpu": "some card"}),
    )
    one["config"]["threads"] = other["config"]["threads"] = 2
    assert status.version_table([one, other]).to_numpy().tolist() == [
        ["torch", "2.0", "2"],
        ["processor", "some cpu with 2 threads", "1"],
        ["GPU", "none", "1"],
        ["processor", "other cpu with 2 threads", "1"],
        ["GPU", "some card", "1"],
    ]
