"""Sentences about rankings, costs and components, of numbers made by hand."""

import pandas as pd
import pytest
from made_records import record
from test_measurements import row

from lscl import results
from lscl.errors import LsclError
from lscl.results import frames, readings
from lscl.results.labels import LOSSES, label_of
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

    def test_seeds_that_cannot_separate_two_systems(self):
        group = [record(seed=s, score=80) for s in (1, 2, 3)] + [
            record("local_head", seed=s, score=80 + x) for s, x in ((1, -3), (2, 0), (3, 4))
        ]
        text = readings.read_ranking(by_seed(group, "seen"), "seen")
        assert "class-incremental" in text
        assert text.endswith("Three seeds cannot separate it from Fed-LSCL (O2D exact) (+0 ± 9 points).")

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
        assert (
            "raises accuracy (+2.00 ± 0.25 points) on training images and lowers accuracy (" in text
            and "overfitting" in text
        )
        assert (
            "**The server's step** does not measurably change accuracy (+0.00 ± 0.25 points) on the task at hand"
            in text
        )
        assert "weights by 3.0 times" in text and "its bias by 0.5 times" in text
        better = self.said(
            [row(seed, gain=(2 + noise, 1 + noise)) for seed, noise in ((42, 0), (1999, 0.1), (2024, -0.1))]
        )
        assert "points) on training images and raises accuracy (" in better and "overfitting" not in better

    def test_each_rate_is_read_apart(self):
        gains = {1e-5: (0, 0), 1e-3: (2, 2)}
        rows = [row(seed, gain=gain, rate=rate) for rate, gain in gains.items() for seed in (1, 2)]
        small, large = self.said(rows).split("At rate 0.001 of the generator:")
        assert (
            small.startswith("At rate 1e-05 of the generator:\n\n- **The written update**")
            and "does not measurably" in small
        )
        assert "points) on training images and raises accuracy (" in large

    def test_without_runs_that_write_nothing_is_said(self):
        assert self.said([]) == "" and self.said([row(42, collaboration="static")]) == ""
        alone = self.said([row(42)])
        assert "At rate 0.001 of the generator (one seed, so no difference can be separated from chance):" in alone
        assert "changes accuracy by +" in alone and "measurably" not in alone and "one seed" not in self.said(ROWS)


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
            away = str(estimate([abs(gap) for gap in gaps] if min(gaps) * max(gaps) > 0 else gaps))
            assert f"{away} points {'below' if estimate(gaps).mean < 0 else 'above'} first (n = 3)" in said

    def test_only_systems_with_all_its_seeds_are_rivals(self):
        end = self.end((1, 1, 1), (1, 1, 1))
        end.loc[("task", 0), "first"] = float("nan")
        assert "2.0 ± 0.0 points above second" in readings.read_lead(end, "ours")

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
        assert "federated ridge, has 71.0 ± 2.5 %. It is ahead of 2 of the 2 rows of systems that train." in ahead
        assert "Fed-LSCL (O2D exact) minus this control is -19.7 ± 1.4 points (n = 3)." in ahead
        behind = self.said([40.0, 41, 42], [50.0, 51, 53])
        assert "It is ahead of 0 of the 2 rows of systems that train." in behind and "is +10.3 ± 1.4 points" in behind

    def test_systems_are_compared_on_the_seeds_that_both_have(self):
        """The control leads on the one seed in common, though its mean over three is lower."""
        index = pd.MultiIndex.from_product([["seen"], [1, 2, 3]], names=["mask", "seed"])
        one_seed = [45.0, float("nan"), float("nan")]
        columns = {"Fed-LSCL (O2D exact)": [44.0, 30, 30], "FedAvg": one_seed, "federated ridge": [50.0, 40, 40]}
        found = pd.DataFrame(columns, index=index)
        assert "It is ahead of 2 of the 2 rows" in readings.read_controls(found)
        text = readings.read_ranking(found.droplevel("mask"), "seen")
        assert "score federated ridge has the highest mean" in text and "FedAvg (5.0 points behind)" in text
        assert readings.read_best(found.droplevel("mask"), "seen").startswith("Under the class-incremental score fed")

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


