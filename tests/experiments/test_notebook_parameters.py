"""A misspelled or impossible parameter of a notebook ends it before anything is computed."""

import ast
import re

import nbformat
import pytest
from forked import CELLS
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from tests_root import ROOT

from lscl.errors import LsclError
from lscl.experiments import notebook_parameters

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_notebook_checks_all_its_parameters_first(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    (place,) = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    names = re.findall(r"^(\w+) = ", cells[place].source, re.MULTILINE)
    statements = ast.parse(cells[place + 1].source).body
    first = next(one for one in statements if not isinstance(one, ast.Import | ast.ImportFrom))
    assert names and ast.unparse(first) == f"parameters({', '.join(f'{name}={name}' for name in names)})"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"profile": "smok"}, ["unknown profile 'smok'", "'smoke'"]),
        ({"profile": 3}, ["unknown profile '3'"]),
        ({"profile": ["smoke"]}, ["unknown profile"]),
        ({"dataset": "cifar10"}, ["unknown data set 'cifar10'"]),
        ({"seed": "x"}, ["seed = 'x'", "integer"]),
        ({"seed": -1}, ["seed = -1"]),
        ({"compute": "treu"}, ["compute = 'treu'"]),
        ({"data_dir": 3}, ["data_dir = 3"]),
        ({"weights": "no/such.npz"}, ["no/such.npz"]),
    ],
)
def test_an_impossible_value_is_one_line(values, words, one_line):
    with pytest.raises(LsclError) as caught:
        notebook_parameters.parameters(**values)
    one_line(caught, *words)


def test_good_values_pass_outside_of_a_notebook_too(tmp_path):
    notebook_parameters.parameters(profile="smoke", compute=True, data_dir=str(tmp_path), weights=None)
    assert notebook_parameters.injected_names() == []


@pytest.mark.parametrize(
    ("given", "says"),
    [({"profle": "smoke"}, "did you mean 'profile'"), ({"profile": "smok"}, "unknown profile"), ({"seed": 3}, None)],
)
def test_a_notebook_with_parameters_of_papermill_says_that_it_does_not_have_a_name(given, says, tmp_path, forked):
    own = nbformat.v4.new_code_cell("profile = 'demo'\nseed = 1", metadata={"tags": ["parameters"]})
    check = nbformat.v4.new_code_cell(
        "from lscl.experiments.notebook_parameters import parameters\nparameters(profile=profile, seed=seed)",
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[own, check], metadata=kernel), tmp_path / "one.ipynb")
    book = parameterize_notebook(load_notebook_node(str(tmp_path / "one.ipynb")), given)
    nbformat.write(book, tmp_path / "one.ipynb")
    process = forked(CELLS, tmp_path / "one.ipynb")
    _, err = process.communicate()
    assert (process.returncode == 0) == (says is None)
    if says is not None:
        last = err.strip().splitlines()[-1]
        assert last.startswith("lscl.errors.LsclError: ") and says in last
