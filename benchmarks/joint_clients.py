"""Would one forward and backward pass of the frozen suffix for all clients of a round pay?

Updates are per sample, so the images of several clients can share a pass. This measures the most that it can save: the
suffix on K batches one after the other against the suffix on one batch K times as large, with given updates. CNNs,
generators, heads and optimisers would stay one by one.

    python benchmarks/joint_clients.py [--shapes mini] [--clients 5] [--threads 2]

writes results/benchmarks/joint_clients_<shapes>.json. Run it alone on the machine.
"""

import argparse

import measure
import torch

from lscl.cli import one_line
from lscl.models.vit import LowRank, foundation

SHAPES = {
    "mini": ("mini", 32),
    "vit_b": ("random/vit_base_patch16_224", 16),
}  # the frozen ViT and the images of a client's step
BLOCK, RANK = 3, 4
GOAL = 0.95  # less is not worth a second way through the loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=SHAPES, default="mini")
    parser.add_argument("--clients", type=measure.count, default=5)
    parser.add_argument("--repeats", type=measure.count, default=measure.REPEATS)
    parser.add_argument("--threads", type=measure.count, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    name, batch = SHAPES[given.shapes]
    frozen, draw = foundation(name, BLOCK), torch.Generator().manual_seed(0)
    rows = given.clients * batch
    z, A, B = (
        0.1 * torch.randn(rows, *shape, generator=draw)
        for shape in ((frozen.tokens, frozen.width), (RANK, frozen.width), (3 * frozen.width, RANK))
    )

    def suffix(part: slice) -> None:
        update = LowRank(A[part].requires_grad_(), B[part].requires_grad_(), 1.0)
        frozen.suffix(z[part], update).square().mean().backward()

    work = {
        "joint": lambda: suffix(slice(None)),
        "one_by_one": lambda: [suffix(slice(start, start + batch)) for start in range(0, rows, batch)],
    }
    seconds = measure.side_by_side(work, given.repeats)
    facts = {
        "ratio": measure.ratio(seconds, "joint", "one_by_one"),
        "goal": GOAL,
        "better": "lower",
        "clients": given.clients,
        "batch": batch,
        "images_per_second": {key: round(rows / sorted(found)[len(found) // 2], 1) for key, found in seconds.items()},
        "threads": given.threads,
    }
    measure.write(f"joint_clients_{given.shapes}", facts)


if __name__ == "__main__":
    with one_line():
        main()
