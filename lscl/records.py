"""Records: one JSON file per finished run, the only source of every number in a table, a figure or a sentence."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from lscl import paths
from lscl.config import PLACES, WHERE_AND_HOW, Experiment
from lscl.data.store import digest_of, write_atomic
from lscl.errors import LsclError
from lscl.evaluation import MASKS, accuracy_tensor, per_class

SCHEMA = 1
Record = dict[str, Any]
# What may differ between equal runs.
TIMES = ("seconds", "cpu_seconds", "peak_memory_mb", "finished", "commit", "dirty", "code_digest", "hardware", "versions")


def source() -> dict[str, Any]:
    """Which code runs: {"commit": hash or None, "dirty": uncommitted changes in the code, "code_digest": of all its files}."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=paths.root(), capture_output=True, encoding="utf-8", check=True).stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--", "lscl", "pyproject.toml"))
        commit = git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        commit, changed = None, False  # an installed package has no history; its version stands in the record
    package = Path(__file__).parent
    files = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".json"))
    digest = digest_of(*(part for path in files for part in (str(path.relative_to(package)).encode(), path.read_bytes())))
    return {"commit": commit, "dirty": changed, "code_digest": digest[:16]}


def versions() -> dict[str, str]:
    """Versions of Python, the package and what its numbers depend on."""
    names = ("lscl", "torch", "torchvision", "timm", "numpy", "safetensors")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def physical_memory() -> int:
    """Bytes of this machine's memory, 0 if it does not say."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPU of this machine."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(physical_memory() / 2**30), "gpu": gpu}


def make(config: Experiment, counts: list[list[dict]], seen: list[list[int]], facts: dict[str, Any]) -> Record:
    """The record of a finished run from the right answers counts[t][k] and what else was measured (`facts`)."""
    acc = accuracy_tensor(counts, config.classes_per_task)
    accuracy = {mask: np.where(np.isnan(acc[i]), None, np.round(acc[i], 6)).tolist() for i, mask in enumerate(MASKS)}
    return {
        "schema": SCHEMA,
        "method": config.method,
        "dataset": config.dataset,
        "profile": config.profile,
        "seed": config.seed,
        "name": config.name,
        "config": _saved(config),
        "config_digest": config.digest,
        "accuracy": accuracy,
        "per_class": per_class(counts, seen),
        **facts,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
    }


def _saved(config: Experiment) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=PLACES)


def folder(profile: str, dirty: bool = False) -> Path:
    """Where the records of a profile lie; runs of uncommitted code are filed apart."""
    base = paths.results() / "runs" / profile
    return base / "dirty" if dirty else base


def save(record: Record) -> Path:
    """Write a record and return its path."""
    path = folder(record["profile"], record["dirty"]) / f"{record['name']}.json"
    write_atomic(path, (json.dumps(record, separators=(",", ":")) + "\n").encode())
    return path


def read(path: Path) -> Record:
    """Read one record; its config is completed by parameters that came later, at their defaults, and `overrides` is added: what
    the config changes of the profile as it is today.

    Raises:
        LsclError: no such file, damaged, or of another schema.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = record["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LsclError(f"cannot read the record {path}: {error}") from error
    if found != SCHEMA:
        raise LsclError(f"record {path} has schema {found}, this version reads schema {SCHEMA}: run it again or use another version")
    try:
        config = Experiment(**record["config"])
        return {**record, "config": _saved(config), "overrides": config.overrides()}
    except (KeyError, TypeError, ValidationError) as error:
        raise LsclError(f"record {path} has a config that this version cannot read: {str(error).splitlines()[0]}") from error


def find(config: Experiment, dirty: bool = False) -> Record | None:
    """The finished record of this very experiment, if there is one.

    Raises:
        LsclError: there is a file with its digest, but damaged or made when a parameter had another default.
    """
    for path in folder(config.profile, dirty).glob(f"*--{config.digest}.json"):  # the name before it follows the profile's values
        record = read(path)
        now = config.model_dump(mode="json", exclude=WHERE_AND_HOW)
        changed = [f"{key} = {record['config'][key]}, now {now[key]}" for key in now if record["config"][key] != now[key]]
        if changed:
            raise LsclError(f"record {path} was made with other defaults ({'; '.join(changed)}): move it away to run again")
        return record
    return None


def all_records(profile: str) -> list[Record]:
    """Every record of a profile from committed code, in the order of the file names."""
    return [read(path) for path in sorted(folder(profile).glob("*.json"))]


def select(records: Iterable[Record], **values: Any) -> list[Record]:
    """The records whose top-level entry or config entry equals each of `values`."""
    return [one for one in records if all(one.get(key, one["config"].get(key)) == value for key, value in values.items())]


def differing(record: Record, other: Record, ignored: Iterable[str] = TIMES) -> list[str]:
    """Names of the entries of `record` that are other ones, or missing, in `other`."""
    return sorted(name for name in set(record) - set(ignored) if record[name] != other.get(name))


def accuracy(record: Record, mask: str) -> np.ndarray:
    """acc[t][k][u] of one mask in percent, NaN for u > t."""
    return np.array(record["accuracy"][mask], dtype=float)