def test_forgetting_in_words():
    keys = [(name, head, seed) for name in ("a", "b", "c") for head in ("trained", "ridge") for seed in (1, 2)]
    index = pd.MultiIndex.from_tuples(keys, names=["label", "head", "seed"])
    losses = {"a": (-15.0, 0.01), "b": (-18.0, -12.0), "c": (0.5, 1.0)}
    rows = [(*losses[name], 0.0) if head == "trained" else (9.0, 9.0, 0.0) for name, head, _ in keys]
    parts = pd.DataFrame(rows, index=index, columns=list(LOSSES))
    assert readings.read_forgetting(parts, ["b", "a", "c", "nobody"]).splitlines() == [
        "- b loses 18.0 points as later tasks come; with the task given it loses 12.0 points.",
        "- a loses 15.0 points as later tasks come; with the task given it loses nothing.",
        "- c gains 0.5 points as later tasks come; with the task given it gains 1.0 points.",
    ]
    assert readings.read_forgetting(parts, ["nobody"]) == ""


def test_features_that_read_like_the_frozen_ones_are_named():
    index = pd.MultiIndex.from_product([["frozen", "same", "other"], [1, 2]], names=["label", "seed"])
    end = pd.DataFrame({"trained": 1.0, "ridge": [70.0, 71, 70.04, 71, 70.5, 71]}, index=index)
    said = readings.read_frozen(end, "frozen")
    assert (
        "the features of same has" in said and "at most 0.04 points apart" in said and "other" not in said.split(":")[0]
    )
    assert readings.read_frozen(end, "nobody") == "" == readings.read_frozen(end.drop("same", level="label"), "frozen")


def test_what_steps_are_worth():
    by_seed = pd.DataFrame({"whole": [70.0, 72, 71], "static": [70.0, 72, 71], "nothing": [69.5, float("nan"), 70.5]})
    worth = {"static": "Writing", "nothing": "Adapting", "absent": "Freezing"}
    assert readings.read_worth(by_seed, "whole", worth) == (
        "Writing is worth +0.0 ± 0.0 points (n = 3). Adapting is worth +0.5 ± 0.0 points (n = 2)."
    )
    assert readings.read_worth(by_seed, "absent", worth) == ""


def test_the_best_and_who_is_behind_it():
    columns = {"Fed-LSCL (O2D exact)": [50.0, 51, 53], "LoRM": [60.0, 61, 62], "federated ridge": [70.0, 71, 72]}
    said = readings.read_best(pd.DataFrame(columns), "seen")
    assert said == (
        "Under the class-incremental score federated ridge is the best of the paper's systems and the controls: "
        "71.0 ± 2.5 % (n = 3). LoRM, the best other system that trains, is 10.0 ± 0.0 points lower (n = 3). "
        "Fed-LSCL (O2D exact), the paper's own system, is 19.7 ± 1.4 points lower (n = 3)."
    )
    first = readings.read_best(pd.DataFrame(columns).assign(**{"Fed-LSCL (O2D exact)": [90.0, 91, 92]}), "task")
    assert "score Fed-LSCL (O2D exact) is the best" in first and "own system" not in first
    assert readings.read_best(pd.DataFrame({"LoRM": [60.0]}), "task").endswith("60.0 % (n = 1).")


def test_private_and_public_in_words():
    rows = {
        ("seen", "Fed-LSCL (O2D exact)"): (66, 36),
        ("seen", label_of("local_head")): (65, 37),
        ("seen", "LoRM"): (50, 64),
    }
    index = pd.MultiIndex.from_tuples(rows, names=["mask", "label"])
    kinds = pd.DataFrame(list(rows.values()), columns=["private", "public"], index=index)
    said = readings.read_kinds(kinds, "LoRM")
    assert "Fed-LSCL (O2D exact) has 66 % on private classes and 36 % on public ones" in said
    assert "LoRM has 50 %" in said and said.endswith(
        "2 of 3 systems are better on private classes than on public ones."
    )
    assert "LoRM" not in readings.read_kinds(kinds, None)
    assert readings.read_kinds(kinds.drop(columns="public"), "LoRM") == ""


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
