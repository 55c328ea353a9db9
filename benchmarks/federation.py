"""What real federations over Flower do: the same numbers, faults, bytes on the wire, many clients. Needs the extra `flower`.

    python benchmarks/federation.py parity [--profile demo] [--methods fed_lscl,fedavg,lorm,pilora]
    python benchmarks/federation.py faults [--kills 10] [--stops 5]
    python benchmarks/federation.py scale [--clients 25,50,100]

writes results/federation/{parity,faults,scale}.json. Both cores are busy while it runs: minutes for smoke, an hour or more for the profile demo.
"""

import argparse
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import measure
import psutil

from lscl import paths
from lscl.config import Experiment, experiment
from lscl.evaluation import average_so_far
from lscl.federation.flower import local as flower
from lscl.records import TIMES, accuracy
from lscl.run import run

BUFFER = 2**16
SETTINGS = {"min-clients": 0, "timeout": 600.0, "max-mb": 512.0}


class Meter:
    """Passes TCP connections on to a port of this machine and counts the bytes: `up` to it, `down` from it."""

    def __init__(self, target: int):
        self.target, self.up, self.down = target, 0, 0
        self.server = socket.create_server((flower.HOST, 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            near, _ = self.server.accept()
            try:
                far = socket.create_connection((flower.HOST, self.target))
            except OSError:  # the server is not there
                near.close()
                continue
            for source, sink, side in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self.carry, args=(source, sink, side), daemon=True).start()

    def carry(self, source: socket.socket, sink: socket.socket, side: str) -> None:
        with suppress(OSError):
            while data := source.recv(BUFFER):
                setattr(self, side, getattr(self, side) + len(data))
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class Watch:
    """Calls `note` with the number of finished rounds whenever it has grown, seen by the server's state on disk."""

    def __init__(self, config: Experiment, note):
        self.folder, self.note, self.done = paths.results() / "federation" / "state" / config.name, note, False
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self) -> None:
        seen = 0
        while not self.done:
            rounds = max((int(path.name[-5:]) for path in self.folder.glob("round-*")), default=0)
            if rounds > seen:
                seen = rounds
                self.note(rounds)
            time.sleep(0.02)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done = True
        self.thread.join()


@contextmanager
def deployed(config: Experiment, link=None) -> Iterator[flower.Local]:
    """SuperLink and SuperNodes; link(port) gives the port that the nodes take for the SuperLink's."""
    with tempfile.TemporaryDirectory(prefix="lscl-federation-") as folder:
        local = flower.Local(Path(folder), Path(folder) / "private", config)
        try:
            flower.certificates(local.folder)
            local.start_link()
            port = link(local.port) if link else local.port
            for k in range(config.clients):
                local.register(f"client{k}")
                local.start_node(k, link=port)
            yield local
        finally:
            local.stop()


def record_of(config: Experiment) -> dict:
    """The record that the server wrote."""
    return json.loads((paths.results() / "federation" / "runs" / f"{config.name}.json").read_text())


def difference(record: dict, alone: dict) -> list[str]:
    """What differs between a record and that of one process, times left out."""
    return sorted(name for name in {*record, *alone} - {*TIMES, "overrides"} if record.get(name) != alone.get(name))


def quiet(line: str) -> None:
    print("   ", line, flush=True)


# ---- parity and bytes on the wire


def parity(profile: str, methods: list[str]) -> dict:
    """Each method in one process, in Flower's simulation and as processes over TLS; the bytes of the latter, by round."""
    rows, wire = [], []
    for method in methods:
        config = experiment(profile=profile, method=method)
        alone = run(config)
        start = time.perf_counter()
        simulated = flower.federate_here(config, True, SETTINGS, quiet)
        rows.append(row(config, "simulation", simulated, alone, time.perf_counter() - start))
        start = time.perf_counter()
        processes, bytes_of_rounds = metered(config)
        rows.append(row(config, "processes over TLS", processes, alone, time.perf_counter() - start))
        wire.append({"method": method, **bytes_of_rounds})
    return {"profile": profile, "runs": rows, "wire": wire}


