"""A notebook is executed with the parameters that were asked for, and again only when something has changed."""

import json
import os
import stat
import subprocess
import sys

import nbformat
import pytest

from lscl.errors import LsclError
from lscl.publish import build


@pytest.fixture
def notebook(tmp_path):
    """notebook(code, *reads): the path of a notebook with a parameters cell, one cell of code, and its declarations."""

    def write(code, *reads):
        parameters = nbformat.v4.new_code_cell("profile = 'demo'\nweights = None", metadata={"tags": ["parameters"]})
        path = tmp_path / "01_one.ipynb"
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        about = {**kernel, "lscl": {"reads": list(reads)}}
        nbformat.write(
            nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)], metadata=about), path
        )
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


@pytest.mark.parametrize("hiding", ["hide-input", "remove-input"])
def test_a_page_that_leaves_its_parameters_out_leaves_the_injected_ones_out_too(hiding):
    own = ["parameters", "remove-input"] if hiding == "remove-input" else ["parameters"]
    cells = [nbformat.v4.new_code_cell("", metadata={"tags": tags}) for tags in (own, ["injected-parameters"])]
    cleaned = nbformat.reads(build._clean(nbformat.v4.new_notebook(cells=cells)), 4)
    assert cleaned.cells[1].metadata.tags == ["injected-parameters", hiding]


def test_a_notebook_is_executed_again_if_it_its_parameters_or_what_it_declares_has_changed(places, notebook, tmp_path):
    path, target, file = (
        notebook("1 + 1", "tuning/*.json"),
        tmp_path / "executed" / "01_one.ipynb",
        places / "results" / "tuning" / "a.json",
    )
    file.parent.mkdir(parents=True)
    file.write_text("[]")
    build.execute(path, target, "demo", {"weights": None})
    fresh = lambda: build._is_fresh(path, target, "demo", {"weights": None})
    assert fresh() and not build._is_fresh(path, target, "demo", {"weights": "one.npz"})
    for changed, new in ((file, "[1]"), (path, path.read_text(encoding="utf-8").replace("1 + 1", "1 + 2"))):
        before = changed.read_text(encoding="utf-8")
        changed.write_text(new, encoding="utf-8")
        assert not fresh()
        changed.write_text(before, encoding="utf-8")
        assert fresh()
    path.write_text(path.read_text(encoding="utf-8").replace("1 + 1", "1 / 0"), encoding="utf-8")
    with pytest.raises(LsclError, match="ZeroDivisionError"):
        build.execute(path, target, "demo", {"weights": None})
    path.write_text(path.read_text(encoding="utf-8").replace("1 / 0", "1 + 1"), encoding="utf-8")
    assert not fresh(), "what stands there now is the failed one"


READ_FILE = "from lscl import paths; print((paths.results() / 'tuning' / 'a.json').read_text())"
READ_STUDY = "import lscl; print(len(lscl.results.frame('mini', study='blocks')))"


@pytest.mark.parametrize(
    ("code", "declared", "needed"),
    [
        (READ_FILE, ["components/*.json"], "results/tuning/a.json"),
        (READ_STUDY, ["study:mini/table1"], "study:mini/blocks"),
    ],
)
def test_reading_what_a_notebook_does_not_declare_is_one_line(
    places, notebook, tmp_path, one_line, code, declared, needed
):
    (places / "results" / "tuning").mkdir(parents=True)
    (places / "results" / "tuning" / "a.json").write_text("[]")
    target = tmp_path / "executed" / "01_one.ipynb"
    with pytest.raises(LsclError) as caught:
        build.execute(notebook(code, *declared), target, "demo", {})
    one_line(caught, "01_one.ipynb", needed, "does not declare")
    build.execute(notebook(code, *declared, needed.removeprefix("results/")), target, "demo", {})
    assert outputs(target)[0] in ("[]\n", "0\n")


def test_a_notebook_may_write_under_results(places, notebook, tmp_path):
    target = tmp_path / "executed" / "01_one.ipynb"
    (places / "results").mkdir(parents=True, exist_ok=True)
    build.execute(
        notebook("from lscl import paths; print((paths.results() / 'a.txt').write_text('1'))"), target, "demo", {}
    )
    assert outputs(target) == ["1\n"]


