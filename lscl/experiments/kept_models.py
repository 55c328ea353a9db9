"""The models that a run ends with, kept on request: one safetensors file and one JSON card next to the record.

What is kept is what the clients are tested with at the end of the last task, before they do whatever follows a task.
`lscl.experiments.prediction` reads it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lscl.data.partition import Partition
from lscl.data.store import Dataset, digest_of, read_regular, write_atomic
from lscl.errors import LsclError, first_line, make_printable
from lscl.experiments import records
from lscl.experiments.rounding import final_accuracies
from lscl.federation.checkpoint import tensors_to_bytes
from lscl.federation.client import Client
from lscl.federation.method import Method
from lscl.federation.metrics import MASKS
from lscl.registry import code_of

SCHEMA = "lscl model 1"
ENDING = ".safetensors"
PROBES = 4  # images by which a file is compared with what it was made from
LARGEST_CARD = 2**24  # bytes
LARGEST_MODEL = 2**32  # bytes


class ModelCard(BaseModel):
    """What a file of models is, and how to read it."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="forbid")
    schema_: Literal[SCHEMA] = Field(alias="schema")
    name: records.Text
    config: dict[str, Any]
    classes: list[Annotated[str, Field(max_length=1000)]]
    tasks: list[list[list[records.Count]]]  # labels by client and task
    bytes: Annotated[int, Field(gt=0, le=LARGEST_MODEL)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    same_as: dict[str, str]  # tensors that are equal to one in the file: its name there
    accuracy: dict[Literal[MASKS], records.Percent]
    equal_to_record: bool
    data_digest: records.Digest
    partition_digest: records.Digest
    weights_digest: records.Digest | None
    system_digest: records.Digest | None
    device: Literal["cpu", "cuda"]
    finished: records.Text
    code_digest: records.Digest
    hardware: records.Hardware
    versions: dict[records.Text, records.Text]


@dataclass
class ModelKeeper:
    """Copies what every client is tested with at the end of a run; its `keep` is told of each test (`training.answer`).

    The server is copied with the first client: during a test nothing of it changes.

    Args:
        tensors: {name: tensor} of server and clients: "server.NAME", "client0.model.NAME", "client0.state.NAME"; empty
            before the last test.
        probes: by client the first test images of its last task, (n, H, W, 3) uint8, and what it sees there, (n, C).
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    probes: dict[int, tuple[np.ndarray, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def keep(self, method: Method, client: Client) -> None:
        """Copy a client if this is the last test; neither it nor any draw changes.

        Args:
            method: the system.
            client: a client that is about to be tested.
        """
        if client.task + 1 < method.config.tasks_run:
            return
        if not self.tensors:
            self.tensors |= _copies("server", method.server)
        self.tensors |= _copies(f"client{client.id}", client.private_state())
        client.model.eval()
        index = client.test_index(client.task)[:PROBES]
        with torch.random.fork_rng():
            seen = method.logits(client, client.test.batch(index)).cpu()
        self.probes[client.id] = np.array(client.test.images.images[index.numpy()]), seen


def _copies(part: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{name}": value.detach().to("cpu", copy=True) for name, value in values.items()}


def model_path(record: Mapping[str, Any]) -> Path:
    """The path of a record's kept models.

    Args:
        record: as `records.read_record` gives it.

    Returns:
        the path of the safetensors file; its card has the same name with .json.
    """
    return records.folder(record["profile"], record["dirty"]) / "models" / f"{record['name']}{ENDING}"


def is_kept(record: Mapping[str, Any]) -> bool:
    """Whether the models of this record are next to it."""
    path = model_path(record)
    try:
        card = read_card(path)
        return (card.name, card.finished) == (record["name"], record["finished"]) and bool(read_tensors(path, card))
    except LsclError:
        return False


def write_models(
    record: Mapping[str, Any],
    made: Mapping[str, Any],
    method: Method,
    data: Dataset,
    parts: Partition,
    kept: Mapping[str, Tensor],
) -> Path:
    """Write what a `ModelKeeper` has, the card last.

    Args:
        record: the record next to which it belongs.
        made: the record of the run that the models are from: the same one, or one that was computed later.
        method: the system.
        data: its images.
        parts: how they were dealt to the clients.
        kept: the tensors.

    Returns:
        the path of the safetensors file.

    Raises:
        LsclError: the models are larger than what is read again, or the files cannot be written.
    """
    path, stored, same_as = model_path(record), {}, {}
    first: dict[str, str] = {}
    for name, value in kept.items():
        known = first.setdefault(digest_of(str((value.dtype, value.shape)).encode(), _bytes_of(value)), name)
        if known == name:
            stored[name] = value
        else:
            same_as[name] = known
    written = tensors_to_bytes(stored, lscl=SCHEMA)  # of several entries the order would be random
    if len(written) > LARGEST_MODEL:
        raise LsclError(f"cannot keep the models of {record['name']}: {len(written)} bytes, at most {LARGEST_MODEL}")
    config = method.config
    card = {
        "schema": SCHEMA,
        "name": record["name"],
        "config": {**config.values_read(), "threads": config.cpu_threads},
        "classes": [make_printable(name, 1000) for name in data.classes],
        "tasks": [[list(task.classes) for task in stream[: config.tasks_run]] for stream in parts.tasks],
        "bytes": len(written),
        "sha256": hashlib.sha256(written).hexdigest(),
        "same_as": same_as,
        "accuracy": {mask: round(value, 4) for mask, value in final_accuracies(made).items()},
        "equal_to_record": made["accuracy"] == record["accuracy"],
        "data_digest": data.digest,
        "partition_digest": parts.digest,
        "weights_digest": method.foundation.digest if method.foundation else None,
        "system_digest": code_of(config.method),
        "device": made["device"],
        "finished": record["finished"],
        "code_digest": made["code_digest"],
        "hardware": made["hardware"],
        "versions": made["versions"],
    }
    text = (json.dumps(card, indent=1) + "\n").encode()
    _understood(text, path.with_suffix(".json"))
    write_atomic(path, written)
    write_atomic(path.with_suffix(".json"), text)
    return path


def _bytes_of(value: Tensor) -> bytes:
    return tensors_to_bytes({"x": value})


def read_card(path: Path) -> ModelCard:
    """Read the card of a file of models.

    Args:
        path: the safetensors file.

    Returns:
        the card.

    Raises:
        LsclError: there is no card, or it is damaged.
    """
    card = path.with_suffix(".json")
    try:
        return _understood(read_regular(card, LARGEST_CARD), card)
    except (OSError, ValueError) as error:
        raise LsclError(
            f"cannot read {card}, the card of {path.name}: {getattr(error, 'strerror', None) or error}"
        ) from error


def _understood(data: bytes, card: Path) -> ModelCard:
    try:
        return ModelCard.model_validate(from_json(data, allow_inf_nan=False))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise LsclError(f"{card} is no card of kept models: {where}: {first['msg']}"[:500]) from error
    except (ValueError, RecursionError) as error:
        raise LsclError(f"{card} is no card of kept models: no valid JSON ({first_line(error)})") from error


def read_tensors(path: Path, card: ModelCard) -> dict[str, Tensor]:
    """Read the tensors of a file of models.

    Args:
        path: the safetensors file.
        card: its card.

    Returns:
        {name: tensor}, as `ModelKeeper` has them.

    Raises:
        LsclError: no such file, or not the one that the card describes.
    """
    try:
        size = path.stat().st_size
        if size != card.bytes:
            raise ValueError(f"it has {size} bytes, its card says {card.bytes}")
        data = read_regular(path, LARGEST_MODEL)
        if hashlib.sha256(data).hexdigest() != card.sha256:
            raise ValueError("its SHA-256 is not the one of its card")
        stored = load(data)
        if missing := sorted(set(card.same_as.values()) - stored.keys()):
            raise ValueError(f"it has no tensor {make_printable(missing[0], 200)}, which its card names")
        return {**stored, **{name: stored[same] for name, same in card.same_as.items()}}
    except (OSError, ValueError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise LsclError(f"cannot read the models {path}: {why}; make them again by lscl run --keep-model") from error
