"""The bootstrap of Colab: a first run, a restart, failed attempts, a Drive; and what pip would do to its packages."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import nbformat
import papermill
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from packaging.markers import default_environment
from packaging.requirements import Requirement
from test_environment import PROJECT
from tests_root import ROOT

import lscl

RELEASE = f"v{lscl.__version__}"
SAMPLE = json.loads((ROOT / "tests" / "samples" / "colab_packages.json").read_text(encoding="utf-8"))
CODE = (ROOT / "notebooks" / "colab_setup.py").read_text(encoding="utf-8")


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """The bootstrap as a module, in an empty working directory."""
    spec = importlib.util.spec_from_file_location("colab_setup", ROOT / "notebooks" / "colab_setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    for name in ("LSCL_ROOT", "LSCL_CACHE"):
        monkeypatch.setenv(name, "before")
    return module


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *who, "-C", str(folder), *words], check=True, capture_output=True)


@pytest.fixture
def served(tmp_path_factory):
    """A repository with the package at its release, later than that a commit that no release has, and the raw file."""
    top = tmp_path_factory.mktemp("served")
    for name in ("lscl", "README.md", "LICENSE", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, top / name)
    (top / "results").mkdir()
    (top / "results" / "committed.txt").write_text("of the release", encoding="utf-8")
    git(top, "init", "-q")
    git(top, "add", "-A")
    git(top, "commit", "-qm", "release")
    git(top, "tag", RELEASE)
    (top / "results" / "committed.txt").write_text("later", encoding="utf-8")
    git(top, "commit", "-qam", "later")
    raw = top / "raw" / RELEASE / "notebooks"
    raw.mkdir(parents=True)
    (raw / "colab_setup.py").write_text(CODE, encoding="utf-8")
    return top


def test_pip_changes_no_package_that_colab_has():
    """Every requirement of ours is met by Colab's list, and so is every one of what has to be installed in addition."""
    environment = {**default_environment(), "python_version": SAMPLE["python"], "sys_platform": "linux", "extra": ""}
    waiting, added, moved = [Requirement(text) for text in PROJECT["dependencies"]], {}, []
    while waiting:
        wanted = waiting.pop()
        name = re.sub("[-_.]+", "-", wanted.name).lower()
        if wanted.marker is not None and not wanted.marker.evaluate(environment):
            continue
        if name in SAMPLE["packages"]:
            if not wanted.specifier.contains(SAMPLE["packages"][name], prereleases=True):
                moved.append(f"{wanted}, Colab has {SAMPLE['packages'][name]}")
        elif name not in added:
            try:
                added[name] = version(name)
                waiting += [Requirement(text) for text in requires(name) or []]
            except PackageNotFoundError:
                pytest.fail(f"{wanted} is neither on Colab's list nor installed here")
    assert moved == []
    assert set(added) <= {"papermill", "ansicolors"}  # the whole of what is new there


def test_the_packages_that_are_held_are_on_colabs_list(colab):
    assert {name.replace("_", "-") for name in colab.HELD} <= set(SAMPLE["packages"])
    assert any(line.startswith("numpy==") for line in colab.held_versions())


def cell(served):
    """The first cell of a notebook with the address of `served`."""
    notebook = nbformat.read(ROOT / "notebooks" / "01_data_partitioning.ipynb", 4)
    (found,) = [one.source for one in notebook.cells if "setup" in one.metadata.tags]
    assert found.count("RELEASE = ") == 1 and f'RELEASE = "{RELEASE}"' in found
    return re.sub('REPOSITORY = ".*"', f'REPOSITORY = "{served.as_uri()}"', found)


