"""How an exchange travels in Flower's records: a payload is one array of bytes in safetensors' format."""

import json
import secrets
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord
from safetensors import SafetensorError
from safetensors.torch import load

from lscl import paths
from lscl.config import PLACES, Experiment, experiment
from lscl.errors import LsclError, shorten
from lscl.federation.checkpoint import tensors_to_bytes
from lscl.federation.payload import Payload, check_size

FRAME = 2**16  # bytes that names, shapes and types of a payload may take


def ticket(client: int, exchange: int) -> dict[str, str]:
    """What a message to a client asks for; its answer must repeat it. `nonce` is drawn anew for every message."""
    return {"client": str(client), "exchange": str(exchange), "nonce": secrets.token_hex(16)}


def pack_record(payload: Payload, ticket: Mapping[str, str] | None = None) -> ArrayRecord:
    """A payload, with the ticket that it answers, as a record of one array (bytes,) of uint8."""
    return ArrayRecord({"payload": Array(np.frombuffer(tensors_to_bytes(payload, **(ticket or {})), np.uint8))})


def unpack_record(
    record: object, sender: str, limit: int | None = None, ticket: Mapping[str, str] | None = None
) -> Payload:
    """The payload in a record of a message, whatever that is.

    Raises:
        LsclError: there is none, or it cannot be read, or is larger than `limit` bytes and the frame, or answers another message than
            that of the ticket.
    """
    if not isinstance(record, ArrayRecord) or "payload" not in record:
        raise LsclError(f"payload of {sender}: there is none in the message")
    check_size(len(record["payload"].data), sender, None if limit is None else limit + FRAME)
    try:
        data = record["payload"].numpy().tobytes()
        payload, answers = load(data), written_on(data)
    except (
        SafetensorError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        OverflowError,
        RecursionError,
        MemoryError,
        RuntimeError,
    ) as error:
        raise LsclError(f"payload of {sender}: cannot be read ({type(error).__name__}: {shorten(error)})") from error
    if ticket is not None and answers != dict(ticket):
        asked, given = (f"exchange {one.get('exchange')} of client {one.get('client')}" for one in (ticket, answers))
        told = "an earlier message of it" if asked == given else shorten(given)
        raise LsclError(f"payload of {sender}: it answers {told}, asked was {asked}")
    return payload


def written_on(data: bytes) -> dict[str, str]:
    """The words in the header of safetensors' format, {} if there are none."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__") or {}


def describe(config: Experiment) -> str:
    """A config as it is sent to the nodes: JSON of what is set, without the paths and devices of one machine."""
    return json.dumps(config.model_dump(mode="json", exclude=PLACES))


def understand(run_config: dict) -> Experiment:
    """The config that was sent, with the paths of this machine from LSCL_DATA_DIR, LSCL_WEIGHTS and LSCL_DEVICE.

    Raises:
        LsclError: unknown or impossible values.
    """
    places = {name: paths.variable(f"LSCL_{name.upper()}") for name in PLACES}
    return experiment(
        **json.loads(run_config["experiment"]), **{name: value for name, value in places.items() if value}
    )
