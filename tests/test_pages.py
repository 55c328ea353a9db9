"""The generated pieces of the book's pages."""

import json

import pytest
from made_records import record

from lscl import pages, records, report

pytestmark = pytest.mark.usefixtures("published")


def test_without_records_every_table_is_a_sentence(places):
    written = {path.name: path.read_text() for path in pages.write()}
    assert set(written) == {"config.md", "method_values.md", "systems.md", "model_card.md", "headline.md", "explore.html"}
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
