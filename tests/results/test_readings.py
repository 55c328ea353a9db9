"""Sentences about rankings, costs and components, of numbers made by hand."""

import pandas as pd
import pytest
from made_records import record
from test_measurements import row

from lscl import results
from lscl.errors import LsclError
from lscl.results import frames, readings
from lscl.results.measurements import COMPONENT_WRITERS, GROWTH, component_numbers, growth_frame


def by_seed(group, mask="task"):
    scores = results.frame(group)
    return frames.final_rows(scores[scores["mask"] == mask]).pivot_table("accuracy", "seed", "label", sort=False)


class TestRanking:
    def test_told_apart(self):
        group = [record(seed=s, score=80 + i) for i, s in enumerate((1, 2, 3))]
        group += [record("local_head", seed=s, score=85 + i) for i, s in enumerate((1, 2, 3))]
        text = readings.read_ranking(by_seed(group), "task")
        assert text.startswith("Under the task-masked score the highest mean is that of own head only, 78.0 %.")
        assert text.endswith(
            "Told apart from it, the interval leaving out zero: "
            "Fed-LSCL (O2D exact) 5.0 points behind (95 % interval 5.0 to 5.0)."
        )

    def test_brief_gives_names_and_the_range(self):
        scores = (("fed_lscl", 80), ("local_head", 85), ("lorm", 70))
        group = [record(method, seed=s, score=score + s) for method, score in scores for s in (1, 2, 3)]
        text = readings.read_ranking(by_seed(group), "task", brief=True)
        assert text.endswith(
            "Told apart from it, the interval leaving out zero: Fed-LSCL (O2D exact), LoRM, 5.0 to 15.0 points behind."
        )
        assert readings.read_ranking(by_seed(group[:6]), "task", brief=True).endswith(
            "Fed-LSCL (O2D exact), 5.0 points behind."
        )

    def test_not_told_apart(self):
        group = [record(seed=s, score=80) for s in (1, 2, 3)] + [
            record("local_head", seed=s, score=80 + x) for s, x in ((1, -3), (2, 0), (3, 4))
        ]
        text = readings.read_ranking(by_seed(group, "seen"), "seen")
        assert (
            "class-incremental" in text
            and "Not told apart from it by these seeds, the interval holding zero: Fed-LSCL" in text
        )

    def test_one_seed_concludes_nothing(self):
        text = readings.read_ranking(by_seed([record(), record("local_head", score=99)]), "task")
        assert text.endswith("With one seed nothing can be concluded: Fed-LSCL (O2D exact) 19.0 points behind.")

    def test_no_seed_in_common(self, one_line):
        with pytest.raises(LsclError) as caught:
            readings.read_ranking(by_seed([record(seed=1), record("local_head", seed=2)]), "task")
        one_line(caught, "no seed in common")


class TestCosts:
    def test_less_more_and_the_same(self):
        ours = [record(seed=seed, cpu_seconds=60.0 + seed) for seed in (1, 2, 3)]
        slower = [
            record("fedavg", seed=seed, cpu_seconds=120.0 + seed * seed, bytes_up=[[0, 0]] * 25) for seed in (1, 2, 3)
        ]
        alike = [record("local_head", seed=seed, cpu_seconds=60.0 + 9 * seed * (-1) ** seed) for seed in (1, 2, 3)]
        up, down, parameters, time = readings.read_costs(results.costs_frame([*ours, *slower, *alike])).splitlines()
        assert (
            up == "- **MB up**, 2.00 for Fed-LSCL (O2D exact). "
            "Less: FedAvg (0.00 times); the same: own head only (1.00 times)."
        )
        assert down.endswith("The same: FedAvg (1.00 times), own head only (1.00 times).")
        assert parameters.startswith("- **trained parameters**, 1,500 for Fed-LSCL")
        assert "More: FedAvg (2.01 times); not told apart: own head only" in time
        assert "times" not in readings.read_costs(results.costs_frame(ours))

    def test_what_was_not_measured_is_not_compared(self):
        old = {key: value for key, value in record("fedavg").items() if key != "cpu_seconds"}
        time = readings.read_costs(results.costs_frame([record(), old])).splitlines()[-1]
        assert time == "- **CPU minutes**, 1.5 for Fed-LSCL (O2D exact); nothing to compare."


