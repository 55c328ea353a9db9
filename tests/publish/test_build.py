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


@pytest.mark.parametrize("name", ["runs/mini/a.json", "runs/mini/sheets/a.png", "components/a.json", "tuning/a.json", "benchmarks/a.json"])
def test_whatever_a_notebook_reads_from_the_results_is_in_its_stamp(places, notebook, name):
    path, before = notebook("1 + 1"), None
    file = places / "results" / name
    file.parent.mkdir(parents=True)
    for content in (b"one", b"other"):
        file.write_bytes(content)
        stamp = build._stamp(path, "mini", {})
        assert stamp != before
        before = stamp
    file.unlink()
    assert build._stamp(path, "mini", {}) != before


def test_a_damaged_notebook_is_one_line_with_its_name(places, tmp_path, one_line):
    path = tmp_path / "01_one.ipynb"
    for content in ("", "[]", "{", '{"cells": [], "metadata": {}, "nbformat": 3, "nbformat_minor": 0}', '{"cells": [{"cell_type": "code"}]}', "\0"):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(LsclError) as caught:
            build.execute(path, tmp_path / "executed.ipynb", "demo", {})
        one_line(caught, path)


def test_a_failed_cell_is_one_line_with_the_notebook_and_the_error(places, notebook, tmp_path):
    path, target = notebook("raise ValueError('no such image')"), tmp_path / "executed" / "01_one.ipynb"
    with pytest.raises(LsclError, match=r"01_one\.ipynb: ValueError: no such image"):
        build.execute(path, target, "demo", {})
    assert not build._stamp_file(target).exists()


def test_a_notebook_runs_in_the_python_that_runs_lscl(places, notebook, tmp_path, monkeypatch):
    """Also where a kernel of the same name is another Python, and where the notebook names a kernel that nobody has."""
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(json.dumps({"argv": ["/no/such/python", "{connection_file}"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(other.parents[1]))
    monkeypatch.setenv("PYTHONUTF8", "0")
    monkeypatch.setenv("LC_ALL", "no_such_locale")
    path, target = notebook("import sys; print(sys.executable, sys.flags.utf8_mode)"), tmp_path / "executed" / "01_one.ipynb"
    path.write_text(path.read_text().replace("python3", "nobodys"))
    build.execute(path, target, "demo", {})
    assert outputs(target) == [f"{sys.executable} 1\n"]


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_a_kernel_that_dies_is_one_line_with_the_notebook(places, notebook, tmp_path, one_line, end):
    path, target = notebook(f"import os; {end}"), tmp_path / "executed" / "01_one.ipynb"
    with pytest.raises(LsclError) as caught:
        build.execute(path, target, "demo", {})
    one_line(caught, "01_one.ipynb: Kernel died", target)
    assert target.exists() and not build._stamp_file(target).exists()


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
