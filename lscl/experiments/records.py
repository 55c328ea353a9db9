"""Records: one JSON file per finished run, the only source of every number in a table, a figure or a sentence."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import FileHash, distributions
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

import lscl
from lscl import paths
from lscl.config import WHERE_AND_HOW, Experiment, ProfileName, fields, read_by
from lscl.data.store import digest_of, read_regular, write_atomic
from lscl.errors import LsclError, make_printable, shorten
from lscl.experiments import origin
from lscl.federation.metrics import MASKS, RIDGE_MASKS, accuracy_per_class, accuracy_tensor
from lscl.machine import hardware, versions
from lscl.registry import DATASETS, METHODS

SCHEMA = 1
LARGEST_FILE = 64 * 2**20  # bytes of a record's file
PACKAGE = Path(lscl.__path__[0]).resolve()
DISTRIBUTION = "fed-lscl"  # its name on PyPI, where lscl is somebody else's
DISPLAY_PACKAGES = ("publish", "results")  # they show what was recorded; a change there changes no run
Record = dict[str, Any]
# What may differ between equal runs. The server of a real federation cannot know how many images its clients saw.
MAY_DIFFER = (
    "seconds", "cpu_seconds", "peak_memory_mb", "finished", "commit", "dirty", "code_digest", "hardware", "versions",
    "optimised_images",
)  # fmt: skip

Text = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9A-Za-z]{1,64}$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]


class Hardware(BaseModel):
    """The machine of a run."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)
    cpu: Text
    instructions: Text | None = None  # such as AVX512; came later
    cores: Count | None
    memory_gb: Amount
    gpu: Text | None


class UnregisteredSystem(LsclError):
    """A record of a system or data set that this process does not know, as one of a notebook; its file may be sound."""


class _NotRegistered(ValueError):
    """A config names a system or data set that is not registered here."""


def checked_config(values: Any) -> Experiment:
    """The config of a record or of kept models.

    Raises:
        ValueError: a system or data set that is not registered, the fields of one, or an impossible value.
    """
    if not isinstance(values, dict):
        raise ValueError(f"a dictionary is wanted, not {type(values).__name__}")
    for key, known, call in (("method", METHODS, "register"), ("dataset", DATASETS, "register_dataset")):
        name = values.get(key, fields()[key].default)
        if not isinstance(name, str) or name not in known:
            found = ", ".join(str(one)[:40] for one in sorted(set(map(str, values)) - set(fields()))[:5])
            brings = f", which brings {found}" if found else ""
            raise _NotRegistered(
                f"{known.kind} {str(name)[:80]!r}{brings} is not registered here: lscl.{call} makes it known "
                f"(registered: {', '.join(known)})"
            )
    unread = sorted(set(map(str, values)) - read_by(values.get("method", fields()["method"].default)) - WHERE_AND_HOW)
    if unread:
        raise ValueError(f"{', '.join(unread)[:200]}: its system has no such parameters")
    try:
        return Experiment(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


Accuracies = list[list[list[Percent | None]]]  # by task, client and task
PerClass = dict[
    Annotated[str, Field(pattern="^[0-9]{1,4}$")],
    dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], list[Percent]],
]  # by client, class and mask


class Ridge(BaseModel):
    """The scores of a closed-form head on the system's own features, under fewer masks (`lscl.federation.ridge`)."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)
    accuracy: dict[Literal[RIDGE_MASKS], Accuracies]
    per_class: PerClass


class Account(BaseModel):
    """What added noise guarantees (`lscl.experiments.privacy.account`)."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)
    unit: Literal["client", "image"]
    releases: Count
    noise: Amount
    delta: Amount
    epsilon: Amount


