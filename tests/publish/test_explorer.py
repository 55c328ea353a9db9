"""The data behind the interactive figure, against numbers worked out by hand."""

import json

import pytest
from made_records import record

from lscl.publish import explorer
from lscl.results import figures
from lscl.results.markdown import NO_RECORDS

pytestmark = pytest.mark.usefixtures("published")


def test_without_records_a_sentence():
    assert explorer.explorer_page([]) == f"<p>{NO_RECORDS}</p>"


def test_accuracies_and_costs():
    (systems,) = explorer.explorer_data([record(), record(seed=1999, score=84), record("local_head")]).values()
    ours, head = systems
    assert (ours["group"], head["group"]) == ("paper", "control")
    assert (ours["name"], ours["seeds"]) == ("Fed-LSCL (O2D exact)", [42, 1999])
    current = ours["accuracy"]["task-masked"]["the task just learned"]
    assert current[2] == [
        82.0,
        pytest.approx(12.7062 * 2, abs=1e-3),
        2,
    ]  # sd of 80 and 84 is 2 sqrt 2; t quantile, 1 degree of freedom
    assert (
        ours["accuracy"]["class-incremental"]["all tasks so far"][1][0] == 82 - 30 - 5
    )  # one of two tasks has 10 less
    assert head["accuracy"]["task-masked"]["the task just learned"][0] == [80.0, None, 1]
    assert ours["costs"]["MB up"][0] == pytest.approx(50.0) and ours["costs"]["CPU minutes"] == [1.5, 0.0, 2]
    assert len(ours["published"]) == 5 and head["published"] == []


def test_a_cost_that_was_not_measured_is_none():
    old = {key: value for key, value in record().items() if key != "cpu_seconds"}
    (systems,) = explorer.explorer_data([old]).values()
    assert systems[0]["costs"]["CPU minutes"] == [None, None, 1]


def test_published_marks_come_once_and_what_is_in_colour_is_drawn_last():
    (systems,) = explorer.explorer_data([record(values={"o2d": "sgd"}), record(), record("local_head")]).values()
    published = {system["name"]: len(system["published"]) for system in systems}
    assert sorted(published.values()) == [0, 0, 5] and published["local head"] == 0
    orders = {system["look"]["coloured"]: system["look"]["order"] for system in systems[:2]}
    assert set(orders) == {True, False} and orders[False] < systems[2]["look"]["order"] < orders[True]


def test_the_page_holds_its_data():
    html = explorer.explorer_page([record()])
    found = json.loads(html.split('id="explore-data">')[1].split("</script>")[0])
    assert found == explorer.explorer_data([record()])


def test_every_look_has_a_name_in_the_browser():
    looks = [explorer._look({**figures.line_style(number), "zorder": 2}) for number in range(16)]
    assert len({tuple(look.values()) for look in looks}) == 16
    assert [look["coloured"] for look in looks] == [True] * 8 + [False] * 8
    assert {look["symbol"] for look in looks} == {explorer.PLOTLY_SYMBOLS[marker] for marker in figures.MARKERS}
