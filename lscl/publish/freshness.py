"""Whether the outputs of a notebook are still what executing it would give: one digest in named parts decides.

A notebook declares in its metadata, under `lscl`, where its numbers come from:

- `reads`: files under results/, as globs (`tuning/*.json`), and named sets of runs (`study:mini/table1`); `lscl check`
  compares them;
- `makes`: named sets of runs that the notebook computes itself where they are missing. They are not committed.

`{profile}` stands for the profile of the execution, `{shown}` for the one whose records a page shows in it
(`studies.shown_profile`). During an execution, reading anything else under results/ is an error
(`lscl.publish.watched_kernel`).
"""

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import nbformat

from lscl import files, paths
from lscl.errors import LsclError, unknown_name
from lscl.experiments import records, sweeps
from lscl.publish.watched_kernel import STUDY
from lscl.registry import METHODS
from lscl.results.studies import shown_profile

KEY = "lscl"  # of the notebook's metadata
STORED = "demo"  # the profile in which the committed notebooks are executed
NOT_EXECUTED = ("publish",)  # the part of the package that no cell runs; lscl.results makes their tables and figures
MADE = ("papermill", "execution")  # what an execution leaves in the metadata of a cell
SETUP = "setup"  # tag of the cell that fetches the package where it is missing; `lscl pages` writes its address there


def declared_inputs(notebook: nbformat.NotebookNode, profile: str) -> dict[str, list[str]]:
    """What a notebook declares, with the profiles filled in.

    Args:
        notebook: with its metadata.
        profile: of the execution.

    Returns:
        {"reads": [...], "makes": [...]}.
    """
    about = notebook.metadata.get(KEY, {})
    values = {"{profile}": profile, "{shown}": shown_profile(profile, compute=False)}
    return {kind: [_filled(entry, values) for entry in about.get(kind, [])] for kind in ("reads", "makes")}


def _filled(entry: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        entry = entry.replace(name, value)
    return entry


def digest(notebook: nbformat.NotebookNode, profile: str, places: dict[str, str | None]) -> dict[str, Any]:
    """The digest of all that decides what an executed notebook shows, in named parts.

    `lscl reproduce` executes a notebook again if any part has changed. `lscl check` compares `reads` and `cells` of a
    committed notebook with those stored in it: its outputs are old if the records and files that it shows, or its code,
    have changed. A commit that changes the library alone does not make every committed notebook old, because what it
    changes in a record stands in the record.

    Args:
        notebook: with its declarations.
        profile: a parameter of the execution.
        places: the other ones, see `build.execute`.

    Returns:
        dict: A digest for each declared entry of `reads` and `makes`, and one each for `cells` (code), `text` (all
        other cells, and the tags, captions and descriptions of all), `parameters`, and `code` (the package without
        lscl.publish).

    Raises:
        LsclError: a declared set of runs that does not exist, or a file that cannot be read.
    """
    inputs = {
        kind: {entry: _of_files(_files(entry)) for entry in entries}
        for kind, entries in declared_inputs(notebook, profile).items()
    }
    is_code = lambda cell: cell.cell_type == "code" and SETUP not in cell.metadata.get("tags", [])
    cells: dict[bool, list] = {True: [], False: []}
    for cell in notebook.cells:
        cells[is_code(cell)].append((cell.cell_type, cell.source))
    about = [{key: value for key, value in cell.metadata.items() if key not in MADE} for cell in notebook.cells]
    parts = {"cells": cells[True], "text": [cells[False], about], "parameters": [profile, places]}
    return {
        **inputs,
        **{name: _short(json.dumps(part).encode()) for name, part in parts.items()},
        "code": records.code_digest(NOT_EXECUTED),
    }


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _of_files(found: Iterable[Path]) -> str:
    return _short(json.dumps([(path.name, _short(path.read_bytes())) for path in found]).encode())


def _files(entry: str) -> list[Path]:
    """The files that a declared entry means today."""
    if not entry.startswith(STUDY):
        return sorted(path for path in paths.results().glob(entry) if path.is_file())
    profile, _, name = entry.removeprefix(STUDY).partition("/")
    if name not in sweeps.named_sets():
        raise unknown_name("set of runs", name, sweeps.named_sets())
    found = sorted(records.folder(profile).glob("*.json"))
    return [
        path for path in found if name in _sets_of(path, path.stat().st_mtime_ns, path.stat().st_size, METHODS.version)
    ]


@lru_cache(maxsize=10_000)
def _sets_of(path: Path, _changed: int, _size: int, _version: int) -> frozenset[str]:
    """The named sets that a record is reported in; the other arguments change with the file and the systems."""
    try:
        found = sweeps.reportable_records([records.read_record(path)])
    except records.UnregisteredSystem:
        return frozenset()
    return frozenset(name for record in found for name in sweeps.rows_of(record))


def store_digest(notebook: nbformat.NotebookNode, profile: str, places: dict[str, str | None]) -> None:
    """Write into a notebook that was just executed what its outputs were made of.

    Args:
        notebook: changed in place.
        profile: a parameter of the execution.
        places: the other ones, see `build.execute`.
    """
    notebook.metadata[KEY] = {**notebook.metadata.get(KEY, {}), "digest": digest(notebook, profile, places)}


def stale_notebooks() -> list[str]:
    """One line for every committed notebook whose outputs are older than what it reads, or than its code.

    Raises:
        LsclError: a notebook that declares a set of runs that does not exist, or a file that cannot be read.
    """
    found = []
    for path in sorted((paths.root() / "notebooks").glob("[0-9]*.ipynb")):
        notebook = files.read_notebook(path)
        try:
            today = digest(notebook, STORED, {})
        except LsclError as error:
            raise LsclError(f"notebooks/{path.name}: {error}") from error
        stored = notebook.metadata.get(KEY, {}).get("digest", {})
        old = [entry for entry, value in today["reads"].items() if stored.get("reads", {}).get(entry) != value]
        old += ["its code"] if stored.get("cells") != today["cells"] else []
        if old:
            found.append(
                f"notebooks/{path.name}: its outputs are older than {', '.join(old)}: "
                f"`lscl reproduce {STORED} --store` makes them"
            )
    return found
