"""Compute recorded runs again from nothing and compare: on the CPU, with the recorded threads, everything must be equal to the bit."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from lscl import files, paths, records, report, shapes
from lscl.config import experiment
from lscl.data.store import write_atomic
from lscl.errors import LsclError
from lscl.run import run
from lscl.seeding import numpy_generator
from lscl.sweeps import reported, rows_of

# Where the runs of a named set stand.
TABLES = {"table1": "Table 1", "ablations": "Table 2", "blocks": "Fig. 3", "cnns": "Fig. 4", "buffers": "Fig. 5", "regimes": "the writers by regime"}
AGAIN = "the record was made again since"
IGNORED = {*records.TIMES, "overrides", "name", "config", "config_digest"}  # parameters that came later are completed, not compared


def sample(profile: str, count: int, seed: int, dataset: str | None = None) -> list[records.Record]:
    """`count` records of a profile drawn at random, without those for tuning.

    Raises:
        LsclError: there are none, or not so many.
    """
    found = [one for one in reported(records.all_records(profile)) if dataset in (None, one["dataset"])]
    if not found:
        raise LsclError(f"no records of profile {profile} to verify: make some with lscl run or lscl sweep")
    if not 1 <= count <= len(found):
        raise LsclError(f"sample = {count}: there are {len(found)} records to verify, give 1 to {len(found)}")
    chosen = numpy_generator(seed, "verify").choice(len(found), count, replace=False)
    return [found[i] for i in sorted(chosen)]


def cells(record: records.Record) -> list[str]:
    """What of the tables and figures this record is behind: the set, the data set, the row, the seed, and its two final accuracies."""
    rows = {name: report.label(record) if name == "table1" else row for name, row in rows_of(record).items()}
    accuracies = ", ".join(f"{report.final(record, mask):.1f} % {report.MASK_LABELS[mask]}" for mask in ("task", "seen"))
    where = report.DATASET_LABELS[record["dataset"]]
    return [f"{TABLES[name]}, {where}, {row}, seed {record['seed']}: {accuracies}" for name, row in rows.items()]


def verify(record: records.Record, data_dir: Path | None = None, weights: Path | None = None) -> dict[str, Any]:
    """Run the record's config from nothing, apart from what lies in the cache; -> what differs, and where and how long it ran."""
    file = weights if record["config"]["weights_sha256"] else None
    config = experiment(**{**record["config"], "data_dir": data_dir, "weights": file, "device": record["device"]})
    code = records.source()  # of this repository; the scratch folder has no history
    with paths.scratch():
        again = run(config)
    differs = records.differing(record, again, IGNORED)
    return {
        "name": record["name"],
        "cells": cells(record),
        "equal": not differs,
        "differs": differs,
        "seconds": round(sum(again["seconds"].values()), 1),
        "hardware": again["hardware"],
        "versions": again["versions"],
        "recorded_at": record["commit"],
        "verified_at": code["commit"],
    }


def verify_sample(profile: str, count: int, seed: int, data_dir: Path | None = None, dataset: str | None = None, weights: Path | None = None) -> Path:
    """Verify some records, print a line each, and keep the outcome in results/verified/<profile>.json.

    Raises:
        LsclError: a record is not equal; the outcome is written all the same.
    """
    found = []
    for record in sample(profile, count, seed, dataset):
        found.append(verify(record, data_dir, weights))
        print(f"{'; '.join(found[-1]['cells']) or 'in no table'}: {_said(found[-1])} ({record['name']})", flush=True)
    path = paths.results() / "verified" / f"{profile}.json"
    write_atomic(path, (json.dumps({"seed": seed, "runs": found}, indent=1) + "\n").encode())
    unequal = [one["name"] for one in found if not one["equal"]]
    if unequal:
        raise LsclError(f"{len(unequal)} of {count} records differ from what this machine computes: {', '.join(unequal)}")
    return path


def _said(one: dict[str, Any]) -> str:
    return "equal to the bit" if one["equal"] else f"differs in {', '.join(one['differs'])}"


def outcome(profile: str) -> str:
    """The outcome that is kept for a profile, as a numbered table with what it says in a sentence, as markdown."""
    path = paths.results() / "verified" / f"{profile}.json"
    if not path.exists():
        return f"No run is verified yet: `lscl verify --profile {profile} --sample 3` does it."
    saved = files.from_json(path, shapes.Verified)
    known = {one["name"]: one for one in records.all_records(profile)}
    rows = [
        {
            "cell": "; ".join(cells(known[one["name"]]) if one["name"] in known else []) or one["name"],
            "computed again": _said(one) if one["recorded_at"] == known.get(one["name"], one).get("commit", one["recorded_at"]) else AGAIN,
            "seconds": f"{one['seconds']:.1f}",
            "recorded at": (one["recorded_at"] or "–")[:10],
            "verified at": (one["verified_at"] or "–")[:10],
            "machine": one["hardware"]["cpu"],
        }
        for one in saved["runs"]
    ]
    equal = sum(one["equal"] for one in saved["runs"])
    command = f"lscl verify --profile {profile} --sample {len(rows)} --seed {saved['seed']}"
    caption = f"`{command}`: cells drawn at random, their records computed again from nothing"
    return f"{equal} of {len(rows)} were equal to the bit.\n\n{report.numbered(pd.DataFrame(rows), caption, f'tab-verified-{profile}', index=False)}"
