"""A notebook whose records have changed is found."""

import json

import nbformat
import pytest
from made_records import record
from test_cli import call

from lscl.config import experiment
from lscl.experiments import records
from lscl.publish import freshness

pytestmark = pytest.mark.usefixtures("published")


@pytest.fixture
def save(places):
    """save(record): its file, under the digest that the run has in its named sets; -> the path."""

    def write(one):
        config = experiment(method=one["method"], dataset="cifar100", profile="mini", seed=one["seed"])
        path = records.folder("mini") / f"{config.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        made = {"name": config.name, "config": {**one["config"], "clients": config.clients}, "config_digest": config.digest}
        path.write_text(json.dumps({**record(one["method"], one["seed"], clients=5), **made, "commit": one["commit"]}))
        return path

    return write


@pytest.fixture
def notebook(places):
    """notebook(code): a committed notebook with one cell, stamped; -> its path."""

    def write(code, number=5):
        path = places / "notebooks" / f"{number:02d}_results.ipynb"
        path.parent.mkdir(exist_ok=True)
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        freshness.stamp(made)
        nbformat.write(made, path)
        return path

    return write


def test_the_sets_that_a_notebook_shows():
    cells = [
        nbformat.v4.new_code_cell(text)
        for text in ('frame(x, study="table1")', 'costs_frame(x, study="blocks")', "tuning_frame()", "growth_frame()", "components_frame(x)")
    ]
    made = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_markdown_cell('study="regimes"')])
    assert freshness.sets_of(made) == ["blocks", "components", "growth", "table1", "tune"]


def test_a_notebook_without_records_carries_no_stamp(places):
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    freshness.stamp(made)
    assert freshness.KEY not in made.metadata


def test_a_changed_or_a_new_record_makes_the_notebooks_that_show_it_old(save, notebook, capsys):
    path = save(record("local_head"))
    notebook('frame(x, study="table1")')
    notebook('frame(x, study="blocks")', 7)
    assert freshness.stale() == []
    path.write_text(path.read_text(encoding="utf-8").replace("50.0", "50.5", 1))
    assert [line.split(":")[0] for line in freshness.stale()] == ["notebooks/05_results.ipynb"]
    notebook('frame(x, study="table1")')
    save(record("fed_lscl"))  # the run with block 3, too
    assert [line.split(":")[0] for line in freshness.stale()] == ["notebooks/05_results.ipynb", "notebooks/07_results.ipynb"]
    assert "older than the records of blocks" in freshness.stale()[1]
    (path.parents[3] / "_config.yml").write_text("repository: {url: https://example.org}", encoding="utf-8")
    code, _, err = call(capsys, "check")
    assert code == 2 and "notebooks/07_results.ipynb: its outputs are older" in err


def test_a_notebook_that_was_never_stamped_is_old(places, notebook):
    path = notebook("tuning_frame()")
    assert freshness.stale() == []
    folder = places / "results" / "tuning"
    folder.mkdir()
    (folder / "mini--cifar100.json").write_text("[]", encoding="utf-8")
    assert len(freshness.stale()) == 1
    made = nbformat.read(path, 4)
    del made.metadata[freshness.KEY]
    nbformat.write(made, path)
    assert "older than the records of tune" in freshness.stale()[0]


def test_other_seeds_and_tuning_runs_do_not_count(save, notebook):
    save(record("local_head"))
    notebook('frame(x, study="table1")')
    save(record("local_head", seed=7))
    assert freshness.stale() == []
