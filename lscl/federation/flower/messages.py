"""How an exchange travels in Flower's records: a payload is one array of bytes in safetensors' format."""

import json

import numpy as np
from flwr.app import Array, ArrayRecord
from safetensors import SafetensorError
from safetensors.torch import load

from lscl import paths
from lscl.config import PLACES, Experiment, experiment
from lscl.errors import LsclError
from lscl.federation.payload import Payload, check_size
from lscl.federation.state import as_bytes

FRAME = 2**16  # bytes that names, shapes and types of a payload may take


def pack(payload: Payload) -> ArrayRecord:
    """A payload as a record of one array (bytes,) of uint8."""
    return ArrayRecord({"payload": Array(np.frombuffer(as_bytes(payload), np.uint8))})


def unpack(record: object, sender: str, limit: int | None = None) -> Payload:
    """The payload in a record of a message, whatever that is.

    Raises:
        LsclError: there is none, or it cannot be read, or is larger than `limit` bytes and the frame.
    """
    if not isinstance(record, ArrayRecord) or "payload" not in record:
        raise LsclError(f"payload of {sender}: there is none in the message")
    check_size(len(record["payload"].data), sender, None if limit is None else limit + FRAME)
    try:
        return load(record["payload"].numpy().tobytes())
    except (SafetensorError, ValueError, TypeError, KeyError, EOFError) as error:
        raise LsclError(f"payload of {sender}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())})") from error


def describe(config: Experiment) -> str:
    """A config as it is sent to the nodes: JSON of what is set, without the paths and devices of one machine."""
    return json.dumps(config.model_dump(mode="json", exclude=PLACES))


def understand(run_config: dict) -> Experiment:
    """The config that was sent, with the paths of this machine from LSCL_DATA_DIR, LSCL_WEIGHTS and LSCL_DEVICE.

    Raises:
        LsclError: unknown or impossible values.
    """
    places = {name: paths.variable(f"LSCL_{name.upper()}") for name in PLACES}
    return experiment(**json.loads(run_config["experiment"]), **{name: value for name, value in places.items() if value})
