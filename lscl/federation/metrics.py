"""Right answers under three masks, and the metrics computed from them, one formula each.

A system with features of its own is tested twice: with its head, and with a closed-form one on the same features
(`lscl.federation.ridge`), which knows no class that the client has not met.

The accuracy tensor is acc[mask][t][k][u]: after task t, of client k, on the test images of its task u <= t. The masks:
task = only the classes of task u compete (the task is given), seen = all classes that client k has met
(class-incremental), all = every class of the data set.

It is NaN where a client has not answered; the metrics are means over the clients that have.
"""

from collections.abc import Mapping
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from lscl.federation.client import Batch, Client
from lscl.federation.masking import mask_logits
from lscl.federation.method import Method
from lscl.federation.passes import BATCH
from lscl.federation.pipeline import batches

MASKS = ("task", "seen", "all")
RIDGE_MASKS = MASKS[:2]  # of the closed-form head
HEADS = ("trained", "ridge")  # as results name them: the system's own head, and the closed-form one


@torch.no_grad()
def evaluate(method: Method, client: Client, ridge: Tensor | None = None) -> dict[str, Tensor]:
    """Test a client on the test images of all its tasks so far.

    Args:
        method: the system, which gives the logits.
        client: the client.
        ridge: the closed-form head on the system's own features, (C, d) float64; None = it is not tested.

    Returns:
        {"correct": (masks, classes met) int64, "total": (classes met,) int64}, classes in order of arrival; with
        `ridge` also "ridge": (2, classes met) int64, its right answers under the masks task and seen.
    """
    client.model.eval()
    seen = torch.tensor(client.partition.seen_classes(client.id, client.task))
    place = torch.full((method.num_classes,), -1)
    place[seen] = torch.arange(len(seen))
    heads = {"correct": MASKS} if ridge is None else {"correct": MASKS, "ridge": RIDGE_MASKS}
    found = {name: torch.zeros(len(masks), len(seen), dtype=torch.int64) for name, masks in heads.items()}
    total = torch.zeros(len(seen), dtype=torch.int64)
    for task in range(client.task + 1):
        own = torch.tensor(client.partition.tasks[client.id][task].classes)
        with closing(batches(client.test, client.test_index(task).split(BATCH))) as parts:
            for batch in parts:
                labels = batch.known_labels
                total.index_add_(0, place[labels], torch.ones_like(labels))
                for name, logits in _answers(method, client, batch, ridge).items():
                    for row, allowed in enumerate((own, seen, torch.arange(method.num_classes))[: len(heads[name])]):
                        right = mask_logits(logits, allowed).argmax(1) == labels
                        found[name][row].index_add_(0, place[labels], right.long())
    return {"correct": found.pop("correct"), "total": total, **found}


def _answers(method: Method, client: Client, batch: Batch, ridge: Tensor | None) -> dict[str, Tensor]:
    """The logits (b, C) of both heads on the CPU, by the names of `evaluate`; one pass serves both where it can."""
    if ridge is None:
        return {"correct": method.logits(client, batch).cpu()}
    features = method.features_of(client, batch)
    if type(method).logits is Method.logits:
        logits = method.head_logits(client, features)
    else:
        logits = method.logits(client, batch)
    return {"correct": logits.cpu(), "ridge": features.cpu().double() @ ridge.T}


def task_accuracies(found: dict, classes_per_task: int, head: str = "correct") -> np.ndarray:
    """Turn one client's right answers into accuracies.

    Args:
        found: {"correct": (masks, classes met), "total": (classes met,)}, see `evaluate`.
        classes_per_task: classes of a task.
        head: "correct" for the system's head, "ridge" for the closed-form one.

    Returns:
        (masks, tasks), percent.
    """
    correct, total = np.asarray(found[head]), np.asarray(found["total"])
    return 100 * correct.reshape(len(correct), -1, classes_per_task).sum(2) / total.reshape(-1, classes_per_task).sum(1)


