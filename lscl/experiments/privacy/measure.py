"""One record per run that is attacked: what an attacker found, what a bad client did, accuracy and bytes.

A run is played up to the end of its first task, with the values of its profile, and then attacked as it is. Systems
that train play fewer rounds than usual, unless they are the paper's own: attacks need a round, not the best accuracy.
Finished records are read again, so a command that was stopped goes on with the next run.
"""

import json
import time
from collections.abc import Collection
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from lscl import files, paths
from lscl.config import Experiment, experiment
from lscl.data.store import write_atomic
from lscl.errors import LsclError
from lscl.experiments import origin, records
from lscl.experiments.privacy import (
    class_guess,
    class_statistics,
    decoder,
    generator_change,
    gradient_matching,
    gram_spectrum,
    model_inversion,
    shadow_clients,
)
from lscl.experiments.privacy.account import account_of
from lscl.experiments.privacy.bad_client import measure_damage
from lscl.experiments.privacy.observed import Observed, Witness, observe
from lscl.experiments.privacy.scores import CANDIDATES, Finding
from lscl.experiments.run import RunBusy, claim, prepare, settle_device
from lscl.experiments.sweeps import Failures, check_code, check_folder_is_read, main_table
from lscl.experiments.traffic import planned_traffic
from lscl.experiments.verify import compute_again, outcomes_path, verify_records, write_outcomes
from lscl.federation.checkpoint import SavedState
from lscl.federation.loop import federate
from lscl.federation.metrics import MASKS, task_accuracies
from lscl.machine import hardware, versions
from lscl.registry import METHODS
from lscl.seeding import numpy_generator

SCHEMA_OF_PRIVACY = 1
FEW_ROUNDS = 2  # of a task, of systems other than the paper's own
VICTIM, BAD = 0, 1  # numbers of the client under attack and of the bad one
SHOWN = 8  # images of a reconstruction that are kept as a picture
UNEQUAL = (*records.MAY_DIFFER, "sheet")  # what may differ between equal measurements
COMPARED = ("data_digest", "partition_digest", "threads")  # entries of `origin.ENTRIES` that a record has


def attacked_runs(
    dataset: str,
    profile: str,
    seeds: Collection[int],
    methods: Collection[str] = (),
    data_dir: Path | None = None,
    threads: int = 1,
) -> list[Experiment]:
    """The runs that are attacked: every system that sends something, and its defences.

    Args:
        dataset: name of the data set.
        profile: whose values the runs have.
        seeds: of the runs.
        methods: only these systems; empty = all.
        data_dir: where the images lie.
        threads: of the CPU.

    Returns:
        The runs, seed by seed; those of the systems as they are come first.

    Raises:
        LsclError: an unknown name, an impossible value, or systems whose clients all send nothing.
    """
    for name in methods:
        METHODS.find(name)
    shared = {"dataset": dataset, "profile": profile, "data_dir": data_dir, "threads": threads, "stop_after": 1}
    every = dict.fromkeys([*(method for method, _ in main_table()), *METHODS])
    senders = [name for name in every if (not methods or name in methods) and sends_something(name, profile)]
    if not senders:
        raise LsclError(f"methods = {', '.join(methods)}: clients that send nothing cannot be attacked")
    plain, defended = [], []
    for seed in seeds:
        for name in senders:
            kind = METHODS[name]
            few = {} if kind.role == "own" or not kind.trains else {"rounds": FEW_ROUNDS}
            for change in ({}, *kind.defences.values()):
                run = experiment(method=name, seed=seed, **shared, **{**few, **change})
                (defended if change else plain).append(run)
    return plain + defended


def sends_something(method: str, profile: str) -> bool:
    """Whether the clients of a system send anything.

    Args:
        method: its name.
        profile: whose values count.

    Returns:
        False for systems whose clients are alone.
    """
    up, _ = planned_traffic(experiment(method=method, profile=profile, dataset="glyphs"))
    return up != 0


