"""Named sets of runs."""

import json
import math
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from lscl import paths
from lscl.config import Experiment, MethodName, check_profile, check_read, experiment, readers
from lscl.data.glyphs import PER_CLASS
from lscl.data.store import write_atomic
from lscl.errors import LsclError, unknown
from lscl.experiments import records
from lscl.experiments.run import Busy, affordable, run
from lscl.federation.metrics import average_so_far
from lscl.models.cache import limit_bytes
from lscl.models.cnn import MINI_FIVE, TORCHVISION

TUNING_SEED = 7  # never one of the reported seeds

# The systems of the main table: method and what differs from the profile. Quick ones first.
TABLE1: list[tuple[str, dict[str, Any]]] = [
    ("local_head", {}),
    ("fedavg_vit", {}),
    ("fedavg", {}),
    ("fedprox", {}),
    ("target", {}),
    ("mfcl", {}),
    ("glfc", {}),
    ("local_lora", {}),
    ("fed_lscl", {}),
    ("fed_lscl", {"o2d": "sgd"}),
    ("pilora", {}),
    ("lorm", {}),
    ("l2p", {}),
    ("dualprompt", {}),
    ("fedmgp", {}),
]
# What ten minutes of the demo and two hours of a free GPU session allow; the sweep runs all.
QUICK = {"demo": ("local_head", "fedavg_vit", "local_lora", "fed_lscl"), "colab": ("local_head", "fedavg_vit", "fedavg", "local_lora", "fed_lscl")}

# What `lscl reproduce` and the results notebook show in each profile: seeds by data set.
SEEDS = [42, 1999, 2024]  # the paper's
PLANS: dict[str, dict[str, list[int]]] = {
    "smoke": {"glyphs": [42]},
    "demo": {"glyphs": [42]},
    "mini": {"cifar100": SEEDS, "glyphs": SEEDS},
    "colab": {"cifar100": [42]},
    "paper": {"cifar100": SEEDS, "imagenet_r": SEEDS},
}


def _run(values: dict[str, Any], own: dict[str, Any]) -> Experiment:
    """A run of a set: what is its own, and of the `values` for the whole set those that its system reads."""
    return experiment(**{name: value for name, value in values.items() if own["method"] in readers(name)} | own)


def reported(found: Iterable[records.Record]) -> list[records.Record]:
    """The records that may enter a table: all but those for tuning."""
    return [one for one in found if one["seed"] != TUNING_SEED]


def plan(profile: str, data_dir: Path | None = None, weights: Path | None = None) -> list[Experiment]:
    """Every run behind the main table of a profile; `weights` is a local checkpoint of its frozen ViT."""
    check_profile(profile)
    return [
        _run({"dataset": dataset, "profile": profile, "data_dir": data_dir, "weights": weights}, {**extra, "method": method, "seed": seed})
        for dataset, seeds in PLANS[profile].items()
        for seed in seeds
        for method, extra in TABLE1
        if method in QUICK.get(profile, (method,))
    ]


# The tuning grid, six points for every system, judged by class-incremental accuracy on the tuning seed alone. Scores are taken
# after the second task, when there is something to forget, so that a run can stop there.
TUNING_TASKS = 2
# The points of a system all set the same parameters, so that none of them depends on what is chosen. These grids are the second
# ones: in the first, of the same sizes, some systems were best at an edge, so the learning rates of heads were moved up by one step,
# and those of Fed-LSCL's generator down.
_LR = [{"lr": lr} for lr in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)]
_FED_LSCL = ("lr_generator_bias", "lr_generator", "o2d_lambda", "auxiliary")
GRIDS: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys(("local_head", "fedavg_vit", "fedavg", "target", "mfcl", "glfc", "local_lora", "l2p", "dualprompt", "fedmgp"), _LR),
    "fedprox": [{"lr": lr, "prox_mu": mu} for lr in (1e-3, 3e-3, 1e-2) for mu in (0.01, 1.0)],
    "pilora": [{"lr": lr, "pilora_lr_lora": lora} for lr in (3e-3, 1e-2, 3e-2) for lora in (1e-4, 1e-3)],
    "lorm": [{"lr": lr, "lorm_rank": rank} for lr in (3e-4, 1e-3, 3e-3) for rank in (1, 4)],
    "fed_lscl": [
        dict(zip(_FED_LSCL, point))
        for point in (
            (1e-4, 1e-6, 10.0, 0.0),
            (3e-4, 1e-5, 10.0, 0.0),
            (1e-3, 1e-5, 10.0, 0.0),
            (3e-3, 1e-5, 10.0, 0.0),
            (1e-3, 1e-4, 10.0, 0.0),
            (3e-3, 1e-4, 10.0, 0.0),
        )
    ],
}

