"""Images that servers made, stored as files beside the records (results/runs/<profile>/sheets/)."""

from collections.abc import Iterable
from pathlib import Path

from lscl.experiments.records import Record, folder, select
from lscl.results.labels import label_of, methods_in_order


def server_images(records: Iterable[Record]) -> dict[str, Path]:
    """The first and the last sheet of each of `records_with_sheets`: {"TARGET, after task 1": path}."""
    found: dict[str, Path] = {}
    for record in records_with_sheets(records):
        made = _sheets_of(record)
        for path in made[:: max(1, len(made) - 1)]:
            found[f"{label_of(record['method'])}, after task {path.stem.rpartition('--task')[2]}"] = path
    return found


def records_with_sheets(records: Iterable[Record]) -> list[Record]:
    """The records whose images are shown: of every method the first, by its file's name, that has any."""
    group = sorted(records, key=lambda one: one["name"])
    with_sheets = (
        [record for record in select(group, method=method) if _sheets_of(record)] for method in methods_in_order()
    )
    return [found[0] for found in with_sheets if found]


def _sheets_of(record: Record) -> list[Path]:
    return sorted((folder(record["profile"]) / "sheets").glob(f"*--{record['config_digest']}--task*.png"))
