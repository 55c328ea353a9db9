"""A notebook's kernel in which reading what the notebook does not declare is an error: `python -m lscl.publish.watched_kernel`.

The interpreter itself reports every file that is opened (`sys.addaudithook`), by whatever library, and `lscl.results` every set of runs
that is read. What is not under results/, and what is written, is nobody's concern here.
"""

import json
import os
import runpy
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lscl import paths
from lscl.errors import LsclError

VARIABLE = "LSCL_DECLARED"  # of the environment: {"notebook": its name, "reads": [...], "makes": [...]} as JSON
STUDY = "study:"  # before the profile and the name of a set of runs, such as "study:mini/table1"
AUDITED = "lscl.study"  # the event of `lscl.results.studies`, which is too much to load here


def is_declared(place: str, reads: list[str], makes: list[str]) -> bool:
    """Whether a file may be read.

    A set of runs is searched for among all records of its profile. What a run makes, its saved state too, it may read again.

    Args:
        place: of the file, below results/.
        reads, makes: what the notebook declares, see `lscl.publish.freshness`.
    """
    parts = place.split("/")
    if any(parts[:2] == ["runs", _profile(entry)] for entry in makes):
        return True
    patterns = [f"runs/{_profile(entry)}/*.json" if entry.startswith(STUDY) else entry for entry in reads]
    return any(_matches(parts, pattern.split("/")) for pattern in patterns)


def is_study_declared(profile: str, name: str, reads: list[str], makes: list[str]) -> bool:
    """Whether a set of runs may be read; with name = "" all runs of the profile."""
    whole = f"runs/{profile}/*.json" in reads or profile in map(_profile, makes)
    return whole or f"{STUDY}{profile}/{name}" in reads


def _profile(entry: str) -> str:
    return entry.removeprefix(STUDY).partition("/")[0]


def _matches(parts: list[str], pattern: list[str]) -> bool:
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))


def refuse_undeclared(notebook: str, reads: list[str], makes: list[str]) -> None:
    """From now on, in this process, reading what is not declared raises LsclError; this cannot be undone."""

    def refuse(event: str, given: tuple[Any, ...]) -> None:
        if event == AUDITED:
            profile, name = given
            if not is_study_declared(profile, name, reads, makes):
                what = f"{STUDY}{profile}/{name}" if name else f"runs/{profile}/*.json"
                raise LsclError(f"{notebook} reads {what}, which it does not declare in its metadata (lscl.reads)")
        elif event == "open":
            place = _place_read(*given)
            if place is not None and not is_declared(place, reads, makes):
                raise LsclError(
                    f"{notebook} reads results/{place}, which it does not declare in its metadata (lscl.reads)"
                )

    sys.addaudithook(refuse)


def _place_read(path: Any, _mode: str | None, flags: int) -> str | None:
    """The place below results/ of a file that is opened to be read; None for everything else."""
    if not isinstance(path, str | bytes | os.PathLike) or flags & (os.O_WRONLY | os.O_RDWR):
        return None
    full, results = os.path.abspath(os.fsdecode(path)), str(paths.results())
    if not full.startswith(results + os.sep) or os.path.isdir(full):
        return None
    return Path(full).relative_to(results).as_posix()


if __name__ == "__main__":
    refuse_undeclared(**json.loads(os.environ[VARIABLE]))
    runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