def metered(config: Experiment) -> tuple[dict, dict]:
    """One run as processes behind a meter; -> its record, and what passed the meter in each round with the payloads among it.

    In the first round the nodes are greeted and get the app, in the last one of a task the clients are tested.
    """
    meters, counts = [], []

    def link(port: int) -> int:
        meters.append(Meter(port))
        return meters[0].port

    def note(rounds: int) -> None:
        counts.append((meters[0].up, meters[0].down))

    with deployed(config, link) as local, Watch(config, note):
        local.run(SETTINGS, quiet)
        note(0)
    record = record_of(config)
    counts = [(0, 0), *counts[: len(record["bytes_up"]) - 1], counts[-1]]  # the state of the last round is hardly there when it is removed
    up, down = ([after[i] - before[i] for before, after in itertools.pairwise(counts)] for i in (0, 1))
    payload_up, payload_down = ([sum(one) for one in record[side]] for side in ("bytes_up", "bytes_down"))
    return record, {"clients": config.clients, "wire_up": up, "payload_up": payload_up, "wire_down": down, "payload_down": payload_down}


def row(config: Experiment, transport: str, record: dict, alone: dict, seconds: float) -> dict:
    """What the table of the page shows of one run."""
    differs = difference(record, alone)
    return {
        "method": config.method,
        "transport": transport,
        "differs": differs,
        "accuracies": sum(value is not None for mask in record["accuracy"].values() for t in mask for k in t for value in k),
        "byte_counts": sum(len(one) for side in ("bytes_up", "bytes_down") for one in record[side]),
        "seconds": round(seconds, 1),
        "seconds_in_one_process": round(sum(alone["seconds"].values()), 1),
        "seconds_of_rounds": round(sum(record["seconds"].values()), 1),
        "accuracy": round(float(average_so_far(accuracy(record, "task"))[-1]), 4),
    }


# ---- faults


