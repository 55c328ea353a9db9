"""What real federations over Flower do: the same numbers, faults, bytes on the wire, many clients.

    python benchmarks/federation.py parity [--profile demo] [--methods local_head,fed_lscl,...] [--transports tls,...]
    python benchmarks/federation.py faults [--kills 10] [--stops 5]
    python benchmarks/federation.py scale [--clients 25,50,100]

adds rows to results/federation/{parity,faults,scale}.json. A row that this version of Flower has given is not computed
again, so a stopped command goes on; a row of another version is replaced. It needs the extra `flower`. Both cores are
busy while it runs: minutes for the profile smoke, hours for all of demo.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import measure
import psutil

import lscl
from lscl import paths
from lscl.cli import one_line
from lscl.config import Experiment, experiment
from lscl.data.store import write_atomic
from lscl.experiments import records
from lscl.experiments.records import accuracy, differing_entries
from lscl.experiments.run import run
from lscl.federation.metrics import average_so_far
from lscl.flower import client_app
from lscl.flower import local as flower
from lscl.flower.leftovers import key_folder
from lscl.flower.node import LOOPBACK
from lscl.methods import METHODS

BUFFER = 2**16
SETTINGS = {"min-clients": 0, "timeout": 600.0, "max-mb": 512.0}


def add(part: str, key: dict, work: Callable[[], dict]) -> None:
    """Add the row that `work` makes to results/federation/<part>.json, unless there is one by this version of Flower.

    A row with this key by another version gives its place to the new one.
    load: average number of busy processes on the machine before it began, so that seconds can be judged.
    """
    path = paths.results() / "federation" / f"{part}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    same = [number for number, row in enumerate(rows) if key.items() <= row.items()]
    about = {
        **records.source(),
        "machine": {**records.hardware(), "load": round(os.getloadavg()[0], 1)},
        "flwr": version("flwr"),
    }
    if any(rows[number]["flwr"] == about["flwr"] for number in same):
        return
    with paths.scratch():
        row = {**key, **work(), **about}
    print(json.dumps(row), flush=True)
    if same:
        rows[same[0]] = row
    else:
        rows.append(row)
    write_atomic(path, (json.dumps({"name": part, "rows": rows}, indent=1) + "\n").encode())


class Meter:
    """Passes TCP connections on to a port of this machine and counts the bytes: `up` to it, `down` from it."""

    def __init__(self, target: int):
        self.target, self.up, self.down = target, 0, 0
        self.server = socket.create_server((LOOPBACK, 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            near, _ = self.server.accept()
            try:
                far = socket.create_connection((LOOPBACK, self.target))
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
def deployed(config: Experiment, link: Callable[[int], int] = lambda port: port) -> Iterator[flower.LocalFederation]:
    """A federation of processes over TLS in a temporary folder."""
    with key_folder() as folder, flower.federation(folder, folder / "private", config, link=link) as local:
        yield local


def quiet(line: str) -> None:
    print("   ", line, flush=True)


# ---- parity and bytes on the wire


def parity(profile: str, methods: list[str], transports: list[str]) -> None:
    """Each method in Flower's simulation and as processes over TLS, against one process."""
    for method, transport in itertools.product(methods, transports):
        config = experiment(profile=profile, method=method)
        add(
            "parity",
            {"profile": profile, "method": method, "transport": transport},
            lambda config=config, transport=transport: equal(config, transport),
        )


def equal(config: Experiment, transport: str) -> dict:
    """One run over a transport, and what differs from the run in one process."""
    alone, wire = run(config), {}
    if transport == "tls":
        record, wire = metered(config)
    else:
        record = flower.federate_locally(config, True, SETTINGS, quiet)
    return {
        "differs": differing_entries(record, alone),
        "accuracies": sum(
            value is not None for mask in record["accuracy"].values() for t in mask for k in t for value in k
        ),
        "byte_counts": sum(len(one) for side in ("bytes_up", "bytes_down") for one in record[side]),
        "accuracy": round(float(average_so_far(accuracy(record, "task"))[-1]), 4),
        "seconds": round(sum(record["seconds"].values()), 1),
        "seconds_in_one_process": round(sum(alone["seconds"].values()), 1),
        **wire,
    }


