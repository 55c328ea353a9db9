"""Compute recorded runs again from nothing and compare. There are three outcomes:

- equal: every entry but times and machine is equal to the bit. That is required on the same kind of CPU, with as many
  threads and the same version of torch;
- rounding: on another processor, a GPU among them, the accuracies lie within `rounding.ALLOWED` points, and all else
  that is compared is equal;
- different: anything else.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lscl import paths
from lscl.data.store import write_atomic
from lscl.errors import LsclError, shorten
from lscl.experiments import records
from lscl.experiments.config_files import config_of_record
from lscl.experiments.rounding import ALLOWED, accuracy_gaps, largest_gap
from lscl.experiments.run import run
from lscl.experiments.sweeps import SEEDS, check_folder_is_read, reportable_records, rows_of
from lscl.registry import METHODS
from lscl.seeding import numpy_generator

# Parameters that came later are completed, not compared.
IGNORED = {*records.MAY_DIFFER, "overrides", "name", "config", "config_digest"}
ROUNDED = {"accuracy", "per_class", "ridge", "device"}  # entries in which another processor may differ


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
    return _draw(_drawable(profile, dataset), profile, count, seed)


def _drawable(profile: str, dataset: str | None) -> list[records.Record]:
    """The records that `sample` draws from."""
    return [one for one in reportable_records(records.all_records(profile)) if dataset in (None, one["dataset"])]


def _draw(found: Sequence[records.Record], profile: str, count: int, seed: int) -> list[records.Record]:
    if not found:
        raise LsclError(f"no records of profile {profile} to verify: make some with lscl run or lscl sweep")
    if not 1 <= count <= len(found):
        raise LsclError(f"sample = {count}: there are {len(found)} records to verify, give 1 to {len(found)}")
    chosen = numpy_generator(seed, "verify").choice(len(found), count, replace=False)
    return [found[i] for i in sorted(chosen)]


def check_places_are_read(
    found: Collection[records.Record], data_dir: Path | None = None, weights: Path | None = None
) -> None:
    """Refuse a place that is read for none of some records.

    Args:
        found: the records, or those that some are drawn from.
        data_dir: where the images lie.
        weights: a local checkpoint of the frozen ViT.

    Raises:
        LsclError: the images of all of them come with the package, or none was made with a local checkpoint.
    """
    check_folder_is_read({one["dataset"] for one in found}, data_dir)
    if weights is not None and found and not any(one["config"].get("weights_sha256") for one in found):
        raise LsclError(f"weights = {weights}: no record to verify was made with a local checkpoint, leave it out")


def verify(record: records.Record, data_dir: Path | None = None, weights: Path | None = None) -> dict[str, Any]:
    """Compute a record again from nothing but what lies in the cache, on the CPU if there is no GPU for it.

    Args:
        record: the run.
        data_dir: where the images lie.
        weights: a local checkpoint of the frozen ViT, for records that were made with one.

    Returns:
        name, outcome ("equal", "rounding" or "different"), equal (to the bit), differs (names of entries), gaps (points
        by mask that it lies above the record), allowed (points), seconds, hardware, versions, recorded_at and
        verified_at (commits).
    """
    config = config_of_record(record, data_dir, weights)
    if config.device == "cuda" and not torch.cuda.is_available():
        config = config.model_copy(update={"device": "cpu"})
    return compute_again(record, lambda: run(config), compare_records)


def compute_again(
    record: dict[str, Any], compute: Callable[[], dict[str, Any]], compare: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """Compute a record again in a scratch folder and compare.

    Args:
        record: with its name and commit.
        compute: gives the new record.
        compare: tells from the record and the new one what differs.

    Returns:
        what `compare` gives, between the name and seconds, hardware, versions, recorded_at and verified_at (commits).
    """
    code = records.source()  # of this repository; the scratch folder has no history
    with paths.scratch():
        again = compute()
    return {
        "name": record["name"],
        **compare(record, again),
        "seconds": round(sum(again["seconds"].values()), 1),
        "hardware": again["hardware"],
        "versions": again["versions"],
        "recorded_at": record["commit"],
        "verified_at": code["commit"],
    }


def compare_records(record: records.Record, again: records.Record) -> dict[str, Any]:
    """Tell the three outcomes apart.

    Args:
        record: the recorded run.
        again: the same run, computed again.

    Returns:
        outcome, equal, differs, gaps and allowed, as `verify` gives them.
    """
    differs = records.differing_entries(record, again, IGNORED)
    gaps = {mask: round(value, 4) for mask, value in accuracy_gaps(again, record).items()}
    rounded = not same_rounding(record, again) and not set(differs) - ROUNDED and largest_gap(gaps) <= ALLOWED
    outcome = "rounding" if differs and rounded else "different" if differs else "equal"
    return {"outcome": outcome, "equal": not differs, "differs": differs, "gaps": gaps, "allowed": ALLOWED}


def same_rounding(record: records.Record, again: records.Record) -> bool:
    """Whether two runs must be equal to the bit: on one kind of CPU, with as many threads and one version of torch.

    Args:
        record: a run.
        again: another one.

    Returns:
        False if one of them is from a GPU.
    """
    places = [
        (one["device"], one["hardware"]["cpu"], one["config"]["threads"], one["versions"].get("torch"))
        for one in (record, again)
    ]
    instructions = {one["hardware"].get("instructions") for one in (record, again)} - {None}  # older records lack them
    return places[0] == places[1] and record["device"] == "cpu" and len(instructions) < 2


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
        LsclError: none of the records reads `data_dir` or `weights`; or one differs by more than rounding, or cannot be
            computed: the outcomes of the others are written all the same.
    """
    found = _drawable(profile, dataset)
    check_places_are_read(found, data_dir, weights)
    chosen = _draw(found, profile, count, seed)
    write = partial(write_outcomes, profile, seed, dataset)
    verify_records(chosen, lambda record: verify(record, data_dir, weights), describe, write)
    return outcomes_path(profile)


