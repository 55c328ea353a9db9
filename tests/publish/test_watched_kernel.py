"""What a notebook may read, and that everything else is an error in its process."""

import logging
import os
import subprocess
import sys

import pytest
from tests_root import ROOT

from lscl.publish.watched_kernel import is_declared, is_study_declared, is_told


@pytest.mark.parametrize(
    ("place", "reads", "makes", "allowed"),
    [
        ("tuning/a.json", ["tuning/*.json"], [], True),
        ("tuning/deep/a.json", ["tuning/*.json"], [], False),
        ("tuning/a.csv", ["tuning/*.json"], [], False),
        ("runs/mini/a.json", ["study:mini/table1"], [], True),  # a set is searched for among all records of its profile
        ("runs/mini/sheets/a.png", ["study:mini/table1"], [], False),
        ("runs/demo/a.json", ["study:mini/table1"], [], False),
        (
            "runs/demo/state/a/round-00001/rounds.json",
            [],
            ["study:demo/table1"],
            True,
        ),  # what a run makes, it may read again
        ("runs/mini/a.json", [], ["study:demo/table1"], False),
        ("published/paper_table1.csv", [], [], False),
    ],
)
def test_which_files_may_be_read(place, reads, makes, allowed):
    assert is_declared(place, reads, makes) is allowed


@pytest.mark.parametrize(
    ("profile", "name", "reads", "makes", "allowed"),
    [
        ("mini", "table1", ["study:mini/table1"], [], True),
        ("mini", "blocks", ["study:mini/table1"], [], False),
        ("demo", "table1", ["study:mini/table1"], [], False),
        ("mini", "", ["study:mini/table1"], [], False),
        ("mini", "", ["runs/mini/*.json"], [], True),
        ("demo", "table1", [], ["study:demo/table1"], True),
    ],
)
def test_which_sets_of_runs_may_be_read(profile, name, reads, makes, allowed):
    assert is_study_declared(profile, name, reads, makes) is allowed


def test_in_the_process_of_a_notebook_other_files_cannot_be_read(places, tmp_path):
    for name in ("allowed.json", "other.json"):
        (places / "results" / "tuning").mkdir(parents=True, exist_ok=True)
        (places / "results" / "tuning" / name).write_text("{}", encoding="utf-8")
    (tmp_path / "elsewhere.txt").write_text("", encoding="utf-8")
    code = f"""
from pathlib import Path
from lscl.errors import LsclError
from lscl.publish.watched_kernel import refuse_undeclared
refuse_undeclared("01.ipynb", ["tuning/allowed.json"], [])
folder = Path({str(places / "results" / "tuning")!r})
(folder / "allowed.json").read_bytes(), Path({str(tmp_path / "elsewhere.txt")!r}).read_bytes()
(folder / "new.json").write_bytes(b"written, not read")
try:
    (folder / "other.json").read_bytes()
except LsclError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.stdout.split() and done.returncode == 0, done.stderr
    assert (
        done.stdout.strip()
        == "01.ipynb reads results/tuning/other.json, which it does not declare in its metadata (lscl.reads)"
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [("KeyboardInterrupt caught in kernel.", False), ("Exception in message handler: KeyboardInterrupt", True)],
)
def test_only_the_interrupt_at_the_end_of_a_kernel_is_not_told(line, told):
    assert is_told(logging.makeLogRecord({"msg": line})) is told
