"""A whole mini run of Fed-LSCL: seconds, trained images per second, memory, and its ratio to the bare frozen suffix.

The run's training time is compared with a forward and backward pass of the frozen suffix alone on the same batches (no
CNN, no generator, no continual fine-tuning, no upload), in float32, on the same machine right after: median of seven.

    python benchmarks/mini_run.py [--dataset glyphs] [--data-dir FOLDER] [--precision bf16]

writes results/benchmarks/mini_run.json, or mini_run_bf16.json. Run it alone on the machine.
"""

import argparse
import statistics
from pathlib import Path

import measure
import torch

from lscl import paths
from lscl.cli import one_line
from lscl.config import Experiment, experiment
from lscl.experiments.run import prepare, run

GOALS = {"seconds": (300, "lower"), "images_per_second": (400, "higher"), "peak_memory_mb": (2048, "lower")}


def bare_suffix(config: Experiment) -> float:
    """Images per second of the frozen suffix alone, forward and backward to a static update of the adapted block."""
    _, _, method, clients = prepare(config.model_copy(update={"method": "local_lora", "precision": "fp32"}))
    client = clients[0]
    batch = client.train.batch(torch.arange(config.batch))
    update = client.model["lora"]

    def steps() -> None:
        for _ in range(20):
            method.foundation.suffix(batch.prefix, update()).square().mean().backward()

    return 20 * config.batch / statistics.median(measure.side_by_side({"bare": steps})["bare"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="glyphs")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--profile", default="mini")
    given = parser.parse_args()
    config = experiment(
        method="fed_lscl",
        dataset=given.dataset,
        profile=given.profile,
        data_dir=given.data_dir,
        precision=given.precision,
    )
    with paths.scratch():
        record = run(config)
        bare = bare_suffix(config)
    rate = record["trained_images"] / record["seconds"]["train"]
    values = {
        "seconds": round(sum(record["seconds"].values()), 1),
        "images_per_second": round(rate, 1),
        "peak_memory_mb": record["peak_memory_mb"],
    }
    facts = {
        "dataset": given.dataset,
        "profile": given.profile,
        "precision": given.precision,
        "ratio": round(bare / rate, 3),
        "better": "lower",
        "bare_images_per_second": round(bare, 1),
        **{name: {"ratio": value, "goal": GOALS[name][0], "better": GOALS[name][1]} for name, value in values.items()},
    }
    measure.write("mini_run" if given.precision == "fp32" else f"mini_run_{given.precision}", facts)


if __name__ == "__main__":
    with one_line():
        main()