# Table 2 and beyond: Fed-LSCL without or with other components. The first entry is the whole system.
ABLATIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no O2D": {"o2d": "none"},
    "no SM-CF": {"continual": "none"},
    "neither O2D nor SM-CF": {"o2d": "none", "continual": "none"},
    "static LoRA for the written one": {"collaboration": "static"},
    "static LoRA, no O2D": {"collaboration": "static", "o2d": "none"},
    "static LoRA, no SM-CF": {"collaboration": "static", "continual": "none"},
    "static LoRA, neither O2D nor SM-CF": {"collaboration": "static", "o2d": "none", "continual": "none"},
    "CNN alone": {"collaboration": "cnn"},
    "CNN alone, no SM-CF": {"collaboration": "cnn", "continual": "none"},
    "generators averaged for O2D": {"o2d": "average"},
    "O2D by gradient": {"o2d": "sgd"},
    "EWC for SM-CF": {"continual": "ewc"},
    "LwF for SM-CF": {"continual": "lwf"},
    "replay for SM-CF": {"continual": "replay"},
}
BLOCKS = {"smoke": 3, "demo": 8, "mini": 8, "colab": 12, "paper": 12}  # the paper's Fig. 3: every block of the profile's ViT
BUFFERS = (0, 1, 5, 10, 20, 50)  # the paper's Fig. 5: kept images per class


CNNS = ("one CNN for all", "five different CNNs")  # the paper's Fig. 4


def variants(name: str, profile: str) -> dict[str, dict[str, Any]]:
    """What a study of Fed-LSCL changes in a profile, by the label of its tables: ablations, blocks, buffers, or cnns in sizes that fit.

    Raises:
        LsclError: no such study or profile.
    """
    check_profile(profile)
    studies = {
        "ablations": ABLATIONS,
        "blocks": {f"block {block}": {"block": block} for block in range(BLOCKS[profile])},
        "buffers": {f"{size} per class": {"buffer_per_class": size} for size in BUFFERS},
        "cnns": dict(zip(CNNS, ({}, {"cnn": ",".join(TORCHVISION if profile in ("colab", "paper") else MINI_FIVE)}))),
    }
    if name not in studies:
        raise unknown("study", name, studies)
    return studies[name]


def ablations(values: dict[str, Any], seeds: list[int]) -> list[Experiment]:
    """Fed-LSCL with every set of components, with every seed."""
    return _study("ablations", values, seeds)


def blocks(values: dict[str, Any], seeds: list[int]) -> list[Experiment]:
    """Fed-LSCL with every adapted block (the paper's Fig. 3)."""
    return _study("blocks", values, seeds)


def buffers(values: dict[str, Any], seeds: list[int]) -> list[Experiment]:
    """Fed-LSCL with every buffer size (the paper's Fig. 5)."""
    return _study("buffers", values, seeds)


def cnns(values: dict[str, Any], seeds: list[int]) -> list[Experiment]:
    """Fed-LSCL with the same CNN on all clients and with five different ones (the paper's Fig. 4)."""
    return _study("cnns", values, seeds)