def metered(config: Experiment) -> tuple[dict, dict]:
    """One run as processes behind a meter: its record, and the bytes of each round on the wire and in payloads.

    In the first round the nodes get the app, too; in the last one of a task the clients are tested.
    """
    meters, counts = [], []

    def link(port: int) -> int:
        meters.append(Meter(port))
        return meters[0].port

    def note(rounds: int) -> None:
        counts.append((meters[0].up, meters[0].down))

    with deployed(config, link) as local, Watch(config, note):
        note(0)
        record = local.run(SETTINGS, quiet)
        note(-1)
    rounds = len(record["bytes_up"])
    if len(counts) > rounds + 1:  # the state of the last round was seen before it was removed
        del counts[-2]
    up, down = ([after[i] - before[i] for before, after in itertools.pairwise(counts)] for i in (0, 1))
    payload_up, payload_down = ([sum(one) for one in record[side]] for side in ("bytes_up", "bytes_down"))
    exchanges = [2 if (number + 1) % config.rounds == 0 else 1 for number in range(rounds)]
    return record, {
        "clients": config.clients, "exchanges": exchanges,
        "wire_up": up, "payload_up": payload_up, "wire_down": down, "payload_down": payload_down
    }  # fmt: skip


# ---- faults


def faults(kills: int, stops: int) -> None:
    """Every fault with its outcome."""
    add("faults", {"fault": "bad payloads and strangers"}, strangers_and_bad_payloads)
    for stop in range(stops):
        add("faults", {"fault": "server killed", "point": stop}, lambda stop=stop: server_killed(stop))
    for first in range(0, kills, KILLS):
        some = min(KILLS, kills - first)
        add(
            "faults",
            {"fault": "client killed", "kills": some, "seed": first},
            lambda some=some, first=first: clients_killed(some, first),
        )


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


KILLS = 5  # in one run


def clients_killed(kills: int, seed: int) -> dict:
    """SIGKILL to all processes of a client at random moments of one run.

    They are started again at once; the next client is killed when they have been let in and a round has begun and ended
    since.
    """
    config = experiment(profile="smoke", method="fed_lscl", tasks=2, rounds=3 * kills + 1)
    settings, draw, points, rounds = {**SETTINGS, "min-clients": 2}, random.Random(seed), [], [0]
    with deployed(config) as local, Watch(config, rounds.append):

        def attack() -> None:
            while not any(found(one.pid, "flwr-clientapp") for one in local.processes.values()):
                time.sleep(0.1)
            for _ in range(kills):
                time.sleep(draw.uniform(0, 20))
                client = draw.randrange(config.clients)
                process = local.processes[f"client{client}"]
                points.append(
                    {
                        "client": client,
                        "finished_rounds": rounds[-1],
                        "while_it_computed": found(process.pid, "flwr-clientapp") is not None,
                    }
                )
                kill(family(process.pid))
                process.wait()
                local.start_node(client)
                while times_in(local, client) < 2:
                    time.sleep(0.5)
                (local.folder / f"client{client}.log").write_text(LET_IN, encoding="utf-8")
                back = rounds[-1]
                while rounds[-1] < back + 2:
                    time.sleep(0.5)

        thread = threading.Thread(target=attack, daemon=True)
        thread.start()
        record = local.run(settings, quiet)
    lines = [line for one in record.get("faults", []) for line in one]
    for point, after in itertools.zip_longest(points, [one["finished_rounds"] for one in points[1:]]):
        later = [one[point["client"]] for one in record["bytes_up"][point["finished_rounds"] : after]]
        point["rounds_missed"], point["came_back"] = sum(size == 0 for size in later), bool(later) and later[-1] > 0
    return {
        "points": points,
        "rounds": config.tasks * config.rounds,
        "rounds_finished": len(record["bytes_up"]),
        "fewest_answers_in_a_round": min(sum(size > 0 for size in one) for one in record["bytes_up"]),
        "reasons": sorted({line.partition(": ")[2] for line in lines}),
        "clients_in_the_last_test": sum(client is not None for client in record["accuracy"]["task"][-1]),
    }


LET_IN = "SuperNode ID"


def times_in(local: flower.LocalFederation, client: int) -> int:
    """How often the SuperLink has let a client's node in, by the node's log."""
    return (local.folder / f"client{client}.log").read_text(encoding="utf-8", errors="replace").count(LET_IN)


