"""Compute recorded runs again from nothing and compare: on the CPU, with as many threads, all is equal to the bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lscl import paths
from lscl.data.store import write_atomic
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.config_files import config_of_record
from lscl.experiments.run import run
from lscl.experiments.sweeps import reportable_records
from lscl.seeding import numpy_generator

# Parameters that came later are completed, not compared.
IGNORED = {*records.MAY_DIFFER, "overrides", "name", "config", "config_digest"}


def sample(profile: str, count: int, seed: int, dataset: str | None = None) -> list[records.Record]:
    """Some records of a profile, drawn at random among those that may enter a table.

    Args:
        profile: its name.
        count: how many to draw.
        seed: of the draw.
        dataset: only records on this data set.

    Returns:
        the records in the order of their files.

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
    """Compute a record again from nothing but what lies in the cache.

    Args:
        record: the run.
        data_dir: where the images lie.
        weights: a local checkpoint of the frozen ViT, for records that were made with one.

    Returns:
        name, equal, differs (names of entries), seconds, hardware, versions, recorded_at and verified_at (commits).
    """
    config = config_of_record(record, data_dir, weights)
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
    """Verify some records, print a line each, and write the outcome to results/verified/<profile>.json.

    Args:
        profile: its name.
        count: how many records to draw.
        seed: of the draw.
        data_dir: where the images lie.
        dataset: only records on this data set.
        weights: a local checkpoint of the frozen ViT.
        describe: what a line calls its record.

    Returns:
        the path of the outcome.

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
    """The outcome of one comparison (`verify`) in words."""
    return "equal to the bit" if one["equal"] else f"differs in {', '.join(one['differs'])}"
