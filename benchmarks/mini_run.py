"""A whole mini run of Fed-LSCL: seconds, trained images per second, memory, and its ratio to the bare frozen suffix.

The run's training time is compared with a forward and backward pass of the frozen suffix alone on the same batches (no CNN,
no generator, no continual fine-tuning, no upload), measured on the same machine right after it: median of seven.

    python benchmarks/mini_run.py [--dataset glyphs] [--data-dir FOLDER]

writes results/benchmarks/mini_run.json. Run it alone on the machine.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from lscl import paths, records
from lscl.config import experiment
from lscl.data.store import write_atomic
from lscl.run import prepare, run

GOALS = {"seconds": 300, "images_per_second": 300, "peak_memory_mb": 2048}


def bare_suffix(config) -> float:
    """Images per second of the frozen suffix alone, forward and backward to a static update of the adapted block."""
    _, _, method, clients = prepare(config.model_copy(update={"method": "local_lora"}))
    client = clients[0]
    batch = client.train.batch(torch.arange(config.batch))
    update = client.model["lora"]

    def step() -> None:
        method.foundation.suffix(batch.prefix, update()).square().mean().backward()

    step()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(20):
            step()
        times.append((time.perf_counter() - start) / 20)
    return config.batch / statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="glyphs")
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    config = experiment(method="fed_lscl", dataset=given.dataset, profile="mini", data_dir=given.data_dir)
    target, code = paths.results() / "benchmarks" / "mini_run.json", records.source()
    with paths.scratch():
        record = run(config)
        bare = bare_suffix(config)
    rate = record["trained_images"] / record["seconds"]["train"]
    found = {
        "name": "mini_run",
        "dataset": given.dataset,
        "ratio": round(bare / rate, 3),
        "better": "lower",
        "seconds": round(sum(record["seconds"].values()), 1),
        "images_per_second": round(rate, 1),
        "bare_images_per_second": round(bare, 1),
        "peak_memory_mb": record["peak_memory_mb"],
        "goals": GOALS,
        "machine": records.hardware(),
        **code,
    }
    write_atomic(target, (json.dumps(found, indent=1) + "\n").encode())
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
