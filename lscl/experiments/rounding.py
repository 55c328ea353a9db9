"""How far equal runs on two kinds of processor lie apart: the same code, images and values, sums in another order.

Training amplifies a difference in the last bit until some images of the test are answered otherwise. How far that
carries was measured, not derived: `results/rounding/pairs.json` has pairs of runs that differ in the processor alone,
and `benchmarks/rounding.py` adds to it. What is allowed is a quarter more than the largest gap among them.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lscl.experiments import records
from lscl.federation.metrics import MASKS, average_so_far

MARGIN = 1.25  # on the largest gap that was seen
STEP = 0.5  # points: what is allowed is a multiple of it
# Points by which a final accuracy may differ on another kind of processor: what `allowed_by` gives for the pairs.
ALLOWED = 4.5


def final_accuracies(record: Mapping[str, Any]) -> dict[str, float]:
    """The accuracies after the last task, means over clients and all their tasks.

    Args:
        record: the run.

    Returns:
        {mask: percent}.
    """
    return {mask: float(average_so_far(records.accuracy(dict(record), mask))[-1]) for mask in MASKS}


def accuracy_gaps(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """By how many points the final accuracies of a run lie above those of another.

    Args:
        one: the first run.
        other: the second run.

    Returns:
        {mask: points}.
    """
    first, second = final_accuracies(one), final_accuracies(other)
    return {mask: first[mask] - second[mask] for mask in MASKS}


def largest_gap(gaps: Mapping[str, float]) -> float:
    """The largest gap under any mask, in points."""
    return max(map(abs, gaps.values()))


def pair_row(one: Mapping[str, Any], other: Mapping[str, Any], note: str = "") -> dict[str, Any]:
    """What is kept of a pair of runs.

    Args:
        one: the run on the first processor.
        other: the same run on the second.
        note: what else is to be known of the pair.

    Returns:
        name, method, profile, dataset, seed, code (digest), machines (two names), gaps (points by mask) and note.
    """
    return {
        **{key: one[key] for key in ("name", "method", "profile", "dataset", "seed")},
        "code": one["code_digest"],
        "machines": [machine_of(one), machine_of(other)],
        "gaps": {mask: round(value, 4) for mask, value in accuracy_gaps(one, other).items()},
        "note": note,
    }


def machine_of(record: Mapping[str, Any]) -> str:
    """The processor that computed a run: the GPU's name, or the CPU's."""
    return str(record["hardware"]["gpu"] if record["device"] == "cuda" else record["hardware"]["cpu"])


def is_pair(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records are of one run, by one code, from the same images and weights.

    Args:
        one: a record.
        other: another one.

    Returns:
        True if only the machine may differ.
    """
    keys = ("config_digest", "profile", "code_digest", "data_digest", "partition_digest", "weights_digest")
    return all(one.get(key) == other.get(key) for key in keys)


def allowed_by(rows: Iterable[Mapping[str, Any]]) -> float:
    """The points that are allowed by pairs of runs.

    Args:
        rows: as `pair_row` makes them.

    Returns:
        MARGIN times the largest gap under any mask, rounded up to a multiple of STEP.
    """
    return STEP * math.ceil(MARGIN * max(largest_gap(row["gaps"]) for row in rows) / STEP)


def describe_pairs(rows: list[Mapping[str, Any]]) -> str:
    """What pairs of runs show, in words.

    Args:
        rows: as `pair_row` makes them.

    Returns:
        number of pairs, machines with the notes on them, and the median and largest gap of a final accuracy.
    """
    gaps = [abs(gap) for row in rows for gap in row["gaps"].values()]
    machines = sorted({" and ".join(row["machines"]) + (row["note"] and f", {row['note']}") for row in rows})
    moved = f"a final accuracy moved by {np.median(gaps):.2f} points in the median, by {max(gaps):.2f} at most"
    return f"{len(rows)} pairs of equal runs ({'; '.join(machines)}): {moved}; allowed are {allowed_by(rows):g}"


def expected_range(accuracy: float) -> str:
    """An accuracy with the range in which it may lie on another processor.

    Args:
        accuracy: a final accuracy, percent.

    Returns:
        for example "84.1 (79 to 89)".
    """
    return f"{accuracy:.1f} ({max(0, accuracy - ALLOWED):.0f} to {min(100, accuracy + ALLOWED):.0f})"
