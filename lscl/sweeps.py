"""Named sets of runs."""

import json
from pathlib import Path
from typing import Any

from lscl import paths, records
from lscl.config import Experiment, experiment
from lscl.data.store import write_atomic
from lscl.errors import LsclError, unknown
from lscl.evaluation import average_so_far
from lscl.run import run

TUNING_SEED = 7  # never one of the reported seeds

# The systems of the main table so far: method and what differs from the profile.
TABLE1: list[tuple[str, dict[str, Any]]] = [
    ("local_head", {}),
    ("fedavg_vit", {}),
    ("local_lora", {}),
    ("fed_lscl", {}),
    ("fed_lscl", {"o2d": "sgd"}),
]

# What `lscl reproduce` and the results notebook show in each profile: seeds by data set.
SEEDS = [42, 1999, 2024]  # the paper's
PLANS: dict[str, dict[str, list[int]]] = {
    "smoke": {"glyphs": [42]},
    "demo": {"glyphs": [42]},
    "mini": {"cifar100": SEEDS, "glyphs": SEEDS},
    "colab": {"cifar100": [42]},
    "paper": {"cifar100": SEEDS},
}


def plan(profile: str, data_dir: Path | None = None) -> list[Experiment]:
    """Every run behind the main table of a profile."""
    return [
        experiment(**extra, method=method, dataset=dataset, profile=profile, seed=seed, data_dir=data_dir)
        for dataset, seeds in PLANS[profile].items()
        for seed in seeds
        for method, extra in TABLE1
    ]


# The tuning grid, six points for every system, judged by class-incremental accuracy on the tuning seed alone.
_HEAD = [{"lr": lr} for lr in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)]
GRIDS: dict[str, list[dict[str, Any]]] = {
    "local_head": _HEAD,
    "fedavg_vit": _HEAD,
    "local_lora": _HEAD,
    "fed_lscl": [
        {"lr_generator_bias": 1e-3, "lr_generator": 1e-3},
        {"lr_generator_bias": 1e-3, "lr_generator": 1e-4},
        {"lr_generator_bias": 1e-3, "lr_generator": 1e-5},
        {"lr_generator_bias": 3e-4, "lr_generator": 1e-5},
        {"lr_generator_bias": 1e-3, "lr_generator": 1e-5, "auxiliary": 1.0},
        {"lr_generator_bias": 1e-3, "lr_generator": 1e-4, "auxiliary": 1.0},
    ],
}


def sweep(name: str, values: dict[str, Any], seeds: list[int], list_only: bool = False) -> None:
    """Run what is missing of the set `name` (table1 or tune) under the config `values`.

    Raises:
        LsclError: unknown set, or uncommitted changes in the code (their runs could not be used).
    """
    if name not in ("table1", "tune"):
        raise unknown("sweep", name, ["table1", "tune"])
    runs = _table1(values, seeds) if name == "table1" else _tuning(values)
    for config in runs:
        print(f"{'done   ' if records.find(config) else 'missing'} {config.profile} {config.name}", flush=True)
    if list_only:
        return
    if records.source()["dirty"]:
        raise LsclError("uncommitted changes in lscl/: commit them first, runs of a dirty tree can never enter a table")
    for config in runs:
        run(config)
    if name == "tune":
        _write_tuning(runs)


def _table1(values: dict[str, Any], seeds: list[int]) -> list[Experiment]:
    return [experiment(**{**values, **extra, "method": method, "seed": seed}) for seed in seeds for method, extra in TABLE1]


def _tuning(values: dict[str, Any]) -> list[Experiment]:
    return [experiment(**{**values, **point, "method": method, "seed": TUNING_SEED}) for method, points in GRIDS.items() for point in points]


def _write_tuning(runs: list[Experiment]) -> None:
    """Write every point's scores and the best of each method to results/tuning/<profile>--<dataset>.json."""
    rows = []
    for config in runs:
        record = records.find(config)
        scores = {mask: round(float(average_so_far(records.accuracy(record, mask))[-1]), 3) for mask in ("task", "seen")}
        point = next(point for point in GRIDS[config.method] if all(getattr(config, key) == value for key, value in point.items()))
        rows.append(
            {"method": config.method, "point": point, "seed": config.seed, "task_masked": scores["task"], "class_incremental": scores["seen"]}
        )
    best = {method: max((row for row in rows if row["method"] == method), key=lambda row: row["class_incremental"])["point"] for method in GRIDS}
    path = paths.results() / "tuning" / f"{runs[0].profile}--{runs[0].dataset}.json"
    write_atomic(path, (json.dumps({"rows": rows, "best": best}, indent=1) + "\n").encode())
    print(f"wrote {path}; best by class-incremental accuracy: {best}")
