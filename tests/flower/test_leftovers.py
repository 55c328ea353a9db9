"""Nothing is left of a killed command: real processes and signals, with sleeping processes in place of a federation."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from tests_root import ROOT

pytest.importorskip("psutil", reason="needs the extra flower: pip install -e '.[flower]'")
import psutil

from lscl.flower import leftovers
from lscl.flower.leftovers import PREFIX, key_folder, marked_processes, remove_abandoned

# A command that writes a key and starts a process in a session of its own, which starts another one, as Flower's do.
COMMAND = """
import os, subprocess, sys, time
from lscl.flower.leftovers import key_folder, mark_variables
with key_folder() as folder:
    (folder / "client0.key").write_text("secret")
    sleep = "[sys.executable, '-c', 'import time; time.sleep(600)']"
    start = f"import subprocess, sys; subprocess.run({sleep}, start_new_session=True)"
    variables = {**os.environ, **mark_variables(folder.name)}
    subprocess.Popen([sys.executable, "-c", start], env=variables, start_new_session=True)
    print(folder, flush=True)
    {end}
"""


def until(true):
    """Wait for what is to happen at once; it fails after a long while only."""
    end = time.monotonic() + 180
    while not true():
        assert time.monotonic() < end, "never happened"
        time.sleep(0.05)


@pytest.fixture
def started(monkeypatch, tmp_path):
    """started(end): such a command and its folder, when all its processes are there."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    commands = []

    def start(end="time.sleep(600)"):
        words = [sys.executable, "-c", COMMAND.replace("{end}", end)]
        heard = lambda: signal.signal(
            signal.SIGHUP, signal.SIG_DFL
        )  # whoever runs the tests may ignore it (nohup), and children inherit that
        command = subprocess.Popen(words, stdout=subprocess.PIPE, encoding="utf-8", preexec_fn=heard)
        commands.append(command)
        folder = Path(command.stdout.readline().strip())
        return command, folder

    yield start
    for command in commands:
        command.kill()
        command.wait()
        command.stdout.close()
    remove_abandoned()


def dogs(folder):
    """The watchdogs of a folder."""
    return [one for one in psutil.process_iter(["cmdline"]) if str(folder) in (one.info["cmdline"] or [])]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_a_command_that_is_killed_leaves_no_process_and_no_key(started, how):
    command, folder = started()
    until(lambda: len(marked_processes(folder.name)) == 2)
    assert folder.stat().st_mode & 0o777 == 0o700
    command.send_signal(how)
    command.wait(60)
    until(lambda: not folder.exists())
    assert marked_processes(folder.name) == []
    until(lambda: not dogs(folder))


@pytest.mark.parametrize("end", ["pass", "raise SystemExit(3)", "raise KeyboardInterrupt", "os._exit(0)"])
def test_a_command_that_ends_of_itself_leaves_nothing_either(started, end):
    command, folder = started(end)
    command.wait()
    until(lambda: not folder.exists() and not dogs(folder))
    assert marked_processes(folder.name) == []


def test_the_next_start_cleans_up_if_the_watchdog_was_killed_too(started):
    command, folder = started()
    until(lambda: len(marked_processes(folder.name)) == 2)
    (dog,) = dogs(folder)
    dog.kill()
    until(lambda: not dogs(folder))
    command.kill()
    command.wait()
    assert (folder / "client0.key").exists() and len(marked_processes(folder.name)) == 2
    with key_folder() as other:
        assert not folder.exists() and other.exists()
        assert marked_processes(folder.name) == []
    assert not other.exists()


def test_a_folder_that_is_in_use_is_left_alone(started):
    _, folder = started()
    until(lambda: len(marked_processes(folder.name)) == 2)
    with key_folder():
        assert (folder / "client0.key").exists() and len(marked_processes(folder.name)) == 2


def test_what_is_no_folder_of_ours_is_left_alone(started, tmp_path, monkeypatch):
    """Others can put anything into the temporary folder: links are not followed, files and others' folders stay."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "lock").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(precious)
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / f"{PREFIX}new").mkdir()  # perhaps just made, its lock not yet taken
    remove_abandoned()
    assert (
        (precious / "lock").exists() and (tmp_path / f"{PREFIX}file").exists() and (tmp_path / f"{PREFIX}new").exists()
    )
    theirs = tmp_path / f"{PREFIX}theirs"
    theirs.mkdir()
    (theirs / "lock").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        remove_abandoned()
    assert theirs.exists()
    remove_abandoned()
    assert not theirs.exists()


def test_an_old_folder_without_a_lock_is_removed(started, tmp_path):
    """Earlier versions took no lock; their certificates hold for a day."""
    old = tmp_path / f"{PREFIX}old"
    old.mkdir()
    os.utime(old, (0, time.time() - leftovers.EXPIRY - 1))
    remove_abandoned()
    assert not old.exists()


def test_a_new_folder_that_was_taken_for_a_left_one_is_made_again(started, monkeypatch):
    """Between its making and its lock."""
    taken, lock = [], leftovers._lock

    def too_late(folder, wait):
        if not taken:
            taken.append(folder)
            folder.rmdir()
        return lock(folder, wait)

    monkeypatch.setattr(leftovers, "_lock", too_late)
    with key_folder() as folder:
        assert folder != taken[0] and folder.exists()


NODE = """
from pathlib import Path
from lscl.flower import node
node.program = lambda: "{program}"
node.serve(node.Node(client=0, link="localhost:1", authority=Path("ca.crt"), key=Path("key")))
"""


def test_a_node_that_is_killed_takes_its_supernode_along(started, tmp_path):
    """The program that stands for Flower's is in a session of its own, as that is."""
    program, pid = tmp_path / "flower-supernode", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ > {pid}.new && mv {pid}.new {pid}\nexec sleep 600\n")
    program.chmod(0o755)
    with subprocess.Popen([sys.executable, "-c", NODE.replace("{program}", str(program))]) as command:
        until(pid.exists)
        supernode = psutil.Process(int(pid.read_text()))
        command.kill()
    until(lambda: not supernode.is_running() or supernode.status() == psutil.STATUS_ZOMBIE)


def test_marks_add_up(monkeypatch):
    """A node of a federation carries the federation's mark, and what it starts also its own."""
    monkeypatch.setenv(leftovers.MARK, "outer")
    assert leftovers.mark_variables("inner") == {leftovers.MARK: "outer:inner"}
