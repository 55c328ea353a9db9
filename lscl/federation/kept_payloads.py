"""Payloads written to a folder as they travel, so that everybody can see what a server receives.

Each exchange of a run has a folder of its own, such as `task1-round2-train`, and in it a file per client and direction:
`client0-up.safetensors` and `client0-down.safetensors`. The files hold what the border lets through, under the names of
the payload. They are as sensitive as the payloads themselves, so only their owner can read them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load, save

from lscl.data.store import PRIVATE_FILE, private_folder, read_regular, write_atomic
from lscl.errors import LsclError, first_line
from lscl.federation.loop import Transport
from lscl.federation.method import Stage
from lscl.federation.payload import Payload

LARGEST_PAYLOAD = 2**33  # bytes of a file
Direction = Literal["up", "down"]


def payload_path(folder: Path, stage: Stage, client: int, direction: Direction) -> Path:
    """The path of a kept payload.

    Args:
        folder: of the run.
        stage: the exchange.
        client: number of the client.
        direction: up = what the client sends, down = what it gets.

    Returns:
        The path of its file.
    """
    exchange = f"task{stage.task + 1}-round{stage.round + 1}-{stage.name}"
    return folder / exchange / f"client{client}-{direction}.safetensors"


@dataclass
class PayloadKeeper:
    """A transport that writes whatever another one carries, and changes nothing.

    Args:
        transport: carries the exchanges.
        folder: of the run.
    """

    transport: Transport
    folder: Path

    def ask(self, stage: Stage, downloads: Mapping[int, Payload]) -> Mapping[int, Payload | LsclError]:
        """Carry one exchange and write it.

        Args:
            stage: the exchange.
            downloads: {client: payload}.

        Returns:
            {client: its answer, or the error that explains why there is none}.

        Raises:
            LsclError: the disk is full, or the folder cannot be written.
        """
        for client, payload in downloads.items():
            self._write(payload, stage, client, "down")
        answers = self.transport.ask(stage, downloads)
        for client, payload in answers.items():
            if not isinstance(payload, LsclError):
                self._write(payload, stage, client, "up")
        return answers

    def _write(self, payload: Payload, stage: Stage, client: int, direction: Direction) -> None:
        path = payload_path(self.folder, stage, client, direction)
        try:
            private_folder(path.parent)
        except OSError as error:
            raise LsclError(f"cannot write {path.parent}: {error.strerror or error}") from error
        plain = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in payload.items()}
        write_atomic(path, save(plain), PRIVATE_FILE)


def read_payload(folder: Path, stage: Stage, client: int, direction: Direction) -> Payload:
    """Read a payload that was kept.

    Args:
        folder: of the run.
        stage: the exchange.
        client: number of the client.
        direction: up or down.

    Returns:
        {name: tensor}.

    Raises:
        LsclError: it was not kept, or the file is damaged.
    """
    path = payload_path(folder, stage, client, direction)
    try:
        return load(read_regular(path, LARGEST_PAYLOAD))
    except (OSError, ValueError, SafetensorError) as error:
        raise LsclError(f"cannot read the payload {path}: {first_line(error)}") from error


def lacks_payloads(folder: Path, stages: list[Stage], clients: int) -> list[Stage]:
    """The exchanges whose payloads are not all there.

    Args:
        folder: of the run.
        stages: the exchanges that should be there.
        clients: number of clients.

    Returns:
        Those of `stages` that lack a file.
    """
    return [
        stage
        for stage in stages
        if not all(
            payload_path(folder, stage, client, direction).is_file()
            for client in range(clients)
            for direction in ("up", "down")
        )
    ]
