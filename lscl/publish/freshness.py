"""Whether the stored outputs of a notebook are older than the records that they show: a notebook carries the digests of those records."""

import hashlib
import re
from collections.abc import Iterable

import nbformat

from lscl import files, paths
from lscl.experiments import sweeps
from lscl.experiments.records import Record, all_records, folder

# What in a notebook's code reads which named set of runs; the studies are named where they are read.
READS = {r"\btuning_frame\(": "tune", r"\bgrowth_frame\(": "growth", r"\bcomponents_frame\(": "components"}
STUDY = r"""\bstudy=["'](\w+)["']"""
KEY = "lscl"  # of the notebook's metadata


def sets_of(notebook: nbformat.NotebookNode) -> list[str]:
    """The named sets of runs that a notebook shows."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return sorted({name for pattern, name in READS.items() if re.search(pattern, code)} | set(re.findall(STUDY, code)))


def digests(records: Iterable[Record], profile: str = "mini") -> dict[str, str]:
    """The digest of all records of each named set, and of what tuning and the benchmarks of growth and components have written."""
    totals = {name: hashlib.sha256() for name in (*sweeps.named_sets(), "growth", "components")}
    for record in records:
        content = (folder(profile) / f"{record['name']}.json").read_bytes()
        for name in sweeps.rows_of(record):
            totals[name].update(content)
    for name, place in (("tune", "tuning"), ("components", "components")):
        for path in sorted((paths.results() / place).glob("*.json")):
            totals[name].update(path.read_bytes())
    for path in (paths.results() / "benchmarks").glob("scaling.json"):
        totals["growth"].update(path.read_bytes())
    return {name: total.hexdigest()[:16] for name, total in totals.items()}


def stamp(notebook: nbformat.NotebookNode) -> None:
    """Note in a notebook that was just executed which records it shows."""
    today, shown = digests(sweeps.reported(all_records("mini"))), sets_of(notebook)
    if shown:
        notebook.metadata[KEY] = {"records": {name: today[name] for name in shown}}


def stale() -> list[str]:
    """One line for every committed notebook whose outputs are older than the records that it shows."""
    today, found = digests(sweeps.reported(all_records("mini"))), []
    for path in sorted((paths.root() / "notebooks").glob("[0-9]*.ipynb")):
        notebook = files.notebook(path)
        carried = notebook.metadata.get(KEY, {}).get("records", {})
        old = [name for name in sets_of(notebook) if carried.get(name) != today[name]]
        if old:
            found.append(
                f"notebooks/{path.name}: its outputs are older than the records of {', '.join(old)}: `lscl reproduce demo --store` makes them"
            )
    return found
