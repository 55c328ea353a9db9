"""Sentences about rankings, costs and components, of numbers made by hand."""

import pandas as pd
import pytest
from made_records import record
from test_measurements import row

from lscl import results
from lscl.errors import LsclError
from lscl.results import frames, readings
from lscl.results.labels import label_of
from lscl.results.measurements import COMPONENT_WRITERS, GROWTH, component_numbers, growth_frame
from lscl.results.statistics import estimate


def by_seed(group, mask="task"):
    scores = results.frame(group)
    return frames.final_rows(scores[scores["mask"] == mask]).pivot_table("accuracy", "seed", "label", sort=False)


class TestRanking:
    def test_behind(self):
        group = [record(seed=s, score=80 + i) for i, s in enumerate((1, 2, 3))]
        group += [record("local_head", seed=s, score=85 + i) for i, s in enumerate((1, 2, 3))]
        text = readings.read_ranking(by_seed(group), "task")
        assert text == (
            f"Under the task-masked score {label_of('local_head')} has the highest mean, 78.0 ± 2.5 % (n = 3). "
            "Behind it: Fed-LSCL (O2D exact) by 5.0 ± 0.0 points."
        )

    def test_brief_gives_names_and_the_range(self):
        scores = (("fed_lscl", 80), ("local_head", 85), ("lorm", 70))
        group = [record(method, seed=s, score=score + s) for method, score in scores for s in (1, 2, 3)]
        text = readings.read_ranking(by_seed(group), "task", brief=True)
        assert text.endswith("Behind it by 5.0 to 15.0 points: Fed-LSCL (O2D exact), LoRM.")
        assert readings.read_ranking(by_seed(group[:6]), "task", brief=True).endswith(
            "Behind it by 5.0 points: Fed-LSCL (O2D exact)."
        )

    def test_seeds_that_cannot_separate_two_systems(self):
        group = [record(seed=s, score=80) for s in (1, 2, 3)] + [
            record("local_head", seed=s, score=80 + x) for s, x in ((1, -3), (2, 0), (3, 4))
        ]
        text = readings.read_ranking(by_seed(group, "seen"), "seen")
        assert "class-incremental" in text
        assert text.endswith("Three seeds cannot separate it from Fed-LSCL (O2D exact) (+0 ± 9 points).")
        assert readings.read_ranking(by_seed(group, "seen"), "seen", brief=True).endswith(
            "Three seeds cannot separate it from Fed-LSCL (O2D exact)."
        )

    def test_one_seed_concludes_nothing(self):
        text = readings.read_ranking(by_seed([record(), record("local_head", score=99)]), "task")
        assert text.endswith("One seed in common, so no interval: Fed-LSCL (O2D exact) (19.0 points behind).")

    def test_no_seed_in_common(self, one_line):
        with pytest.raises(LsclError) as caught:
            readings.read_ranking(by_seed([record(seed=1), record("local_head", seed=2)]), "task")
        one_line(caught, "no seed in common")


ROWS = [
    row(seed, task, gain=(2 + noise, -1 + noise), server=noise)
    for seed, noise in ((42, 0), (1999, 0.1), (2024, -0.1))
    for task in (1, 2)
]


