"""What a command took where it was measured, and what the cost model expects of cards."""

import json

import pytest
from made_records import record

from lscl.config import experiment
from lscl.experiments import cost_model, sweeps
from lscl.publish import hardware
from lscl.results.labels import DATASET_LABELS

MACHINE = {"cpu": "some cpu", "cores": 2, "memory_gb": 8, "gpu": None}


@pytest.fixture
def expected(places):
    """What `make demo` took and gave on a made-up machine."""
    about = {
        "profile": "demo",
        "command": "make demo",
        "minutes": 4.04,
        "hardware": MACHINE,
        "commit": "c",
        "task": 80.04,
        "seen": 40.0,
    }
    path = places / "results" / "expected" / "demo.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps({**about, "runs_seconds": 100.0, "notebooks": {"03_continual_finetuning": 52.0, "05_results": 11.0}})
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "5 seconds"),
        (7.4, "5 seconds"),
        (7.6, "10 seconds"),
        (97, "95 seconds"),
        (100, "1.5 minutes"),
        (119, "2 minutes"),
        (290, "5 minutes"),
    ],
)
def test_a_duration_is_told_in_steps(seconds, text):
    assert hardware.duration(seconds) == text


def test_the_time_of_a_notebook_with_and_without_the_runs_before_it(expected):
    assert hardware.notebook_time("05_results") == "10 seconds on 2 cores"
    assert hardware.notebook_time("05_results", runs=True) == "2 minutes on 2 cores"
    assert hardware.notebook_table().to_numpy().tolist() == [
        ["{doc}`/notebooks/03_continual_finetuning`", "50 seconds"],
        ["{doc}`/notebooks/05_results`", "10 seconds"],
    ]


def test_nobody_has_measured_anything_yet(places):
    assert hardware.expected_profiles() == [] and hardware.notebook_time("05_results") is None
    assert hardware.notebook_table().empty and hardware.measured_times([]).empty


def test_whole_profiles_come_first_then_one_run_of_every_system_on_the_first_seed(expected):
    runs = [record(), record("local_head", values={"lr": 0.5}), record(seed=1999)]
    assert sweeps.SEEDS[0] == 42
    for one in runs:
        one["config"]["threads"] = 2
    rows = hardware.measured_times(runs).to_dict("records")
    assert [row["command"] for row in rows] == [
        "`make demo`",
        "`lscl run --method fed_lscl --dataset cifar100 --profile mini`",
        "`lscl run --method local_head --dataset cifar100 --profile mini --lr 0.5`",
    ]
    assert (
        rows[0]["machine"] == "some cpu, 2 cores, 8 GB, no GPU"
        and rows[0]["minutes"] == "4.0"
        and rows[0]["task-masked %"] == "80.0"
    )
    assert rows[1]["machine"] == "some cpu, 2 cores, 8 GB, no GPU, 2 threads used"
    assert (rows[1]["minutes"], rows[1]["task-masked %"], rows[1]["class-incremental %"]) == ("3.0", "72.0", "42.0")


def test_every_card_has_the_hours_of_one_run_and_of_the_whole_table():
    table = hardware.planned_cards()
    assert list(table.index) == [f"`{name}`" for name in cost_model.CARDS]
    for dataset, seeds in sweeps.PLANS["paper"].items():
        title = DATASET_LABELS[dataset]
        ours = hardware.cost(experiment(profile="paper", dataset=dataset, method="fed_lscl"))
        every = [
            hardware.cost(experiment(profile="paper", dataset=dataset, method=method, **extra))
            for method, extra in sweeps.main_table()
        ]
        for name, machine in cost_model.CARDS.items():
            row = table.loc[f"`{name}`"]
            assert row[f"{title}: Fed-LSCL, hours"] == f"{ours.hours(machine):.1f}"
            assert (
                row[f"{title}: all, {len(seeds)} seeds, hours"]
                == f"{len(seeds) * sum(one.hours(machine) for one in every):.0f}"
            )
            assert row[f"{title}: all fit"] == ("yes" if all(one.memory <= machine.memory for one in every) else "no")
    assert float(table.loc["`h100`"].iloc[1]) < float(table.loc["`t4`"].iloc[1])


def test_each_system_has_a_row_whose_parts_add_up():
    table = hardware.planned_systems("cifar100", "t4")
    assert len(table) == len(sweeps.main_table()) and table.index.is_unique
    one = hardware.cost(experiment(profile="paper", dataset="cifar100", method="target"))
    row = table.loc["TARGET"]
    assert float(row["PFLOP, clients"]) + float(row["PFLOP, server"]) == pytest.approx(one.flops / 1e15, abs=0.11)
    assert float(row["PFLOP, server"]) > 0 and row["hours"] == f"{one.hours(cost_model.CARDS['t4']):.1f}"
