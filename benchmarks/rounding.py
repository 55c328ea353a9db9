"""Compare runs that were made on two kinds of processor, and keep the pairs: what `lscl verify` allows follows them.

python benchmarks/rounding.py HERE THERE [--note TEXT]   adds the pairs of two folders of records
python benchmarks/rounding.py                            says what the pairs so far give
"""

import argparse
import json
from pathlib import Path

from lscl import files, paths
from lscl.data.store import write_atomic
from lscl.errors import LsclError
from lscl.experiments.rounding import allowed_by, describe_pairs, is_pair, machine_of, pair_row
from lscl.results import file_shapes


def find_pairs(one: Path, other: Path, note: str) -> list[dict]:
    """The pairs of two folders of record files.

    Args:
        one: records of the first processor.
        other: records of the second.
        note: what else is to be known of them.

    Returns:
        a row for each record of the first folder whose run is in the second, on another processor.

    Raises:
        LsclError: there is none.
    """
    read = lambda folder: [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    complete = lambda record: {"device": "cuda" if record["hardware"].get("gpu") else "cpu", **record}
    here, there = ([complete(record) for record in read(folder)] for folder in (one, other))
    pairs = [(a, b) for a in here for b in there if is_pair(a, b) and (machine_of(a) != machine_of(b) or note)]
    if not pairs:
        raise LsclError(f"no run of {one} is in {other}, by the same code and on another processor")
    return [pair_row(a, b, note) for a, b in pairs]


def main() -> None:
    """Add pairs to the file, and say what all of them give."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="two folders of records, or none")
    parser.add_argument("--note", default="", help="what else is to be known of these pairs")
    given = parser.parse_args()
    path = paths.results() / "rounding" / "pairs.json"
    rows = files.read_json(path, file_shapes.RoundingPairs)["rows"] if path.exists() else []
    if given.folders:
        found = find_pairs(*given.folders, given.note)
        key = lambda row: (row["name"], row["code"], row["machines"], row["note"])
        rows = [row for row in rows if key(row) not in map(key, found)] + found
        write_atomic(path, (json.dumps({"allowed": allowed_by(rows), "rows": rows}, indent=1) + "\n").encode())
    print(describe_pairs(rows))


if __name__ == "__main__":
    main()
