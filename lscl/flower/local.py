"""A federation on this machine: a SuperLink and its SuperNodes as processes on loopback, with new TLS and node keys."""

import datetime
import ipaddress
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from lscl import paths
from lscl.config import PLACES, Experiment
from lscl.data.store import PRIVATE_FILE, private_folder
from lscl.errors import LsclError, shorten, unknown_name
from lscl.experiments.records import Record, read_record
from lscl.experiments.run import prepare, settle_device
from lscl.federation.checkpoint import read_state
from lscl.flower import leftovers, node
from lscl.flower.messages import pack_config

APP = Path(__file__).parent / "app"
FRAME = " \n╭╮╰╯│─"  # around what Flower's commands say
BOX = ("╭", "│", "╰")  # how the lines of such a frame begin
PATIENCE = 60  # seconds for a process to start
TRACEBACK = "Traceback (most recent call last):"
OUR_ERROR = re.compile(r"lscl(?:\.\w+)*\.[A-Z]\w*: (.+)")  # how the traceback of an LsclError or a kind of it ends
PORT_TAKEN = "address already in use"  # says a SuperLink, and then that it ends


def write_certificates(folder: Path) -> None:
    """Write a certificate authority (ca.crt) and a certificate for 127.0.0.1 (server.pem, server.key) for a day."""
    now = datetime.datetime.now(datetime.UTC)

    def certificate(
        name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey
    ) -> x509.Certificate:
        subject, signed_by = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, issuer))
        new = x509.CertificateBuilder().subject_name(subject).issuer_name(signed_by).public_key(key.public_key())
        new = (
            new.serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        new = new.add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
        new = new.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        new = new.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        if name == issuer:
            usage = dict.fromkeys(
                ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
            )
            usage |= {
                "encipher_only": False,
                "decipher_only": False,
                "digital_signature": True,
                "key_cert_sign": True,
                "crl_sign": True,
            }
            new = new.add_extension(x509.KeyUsage(**usage), critical=True)
        else:
            new = new.add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(node.LOOPBACK))]), critical=False
            )
        return new.sign(signer, hashes.SHA256())

    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    (folder / "ca.crt").write_bytes(certificate("lscl", authority, "lscl", authority).public_bytes(Encoding.PEM))
    (folder / "server.pem").write_bytes(
        certificate(node.LOOPBACK, server, "lscl", authority).public_bytes(Encoding.PEM)
    )
    write_secret(folder / "server.key", server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def write_node_key(path: Path) -> None:
    """Write a SuperNode's private key to `path` and its public key next to it (.pub)."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file that only its owner can read.

    Args:
        path: where.
        data: its bytes.

    Raises:
        LsclError: a file or a link is already there; links are never followed.
    """
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, PRIVATE_FILE)) as file:
            file.write(data)
    except FileExistsError:
        raise LsclError(
            f"{path} exists already, and a key is never overwritten: remove it or use another folder"
        ) from None


def free_port() -> int:
    """A port of this machine that no process uses now."""
    with socket.socket() as one:
        one.bind((node.LOOPBACK, 0))
        return one.getsockname()[1]


