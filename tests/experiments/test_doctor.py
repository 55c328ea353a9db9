"""What is installed, where things lie, and what is missing."""

import os
import tomllib
from pathlib import Path

import pytest
import torch
from tests_root import ROOT

from lscl.experiments import doctor as module
from lscl.experiments.doctor import doctor
from lscl.experiments.progress import Progress
from lscl.experiments.run import run
from lscl.models.pretrain import write_weights


@pytest.fixture
def weights(monkeypatch, tmp_path):
    path = tmp_path / "mini.safetensors"
    write_weights(path, {"a": torch.ones(3)}, {})
    monkeypatch.setattr(module, "WEIGHTS", path)
    return path


def test_versions_places_and_weights_are_told(weights, places, session_cache):
    lines = list(doctor())
    assert any(f"torch {torch.__version__.split('+')[0]}" in line for line in lines)
    assert any(str(places / "results") in line for line in lines) and any(str(session_cache) in line for line in lines)
    assert "weights: mini.safetensors is the file its description speaks of" in lines
    assert not any("\n" in line or line.startswith("bad weights") for line in lines)


def test_a_folder_that_cannot_be_written_keeps_no_other_answer_back(weights, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    usual = len(list(doctor(deep=True)))
    for name, what in (("LSCL_ROOT", "results"), ("LSCL_CACHE", "cache")):
        with monkeypatch.context() as patch:
            patch.setenv(name, str(tmp_path / "file" / "below"))
            lines = list(doctor(deep=True))
        (bad,) = [line for line in lines if line.startswith(f"bad: {what}")]
        assert str(tmp_path / "file") in bad and len(lines) == usual
        assert any(line.startswith("code: ") for line in lines) and any(line.startswith("weights: ") for line in lines)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert sum("cannot be written" in line for line in doctor()) == 2


def test_a_user_without_a_home_is_told(weights, monkeypatch):
    monkeypatch.delenv("LSCL_CACHE")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    lines = list(doctor(deep=True))
    assert any(line.startswith("bad: cache cannot be written: no home folder is known") for line in lines)


def test_every_extra_has_a_package_that_is_looked_for(weights, monkeypatch):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    missing = [line for line in doctor() if line.startswith("missing package ")]
    assert {name for name in extras for line in missing if f"pip install fed-lscl[{name}]" in line} == set(extras)


def test_damaged_weights_are_told(weights):
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert any(line.startswith(f"bad weights: damaged weight file {weights}") for line in doctor())


def test_stopped_runs_are_told(weights, smoke, monkeypatch):
    def stop(self, report):
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "round", stop)
    with pytest.raises(KeyboardInterrupt):
        run(smoke(), quiet=True)
    (line,) = [line for line in doctor() if line.startswith("stopped run")]
    assert line == f"stopped run: smoke {smoke().name}; the same command goes on"


def test_the_cache_is_compared_only_if_asked_for(weights, smoke, monkeypatch, tmp_path):
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))
    run(smoke(), quiet=True)
    assert not any("as they were written" in line for line in doctor())
    assert [line for line in doctor(deep=True) if "written" in line] == [
        "activations: 2 folders are as they were written",
        "decoded images: 2 folders are as they were written",
    ]
    for path in (tmp_path / "cache").rglob("*.npy"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    bad = [line for line in doctor(deep=True) if line.startswith("bad") and "is not as it was written" in line]
    assert len(bad) == 4 and all(str(tmp_path / "cache") in line for line in bad)
