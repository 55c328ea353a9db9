"""Records made by hand for tests of tables and figures."""

import numpy as np

from lscl.config import experiment
from lscl.experiments import records


def record(method="fed_lscl", seed=42, score=80.0, tasks=5, clients=2, **changes):
    """A record whose accuracy is `score` on the current task and 10 less on earlier ones; under mask seen 30 less."""
    config = experiment(
        method=method, dataset="cifar100", profile="mini", seed=seed, clients=clients, **changes.pop("values", {})
    )
    acc = np.full((tasks, clients, tasks), np.nan)
    for t in range(tasks):
        acc[t, :, : t + 1] = score - 10
        acc[t, :, t] = score
    as_lists = lambda values: np.where(np.isnan(values), None, values).tolist()
    masks = [float(score), score - 30.0, score - 40.0]
    made = {
        "schema": records.SCHEMA, "method": method, "dataset": "cifar100", "profile": "mini", "seed": seed,
        "name": config.name,
        "overrides": {k: v for k, v in config.overrides().items() if k != "clients"},
        "config": {**config.values_read(), "threads": 2},
        "config_digest": config.digest,
        "accuracy": {"task": as_lists(acc), "seen": as_lists(acc - 30), "all": as_lists(acc - 40)},
        "per_class": {str(k): {str(c): list(masks) for c in range(k, k + 8 * tasks)} for k in range(clients)},
        "bytes_up": [[1_000_000, 3_000_000, *[2_000_000] * (clients - 2)]] * 5 * tasks,
        "bytes_down": [[500_000] * clients] * 5 * tasks,
        "seconds": {"prepare": 60, "train": 120}, "cpu_seconds": 90.0, "peak_memory_mb": 900,
        "trained_parameters": [1000 * (k + 1) for k in range(clients)], "trained_images": 6000, "device": "cpu",
        "data_digest": "d1", "partition_digest": f"p{seed}", "server_images_digest": None, "weights_digest": "w1",
        "commit": "abcdef0123456", "dirty": False, "code_digest": "c0de", "finished": "2026-01-01T00:00:00+00:00",
        "hardware": {"cpu": "some cpu", "cores": 2, "memory_gb": 8, "gpu": None}, "versions": {"torch": "2.0"},
    }  # fmt: skip
    return {**made, **changes}


def with_ridge(one, gain=5.0):
    """The record with a second head that is better by `gain` everywhere."""
    better = lambda values: None if values is None else values + gain
    accuracy = {
        mask: [[[better(value) for value in client] for client in task] for task in one["accuracy"][mask]]
        for mask in ("task", "seen")
    }
    per_class = {
        k: {label: [value + gain for value in values[:2]] for label, values in found.items()}
        for k, found in one["per_class"].items()
    }
    return {**one, "ridge": {"accuracy": accuracy, "per_class": per_class}}
