"""The verified records as a page shows them: which cells of the tables use a record, and whether it was reproduced."""

from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from lscl import files, paths
from lscl.experiments import records
from lscl.experiments.sweeps import rows_of
from lscl.experiments.verify import describe_outcome
from lscl.results import file_shapes
from lscl.results.frames import final_accuracy
from lscl.results.labels import DATASET_LABELS, MASK_LABELS, SCORES, row_label
from lscl.results.markdown import code_text, numbered_table, plain_text
from lscl.results.privacy import attacked_records

# Where the runs of a named set stand.
TABLES = {
    "table1": "Table 1",
    "ablations": "Table 2",
    "blocks": "Fig. 3",
    "cnns": "Fig. 4",
    "buffers": "Fig. 5",
    "regimes": "the writers by regime",
    "larger_rate": "components at a larger rate",
}
MADE_AGAIN = "the record has been made again since"


def cells(record: records.Record) -> list[str]:
    """The cells of tables and figures that use a record: set, data set, row, seed and its two final accuracies."""
    rows = {name: row_label(record) if name == "table1" else row for name, row in rows_of(record).items()}
    accuracies = ", ".join(f"{final_accuracy(record, mask):.1f} % {MASK_LABELS[mask]}" for mask in SCORES)
    where = DATASET_LABELS[record["dataset"]]
    return [
        f"{TABLES.get(name, name)}, {where}, {row}, seed {record['seed']}: {accuracies}" for name, row in rows.items()
    ]


def outcome(profile: str) -> str:
    """The stored outcome of `lscl verify` for a profile.

    Args:
        profile: of the records.

    Returns:
        A sentence and a numbered table, as markdown.
    """
    name_cells = lambda record: plain_text("; ".join(cells(record))) or code_text(record["name"])
    return show_outcome(profile, f"lscl verify --profile {profile}", records.all_records(profile), name_cells)


def privacy_outcome(profile: str) -> str:
    """The stored outcome of `lscl verify --privacy` for a profile.

    Args:
        profile: of the attacked runs.

    Returns:
        A sentence and a numbered table, as markdown.
    """
    command, name_run = f"lscl verify --privacy --profile {profile}", lambda record: code_text(record["name"])
    return show_outcome(f"privacy-{profile}", command, attacked_records(profile), name_run)


def show_outcome(name: str, command: str, known: Iterable[dict[str, Any]], describe: Callable[[Any], str]) -> str:
    """One file of results/verified/ as a sentence and a numbered table.

    Args:
        name: of the file.
        command: that writes it.
        known: today's records.
        describe: what the table calls a record, as markdown.

    Returns:
        markdown; a sentence alone without the file.
    """
    path = paths.results() / "verified" / f"{name}.json"
    if not path.exists():
        return f"No run is verified yet. `{command} --sample 3` does it."
    saved, today = files.read_json(path, file_shapes.VerifiedProfile), {one["name"]: one for one in known}
    rows = [
        {
            "record": describe(today[one["name"]]) if one["name"] in today else code_text(one["name"]),
            "computed again": describe_outcome(one)
            if one["recorded_at"] == today.get(one["name"], one).get("commit", one["recorded_at"])
            else MADE_AGAIN,
            "seconds": f"{one['seconds']:.1f}",
            "recorded at": (one["recorded_at"] or "–")[:10],
            "verified at": (one["verified_at"] or "–")[:10],
            "machine": one["hardware"]["cpu"],
        }
        for one in saved["runs"]
    ]
    equal = sum(one["equal"] for one in saved["runs"])
    drawn_from = f" --dataset {saved['dataset']}" if saved.get("dataset") else ""
    drawn = len(rows) + len(saved.get("without_outcome", []))
    draw = f"{command} --sample {drawn} --seed {saved['seed']}{drawn_from}"
    caption = f"`{draw}`: random records, computed again from nothing"
    table = numbered_table(pd.DataFrame(rows), caption, f"tab-verified-{name}", index=False, markdown=("record",))
    rounded = sum(one.get("outcome") == "rounding" for one in saved["runs"])
    also = f", {rounded} within rounding" if rounded else ""
    failed = f" {drawn - len(rows)} of the {drawn} drawn runs failed." if drawn > len(rows) else ""
    return f"{equal} of {len(rows)} were equal to the bit{also}.{failed}\n\n{table}"
