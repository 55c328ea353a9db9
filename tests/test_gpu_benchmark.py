"""benchmarks/gpu.py: its dry run does the whole list on the CPU; whatever happens, every check has an outcome."""

import json
import os
import runpy
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tests_root import ROOT

from lscl.errors import LsclError
from lscl.methods import METHODS

SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture
def module(monkeypatch):
    """module(name) imports a file of benchmarks/."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return __import__


CALL = f"""
import runpy, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


@pytest.fixture
def begin(forked, monkeypatch):
    """begin(out, words) starts the script's dry run; the processes that it starts in turn are new interpreters."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return lambda out, *more: forked(CALL, "--dry", "--out", out, *more)


def outcomes(out):
    """{name: outcome} of all checks that have a file."""
    return {path.stem: json.loads(path.read_text())["outcome"] for path in out.glob("[abcde]*.json")}


def test_the_dry_run_does_every_check(begin, tmp_path):
    out, archive = tmp_path / "out", tmp_path / "all.tar.gz"
    process = begin(out, "--minutes", "30", "--archive", archive)
    said, complaints = process.communicate()
    assert process.returncode == 0, said + complaints
    found = outcomes(out)
    assert set(found.values()) == {"passed"}
    assert {f"{part}.{name}" for part in "ae" for name in METHODS} <= set(found)
    assert {"c.resume", "c.fp16", "c.memory", "d.01_data_partitioning", "b4.concurrency", "e.images"} <= set(found)
    assert {"b1.lorm-bf16-64", "b2.fed_lscl-compiled-16"} <= set(found)
    assert all(any(f" {name} " in line for line in said.splitlines()) for name in found)
    about = json.loads((out / "gpu--none.json").read_text())
    assert (about["passed"], about["failed"], len(about["rows"])) == (len(found), 0, len(found))
    with tarfile.open(archive) as packed:
        names = packed.getnames()
    assert "out/a.fed_lscl.json" in names and "out/gpu--none.json" in names
    assert any(name.startswith("out/results/runs/smoke/") and name.endswith(".json") for name in names)


def test_a_stop_keeps_what_is_done_and_packs_it(begin, tmp_path):
    out, archive = tmp_path / "out", tmp_path / "all.tar.gz"
    process = begin(out, "--only", "a", "--archive", archive)
    while not process.written():  # the line of the first check
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    assert set(outcomes(out).values()) == {"passed"}
    with tarfile.open(archive) as packed:
        assert "out/gpu--none.json" in packed.getnames()


def test_checks_without_time_say_so(begin, tmp_path):
    process = begin(tmp_path, "--only", "a.l2p,b1.l2p", "--minutes", "0.1")
    said, _ = process.communicate()
    assert process.returncode == 0
    assert set(outcomes(tmp_path).values()) == {"not run"}
    assert said.count("no time") == 3


def setting(module, out):
    return module("gpu_setting").Setting(out, dry=True)


def test_a_failed_check_gives_its_reason_and_the_others_go_on(tmp_path, module, capsys):
    gpu, where = module("gpu"), setting(module, tmp_path)

    def bad():
        raise module("gpu_setting").CheckFailed("too far", {"points_apart": 20.0})

    checks = [gpu.Check("a.bad", 0, bad), gpu.Check("a.odd", 0, lambda: 1 / 0), gpu.Check("a.good", 0, dict)]
    gpu.work_through(checks, where, time.time() + 60)
    bad, odd, good = (json.loads((tmp_path / f"a.{name}.json").read_text()) for name in ("bad", "odd", "good"))
    assert (bad["outcome"], bad["reason"], bad["points_apart"]) == ("failed", "too far", 20.0)
    assert odd["reason"] == "ZeroDivisionError: division by zero" and "Traceback" in odd["traceback"]
    assert good["outcome"] == "passed"
    assert capsys.readouterr().out.count("\n") == 3
    assert not gpu.summarise(where)


def test_a_process_that_dies_fails_one_check_and_the_rest_is_done_again(tmp_path, module):
    gpu, where = module("gpu"), setting(module, tmp_path)
    checks = [gpu.Check(f"a.{name}", 0, dict) for name in ("done", "dying", "rest")]
    gpu.report("a.done", {"outcome": "passed"}, where)
    log = tmp_path / "log"
    log.write_text("its last words\n")
    dead = subprocess.Popen([sys.executable, "-c", "import os; os.abort()"])
    dead.wait()
    assert gpu.left_over(gpu.Job(checks, dead, log), where) == [checks[2:]]
    found = json.loads((tmp_path / "a.dying.json").read_text())
    assert (found["outcome"], found["reason"]) == ("failed", "the process ended with exit code -6")
    assert "its last words" in found["traceback"]


def test_an_error_of_cuda_ends_the_process_only(tmp_path, module):
    gpu, where = module("gpu"), setting(module, tmp_path)

    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    gpu.work_through([gpu.Check("b1.x", 0, broken), gpu.Check("b1.y", 0, dict)], where, time.time() + 60)
    assert outcomes(tmp_path) == {"b1.x": "failed"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "--out: give a folder for the outcomes"),
        (["--out", "x"], "no CUDA GPU found; --dry does all of it on the CPU at toy size"),
    ],
)
def test_bad_calls_are_one_line(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert (end.value.code, capsys.readouterr().err) == (2, f"lscl: {line}\n")


def sheet(folder, images):
    """A pack of 32 tiles of a split in two columns, as lossless WebP."""
    rows = images.reshape(-1, 2, 32, 32, 3).swapaxes(1, 2)
    Image.fromarray(rows.reshape(-1, 64, 3)).save(folder / "train_00.webp", lossless=True, quality=100, exact=True)


def test_a_pack_is_read_tile_by_tile_in_canonical_order(tmp_path, module):
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    sheet(tmp_path, images)
    np.save(tmp_path / "train_labels.npy", np.array([1, 0, 1, 0, 1]))  # the last tile is unused
    (tmp_path / "classes.json").write_text('["a", "b"]')
    found = module("image_pack").read_split(tmp_path, "train")
    assert found.labels.tolist() == [0, 0, 1, 1, 1] and found.classes == ("a", "b")
    assert {one.tobytes() for one in found.images} == {one.tobytes() for one in images[:5]}
    with pytest.raises(LsclError, match="the train images are not those of CIFAR-100"):
        module("image_pack").expand(tmp_path)


def test_a_pack_with_too_few_tiles_is_one_line(tmp_path, module):
    sheet(tmp_path, np.zeros((2, 32, 32, 3), np.uint8))
    np.save(tmp_path / "train_labels.npy", np.zeros(3))
    (tmp_path / "classes.json").write_text('["a"]')
    with pytest.raises(LsclError, match="2 train tiles for 3 labels"):
        module("image_pack").read_split(tmp_path, "train")