def describe_defence(config: Experiment) -> str:
    """The label of the defence that a run has; empty without one."""
    changed = config.overrides()
    for label, change in METHODS[config.method].defences.items():
        if all(changed.get(name) == value for name, value in change.items()):
            return label
    return ""


def record_path(config: Experiment, dirty: bool = False) -> Path:
    """The path of the record of an attacked run.

    Args:
        config: the run.
        dirty: among those of uncommitted code.

    Returns:
        The path of its file, which need not exist.
    """
    base = paths.results() / "privacy" / config.profile
    return (base / "dirty" if dirty else base) / f"{config.name}.json"


def read_privacy(path: Path) -> dict[str, Any]:
    """Read the record of an attacked run.

    Raises:
        LsclError: no such file, damaged, or of another schema.
    """
    found = files.read_json(path, PrivacyRecord)
    if found["name"] != path.stem:
        raise LsclError(f"record {path} says that its name is {found['name']!r:.80}: rename it, or move it away")
    return found


class FoundRow(files.Shape):
    """A finding as a record has it, see `scores.Finding`."""

    attack: str
    payload: str
    knows: str
    score: str
    value: float
    never_had: float
    by_design: float
    chance: float | None
    count: int


class Scores(files.Shape):
    """Accuracies in percent by mask."""

    task: float
    seen: float
    all: float


class DamageRow(files.Shape):
    """A damage as a record has it, see `bad_client.Damage`."""

    answer: str
    checks: bool
    outcome: str
    honest: Scores
    attacked: Scores


class Guarantee(files.Shape):
    """What the noise of a run guarantees, see `account.account_of`."""

    epsilon: float
    unit: str


class Threads(files.Shape):
    """The config of a run; its other values are checked where they are used."""

    threads: int


class Processor(files.Shape):
    """The machine of a run."""

    cpu: str
    gpu: str | None = None


class PictureRows(files.Shape):
    """What the picture next to a record shows: a row for each name."""

    rows: list[str] = Field(min_length=1)


class PrivacyRecord(files.Shape):
    """The shape of the record of an attacked run: every entry that is read or compared."""

    schema_: Literal[SCHEMA_OF_PRIVACY] = Field(alias="schema")
    name: str
    method: str
    dataset: str
    profile: str
    seed: int
    defence: str
    config: Threads
    config_digest: str
    steps: float = Field(gt=0, le=1000)
    candidates: int = Field(ge=2, le=10**6)
    data_digest: str
    partition_digest: str
    accuracy: Scores
    privacy: Guarantee | None
    findings: list[FoundRow]
    damages: list[DamageRow]
    sent: dict[str, list[int]]
    summed: list[str]
    bytes_up: int
    bytes_down: int
    seconds: dict[str, float]
    commit: str | None
    dirty: bool
    hardware: Processor
    sheet: PictureRows | None = None  # only with a picture


