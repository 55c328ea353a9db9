"""One-by-One Distillation in closed form against gradient steps, and how the closed form grows with the number of clients.

The gradient version gets as many epochs as it needs to come within 1 % of the lowest possible loss, found by doubling, with the learning
rate of a grid that needs fewest. The rows of a generator do not depend on each other, in Eq. 5 as in Adam, so the epochs are counted on a
few of its rows and the seconds of an epoch are measured on all. Never reached within --most-epochs: the ratio is a lower bound.

    python benchmarks/o2d.py [--features 512] [--width 768] [--clients 5,50,500]

writes results/benchmarks/o2d.json. Run it alone on the machine: some minutes at the paper's size.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time

import measure
import numpy as np
import torch
from torch import Tensor

from lscl.methods.parts.o2d import o2d_exact, o2d_loss, o2d_sgd, second_moments
from lscl.seeding import torch_generator

RANK, KEPT = 4, 160  # of the update; images kept by a client, 20 of each of 8 classes
RATES = (1e-2, 1e-3, 1e-4)
NEAR = 1.01  # of the lowest loss
ROWS = 64
GOALS = {"ratio": 100, "time_exponent": 1.1, "memory_exponent": 1.1}


def drawn(clients: int, features: int, rows: int) -> tuple[list[Tensor], list[Tensor]]:
    """Generators (rows, m + 1) and second moments (m + 1, m + 1) of clients whose features are correlated and differ between them."""
    weights, moments = [], []
    spread = torch.linspace(0, -2, features)
    for k in range(clients):
        draw = torch_generator(0, "o2d benchmark", k)
        mix = torch.randn(features, features, generator=draw) * 10**spread / features**0.5
        moments.append(second_moments((torch.randn(KEPT, features, generator=draw) @ mix.T).relu()))
        weights.append(0.02 * torch.randn(rows, features + 1, generator=draw))
    return weights, moments


def total(solved: list[Tensor], weights: list[Tensor], moments: list[Tensor]) -> float:
    """Eq. 5 summed over the clients."""
    return sum(float(o2d_loss(k, one, weights, moments, 1.0)) for k, one in enumerate(solved))


def epochs_needed(weights: list[Tensor], moments: list[Tensor], most: int) -> dict:
    """The fewest epochs (a power of two) and their learning rate that bring the gradient version near the lowest loss."""
    few = [weight[:ROWS] for weight in weights]
    lowest, epochs = total(o2d_exact(few, moments, 1.0), few, moments), 1
    while True:
        found = {rate: total(o2d_sgd(few, moments, 1.0, rate, epochs), few, moments) / lowest for rate in RATES}
        rate = min(found, key=found.get)
        if found[rate] <= NEAR or 2 * epochs > most:
            return {"epochs": epochs, "lr": rate, "loss_to_lowest": round(found[rate], 5), "reached": found[rate] <= NEAR}
        epochs *= 2


def growth(clients: int, features: int, rows: int) -> dict:
    """Seconds of the closed form, the median of five, and the memory it adds, in MB with its inputs; to be called in a process of its own."""
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    weights, moments = drawn(clients, features, rows)
    for _ in range(5):
        start = time.perf_counter()
        o2d_exact(weights, moments, 1.0)
        seconds.append(time.perf_counter() - start)
    return {
        "clients": clients,
        "seconds": round(statistics.median(seconds), 5),
        "memory_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1),
    }


def exponent(rows: list[dict], key: str) -> float:
    """Slope of log `key` over log clients; not a number if something was too small to measure."""
    values = [row[key] for row in rows]
    return round(float(np.polyfit(np.log([row["clients"] for row in rows]), np.log(values), 1)[0]), 3) if min(values) > 0 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--clients", default="5,50,500")
    parser.add_argument("--growth-features", type=int, default=128, help="size for the growth with the clients: that of the profile mini")
    parser.add_argument("--growth-width", type=int, default=192)
    parser.add_argument("--most-epochs", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", type=int, help="only print the growth row of so many clients")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(growth(given.one, given.growth_features, 4 * RANK * given.growth_width)))
        return
    weights, moments = drawn(5, given.features, 4 * RANK * given.width)
    needed = epochs_needed(weights, moments, given.most_epochs)
    print(needed, flush=True)
    work = {
        "exact": lambda: o2d_exact(weights, moments, 1.0),
        "epoch": lambda: o2d_sgd(weights, moments, 1.0, needed["lr"], 1),
    }
    seconds = measure.side_by_side(work, given.repeats)
    rows = []
    for count in given.clients.split(","):
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", count], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
        print(rows[-1], flush=True)
    facts = {
        "ratio": round(measure.ratio(seconds, "epoch", "exact") * needed["epochs"], 1),
        "goal": GOALS["ratio"],
        "better": "higher",
        "features": given.features,
        "width": given.width,
        "seconds": {name: round(statistics.median(found), 4) for name, found in seconds.items()},
        "gradient": needed,
        "growth": rows,
        "threads": given.threads,
    }
    for key, what in (("time_exponent", "seconds"), ("memory_exponent", "memory_mb")):
        facts[key] = {"ratio": exponent(rows, what), "goal": GOALS[key], "better": "lower"}
    measure.write("o2d", facts)


if __name__ == "__main__":
    main()
