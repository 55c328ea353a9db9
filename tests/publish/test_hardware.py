"""What a command took where it was measured, and what the cost model expects of cards."""

import json

import pytest
from made_records import record
from timed_steps import H100, row, write

from lscl.config import experiment
from lscl.experiments import cost_model, sweeps
from lscl.experiments.rounding import expected_range
from lscl.publish import hardware, pages
from lscl.results.labels import DATASET_LABELS, label_of

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
        and rows[0]["task-masked %"] == expected_range(80.04)
    )
    assert rows[1]["machine"] == "some cpu, 2 cores, 8 GB, no GPU, 2 threads used"
    found = (rows[1]["minutes"], rows[1]["task-masked %"], rows[1]["class-incremental %"])
    assert found == ("3.0", expected_range(72.0), expected_range(42.0))


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
            found = table.loc[f"`{name}`"]
            assert found[f"{title}: Fed-LSCL, hours"] == f"{ours.hours(machine):.1f}"
            assert (
                found[f"{title}: all, {len(seeds)} seeds, hours"]
                == f"{len(seeds) * sum(one.hours(machine) for one in every):.0f}"
            )
            assert found[f"{title}: all fit"] == ("yes" if all(one.memory <= machine.memory for one in every) else "no")
    assert float(table.loc["`h100`"].iloc[1]) < float(table.loc["`t4`"].iloc[1])


def test_measured_cards_and_steps_stand_beside_the_computed_ones(places):
    assert hardware.timed_steps().empty and pages.planned_card() == "t4"
    write(
        places / "results",
        [row("fed_lscl"), row("l2p", "bf16", 64, planned_mb=None, waiting=None), row("l2p", vit="vit_tiny")],
    )
    assert pages.planned_card() == "h100"
    own = hardware.planned_systems("cifar100", "h100")["hours are"]
    assert own.loc["Fed-LSCL"] == f"measured on {H100}" and own.loc[label_of("l2p")] == "computed"
    rows = hardware.timed_steps().to_dict("records")
    assert [one["system"] for one in rows] == [label_of(name) for name in ("fed_lscl", "l2p", "l2p")]
    assert {one["card"] for one in rows} == {H100}
    assert (rows[0]["ms measured"], rows[0]["images/s"], rows[0]["to bare products"]) == ("500.0", "32", "1.10")
    assert rows[0]["GB planned / measured"] == "4.4 / 4.0" and rows[1]["GB planned / measured"] == "–"
    computed = cost_model.seconds_of(experiment(profile="paper", dataset="cifar100"), cost_model.CARDS["h100"])
    assert rows[0]["ms computed"] == f"{1e3 * computed:.1f}" and rows[2]["ms computed"] == "–"
    assert (rows[0]["GPU idle %"], rows[1]["GPU idle %"]) == ("10", "–")
    text = pages.cards_page()
    assert [f":name: tab-{name}" in text for name in ("cards", "sheets")] == [True] * 2
    assert f"measured on {H100} (" in text and "nobody has measured" not in text


def test_without_measurements_the_page_of_cards_says_so(places):
    text = pages.cards_page()
    assert "an estimate, not a measurement" in text and "data sheet, 2019-03" in text
    assert set(hardware.card_sheets().index) == {f"`{name}`" for name in cost_model.CARDS}


def test_each_system_has_a_row_whose_parts_add_up():
    table = hardware.planned_systems("cifar100", "t4")
    assert len(table) == len(sweeps.main_table()) and table.index.is_unique
    one = hardware.cost(experiment(profile="paper", dataset="cifar100", method="target"))
    found = table.loc["TARGET"]
    assert float(found["PFLOP, clients"]) + float(found["PFLOP, server"]) == pytest.approx(one.flops / 1e15, abs=0.11)
    assert float(found["PFLOP, server"]) > 0 and found["hours"] == f"{one.hours(cost_model.CARDS['t4']):.1f}"
