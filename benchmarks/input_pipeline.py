"""How long does a training loop wait for its batches? Read ahead by threads, and read when they are used.

    python benchmarks/input_pipeline.py [--images 400] [--batch 16]

writes results/benchmarks/input_pipeline.json. The tokens are those of ViT-B/16 (197 of width 768). A step is a pause,
as it is for the CPU while a GPU computes. Cold: no page of the file is in the memory. Run it alone on the machine.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import measure
import numpy as np
import torch
from torch import Tensor

from lscl.cli import one_line
from lscl.data.store import ImageSet
from lscl.federation.client import Batch, Inputs
from lscl.federation.pipeline import batches

TOKENS, WIDTH = 197, 768
GOAL = 0.7  # of the time that is waited without reading ahead


def write_tokens(path: Path, images: int) -> None:
    """A file of random tokens."""
    out = np.lib.format.open_memmap(path, "w+", np.float32, (images, TOKENS, WIDTH))
    for row in out:
        row[:] = np.random.default_rng(0).random((TOKENS, WIDTH), np.float32)
    out.flush()


def forget(path: Path) -> None:
    """Put every page of a file out of the memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def share_of_waiting(inputs: Inputs, parts: list[Tensor], ahead: bool, pause: float) -> float:
    """The share of its time that a loop over batches waits for them, between steps of `pause` seconds."""

    def lazily() -> Iterator[Batch]:
        yield from map(inputs.batch, parts)

    found, begun, computed = batches(inputs, parts) if ahead else lazily(), time.perf_counter(), 0.0
    for batch in found:
        batch.prefix  # noqa: B018, read now if it was not read ahead
        start = time.perf_counter()
        time.sleep(pause)
        computed += time.perf_counter() - start
    return 1 - computed / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=measure.count, default=400)
    parser.add_argument("--batch", type=measure.count, default=16)
    parser.add_argument("--repeats", type=measure.count, default=3)
    parser.add_argument("--step", type=measure.count, default=20, help="milliseconds of a step")
    given = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    shares = {f"{state}, {how}": [] for state in ("cold", "warm") for how in ("read ahead", "read when used")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.npy"
        write_tokens(path, given.images)
        for _ in range(given.repeats):
            parts = list(torch.randperm(given.images, generator=draw).split(given.batch))
            for name, found in shares.items():
                if name.startswith("cold"):
                    forget(path)
                images = ImageSet(np.zeros((given.images, 1, 1, 3), np.uint8), np.zeros(given.images, np.int64), ("a",))
                inputs = Inputs(images, np.load(path, mmap_mode="r"), torch.device("cpu"))
                found.append(share_of_waiting(inputs, parts, "ahead" in name, given.step / 1000))
    waited = {name: round(statistics.median(found), 4) for name, found in shares.items()}
    facts = {
        "ratio": round(waited["warm, read ahead"] / waited["warm, read when used"], 3),
        "ratio_cold": round(waited["cold, read ahead"] / waited["cold, read when used"], 3),
        "goal": GOAL,
        "better": "lower",
        "share_of_time_waiting": waited,
        "step_ms": given.step,
        "batch": given.batch,
    }
    measure.write("input_pipeline", facts)


if __name__ == "__main__":
    with one_line():
        main()
