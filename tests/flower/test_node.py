"""One client of a federation over several machines: what it is given is checked before anything starts."""

import os
import socket
import stat

import pytest

pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lscl.errors import LsclError
from lscl.flower import local, node
from lscl.flower.node import checked_node


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files of a node, and values that are right."""
    monkeypatch.setattr(node, "program", lambda: "flower-supernode")
    local.write_certificates(tmp_path)
    local.write_node_key(tmp_path / "client0.key")
    return {
        "client": 0,
        "link": "localhost:8000",
        "authority": tmp_path / "ca.crt",
        "key": tmp_path / "client0.key",
        "port": local.free_port(),
    }


def written(path, key):
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return path


def test_a_node_that_is_right_is_taken(files):
    assert checked_node(files).client == 0
    for link in ("127.0.0.1:1", "[::1]:65535", "server.example.org:8000"):
        assert checked_node({**files, "link": link}).link == link


@pytest.mark.parametrize(
    "link",
    [
        "",
        "localhost",
        "localhost:",
        ":8000",
        "localhost:0",
        "localhost:65536",
        "https://a:8000",
        "a b:1",
        "localhost:１",
    ],
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
    with socket.create_server((node.LOOPBACK, files["port"])), pytest.raises(LsclError) as caught:
        checked_node(files)
    one_line(caught, f"port = {files['port']}")


def test_a_node_tightens_what_an_earlier_version_left(tmp_path, monkeypatch):
    monkeypatch.setenv("LSCL_PRIVATE", str(tmp_path / "private"))
    state, other = (tmp_path / "private" / "run" / name for name in ("client0/000003.safetensors", "notes/text"))
    for path in (state, other):
        path.parent.mkdir(parents=True)
        path.touch()
        path.chmod(0o644)
    (tmp_path / "private").chmod(0o755)
    node.restrict_private_folders()
    assert (mode(state), mode(state.parent), mode(state.parents[1])) == (0o600, 0o700, 0o700)
    assert (mode(other), mode(tmp_path / "private")) == (0o644, 0o755)  # not a client's


def test_where_processes_cannot_be_ended_one_line_says_so(monkeypatch, one_line):
    node.check_system()
    monkeypatch.delattr(os, "killpg")
    with pytest.raises(LsclError) as caught:
        node.check_system()
    one_line(caught, "system = ", "WSL", "lscl run")
