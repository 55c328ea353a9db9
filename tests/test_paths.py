"""Where things lie."""

from pathlib import Path

import lscl
from lscl import paths


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
