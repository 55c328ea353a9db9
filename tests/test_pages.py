"""The generated pieces of the book's pages."""

import json

import pytest
from made_records import record

from lscl import pages, records, report
from lscl.errors import LsclError
from lscl.report import DATASET_LABELS
from lscl.sweeps import PLANS, TABLE1

pytestmark = pytest.mark.usefixtures("published")


def test_without_records_every_table_is_a_sentence(places):
    written = {path.name: path.read_text() for path in pages.write()}
    assert set(written) == {
        "config.md",
        "method_values.md",
        "systems.md",
        "model_card.md",
        "headline.md",
        "explore.html",
        "paper_plan.md",
        "benchmarks.md",
    }
    assert (
        "| LoRM | paper | official | lr = 0.003 |" in written["method_values.md"]
        and "| GLFC | smoke | size | glfc_memory = 12, " in written["method_values.md"]
    )
    assert written["headline.md"].strip() == report.NO_RECORDS


def test_headline_from_records(places):
    folder = records.folder("mini")
    folder.mkdir(parents=True)
    for one in (record(), record(seed=1999, score=82), record("local_head"), record("local_head", seed=7)):
        (folder / f"{one['name']}.json").write_text(json.dumps({**one, "config": {**one["config"], "clients": 5}}))
    pages.write()
    text = (places / "results" / "tables" / "headline.md").read_text()
    assert "| Fed-LSCL (O2D exact) | 73.0 ± 1.4 | 43.0 ± 1.4 |" in text
    assert "seeds 42, 1999;" in text


def test_two_writes_are_equal(places):
    first = [path.read_bytes() for path in pages.write()]
    assert [path.read_bytes() for path in pages.write()] == first


def test_the_papers_plan_has_every_system_with_the_servers_work():
    text = pages.paper_plan()
    parts = dict(zip(PLANS["paper"], text.split("**, one seed")[1:], strict=True))
    for part in parts.values():
        assert len([line for line in part.splitlines() if line.startswith("|")]) == 2 + len(TABLE1)
    assert all(f"**{DATASET_LABELS[dataset]}**" in text for dataset in parts)
    (target,) = [line.split("|") for line in parts["imagenet_r"].splitlines() if line.startswith("| TARGET ")]
    assert float(target[5]) > float(target[4]) > 0


def test_benchmarks_are_told_from_their_goals(places, one_line):
    assert pages.benchmarks() == "No benchmark has been recorded yet."
    folder = places / "results" / "benchmarks"
    folder.mkdir(parents=True)
    about = {"machine": {"cpu": "some cpu"}, "commit": "abcdef0123456"}
    rows = [{"method": "l2p", "ratio": 1.6, "goal": 1.5, "better": "lower"}, {"method": "none"}]
    for name, ratio, better in (("slow", 1.3, "lower"), ("fast", 120.0, "higher")):
        found = {"name": name, "ratio": ratio, "goal": 1.25 if better == "lower" else 100, "better": better, "rows": rows * (name == "slow"), **about}
        (folder / f"{name}.json").write_text(json.dumps(found))
    (folder / "open.json").write_text(json.dumps({"name": "open", "ratio": 2, "better": "lower", **about}))
    assert pages.benchmarks().splitlines()[2:] == [
        "| fast | 120 | at least 100 | yes | some cpu | abcdef0123 |",
        "| open | 2 | – | – | some cpu | abcdef0123 |",
        "| slow | 1.3 | at most 1.25 | no | some cpu | abcdef0123 |",
        "| slow: l2p | 1.6 | at most 1.5 | no |  |  |",
    ]
    (folder / "open.json").write_text("{}")
    with pytest.raises(LsclError) as caught:
        pages.benchmarks()
    one_line(caught, "open.json")
