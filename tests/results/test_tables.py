"""The tables that pages share, against numbers worked out by hand."""

import math

import pandas as pd
from made_records import record, with_ridge

from lscl import results
from lscl.results import tables
from lscl.results.labels import label_of

OURS = "Fed-LSCL (O2D exact)"


def test_scores():
    table = tables.score_table(results.frame([record(score=80), record(seed=1999, score=82)]))
    assert table.loc[OURS].tolist() == [
        "paper",
        "2",
        "73 ± 13",
        "43 ± 13",
        "33 ± 13",
        "10.0 ± 0.0",
        "-10.0 ± 0.0",
    ]  # 12.706 * 1
    assert list(table.columns) == [
        "group",
        "n",
        "task-masked %",
        "class-incremental %",
        "all classes %",
        "forgetting",
        "backward transfer",
    ]


def test_the_score_table_sets_controls_and_our_variant_apart():
    made = [record(name) for name in ("fed_lscl_ridge", "local_head", "lorm", "fed_ridge")]
    assert tables.score_table(results.frame(made))["group"].to_dict() == {
        "LoRM": "paper",
        label_of("local_head"): "control",
        label_of("fed_ridge"): "control",
        label_of("fed_lscl_ridge"): "our variant",
    }


def test_costs():
    assert tables.cost_table(results.costs_frame([record(score=80), record(seed=1999, score=82)])).loc[
        OURS
    ].tolist() == [
        "50.00",
        "12.50",
        "1,500",
        "20",
        "1.5",
        "900",
    ]
    old = {key: value for key, value in record().items() if key != "cpu_seconds"}
    assert tables.cost_table(results.costs_frame([old])).loc[OURS, "CPU minutes"] == "–"


def test_numbers_as_text():
    table = tables.format_numbers(
        pd.DataFrame({"a": [1234.5, math.nan], "b": [1, 2]}), {"b": ("n", "d"), "a": ("A", ",.1f")}
    )
    assert table.to_dict("list") == {"n": ["1", "2"], "A": ["1,234.5", "–"]}


def test_both_heads_stand_side_by_side():
    made = [with_ridge(record(score=80), 5.0), with_ridge(record(seed=1999, score=82), 7.0), record("fedavg")]
    table = tables.heads_table(results.frame(made, head=None))
    assert list(table.index) == [OURS]  # nobody has tested the other one's
    assert table.loc[OURS].tolist() == [
        "2",
        "73 ± 13",
        "79 ± 25",
        "43 ± 13",
        "49 ± 25",
        "+6 ± 13",
    ]
    assert list(table.columns[1:3]) == ["task-masked %, trained head", "task-masked %, closed-form head"]
    assert tables.heads_table(results.frame([record()], head=None)).empty


class TestCostRatios:
    def test_multiples_of_the_first(self):
        ours = [record(seed=seed) for seed in (1, 2, 3)]
        others = [record("local_head", seed=seed, bytes_up=[[0, 0]] * 25) for seed in (1, 2)]
        costs = results.costs_frame([*ours, *others])
        table = tables.cost_ratios(costs)
        assert list(table.columns) == ["MB up", "MB down", "trained parameters", "TFLOP"]
        operations = costs.groupby("method")["tflop"].first()
        ratio = operations["local_head"] / operations["fed_lscl"]
        assert table.loc[label_of("local_head")].tolist() == ["0", "1", "1", f"{ratio:.2g}"] and 0 < ratio < 1

    def test_what_is_not_known_is_a_dash_and_one_system_has_no_multiples(self):
        costs = results.costs_frame([record(), record("fedavg")])
        costs.loc[costs["method"] == "fedavg", "tflop"] = math.nan
        assert tables.cost_ratios(costs).loc["FedAvg", "TFLOP"] == "–"
        assert tables.cost_ratios(results.costs_frame([record()])).empty