def _study(name: str, values: dict[str, Any], seeds: list[int]) -> list[Experiment]:
    changes = variants(name, values.get("profile", "demo")).values()
    return [variant_run(values, variant, seed) for seed in seeds for variant in changes]


def variant_run(values: dict[str, Any], variant: dict[str, Any], seed: int) -> Experiment:
    """The run of one variant of Fed-LSCL, an entry of `variants`."""
    return _run(values, {**variant, "method": "fed_lscl", "seed": seed})


# When does writing an update per image help? One task, no federation: only what the update is made of differs.
# The steps are given here, so that they do not follow what the tuning of the whole system chose.
_ALONE = {"method": "fed_lscl", "tasks": 1, "o2d": "none", "continual": "none", "lr": 3e-3, "lr_generator_bias": 3e-3}
WRITERS: dict[str, dict[str, Any]] = {
    "own head, nothing adapted": {"method": "local_head"},
    "one static LoRA": {"collaboration": "static"},
    "written, small steps": {"lr_generator": 1e-5},
    "written, larger steps": {"lr_generator": 1e-4},
    "written, CNN with its own loss": {"lr_generator": 1e-4, "auxiliary": 1.0},
}
REGIMES: list[dict[str, Any]] = [{"images_per_class": images, "block": block} for images in (5, 20) for block in (3, 6)]
REGIMES.append({"images_per_class": 200, "block": 3})  # the paper has 500 of a private class; glyphs are too few


def regimes(values: dict[str, Any], seeds: list[int]) -> list[Experiment]:
    """Every writer in every regime that the data set of `values` has the images for: few and more images, an early and a late block."""
    most = PER_CLASS if values.get("dataset", "glyphs") == "glyphs" else math.inf
    possible = [regime for regime in REGIMES if regime["images_per_class"] <= most]
    return [regime_run(values, regime, writer, seed) for seed in seeds for regime in possible for writer in WRITERS]


def regime_run(values: dict[str, Any], regime: dict[str, Any], writer: str, seed: int) -> Experiment:
    """The run of one writer (a name in WRITERS) in one regime."""
    return _run(values, {**_ALONE, **WRITERS[writer], **regime, "seed": seed})


@lru_cache
def _rows(profile: str, dataset: str, seed: int) -> dict[str, dict[str, str]]:
    """{config digest: {name of a set: row}} of every set with one data set and seed, but for tuning."""
    values, rows = {"profile": profile, "dataset": dataset}, {}
    runs = [("table1", config.method, config) for config in table1(values, [seed])]
    for name in ("ablations", "blocks", "buffers", "cnns"):
        runs += [(name, label, variant_run(values, change, seed)) for label, change in variants(name, profile).items()]
    for regime in REGIMES:
        about = f"{regime['images_per_class']} images a class, block {regime['block']}"
        runs += [("regimes", f"{writer}; {about}", regime_run(values, regime, writer, seed)) for writer in WRITERS]
    for name, row, config in runs:
        rows.setdefault(config.digest, {})[name] = row
    return rows


def rows_of(record: records.Record) -> dict[str, str]:
    """The named sets that a record belongs to, and its row in each: {"table1": method, "blocks": "block 3", ...}; empty if it is in none."""
    return _rows(record["profile"], record["dataset"], record["seed"]).get(record["config_digest"], {})


def runs_of(name: str, values: dict[str, Any], seeds: list[int], methods: Collection[str] = ()) -> list[Experiment]:
    """The runs of the set `name` (a key of SWEEPS) under the config `values`; with `methods`, only theirs.

    Raises:
        LsclError: unknown set or method, or a value that no run of the set reads.
    """
    if name not in SWEEPS:
        raise unknown("sweep", name, SWEEPS)
    for method in methods:
        if method not in get_args(MethodName):
            raise unknown("method", method, get_args(MethodName))
    runs = [config for config in SWEEPS[name](values, seeds) if not methods or config.method in methods]
    check_read(values, {config.method for config in runs} or methods)
    return runs


