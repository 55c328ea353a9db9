"""Real processes on loopback: ends of a federation that leave nothing behind. A simulation is in test_wheel.py."""

import importlib.util
import json
import os
import signal
import sys
import threading
import time

import pytest
import torch
from tests_root import ROOT, marked_processes

pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")

sys.path.append(str(ROOT / "benchmarks"))
import federation as bench

from lscl import cli
from lscl.config import experiment
from lscl.errors import LsclError
from lscl.federation.payload import seal
from lscl.flower import local as flower
from lscl.flower.messages import unpack_record

SIZES = dict(profile="smoke", method="fed_lscl", clients=2, tasks=1, rounds=1)
FREQUENT_HEARTBEATS = ROOT / "tests" / "flower" / "frequent_heartbeats"
OPTIONS = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def left(monkeypatch, tmp_path):
    """left(): the processes of a federation that still run, found by an environment variable that they inherit."""
    monkeypatch.setenv("LSCL_MARKER", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    return lambda: marked_processes(tmp_path)


def states_of_nodes(local):
    """What the SuperLink says of each registered node."""
    said = local.flwr("supernode", "list", "here", "--verbose", "--format", "json")
    return [node["status"] for node in json.loads(said)["nodes"]]


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_told_to_end_ends_every_process_it_started(left, monkeypatch, capsys, how, code):
    """Sleeping processes in place of Flower's; each starts another one, in a session of its own, as Flower's do."""
    sleep = ("bash", "-c", "setsid sleep 600 & sleep 600; exit")
    monkeypatch.setattr(flower.LocalFederation, "start_link", lambda self: self.start("superlink", *sleep))
    monkeypatch.setattr(flower.LocalFederation, "register", lambda self, client: None)
    start = lambda self, client, link=None: self.start(f"client{client}", *sleep)
    monkeypatch.setattr(flower.LocalFederation, "start_node", start)

    def told_to_end(self, *_):
        end = time.monotonic() + 60
        while len(left()) < 10:  # three times bash and the two that it starts, and the watchdog of the keys
            assert time.monotonic() < end, left()
            time.sleep(0.01)
        os.kill(os.getpid(), how)
        time.sleep(60)

    monkeypatch.setattr(flower.LocalFederation, "run", told_to_end)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    try:
        with pytest.raises(SystemExit) as end:
            cli.main(["federate", *OPTIONS])
    finally:
        signal.signal(signal.SIGINT, before)
    assert end.value.code == code and left() == []


def test_killed_clients_and_servers_come_back_and_strangers_are_never_in(left, places, monkeypatch, tmp_path):
    """SIGKILL to a SuperNode and its client app in round 1: that exchange goes on without it, a later one with it.

    SIGKILL to the SuperLink after round 1: the run ends with one line that says so; given again, it goes on at round 2.
    """
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (FREQUENT_HEARTBEATS, ROOT))))
    config, lines, ended = experiment(**SIZES | dict(rounds=2)), [], []
    settings = {"min-clients": config.clients - 1, "timeout": 300.0}
    first, second, private = tmp_path / "first", tmp_path / "second", tmp_path / "private"

    def until_it_is_killed():
        try:
            local.run(settings, lines.append)
        except LsclError as error:
            ended.append(str(error))

    first.mkdir()
    with flower.federation(first, private, config) as local:
        run = threading.Thread(target=until_it_is_killed)
        run.start()
        while not (app := bench.found(local.processes["client1"].pid, "flwr-clientapp")):
            assert run.is_alive(), (ended, lines)
            time.sleep(0.02)
        bench.kill([bench.found(local.processes["client1"].pid, "flower-supernode"), app])
        while not any("round 1 done" in line for line in lines):
            assert run.is_alive(), (ended, lines)
            time.sleep(0.02)
        bench.kill(bench.family(local.processes["superlink"].pid))
        run.join()
    assert len(ended) == 1 and "the same command goes on after the last finished round" in ended[0]
    assert left() == []

    second.mkdir()
    lines.clear()
    with flower.federation(second, private, config) as local:
        bench.start_strangers(local)
        record = local.run(settings, lines.append)
        end = time.monotonic() + 60
        while (states := states_of_nodes(local)) != ["online"] * config.clients and time.monotonic() < end:
            time.sleep(1)
        for name in bench.STRANGERS:
            local.processes[name].wait(120)  # its log is whole then
        said = [bench.complaint(local, name) for name in bench.STRANGERS]
    assert any("going on after round 1" in line for line in lines)
    up = record["bytes_up"]
    assert len(up) == config.rounds and min(row[0] for row in up) > 0
    assert up[0][1] == 0 and up[-1][1] > 0 and record["accuracy"]["task"][-1][1] is not None
    assert states == ["online"] * config.clients
    reasons = (
        ("Failed to activate SuperNode",),
        ("CERTIFICATE_VERIFY_FAILED",),
        ("Server disconnected", "Connection reset by peer"),
    )
    assert all(any(reason in line for reason in some) for some, line in zip(reasons, said, strict=True)), said
    assert left() == []


def test_the_wrong_client_of_the_benchmark_spoils_seven_payloads_each_in_its_own_way(monkeypatch, tmp_path):
    """The benchmark appends its code to a copy of the client app, which must have what that code takes the place of."""
    monkeypatch.setenv("BAD_PAYLOADS", str(tmp_path / "done"))
    spec = importlib.util.spec_from_file_location("spoiled_app", bench.spoil_package(tmp_path / "spoiled"))
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    assert app.exchange.__globals__["pack_record"] is app.pack_record  # the app's answers go through it
    shapes = {"weight": (2, 3), "bias": (8,), "features": (4, 3)}

    def answers():
        payload = {name: torch.ones(shape) for name, shape in shapes.items()}
        return unpack_record(app.pack_record(payload), "client 1")

    said = []
    for _ in bench.KINDS:
        with pytest.raises(LsclError) as caught:
            seal(answers(), "client 1", shapes, lambda name: torch.float32, 10**6)
        said.append(str(caught.value))
    assert len(set(said)) == len(bench.KINDS) and all(line.startswith("payload of client 1: ") for line in said)
    seal(answers(), "client 1", shapes, lambda name: torch.float32, 10**6)


def test_the_benchmark_measures_anew_what_another_version_of_flower_gave(places, monkeypatch):
    path = places / "results" / "federation" / "scale.json"
    path.parent.mkdir(parents=True)
    rows = [{"clients": 25, "flwr": "0.9"}, {"clients": 50, "flwr": "1.0"}]
    path.write_text(json.dumps({"name": "scale", "rows": rows}), encoding="utf-8")
    monkeypatch.setattr(bench, "version", lambda package: "1.0")
    for clients in (25, 50, 75):
        bench.add("scale", {"clients": clients}, lambda: {"new": True})
    found = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [(row["clients"], row["flwr"], "new" in row) for row in found] == [
        (25, "1.0", True),
        (50, "1.0", False),
        (75, "1.0", True),
    ]