def test_a_damaged_notebook_is_one_line_with_its_name(places, tmp_path, one_line):
    path = tmp_path / "01_one.ipynb"
    for content in (
        "",
        "[]",
        "{",
        '{"cells": [], "metadata": {}, "nbformat": 3, "nbformat_minor": 0}',
        '{"cells": [{"cell_type": "code"}]}',
        "\0",
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(LsclError) as caught:
            build.execute(path, tmp_path / "executed.ipynb", "demo", {})
        one_line(caught, path)


def test_a_failed_cell_is_one_line_with_the_notebook_and_the_error(places, notebook, tmp_path):
    path, target = notebook("raise ValueError('no such image')"), tmp_path / "executed" / "01_one.ipynb"
    with pytest.raises(LsclError, match=r"01_one\.ipynb: ValueError: no such image"):
        build.execute(path, target, "demo", {})
    assert not build._digest_file(target).exists()


def test_a_notebook_runs_in_the_python_that_runs_lscl(places, notebook, tmp_path, monkeypatch):
    """Also where a kernel of the same name is another Python, and where the notebook names a kernel that nobody has."""
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(
        json.dumps({"argv": ["/no/such/python", "{connection_file}"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(other.parents[1]))
    monkeypatch.setenv("PYTHONUTF8", "0")
    monkeypatch.setenv("LC_ALL", "no_such_locale")
    path, target = (
        notebook("import sys; print(sys.executable, sys.flags.utf8_mode)"),
        tmp_path / "executed" / "01_one.ipynb",
    )
    path.write_text(path.read_text().replace("python3", "nobodys"))
    build.execute(path, target, "demo", {})
    assert outputs(target) == [f"{sys.executable} 1\n"]


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_a_kernel_that_dies_is_one_line_with_the_notebook(places, notebook, tmp_path, one_line, end):
    path, target = notebook(f"import os; {end}"), tmp_path / "executed" / "01_one.ipynb"
    with pytest.raises(LsclError) as caught:
        build.execute(path, target, "demo", {})
    one_line(caught, "01_one.ipynb: Kernel died", target)
    assert target.exists() and not build._digest_file(target).exists()


def test_a_kernel_that_does_not_start_is_one_line_too(places, notebook, tmp_path, one_line, monkeypatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(LsclError) as caught:
        build.execute(notebook("1"), tmp_path / "executed" / "01_one.ipynb", "demo", {})
    one_line(caught, "01_one.ipynb: Kernel died")


def test_the_book_is_built_in_utf_8_under_any_locale(places, monkeypatch, one_line):
    """Of the environment that the builder is given, and of what it says in bytes that are no text."""
    monkeypatch.setenv("LC_ALL", "no_such_locale")
    monkeypatch.setenv("PYTHONUTF8", "0")
    asked = """
import locale, sys
locale.setlocale(locale.LC_ALL, "")  # as Sphinx does
sys.stdout.buffer.write(b"\\xff")
sys.exit(sys.flags.utf8_mode != 1)
"""
    real, found = subprocess.run, []

    def run(command, **options):
        found.append(real([sys.executable, "-c", asked], **options))
        return found[-1]

    monkeypatch.setattr(subprocess, "run", run)
    build.build_book("demo")
    assert found[0].returncode == 0 and os.environ["LC_ALL"] == "no_such_locale"


def test_without_jupyter_book_everything_else_is_done_and_one_line_says_how_to_get_it(
    places, notebook, monkeypatch, capsys
):
    (places / "notebooks").mkdir(parents=True)
    notebook("print(profile)").rename(places / "notebooks" / "01_one.ipynb")
    monkeypatch.setattr(build, "plan", lambda *_: [])
    monkeypatch.setattr(build.pages, "pieces", dict)
    monkeypatch.setattr(build, "find_spec", {"jupyter_book": None}.get)
    build.reproduce("smoke")
    assert outputs(places / "results" / "executed" / "smoke" / "01_one.ipynb") == ["smoke\n"]
    done, hint = capsys.readouterr().err.splitlines()[-2:]
    assert done.startswith("done in ") and "open" not in done
    assert "lscl[book]" in hint and str(places / "results" / "executed" / "smoke") in hint
    build.reproduce("smoke", book=False)
    assert "lscl[book]" not in capsys.readouterr().err


@pytest.mark.parametrize("profile", ["smoke", "demo"])
def test_a_folder_that_no_data_set_of_the_profile_reads_is_refused(places, tmp_path, profile, one_line):
    (places / "notebooks").mkdir(parents=True)
    with pytest.raises(LsclError) as caught:
        build.reproduce(profile, data_dir=tmp_path)
    one_line(caught, f"data_dir = {tmp_path}: the images of glyphs come with the package: leave it out")
