"""What another processor may move, derived from pairs of runs."""

import json
import runpy
import sys

import numpy as np
import pytest
from made_records import record
from tests_root import ROOT

from lscl import files
from lscl.experiments import rounding
from lscl.federation.metrics import MASKS
from lscl.results import file_shapes

PAIRS = ROOT / "results" / "rounding" / "pairs.json"


def test_what_is_allowed_follows_from_the_committed_pairs():
    saved = files.read_json(PAIRS, file_shapes.RoundingPairs)
    assert saved["allowed"] == rounding.allowed_by(saved["rows"]) == rounding.ALLOWED
    machines = {frozenset(row["machines"]) for row in saved["rows"]}
    assert any("AMD" in " ".join(one) and "Intel" in " ".join(one) for one in machines)


def test_gaps_are_those_of_the_final_accuracies():
    one, other = record(score=70), record(score=72.5)
    assert rounding.accuracy_gaps(one, other) == {mask: pytest.approx(-2.5) for mask in MASKS}
    assert rounding.largest_gap({"task": 1.0, "seen": -3.0}) == 3.0


@pytest.mark.parametrize(("gap", "points"), [(0.0, 0.0), (0.1, 0.5), (0.4, 0.5), (0.41, 1.0), (-3.2, 4.0), (4.0, 5.0)])
def test_what_is_allowed_is_a_quarter_more_than_the_largest_gap(gap, points):
    rows = [{"gaps": {"task": 0.0, "seen": gap}}, {"gaps": {"task": 0.0, "seen": 0.0}}]
    assert rounding.allowed_by(rows) == points


@pytest.mark.parametrize("key", ["config_digest", "code_digest", "data_digest", "partition_digest", "weights_digest"])
def test_only_the_machine_may_differ_in_a_pair(key):
    one = record()
    assert rounding.is_pair(one, {**one, "hardware": {**one["hardware"], "cpu": "another"}})
    assert not rounding.is_pair(one, {**one, key: "0" * 12})


def test_a_range_ends_at_nothing_and_at_all():
    wide = rounding.ALLOWED
    assert rounding.expected_range(50.0) == f"50.0 ({50 - wide:.0f} to {50 + wide:.0f})"
    assert rounding.expected_range(99.5).endswith(" to 100)") and rounding.expected_range(0.5).startswith("0.5 (0 to")


def test_pairs_in_words():
    rows = [rounding.pair_row(record(score=70), record(score=71, hardware={**record()["hardware"], "cpu": "b"}))]
    words = rounding.describe_pairs(rows)
    assert words.startswith("1 pairs of equal runs (") and "by 1.00 at most; allowed are 1.5" in words
    noted = rounding.pair_row(record(score=70), record(score=71), "the second with other kernels")
    machine = record()["hardware"]["cpu"]
    assert f"({machine} and {machine}, the second with other kernels)" in rounding.describe_pairs([noted])


def test_the_script_finds_the_pairs_of_two_folders(tmp_path, places, monkeypatch, capsys):
    made = [record(score=70), record("local_head", score=50)]
    for place, cpu, shift in (("here", "one cpu", 0), ("there", "another cpu", 0.5)):
        for one in made:
            moved = {mask: (np.array(found, float) + shift).tolist() for mask, found in one["accuracy"].items()}
            moved = {m: [[[None if np.isnan(x) else x for x in k] for k in t] for t in f] for m, f in moved.items()}
            path = tmp_path / place / f"{one['name']}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(
                json.dumps({**one, "accuracy": moved, "hardware": {**one["hardware"], "cpu": cpu}}), "utf-8"
            )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rounding.py", "here", "there"])
    runpy.run_path(str(ROOT / "benchmarks" / "rounding.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert out.startswith("2 pairs of equal runs (one cpu and another cpu)") and "0.50 at most" in out
    saved = files.read_json(places / "results" / "rounding" / "pairs.json", file_shapes.RoundingPairs)
    assert saved["allowed"] == 1.0 and [row["method"] for row in saved["rows"]] == ["fed_lscl", "local_head"]