def measure(config: Experiment, steps: float = 1.0, candidates: int = CANDIDATES) -> tuple[dict[str, Any], dict]:
    """Run the first task and attack it.

    Args:
        config: the run; only its last task is attacked.
        steps: share of the steps that the attacks take; smaller for a test.
        candidates: images of a class.

    Returns:
        The record, and images to look at by name, (n, 3, H, W) in 0 to 1 each.

    Raises:
        LsclError: bad values or data.
    """
    started, cpu = time.perf_counter(), time.process_time()
    config = settle_device(config, SavedState(Path(), {}, [], []))
    data, parts, method, clients = prepare(config)
    witness = Witness(method, clients)
    reports = list(federate(method, witness))
    exchange = witness.last
    scores = [task_accuracies(found, config.classes_per_task).mean(1) for found in reports[-1].scores.values()]
    played = time.perf_counter()
    account, summed = account_of(method), sorted(method.summed_names(exchange.stage))
    observed = observe(method, clients, exchange, VICTIM, candidates)
    findings, shown = attack(observed, steps)
    attacked = time.perf_counter()
    damages = measure_damage(method, clients, exchange, min(BAD, config.clients - 1))
    code = records.source()
    record = {
        "schema": SCHEMA_OF_PRIVACY,
        "name": config.name,
        "method": config.method,
        "dataset": config.dataset,
        "profile": config.profile,
        "seed": config.seed,
        "defence": describe_defence(config),
        "config": {**config.values_read(), "threads": config.cpu_threads},
        "config_digest": config.digest,
        "steps": steps,
        "candidates": candidates,
        "data_digest": data.digest,
        "partition_digest": parts.digest,
        "accuracy": {mask: round(float(value), 4) for mask, value in zip(MASKS, np.mean(scores, 0))},
        "privacy": account,
        "sent": {name: list(value.shape) for name, value in observed.up.items()},
        "summed": [name for name in summed if name in observed.up],
        "bytes_up": sum(map(sum, (report.bytes_up for report in reports))),
        "bytes_down": sum(map(sum, (report.bytes_down for report in reports))),
        "findings": [finding.row() for finding in findings],
        "damages": [damage.row() for damage in damages],
        "seconds": {
            "run": round(played - started, 1),
            "attacks": round(attacked - played, 1),
            "bad client": round(time.perf_counter() - attacked, 1),
        },
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
        **code,
    }
    return record, shown


def attack(observed: Observed, steps: float = 1.0) -> tuple[list[Finding], dict]:
    """Every attack that is possible on the payloads of a client.

    Args:
        observed: the client under attack.
        steps: share of the steps.

    Returns:
        The findings, and images to look at by name.
    """
    few = lambda count: max(2, round(steps * count))
    findings, shown = decoder.invert_features(observed, few(decoder.STEPS))
    findings += gram_spectrum.read_gram(observed)
    findings += generator_change.read_generator(observed)
    findings += class_statistics.read_class_statistics(observed, few(decoder.STEPS))
    findings += gradient_matching.match_gradients(
        observed, few(gradient_matching.MATCHING_STEPS), few(gradient_matching.L_BFGS_STEPS)
    )
    findings += model_inversion.invert_model(observed, few(model_inversion.INVERSION_STEPS))
    findings += shadow_clients.infer_membership(observed)
    findings += class_guess.guess_classes(observed)
    return findings, shown


def save_privacy(record: dict[str, Any], shown: dict) -> Path:
    """Write a record and, if there are images to look at, their picture next to it: a row per name.

    Args:
        record: of an attacked run.
        shown: {name: (n, 3, H, W) in 0 to 1}.

    Returns:
        The path of the record.

    Raises:
        LsclError: the disk is full, or the folder cannot be written.
    """
    folder = paths.results() / "privacy" / record["profile"]
    path = (folder / "dirty" if record["dirty"] else folder) / f"{record['name']}.json"
    if shown:
        rows = [value[:SHOWN] for value in shown.values()]
        picture = np.concatenate([np.concatenate(list(_pixels(row)), 1) for row in rows])  # (rows H, n W, 3)
        record = {**record, "sheet": {"rows": list(shown), "images": len(rows[0])}}
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path.with_suffix(".png"))
    write_atomic(path, (json.dumps(record, separators=(",", ":")) + "\n").encode())
    return path