def server_killed(stop: int) -> dict:
    """SIGKILL to the SuperLink and all its processes, between two rounds or inside one; then the same command again."""
    config, draw, finished = experiment(profile="smoke", method="fed_lscl", tasks=1, rounds=3), random.Random(stop), [0]
    total, inside = config.tasks * config.rounds, stop % 2 == 0
    command = [
        sys.executable,
        "-m",
        "lscl.cli",
        "federate",
        "--profile",
        "smoke",
        "--method",
        "fed_lscl",
        "--tasks",
        "1",
        "--rounds",
        "3",
    ]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8") as process,
        Watch(config, finished.append),
    ):
        while finished[-1] < stop % total or not (link := found(process.pid, "flower-superlink")):
            time.sleep(0.01)
        if inside:
            while not found(process.pid, "flwr-clientapp"):
                time.sleep(0.05)
            time.sleep(draw.uniform(0, 8))
        kill(family(link.pid))
        before, says = finished[-1], process.stderr.read().strip().splitlines()[-1:]
    again = subprocess.run([*command, "--compare"], capture_output=True, encoding="utf-8")
    resumed = [line for line in again.stderr.splitlines() if "going on after round" in line]
    return {
        "killed": "inside a round" if inside else "between two rounds" if before else "before the first round",
        "finished_rounds": before,
        "of": total,
        "exit_code": process.returncode,
        "says": says,
        "resumed_after": int(resumed[0].rsplit(" ", 1)[1]) if resumed else 0,
        "then": next(
            (line for line in again.stdout.splitlines() if line.startswith("in one process")), again.stderr[-300:]
        ),
    }


def found(pid: int, name: str) -> psutil.Process | None:
    """The descendant of a process that runs a program."""
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            if any(Path(word).name == name for word in process.cmdline()[:2]):
                return process
    return None


# Added to the client app of a node with the wrong intentions: after its own checks it sends another payload.
SPOIL = """

import os
from pathlib import Path

import torch

honest, done = pack_record, Path(os.environ["BAD_PAYLOADS"])
SPOILS = [
    lambda payload: payload["weight"].fill_(torch.nan),
    lambda payload: payload["bias"].fill_(torch.inf),
    lambda payload: payload.pop("bias"),
    lambda payload: payload.update(image=torch.zeros(3)),
    lambda payload: payload.update(bias=payload["bias"][:5].clone()),
    lambda payload: payload.update(bias=payload["bias"].double()),
    lambda payload: payload.update(features=torch.zeros(10**5, 16)),
]


def pack_record(payload, ticket=None):
    number = len(done.read_text(encoding="utf-8")) if done.exists() else 0
    if "weight" in payload and number < len(SPOILS):
        done.write_text("x" * (number + 1), encoding="utf-8")
        SPOILS[number](payload)
    return honest(payload, ticket)
"""
KINDS = ["NaN", "infinite", "a name too few", "a name too many", "shape", "type", "size"]


def spoil_package(folder: Path) -> Path:
    """Copy the package to a folder, with `SPOIL` behind its client app; -> the file of that app."""
    home = Path(lscl.__path__[0])
    shutil.copytree(home, folder / "lscl", ignore=shutil.ignore_patterns("__pycache__"))
    app = folder / "lscl" / Path(client_app.__file__).relative_to(home)
    with open(app, "a", encoding="utf-8") as file:
        file.write(SPOIL)
    return app