class RecordFile(BaseModel):
    """The shape of every record: all entries are there, of the right type and size, and agree with each other."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)
    schema_: Literal[SCHEMA] = Field(alias="schema")
    method: Text
    dataset: Text
    profile: ProfileName
    seed: Count
    name: Annotated[str, Field(max_length=250, pattern=r"^[^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]*$")]
    config: Experiment
    config_digest: Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
    accuracy: dict[Literal[MASKS], Accuracies]
    per_class: PerClass
    data_digest: Digest
    partition_digest: Digest
    server_images_digest: Digest | None = None  # came later
    weights_digest: Digest | None
    system_digest: Digest | None = None  # of the source of a system that is not ours
    bytes_up: list[list[Count]]
    bytes_down: list[list[Count]]
    trained_parameters: list[Count]
    trained_images: Count
    optimised_images: Count = 0  # came later
    seconds: dict[Text, Amount]
    cpu_seconds: Amount = 0  # came later
    peak_memory_mb: Amount
    device: Literal["cpu", "cuda"] = "cpu"  # came later
    faults: list[list[str]] = []
    privacy: Account | None = None  # only of runs with added noise
    ridge: Ridge | None = None  # came later; only of systems with features of their own
    commit: Digest | None
    dirty: bool
    code_digest: Digest
    finished: Text
    hardware: Hardware
    versions: dict[Text, Text]

    @field_validator("config", mode="plain")
    @classmethod
    def _of_what_is_registered(cls, values: Any) -> Experiment:
        return checked_config(values)

    @model_validator(mode="after")
    def _agrees(self) -> "RecordFile":
        """Entries that stand there twice are equal; every list has a place for each task, client, mask and class."""
        config = self.config
        tasks, clients, classes = config.tasks_run, config.clients, config.tasks_run * config.classes_per_task
        for key in ("method", "dataset", "profile", "seed"):
            _same(key, getattr(self, key), getattr(config, key))
        _same("name", self.name.rsplit("--", 2)[1:], [f"s{self.seed}", self.config_digest])
        _same("seconds of prepare", "prepare" in self.seconds, True)
        _same("threads in the config", config.threads is not None, True)
        for head, masks in ((self, MASKS), (self.ridge, RIDGE_MASKS)):
            if head is not None:
                _check_scores(head, masks, tasks, clients, classes)
        for key in ("bytes_up", "bytes_down", "faults"):
            _same(f"{key} by round", len(getattr(self, key) or self.bytes_up), len(self.bytes_up))
        for name, rows in (
            ("bytes_up", self.bytes_up),
            ("bytes_down", self.bytes_down),
            ("trained_parameters", [self.trained_parameters]),
        ):
            _same(f"{name} by client", {len(row) for row in rows}, {clients})
        return self


def _check_scores(head: RecordFile | Ridge, masks: Sequence[str], tasks: int, clients: int, classes: int) -> None:
    """Check that the scores of a head have a place for each task, client, mask and class."""
    _same("accuracy", set(head.accuracy), set(masks))
    for mask in head.accuracy.values():
        _same(
            "accuracy by task, client and task",
            [[len(client) for client in task] for task in mask],
            [[tasks] * clients] * tasks,
        )
        if any(value is not None for t, task in enumerate(mask) for client in task for value in client[t + 1 :]):
            raise ValueError("accuracy on a task that was not yet learnt")
    _same("per_class by client", {int(k) for k in head.per_class} - set(range(clients)), set())
    for found in head.per_class.values():
        _same("per_class by class and mask", [len(found), *{len(row) for row in found.values()}], [classes, len(masks)])


def _same(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ValueError(f"{what}: {found} instead of {wanted}"[:300])


def source(package: Path = PACKAGE) -> dict[str, Any]:
    """Which code runs.

    The code of a run is the package without the parts that only show results (DISPLAY_PACKAGES), so a new caption makes
    no run dirty. Only the repository in which the package lies is asked. Without one, the code is clean if it is an
    installed distribution whose files are as they were packed; all else is dirty.

    Args:
        package: the folder of the package.

    Returns:
        {"commit": hash or None, "dirty": whether it may be other code than the commit's, "code_digest": of all its
        files}.
    """
    files = _code_files(package, DISPLAY_PACKAGES)
    commit, dirty = _checkout(package, files) or (None, not _as_packed(package, files))
    return {"commit": commit, "dirty": dirty, "code_digest": code_digest(DISPLAY_PACKAGES, package)}


def code_digest(without: Collection[str], package: Path = PACKAGE) -> str:
    """The digest of the package's files and their names.

    Args:
        without: packages inside it that do not count.
        package: the folder of the package.

    Returns:
        16 hexadecimal digits.
    """
    files = _code_files(package, without)
    return digest_of(
        *(part for path in files for part in (str(path.relative_to(package)).encode(), path.read_bytes()))
    )[:16]


def _code_files(package: Path, without: Collection[str]) -> list[Path]:
    return sorted(
        path for path in package.rglob("*") if path.is_file() and not _passed_over(path.relative_to(package), without)
    )


def _passed_over(path: Path, without: Collection[str]) -> bool:
    """Whether a file of the package does not count as its code: compiled, hidden, or in a part that is left out."""
    return path.parts[0] in without or any(part == "__pycache__" or part.startswith(".") for part in path.parts)


def _checkout(package: Path, files: list[Path]) -> tuple[str, bool] | None:
    """The commit of the repository that tracks `package`, and whether the files differ from it; None without one.

    Contents are compared, so no flag in the index hides a change. A clone of another owner is read if the package lies
    at its top, for then its code runs anyway; nothing that the clone configures is started.
    """
    top, names = package.parent, [*files, *package.parent.glob("pyproject.toml")]
    names = [path.relative_to(top).as_posix() for path in names]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith("GIT_CONFIG")
    }

    def git(*words: str) -> str:
        command = ["git", "-c", f"safe.directory={top.resolve()}", "-c", "core.fsmonitor=false", "-C", str(top), *words]
        return subprocess.run(command, capture_output=True, check=True, env=environment).stdout.decode(
            errors="surrogateescape"
        )

    try:
        commit = git("rev-parse", "HEAD").strip()
        rows = [
            row.split("\t", 1)
            for row in git("ls-tree", "-r", "-z", commit, "--", package.name, "pyproject.toml").split("\0")
            if row
        ]
        within = {
            name: Path(name).relative_to(package.name) if name != "pyproject.toml" else Path(name) for _, name in rows
        }
        tracked = {name: about.split()[2] for about, name in rows if not _passed_over(within[name], DISPLAY_PACKAGES)}
        if f"{package.name}/__init__.py" not in tracked:
            return None  # installed into a folder of some other repository
        hashes = git("hash-object", "--no-filters", "--", *names).split()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit, tracked != dict(zip(names, hashes, strict=True))


def _as_packed(package: Path, files: list[Path]) -> bool:
    """Whether the package is an installed distribution, and all its files are those that were packed."""
    for one in distributions(name=DISTRIBUTION):
        packed = {Path(one.locate_file(file)): file.hash for file in one.files or ()}
        if package / "__init__.py" in packed:
            return all(path in packed and _has_hash(path, packed[path]) for path in files)
    return False


def _has_hash(path: Path, wanted: FileHash | None) -> bool:
    if wanted is None or wanted.mode not in hashlib.algorithms_guaranteed:
        return False
    found = hashlib.new(wanted.mode, path.read_bytes()).digest()
    return base64.urlsafe_b64encode(found).decode().rstrip("=") == wanted.value


def assemble_record(
    config: Experiment, counts: list[list[dict]], seen: list[list[int]], facts: dict[str, Any]
) -> Record:
    """The record of a finished run.

    Args:
        config: the run.
        counts: right answers, counts[t][k] those of client k after task t (`federation.metrics`).
        seen: the classes of each client, in the order of `counts`.
        facts: everything else that was measured, by the record's keys.

    Returns:
        the record, as JSON can hold it.
    """
    answers = [found for row in counts for found in row if found is not None]
    tested = len(answers) > 0 and all("ridge" in found for found in answers)  # not in a state that older code began
    ridge = {"ridge": _scores(config, counts, seen, "ridge", RIDGE_MASKS)} if tested else {}
    return {
        "schema": SCHEMA,
        "method": config.method,
        "dataset": config.dataset,
        "profile": config.profile,
        "seed": config.seed,
        "name": config.name,
        "config": {**config.values_read(), "threads": config.cpu_threads},
        "config_digest": config.digest,
        **_scores(config, counts, seen, "correct", MASKS),
        **ridge,
        **facts,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
    }


def _scores(
    config: Experiment, counts: list[list[dict]], seen: list[list[int]], head: str, masks: Sequence[str]
) -> dict[str, Any]:
    """The accuracies of one head, over the tasks and by class."""
    acc = accuracy_tensor(counts, config.classes_per_task, head)
    accuracy = {mask: np.where(np.isnan(acc[i]), None, np.round(acc[i], 6)).tolist() for i, mask in enumerate(masks)}
    return {"accuracy": accuracy, "per_class": accuracy_per_class(counts, seen, head)}


def folder(profile: str, dirty: bool = False) -> Path:
    """Where the records of a profile lie.

    Args:
        profile: its name.
        dirty: the folder for runs of uncommitted code, which are filed apart.

    Returns:
        the folder, which need not exist.
    """
    base = paths.results() / "runs" / profile
    return base / "dirty" if dirty else base


def save(record: Record) -> Path:
    """Write a record and return its path.

    Raises:
        LsclError: it could not be read again, the disk is full, or the folder cannot be written.
    """
    return write_record(record, folder(record["profile"], record["dirty"]))


def write_record(record: Record, where: Path) -> Path:
    """Write a record into any folder.

    Args:
        record: what to write.
        where: the folder.

    Returns:
        the path of its file.

    Raises:
        LsclError: as `save`.
    """
    path = where / f"{record['name']}.json"
    data = (json.dumps(record, separators=(",", ":")) + "\n").encode()
    _understood(data, path)
    write_atomic(path, data)
    return path


def read_record(path: Path) -> Record:
    """Read one record, completed by what came later.

    Parameters that came later get their defaults; so do `device`, `server_images_digest` and `system_digest`. The entry
    `overrides` is added: what the config changes of the profile as it is today.

    Raises:
        UnregisteredSystem: its system or data set is not registered here.
        LsclError: no such file, no regular file, damaged, of another schema, or not of the shape of `RecordFile`.
    """
    try:
        data = read_regular(path, LARGEST_FILE)
    except (OSError, ValueError) as error:
        raise LsclError(f"cannot read the record {path}: {getattr(error, 'strerror', None) or error}") from error
    return _understood(data, path)


def _understood(data: bytes, path: Path) -> Record:
    """The record in the bytes of a file."""
    try:
        record = from_json(data, allow_inf_nan=False)
        found = record["schema"]
    except (ValueError, LookupError, TypeError) as error:
        why = shorten(f"{type(error).__name__} {error}", 300)
        raise LsclError(f"cannot read the record {path}: {why}; move it away to run again") from error
    if isinstance(found, bool) or found != SCHEMA:
        raise LsclError(
            f"record {path} has schema {found!r:.80}, this version reads schema {SCHEMA}: "
            "move it away to run again, or use another version"
        )
    if isinstance(record.get("hardware"), dict):
        record = {
            "device": "cuda" if record["hardware"].get("gpu") else "cpu",
            "server_images_digest": None,
            "system_digest": None,
            **record,
        }
    try:
        config = RecordFile.model_validate(record).config
    except ValidationError as error:
        first, *others = error.errors()
        if isinstance(unknown := first.get("ctx", {}).get("error"), _NotRegistered) and not others:
            raise UnregisteredSystem(f"record {path} cannot be read: {unknown}") from error
        where = ".".join(map(str, first["loc"]))
        what = "a config that this version cannot read" if where == "config" else "an entry that is missing or wrong"
        why = f"{where} {first['msg'].removeprefix('Value error, ')}".strip()[:400]
        raise LsclError(f"record {path} has {what}: {why}; move it away to run again") from error
    if record["name"] != path.stem:
        raise LsclError(
            f"record {path} says that its name is {record['name']}: rename it, or move it away to run again"
        )
    return {**record, "config": {**config.values_read(), "threads": config.threads}, "overrides": config.overrides()}


def find(config: Experiment, dirty: bool = False, code_digest: str | None = None) -> Record | None:
    """The finished record of this very experiment, if there is one.

    Args:
        config: the experiment.
        dirty: search among the runs of uncommitted code.
        code_digest: accept a record only if code of this digest has made it.

    Returns:
        the record, None if there is none.

    Raises:
        LsclError: there is a file with its digest, but damaged, or made when a parameter had another default, or of
            another origin than this call asks for (`lscl.experiments.origin`); or the folder of the images is missing.
    """
    # The part of the name before the digest follows the profile's values of its day.
    for path in folder(config.profile, dirty).glob(f"*--{config.digest}.json"):
        record = _of_folder(read_record(path), config.profile, dirty, path)
        if code_digest not in (None, record["code_digest"]):
            return None
        now = config.values_read()
        changed = [
            f"{key} = {value}, now {now[key]}"
            for key, value in record["config"].items()
            if key in now and value != now[key]
        ]
        if changed:
            raise LsclError(
                f"record {path} was made with other defaults ({'; '.join(changed)}): move it away to run again"
            )
        origin.check_origin(
            origin.origin_of_record(record), origin.requested_origin(config), "the record of this run", path
        )
        return record
    return None


def all_records(profile: str) -> list[Record]:
    """Every record of a profile from committed code, in the order of the file names.

    Those of systems and data sets that are not registered here are left out; a line on stderr names each file once.

    Raises:
        LsclError: a file is damaged, or the record of another profile or of uncommitted code.
    """
    found = []
    for path in sorted(folder(profile).glob("*.json")):
        try:
            found.append(_of_folder(read_record(path), profile, False, path))
        except UnregisteredSystem as error:
            _say_left_out(f"{error}; it is left out")
    return found


@lru_cache(maxsize=10_000)
def _say_left_out(why: str) -> None:
    """Print a line, the first time that it is to be said."""
    print(f"lscl: {make_printable(why)}", file=sys.stderr)


def _of_folder(record: Record, profile: str, dirty: bool, path: Path) -> Record:
    if (record["profile"], record["dirty"]) != (profile, dirty):
        what = f"of profile {record['profile']}, from {'uncommitted' if record['dirty'] else 'committed'} code"
        raise LsclError(f"record {path} is {what}: it belongs to {folder(record['profile'], record['dirty'])}")
    return record


def select(records: Iterable[Record], **values: Any) -> list[Record]:
    """The records that have all of `values`, each as an entry of the record or of its config."""
    return [
        one for one in records if all(one.get(key, one["config"].get(key)) == value for key, value in values.items())
    ]


def differing_entries(record: Record, other: Record, ignored: Iterable[str] = MAY_DIFFER) -> list[str]:
    """Names of the entries that differ between two records.

    Args:
        record: whose entries are compared.
        other: where an entry may differ or be missing.
        ignored: names that do not count.

    Returns:
        the names in alphabetical order.
    """
    return sorted(name for name in set(record) - set(ignored) if record[name] != other.get(name))


def accuracy(record: Record, mask: str, head: str = "trained") -> np.ndarray:
    """Accuracies of a run under one mask.

    Args:
        record: the run.
        mask: a key of `labels.MASK_LABELS`: task, seen or all.
        head: "trained", the system's own, or "ridge", the closed-form one, which is not tested under the mask all.

    Returns:
        (t, k, u) percent on the test images of task u for client k after task t; NaN for u > t.
    """
    return np.array(scores_of(record, head)["accuracy"][mask], dtype=float)


def scores_of(record: Record, head: str) -> dict[str, Any]:
    """What a record says of one of its heads.

    Args:
        record: the run.
        head: an entry of `lscl.federation.metrics.HEADS`.

    Returns:
        "accuracy" by mask, "per_class" by client and class, among others; empty if this head was not tested.
    """
    return record if head == "trained" else record.get("ridge") or {}
