"""A run's state on disk after every round, so that the same command goes on after any stop."""

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lscl.data.store import new_folder, private_folder, read_regular
from lscl.errors import LsclError
from lscl.federation.loop import Round
from lscl.federation.method import Method

LARGEST = 2**30  # bytes of a state's rounds.json
DAMAGES = (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError, RuntimeError)


class Checkpointed(Protocol):
    """A client, or whatever else has tensors that must outlive a round."""

    id: int | str
    task: int

    def private_state(self) -> dict[str, Tensor]: ...

    def load_private_state(self, saved: dict[str, Tensor]) -> None: ...


def save_state(
    folder: Path, reports: list[Round], method: Method, clients: Sequence[Checkpointed], about: dict
) -> None:
    """Write everything that must outlive the process, under a temporary name, then rename it and drop the round before.

    Raises:
        LsclError: the disk is full or the folder cannot be written; the state of the round before is kept.
    """
    step = folder / _name(len(reports))
    with new_folder(step) as new:
        digests = [_save(method.server, new / "server.safetensors")]
        digests += [_save(client.private_state(), new / f"client{client.id}.safetensors") for client in clients]
        saved = {"about": about, "rounds": [_as_json(report) for report in reports], "sha256": digests}
        (new / "rounds.json").write_text(json.dumps({**saved, "digest": _digest(saved)}), encoding="utf-8")
        private_folder(new)
    for old in folder.glob("round-*"):
        if old != step:
            shutil.rmtree(old, ignore_errors=True)


def load_state(folder: Path, method: Method, clients: Sequence[Checkpointed]) -> tuple[list[Round], dict]:
    """Bring method and clients to the last finished round; -> its reports and what was saved `about` the run.

    Raises:
        LsclError: the saved state is damaged or was written by a version that did not sign its rounds.
    """
    step = _newest(folder)
    if step is None:
        return [], {}
    try:
        saved = _rounds(step)
        reports = [_from_json(report) for report in saved["rounds"]]
        done = [(report.task, report.round) for report in reports]
        planned = [
            (stage.task, stage.round) for task in range(method.config.tasks_run) for stage in method.stages(task)
        ]
        if not done or done != planned[: len(done)] or step.name != _name(len(done)):
            raise ValueError("its rounds are not those of the run, in their order")
        method.server = _load(step / "server.safetensors", saved["sha256"][0])
        for client, digest in zip(clients, saved["sha256"][1:], strict=True):
            client.load_private_state(_load(step / f"client{client.id}.safetensors", digest))
            client.task = reports[-1].task
        return reports, saved["about"]
    except DAMAGES as error:
        raise _damaged(step, error) from error


def saved_about(folder: Path) -> dict:
    """What was saved `about` the run at its last finished round; empty if there is none.

    Raises:
        LsclError: the saved state is damaged.
    """
    step = _newest(folder)
    try:
        return {} if step is None else _rounds(step)["about"]
    except DAMAGES as error:
        raise _damaged(step, error) from error


def _damaged(step: Path, error: Exception) -> LsclError:
    what = f"{type(error).__name__} {error}".splitlines()[0]  # torch lists every tensor that does not fit
    return LsclError(f"damaged state {step}: {what}; delete that folder to start the run again")


def _name(rounds: int) -> str:
    return f"round-{rounds:05d}"


def _newest(folder: Path) -> Path | None:
    return max(folder.glob("round-*"), default=None)


def _digest(saved: dict) -> str:
    return hashlib.sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest()


def _rounds(step: Path) -> dict:
    """The content of a step's rounds.json, as it was written."""
    saved = from_json(read_regular(step / "rounds.json", LARGEST))
    if _digest({key: value for key, value in saved.items() if key != "digest"}) != saved["digest"]:
        raise ValueError("rounds.json is not as it was written")
    return saved


def tensors_to_bytes(state: dict[str, Tensor], **about: str) -> bytes:
    """Tensors, which may share memory or lie on a GPU, and a few words about them, in safetensors' format."""
    return save({name: value.detach().cpu().clone().contiguous() for name, value in state.items()}, about or None)


def _save(state: dict[str, Tensor], path: Path) -> str:
    """Write tensors; -> the SHA-256 of the file."""
    data = tensors_to_bytes(state)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _load(path: Path, digest: str) -> dict[str, Tensor]:
    data = read_regular(path, sys.maxsize)
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path.name} is not as it was written")
    return load(data)


def _as_json(report: Round) -> dict:
    scores = {str(k): {name: value.tolist() for name, value in found.items()} for k, found in report.scores.items()}
    return {**asdict(report), "scores": scores}


def _from_json(saved: dict) -> Round:
    scores = {
        int(k): {name: torch.tensor(value) for name, value in found.items()} for k, found in saved["scores"].items()
    }
    return Round(**{**saved, "scores": scores})
