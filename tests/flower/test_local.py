"""What is made and checked before a federation starts: its rules, the SuperLink's name, a node's files, keys."""

import os
import socket
import stat

import pytest

pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lscl import cli
from lscl.config import experiment
from lscl.data.store import private_folder
from lscl.errors import LsclError
from lscl.flower import local, node
from lscl.flower.node import checked_node
from lscl.flower.rules import rules


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
    "words", [("--min-clients", "4"), ("--timeout", "nan"), ("--timeout", "inf"), ("--max-mb", "nan"), ("--max-mb", "inf"), ("--link", "nosuch")]
)
def test_wrong_options_stop_the_command_before_anything_starts(words, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        cli.main(["federate", "--profile", "smoke", *words])
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == "" and len(said.err.splitlines()) == 1 and words[0][2:] in said.err
    assert list(tmp_path.iterdir()) == [tmp_path / "root"] * (tmp_path / "root").exists()


def test_the_server_takes_no_other_rules_from_flower_either(one_line):
    """`flwr run` can be called by hand, with any run config."""
    config = experiment(profile="smoke")
    given = {"experiment": "{}", "min-clients": 2, "timeout": 5.0, "max-mb": 1.0}
    assert rules(config, given).min_clients == 2
    for name, value in (("min-clients", 4), ("timeout", float("nan")), ("max-mb", float("inf")), ("max-mb", "much")):
        with pytest.raises(LsclError) as caught:
            rules(config, given | {name: value})
        one_line(caught, f"{name} = ")


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


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files of a node, and values that are right."""
    monkeypatch.setattr(node, "program", lambda: "flower-supernode")
    local.certificates(tmp_path)
    local.node_key(tmp_path / "client0.key")
    return {"client": 0, "link": "localhost:8000", "authority": tmp_path / "ca.crt", "key": tmp_path / "client0.key", "port": local.free_port()}


def written(path, key):
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return path


def test_a_node_that_is_right_is_taken(files):
    assert checked_node(files).client == 0
    for link in ("127.0.0.1:1", "[::1]:65535", "server.example.org:8000"):
        assert checked_node({**files, "link": link}).link == link


@pytest.mark.parametrize(
    "link", ["", "localhost", "localhost:", ":8000", "localhost:0", "localhost:65536", "https://a:8000", "a b:1", "localhost:１"]
)
def test_a_link_is_host_and_port(files, link, one_line):
    with pytest.raises(LsclError) as caught:
        checked_node({**files, "link": link})
    one_line(caught, "link = ", "host:port")


@pytest.mark.parametrize(("name", "value"), [("client", -1), ("client", 10**30), ("port", 0), ("port", 65536)])
def test_numbers_of_a_node_have_bounds(files, name, value, one_line):
    with pytest.raises(LsclError) as caught:
        checked_node({**files, name: value})
    one_line(caught, f"{name} = {value}")


def test_files_of_a_node_are_what_they_should_be(files, tmp_path, one_line):
    text, empty = tmp_path / "text", tmp_path / "empty"
    text.write_text("no key")
    empty.touch()
    wrong = [("authority", files["key"]), ("authority", text), ("authority", empty), ("authority", tmp_path)]
    wrong += [("key", files["authority"]), ("key", text), ("key", empty), ("key", tmp_path / "none")]
    wrong += [("key", written(tmp_path / "ed", ed25519.Ed25519PrivateKey.generate()))]
    for name, path in wrong:
        with pytest.raises(LsclError) as caught:
            checked_node({**files, name: path})
        one_line(caught, path)


def test_a_port_in_use_is_said_at_once(files, one_line):
    with socket.create_server((local.HOST, files["port"])), pytest.raises(LsclError) as caught:
        checked_node(files)
    one_line(caught, f"port = {files['port']}")


# ---- what only the owner can read


def test_keys_are_new_files_that_only_the_owner_can_read(tmp_path):
    before = os.umask(0)
    try:
        local.certificates(tmp_path)
        local.node_key(tmp_path / "client0.key")
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
        local.secret(path, b"secret")
    one_line(caught, path, "is there already")
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


def test_a_node_tightens_what_an_earlier_version_left(tmp_path, monkeypatch):
    monkeypatch.setenv("LSCL_PRIVATE", str(tmp_path / "private"))
    state, other = (tmp_path / "private" / "run" / name for name in ("client0/000003.safetensors", "notes/text"))
    for path in (state, other):
        path.parent.mkdir(parents=True)
        path.touch()
        path.chmod(0o644)
    (tmp_path / "private").chmod(0o755)
    node.tighten()
    assert (mode(state), mode(state.parent), mode(state.parents[1])) == (0o600, 0o700, 0o700)
    assert (mode(other), mode(tmp_path / "private")) == (0o644, 0o755)  # not a client's
