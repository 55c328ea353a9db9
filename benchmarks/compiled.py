"""Does torch.compile make a training step of Fed-LSCL faster? The step with compiled and with plain blocks.

    python benchmarks/compiled.py [--shapes mini] [--threads 2]

writes results/benchmarks/compiled_<shapes>.json. Run it alone on the machine; it needs a C++ compiler.
"""

import argparse
import statistics

import measure
import torch
from training_step import SHAPES, begin, federation, frozen_vit, step

from lscl.cli import one_line

GOAL = 0.95  # less is not worth a minute of compilation at the start of every run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=SHAPES, default="mini")
    parser.add_argument("--repeats", type=measure.count, default=measure.REPEATS)
    parser.add_argument("--threads", type=measure.count, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.utils.deterministic.fill_uninitialized_memory = False  # as in lscl.experiments.run
    vit, work = frozen_vit(given.shapes), {}
    for name in ("plain", "compiled"):
        method, client = federation("fed_lscl", vit, given.shapes, None)
        stage = begin(method, client)
        if name == "compiled":
            method.foundation.compile_blocks()
        (phase,) = method.phases(client, stage)
        work[name] = step(method, client, phase)
    seconds = measure.side_by_side(work, given.repeats)
    facts = {
        "ratio": measure.ratio(seconds, "compiled", "plain"),
        "goal": GOAL,
        "better": "lower",
        "seconds": {name: round(statistics.median(found), 4) for name, found in seconds.items()},
        "threads": given.threads,
    }
    measure.write(f"compiled_{given.shapes}", facts)


if __name__ == "__main__":
    with one_line():
        main()
