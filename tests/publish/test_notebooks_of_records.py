"""Notebooks that only read records, each executed as a kernel does it, in a process that has the library already.

05 makes runs and has a test of its own; the others are compared with their stored outputs by nbval.
"""

import nbformat
import pytest
from forked import CELLS
from tests_root import ROOT

NOTEBOOKS = {path.stem: nbformat.read(path, 4) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
DECLARED = {name: book.metadata["lscl"] for name, book in NOTEBOOKS.items()}
READERS = [name for name, declared in DECLARED.items() if declared["reads"] and not declared["makes"]]


def test_every_notebook_is_executed_once():
    """By nbval, by this file, or by the test of the page of results."""
    command = next(line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "pytest" in line)
    compared = [path.stem for word in command.split() if ".ipynb" in word for path in ROOT.glob(word)]
    assert sorted([*compared, *READERS, "05_results"]) == sorted(NOTEBOOKS)


@pytest.fixture
def executed(forked, monkeypatch):
    """executed(path): a finished process that has executed a notebook in the repository, and what it wrote."""

    def execute(path):
        monkeypatch.setenv("LSCL_ROOT", str(ROOT))
        monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        monkeypatch.chdir(ROOT / "notebooks")
        process = forked(CELLS, path)
        return process, "".join(process.communicate())

    return execute


@pytest.mark.parametrize("name", READERS)
def test_it_runs_and_draws_the_figures_that_are_stored_in_it(name, executed):
    process, said = executed(f"{name}.ipynb")
    assert process.returncode == 0, said
    outputs = [output for cell in NOTEBOOKS[name].cells for output in cell.get("outputs", ())]
    stored = sum(
        "image/svg+xml" in output.get("data", {}) for output in outputs if output.output_type == "display_data"
    )
    assert f"figures: {stored}\n" in said


def test_a_cell_that_fails_is_found(executed, tmp_path):
    cells = [nbformat.v4.new_code_cell("import lscl"), nbformat.v4.new_code_cell("lscl.no_such_name")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "failing.ipynb")
    process, said = executed(tmp_path / "failing.ipynb")
    assert process.returncode != 0 and "no_such_name" in said
