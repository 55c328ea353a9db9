"""What is saved when Python looks for unused objects less often: at the start of a command, and when the book is built.

    python benchmarks/unused_objects.py [--repeats 3]

writes results/benchmarks/unused_objects.json. Each turn measures both ways, each in a process of its own. Seconds are
those of the process, user and system. Run it alone on the machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

import measure

from lscl import paths
from lscl.cli import one_line
from lscl.publish.build import JUPYTER_BOOK

IMPORTS = "import gc, lscl; {how}; import lscl.experiments.run, lscl.publish.build, lscl.results.figures"
START = {"as it is": IMPORTS.format(how="pass"), "Python's default": IMPORTS.format(how="gc.set_threshold(700)")}
BOOK = {"as it is": JUPYTER_BOOK, "Python's default": JUPYTER_BOOK.replace("gc.disable()", "gc.enable()")}


def seconds_of(code: str, *arguments: str) -> float:
    """User and system seconds of a process that executes code."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def compare(name: str, codes: dict[str, str], repeats: int, folder: str, arguments: list[str]) -> dict:
    """One row: the share of the time, and the seconds of every turn."""
    seconds: dict[str, list[float]] = {way: [] for way in codes}
    for turn in range(repeats):
        for way, code in codes.items():
            own = [*arguments, f"{folder}/{name} {turn} {way}"] if arguments else []
            seconds[way].append(seconds_of(code, *own))
    ours, default = seconds.values()
    return {
        "method": name,
        "ratio": round(statistics.median(a / b for a, b in zip(ours, default, strict=True)), 3),
        "better": "lower",
        "goal": 1.0,
        "cpu_seconds": {way: [round(one, 1) for one in found] for way, found in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=measure.count, default=3)
    repeats, root = parser.parse_args().repeats, paths.root()
    book = ["build", str(root), "--toc", str(root / "book" / "_toc.yml"), "-q", "-n", "--path-output"]
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare("imports", START, repeats, folder, []), compare("book", BOOK, repeats, folder, book)]
    measure.write(
        "unused_objects", {"ratio": max(row["ratio"] for row in rows), "better": "lower", "goal": 1.0, "rows": rows}
    )


if __name__ == "__main__":
    with one_line():
        main()
