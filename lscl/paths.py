"""Where things lie: found from the package and a few environment variables, never from the working directory."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lscl.errors import LsclError


def root() -> Path:
    """The repository root: LSCL_ROOT, or the first folder above the package that has _config.yml.

    Raises:
        LsclError: the package is installed without its repository and LSCL_ROOT is not set.
    """
    if "LSCL_ROOT" in os.environ:
        return Path(os.environ["LSCL_ROOT"]).resolve()
    for folder in Path(__file__).resolve().parents:
        if (folder / "_config.yml").exists() and (folder / "book").is_dir():
            return folder
    raise LsclError("no repository around the installed package: set LSCL_ROOT to a clone of it (or to any folder for results)")


def results() -> Path:
    """Records, tables and figures (committed)."""
    return root() / "results"


@contextmanager
def scratch() -> Iterator[None]:
    """While the `with` block lasts, results go to a temporary folder, so that a record is made and not read."""
    before = os.environ.get("LSCL_ROOT")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LSCL_ROOT"] = folder
        try:
            yield
        finally:
            os.environ.pop("LSCL_ROOT")
            if before is not None:
                os.environ["LSCL_ROOT"] = before


def cache() -> Path:
    """Decoded images and prefix activations (never committed): LSCL_CACHE, else ~/.cache/lscl."""
    return Path(os.environ.get("LSCL_CACHE", Path.home() / ".cache" / "lscl"))


def private() -> Path:
    """What a client of a real federation keeps to itself: LSCL_PRIVATE, else ~/.local/share/lscl."""
    return Path(os.environ.get("LSCL_PRIVATE", Path.home() / ".local" / "share" / "lscl"))
