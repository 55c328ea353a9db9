"""Where things lie."""

from pathlib import Path

import pytest

import lscl
from lscl import paths
from lscl.errors import LsclError


def test_results_lie_under_lscl_root_whatever_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "here"))
    monkeypatch.chdir(tmp_path)
    assert paths.results() == (tmp_path / "here" / "results").resolve()


def test_without_lscl_root_the_repository_around_the_package_is_the_root(monkeypatch, tmp_path):
    monkeypatch.delenv("LSCL_ROOT")
    monkeypatch.chdir(tmp_path)
    assert paths.root() == Path(lscl.__file__).resolve().parents[1]


def test_the_cache_lies_in_lscl_cache_or_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path))
    assert paths.cache() == tmp_path
    monkeypatch.delenv("LSCL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert paths.cache() == tmp_path / "home" / ".cache" / "lscl"


def test_an_installed_package_puts_results_below_the_working_directory(monkeypatch, tmp_path, one_line):
    monkeypatch.delenv("LSCL_ROOT")
    monkeypatch.setattr(paths, "repository", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert paths.results() == tmp_path / "lscl-results"
    with pytest.raises(LsclError) as caught:
        paths.check_clone("lscl pages")
    one_line(caught, "lscl pages needs a clone of the repository", "LSCL_ROOT")
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "lscl-results"))  # as other processes are told
    assert paths.results() == tmp_path / "lscl-results"
    paths.check_clone("lscl pages")