@dataclass
class LocalFederation:
    """The processes of a federation.

    folder: of keys, certificates and logs; private: where the clients keep their state; track: where the server writes
    for TensorBoard, None = nowhere.
    """

    folder: Path
    private: Path
    config: Experiment
    simulation: bool = False
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)
    track: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The environment of all processes: they run in `folder`, so every path in it is absolute."""
        found = {name: getattr(self.config, name) for name in PLACES}
        places = {
            f"LSCL_{name.upper()}": str(value.resolve() if isinstance(value, Path) else value)
            for name, value in found.items()
            if value
        }
        homes = {
            "LSCL_ROOT": paths.root(),
            "LSCL_CACHE": paths.cache().resolve(),
            "LSCL_PRIVATE": self.private,
            "FLWR_HOME": self.folder / "flwr",
        }
        if self.track is not None:
            homes["LSCL_TRACK"] = self.track.absolute()
        mark = leftovers.mark_variables(self.folder.name)
        return {
            **node.environment(),
            **places,
            **{name: str(path) for name, path in homes.items()},
            **mark,
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, name: str, *command: str) -> None:
        """Start a process that writes to `name`.log."""
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_link(self, again: bool = True) -> None:
        """Start the SuperLink and wait until it answers.

        Args:
            again: if another process has taken the port since it was chosen, try once more with a new one.

        Raises:
            LsclError: it ends, or does not answer in time.
        """
        files = {"--ssl-ca-certfile": "ca.crt", "--ssl-certfile": "server.pem", "--ssl-keyfile": "server.key"}
        tls = [word for option, file in files.items() for word in (option, str(self.folder / file))]
        safe = ["--insecure", "--simulation"] if self.simulation else [*tls, "--enable-supernode-auth"]
        self.start("superlink", "flower-superlink", *safe, "--host", node.LOOPBACK, "--port", str(self.port))
        home = self.folder / "flwr"
        home.mkdir(exist_ok=True)
        security = "insecure = true" if self.simulation else f'root-certificates = "{self.folder / "ca.crt"}"'
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{node.LOOPBACK}:{self.port}"\n{security}\n',
            encoding="utf-8",
        )
        scheme, end = "http" if self.simulation else "https", time.monotonic() + PATIENCE
        trust = True if self.simulation else ssl.create_default_context(cafile=self.folder / "ca.crt")
        while time.monotonic() < end and self.processes["superlink"].poll() is None:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{scheme}://{node.LOOPBACK}:{self.port}/health", verify=trust).is_success:
                    return
            time.sleep(0.2)
        ended = self.processes["superlink"].poll()
        if again and ended is not None and PORT_TAKEN in self.last_lines("superlink", 50):
            self.port = free_port()
            return self.start_link(again=False)
        why = self.last_lines("superlink") or (f"no answer in {PATIENCE} s" if ended is None else f"exit code {ended}")
        raise LsclError(f"the SuperLink did not start: {why}")

    def flwr(self, *words: str) -> str:
        """Run one command of Flower's own and return its output.

        Raises:
            LsclError: it failed.
        """
        done = subprocess.run(
            ["flwr", *words], env=self.environment, cwd=self.folder, capture_output=True, encoding="utf-8"
        )
        if done.returncode != 0:
            raise LsclError(f"flwr {words[0]}: {' '.join((done.stdout + done.stderr).split())[-500:]}")
        return done.stdout

    def register(self, client: int) -> None:
        """Make a key for the node of a client and register it with the SuperLink."""
        write_node_key(self.folder / f"client{client}.key")
        self.flwr(
            "supernode", "register", str(self.folder / f"client{client}.pub"), "here", "--name", f"client{client}"
        )

    def start_node(self, client: int, link: int | None = None) -> None:
        """Start the node of a client.

        Args:
            client: its number, from 0.
            link: port of the SuperLink, or of a proxy in front of it; None = the SuperLink's own.
        """
        self.start(
            f"client{client}", sys.executable, "-m", "lscl.cli", "node", "--client", str(client),
            "--link", f"{node.LOOPBACK}:{link or self.port}", "--authority", str(self.folder / "ca.crt"),
            "--key", str(self.folder / f"client{client}.key"), "--port", str(free_port()),
        )  # fmt: skip

    def run(self, settings: Mapping[str, float], show: Callable[[str], None]) -> Record:
        """Hand the run to the SuperLink, as `submit` does.

        Args:
            settings: the rules of the run, by Flower's names.
            show: called with every line that Flower or the server writes.

        Returns:
            the record that the server writes.
        """
        nodes = f"num-supernodes={self.config.clients} client-resources-num-cpus={self.config.cpu_threads}"
        more = ["--federation-config", nodes] if self.simulation else []
        return submit(self.config, settings, show, "here", self.environment, more, self.folder)

    def last_lines(self, name: str, count: int = 1) -> str:
        """The end of a process's log.

        Args:
            name: of the process.
            count: how many lines.

        Returns:
            the lines with spaces between them.
        """
        return " ".join(
            (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").split("\n")[-count - 1 :]
        ).strip()

    def stop(self, *names: str) -> None:
        """End processes that were started here, and all that they started; all of them if none is named."""
        started = [self.processes.pop(name) for name in names or list(self.processes)]
        ending = [process for one in started for process in session_processes(one.pid)]
        for step in (psutil.Process.terminate, psutil.Process.kill):
            for process in ending:
                with suppress(psutil.NoSuchProcess):
                    step(process)
            _, ending = psutil.wait_procs(ending, timeout=10)
        for one in started:
            one.wait()


def check_simulation() -> None:
    """Refuse a simulation if Ray cannot use the path of this Python, which it hands to a shell without quotes.

    Raises:
        LsclError: the path has a blank or another character that a shell would interpret.
    """
    if shlex.quote(sys.executable) != sys.executable:
        raise LsclError(
            f"simulation: Ray cannot start {sys.executable!r}, whose path has a blank or another special character: "
            "leave out --simulation, or install the package in an environment without one"
        )


def session_processes(pid: int) -> list[psutil.Process]:
    """The leader of a process session, its children, and the processes that ended children have left in the session."""
    found = []
    with suppress(psutil.NoSuchProcess):
        found += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in psutil.process_iter():
        with suppress(ProcessLookupError):
            found += [process] if os.getsid(process.pid) == pid and process not in found else []
    return found


def check_link(link: str) -> None:
    """Look a SuperLink up in Flower's configuration.

    Raises:
        LsclError: it is not there, or the configuration cannot be read.
    """
    path = Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr")) / "config.toml"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {})
        names = [name for name, connection in found.items() if isinstance(connection, dict)]
    except (OSError, ValueError, AttributeError) as error:
        raise LsclError(f"link = {link!r}: cannot read Flower's configuration {path}: {error}") from None
    if link not in names:
        raise unknown_name(f"SuperLink in {path}", link, names)


def error_in(line: str) -> str:
    """What an LsclError says, or a kind of it, whose traceback ends with a line; empty for any other line."""
    found = OUR_ERROR.fullmatch(line.strip())
    return found[1] if found else ""


def submit(
    config: Experiment,
    settings: Mapping[str, float],
    show: Callable[[str], None],
    link: str,
    variables: Mapping[str, str],
    more: Sequence[str] = (),
    folder: Path | None = None,
) -> Record:
    """Hand a run to a SuperLink and wait for its end.

    An earlier record of the run stays until the server writes the new one in its place.

    Args:
        config: the run.
        settings: the rules of the run, by Flower's names.
        show: called with every line that Flower or the server writes, but for a framed one: it goes into the error.
        link: the name of the SuperLink in Flower's configuration.
        variables: the environment of Flower's command.
        more: further arguments of the command.
        folder: for the file with the run's config; None = the system's temporary one.

    Returns:
        the record that the server writes.

    Raises:
        LsclError: the run did not finish; its finished rounds are kept.
    """
    config = settle_device(config, read_state(paths.results() / "federation" / "state" / config.name))
    path, why, said = paths.results() / "federation" / "runs" / f"{config.name}.json", "", []
    failed, in_traceback = "", False  # failed: the end of the last traceback of another error
    before = _written(path)
    with tempfile.NamedTemporaryFile("w", suffix=".toml", dir=folder, encoding="utf-8") as file:
        file.write(
            "".join(
                f"{name} = {json.dumps(value)}\n"
                for name, value in {"experiment": pack_config(config), **settings}.items()
            )
        )
        file.flush()
        command = ["flwr", "run", str(APP), link, "--stream", "--run-config", file.name, *more]
        pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
        with subprocess.Popen(command, env=variables, **pipes) as process:
            try:
                for line in process.stdout:
                    framed = line.lstrip().startswith(BOX)
                    if not framed:
                        show(line.rstrip())
                    why = error_in(line) or why
                    if in_traceback and line[:1].strip():  # it ends with the first line that is not indented
                        failed, in_traceback = line.strip(), False
                    in_traceback = in_traceback or TRACEBACK in line
                    if text := line.strip(FRAME):
                        said = [*said, text] if line.lstrip().startswith("│") else [text]
            finally:
                process.terminate()
    if _written(path) == before:
        raise LsclError(
            why
            or f"{config.name} came to no end ({shorten(failed or ' '.join(said))}); the same command goes on after "
            "the last finished round"
        )
    return read_record(path)


def _written(path: Path) -> int | None:
    """When a file was written, in nanoseconds; None if there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