class TestComponents:
    def said(self, rows):
        columns = ["writer", "rate", "seed", "task", "measure", "images", "kind", "value"]
        found = [
            (COMPONENT_WRITERS[one["collaboration"]], one["lr_generator"], one["seed"], one["task"], *number)
            for one in rows
            for number in component_numbers(one)
        ]
        return readings.read_components(pd.DataFrame(found, columns=columns))

    def test_overfitting_is_named_only_where_it_is(self):
        text = self.said(ROWS)
        assert "gains on training images and loses on test images" in text and "overfitting" in text
        assert "cannot be seen to change the accuracy on the task at hand**: +0.00 ± 0.25 points" in text
        assert "weights by 3.0 times" in text and "its bias by 0.5 times" in text
        better = self.said(
            [row(seed, gain=(2 + noise, 1 + noise)) for seed, noise in ((42, 0), (1999, 0.1), (2024, -0.1))]
        )
        assert "gains on training images and gains on test images" in better and "overfitting" not in better

    def test_each_rate_is_read_apart(self):
        gains = {1e-5: (0, 0), 1e-3: (2, 2)}
        rows = [row(seed, gain=gain, rate=rate) for rate, gain in gains.items() for seed in (1, 2)]
        small, large = self.said(rows).split("At rate 0.001 of the generator:")
        assert small.startswith("At rate 1e-05 of the generator:\n\n- **The written update shows neither gain")
        assert "gains on training images and gains on test images" in large

    def test_without_runs_that_write_nothing_is_said(self):
        assert self.said([]) == "" and self.said([row(42, collaboration="static")]) == ""
        alone = self.said([row(42)])
        assert "At rate 0.001 of the generator (one seed, so no number can be told from chance):" in alone
        assert "shows neither gain nor loss" in alone and "one seed" not in self.said(ROWS)


def test_growth():
    sizes = zip(GROWTH.values(), (1.1, 1.104, 0.81, 1.2))
    rows = [
        {"label": "Fed-LSCL", "grows": grows, "size": size, "time_exponent": ratio}
        for grows, ratio in sizes
        for size in (1, 2)
    ]
    assert readings.read_growth(pd.DataFrame(rows)) == (
        "Processor time grows **faster than in proportion**: Fed-LSCL with the number of images in a class (1.20); "
        "**in proportion (the exponent is 1 to within 0.1)**: Fed-LSCL with the number of clients (1.10), "
        "Fed-LSCL with the number of tasks (1.10); "
        "**more slowly than in proportion**: Fed-LSCL with the number of classes in a task (0.81)."
    )
    assert readings.read_growth(growth_frame()) == ""


class TestLead:
    def end(self, task, seen):
        """Two rivals at 80, and a system that is so many points above or below them, seed by seed."""
        rows = {
            (mask, seed): {"first": 80.0, "second": 79.0, "ours": 80.0 + gap}
            for mask, gaps in (("task", task), ("seen", seen))
            for seed, gap in enumerate(gaps)
        }
        index = pd.MultiIndex.from_tuples(rows, names=["mask", "seed"])
        return pd.DataFrame(list(rows.values()), index=index)

    @pytest.mark.parametrize(
        ("task", "seen", "verdict"),
        [
            ((-1, -2, -1), (-3, -2, -3), "none"),
            ((1, 1.1, 1.2), (-1, -1, -1), "some"),
            ((0.1, 2, -1), (1, -0.5, 1), "unsure"),
            ((1, 1.1, 1.2), (1, -0.5, 1), "partly"),
            ((1, 1.1, 1.2), (2, 2.1, 2.2), "sure"),
        ],
    )
    def test_each_outcome_has_its_sentence(self, task, seen, verdict):
        said = readings.read_lead(self.end(task, seen), "ours")
        assert said.startswith(readings.LEADS[verdict].format(scores="task-masked and class-incremental"))
        for gaps in (task, seen):
            assert f"{estimate(gaps).signed} points from first (n = 3)" in said

    def test_only_systems_with_all_its_seeds_are_rivals(self):
        end = self.end((1, 1, 1), (1, 1, 1))
        end.loc[("task", 0), "first"] = float("nan")
        assert "+2.0 ± 0.0 points from second" in readings.read_lead(end, "ours")

    def test_a_system_without_a_seed_says_nothing(self):
        end = self.end((1, 1), (1, 1))
        assert readings.read_lead(end.drop(columns="ours"), "ours") == ""
        assert readings.read_lead(end.assign(ours=float("nan")), "ours") == ""


