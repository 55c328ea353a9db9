"""The finding in words for every outcome, and the picture of all systems."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from made_records import record

from lscl.results import overview
from lscl.results.labels import SCORES
from lscl.results.markdown import NO_RECORDS

SEEDS = (42, 1999, 2024)
SVG = "{http://www.w3.org/2000/svg}"


def runs(ours, control="fed_ridge", theirs=(80.0, 81.0, 82.0), **changes):
    """Records of the paper's system and of a baseline that trains nothing, a score per seed."""
    made = [record(seed=seed, score=score, clients=5, **changes) for seed, score in zip(SEEDS, ours)]
    return made + [record(control, seed=seed, score=score, clients=5, **changes) for seed, score in zip(SEEDS, theirs)]


def finding(records):
    return overview.main_finding(records, overview.systems_as_dots(records) if records else [])


def five_rows(records):
    return overview.five_rows(overview.systems_as_dots(records) if records else [])


@pytest.mark.parametrize(
    ("ours", "said", "interval"),
    [
        ((60.0, 61.5, 62.0), "without gradient training, beats Fed-LSCL by 19.8 points", "19.1 to 20.6"),
        ((90.0, 91.5, 92.0), "Fed-LSCL beats the best closed-form classifier on the frozen features, ", "9.4 to 10.9"),
        ((70.0, 81.0, 92.0), "3 seeds cannot separate Fed-LSCL from the best closed-form", "-25 to 25"),
        ((81.0,), "One seed is recorded so far", None),
    ],
)
def test_the_finding_follows_the_numbers_whichever_way_they_went(ours, said, interval):
    text = finding(runs(ours))
    assert said in text and "class-incremental" in text and "profile `mini`: 5 clients" in text
    if interval is None:
        assert "95 %" not in text and "not a finding" in text
    else:
        assert f"95 % interval {interval}, n = 3 seeds" in text


def test_the_best_baseline_is_the_one_that_is_compared_on_the_seeds_that_both_have():
    found = [*runs((60.0, 61.5, 62.0)), *runs((), "fed_ncm", (90.0, 91.0))]
    assert "federated class means" in finding(found) and "n = 2 seeds" in finding(found)


def test_the_best_baseline_is_named_as_its_row_is():
    random = {"ridge_features": 2000, "ridge_lambda": 0.3}
    best = [record("fed_ridge", seed=seed, score=85.0, clients=5, overrides=random, values=random) for seed in SEEDS]
    ours = runs((60.0, 61.5, 62.0))
    assert re.search(r"%, federated ridge \d", finding(ours))
    assert re.search(r"%, federated ridge with 2,000 random features \d", finding([*ours, *best]))


def test_without_runs_or_without_a_pair_the_finding_says_so():
    assert finding([]) == NO_RECORDS
    for found in (
        runs((60.0,), theirs=()),
        runs((), theirs=(60.0,)),
        [*runs((60.0,), theirs=()), record("fed_ncm", 7)],
    ):
        assert "no seed has both runs yet" in finding(found)


def test_the_screen_moves_to_more_images_when_enough_seeds_are_there():
    few, many = (runs((60.0, 61.0, 62.0), profile=profile) for profile in ("mini", "full"))
    assert {one["profile"] for one in overview.first_screen_records({"full": many, "mini": few})} == {"full"}
    for missing in (many[1:], many[:-1], []):
        assert {one["profile"] for one in overview.first_screen_records({"full": missing, "mini": few})} == {"mini"}
    assert overview.first_screen_records({"full": [], "mini": []}) == []


def test_our_variant_is_shown_apart_and_counts_in_no_comparison():
    """It leads under both scores, and yet the best baseline, the best other system and the finding stay the same."""
    found = [*runs((60.0, 61.0, 62.0)), record("lorm", score=70.0, clients=5)]
    ours = [record("fed_lscl_ridge", seed=seed, score=95.0, clients=5) for seed in SEEDS]
    tuning = [
        record("fed_lscl_ridge", seed=7, clients=5),
        record("fed_lscl_ridge", clients=5, values={"adapt": "none"}),
    ]
    shown = overview.first_screen_records({"mini": [*found, *ours, *tuning]})
    assert len(shown) == len(found) + len(ours)
    assert finding(shown) == finding(found)
    rows = overview.systems_as_dots(shown)
    assert [one.kind for one in rows] == ["variant", "control", "best", "own"]
    assert overview.reference_levels(rows) == overview.reference_levels(rows[1:])
    groups = overview.in_groups(rows)
    assert [[one.kind for one in members] for members in groups.values()] == [["best", "own"], ["control"], ["variant"]]
    text = overview.picture_in_words(rows)
    assert "4 systems, a row each in 3 groups" in text and "Our variant, not in the paper: row 1 of 1," in text
    for narrow in (False, True):
        root = ElementTree.fromstring(overview.dot_plot(rows, narrow))
        headings = [one for one in root.iter(f"{SVG}text") if one.get("class") == "heading"]
        assert [one.text for one in headings] == [overview.GROUP_HEADINGS[group] for group in groups]
        places = {mark.get("class"): float(mark.get("cy")) for mark in root.iter(f"{SVG}circle")}
        assert float(headings[2].get("y")) < places["variant"] and places["variant"] > places["control"] > places["own"]
    assert list(five_rows(shown)["group"]) == ["our variant", "control", "paper", "paper"]
    assert "Our variant" not in overview.picture_in_words(overview.systems_as_dots(found))


