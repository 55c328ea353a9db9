"""A run's state on disk after every round, so that the same command goes on after any stop."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lscl.data.store import new_folder, private_folder
from lscl.errors import LsclError
from lscl.federation.loop import Round
from lscl.methods.base import Method


class Keeper(Protocol):
    """A client, or whatever else has tensors that must outlive a round."""

    id: int | str
    task: int

    def private_state(self) -> dict[str, Tensor]: ...

    def load_private_state(self, saved: dict[str, Tensor]) -> None: ...


def save_state(folder: Path, reports: list[Round], method: Method, clients: Sequence[Keeper], about: dict) -> None:
    """Write everything that must outlive the process, under a temporary name, then rename it and drop the round before.

    Raises:
        LsclError: the disk is full or the folder cannot be written; the state of the round before is kept.
    """
    step = folder / f"round-{len(reports):05d}"
    with new_folder(step) as new:
        digests = [_save(method.server, new / "server.safetensors")]
        digests += [_save(client.private_state(), new / f"client{client.id}.safetensors") for client in clients]
        saved = {"about": about, "rounds": [_as_json(report) for report in reports], "sha256": digests}
        (new / "rounds.json").write_text(json.dumps(saved), encoding="utf-8")
        private_folder(new)
    for old in folder.glob("round-*"):
        if old != step:
            shutil.rmtree(old, ignore_errors=True)


def load_state(folder: Path, method: Method, clients: Sequence[Keeper]) -> tuple[list[Round], dict]:
    """Bring method and clients to the last finished round; -> its reports and what was saved `about` the run.

    Raises:
        LsclError: the saved state is damaged.
    """
    steps = sorted(folder.glob("round-*"))
    if not steps:
        return [], {}
    try:
        saved = json.loads((steps[-1] / "rounds.json").read_text(encoding="utf-8"))
        digests = saved["sha256"]
        method.server = _load(steps[-1] / "server.safetensors", digests[0])
        for client, digest in zip(clients, digests[1:], strict=True):
            client.load_private_state(_load(steps[-1] / f"client{client.id}.safetensors", digest))
            client.task = saved["rounds"][-1]["task"]
        return [_from_json(report) for report in saved["rounds"]], saved["about"]
    except (OSError, ValueError, LookupError, TypeError, SafetensorError, RuntimeError) as error:
        what = f"{type(error).__name__} {error}".splitlines()[0]  # torch lists every tensor that does not fit
        raise LsclError(f"damaged state {steps[-1]}: {what}; delete that folder to start the run again") from error


def as_bytes(state: dict[str, Tensor], **about: str) -> bytes:
    """Tensors, which may share memory or lie on a GPU, and a few words about them, in safetensors' format."""
    return save({name: value.detach().cpu().clone().contiguous() for name, value in state.items()}, about or None)


def _save(state: dict[str, Tensor], path: Path) -> str:
    """Write tensors; -> the SHA-256 of the file."""
    data = as_bytes(state)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _load(path: Path, digest: str) -> dict[str, Tensor]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path.name} is not as it was written")
    return load(data)


def _as_json(report: Round) -> dict:
    scores = {str(k): {name: value.tolist() for name, value in found.items()} for k, found in report.scores.items()}
    return {**asdict(report), "scores": scores}


def _from_json(saved: dict) -> Round:
    scores = {int(k): {name: torch.tensor(value) for name, value in found.items()} for k, found in saved["scores"].items()}
    return Round(**{**saved, "scores": scores})