@contextmanager
def federation(
    folder: Path,
    private: Path,
    config: Experiment,
    simulation: bool = False,
    link: Callable[[int], int] = lambda port: port,
    track: Path | None = None,
) -> Iterator[LocalFederation]:
    """A SuperLink and, unless Flower simulates them, a SuperNode for each client; all end with the `with` block.

    Args:
        folder: for keys, certificates and logs.
        private: where the clients keep their state.
        config: the run.
        simulation: let Flower simulate the clients.
        link: maps the SuperLink's port to the one that the nodes connect to.
        track: folder for TensorBoard; None = nothing is written.

    Yields:
        the running processes.

    Raises:
        LsclError: the SuperLink does not start, or refuses a node.
    """
    local = LocalFederation(folder, private, config, simulation, track=track)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running then, either
    try:
        if not simulation:
            write_certificates(folder)
        local.start_link()
        port = link(local.port)
        for k in range(0 if simulation else config.clients):
            local.register(k)
            local.start_node(k, port)
        yield local
    finally:
        local.stop()
        signal.signal(signal.SIGTERM, before)


def federate_locally(
    config: Experiment,
    simulation: bool,
    settings: Mapping[str, float],
    show: Callable[[str], None],
    track: Path | None = None,
) -> Record:
    """One run over processes of this machine, resuming after its last finished round.

    Keys and logs go to a temporary folder, the state of server and clients to results/federation/state/ until the run
    is finished. A command that is killed leaves no process and no key, see `leftovers`.

    Args:
        config: the run.
        simulation: let Flower simulate the clients.
        settings: the rules of the run, by Flower's names.
        show: called with every line that Flower or the server writes.
        track: folder for TensorBoard, which shows the run while it goes on; None = nothing is written.

    Returns:
        its record.

    Raises:
        LsclError: as `submit`, `node.check_system` and `check_simulation`.
    """
    node.check_system()
    if simulation:
        check_simulation()
    state = paths.results() / "federation" / "state"
    private, config = state / f"{config.name}-private", settle_device(config, read_state(state / config.name))
    prepare(config)  # once here, so that the nodes find images and prefix activations on the disk
    private.parent.mkdir(parents=True, exist_ok=True)
    private_folder(private)
    with leftovers.key_folder() as folder, federation(folder, private, config, simulation, track=track) as local:
        record = local.run(settings, show)
    shutil.rmtree(private, ignore_errors=True)
    return record