def _pixels(images: Any) -> np.ndarray:
    """(n, 3, H, W) in 0 to 1 -> (n, H, W, 3) uint8."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()  # (n, H, W, 3)


def measure_all(configs: list[Experiment], list_only: bool = False) -> list[Path]:
    """Measure the missing ones of some runs, one after another; several processes may share the work.

    A run that fails after another one went well does not stop the rest.

    Args:
        configs: the runs.
        list_only: print which are missing, and measure nothing.

    Returns:
        The paths of all records that are there.

    Raises:
        LsclError: code of no known commit, bad data, or a record that is damaged or of other images, another partition
            or other threads than this call asks for; when all others are done, runs that failed.
    """
    if not list_only:
        check_code()
    failures, found = Failures(len(configs)), []
    for config in configs:
        path = record_path(config)
        with failures.passed_over(config.name):
            busy = not list_only and not path.exists() and not _measure_alone(config, path)
            if path.exists():
                _check_made(read_privacy(path), config, path)
                found.append(path)
            print(f"{'busy   ' if busy else 'done   ' if path.exists() else 'missing'} {config.name}", flush=True)
    failures.check()
    return found


def _check_made(record: dict[str, Any], config: Experiment, path: Path) -> None:
    """Refuse a record of other images, another partition or other threads than a call asks for."""
    made = {
        "data_digest": record["data_digest"],
        "partition_digest": record["partition_digest"],
        "threads": record["config"]["threads"],
        "device": "cuda" if record["hardware"].get("gpu") else "cpu",
    }
    asked = origin.requested_origin(config)
    wanted = {name: asked[name] for name in COMPARED if name in asked}
    origin.check_origin(made, wanted, "the privacy record of this run", path)


def _measure_alone(config: Experiment, path: Path) -> bool:
    """Measure a run unless another process does; -> whether its record is there."""
    try:
        with claim(path, wait=False):
            if not path.exists():
                save_privacy(*measure(config))
    except RunBusy:
        return False
    return True


def verify_privacy(record: dict[str, Any], data_dir: Path | None = None) -> dict[str, Any]:
    """Measure a record again from scratch and compare.

    Args:
        record: of an attacked run.
        data_dir: where the images lie.

    Returns:
        name, outcome, equal (to the bit), differs (names of entries), seconds, hardware, versions, recorded_at and
        verified_at (commits).

    Raises:
        LsclError: bad data.
    """
    config = experiment(**{**record["config"], "data_dir": data_dir, "device": "cpu"})
    measured = lambda: json.loads(json.dumps(measure(config, record["steps"], record["candidates"])[0]))
    return compute_again(record, measured, compare_privacy_records)


def compare_privacy_records(record: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """Compare two measurements of an attacked run.

    Args:
        record: the recorded one.
        again: the same, measured again.

    Returns:
        outcome ("equal" or "different"), equal, differs (names of entries).
    """
    differs = records.differing_entries(record, again, UNEQUAL)
    return {"outcome": "different" if differs else "equal", "equal": not differs, "differs": differs}


def verify_privacy_sample(
    profile: str, count: int, seed: int, data_dir: Path | None = None, dataset: str | None = None
) -> Path:
    """Verify some records, print a line each, and write the outcome to results/verified/privacy-<profile>.json.

    Args:
        profile: of the records.
        count: how many to draw.
        seed: of the draw.
        data_dir: where the images lie.
        dataset: only records on this data set.

    Returns:
        The path of the outcome.

    Raises:
        LsclError: there are not so many records, none of them reads `data_dir`, or one is not equal or cannot be
            measured; the outcomes of the others are written all the same.
    """
    every = [read_privacy(path) for path in sorted((paths.results() / "privacy" / profile).glob("*.json"))]
    every = [one for one in every if dataset in (None, one["dataset"])]
    check_folder_is_read({one["dataset"] for one in every}, data_dir)
    if not 1 <= count <= len(every):
        raise LsclError(
            f"sample = {count}: there are {len(every)} privacy records of profile {profile} to verify; lscl privacy "
            "makes them"
        )
    drawn = numpy_generator(seed, "verify privacy").choice(len(every), count, replace=False)
    name = f"privacy-{profile}"
    verify_records(
        [every[number] for number in sorted(drawn)],
        lambda record: verify_privacy(record, data_dir),
        write=partial(write_outcomes, name, seed, dataset),
    )
    return outcomes_path(name)
