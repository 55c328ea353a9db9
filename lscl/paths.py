"""Where files are: the package and a few environment variables decide.

The working directory decides only where an installed package, which has no repository around it, puts its results.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lscl.errors import LsclError

WITHOUT_CLONE = "lscl-results"  # folder of results of an installed package, below the working directory


def root() -> Path:
    """The repository root: LSCL_ROOT, or the first folder above the package that has _config.yml and book/.

    A package that is installed without its repository has the folder lscl-results of the working directory instead.
    """
    given = variable("LSCL_ROOT")
    return Path(given).resolve() if given else repository() or Path.cwd() / WITHOUT_CLONE


def repository() -> Path | None:
    """The repository around the package; None if the package is installed without one."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "_config.yml").exists() and (folder / "book").is_dir():
            return folder
    return None


def check_clone(what: str) -> None:
    """Refuse what only a clone of the repository can do.

    Args:
        what: the command that needs one, for the message.

    Raises:
        LsclError: the package is installed without its repository, and LSCL_ROOT is not set.
    """
    if variable("LSCL_ROOT") is None and repository() is None:
        raise LsclError(
            f"{what} needs a clone of the repository: the installed package has no notebooks and no book; run it in a "
            "clone, or set LSCL_ROOT to one"
        )


def results() -> Path:
    """Records, tables and figures: results/ of the repository root, or ./lscl-results of an installed package."""
    top = root()
    return top if top.name == WITHOUT_CLONE else top / "results"


@contextmanager
def scratch() -> Iterator[None]:
    """Send results to a temporary folder inside the `with` block, so that runs compute instead of reading records."""
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
    """Decoded images and prefix activations (never committed): LSCL_CACHE, else ~/.cache/lscl.

    Raises:
        LsclError: LSCL_CACHE is not set, and the user has no home folder.
    """
    return _own("LSCL_CACHE", ".cache")


def private() -> Path:
    """What a client of a real federation keeps to itself: LSCL_PRIVATE, else ~/.local/share/lscl.

    Raises:
        LsclError: LSCL_PRIVATE is not set, and the user has no home folder.
    """
    return _own("LSCL_PRIVATE", ".local/share")


def _own(name: str, usual: str) -> Path:
    given = variable(name)
    try:
        return Path(given).absolute() if given else Path.home() / usual / "lscl"
    except RuntimeError:  # no HOME, and the user has no entry in the list of users
        raise LsclError(f"no home folder is known: set {name} to a folder") from None


def variable(name: str) -> str | None:
    """The value of an environment variable; None if it is empty or not set."""
    return os.environ.get(name, "").strip() or None


def make_absolute() -> None:
    """Make the paths in the environment absolute: notebooks and other processes run in other folders."""
    for name in ("LSCL_ROOT", "LSCL_CACHE", "LSCL_PRIVATE", "LSCL_DATA_DIR", "LSCL_WEIGHTS", "LSCL_TRACK"):
        given = variable(name)
        if given:
            os.environ[name] = str(Path(given).absolute())
