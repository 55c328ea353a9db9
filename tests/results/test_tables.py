"""The tables that pages share, against numbers worked out by hand."""

import math

import pandas as pd
from made_records import record, with_ridge

from lscl import results
from lscl.results import tables

OURS = "Fed-LSCL (O2D exact)"


def test_scores():
    table = tables.score_table(results.frame([record(score=80), record(seed=1999, score=82)]))
    assert table.loc[OURS].tolist() == [
        "2",
        "73.0 ± 12.7",
        "43.0 ± 12.7",
        "33.0 ± 12.7",
        "10.0 ± 0.0",
        "-10.0 ± 0.0",
    ]  # 12.706 * 1
    assert list(table.columns) == [
        "n",
        "task-masked %",
        "class-incremental %",
        "all classes %",
        "forgetting",
        "backward transfer",
    ]


def test_costs():
    assert tables.cost_table(results.costs_frame([record(score=80), record(seed=1999, score=82)])).loc[
        OURS
    ].tolist() == [
        "2.00",
        "0.50",
        "1,500",
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
        "73.0 ± 12.7",
        "79.0 ± 25.4",
        "43.0 ± 12.7",
        "49.0 ± 25.4",
        "+6.0",
        "-6.7 to 18.7",
    ]
    assert list(table.columns[1:3]) == ["task-masked %, trained head", "task-masked %, closed-form head"]
    assert tables.heads_table(results.frame([record()], head=None)).empty
