"""Images that servers made, stored as files beside the records (results/runs/<profile>/sheets/)."""

from collections.abc import Iterable
from pathlib import Path

from lscl.experiments.records import Record, accuracy, folder, select
from lscl.federation.metrics import average_so_far
from lscl.results.labels import label_of, methods_in_order


def server_images(records: Iterable[Record]) -> dict[str, Path]:
    """The last sheet of each of `records_with_sheets`: {title: path}.

    A title tells the accuracy of the model that the images were made from: poor images of a poor model say little.
    """
    found: dict[str, Path] = {}
    for record in records_with_sheets(records):
        path = _sheets_of(record)[-1]
        task = int(path.stem.rpartition("--task")[2])
        own, seen = (average_so_far(accuracy(record, mask))[task - 1] for mask in ("task", "seen"))
        title = f"{label_of(record['method'])}, after task {task}"
        found[f"{title}\nits model: {own:.1f} % (all seen: {seen:.1f} %)"] = path
    return found


def records_with_sheets(records: Iterable[Record]) -> list[Record]:
    """The records whose images are shown: of every method the first, by its file's name, that has any."""
    group = sorted(records, key=lambda one: one["name"])
    with_sheets = (
        [record for record in select(group, method=method) if _sheets_of(record)] for method in methods_in_order()
    )
    return [found[0] for found in with_sheets if found]


def _sheets_of(record: Record) -> list[Path]:
    """A record's sheets in the order of their tasks."""
    found = (folder(record["profile"]) / "sheets").glob(f"*--{record['config_digest']}--task*.png")
    return sorted(found, key=lambda path: int(path.stem.rpartition("--task")[2]))