def test_rows_are_ordered_and_of_the_right_kind():
    found = [*runs((60.0, 61.0, 62.0)), record("lorm", score=70.0, clients=5), record("fedavg", score=50.0, clients=5)]
    rows = overview.systems_as_dots(found)
    assert [one.kind for one in rows] == ["control", "best", "own", "other"]
    assert overview.reference_levels(rows)["seen"].mean == rows[0].found["seen"].mean
    assert overview.reference_levels(rows[1:]) == {}


def test_five_rows_have_the_system_its_floor_and_the_best_others():
    others = [record(name, score=score, clients=5) for name, score in
              (("lorm", 95.0), ("pilora", 94.0), ("fedavg", 50.0), ("l2p", 40.0), ("local_head", 30.0))]  # fmt: skip
    table = five_rows([*runs((60.0, 61.0, 62.0)), *others])
    assert [name.split(" (")[0] for name in table.index] == [
        "LoRM", "PILoRA", "federated ridge", "Fed-LSCL", table.index[-1]
    ]  # fmt: skip
    assert table.index[-1] == overview.label_of("local_head") and table.loc["LoRM", "n"] == "1"
    assert five_rows([]).empty


@pytest.mark.parametrize("narrow", [False, True])
def test_the_picture_has_a_dot_and_a_ring_for_every_row_where_they_belong(narrow):
    rows = overview.systems_as_dots([*runs((60.0, 61.0, 62.0)), record("lorm", score=70.0, clients=5)])
    root = ElementTree.fromstring(overview.dot_plot(rows, narrow))
    marks = [one for one in root.iter(f"{SVG}circle") if "text" not in one.get("class")]
    assert len(marks) == len(rows) * len(SCORES)
    place = {mark.get("class"): float(mark.get("cx")) for mark in marks}
    ticks = {one.text: float(one.get("x")) for one in root.iter(f"{SVG}text") if (one.text or "").isdigit()}
    share = (rows[-1].found["seen"].mean) / 100
    assert place["own"] == pytest.approx(ticks["0"] + share * (ticks["100"] - ticks["0"]), abs=0.2)
    assert place["own"] < place["own ring"] and len({mark.get("cy") for mark in marks}) == len(rows)
    dashed = [one for one in root.iter(f"{SVG}line") if one.get("stroke-dasharray")]
    assert len(dashed) == 2 + 1  # a line for each score, and the one of the legend


@pytest.mark.parametrize("narrow", [False, True])
def test_no_name_and_no_note_is_cut_and_none_leaves_its_place(narrow):
    """Long ones take more lines, and their rows more room."""
    rows = overview.systems_as_dots(runs((60.0, 61.0, 62.0)))
    notes = ", ".join(f"parameter_{number} = {number}" for number in range(9))
    long = overview.Dots(f"{9 * 'a system '}({notes})", "other", "odd", True, rows[0].found)
    middle = overview.Dots(
        "federated ridge (ridge_features = 2000, ridge_lambda = 0.3)", "other", "odd", True, rows[0].found
    )
    root = ElementTree.fromstring(overview.dot_plot([long, middle], narrow))
    lines = [one for one in root.iter() if one.tag in (f"{SVG}text", f"{SVG}tspan") and one.text]
    said = " ".join(one.text for one in lines)
    assert notes in said and (9 * "a system ").strip() in said and "ridge_features = 2000, ridge_lambda = 0.3" in said
    assert not any(len(one.text) > 55 for one in lines)
    places = [float(one.get("y")) for one in lines if one.tag == f"{SVG}text" and one.get("text-anchor") != "middle"]
    texts = places[3:]  # behind the legend
    assert all(later - before >= overview.NOTE - 1 for before, later in pairwise(texts))


def test_a_name_with_signs_of_html_stays_text():
    rows = overview.systems_as_dots(runs((60.0, 61.0, 62.0)))
    odd = overview.Dots('<b>"&{{x}} (a < b)', "other", "odd", True, rows[0].found)
    for narrow in (False, True):
        text = overview.dot_plot([odd], narrow)
        assert "<b>" not in text and ElementTree.fromstring(text) is not None
    assert "{{" not in overview.dot_plot_for_a_page([odd])


def test_one_page_holds_both_forms_and_the_words():
    rows = overview.systems_as_dots(runs((60.0, 61.0, 62.0)))
    text = overview.dot_plot_for_a_page(rows)
    assert text.count("<svg") == 2 and "\n\n" not in text and text.count("aria-hidden") == 2
    assert re.search(r'role="img" aria-label="Dot plot of 2 systems', text)
    assert NO_RECORDS in overview.dot_plot_for_a_page([]) and overview.picture_in_words([]) == NO_RECORDS