def fresh_python(folder):
    """A Python that has all packages of this one but ours."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("-packages")]
    (site / "others.pth").write_text("\n".join(others), encoding="utf-8")
    return folder / "bin" / "python"


def test_a_notebook_begins_twice_in_a_fresh_environment(served, tmp_path, monkeypatch):
    """By papermill; the second time is a restart, with the package installed and the environment forgotten."""
    python, work = fresh_python(tmp_path / "fresh"), tmp_path / "content"
    work.mkdir()
    for name in ("LSCL_ROOT", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("COLAB_RELEASE_TAG", "r"), ("PIP_NO_BUILD_ISOLATION", "0"), ("PIP_NO_INDEX", "1")):
        monkeypatch.setenv(name, value)  # "0" is how pip spells that it builds in this very environment
    show = "import lscl\nfrom lscl import paths\nprint(lscl.__file__, paths.results())"
    sources = [cell(served), show]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "begin.ipynb")

    class Kernel(AsyncKernelManager):
        @property
        def kernel_spec(self):
            return KernelSpec(
                argv=[str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
            )

    said = []
    for _ in range(2):
        done = papermill.execute_notebook(
            str(tmp_path / "begin.ipynb"), None, kernel_manager_class=Kernel, cwd=str(work), progress_bar=False
        )
        said.append(
            ["".join(one.get("text", "") for one in part.outputs if one.get("name") == "stdout") for part in done.cells]
        )
    home = work / "fed-lscl" / "repository"
    assert all(f"lscl {RELEASE} is ready; records are kept in {home / 'results'}" in first for first, _ in said)
    assert said[0][1] == said[1][1] and str(tmp_path / "fresh") in said[0][1] and str(home / "results") in said[0][1]
    assert (home / "results" / "committed.txt").read_text(encoding="utf-8") == "of the release"


def test_records_and_cache_go_to_the_drive_if_it_is_mounted(colab, served, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(colab, "install", lambda folder, release: None)
    drive = tmp_path / "My Drive"
    drive.mkdir()
    for _ in range(2):
        colab.setup(served.as_uri(), RELEASE, drive)
        assert os.environ["LSCL_ROOT"] == str(drive / "fed-lscl" / "repository")
        assert os.environ["LSCL_CACHE"] == str(drive / "fed-lscl" / "cache")
    assert sorted(path.name for path in (drive / "fed-lscl").iterdir()) == ["repository"]
    assert not (tmp_path / "fed-lscl").exists() and "My Drive" in capsys.readouterr().out


def test_a_drive_without_locks_is_told_and_not_used(colab, served, monkeypatch, tmp_path, capsys):
    def refuse(*_):
        raise OSError("not supported")

    monkeypatch.setattr(colab, "install", lambda folder, release: None)
    monkeypatch.setattr("fcntl.flock", refuse)
    (tmp_path / "drive").mkdir()
    colab.setup(served.as_uri(), RELEASE, tmp_path / "drive")
    assert os.environ["LSCL_ROOT"] == str(tmp_path / "fed-lscl" / "repository") and os.environ["LSCL_CACHE"] == "before"
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "has no locks" in said[0]


def test_a_clone_that_failed_is_made_again(colab, served, tmp_path):
    folder = tmp_path / "home" / "repository"
    with pytest.raises(colab.SetupError, match=r"absent.* not cloned: .*; once that is mended, run this cell again$"):
        colab.fetch((served / "absent").as_uri(), RELEASE, folder)
    (tmp_path / "home" / "repository.part").mkdir()  # as a clone that was killed leaves it
    (tmp_path / "home" / "repository.part" / "half").write_text("", encoding="utf-8")
    assert not folder.exists()
    colab.fetch(served.as_uri(), RELEASE, folder)
    assert (folder / "results" / "committed.txt").read_text(encoding="utf-8") == "of the release"
    assert [path.name for path in folder.parent.iterdir()] == ["repository"]


def test_a_clone_moves_to_another_release_and_keeps_what_is_new_in_it(colab, served, tmp_path):
    folder = tmp_path / "repository"
    colab.fetch(served.as_uri(), RELEASE, folder)
    (folder / "results" / "mine.txt").write_text("a record", encoding="utf-8")
    with pytest.raises(colab.SetupError, match="no v9 in"):
        colab.fetch(served.as_uri(), "v9", folder)
    git(served, "tag", "v9")
    colab.fetch(served.as_uri(), "v9", folder)
    assert (folder / "results" / "committed.txt").read_text(encoding="utf-8") == "later"
    assert (folder / "results" / "mine.txt").read_text(encoding="utf-8") == "a record"
    (folder / "results" / "committed.txt").write_text("changed here", encoding="utf-8")
    with pytest.raises(colab.SetupError, match=f"has changes that {RELEASE} would overwrite"):
        colab.fetch(served.as_uri(), RELEASE, folder)
    assert (folder / "results" / "committed.txt").read_text(encoding="utf-8") == "changed here"


def test_a_folder_of_somebody_else_is_not_touched(colab, served, tmp_path):
    (tmp_path / "repository").mkdir()
    with pytest.raises(colab.SetupError, match="is no clone"):
        colab.fetch(served.as_uri(), RELEASE, tmp_path / "repository")


def test_pip_is_asked_again_after_it_failed_and_not_once_it_is_done(colab, served, monkeypatch, tmp_path):
    """pip holds what the session runs on."""
    asked, there = [], [None]

    def pip(what, *command):
        held = Path(command[command.index("-c") + 1]).read_text(encoding="utf-8")
        source = Path(command[-1])
        asked.append((held, sorted(path.name for path in source.iterdir())))
        if len(asked) == 1:
            raise colab.SetupError("no connection")
        there[0] = lscl.__version__

    monkeypatch.setattr(colab, "run", pip)
    monkeypatch.setattr(colab, "installed", lambda: there[0])
    monkeypatch.delitem(sys.modules, "lscl")
    with pytest.raises(colab.SetupError):
        colab.install(served, RELEASE)
    for _ in range(2):
        colab.install(served, RELEASE)
    assert len(asked) == 2 and f"numpy=={version('numpy')}\n" in asked[1][0]
    assert "pyproject.toml" in asked[1][1] and not {".git", "results"} & set(asked[1][1])


def test_a_release_that_replaces_a_loaded_one_asks_for_a_restart(colab, served, monkeypatch):
    there = iter(["0.0.1", lscl.__version__])
    monkeypatch.setattr(colab, "installed", lambda: next(there))
    monkeypatch.setattr(colab, "run", lambda what, *command: "")
    with pytest.raises(colab.SetupError, match="restart the session"):
        colab.install(served, RELEASE)


def test_what_a_command_says_last_is_the_line(colab):
    assert colab.run("python", sys.executable, "-c", "print(3)") == "3"
    with pytest.raises(colab.SetupError) as caught:
        colab.run(
            "it failed", sys.executable, "-c", "import sys; print('first\\nlast\\n', file=sys.stderr); sys.exit(1)"
        )
    assert str(caught.value) == "it failed: last; once that is mended, run this cell again"
