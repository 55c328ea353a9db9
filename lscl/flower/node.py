"""The process that stays on a client's machine: Flower's SuperNode, started again whenever it ends."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from lscl.errors import LsclError

# Flower reports usage, looks for updates and installs packages while it runs, unless it is told not to.
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
AGAIN = 5  # seconds before a SuperNode that ended is started again


def environment() -> dict[str, str]:
    """What Flower's programs get: a quiet Flower, and its other programs, which lie beside this Python."""
    return {**os.environ, **QUIET, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def serve(client: int, link: str, authority: Path, key: Path, port: int) -> None:
    """Be client `client` of the SuperLink at `link` (host:port) until this process is told to end; port: for its own processes only.

    The SuperLink refuses a node that it believes to be there, and of one that was killed it believes that until two heartbeats are
    missing, up to a minute: until then a new start fails, and is tried again.

    Raises:
        LsclError: no such file, or no Flower.
    """
    for path in (authority, key):
        if not path.is_file():
            raise LsclError(f"no file {path}")
    program = shutil.which("flower-supernode", path=environment()["PATH"])
    if program is None:
        raise LsclError("no program flower-supernode: lscl node needs the extra flower, pip install 'lscl[flower]'")
    command = [program, "--superlink", link, "--root-certificates", str(authority), "--auth-supernode-private-key", str(key)]
    command += ["--node-config", f"client={client}", "--host", "127.0.0.1", "--port", str(port)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    while True:
        with subprocess.Popen(command, env=environment(), start_new_session=True) as node:
            try:
                node.wait()
            finally:
                node.terminate()
                node.wait()
                with suppress(ProcessLookupError):  # what it started may have outlived it
                    os.killpg(node.pid, signal.SIGKILL)
        print(f"the SuperNode of client {client} ended (exit code {node.returncode}) and is started again", file=sys.stderr, flush=True)
        time.sleep(AGAIN)