def faults(kills: int, stops: int) -> dict:
    """Every fault with its outcome."""
    return {"clients_killed": clients_killed(kills), "servers_killed": servers_killed(stops), **strangers_and_bad_payloads()}


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def clients_killed(kills: int) -> dict:
    """SIGKILL to the SuperNode of a client and all its processes at random moments of one run; a new SuperNode starts a little later."""
    config = experiment(profile="smoke", method="fed_lscl", tasks=2, rounds=3 * kills // 4 + 1)
    settings, draw, points, rounds = {**SETTINGS, "min-clients": 2, "timeout": 40.0}, random.Random(0), [], [0]
    with deployed(config) as local, Watch(config, rounds.append):

        def attack() -> None:
            while not rounds[-1] and "run" not in local.processes:
                time.sleep(0.1)
            for _ in range(kills):
                time.sleep(draw.uniform(5, 25))
                if "run" not in local.processes:
                    return
                client, process = (k := draw.randrange(config.clients)), local.processes.pop(f"client{k}")
                busy = any("flwr-clientapp" in " ".join(one.cmdline()) for one in family(process.pid) if one.is_running())
                kill(family(process.pid))
                process.wait()
                points.append({"client": client, "finished_rounds": rounds[-1], "while_it_computed": busy})
                time.sleep(draw.uniform(0, 10))
                local.start_node(client)

        thread = threading.Thread(target=attack, daemon=True)
        thread.start()
        local.run(settings, quiet)
        thread.join(timeout=60)
    record = record_of(config)
    lines = [line for one in record.get("faults", []) for line in one]
    answered = [sum(size > 0 for size in one) for one in record["bytes_up"]]
    last = [client is not None for client in record["accuracy"]["task"][-1]]
    return {
        "points": points,
        "rounds": config.tasks * config.rounds,
        "rounds_finished": len(record["bytes_up"]),
        "fewest_answers_in_a_round": min(answered),
        "answers_not_taken": len(lines),
        "reasons": sorted({line.partition(": ")[2] for line in lines}),
        "clients_in_the_last_test": sum(last),
    }


def servers_killed(stops: int) -> list[dict]:
    """SIGKILL to the SuperLink and all its processes, between rounds and inside them; then the same command once more."""
    config, draw, rows = experiment(profile="smoke", method="fed_lscl"), random.Random(1), []
    alone, total = run(config), config.tasks * config.rounds
    command = [sys.executable, "-m", "lscl.cli", "federate", "--profile", "smoke", "--method", "fed_lscl"]
    for stop in range(stops):
        inside, wanted, finished = stop % 2 == 1, stop % total, []
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process, Watch(config, finished.append):
            while (finished or [0])[-1] < wanted or not (link := found(process.pid, "flower-superlink")):
                time.sleep(0.01)
            if inside or wanted == 0:
                while not found(process.pid, "flwr-clientapp"):
                    time.sleep(0.05)
                time.sleep(draw.uniform(0, 8))
            kill(family(link.pid))
            says = process.stderr.read().strip().splitlines()[-1:]
        before = (finished or [0])[-1]
        again = subprocess.run(command, capture_output=True, text=True)
        resumed = [line for line in again.stderr.splitlines() if "going on after round" in line]
        rows.append({
            "killed": "inside a round" if inside or wanted == 0 else "between rounds",
            "finished_rounds": before,
            "exit_code": process.returncode,
            "says": says,
            "resumed_after": int(resumed[0].rsplit(" ", 1)[1]) if resumed else 0,
            "differs_from_one_process": difference(record_of(config), alone),
        })  # fmt: skip
    return rows


def found(pid: int, name: str) -> psutil.Process | None:
    """The descendant of a process that runs a program."""
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            if any(Path(word).name == name for word in process.cmdline()[:2]):
                return process
    return None


# What a node with the wrong intentions sends: runs in its process only, behind the client app's own checks.
SPOIL = """
import os, sys
if "BAD_PAYLOADS" in os.environ and any("flwr-clientapp" in word for word in sys.argv):
    import torch
    from lscl.federation.flower import client_app
    honest, kinds = client_app.pack, os.environ["BAD_PAYLOADS"]
    def pack(payload):
        done = int(open(kinds).read() or 0) if os.path.exists(kinds) else 0
        if "weight" in payload:
            open(kinds, "w").write(str(done + 1))
            [lambda: payload["weight"].fill_(torch.nan), lambda: payload["bias"].fill_(torch.inf), lambda: payload.pop("bias"),
             lambda: payload.update(image=torch.zeros(3)), lambda: payload.update(bias=payload["bias"][:5].clone()),
             lambda: payload.update(bias=payload["bias"].double()), lambda: payload.update(features=torch.zeros(10**6, 16)),
             lambda: None][min(done, 7)]()
        return honest(payload)
    client_app.pack = pack
"""
KINDS = ["NaN", "infinite", "a name too few", "a name too many", "shape", "type", "size"]


def strangers_and_bad_payloads() -> dict:
    """One run in which client 1 sends something wrong in seven rounds, and three nodes that nobody let in try to be client 0."""
    config = experiment(profile="smoke", method="fed_lscl", rounds=4)
    with deployed(config) as local:
        spoiler = local.folder / "spoiler"
        spoiler.mkdir()
        (spoiler / "sitecustomize.py").write_text(SPOIL)
        local.stop("client1")
        with changed(PYTHONPATH=f"{spoiler}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", BAD_PAYLOADS=str(spoiler / "done")):
            local.start_node(1)
        start_strangers(local)
        local.run({**SETTINGS, "min-clients": 2, "max-mb": 1.0}, quiet)
        nodes = local.flwr("supernode", "list", "here", "--format", "json")
        strangers = [{"node": name, "is_in": name in nodes, "says": complaint(local, name)} for name in STRANGERS]
        online = sum(node["status"] == "online" for node in json.loads(nodes)["nodes"])
    record = record_of(config)
    lines = [line for one in record["faults"] for line in one]
    payloads = [{"kind": kind, "server_says": line} for kind, line in zip(KINDS, lines)]
    finished, good = len(record["bytes_up"]), sum(min(one[0], one[2]) > 0 for one in record["bytes_up"])
    return {
        "bad_payloads": payloads,
        "bad_payloads_run": {
            "rounds": finished,
            "of": config.tasks * config.rounds,
            "rounds_with_both_others": good,
            "answers_not_taken": len(lines),
        },
        "strangers": strangers,
        "nodes_online": online,
    }


@contextmanager
def changed(**values: str) -> Iterator[None]:
    """Other environment variables for a while."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


STRANGERS = ("unregistered key", "wrong certificate", "plain text")


def start_strangers(local: flower.Local) -> None:
    """Three nodes that should get in nowhere: a key that nobody registered, another authority's certificate, no TLS."""
    other = local.folder / "other"
    other.mkdir()
    flower.certificates(other)
    for name, options in zip(STRANGERS, ([], ["--root-certificates", str(other / "ca.crt")], ["--insecure"]), strict=True):
        key = local.folder / f"{name}.key"
        flower.node_key(key)
        trust = options or ["--root-certificates", str(local.folder / "ca.crt")]
        signed = [] if "--insecure" in options else ["--auth-supernode-private-key", str(key)]
        local.start(
            name, "flower-supernode", "--superlink", f"{flower.HOST}:{local.port}", *trust, *signed,
            "--host", flower.HOST, "--port", str(flower.free_port()), "--node-config", "partition-id=0", "--max-retries", "3",
        )  # fmt: skip


def complaint(local: flower.Local, name: str) -> str:
    """The last thing a node had to say, on one line."""
    lines = [line.strip() for line in (local.folder / f"{name}.log").read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


# ---- many clients


def scale(numbers: list[int]) -> dict:
    """Flower's simulation of so many clients, two classes each; memory of all its processes behind each round."""
    rows = []
    for clients in numbers:
        sizes = dict(clients=clients, tasks=2, classes_per_task=1, private_classes=2, rounds=5)
        config, memory = experiment(profile="smoke", method="fed_lscl", **sizes), []

        def note(rounds: int, memory=memory) -> None:
            memory.append(round(sum(rss(process) for process in family(os.getpid())) / 2**20))

        start = time.perf_counter()
        with Watch(config, note):
            record = flower.federate_here(config, True, SETTINGS, quiet)
        rounds = len(record["bytes_up"])
        rows.append({
            "clients": clients,
            "rounds": rounds,
            "seconds": round(time.perf_counter() - start, 1),
            "seconds_per_round": round(sum(record["seconds"][name] for name in ("train", "aggregate", "evaluate")) / rounds, 2),
            "memory_mb": memory,
            "differs_from_one_process": difference(record, run(config)),
        })  # fmt: skip
    return {"runs": rows}


def rss(process: psutil.Process) -> int:
    """Bytes of memory that a process has for itself, 0 if it is gone."""
    with suppress(psutil.Error):
        return process.memory_full_info().uss
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["parity", "faults", "scale"])
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--methods", default="local_head,fed_lscl,fedavg,lorm,pilora")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--clients", default="25,50,100")
    given = parser.parse_args()
    with paths.scratch():
        if given.what == "parity":
            facts = parity(given.profile, given.methods.split(","))
        elif given.what == "faults":
            facts = faults(given.kills, given.stops)
        else:
            facts = scale([int(number) for number in given.clients.split(",")])
    measure.write(given.what, facts, "federation")


if __name__ == "__main__":
    main()
