"""What the components do inside a run: tables and sentences of rows made by hand, and what the benchmark measures on a small run."""

import json
import runpy
import sys

import numpy as np
import pytest
from tests_root import ROOT

from lscl.errors import LsclError
from lscl.results import components

pytestmark = pytest.mark.usefixtures("published")


def row(seed, task=1, collaboration="written", gain=(2.0, -1.0), server=0.5):
    """A row whose own update is better than none by `gain` on training and test images, and O2D than the trained generator by `server`."""
    update = {split: {"own": 80 + by, "none": 80, "another": 79, "mean": 80} for split, by in zip(components.SPLITS, gain)}
    made = {"seed": seed, "task": task, "collaboration": collaboration, "update": update, "same_as_record": True}
    return made | {"generator": {"own": 79, "fused": 79 + server, "mean": 80}, "server_step": {"weight": 3.0, "bias": 0.5}}


ROWS = [row(seed, task, gain=(2 + noise, -1 + noise), server=noise) for seed, noise in ((42, 0), (1999, 0.1), (2024, -0.1)) for task in (1, 2)]


def test_values_are_means_over_the_tasks_of_a_seed():
    found = [row(42, 1, gain=(1, 0)), row(42, 2, gain=(3, 0)), row(1999, gain=(5, 0))]
    assert components.by_seed(found, "written", "update", "training", "own").tolist() == [82, 85]
    assert not len(components.by_seed(found, "static", "update", "training", "own"))


def test_tables():
    static = {
        **row(42, collaboration="static"),
        "update": {split: {"own": 81, "none": 80} for split in components.SPLITS},
        "server_step": {"bias": 0.2},
    }
    table = components.updates([*ROWS, static])
    assert list(table.index) == [f"{name}, {split} images" for name in ("written per image", "static LoRA") for split in components.SPLITS]
    assert table.loc["written per image, training images", ["own minus none", "95 % interval"]].tolist() == ["+2.0", "1.8 to 2.2"]
    assert table.loc["static LoRA, test images"].tolist() == ["81.0", "–", "–", "80.0", "+1.0", "one seed, none"]
    moved = components.server([*ROWS, static])
    assert moved.loc["written per image", ["O2D minus trained", "mean minus trained", "step, bias", "step, weights"]].tolist() == [
        "+0.0",
        "+1.0",
        "0.5",
        "3.0",
    ]
    assert moved.loc["static LoRA", "step, weights"] == "–"


def test_overfitting_is_named_only_where_it_is():
    said = components.reading(ROWS)
    assert "gains on training images and loses on test images" in said and "overfitting" in said
    assert "cannot be seen to change the accuracy on the task at hand**: +0.0 points (95 % interval -0.2 to 0.2)" in said
    better = components.reading([row(seed, gain=(2 + noise, 1 + noise)) for seed, noise in ((42, 0), (1999, 0.1), (2024, -0.1))])
    assert "gains on training images and gains on test images" in better and "overfitting" not in better
    assert components.reading([]) == "" and "shows neither gain nor loss" in components.reading([row(42)])


def test_without_rows_and_with_a_damaged_file(places):
    assert (
        components.shown("mini", components.updates, "Caption", "x") == "Not measured yet: see `benchmarks/components.py`."
        and components.readings("mini") == ""
    )
    path = places / "results" / "components" / "mini--glyphs.json"
    path.parent.mkdir(parents=True)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(LsclError, match=r"cannot read .*mini--glyphs\.json"):
        components.rows("mini", "glyphs")


def test_the_benchmark_measures_what_the_tables_show(places, monkeypatch):
    script = ROOT / "benchmarks" / "components.py"
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setattr(sys, "argv", [str(script), "--profile", "smoke", "--seeds", "42", "--tasks", "1"])
    runpy.run_path(str(script), run_name="__main__")
    written, static = json.loads((places / "results" / "components" / "smoke--glyphs.json").read_text(encoding="utf-8"))["rows"]
    assert set(written["update"]["test"]) == set(components.UPDATES) and set(static["update"]["test"]) == {"own", "none"}
    assert set(written["server_step"]) == {"weight", "bias"} and set(static["server_step"]) == {"bias"}
    assert written["generator"]["fused"] == pytest.approx(written["update"]["test"]["own"], abs=1e-3)  # two ways to the same accuracy
    assert all(np.isfinite(list(one["generator"].values())).all() for one in (written, static))