def outcomes_path(name: str) -> Path:
    """The file with the outcomes of drawn records, by its name in results/verified/."""
    return paths.results() / "verified" / f"{name}.json"


def write_outcomes(
    name: str, seed: int, dataset: str | None, found: list[dict[str, Any]], missing: Collection[str] = ()
) -> None:
    """Write what came of drawn records; without an outcome an earlier file stays as it is.

    Args:
        name: of the file in results/verified/.
        seed: of the draw.
        dataset: the only data set that it drew from; None if it drew from all.
        found: as `verify` gives them.
        missing: names of the drawn records that have no outcome.

    Raises:
        LsclError: the disk is full, or the folder cannot be written.
    """
    if found:
        saved = {
            "seed": seed,
            "dataset": dataset,
            "runs": found,
            **({"without_outcome": list(missing)} if missing else {}),
        }
        write_atomic(outcomes_path(name), (json.dumps(saved, indent=1) + "\n").encode())


def verify_records(
    chosen: Sequence[dict[str, Any]],
    compute: Callable[[dict[str, Any]], dict[str, Any]],
    describe: Callable[[dict[str, Any]], str] = lambda record: record["name"],
    write: Callable[[list[dict[str, Any]], Collection[str]], None] = lambda found, missing: None,
) -> None:
    """Verify records and print a line for each; one that cannot be computed stops none of the others.

    Args:
        chosen: the records.
        compute: gives the outcome of one, such as `verify`.
        describe: what a line calls its record.
        write: gets the outcomes and the names of the records without one when all are through, or at a stop.

    Raises:
        LsclError: a record differs by more than rounding, or cannot be computed; the line names each.
    """
    found: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    left = [record["name"] for record in chosen]
    try:
        for record in chosen:
            try:
                found.append(compute(record))
                said = describe_outcome(found[-1])
            except LsclError as error:
                failed[record["name"]] = str(error)
                said = f"cannot be computed again: {error}"
            left.remove(record["name"])
            print(f"{describe(record)}: {said} ({record['name']})", flush=True)
    finally:
        write(found, [*failed, *left])
    check_outcomes(found, failed)


def check_outcomes(found: list[dict[str, Any]], failed: Mapping[str, str]) -> None:
    """Refuse records that differ by more than rounding, and those that cannot be computed.

    Args:
        found: outcomes, as `verify` gives them.
        failed: {name of a record without an outcome: why}.

    Raises:
        LsclError: there is at least one.
    """
    count, lines = len(found) + len(failed), []
    unequal = [one["name"] for one in found if one["outcome"] == "different"]
    if unequal:
        lines.append(f"{len(unequal)} of {count} records differ from what this machine computes: {', '.join(unequal)}")
    if failed:
        why = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        lines.append(f"{len(failed)} of {count} records cannot be computed again: {why}")
    if lines:
        raise LsclError("; ".join(lines))


def cell_names(record: records.Record) -> list[str]:
    """The names of the cells that a record stands in, by set, data set, row and seed.

    For example table1/cifar100/<system>/42. A row of the main table is a system, followed by what it changes of the
    profile.
    """
    changes = "".join(f" {name}={value}" for name, value in sorted(record["overrides"].items()))
    rows = {name: row + (changes if name == "table1" else "") for name, row in rows_of(record).items()}
    return [f"{name}/{record['dataset']}/{row}/{record['seed']}" for name, row in rows.items()]


def find_cell(profile: str, name: str) -> records.Record:
    """The record behind a cell of a table or figure.

    Args:
        profile: of the record.
        name: as `cell_names` gives it; capitals and blanks at the ends do not matter.

    Returns:
        the record.

    Raises:
        LsclError: no such cell; the line has the nearest one.
    """
    plain = lambda text: "/".join(part.strip().lower() for part in text.split("/"))
    known = {cell: one for one in reportable_records(records.all_records(profile)) for cell in cell_names(one)}
    for cell, one in known.items():
        if plain(cell) == plain(name):
            return one
    near = get_close_matches(plain(name), map(plain, known), n=3, cutoff=0.4)
    nearest = f"; the nearest are {', '.join(near)}" if near else f"; there are {len(known)} recorded cells"
    example = f"table1/cifar100/{METHODS.find_role('own')}/{SEEDS[0]}"
    raise LsclError(
        f"no recorded cell {shorten(repr(name), 100)} in profile {profile}: a cell is set/data set/row/seed, such as "
        f"{example}{nearest}"
    )


def describe_outcome(one: dict[str, Any]) -> str:
    """The outcome of one comparison (`verify`) in words."""
    if one["equal"]:
        return "equal to the bit"
    gaps = ", ".join(f"{mask} {value:+.2f}" for mask, value in one.get("gaps", {}).items())
    if one.get("outcome") == "rounding":
        return f"equal within rounding (points apart: {gaps}; allowed on another processor: {one['allowed']:g})"
    return f"differs in {', '.join(one['differs'])}" + (f" (points apart: {gaps})" if gaps else "")
