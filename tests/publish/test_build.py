"""A notebook is executed with the parameters that were asked for, and again only when something has changed."""

import nbformat
import pytest

from lscl.errors import LsclError
from lscl.publish import build


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
    build.execute(path, target, "mini", {"weights": "vit.safetensors", "data_dir": "images"})
    assert outputs(target) == ["mini vit.safetensors\n"]


def test_what_equals_the_notebooks_own_values_is_not_injected(places, notebook, tmp_path):
    path, target = notebook("print(profile, weights)"), tmp_path / "executed" / "01_one.ipynb"
    build.execute(path, target, "demo", {"weights": None, "data_dir": None})
    assert outputs(target) == ["demo None\n"]
    assert len(nbformat.read(target, 4).cells) == 2


def test_other_weights_are_another_execution(places, notebook):
    path = notebook("1 + 1")
    stamps = {build._stamp(path, "mini", {"weights": weights}) for weights in (None, "one.npz", "two.npz")}
    assert len(stamps) == 3


def test_a_failed_cell_is_one_line_with_the_notebook_and_the_error(places, notebook, tmp_path):
    path, target = notebook("raise ValueError('no such image')"), tmp_path / "executed" / "01_one.ipynb"
    with pytest.raises(LsclError, match=r"01_one\.ipynb: ValueError: no such image"):
        build.execute(path, target, "demo", {})
    assert not build._stamp_file(target).exists()
