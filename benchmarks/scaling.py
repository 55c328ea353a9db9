"""How a run grows with images, clients, tasks and classes: seconds, processor seconds, peak memory, fitted exponents.

Small runs on glyphs with the mini ViT, each in a process of its own; one size changes at a time. The seconds leave out
the preparation (drawing and decoding images, prefix activations, which are cached). An exponent of 1 is linear growth.

    python benchmarks/scaling.py [--methods fed_lscl,lorm] [--threads 2] [--profile mini]

writes results/benchmarks/scaling.json, which notebook 09 draws. Run it alone on the machine: some minutes per method.
"""

import argparse
import json
import subprocess
import sys

import measure
import numpy as np

from lscl import paths
from lscl.cli import one_line
from lscl.config import Experiment, experiment
from lscl.experiments.run import run
from lscl.methods import METHODS

BASE = {"clients": 4, "tasks": 2, "classes_per_task": 4, "images_per_class": 12}
SIZES = {
    "clients": (2, 4, 8, 16),
    "tasks": (1, 2, 4, 8),
    "classes_per_task": (2, 4, 8, 16),
    "images_per_class": (3, 6, 12, 24),
}
GOAL = 1.1  # for every exponent


def config_of(method: str, profile: str, threads: int, sizes: dict[str, int]) -> Experiment:
    """A run whose classes are all private, so that clients, tasks and classes change nothing but their number."""
    private = sizes["tasks"] * sizes["classes_per_task"]
    return experiment(
        method=method, dataset="glyphs", profile=profile, threads=threads, private_classes=private, **sizes
    )


def one(config: Experiment) -> dict:
    """Seconds without the preparation, and peak memory.

    To be called in a process of its own, after a run that has filled the caches.
    """
    with paths.scratch():
        record = run(config, quiet=True)
    seconds = sum(value for phase, value in record["seconds"].items() if phase != "prepare")
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": record["cpu_seconds"],
        "peak_memory_mb": record["peak_memory_mb"],
    }


def exponent(rows: list[dict], size: str, key: str) -> float:
    """Slope of log `key` over log size."""
    return round(float(np.polyfit(np.log([row[size] for row in rows]), np.log([row[key] for row in rows]), 1)[0]), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=measure.names(METHODS), default="fed_lscl")
    parser.add_argument("--threads", type=measure.count, default=2)
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--steps", type=measure.count, default=4, help="sizes of each kind, the smallest ones")
    parser.add_argument("--one", help="only print the row of this method with the sizes given as JSON")
    given = parser.parse_args()
    if given.one:
        method, _, sizes = given.one.partition(" ")
        print(json.dumps(one(config_of(method, given.profile, given.threads, json.loads(sizes)))))
        return
    known: dict[str, dict] = {}  # the base belongs to all four kinds and is run once
    rows = []
    for method in given.methods:
        for size, values in SIZES.items():
            found = []
            for value in values[: given.steps]:
                sizes = {**BASE, size: value}
                key = f"{method} {json.dumps(sizes, sort_keys=True)}"
                if key not in known:
                    command = [sys.executable, __file__, *sys.argv[1:], "--one", key]
                    known[key] = json.loads(
                        subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.splitlines()[
                            -1
                        ]
                    )
                    print(key, known[key], flush=True)
                found.append({size: value, **known[key]})
            fits = {
                name: {"ratio": exponent(found, size, key), "goal": GOAL, "better": "lower"}
                for name, key in (("time_exponent", "cpu_seconds"), ("memory_exponent", "peak_memory_mb"))
            }
            rows.append({"method": method, "size": size, "points": found, **fits})
    worst = max(row["time_exponent"]["ratio"] for row in rows)
    measure.write(
        "scaling",
        {"ratio": worst, "goal": GOAL, "better": "lower", "base": BASE, "rows": rows, "threads": given.threads},
    )


if __name__ == "__main__":
    with one_line():
        main()
