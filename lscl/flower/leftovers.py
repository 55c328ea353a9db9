"""Cleaning up after a command that was killed: its processes end, and the folder with its keys is removed.

Such a command cannot clean up after itself. A second, small process does: the watchdog. It reads from a pipe whose
other end only the command holds, so it notices however the command ends. Then it ends all processes that carry the
command's mark in their environment, which processes inherit, and removes the folder. If the watchdog was killed too,
the next command on the machine cleans up: a folder whose lock is free has no owner.
"""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PREFIX = "lscl-federation-"
MARK = "LSCL_STARTED_BY"
PATIENCE = 30  # seconds for marked processes to end
PAUSE = 0.2  # seconds between two looks
EXPIRY = 24 * 3600  # seconds until the certificates in a folder run out, which an earlier version made without a lock


@contextmanager
def key_folder() -> Iterator[Path]:
    """A new temporary folder that only this user can enter; it is removed however this process ends.

    Abandoned folders are removed first. The folder's name is the mark of the processes that end with it, see
    `mark_variables`.
    """
    remove_abandoned()
    folder, lock = _locked()
    try:
        with watchdog(folder.name, folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def watchdog(mark: str, folder: Path | None = None) -> Iterator[None]:
    """End the marked processes and remove the folder when the `with` block, or this process in it, ends.

    Args:
        mark: of the processes.
        folder: what to remove; None = nothing.

    Yields:
        nothing.
    """
    command = [sys.executable, "-P", __file__, mark, *([str(folder)] if folder else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True) as dog:
        try:
            yield
        finally:
            dog.stdin.close()
            dog.wait()


def mark_variables(mark: str) -> dict[str, str]:
    """The environment variable that marks processes; the marks of this process stay in it."""
    return {MARK: os.pathsep.join([*os.environ.get(MARK, "").split(os.pathsep), mark]).strip(os.pathsep)}


def marked_processes(mark: str) -> list[psutil.Process]:
    """The processes that carry a mark, as far as this user may look into them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # gone, or somebody else's
            if mark in process.environ().get(MARK, "").split(os.pathsep):
                found.append(process)
    return found


def end_marked(mark: str) -> None:
    """End all marked processes, until two looks in a row find none: one may have been starting another."""
    until, quiet = time.monotonic() + PATIENCE, 0
    while quiet < 2 and time.monotonic() < until:
        found = marked_processes(mark)
        quiet = 0 if found else quiet + 1
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(PAUSE)


def remove_abandoned() -> None:
    """Remove this user's key folders that no process owns any more, and end the processes with their marks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # gone by now, or its lock is taken: in use
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
                continue
            if not (folder / "lock").exists() and time.time() - about.st_mtime < EXPIRY:
                continue
            lock = _lock(folder, wait=False)
            try:
                end_marked(folder.name)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _locked() -> tuple[Path, int]:
    """A new key folder and its lock, held by this process: the system frees it however the process ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):  # another command took it for an abandoned one before the lock was taken
            lock = _lock(folder, wait=True)
            if (folder / "lock").exists():
                return folder, lock
            os.close(lock)


def _lock(folder: Path, wait: bool) -> int:
    """Take the lock of a folder and return its descriptor; unlike FileLock, it never makes a folder that has gone.

    Raises:
        OSError: another process has it, or the folder is gone.
    """
    import fcntl  # Linux and macOS have it, see `node.check_system`

    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(lock)
        raise
    return lock


def main(mark: str, folder: str = "") -> None:
    """Wait for the end of the process that started this one, then clean up after it.

    Args:
        mark: of the processes to end.
        folder: what to remove; "" = nothing.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    end_marked(mark)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
