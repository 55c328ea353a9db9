"""Files of measurements as tables: rows made by hand, damaged files, and the benchmark of the components."""

import json
import runpy
import sys

import numpy as np
import pytest
from tests_root import ROOT

from lscl.config import experiment
from lscl.errors import LsclError
from lscl.experiments.run import run
from lscl.results import measurements

SPLITS = ("training", "test")


def row(seed, task=1, collaboration="written", gain=(2.0, -1.0), server=0.5, rate=1e-3):
    """A row in which the own update gains `gain` on training and test images, and O2D `server` over training."""
    update = {split: {"own": 80 + by, "none": 80, "another": 79, "mean": 80} for split, by in zip(SPLITS, gain)}
    made = {"seed": seed, "task": task, "collaboration": collaboration, "lr_generator": rate, "update": update}
    return made | {
        "generator": {"own": 79, "fused": 79 + server, "mean": 80},
        "server_step": {"weight": 3.0, "bias": 0.5},
        "same_as_record": True,
    }


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


class TestGrowth:
    def test_a_row_for_every_point(self, places):
        assert measurements.growth_frame().empty and measurements.growth_note() == ""
        points = [{"tasks": n, "cpu_seconds": 3.0 * n, "peak_memory_mb": 500.0} for n in (1, 2)]
        found = {
            "method": "lorm",
            "size": "tasks",
            "points": points,
            "time_exponent": {"ratio": 1.0, "better": "lower"},
            "memory_exponent": {"ratio": 0.0, "better": "lower"},
        }
        about = {
            "machine": {"cpu": "some <cpu>", "cores": 2, "gpu": None},
            "threads": 2,
            "commit": "abcdef0123456",
            "rows": [found],
        }
        write(places / "results" / "benchmarks" / "scaling.json", json.dumps(about))
        assert measurements.growth_frame().to_numpy().tolist() == [
            ["LoRM", "tasks", 1, 3.0, 500.0, 1.0, 0.0],
            ["LoRM", "tasks", 2, 6.0, 500.0, 1.0, 0.0],
        ]
        assert measurements.growth_note() == "<small>some &#60;cpu>, 2 threads, commit abcdef0123</small>"

    def test_a_damaged_file(self, places):
        write(places / "results" / "benchmarks" / "scaling.json", "{}")
        with pytest.raises(LsclError, match=r"cannot read .*scaling\.json: rows: Field required"):
            measurements.growth_frame()


def test_without_trials_the_frame_of_the_tuning_is_empty(places):
    assert measurements.tuning_frame().empty


def study(axis, values, seen, chosen=None):
    trials = [
        {"values": {"lr": value}, "config_digest": "0", "seen": scores, "task": [80.0] * len(scores)}
        for value, scores in zip(values, seen, strict=True)
    ]
    return {"space": {"lr": axis}, "trials": trials, "chosen": chosen}


