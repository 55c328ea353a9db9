"""Numbers inside the sentences of the book."""

import json

import pytest
from made_records import record
from tests_root import ROOT
from timed_steps import H100, row, write

from lscl.config import PROFILES
from lscl.experiments import sweeps
from lscl.experiments.rounding import expected_range
from lscl.publish import numbers

pytestmark = pytest.mark.usefixtures("published")


def test_accuracies_are_the_mean_over_the_seeds_of_fed_lscl_alone():
    runs = [record(), record(seed=1999, score=82), record("local_head", score=99), record(values={"rank": 5}, score=99)]
    found = numbers.numbers(runs)
    assert found["ours_cifar100_task"].startswith("73 ± ") and found["ours_cifar100_seen"].startswith("43 ± ")
    assert found["ours_cifar100_task"].endswith(" %") and found["ours_glyphs_task"] == numbers.NONE


def test_runs_and_their_hours_are_counted():
    found = numbers.numbers([record(), record("local_head")])
    assert found["main_runs"] == "2" and found["main_devices"] == "2 runs took 0.1 hours on CPUs"  # of 3 minutes each
    card = record(device="cuda", hardware={**record()["hardware"], "gpu": "NVIDIA X"}, seconds={"train": 3600})
    both = numbers.numbers([record(), card])["main_devices"]
    assert both == "1 run took 0.1 hours on CPUs and 1 run took 1.0 hours on NVIDIA X"
    assert numbers.numbers([])["main_devices"] == numbers.NONE


def test_settings_are_those_of_the_code():
    found = numbers.numbers([])
    assert found["mini_images"] == str(PROFILES["mini"]["images_per_class"]) and found["demo_images"] == str(
        PROFILES["demo"]["images_per_class"]
    )
    assert (found["full_test_images"], found["full_server_images"], found["trials"]) == ("80", "20", "16")
    assert found["reported_seeds"] == "42, 1999 and 2024" and found["tuning_seed"] == str(sweeps.TUNING_SEED)
    assert found["published_cifar100"] == "89.4 %" and found["weights_images"].replace(",", "").isdigit()
    assert float(found["paper_hours"]) > float(found["colab_hours"]) > 0


def test_what_whole_profiles_took_is_read_from_their_file(places):
    about = {
        "profile": "demo",
        "command": "make demo",
        "minutes": 4.5,
        "runs_seconds": 1.0,
        "notebooks": {},
        "task": 80.04,
        "seen": 40.0,
    }
    about["hardware"] = {"cpu": "some cpu", "cores": 2, "memory_gb": 8, "gpu": None}
    (places / "results" / "expected").mkdir()
    assert numbers.numbers([])["demo_minutes"] == numbers.NONE
    (places / "results" / "expected" / "demo.json").write_text(json.dumps(about))
    found = numbers.numbers([])
    ranges = [f"{expected_range(value)} %" for value in (80.04, 40.0)]
    assert [found[f"demo_{name}"] for name in ("minutes", "cores", "task", "seen")] == ["4.5", "2", *ranges]


def test_what_another_processor_moves_is_told_with_its_pairs(places):
    assert numbers.numbers([])["rounding_pairs"] == numbers.NONE
    path = places / "results" / "rounding" / "pairs.json"
    path.parent.mkdir()
    path.write_bytes((ROOT / "results" / "rounding" / "pairs.json").read_bytes())
    found = numbers.numbers([])
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert found["rounding_pairs"].startswith(f"{len(rows)} pairs of equal runs")
    assert found["rounding_pairs"].endswith(f"allowed are {found['rounding_points']}")


def test_checks_on_a_gpu_are_counted_by_outcome(places):
    names = ("gpu_card", "gpu_passed", "gpu_failed", "gpu_not_run")
    assert [numbers.numbers([])[name] for name in names] == [numbers.NONE] * 4
    left = {"check": "b2.l2p-fp32-64", "outcome": "not run", "reason": "no time"}
    write(places / "results", [row("l2p"), row("lorm"), left])
    assert [numbers.numbers([])[name] for name in names] == [H100, "2", "0", "1"]


def test_every_number_is_a_text_in_json(places):
    found = numbers.numbers([record()])
    assert json.loads(json.dumps(found)) == found and all(isinstance(value, str) and value for value in found.values())
