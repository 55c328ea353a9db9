"""Real processes on loopback: Flower's simulation, and an end of a federation over TLS that leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from tests_root import ROOT

pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")
import psutil

sys.path.append(str(ROOT / "benchmarks"))
import federation as bench

from lscl.config import experiment
from lscl.experiments import records
from lscl.experiments.run import run
from lscl.flower import local as flower

SIZES = dict(profile="smoke", method="fed_lscl", clients=2, tasks=1, rounds=1)


def compared(record):
    return json.dumps(
        {name: value for name, value in record.items() if name not in records.MAY_DIFFER and name != "overrides"},
        sort_keys=True,
    )


@pytest.fixture
def left(monkeypatch, tmp_path):
    """left(): the processes of a federation that still run, found by an environment variable that all inherit."""
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
    record = flower.federate_locally(config, True, {"timeout": 300.0}, lines.append)
    assert compared(record) == compared(run(config, quiet=True))
    assert any("task 1/1 done" in line for line in lines)
    assert left() == []


@pytest.mark.parametrize(("how", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_stopped_federation_ends_every_process_it_started(left, tmp_path, monkeypatch, how, raised):
    """Sleeping processes in place of Flower's; each starts another one, in a session of its own, as Flower's do."""
    sleep = ("bash", "-c", "setsid sleep 600 & sleep 600; exit")
    monkeypatch.setattr(flower.LocalFederation, "start_link", lambda self: self.start("superlink", *sleep))
    monkeypatch.setattr(flower.LocalFederation, "register", lambda self, client: None)
    monkeypatch.setattr(
        flower.LocalFederation, "start_node", lambda self, client, link=None: self.start(f"client{client}", *sleep)
    )
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # whoever runs the tests in the background has it ignored
    try:
        with pytest.raises(raised) as end, flower.federation(tmp_path, tmp_path / "private", experiment(**SIZES)):
            while len(left()) < 9:  # three times bash and what it starts
                time.sleep(0.01)
            os.kill(os.getpid(), how)
            time.sleep(60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert left() == [] and (how == signal.SIGINT or end.value.code == 143)


def test_a_command_that_is_told_to_end_ends_every_process_it_started(left):
    command = [
        sys.executable,
        "-m",
        "lscl.cli",
        "federate",
        "--profile",
        "smoke",
        "--clients",
        "1",
        "--tasks",
        "1",
        "--rounds",
        "1",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, encoding="utf-8") as process:
        while not (bench.found(process.pid, "flwr-serverapp") and bench.found(process.pid, "flower-supernode")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.terminate()
        process.wait(timeout=60)
    assert process.returncode == 143
    assert left() == []


def test_a_client_killed_in_mid_round_is_back_in_a_later_one_and_strangers_are_never_in(left, tmp_path):
    """SIGKILL to SuperNode and client app while it trains: that exchange goes on without it, a later one with it."""
    config, record = experiment(**SIZES | dict(rounds=4)), {}
    settings = {"min-clients": config.clients - 1, "timeout": 300.0}
    with flower.federation(tmp_path, tmp_path / "private", config) as local:
        bench.start_strangers(local)
        run = threading.Thread(target=lambda: record.update(local.run(settings, print)))
        run.start()
        while not (app := bench.found(local.processes["client1"].pid, "flwr-clientapp")):
            assert run.is_alive()
            time.sleep(0.02)
        bench.kill([bench.found(local.processes["client1"].pid, "flower-supernode"), app])
        run.join()
        nodes = json.loads(local.flwr("supernode", "list", "here", "--verbose", "--format", "json"))["nodes"]
        said = [bench.complaint(local, name) for name in bench.STRANGERS]
    up = record["bytes_up"]
    assert len(up) == config.rounds and min(row[0] for row in up) > 0
    assert up[0][1] == 0 and up[-1][1] > 0 and record["accuracy"]["task"][-1][1] is not None
    assert [node["status"] for node in nodes] == ["online"] * config.clients
    reasons = (
        ("Failed to activate SuperNode",),
        ("CERTIFICATE_VERIFY_FAILED",),
        ("Server disconnected", "Connection reset by peer"),
    )
    assert all(any(reason in line for reason in some) for some, line in zip(reasons, said, strict=True)), said
    assert left() == []


def test_a_federation_goes_on_behind_the_last_finished_round_of_a_server_that_was_killed(left):
    command = [
        sys.executable,
        "-m",
        "lscl.cli",
        "federate",
        "--compare",
        "--profile",
        "smoke",
        "--clients",
        "2",
        "--tasks",
        "1",
        "--rounds",
        "2",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, encoding="utf-8") as process:
        said = ""
        while "round 1 done" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        bench.kill(bench.family(bench.found(process.pid, "flower-superlink").pid))
        said = process.stderr.read()
    assert process.returncode == 2 and "the same command goes on after the last finished round" in said
    assert left() == []
    again = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert "going on after round 1" in again.stderr
    assert "every accuracy and every payload byte count is the same" in again.stdout