class TestTrials:
    def put(self, places):
        found = study({"log_range": [1e-4, 1]}, (0.1, 0.01, 0.001), ([50.0], [55.0, 40.0], []), 1)
        found["trials"][2]["failed"] = "it diverged"
        text = json.dumps({"seed": 7, "studies": {"local_head": found}})
        write(places / "results" / "tuning" / "mini--cifar100.json", text)

    def test_a_row_for_every_trial(self, places):
        self.put(places)
        table = measurements.tuning_frame()
        assert table[["seed", "trial", "point", "tasks", "chosen", "failed"]].to_numpy().tolist() == [
            [7, 0, "lr = 0.1", 1, False, ""],
            [7, 1, "lr = 0.01", 2, True, ""],
            [7, 2, "lr = 0.001", 0, False, "it diverged"],
        ]
        assert table["seen"].tolist()[:2] == [50.0, 40.0] and np.isnan(table["seen"].iloc[2])

    def test_a_column_for_every_axis(self, places):
        self.put(places)
        table = measurements.trials_frame("mini", "cifar100", "local_head")
        assert table["lr"].tolist() == [0.1, 0.01, 0.001] and table["tasks"].tolist() == [1, 2, 0]
        assert table.attrs["log"] == ["lr"] and table["chosen"].tolist() == [False, True, False]
        assert measurements.trials_frame("mini", "cifar100", "lorm").empty

    def test_a_damaged_file(self, places):
        path = places / "results" / "tuning" / "mini--cifar100.json"
        found = study({"cube": [1]}, (0.1,), ([50.0],))
        write(path, json.dumps({"studies": {"local_head": found}}))
        with pytest.raises(LsclError, match=r"cannot read .*mini--cifar100\.json: studies.local_head.space"):
            measurements.tuning_frame()
        found = study({"one_of": [0.1, 1.0]}, (0.1,), ([50.0],))
        found["trials"][0]["task"] = []
        write(path, json.dumps({"studies": {"local_head": found}}))
        with pytest.raises(LsclError, match="seen and task: one score of each after a task"):
            measurements.tuning_frame()


class TestComponents:
    def test_a_row_for_every_number(self, places):
        static = {
            **row(42, collaboration="static"),
            "update": {split: {"own": 81, "none": 80} for split in SPLITS},
            "server_step": {"bias": 0.2},
            "same_as_record": None,
        }
        about = {
            "rows": [row(42), row(1999), static],
            "tasks": 1,
            "machine": {"cpu": "some cpu", "cores": 2, "gpu": None},
            "commit": None,
            "dirty": True,
        }
        write(places / "results" / "components" / "mini--glyphs.json", json.dumps(about))
        table = measurements.components_frame("mini")
        assert len(table) == 2 * (8 + 3 + 2) + (4 + 3 + 1)
        means = table.groupby(["writer", "measure", "images", "kind"])["value"].mean()
        assert means["written per image", "update", "training", "own"] == 82
        assert means["static LoRA", "server_step", "test"].to_dict() == {"bias": 0.2}
        assert measurements.components_note(table) == (
            "<small>profile mini; commit installed package, uncommitted changes; seeds 42, 1999; "
            "mean over the first 1 task; some cpu; "
            "2 of 2 rows of recorded runs have exactly the accuracies of their record, "
            "1 row of runs without a record</small>"
        )

    def test_without_rows_and_with_a_damaged_file(self, places):
        assert measurements.components_frame("mini").empty
        write(places / "results" / "components" / "mini--glyphs.json", "{")
        with pytest.raises(LsclError, match=r"cannot read .*mini--glyphs\.json"):
            measurements.components_frame("mini")

    def test_the_benchmark_measures_what_the_tables_show(self, places, monkeypatch):
        record = run(experiment(method="fed_lscl", profile="smoke", dataset="glyphs", threads=1), quiet=True)
        script = ROOT / "benchmarks" / "components.py"
        monkeypatch.syspath_prepend(script.parent)
        monkeypatch.setattr(sys, "argv", [str(script), "--profile", "smoke", "--seeds", "42", "--tasks", "2"])
        runpy.run_path(str(script), run_name="__main__")
        written, static = json.loads((places / "results" / "components" / "smoke--glyphs.json").read_text("utf-8"))[
            "rows"
        ][1::2]  # of the second task
        assert (written["same_as_record"], static["same_as_record"]) == (True, None) and record["seed"] == 42
        assert set(written["update"]["test"]) == set(measurements.UPDATES) and set(static["update"]["test"]) == {
            "own",
            "none",
        }
        assert set(written["server_step"]) == {"weight", "bias"} and set(static["server_step"]) == {"bias"}
        assert written["generator"]["fused"] == pytest.approx(
            written["update"]["test"]["own"], abs=1e-3
        )  # two ways to the same accuracy
        assert all(np.isfinite(list(one["generator"].values())).all() for one in (written, static))
