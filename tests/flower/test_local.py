"""What is made and checked before a federation starts: its rules, the SuperLink's name, a node's files, keys."""

import os
import shutil
import socket
import stat
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")

from lscl import cli
from lscl.config import experiment
from lscl.data.store import private_folder
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.run import run
from lscl.flower import local
from lscl.flower.node import LOOPBACK

SUBMIT = local.submit


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch):
    """A check that comes too late would start something."""

    def started(*_, **__):
        raise AssertionError("something was started")

    for name in ("prepare", "submit", "federation"):
        monkeypatch.setattr(local, name, started)


@pytest.mark.parametrize(
    "words",
    [
        ("--min-clients", "4"),
        ("--timeout", "nan"),
        ("--timeout", "inf"),
        ("--max-mb", "nan"),
        ("--max-mb", "inf"),
        ("--link", "nosuch"),
        ("--track", "board", "--link", "here"),
        ("--set", "rounds"),
    ],
)
def test_wrong_options_stop_the_command_before_anything_starts(words, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        cli.main(["federate", "--profile", "smoke", *words])
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == "" and len(said.err.splitlines()) == 1 and words[0][2:] in said.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("python", ["/home/a b/bin/python", "/home/it's/bin/python", "/home/a;b/bin/python"])
def test_a_simulation_by_a_python_that_ray_cannot_start_is_refused(python, monkeypatch, capsys):
    monkeypatch.setattr("sys.executable", python)
    with pytest.raises(SystemExit) as end:
        cli.main(["federate", "--profile", "smoke", "--simulation"])
    said = capsys.readouterr()
    assert end.value.code == 2 and len(said.err.splitlines()) == 1 and "leave out --simulation" in said.err
    with pytest.raises(AssertionError, match="something was started"):  # processes do without Ray
        cli.main(["federate", "--profile", "smoke"])


PANEL = """\
🎊 Successfully started run 7
╭─ Error ──────────────────────────────────────╮
│ Connection to the SuperLink is unavailable.  │
│ Please check your network connection.        │
╰──────────────────────────────────────────────╯
"""


@pytest.fixture
def flwr(tmp_path, monkeypatch):
    """flwr(text, script): put a program in the place of Flower's command; it writes a text and does what is said."""

    def make(text, script):
        program = tmp_path / "flwr"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return make


def test_a_run_that_flower_ends_says_all_of_flowers_last_words(places, flwr, one_line):
    flwr(PANEL, "exit 1")
    shown = []
    with pytest.raises(LsclError) as caught:
        SUBMIT(experiment(profile="smoke"), {}, shown.append, "here", dict(os.environ))
    words = "(Error Connection to the SuperLink is unavailable. Please check your network connection.)"
    one_line(caught, f"came to no end {words}; the same command goes on")
    assert shown == ["🎊 Successfully started run 7"]


TRACEBACK = """\
ERROR :     ServerApp raised an exception
Traceback (most recent call last):
  File "server_app.py", line 41, in main
    with claim(state, wait=False):
{}
ERROR :     Exit Code: 201
An unhandled exception occurred in the ServerApp.
For more information, visit: <https://flower.ai/docs/201>
"""


@pytest.mark.parametrize(
    "kind",
    [
        "errors.LsclError",
        "errors.RejectedPayload",
        "errors.MissingFile",
        "experiments.records.UnregisteredSystem",
        "experiments.run.RunBusy",
    ],
)
def test_the_reason_is_what_the_servers_error_says_whichever_kind_it_is(places, flwr, kind):
    flwr(TRACEBACK.format(f"lscl.{kind}: smoke--1: another process is at it"), "exit 1")
    with pytest.raises(LsclError) as caught:
        SUBMIT(experiment(profile="smoke"), {}, lambda line: None, "here", dict(os.environ))
    assert str(caught.value) == "smoke--1: another process is at it"


def test_of_any_other_error_the_end_of_the_traceback_is_the_reason(places, flwr, one_line):
    flwr(TRACEBACK.format("OSError: [Errno 28] No space left on device"), "exit 1")
    with pytest.raises(LsclError) as caught:
        SUBMIT(experiment(profile="smoke"), {}, lambda line: None, "here", dict(os.environ))
    one_line(caught, "came to no end (OSError: [Errno 28] No space left on device); the same command goes on")


def test_the_command_shows_the_servers_error_whichever_kind_it_is(monkeypatch, capsys):
    busy = "lscl.experiments.run.RunBusy: smoke--1: another process is at it"

    def federate(config, simulation, settings, show, track):
        for line in ("INFO :      lscl.flower is there", busy, "round 1: lscl.py: 3"):
            show(line)
        raise LsclError("ended")

    monkeypatch.setattr(local, "federate_locally", federate)
    with pytest.raises(SystemExit):
        cli.main(["federate", "--profile", "smoke"])
    assert capsys.readouterr().err.splitlines() == [busy, "lscl: ended"]


def test_the_record_of_an_earlier_run_stays_until_there_is_a_new_one(smoke, places, flwr, one_line):
    config = smoke(method="local_head", rounds=1)
    run(config, quiet=True)
    made, path = records.folder("smoke") / f"{config.name}.json", places / "results" / "federation" / "runs"
    path.mkdir(parents=True)
    path = path / made.name
    shutil.copy(made, path)
    flwr(PANEL, "exit 1")
    with pytest.raises(LsclError) as caught:
        SUBMIT(config, {}, lambda line: None, "far", dict(os.environ))
    one_line(caught, "came to no end", "Connection to the SuperLink")
    assert path.read_bytes() == made.read_bytes()
    flwr("", f"cp '{made}' '{path}.new' && mv '{path}.new' '{path}'")
    assert SUBMIT(config, {}, lambda line: None, "far", dict(os.environ))["name"] == config.name


def test_a_superlink_that_ends_without_a_word_has_an_exit_code(tmp_path, monkeypatch, one_line):
    made = local.LocalFederation(tmp_path, tmp_path, experiment(profile="smoke"), simulation=True)
    start = made.start
    monkeypatch.setattr(made, "start", lambda name, *command: start(name, "sh", "-c", "kill -9 $$"))
    with pytest.raises(LsclError) as caught:
        made.start_link()
    one_line(caught, "the SuperLink did not start: exit code -9")


def test_a_port_that_another_process_has_taken_is_chosen_anew_once(tmp_path, monkeypatch, one_line):
    made, ports = local.LocalFederation(tmp_path, tmp_path, experiment(profile="smoke"), simulation=True), []
    start, says = made.start, "echo bind on address: address already in use; echo that is all; exit 1"

    def start_in_vain(name, *command):
        ports.append(int(command[-1]))
        start(name, "sh", "-c", says)

    monkeypatch.setattr(made, "start", start_in_vain)
    with socket.socket() as other, pytest.raises(LsclError) as caught:
        other.bind((LOOPBACK, made.port))
        made.start_link()
    one_line(caught, "the SuperLink did not start: that is all")
    assert len(set(ports)) == len(ports) == 2 and made.port == ports[1]
    assert f":{made.port}" in (tmp_path / "flwr" / "config.toml").read_text(encoding="utf-8")


def test_the_servers_process_learns_where_tensorboards_files_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for track, told in ((None, None), (Path("board"), str(tmp_path / "board"))):
        made = local.LocalFederation(tmp_path, tmp_path, experiment(profile="smoke"), track=track)
        assert made.environment.get("LSCL_TRACK") == told


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "cannot read Flower's configuration"),
        ("[superlink", "cannot read Flower's configuration"),
        ("superlink = 3", "cannot read Flower's configuration"),
        ('[superlink]\ndefault = "here"\n[superlink.here]\naddress = "a:1"', "did you mean 'here'?"),
    ],
)
def test_a_link_must_stand_in_flowers_configuration(config, says, tmp_path, monkeypatch, one_line):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    if config:
        (tmp_path / "config.toml").write_text(config)
    with pytest.raises(LsclError) as caught:
        local.check_link("her")
    one_line(caught, says)
    if "here" in says:
        local.check_link("here")


