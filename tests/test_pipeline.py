"""A notebook is executed with the parameters that were asked for, and again only when something has changed."""

import nbformat
import pytest

from lscl import pipeline
from lscl.errors import LsclError


@pytest.fixture
def notebook(tmp_path):
    """notebook(code): a notebook with a parameters cell and one cell of code; -> its path."""

    def write(code):
        parameters = nbformat.v4.new_code_cell("profile = 'demo'\nweights = None", metadata={"tags": ["parameters"]})
        path = tmp_path / "01_one.ipynb"
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)], metadata=kernel), path)
        return path

    return write


def outputs(path):
    return [output["text"] for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]


def test_a_notebook_gets_the_places_that_it_has_parameters_for(places, notebook, tmp_path):
    path, target = notebook("print(profile, weights)"), tmp_path / "executed" / "01_one.ipynb"
    pipeline.execute(path, target, "mini", {"weights": "vit.safetensors", "data_dir": "images"})
    assert outputs(target) == ["mini vit.safetensors\n"]


def test_what_equals_the_notebooks_own_values_is_not_injected(places, notebook, tmp_path):
    path, target = notebook("print(profile, weights)"), tmp_path / "executed" / "01_one.ipynb"
    pipeline.execute(path, target, "demo", {"weights": None, "data_dir": None})
    assert outputs(target) == ["demo None\n"]
    assert len(nbformat.read(target, 4).cells) == 2


def test_other_weights_are_another_execution(places, notebook):
    path = notebook("1 + 1")
    stamps = {pipeline._stamp(path, "mini", {"weights": weights}) for weights in (None, "one.npz", "two.npz")}
    assert len(stamps) == 3


@pytest.mark.parametrize("name", ["runs/mini/a.json", "runs/mini/sheets/a.png", "components/a.json", "tuning/a.json", "benchmarks/a.json"])
def test_whatever_a_notebook_reads_from_the_results_is_in_its_stamp(places, notebook, name):
    path, before = notebook("1 + 1"), None
    file = places / "results" / name
    file.parent.mkdir(parents=True)
    for content in (b"one", b"other"):
        file.write_bytes(content)
        stamp = pipeline._stamp(path, "mini", {})
        assert stamp != before
        before = stamp
    file.unlink()
    assert pipeline._stamp(path, "mini", {}) != before


def test_a_damaged_notebook_is_one_line_with_its_name(places, tmp_path, one_line):
    path = tmp_path / "01_one.ipynb"
    for content in ("", "[]", "{", '{"cells": [], "metadata": {}, "nbformat": 3, "nbformat_minor": 0}', '{"cells": [{"cell_type": "code"}]}', "\0"):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(LsclError) as caught:
            pipeline.execute(path, tmp_path / "executed.ipynb", "demo", {})
        one_line(caught, path)


def test_a_failed_cell_is_one_line_with_the_notebook_and_the_error(places, notebook, tmp_path):
    path, target = notebook("raise ValueError('no such image')"), tmp_path / "executed" / "01_one.ipynb"
    with pytest.raises(LsclError, match=r"01_one\.ipynb: ValueError: no such image"):
        pipeline.execute(path, target, "demo", {})
    assert not pipeline._stamp_file(target).exists()
