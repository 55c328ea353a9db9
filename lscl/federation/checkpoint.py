"""A run's state on disk after every round, so that the same command resumes after any stop."""

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lscl.data.store import new_folder, private_folder, read_regular
from lscl.errors import LsclError, first_line
from lscl.federation.loop import Round
from lscl.federation.method import Method

LARGEST = 2**30  # bytes of a state's rounds.json
DAMAGES = (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError, RuntimeError)


class Checkpointed(Protocol):
    """A client, or anything else that has tensors which must outlive a round."""

    id: int | str
    task: int

    def private_state(self) -> dict[str, Tensor]:
        """The tensors to save."""

    def load_private_state(self, saved: dict[str, Tensor]) -> None:
        """Restore the saved tensors."""


@dataclass(frozen=True)
class SavedState:
    """The last finished round of a run that was stopped, without its tensors.

    Args:
        folder: the folder of the run's states.
        about: what `save_state` was told about the run; empty if no round is finished.
        rounds: the reports of all finished rounds, as they were written.
        digests: SHA-256 of the files of the server and of each client.
    """

    folder: Path
    about: dict
    rounds: list[dict]
    digests: list[str]

    @property
    def step(self) -> Path:
        """The folder of the last finished round."""
        return self.folder / _name(len(self.rounds))


def save_state(
    folder: Path, reports: list[Round], method: Method, clients: Sequence[Checkpointed], about: dict
) -> None:
    """Write everything that must outlive the process under a temporary name, rename it, then remove the round before.

    Args:
        folder: the folder of the run's states.
        reports: the reports of all finished rounds.
        method: the system; its `server` is saved.
        clients: whatever else has tensors to save.
        about: facts about the run, in JSON's types.

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


def read_state(folder: Path) -> SavedState:
    """Read what a run's folder says about its last finished round.

    Raises:
        LsclError: the saved state is damaged, or a version wrote it that did not sign its rounds.
    """
    step = max(folder.glob("round-*"), default=None)
    if step is None:
        return SavedState(folder, {}, [], [])
    try:
        found = from_json(read_regular(step / "rounds.json", LARGEST))
        if _digest({key: value for key, value in found.items() if key != "digest"}) != found["digest"]:
            raise ValueError("rounds.json is not as it was written")
        saved = SavedState(folder, found["about"], found["rounds"], found["sha256"])
        if not saved.rounds or step != saved.step:
            raise ValueError("its rounds are not those of the run, in their order")
        return saved
    except DAMAGES as error:
        raise _damaged(step, error) from error


def load_state(saved: SavedState, method: Method, clients: Sequence[Checkpointed]) -> list[Round]:
    """Bring method and clients to the last finished round.

    Args:
        saved: what `read_state` found.
        method: the system, which gets the server's tensors.
        clients: whatever else was saved, in the same order.

    Returns:
        The reports of all finished rounds; none if no round is finished.

    Raises:
        LsclError: the saved state is damaged or belongs to another run.
    """
    if not saved.rounds:
        return []
    step = saved.step
    try:
        reports = [_from_json(report) for report in saved.rounds]
        done = [(report.task, report.round) for report in reports]
        planned = [
            (stage.task, stage.round) for task in range(method.config.tasks_run) for stage in method.stages(task)
        ]
        if done != planned[: len(done)]:
            raise ValueError("its rounds are not those of the run, in their order")
        method.server = _load(step / "server.safetensors", saved.digests[0])
        for client, digest in zip(clients, saved.digests[1:], strict=True):
            client.load_private_state(_load(step / f"client{client.id}.safetensors", digest))
            client.task = reports[-1].task
        return reports
    except DAMAGES as error:
        raise _damaged(step, error) from error


def _damaged(step: Path, error: Exception) -> LsclError:
    what = f"{type(error).__name__} {first_line(error)}"  # torch lists every tensor that does not fit
    return LsclError(f"damaged state {step}: {what}; delete that folder to start the run again")


def _name(rounds: int) -> str:
    return f"round-{rounds:05d}"


def _digest(saved: dict) -> str:
    return hashlib.sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest()


def tensors_to_bytes(state: dict[str, Tensor], **about: str) -> bytes:
    """Write tensors in safetensors' format.

    Args:
        state: {name: tensor}; tensors may share memory or lie on a GPU.
        about: texts for the file's metadata.

    Returns:
        The content of the file.
    """
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
