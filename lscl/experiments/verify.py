"""Compute recorded runs again from nothing and compare: on the CPU, with the recorded threads, everything must be equal to the bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lscl import paths
from lscl.config import experiment
from lscl.data.store import write_atomic
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.run import run
from lscl.experiments.sweeps import reportable_records
from lscl.seeding import numpy_generator

IGNORED = {
    *records.MAY_DIFFER,
    "overrides",
    "name",
    "config",
    "config_digest",
}  # parameters that came later are completed, not compared


def sample(profile: str, count: int, seed: int, dataset: str | None = None) -> list[records.Record]:
    """`count` records of a profile drawn at random, without those for tuning.

    Raises:
        LsclError: there are none, or not so many.
    """
    found = [one for one in reportable_records(records.all_records(profile)) if dataset in (None, one["dataset"])]
    if not found:
        raise LsclError(f"no records of profile {profile} to verify: make some with lscl run or lscl sweep")
    if not 1 <= count <= len(found):
        raise LsclError(f"sample = {count}: there are {len(found)} records to verify, give 1 to {len(found)}")
    chosen = numpy_generator(seed, "verify").choice(len(found), count, replace=False)
    return [found[i] for i in sorted(chosen)]


def verify(record: records.Record, data_dir: Path | None = None, weights: Path | None = None) -> dict[str, Any]:
    """Run the record's config from nothing, apart from what lies in the cache; -> what differs, and where and how long it ran."""
    file = weights if record["config"]["weights_sha256"] else None
    config = experiment(**{**record["config"], "data_dir": data_dir, "weights": file, "device": record["device"]})
    code = records.source()  # of this repository; the scratch folder has no history
    with paths.scratch():
        again = run(config)
    differs = records.differing_entries(record, again, IGNORED)
    return {
        "name": record["name"],
        "equal": not differs,
        "differs": differs,
        "seconds": round(sum(again["seconds"].values()), 1),
        "hardware": again["hardware"],
        "versions": again["versions"],
        "recorded_at": record["commit"],
        "verified_at": code["commit"],
    }


def verify_sample(
    profile: str,
    count: int,
    seed: int,
    data_dir: Path | None = None,
    dataset: str | None = None,
    weights: Path | None = None,
    describe: Callable[[records.Record], str] = lambda record: record["name"],
) -> Path:
    """Verify some records, print a line each, and keep the outcome in results/verified/<profile>.json.

    describe: what a line calls its record.

    Raises:
        LsclError: a record is not equal; the outcome is written all the same.
    """
    found = []
    for record in sample(profile, count, seed, dataset):
        found.append(verify(record, data_dir, weights))
        print(f"{describe(record)}: {describe_outcome(found[-1])} ({record['name']})", flush=True)
    path = paths.results() / "verified" / f"{profile}.json"
    write_atomic(path, (json.dumps({"seed": seed, "runs": found}, indent=1) + "\n").encode())
    unequal = [one["name"] for one in found if not one["equal"]]
    if unequal:
        raise LsclError(
            f"{len(unequal)} of {count} records differ from what this machine computes: {', '.join(unequal)}"
        )
    return path


def describe_outcome(one: dict[str, Any]) -> str:
    """The outcome of one comparison, in words."""
    return "equal to the bit" if one["equal"] else f"differs in {', '.join(one['differs'])}"
