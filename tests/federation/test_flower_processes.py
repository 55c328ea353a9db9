"""Real processes on loopback: Flower's simulation, and an end of a federation over TLS that leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tests_root import ROOT

pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")
import psutil

sys.path.append(str(ROOT / "benchmarks"))
import federation as bench

from lscl import records
from lscl.config import experiment
from lscl.federation.flower import local as flower
from lscl.run import run

SIZES = dict(profile="smoke", method="fed_lscl", rounds=1)


def compared(record):
    return json.dumps({name: value for name, value in record.items() if name not in records.TIMES and name != "overrides"}, sort_keys=True)


@pytest.fixture
def left(monkeypatch, tmp_path):
    """left(): the processes of a federation that are still there, found by an environment variable that all of them inherit."""
    monkeypatch.setenv("LSCL_MARKER", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def look():
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("LSCL_MARKER") == str(tmp_path):
                    found.append(process.cmdline()[:4])
            except psutil.Error:  # gone, or somebody else's
                continue
        return found

    return look


def test_a_simulation_gives_the_record_of_one_process_and_ends_all_its_processes(left):
    config, lines = experiment(**SIZES), []
    record = flower.federate_here(config, True, {"timeout": 100.0}, lines.append)
    assert compared(record) == compared(run(config, quiet=True))
    assert any("task 2/2 done" in line for line in lines)
    assert left() == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_ends_every_process_it_started(left, how):
    command = [sys.executable, "-m", "lscl.cli", "federate", "--profile", "smoke", "--rounds", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        while not (bench.found(process.pid, "flwr-serverapp") and bench.found(process.pid, "flower-supernode")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(how)
        process.wait(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else 143)
    assert left() == []
