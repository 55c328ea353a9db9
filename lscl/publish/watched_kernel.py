"""A notebook's kernel in which reading what the notebook does not declare is an error.

It starts as `python -m lscl.publish.watched_kernel`. The interpreter itself reports every file that any library opens
(`sys.addaudithook`), and `lscl.results` reports every set of runs that is read. Files outside results/, and files that
are written, are not watched.
"""

import json
import logging
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
    """Whether a notebook may read a file.

    A set of runs is searched for among all records of its profile. A run may read again what it makes, its saved state
    too.

    Args:
        place: of the file, below results/.
        reads: what the notebook declares, see `lscl.publish.freshness`.
        makes: what it declares to compute.

    Returns:
        True if it may.
    """
    parts = place.split("/")
    if any(parts[:2] == ["runs", _profile(entry)] for entry in makes):
        return True
    patterns = [f"runs/{_profile(entry)}/*.json" if entry.startswith(STUDY) else entry for entry in reads]
    return any(_matches(parts, pattern.split("/")) for pattern in patterns)


def is_study_declared(profile: str, name: str, reads: list[str], makes: list[str]) -> bool:
    """Whether a notebook may read a set of runs.

    Args:
        profile: of the runs.
        name: of the set; "" = all runs of the profile.
        reads: what the notebook declares.
        makes: what it declares to compute.

    Returns:
        True if it may.
    """
    whole = f"runs/{profile}/*.json" in reads or profile in map(_profile, makes)
    return whole or f"{STUDY}{profile}/{name}" in reads


def _profile(entry: str) -> str:
    return entry.removeprefix(STUDY).partition("/")[0]


def _matches(parts: list[str], pattern: list[str]) -> bool:
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))


def refuse_undeclared(notebook: str, reads: list[str], makes: list[str]) -> None:
    """From now on, in this process, refuse to read what is not declared; this cannot be undone.

    The folder of today's results is watched; a notebook that keeps its own runs in a folder of its own may read them.

    Args:
        notebook: its name, for the message.
        reads: what it declares.
        makes: what it declares to compute.

    Raises:
        LsclError: not here, but wherever the process later reads something else.
    """

    results = str(paths.results())

    def refuse(event: str, given: tuple[Any, ...]) -> None:
        if event == AUDITED:
            profile, name = given
            if not is_study_declared(profile, name, reads, makes):
                what = f"{STUDY}{profile}/{name}" if name else f"runs/{profile}/*.json"
                raise LsclError(f"{notebook} reads {what}, which it does not declare in its metadata (lscl.reads)")
        elif event == "open":
            place = _place_read(results, *given)
            if place is not None and not is_declared(place, reads, makes):
                raise LsclError(
                    f"{notebook} reads results/{place}, which it does not declare in its metadata (lscl.reads)"
                )

    sys.addaudithook(refuse)


def _place_read(results: str, path: Any, _mode: str | None, flags: int) -> str | None:
    """The place below results/ of a file that is opened to be read; None for everything else."""
    if not isinstance(path, str | bytes | os.PathLike) or flags & (os.O_WRONLY | os.O_RDWR):
        return None
    full = os.path.abspath(os.fsdecode(path))
    if not full.startswith(results + os.sep) or os.path.isdir(full):
        return None
    return Path(full).relative_to(results).as_posix()


def is_told(record: logging.LogRecord) -> bool:
    """Whether a line of the kernel's log is for the reader: that its end has interrupted nothing is not.

    A kernel that is told to end is interrupted first, and says so if it was busy with that very message.
    """
    return not record.getMessage().startswith("KeyboardInterrupt caught in kernel")


if __name__ == "__main__":
    logging.getLogger("IPKernelApp").addFilter(is_told)
    refuse_undeclared(**json.loads(os.environ[VARIABLE]))
    runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