def accuracy_tensor(counts: list[list[dict | None]], classes_per_task: int, head: str = "correct") -> np.ndarray:
    """Turn all right answers into the accuracy tensor acc[mask][t][k][u].

    Args:
        counts: counts[t][k], the right answers of client k after task t (see `evaluate`); None if it gave none.
        classes_per_task: classes of a task.
        head: "correct" for the system's head, "ridge" for the closed-form one, which has fewer masks.

    Returns:
        (masks, tasks, clients, tasks), percent; NaN for u > t and where a client gave no answer.
    """
    tasks, clients = len(counts), len(counts[0])
    acc = np.full((len(MASKS if head == "correct" else RIDGE_MASKS), tasks, clients, tasks), np.nan)
    for t, row in enumerate(counts):
        for k, found in enumerate(row):
            if found is not None:
                acc[:, t, k, : t + 1] = task_accuracies(found, classes_per_task, head)
    return acc


def accuracies_so_far(scores: Mapping[int, dict], classes_per_task: int) -> dict[str, float]:
    """The accuracies that follow from the clients' right answers after a task.

    Args:
        scores: {client: its right answers, see `evaluate`}.
        classes_per_task: classes of a task.

    Returns:
        {mask: percent}, the mean over clients and tasks so far.
    """
    by_client = [task_accuracies(found, classes_per_task) for found in scores.values()]
    return {mask: float(value) for mask, value in zip(MASKS, np.mean(by_client, axis=(0, 2)))}


def count_tested(acc: np.ndarray) -> np.ndarray:
    """How many clients have answered their test after each task. (t, k, u) -> (t,) int64."""
    return (~np.isnan(acc[:, :, 0])).sum(1)


def _mean(acc: np.ndarray) -> float:
    """The mean over the clients that have answered; NaN if none has."""
    there = acc[~np.isnan(acc)]
    if there.size == acc.size:
        return float(acc.mean())  # summed in the array's own order: the last bits hang on it
    return float(there.mean()) if there.size else np.nan


def current_task(acc: np.ndarray) -> np.ndarray:
    """Table 1 of the paper: the mean over clients of acc[t][k][t]. (t, k, u) -> (t,)."""
    return np.array([_mean(acc[t, :, t]) for t in range(len(acc))])


def average_so_far(acc: np.ndarray) -> np.ndarray:
    """The mean over clients and tasks u <= t; the last entry is Table 2 of the paper. (t, k, u) -> (t,)."""
    return np.array([_mean(acc[t, :, : t + 1]) for t in range(len(acc))])


def forgetting(acc: np.ndarray) -> float:
    """Mean over clients and tasks u < T of max_{t < T} acc[t][u] - acc[T][u] (Chaudhry et al. 2018), of (t, k, u)."""
    if len(acc) == 1:
        return 0.0
    return _mean(np.fmax.reduce(acc[:-1, :, :-1], axis=0) - acc[-1, :, :-1])  # fmax passes over NaN


def backward_transfer(acc: np.ndarray) -> float:
    """Mean over clients and tasks u < T of acc[T][u] - acc[u][u] (Lopez-Paz and Ranzato 2017), of (t, k, u)."""
    if len(acc) == 1:
        return 0.0
    then = np.stack([acc[u, :, u] for u in range(len(acc) - 1)], axis=1)
    return _mean(acc[-1, :, :-1] - then)


def accuracy_per_class(
    counts: list[list[dict]], partition_seen: list[list[int]], head: str = "correct"
) -> dict[int, dict[int, list[float]]]:
    """The accuracy on every class after the last task.

    Args:
        counts: counts[t][k], see `accuracy_tensor`.
        partition_seen: partition_seen[k], the labels that client k has met, in order of arrival.
        head: as in `accuracy_tensor`.

    Returns:
        {client: {label: [percent under each mask]}}.
    """
    last = counts[-1]
    return {
        k: {
            label: (100 * np.asarray(found[head])[:, i] / found["total"][i]).tolist()
            for i, label in enumerate(partition_seen[k])
        }
        for k, found in enumerate(last)
        if found is not None
    }