ROWS = [
    row(seed, task, gain=(2 + noise, -1 + noise), server=noise)
    for seed, noise in ((42, 0), (1999, 0.1), (2024, -0.1))
    for task in (1, 2)
]


class TestComponents:
    def said(self, rows):
        columns = ["writer", "seed", "task", "measure", "images", "kind", "value"]
        found = [
            (COMPONENT_WRITERS[one["collaboration"]], one["seed"], one["task"], *number)
            for one in rows
            for number in component_numbers(one)
        ]
        return readings.read_components(pd.DataFrame(found, columns=columns))

    def test_overfitting_is_named_only_where_it_is(self):
        text = self.said(ROWS)
        assert "gains on training images and loses on test images" in text and "overfitting" in text
        assert (
            "cannot be seen to change the accuracy on the task at hand**: +0.0 points (95 % interval -0.2 to 0.2)"
            in text
        )
        assert "weights by 3.0 times" in text and "its bias by 0.5 times" in text
        better = self.said(
            [row(seed, gain=(2 + noise, 1 + noise)) for seed, noise in ((42, 0), (1999, 0.1), (2024, -0.1))]
        )
        assert "gains on training images and gains on test images" in better and "overfitting" not in better

    def test_without_runs_that_write_nothing_is_said(self):
        assert self.said([]) == "" and self.said([row(42, collaboration="static")]) == ""
        assert "shows neither gain nor loss" in self.said([row(42)])


@pytest.mark.parametrize(
    ("kept", "free", "says"),
    [
        (
            0.5,
            0.6,
            "**1.20 times** as far; 2 means unrelated. Here the equation slows the drift down, it does not stop it.",
        ),
        (0.001, 0.6, "Here the equation slows the drift down, almost to nothing."),
        (0.6, 0.54, "**0.90 times** as far; 2 means unrelated. Here the equation does not slow the drift down."),
        (0.6, 0.599, "**1.00 times** as far; 2 means unrelated. Here the equation makes no difference to the drift."),
        (0.0, 0.5, "**inf times**"),
    ],
)
def test_drift(kept, free, says):
    assert says in readings.read_drift(kept, free)


def test_growth():
    sizes = zip(GROWTH.values(), (1.1, 1.104, 0.81, 1.2))
    rows = [
        {"label": "Fed-LSCL", "grows": grows, "size": size, "time_exponent": ratio}
        for grows, ratio in sizes
        for size in (1, 2)
    ]
    assert readings.read_growth(pd.DataFrame(rows)) == (
        "Processor time grows **faster than in proportion**: Fed-LSCL with the number of images in a class (1.20); "
        "**in proportion, to a tenth of the exponent**: Fed-LSCL with the number of clients (1.10), "
        "Fed-LSCL with the number of tasks (1.10); "
        "**more slowly than that**: Fed-LSCL with the number of classes in a task (0.81)."
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
        assert said.startswith(readings.LEADS[verdict])
        assert f"{sum(task) / 3:+.1f} points from first" in said and f"{sum(seen) / 3:+.1f} points from first" in said

    def test_only_systems_with_all_its_seeds_are_rivals(self):
        end = self.end((1, 1, 1), (1, 1, 1))
        end.loc[("task", 0), "first"] = float("nan")
        assert "+2.0 points from second" in readings.read_lead(end, "ours")

    def test_a_system_without_a_seed_says_nothing(self):
        end = self.end((1, 1), (1, 1))
        assert readings.read_lead(end.drop(columns="ours"), "ours") == ""
        assert readings.read_lead(end.assign(ours=float("nan")), "ours") == ""