def part(runs: list[Experiment], index: int, count: int) -> list[Experiment]:
    """The share of batch task `index` of `count`: every count-th run, whatever is finished already.

    Raises:
        LsclError: no such task.
    """
    if not 0 <= index < count:
        raise LsclError(f"task_index = {index}: with task_count = {count} allowed are 0 to {count - 1}")
    return runs[index::count]


def sweep(
    name: str, values: dict[str, Any], seeds: list[int], list_only: bool = False, methods: Collection[str] = (), index: int = 0, count: int = 1
) -> None:
    """Run what is missing of the set `name` (a key of SWEEPS) under the config `values`, or of the share of task `index` of `count`.

    With `methods`, only their runs. Several processes may sweep the same results folder: each takes the next run that nobody is at.

    Raises:
        LsclError: unknown set, method or task, code of no known commit (its runs could not be used), or a run that this
            machine cannot hold.
    """
    limit_bytes()  # a bound that is no number is said before anything else
    runs = part(runs_of(name, values, seeds, methods), index, count)
    for config in runs:
        print(f"{'done   ' if records.find(config) else 'missing'} {config.profile} {config.name}", flush=True)
    if list_only:
        return
    code = records.source()
    if code["dirty"] and code["commit"]:
        raise LsclError("uncommitted changes in lscl/: commit them first, runs of a dirty tree can never enter a table")
    if code["dirty"]:
        raise LsclError("lscl/ is of no known commit: use a git clone, or an installed package as it was packed; other runs can never enter a table")
    affordable([config for config in runs if not records.find(config)])
    busy = []
    for config in runs:
        try:
            run(config, wait=False)
        except Busy:
            busy.append(config)
    for config in busy:
        run(config)
    if name == "tune":
        _write_tuning(values)


def table1(values: dict[str, Any], seeds: list[int]) -> list[Experiment]:
    """Every system of the main table with every seed."""
    return [_run(values, {**extra, "method": method, "seed": seed}) for seed in seeds for method, extra in TABLE1]


def tune(values: dict[str, Any], seeds: list[int]) -> list[Experiment]:
    """Every point of every grid on the tuning seed; `seeds` does not matter. A whole run serves as well as one that stops."""
    runs = [_run(values, {**point, "method": method, "seed": TUNING_SEED}) for method, point in _points()]
    return [config if records.find(config) else config.model_copy(update={"stop_after": TUNING_TASKS}) for config in runs]


SWEEPS: dict[str, Callable[[dict[str, Any], list[int]], list[Experiment]]] = {
    "table1": table1,
    "ablations": ablations,
    "blocks": blocks,
    "buffers": buffers,
    "cnns": cnns,
    "regimes": regimes,
    "tune": tune,
}


def _points() -> list[tuple[str, dict[str, Any]]]:
    return [(method, point) for method, points in GRIDS.items() for point in points]


def _write_tuning(values: dict[str, Any]) -> None:
    """Write the scores of every finished point, and the best of each method, to results/tuning/<profile>--<dataset>.json."""
    rows = []
    for (method, point), config in zip(_points(), tune(values, []), strict=True):
        record = records.find(config)
        if record is None:
            continue
        scores = {mask: round(float(average_so_far(records.accuracy(record, mask))[TUNING_TASKS - 1]), 3) for mask in ("task", "seen")}
        rows.append({"method": method, "point": point, "seed": config.seed, "task_masked": scores["task"], "class_incremental": scores["seen"]})
    complete = [method for method, points in GRIDS.items() if sum(row["method"] == method for row in rows) == len(points)]
    best = {method: max((row for row in rows if row["method"] == method), key=lambda row: row["class_incremental"])["point"] for method in complete}
    path = paths.results() / "tuning" / f"{config.profile}--{config.dataset}.json"
    write_atomic(path, (json.dumps({"rows": rows, "best": best}, indent=1) + "\n").encode())
    print(f"wrote {path}; best by class-incremental accuracy: {best}")
