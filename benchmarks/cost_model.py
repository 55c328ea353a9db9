"""The cost model of `lscl plan` against measured training steps, on the CPU, at three sizes of the ViT.

The ViTs have random weights and 224 px. Seconds are predicted from the FLOPs of a step and the rates of a matrix
product, attention, a convolution and a GELU, measured just before. Bytes are what autograd keeps for the backward pass,
each storage once, without weights. The ratio is the largest factor between prediction and measurement, in either
direction, over sizes and systems.

    python benchmarks/cost_model.py [--sizes vit_tiny_patch16_224,...] [--batch 8] [--repeats 5]

writes results/benchmarks/cost_model.json. Run it alone on the machine.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import measure
import timm
import torch
from training_step import METHOD_VALUES, SHAPES, begin, federation, step

from lscl.cli import one_line
from lscl.config import experiment
from lscl.experiments import cost_model

SIZES = "vit_tiny_patch16_224,vit_small_patch16_224,vit_base_patch16_224"
SYSTEMS = ("local_lora", "fed_lscl", "lorm")
GOAL = 1.25


def kept(work: Callable[[], torch.Tensor], weights: set[int]) -> int:
    """Bytes of all tensors that autograd saves while `work` runs, each storage once, but for those in `weights`."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = work()  # alive until here, so that no storage is used twice
    del loss
    return sum(storages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--batch", type=measure.count, default=8)
    parser.add_argument("--threads", type=measure.count, default=2)
    parser.add_argument("--repeats", type=measure.count, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.utils.deterministic.fill_uninitialized_memory = False  # as in lscl.experiments.run
    machine, rows = cost_model.measure_machine(torch.device("cpu")), []
    for name in given.sizes.split(","):
        vit = timm.create_model(name, pretrained=False, num_classes=0)
        for system in SYSTEMS:
            method, client = federation(system, vit, "vit_b", given.batch)
            stage = begin(method, client, 1)  # LoRM's larger round, in which A moves
            (phase,) = method.phases(client, stage)
            values = {
                **SHAPES["vit_b"],
                **METHOD_VALUES["vit_b"].get(system, {}),
                "batch": given.batch,
                "foundation": f"random/{name}",
            }
            config = experiment(method=system, dataset="cifar100", **values)
            seconds = measure.side_by_side({"step": step(method, client, phase)}, given.repeats)["step"]
            weights = {p.untyped_storage().data_ptr() for module in (vit, client.model) for p in module.parameters()}
            batch = client.train.batch(client.train_index)
            weights |= {batch.prefix.untyped_storage().data_ptr(), batch.images.untyped_storage().data_ptr()}
            found = {
                "size": name,
                "method": system,
                "seconds": round(statistics.median(seconds), 4),
                "predicted_seconds": round(float(cost_model.seconds_of(config, machine)), 4),
                "megabytes": round(kept(partial(phase.loss, client, batch), weights) / 1e6, 1),
                "predicted_megabytes": round(given.batch * cost_model.step_of(config).saved / 1e6, 1),
            }
            for what in ("seconds", "megabytes"):
                found[f"{what}_ratio"] = round(float(found[f"predicted_{what}"] / found[what]), 3)
            rows.append(found)
            print(found, flush=True)
    worst = max(max(row[key], 1 / row[key]) for row in rows for key in ("seconds_ratio", "megabytes_ratio"))
    facts = {"ratio": round(worst, 3), "goal": GOAL, "better": "lower", "threads": given.threads, "batch": given.batch}
    rates = {
        f"{kind}_gflops": round(getattr(machine, kind) / 1e9, 1) for kind in ("linear", "attention", "convolution")
    }
    rates["traffic_gb_per_s"] = round(machine.traffic / 1e9, 1)
    measure.write("cost_model", {**facts, **rates, "rows": rows})


if __name__ == "__main__":
    with one_line():
        main()
