"""Bring the package to Colab: the first cell of every notebook fetches this file and runs it there.

It may run any number of times: what is there already is kept, what a failed attempt has left is removed. With a mounted
Google Drive the repository with all records, saved states and the cache lie on the Drive and outlive the session. The
cell gives the repository's address and the released tag.
"""

import importlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DRIVE = Path("/content/drive/MyDrive")
# What Colab's kernel runs on, or has loaded by now: another version would break the session.
HELD = (
    *("ipykernel", "ipython", "jupyter_client", "jupyter_core", "pyzmq", "tornado", "traitlets", "google-colab"),
    *("numpy", "pandas", "torch", "torchvision", "pillow", "matplotlib", "scipy", "psutil", "requests"),
)
VERSION = "import lscl; print(lscl.__version__)"


class SetupError(Exception):
    """The package cannot be used yet; the message says what helps."""


def run(what, *command):
    """Run a command and return what it prints; raise SetupError with the last line that it says if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise SetupError(f"{what}: {said[-1] if said else 'no reason given'}; once that is mended, run this cell again")
    return done.stdout.strip()


def has_locks(folder):
    """Whether files in a folder can be locked, as runs and the cache do it."""
    try:
        import fcntl

        with open(folder / ".lock-test", "w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            database = sqlite3.connect(Path(place) / "test.db")
            database.execute("BEGIN EXCLUSIVE")
            database.close()
    except (OSError, sqlite3.Error):
        return False
    finally:
        (folder / ".lock-test").unlink(missing_ok=True)
    return True


def choose_home(drive):
    """The folder for everything: on the mounted Drive, else in the session, which loses it in the end."""
    if drive.is_dir():
        home = drive / "fed-lscl"
        home.mkdir(exist_ok=True)
        if has_locks(home):
            return home
        print(f"{home} has no locks, so records stay in this session: download what you want to keep")
    return Path.cwd() / "fed-lscl"


def fetch(repository, release, folder):
    """Clone the repository at a released tag, or bring a clone to that tag."""
    git = ("git", "-c", "safe.directory=*", "-c", "core.fileMode=false", "-c", "advice.detachedHead=false")
    if (folder / ".git").is_dir():
        inside = (*git, "-C", str(folder))
        tags = run(f"git in {folder}", *inside, "tag", "--points-at", "HEAD").split()
        if release not in tags:
            run(f"no {release} in {repository}", *inside, "fetch", "-q", "--depth", "1", "origin", "tag", release)
            run(f"{folder} has changes that {release} would overwrite", *inside, "checkout", "-q", release)
        return
    if folder.exists():
        raise SetupError(f"{folder} is no clone of {repository}: move it elsewhere, and run this cell again")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    clone = (*git, "clone", "-q", "--depth", "1", "--branch", release, repository, str(part))
    run(f"{repository} at {release} not cloned", *clone)
    part.rename(folder)


def installed():
    """The version of the package that a new Python finds; None if there is none."""
    done = subprocess.run([sys.executable, "-P", "-c", VERSION], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def held_versions():
    """Lines for pip that hold what is there of HELD."""
    for name in HELD:
        try:
            yield f"{name}=={version(name)}\n"
        except PackageNotFoundError:
            continue


def install(folder, release):
    """Install the package from the clone, unless this release is there; no package of HELD changes its version."""
    if f"v{installed()}" == release:
        return
    with tempfile.TemporaryDirectory() as place:
        held, source = Path(place) / "held.txt", Path(place) / "source"
        held.write_text("".join(held_versions()), encoding="utf-8")
        leave_out = shutil.ignore_patterns(".git", "book", "results", "_build")
        shutil.copytree(folder, source, ignore=leave_out)  # pip writes into the folder that it installs from
        pip = (sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check")
        run("pip cannot install the package", *pip, "-c", str(held), str(source))
    if f"v{installed()}" != release:
        raise SetupError(f"the package is v{installed()} after installing {release}: restart the session, and run all")
    importlib.invalidate_caches()  # so that the import that follows finds it
    if "lscl" in sys.modules:
        raise SetupError(f"{release} is installed now, in the place of a loaded one: restart the session, and run all")


def setup(repository, release, drive=DRIVE):
    """Make `import lscl` work, with records, states and cache in their places."""
    home = choose_home(drive)
    fetch(repository, release, home / "repository")
    install(home / "repository", release)
    os.environ["LSCL_ROOT"] = str(home / "repository")
    if home.parent == drive:
        os.environ["LSCL_CACHE"] = str(home / "cache")
    print(f"lscl {release} is ready; records are kept in {home / 'repository' / 'results'}")


if "REPOSITORY" in globals():
    setup(REPOSITORY, RELEASE)  # noqa: F821, given by the cell