def strangers_and_bad_payloads() -> dict:
    """One run in which client 1 sends something wrong in seven rounds, and three strange nodes try to be client 0."""
    config = experiment(profile="smoke", method="fed_lscl", tasks=1, rounds=len(KINDS) + 1)
    with deployed(config) as local:
        spoiled = local.folder / "spoiled"
        spoil_package(spoiled)
        local.stop("client1")
        with changed(PYTHONPATH=str(spoiled), BAD_PAYLOADS=str(spoiled / "done")):
            local.start_node(1)
        start_strangers(local)
        record = local.run({**SETTINGS, "min-clients": 2, "max-mb": 1.0}, quiet)
        nodes = json.loads(local.flwr("supernode", "list", "here", "--verbose", "--format", "json"))["nodes"]
        strangers = [{"node": name, "says": complaint(local, name)} for name in STRANGERS]
    lines = [line for one in record["faults"] for line in one]
    return {
        "bad_payloads": [{"kind": kind, "server_says": line} for kind, line in zip(KINDS, lines, strict=True)],
        "rounds": config.rounds,
        "rounds_finished": len(record["bytes_up"]),
        "rounds_with_both_others": sum(min(one[0], one[2]) > 0 for one in record["bytes_up"]),
        "rounds_with_the_client": sum(one[1] > 0 for one in record["bytes_up"]),
        "strangers": strangers,
        "nodes": len(nodes),
        "nodes_online": sum(node["status"] == "online" for node in nodes),
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


def start_strangers(local: flower.LocalFederation) -> None:
    """Three nodes that should get in nowhere: a key that nobody registered, another authority's certificate, no TLS."""
    other = local.folder / "other"
    other.mkdir()
    flower.write_certificates(other)
    for name in STRANGERS:
        key, trust = local.folder / f"{name}.key", (other if name == "wrong certificate" else local.folder) / "ca.crt"
        flower.write_node_key(key)
        safe = ["--root-certificates", str(trust), "--auth-supernode-private-key", str(key)]
        local.start(
            name, "flower-supernode", "--superlink", f"{LOOPBACK}:{local.port}",
            *(["--insecure"] if name == "plain text" else safe),
            "--port", str(flower.free_port()), "--node-config", "client=0", "--max-retries", "3",
        )  # fmt: skip


def complaint(local: flower.LocalFederation, name: str) -> str:
    """Why a node says that it is not in, on one line."""
    text = (local.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
    return text.partition("Failed to initialize the connection to the SuperLink.")[2].strip().partition("\n")[0]


# ---- many clients


def scale(numbers: list[int]) -> None:
    """Flower's simulation of so many clients, one class each in each task."""
    for clients in numbers:
        add("scale", {"clients": clients}, lambda clients=clients: simulated(clients))


def simulated(clients: int) -> dict:
    """One simulated run; memory and CPU seconds of all its processes behind each round but the last."""
    sizes = dict(clients=clients, tasks=1, classes_per_task=1, private_classes=2, rounds=6)
    config, memory, cpu = experiment(profile="smoke", method="fed_lscl", **sizes), [], []

    def note(rounds: int) -> None:
        own = family(os.getpid())
        memory.append(round(sum(rss(process) for process in own) / 2**20))
        cpu.append(sum(cpu_of(process) for process in own))

    with Watch(config, note):
        record = flower.federate_locally(config, True, SETTINGS, quiet)
    return {
        "rounds": len(record["bytes_up"]),
        "seconds_per_exchange": round(
            sum(record["seconds"][name] for name in ("train", "aggregate", "evaluate")) / (config.rounds + 1), 1
        ),
        "cpu_seconds_per_exchange": round((cpu[-1] - cpu[0]) / (len(cpu) - 1), 1),
        "memory_mb": memory,
        "differs_from_one_process": differing_entries(record, run(config)),
    }


def cpu_of(process: psutil.Process) -> float:
    """CPU seconds of a process, 0 if it is gone."""
    with suppress(psutil.Error):
        return sum(process.cpu_times()[:2])
    return 0.0


def rss(process: psutil.Process) -> int:
    """Bytes of memory that a process has for itself, 0 if it is gone."""
    with suppress(psutil.Error):
        return process.memory_full_info().uss
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["parity", "faults", "scale"])
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--methods", type=measure.names(METHODS), default="local_head,fed_lscl,fedavg,lorm,pilora")
    parser.add_argument("--transports", type=measure.names(("simulation", "tls")), default="simulation,tls")
    parser.add_argument("--kills", type=measure.count, default=10)
    parser.add_argument("--stops", type=measure.count, default=5)
    parser.add_argument("--clients", type=measure.counts, default="25,50,100")
    given = parser.parse_args()
    if given.what == "parity":
        parity(given.profile, given.methods, given.transports)
    elif given.what == "faults":
        faults(given.kills, given.stops)
    else:
        scale(given.clients)


if __name__ == "__main__":
    with one_line():
        main()
