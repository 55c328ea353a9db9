"""How payloads travel as Flower messages: each is one array of bytes in safetensors' format."""

import json
import secrets
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord
from safetensors.torch import load

from lscl import paths
from lscl.config import PLACES, Experiment, experiment
from lscl.errors import LsclError, shorten
from lscl.federation.checkpoint import tensors_to_bytes
from lscl.federation.payload import Payload, check_size

FRAME = 2**16  # bytes that names, shapes and types of a payload may take


def ticket(client: int, exchange: int) -> dict[str, str]:
    """What a message to a client asks for; its answer must repeat it.

    Args:
        client: the client's number, from 0.
        exchange: the number of the exchange in the run, from 0.

    Returns:
        both as text, and a nonce, a random text that is drawn anew for every message.
    """
    return {"client": str(client), "exchange": str(exchange), "nonce": secrets.token_hex(16)}


def pack_record(payload: Payload, ticket: Mapping[str, str] | None = None) -> ArrayRecord:
    """A payload as a record of one array.

    Args:
        payload: tensors by name.
        ticket: what the payload answers; None for one from the server.

    Returns:
        a record with one array (bytes,) of uint8.
    """
    return ArrayRecord({"payload": Array(np.frombuffer(tensors_to_bytes(payload, **(ticket or {})), np.uint8))})


def unpack_record(
    record: object, sender: str, limit: int | None = None, ticket: Mapping[str, str] | None = None
) -> Payload:
    """The payload in a record of a message; everything about it is checked.

    Args:
        record: what came in the message.
        sender: names the sender in the error.
        limit: bytes of the payload, without its frame; None = any number.
        ticket: what the payload must answer; None for one from the server.

    Returns:
        tensors by name.

    Raises:
        LsclError: there is no payload, it cannot be read, is larger than the limit, or answers another message.
    """
    if not isinstance(record, ArrayRecord) or "payload" not in record:
        raise LsclError(f"payload of {sender}: the message has none")
    check_size(len(record["payload"].data), sender, None if limit is None else limit + FRAME)
    try:
        data = record["payload"].numpy().tobytes()
        payload, answers = load(data), read_metadata(data)
    except Exception as error:  # what is no payload makes numpy and safetensors raise all kinds of exceptions
        raise LsclError(f"payload of {sender}: cannot be read ({type(error).__name__}: {shorten(error)})") from error
    if ticket is not None and answers != dict(ticket):
        asked, given = (f"exchange {one.get('exchange')} of client {one.get('client')}" for one in (ticket, answers))
        told = "an earlier message" if asked == given else shorten(given)
        raise LsclError(f"payload of {sender}: it answers {told} instead of {asked}")
    return payload


def read_metadata(data: bytes) -> dict[str, str]:
    """The metadata in the header of safetensors' format; {} if there are none."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__") or {}


def pack_config(config: Experiment) -> str:
    """A config as it is sent to the nodes: JSON without the paths and devices of one machine."""
    return json.dumps(config.model_dump(mode="json", exclude=PLACES))


def unpack_config(run_config: dict) -> Experiment:
    """The config that was sent, with this machine's paths and device (LSCL_DATA_DIR, LSCL_WEIGHTS, LSCL_DEVICE).

    Raises:
        LsclError: unknown or impossible values.
    """
    places = {name: paths.variable(f"LSCL_{name.upper()}") for name in PLACES}
    return experiment(
        **json.loads(run_config["experiment"]), **{name: value for name, value in places.items() if value}
    )
