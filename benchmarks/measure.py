"""What the benchmarks share: timing side by side in one run, and where the outcome is written."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from lscl import paths
from lscl.data.store import write_atomic
from lscl.errors import unknown_name
from lscl.experiments import records

REPEATS = 7


def side_by_side(work: Mapping[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, list[float]]:
    """Seconds of each piece of work, `repeats` times in turn after one warm-up.

    The turns let a change of the machine's speed meet all pieces alike.
    """
    seconds = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, one in work.items():
            start = time.perf_counter()
            one()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], ours: str, reference: str) -> float:
    """Median over the turns of our seconds divided by the reference's of the same turn."""
    return round(statistics.median(a / b for a, b in zip(seconds[ours], seconds[reference], strict=True)), 3)


def count(text: str) -> int:
    """A whole number from 1 to a million: a type of an argument."""
    if not text.isascii() or not text.isdigit() or len(text) > 7 or not 1 <= int(text) <= 10**6:
        raise argparse.ArgumentTypeError(f"{text[:50]!r}: give a whole number from 1 to 1000000")
    return int(text)


def counts(text: str) -> list[int]:
    """Such numbers with commas between them."""
    return [count(part.strip()) for part in text.split(",")]


def names(allowed: Collection[str]) -> Callable[[str], list[str]]:
    """The type of an argument of some of these names, with commas between them."""

    def read(text: str) -> list[str]:
        found = [part.strip() for part in text.split(",")]
        for name in found:
            if name not in allowed:
                raise argparse.ArgumentTypeError(str(unknown_name("name", name, allowed)))
        return found

    return read


def write(name: str, facts: Mapping[str, Any], folder: str = "benchmarks") -> Path:
    """results/<folder>/<name>.json: `facts` with the machine, versions and commit, printed too."""
    found = {"name": name, **facts, "machine": records.hardware(), "versions": records.versions(), **records.source()}
    path = paths.results() / folder / f"{name}.json"
    write_atomic(path, (json.dumps(found, indent=1) + "\n").encode())
    print(json.dumps(found, indent=1))
    return path
