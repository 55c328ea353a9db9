"""Does a run gain if the C library keeps what training frees? Runs of three systems with and without, in turn.

    python benchmarks/freed_memory.py [--methods lorm,glfc,fed_lscl] [--repeats 3]

writes results/benchmarks/freed_memory.json. A run is one task of one client of the profile mini on the glyphs, one
thread, in a process of its own. Seconds are those of the process, user and system. Run it alone on the machine.
"""

import argparse
import os
import statistics
import subprocess
import sys

import measure

from lscl import paths
from lscl.cli import one_line
from lscl.registry import METHODS

RUN = """
from lscl.config import experiment
from lscl.experiments import run
if {plain}:
    run.keep_freed_memory = lambda: None
run.run(experiment(method={method!r}, dataset="glyphs", profile="mini", tasks=1, clients=1, threads=1), quiet=True)
"""


def seconds_of_run(method: str, plain: bool) -> float:
    """User and system seconds of a process that computes a run; plain: freed memory goes back to the system."""
    with paths.scratch():
        before = os.times()
        subprocess.run([sys.executable, "-c", RUN.format(plain=plain, method=method)], check=True)
        after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=measure.names(list(METHODS)), default=["lorm", "glfc", "fed_lscl"])
    parser.add_argument("--repeats", type=measure.count, default=3)
    given = parser.parse_args()
    rows = []
    for method in given.methods:
        seconds_of_run(method, plain=False)  # the glyphs and prefix activations are on the disk from here on
        found = [[seconds_of_run(method, plain) for plain in (False, True)] for _ in range(given.repeats)]
        kept, freed = zip(*found)
        rows.append(
            {
                "method": method,
                "ratio": round(statistics.median(a / b for a, b in found), 3),
                "better": "lower",
                "goal": 1.0,
                "cpu_seconds": {"kept": [round(s, 1) for s in kept], "given back": [round(s, 1) for s in freed]},
            }
        )
    measure.write(
        "freed_memory", {"ratio": max(row["ratio"] for row in rows), "better": "lower", "goal": 1.0, "rows": rows}
    )


if __name__ == "__main__":
    with one_line():
        main()
