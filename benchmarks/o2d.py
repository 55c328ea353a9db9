"""One-by-One Distillation in closed form against gradient steps, and how the closed form grows with the clients.

The closed form is the lowest possible loss, which the gradient version only comes near to. It gets as many epochs as it
needs to come within some shares of it, found by doubling, with the step size of a grid that needs fewest; within a
thousandth counts as equal. The rows of a generator do not depend on each other, neither in Eq. 5 nor in a gradient
step, so the epochs are counted on a few of its rows and the seconds of an epoch are measured on all. Never reached
within --most-epochs: the ratio is a lower bound. Memory is the peak of the closed form, inputs included; Linux only.

    python benchmarks/o2d.py [--features 512] [--width 768] [--clients 5,50,500]

writes results/benchmarks/o2d.json. Run it alone on the machine: some minutes at the paper's size.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import measure
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lscl.cli import one_line
from lscl.methods.parts.o2d import o2d_exact, o2d_loss, o2d_sgd, second_moments
from lscl.models.generator import scale_features
from lscl.seeding import torch_generator

RANK, KEPT = 4, 160  # of the update; images kept by a client, 20 of each of 8 classes
RATES = (1.0, 0.5, 0.2)  # in the largest step that cannot overshoot
GAPS = (1e-2, 1e-3, 1e-4)  # to the lowest loss, as shares of it
EQUAL = 1e-3
ROWS = 64
GOALS = {"ratio": 100, "time_exponent": 1.1, "memory_exponent": 1.1}


def draw_clients(clients: int, features: int, rows: int) -> tuple[list[Tensor], list[Tensor]]:
    """Generators (rows, m + 1) and second moments (m + 1, m + 1) of clients with correlated features, all different."""
    weights, moments = [], []
    spread = torch.linspace(0, -2, features)
    for k in range(clients):
        draw = torch_generator(0, "o2d benchmark", k)
        mix = torch.randn(features, features, generator=draw) * 10**spread / features**0.5
        f = F.layer_norm((torch.randn(KEPT, features, generator=draw) @ mix.T).relu(), (features,))
        moments.append(second_moments(scale_features(f)))
        weights.append(0.02 * torch.randn(rows, features + 1, generator=draw))
    return weights, moments


def total_loss(solved: list[Tensor], weights: list[Tensor], moments: list[Tensor]) -> float:
    """Eq. 5 summed over the clients."""
    return sum(float(o2d_loss(k, one, weights, moments, 1.0)) for k, one in enumerate(solved))


def epochs_needed(weights: list[Tensor], moments: list[Tensor], most: int) -> list[dict]:
    """For each gap to the lowest loss the fewest epochs (a power of two) of gradient steps, and their learning rate."""
    few = [weight[:ROWS] for weight in weights]
    lowest, epochs, needed = total_loss(o2d_exact(few, moments, 1.0), few, moments), 1, []
    while len(needed) < len(GAPS):
        found = {
            rate: total_loss(o2d_sgd(few, moments, 1.0, rate, epochs), few, moments) / lowest - 1 for rate in RATES
        }
        rate = min(found, key=found.get)
        last = 2 * epochs > most
        while len(needed) < len(GAPS) and (last or found[rate] <= GAPS[len(needed)]):
            gap = GAPS[len(needed)]
            needed.append(
                {
                    "case": f"within {100 * gap:g} %",
                    "gap": gap,
                    "epochs": epochs,
                    "lr": rate,
                    "gap_reached": round(found[rate], 6),
                    "reached": found[rate] <= gap,
                }
            )
        epochs *= 2
    return needed


def measure_growth(clients: int, features: int, rows: int) -> dict:
    """Seconds of the closed form, the median of five, and its peak memory in MB with its inputs; in its own process."""
    o2d_exact(*draw_clients(2, features, rows), 1.0)  # loads what the first call loads
    before, seconds = memory_mb("VmRSS"), []
    weights, moments = draw_clients(clients, features, rows)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here
    for _ in range(5):
        start = time.perf_counter()
        o2d_exact(weights, moments, 1.0)
        seconds.append(time.perf_counter() - start)
    return {
        "clients": clients,
        "seconds": round(statistics.median(seconds), 5),
        "memory_mb": round(memory_mb("VmHWM") - before, 1),
    }


def memory_mb(which: str) -> float:
    """This process's resident memory now (VmRSS) or at its peak (VmHWM)."""
    line = next(
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith(which)
    )
    return int(line.split()[1]) / 1024


def exponent(rows: list[dict], key: str) -> float:
    """Slope of log `key` over log clients; not a number if something was too small to measure."""
    values = [row[key] for row in rows]
    return (
        round(float(np.polyfit(np.log([row["clients"] for row in rows]), np.log(values), 1)[0]), 3)
        if min(values) > 0
        else math.nan
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=measure.count, default=512)
    parser.add_argument("--width", type=measure.count, default=768)
    parser.add_argument("--clients", type=measure.counts, default="5,50,500")
    parser.add_argument(
        "--growth-features",
        type=measure.count,
        default=128,
        help="size for the growth with the clients: that of the profile mini",
    )
    parser.add_argument("--growth-width", type=measure.count, default=192)
    parser.add_argument("--most-epochs", type=measure.count, default=4096)
    parser.add_argument("--repeats", type=measure.count, default=5)
    parser.add_argument("--threads", type=measure.count, default=2)
    parser.add_argument("--one", type=measure.count, help="only print the growth row of so many clients")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(measure_growth(given.one, given.growth_features, 4 * RANK * given.growth_width)))
        return
    weights, moments = draw_clients(5, given.features, 4 * RANK * given.width)
    needed = epochs_needed(weights, moments, given.most_epochs)
    print(needed, flush=True)
    work = {
        "exact": lambda: o2d_exact(weights, moments, 1.0),
        "epoch": lambda: o2d_sgd(weights, moments, 1.0, needed[0]["lr"], 1),
    }
    seconds = measure.side_by_side(work, given.repeats)
    rows = []
    for count in given.clients:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--one", str(count)],
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        rows.append(json.loads(done.stdout))
        print(rows[-1], flush=True)
    epoch = measure.ratio(seconds, "epoch", "exact")
    for one in needed:
        one["times_slower"] = {"ratio": round(epoch * one["epochs"], 1), "goal": GOALS["ratio"], "better": "higher"}
    facts = {
        "ratio": next(one["times_slower"]["ratio"] for one in needed if one["gap"] == EQUAL),
        "goal": GOALS["ratio"],
        "better": "higher",
        "features": given.features,
        "width": given.width,
        "seconds": {name: round(statistics.median(found), 4) for name, found in seconds.items()},
        "rows": needed,
        "growth": rows,
        "threads": given.threads,
    }
    for key, what in (("time_exponent", "seconds"), ("memory_exponent", "memory_mb")):
        facts[key] = {"ratio": exponent(rows, what), "goal": GOALS[key], "better": "lower"}
    measure.write("o2d", facts)


if __name__ == "__main__":
    with one_line():
        main()
