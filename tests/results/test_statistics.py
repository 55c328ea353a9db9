"""Means, intervals and tests of a few values, against numbers worked out by hand."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from tests_root import ROOT

from lscl.errors import LsclError
from lscl.results import statistics
from lscl.results.statistics import APART, ONE_SEED, TIED, Estimate, estimate

NAN = math.nan


class TestEstimate:
    def test_three_values(self):
        found = estimate([80, 82, 87])  # mean 83, deviations -3, -1, 4: variance 26 / 2
        assert (found.mean, found.n) == (83, 3)
        assert found.half_width == pytest.approx(
            4.302652729911275 * math.sqrt(13 / 3)
        )  # t table: 0.975 quantile, 2 degrees of freedom

    def test_plus_minus_is_half_of_the_interval(self):
        assert str(estimate([80, 82, 87])) == statistics.mean_with_interval([80, 82, 87]) == "83 ± 9"
        assert estimate([80, 82, 87]).signed == "+83 ± 9" and estimate([80, 82, 87]).interval == "74 to 92"
        assert statistics.interval_of([80, 82, 87]) == pytest.approx((74.043, 91.957), abs=1e-3)

    @pytest.mark.parametrize(
        ("half", "text"),
        [
            (0.004, "5.00 ± 0.00"), (0.04, "5.00 ± 0.04"), (0.31, "5.00 ± 0.31"), (0.4, "5.0 ± 0.4"),
            (0.0, "5.0 ± 0.0"), (0.96, "5.0 ± 1.0"), (3.5, "5.0 ± 3.5"), (3.6, "5 ± 4"), (9.8, "5 ± 10"), 
            (12.7, "5 ± 13"), (127.0, "5 ± 127"),
        ],
    )  # fmt: skip
    def test_a_number_has_the_digits_that_its_interval_allows(self, half, text):
        assert str(Estimate(5.0, 3, half)) == text

    def test_a_zero_has_no_minus(self):
        assert str(Estimate(-0.01, 3, 0.5)) == "0.0 ± 0.5" and Estimate(-0.01, 3, 0.5).signed == "+0.0 ± 0.5"

    def test_one_value_has_no_interval(self):
        found = estimate([83.0])
        assert math.isnan(found.half_width) and math.isnan(found.p)
        assert str(found) == "83.0" and found.interval == "one seed, none"

    def test_none(self, one_line):
        with pytest.raises(LsclError) as caught:
            estimate([])
        one_line(caught, "at least one value")

    def test_what_was_not_measured_is_a_dash(self):
        assert statistics.mean_with_interval([1.0, NAN]) == "–"

    def test_p_of_three_differences(self):
        assert estimate([1, 2, 3]).p == pytest.approx(
            0.0741799, abs=1e-6
        )  # t = 2 / (1 / sqrt 3) = 3.4641, 2 degrees of freedom

    def test_equal_values(self):
        """No t test has a meaning for them, nor for values that differ by rounding only."""
        assert all(math.isnan(estimate(values).p) for values in ([2, 2], [0, 0], [0.1 + 0.2, 0.3]))
        assert estimate([2, 2]).half_width == 0.0 and str(estimate([2, 2])) == "2.0 ± 0.0"

    @pytest.mark.parametrize(
        ("mean", "n", "verdict", "side"), [(2, 3, APART, 1), (-2, 3, APART, -1), (1, 3, TIED, 0), (9, 1, ONE_SEED, 0)]
    )
    def test_the_interval_decides(self, mean, n, verdict, side):
        found = Estimate(mean, n, 1.0)
        assert (found.verdict, found.side) == (verdict, side)


def test_holm():
    assert statistics.holm([0.04, 0.01, NAN, 0.03]) == pytest.approx([0.06, 0.03, NAN, 0.06], nan_ok=True)
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    gaps = [0.21, NAN, 0.005, NAN, 0.007, 0.13]  # NaN cannot be sorted
    assert statistics.holm(gaps) == pytest.approx([0.26, NAN, 0.02, NAN, 0.021, 0.26], nan_ok=True)


def test_p_values_as_text():
    assert [statistics.p_text(value) for value in (NAN, 0.0004, 0.0316)] == ["–", "< 0.001", "0.032"]


def test_estimates_keep_the_order_and_count_the_seeds():
    index = pd.MultiIndex.from_tuples([("z", 42), ("z", 1), ("a", 42)], names=["label", "seed"])
    table = statistics.estimates(pd.DataFrame({"x %": [80.0, 82.0, 70.0], "y": [1.0, 1.0, NAN]}, index=index), "label")
    assert list(table.index) == ["z", "a"] and list(table.columns) == ["n", "x %", "y"]
    assert table.loc["z"].tolist() == ["2", "81 ± 13", "1.0 ± 0.0"]  # 12.706, the t quantile, times 1.414 / 1.414
    assert table.loc["a"].tolist() == ["1", "70.0", "–"]


def by_seed(**columns):
    return pd.DataFrame(columns, index=pd.Index([1, 2, 3], name="seed"), dtype=float)


def test_differences_are_paired_by_seed():
    found = statistics.differences_from(by_seed(first=[80, 82, NAN], other=[70, 75, 60], alone=[NAN, NAN, 50]), "first")
    assert found.to_dict() == {"other": {1: -10.0, 2: -7.0}}  # the third column has no seed in common
    assert statistics.differences_from(by_seed(other=[1, 2, 3]), "first").empty


def test_paired_tests_are_corrected_for_all_rows_of_a_score():
    scores = {mask: by_seed(far=[-10, -10.1, -9.9], near=[1, 2, 3], once=[5, NAN, NAN]) for mask in ("task", "seen")}
    table = statistics.paired_tests(pd.concat(scores, names=["mask"]))
    assert table.loc["near"].tolist() == ["3", "+2.0 ± 2.5", "0.074", "+2.0 ± 2.5", "0.074"]
    assert table.loc["far", ["n", "task-masked, points", "p, task-masked"]].tolist() == [
        "3",
        "-10.00 ± 0.25",
        "< 0.001",
    ]
    assert table.loc["once", ["n", "task-masked, points", "p, task-masked"]].tolist() == ["1", "+5.0", "–"]


def test_comparison_with_the_first():
    table = statistics.compare_with(by_seed(first=[80, 84, NAN], head=[90, 91, NAN], alone=[NAN, NAN, 50]), "first")
    assert table.loc["first"].tolist() == ["2", "82 ± 25", "–", "–"]  # 12.706 * 2
    assert table.loc["head", "minus first, points"] == "+8 ± 19"  # +10 and +7; 12.706 * 1.5
    assert table.loc["alone"].tolist() == ["1", "50.0", "–", "–"]


def test_p_values_of_the_comparison_are_corrected_for_all_rows():
    table = statistics.compare_with(by_seed(first=[80, 80, 80], head=[81, 82, 83], vit=[70, 70.1, 70.2]), "first")
    assert table.loc[["head", "vit"], "p, Holm"].tolist() == ["0.074", "< 0.001"]
    two = statistics.compare_with(by_seed(first=[80, 80, 80], a=[81, 82, 83], b=[81, 82, 83]), "first")
    assert two.loc["a", "p, Holm"] == "0.148"


def test_rows_minus_one_of_them_share_its_seeds():
    rows = [("whole", 1), ("whole", 2), ("a", 1), ("a", 2), ("b", 2), ("c", 3)]
    values = pd.Series([70, 60, 73, 64, 50, 9.0], index=pd.MultiIndex.from_tuples(rows, names=["variant", "seed"]))
    table = statistics.gaps_from(values, "whole", "minus whole")
    assert table.to_dict() == {"minus whole": {"a": "+4 ± 6", "b": "-10.0"}}
    assert statistics.gaps_from(values, "nobody", "minus nobody").empty


def test_gaps_as_a_column_of_a_table():
    index = pd.MultiIndex.from_product([["z", "a"], [1, 2, 3]], names=["row", "seed"])
    table = statistics.gap_text(pd.Series([1.9, 2.0, 2.1, -1, -1, -1], index=index), "row", "own minus none")
    assert table.to_dict() == {"own minus none": {"z": "+2.00 ± 0.25", "a": "-1.0 ± 0.0"}}


def test_the_half_width_is_that_of_the_textbook():
    values = np.random.default_rng(0).normal(size=7)
    assert estimate(values).half_width == pytest.approx(2.446911851144969 * values.std(ddof=1) / math.sqrt(7))


def test_the_sign_of_an_interval_means_one_thing_on_every_page():
    """± is half of the 95 % interval; a standard deviation would be called by its name, without that sign."""
    sources = [
        path.read_text("utf-8")
        for folder in ("lscl", "book")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md")
    ]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        sources += ["".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"]]
    assert not [text for text in sources if re.search(r"± (the |a )?(standard|sd\b)", text)]


def test_a_column_without_a_value_is_a_dash():
    by_seed = pd.DataFrame({"a": [1.0, 2, 3], "b": [2.0, 3, 4.5], "never": [math.nan] * 3})
    row = statistics.compare_with(by_seed, "a").loc["never"]
    assert row.tolist() == ["0", "–", "–", "–"]
    index = pd.MultiIndex.from_product([["task", "seen"], [1, 2, 3]], names=["mask", "seed"])
    half = pd.DataFrame({"a": [1.0, 2, 4] * 2, "b": [math.nan] * 3 + [1.0, 2, 4]}, index=index)
    table = statistics.paired_tests(half)
    assert table.loc["b", "task-masked, points"] == "–" and table.loc["b", "class-incremental, points"] != "–"
    assert estimate([1.0, math.nan]).verdict == TIED and estimate([1.0, math.nan]).side == 0
