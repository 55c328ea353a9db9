"""The package as others install it: wheel and sdist in a fresh environment, away from the repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from importlib import metadata
from zipfile import ZipFile

import pytest
from tests_root import ROOT, marked_processes

PARTS = ("lscl", "results/published", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE",
         "constraints.txt", "CITATION.cff", "CHANGELOG.md")  # fmt: skip
BUILD = "from setuptools import build_meta; print(build_meta.build_{}(r'{}'))"
COMMANDS = [
    "run --profile smoke --method fedavg --keep-model",
    "sweep table1 --profile smoke --methods local_head,fedavg --seeds 42",
    "table --profile smoke",
    "plan --profile paper --card h200 --methods fedavg --dataset cifar100",
    "doctor",
    "reproduce demo",
    "pages",
    "check",
]
# Runs every command in one process: starting Python each time would take most of the time.
SCRIPT = """
import contextlib, io, json, sys
from lscl import cli
import lscl
from lscl.results.published import published_table1, published_final

found = []
for line in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(line.split())
        except SystemExit as end:
            code = end.code
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps({"lscl": lscl.__file__, "commands": found, "rows": len(published_table1("cifar100")),
                  "final": published_final("cifar100")}))
"""


def called(*words, cwd, **environment):
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env={**os.environ, **environment}, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """{"wheel": ..., "sdist": ...}, the wheel built from what the sdist holds."""
    top = tmp_path_factory.mktemp("built")
    for name in PARTS:
        target = top / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    called(sys.executable, "-c", BUILD.format("sdist", top), cwd=top / "tree", PYTHONPATH="")
    (sdist,) = top.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(top / "unpacked", filter="data")
    (inside,) = (top / "unpacked").iterdir()
    called(sys.executable, "-c", BUILD.format("wheel", top), cwd=inside, PYTHONPATH="")
    (wheel,) = top.glob("*.whl")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """The Python of a fresh environment with the wheel in it; what it requires is that of this environment."""
    top = tmp_path_factory.mktemp("fresh environment")
    called(sys.executable, "-m", "venv", "--without-pip", top / "venv", cwd=top)
    found = top / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (sys.executable, "-m", "pip", "--python", found, "install", "-q", "--no-deps", "--no-index", "--no-compile")
    called(*pip, built["wheel"], cwd=top, PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONPATH="")
    site = called(found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=top).strip()
    with open(os.path.join(site, "borrowed.pth"), "w", encoding="utf-8") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    return found


@pytest.fixture(scope="module")
def federating(python, tmp_path_factory):
    """That Python by a path without a blank, as Ray needs it, and Flower's programs where pip writes them."""
    pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")
    link = tmp_path_factory.mktemp("link") / "venv"
    link.symlink_to(python.parent.parent)
    for one in metadata.distribution("flwr").entry_points.select(group="console_scripts"):
        code = f"import sys; from {one.module} import {one.attr}; sys.argv[0] = '{one.name}'; sys.exit({one.attr}())"
        program = link / "bin" / one.name
        program.write_text(f'#!/bin/sh\nexec "{link}/bin/python" -c "{code}" "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    return link / "bin" / "python"


@pytest.fixture(scope="module")
def outside(python, tmp_path_factory, session_cache):
    """What the commands print in a folder of its own, and that folder."""
    here = tmp_path_factory.mktemp("somewhere else")
    environment = {name: "" for name in ("LSCL_ROOT", "PYTHONPATH")} | {"LSCL_CACHE": str(session_cache)}
    out = called(python, "-c", SCRIPT, json.dumps(COMMANDS), cwd=here, OMP_NUM_THREADS="1", **environment)
    found = json.loads(out.splitlines()[-1])
    return found | {"commands": dict(zip(COMMANDS, found["commands"]))}, here


def test_the_wheel_has_weights_published_numbers_and_nothing_beside_the_package(built):
    names = set(ZipFile(built["wheel"]).namelist())
    assert built["wheel"].name.startswith("fed_lscl-") and built["sdist"].name.startswith("fed_lscl-")
    for name in (
        "weights/mini_vit.safetensors",
        "results/published_numbers/paper_table1.csv",
        "flower/app/pyproject.toml",
    ):
        assert f"lscl/{name}" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lscl", "fed_lscl"}


def test_smoke_runs_outside_of_the_tree(outside):
    found, here = outside
    assert "fresh environment" in found["lscl"]
    for command in COMMANDS[:5]:
        assert found["commands"][command][0] == 0, found["commands"][command]
    folder = here / "lscl-results" / "runs" / "smoke"
    assert {json.loads(path.read_text("utf-8"))["method"] for path in folder.glob("*.json")} == {"local_head", "fedavg"}
    assert len(list((folder / "models").glob("*.safetensors"))) == 1
    assert [path.name for path in here.iterdir()] == ["lscl-results"]


def test_records_of_an_installed_package_may_enter_tables(outside):
    found, here = outside
    (record,) = (json.loads(p.read_text("utf-8")) for p in (here / "lscl-results").glob("runs/smoke/*--fedavg--*.json"))
    assert (record["commit"], record["dirty"]) == (None, False) and record["versions"]["lscl"]
    assert "FedAvg" in found["commands"]["table --profile smoke"][1]
    assert "an installed package as it was packed" in found["commands"]["doctor"][1]


def test_published_numbers_are_in_the_package(outside):
    assert outside[0]["rows"] == 60 and outside[0]["final"] == pytest.approx(89.4, abs=0.1)


@pytest.mark.skipif(os.name == "nt", reason="Flower's processes start on Linux and macOS")
def test_a_simulated_federation_outside_of_the_tree_gives_the_record_of_one_process(
    federating, monkeypatch, session_cache, tmp_path
):
    """And ends every process that it started."""
    here = tmp_path / "with blank ü"
    here.mkdir()
    for name in ("LSCL_ROOT", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    sizes = "--profile smoke --method fed_lscl --clients 2 --tasks 1 --rounds 1"
    command = (federating, "-m", "lscl.cli", "federate", "--simulation", "--compare", *sizes.split())
    said = called(*command, cwd=here, LSCL_CACHE=str(session_cache), LSCL_MARKER=str(tmp_path), OMP_NUM_THREADS="1")
    assert "in one process: every accuracy and every payload byte count is the same" in said
    assert [path.name for path in here.iterdir()] == ["lscl-results"]
    assert len(list(here.glob("lscl-results/federation/runs/*.json"))) == 1
    assert marked_processes(tmp_path) == []


@pytest.mark.parametrize("command", COMMANDS[5:])
def test_what_needs_a_clone_says_so_in_one_line(outside, command):
    code, out, err = outside[0]["commands"][command]
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"lscl: lscl {command.split()[0]} needs a clone of the repository")