class TestControls:
    def said(self, control, ours):
        index = pd.MultiIndex.from_product([["seen"], [1, 2, 3]], names=["mask", "seed"])
        columns = {"Fed-LSCL (O2D exact)": ours, "LoRM": [60.0, 61, 62], "federated ridge": control}
        return readings.read_controls(pd.DataFrame(columns, index=index))

    def test_either_outcome(self):
        ahead = self.said([70.0, 71, 72], [50.0, 51, 53])
        assert "federated ridge, has 71.0 ± 2.5 %. It is ahead of 2 of the 2 systems that train." in ahead
        assert "Fed-LSCL (O2D exact) minus this control is -19.7 ± 1.4 points (n = 3)." in ahead
        behind = self.said([40.0, 41, 42], [50.0, 51, 53])
        assert "It is ahead of 0 of the 2 systems that train." in behind and "is +10.3 ± 1.4 points" in behind

    def test_without_a_control_nothing_is_said(self):
        index = pd.MultiIndex.from_tuples([("seen", 1)], names=["mask", "seed"])
        assert readings.read_controls(pd.DataFrame({"LoRM": [60.0]}, index=index)) == ""


def test_both_heads_in_words():
    index = pd.MultiIndex.from_product([["a", "b", "c"], [1, 2, 3]], names=["label", "seed"])
    gains = [5, 6, 7, -5, -6, -7, 0, 1, -1]
    end = pd.DataFrame({"trained": 50.0, "ridge": [50.0 + gain for gain in gains]}, index=index)
    assert readings.read_heads(end) == (
        "The closed form is better for a. The trained head is better for b. "
        "The seeds cannot separate the two heads for c."
    )
    assert readings.read_heads(end.assign(ridge=float("nan"))) == ""


def test_private_and_public_in_words():
    rows = {
        ("seen", "Fed-LSCL (O2D exact)"): (66, 36),
        ("seen", label_of("local_head")): (65, 37),
        ("seen", "LoRM"): (50, 64),
    }
    index = pd.MultiIndex.from_tuples(rows, names=["mask", "label"])
    kinds = pd.DataFrame(list(rows.values()), columns=["private", "public"], index=index)
    said = readings.read_kinds(kinds)
    assert "Fed-LSCL (O2D exact) has 66 % on private classes and 36 % on public ones" in said
    assert "LoRM has 50 %" in said and said.endswith(
        "2 of 3 systems are better on private classes than on public ones."
    )
    assert readings.read_kinds(kinds.drop(columns="public")) == ""


def test_the_scale_from_which_a_difference_is_positive():
    gaps = {5: [-3, -3.1, -2.9], 20: [-1, 0, 1], 500: [2, 2.1, 1.9]}
    rows = [("written", size, gap) for size, found in gaps.items() for gap in found]
    said = readings.read_scale(pd.DataFrame(rows, columns=["comparison", "images", "difference"]))
    assert said.startswith("- *written*, in points, by images per class: -3.00 ± 0.25 at 5 (n = 3), ")
    assert said.endswith("The interval is above zero at 500, below zero at 5.")
    one = pd.DataFrame([("whole", 60, 1.0)], columns=["comparison", "images", "difference"])
    assert readings.read_scale(one).endswith("+1.0 at 60 (n = 1). One seed has no interval.")
    unsure = pd.DataFrame([("whole", 60, gap) for gap in (-1.0, 1.5)], columns=one.columns)
    assert readings.read_scale(unsure).endswith("(n = 2). No interval excludes zero.")
    assert readings.read_scale(one.iloc[:0]) == ""


def test_the_order_of_the_systems_against_the_papers():
    slopes = pd.DataFrame(
        {"published": [97.0, 86.0, 69.0], "measured here": [76.0, 83.0, 82.0]},
        index=["Fed-LSCL (O2D exact)", "LoRM", "FedAvg + ViT"],
    )
    assert readings.read_order(slopes) == (
        "Of the 3 pairs of systems, 1 have the same order as in the paper. "
        "Fed-LSCL (O2D exact) is number 1 of 3 in the paper and number 3 here."
    )
    assert readings.read_order(slopes.iloc[:1]) == ""
