"""The process that stays on a client's machine: Flower's SuperNode, started again whenever it ends."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from lscl import paths
from lscl.data.store import private_folder
from lscl.errors import LsclError
from lscl.flower.rules import validate_values

# Flower reports usage, looks for updates and installs packages while it runs, unless it is told not to.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
LOOPBACK = "127.0.0.1"
RESTART_DELAY = 5  # seconds before a SuperNode that ended is started again


def check_system() -> None:
    """Refuse to start Flower's processes on a system where this package could not end them again.

    Raises:
        LsclError: this is neither Linux nor macOS.
    """
    if not hasattr(os, "killpg"):
        raise LsclError(
            f"system = {sys.platform}: a federation of processes starts on Linux and macOS; on Windows use WSL, the "
            "Windows Subsystem for Linux, or lscl run, which computes the same in one process"
        )


def environment() -> dict[str, str]:
    """The environment of Flower's programs: a quiet Flower, and a path to its other programs beside this Python."""
    return {**os.environ, **QUIET, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


class Node(BaseModel):
    """One client of a federation over several machines."""

    model_config = ConfigDict(frozen=True)

    client: int = Field(ge=0, le=10**6, description="the client's number, from 0")
    link: str = Field(description="host:port of the SuperLink")
    authority: Path = Field(description="certificate of the authority that signed the SuperLink's")
    key: Path = Field(description="private key of this node; its public key is registered as client0, client1, ...")
    port: int = Field(9094, ge=1, le=65535, description="a port of this machine, used by the node's own processes only")


def checked_node(values: dict[str, Any]) -> Node:
    """A node whose files have been checked and whose port is free.

    Raises:
        LsclError: a file or the port cannot be used, or Flower is not installed.
    """
    node = validate_values(Node, values)
    if not re.fullmatch(r"[^\s/]+:[0-9]{1,5}", node.link) or not 0 < int(node.link.rpartition(":")[2]) < 2**16:
        raise LsclError(
            f"link = {node.link!r}: must be host:port of the SuperLink, the port 1 to 65535, "
            "for example server.example.org:8000"
        )
    for path in (node.authority, node.key):
        if not path.is_file():
            raise LsclError(f"no file {path}")
    if program() is None:
        raise LsclError("no program flower-supernode: lscl node needs the extra flower, pip install 'fed-lscl[flower]'")
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        x509.load_pem_x509_certificates(node.authority.read_bytes())
    except ValueError:
        raise LsclError(f"authority = {str(node.authority)!r}: no certificate in PEM format, such as ca.crt") from None
    try:
        fits = isinstance(load_ssh_private_key(node.key.read_bytes(), None), EllipticCurvePrivateKey)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise LsclError(
            f"key = {str(node.key)!r}: no private key in OpenSSH's format without a passphrase ({error})"
        ) from None
    if not fits:
        raise LsclError(f"key = {str(node.key)!r}: not of an elliptic curve; ssh-keygen -t ecdsa -b 384 makes one")
    try:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((LOOPBACK, node.port))
    except OSError as error:
        raise LsclError(f"port = {node.port}: {error.strerror} on this machine; give another with --port") from None
    return node


def program() -> str | None:
    """The path of Flower's SuperNode; None if it is not installed."""
    return shutil.which("flower-supernode", path=environment()["PATH"])


def restrict_private_folders() -> None:
    """Let only the owner read the clients' state on this machine, including that of earlier versions and runs."""
    for folder in {path.parent for path in paths.private().glob("*/client*/*.safetensors")}:
        private_folder(private_folder(folder.parent) / folder.name)


def serve(node: Node) -> None:
    """Run a client's SuperNode until this process is told to end; everything that it started ends with it.

    The SuperLink refuses a node that it believes to be connected, and it notices the end of a killed one only after two
    missing heartbeats, up to a minute later. Until then a new start fails and is tried again.

    Raises:
        LsclError: as `check_system`.
    """
    check_system()
    from lscl.flower import leftovers

    restrict_private_folders()
    command = [
        program(),
        "--superlink",
        node.link,
        "--root-certificates",
        str(node.authority),
        "--auth-supernode-private-key",
        str(node.key),
    ]
    command += ["--node-config", f"client={node.client}", "--host", LOOPBACK, "--port", str(node.port)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    mark = f"lscl-node-{uuid4().hex}"
    with leftovers.watchdog(mark):
        while True:
            with subprocess.Popen(
                command, env={**environment(), **leftovers.mark_variables(mark)}, start_new_session=True
            ) as supernode:
                try:
                    supernode.wait()
                finally:
                    supernode.terminate()
                    supernode.wait()
                    with suppress(ProcessLookupError):  # what it started may have outlived it
                        os.killpg(supernode.pid, signal.SIGKILL)
            said = (
                f"the SuperNode of client {node.client} ended (exit code {supernode.returncode}) and is started again"
            )
            print(said, file=sys.stderr, flush=True)
            time.sleep(RESTART_DELAY)