# ---- what only the owner can read


def test_keys_are_new_files_that_only_the_owner_can_read(tmp_path):
    before = os.umask(0)
    try:
        local.write_certificates(tmp_path)
        local.write_node_key(tmp_path / "client0.key")
    finally:
        os.umask(before)
    assert mode(tmp_path / "server.key") == mode(tmp_path / "client0.key") == 0o600


@pytest.mark.parametrize("there", ["file", "link", "dangling link"])
def test_a_key_never_goes_into_what_is_there_already(tmp_path, there, one_line):
    path, other = tmp_path / "client0.key", tmp_path / "other"
    if there != "dangling link":
        other.write_text("open to all")
        other.chmod(0o644)
    other.rename(path) if there == "file" else path.symlink_to(other)
    with pytest.raises(LsclError) as caught:
        local.write_secret(path, b"secret")
    one_line(caught, path, "exists already")
    assert path.read_text() == "open to all" if there != "dangling link" else not other.exists()


def test_private_folders_are_made_and_tightened(tmp_path):
    folder, outside = tmp_path / "a" / "b", tmp_path / "outside"
    outside.touch()
    outside.chmod(0o644)
    private_folder(folder)
    assert mode(folder) == mode(folder.parent) == 0o700
    (folder / "state").touch()
    (folder / "link").symlink_to(outside)
    folder.chmod(0o755)
    (folder / "state").chmod(0o644)
    private_folder(folder)
    assert (mode(folder), mode(folder / "state"), mode(outside)) == (0o700, 0o600, 0o644)
