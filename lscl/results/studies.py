"""Named sets of runs as tables show them: which are recorded, and which row a record belongs to."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from lscl.config import Experiment, check_profile
from lscl.experiments.records import Record, find, select
from lscl.experiments.run import run
from lscl.experiments.sweeps import PLANS, SEEDS, main_table, runs_of, variant_run, variants
from lscl.methods.parts.fed_lscl_studies import REGIMES, WRITERS, regime_change
from lscl.registry import METHODS
from lscl.results.labels import DATASET_LABELS, notes_of

AUDITED = "lscl.study"  # the audit event (`sys.audit`) of reading a set of runs: its profile and name, "" for all runs
LOCAL_FILES = ("weights_sha256",)  # of a local checkpoint: no variant


@dataclass(frozen=True)
class Study:
    """A named set of runs in one profile.

    datasets: all that were asked for; found: the records, seed by seed; missing: the runs without one.
    """

    name: str
    profile: str
    datasets: tuple[str, ...]
    found: list[Record]
    missing: list[Experiment]


def collect(
    name: str,
    profile: str,
    compute: bool = False,
    data_dir: Path | str | None = None,
    weights: Path | str | None = None,
    planned: Mapping[str, Sequence[int]] | None = None,
) -> Study:
    """The records of the study `name`.

    Args:
        name: a named set of runs, see `sweeps.named_sets`.
        profile: the profile of the runs.
        compute: compute runs without a record first.
        data_dir: where the images lie.
        weights: a local checkpoint of the frozen ViT.
        planned: {data set: seeds}, those of `sweeps.PLANS` if not given.

    Returns:
        what is recorded of it, and what is missing.

    Raises:
        LsclError: no such study or profile; a run that fails.
    """
    check_profile(profile)
    sys.audit(AUDITED, profile, name)
    planned, found, missing = planned or PLANS[profile], [], []
    for dataset, seeds in planned.items():
        for config in runs_of(
            name, {"profile": profile, "dataset": dataset, "data_dir": data_dir, "weights": weights}, sorted(seeds)
        ):
            record = run(config, quiet=True) if compute else find(config)
            if record is None:
                missing.append(config)
            else:
                found.append(record)
    return Study(name, profile, tuple(planned), found, missing)


def shown_profile(profile: str, compute: bool) -> str:
    """The profile whose records a page shows.

    Args:
        profile: in which the page is executed.
        compute: whether the page computes its own runs.

    Returns:
        mini, whose records are committed, for a page that computes nothing in smoke or demo; else `profile`.
    """
    return "mini" if profile in ("smoke", "demo") and not compute else profile


def describe_states(*collected: Study) -> str:
    """What the studies of a page still lack, in one paragraph of markdown with the commands for the rest.

    Args:
        collected: the studies, of one profile.

    Returns:
        sentences; one if nothing is missing.
    """
    if not any(study.missing for study in collected):
        return f"All {sum(len(study.found) for study in collected)} runs behind this page are recorded."
    states, commands = [], []
    for study in collected:
        counts = []
        for dataset in study.datasets:
            found = select(study.found, dataset=dataset)
            missing = [one for one in study.missing if one.dataset == dataset]
            counts.append(f"{len(found)} of {len(found) + len(missing)} on {DATASET_LABELS[dataset]}")
            commands += [_sweep(study, missing)] if missing else []
        states.append(f"*{study.name}* has {' and '.join(counts)}")
    return (
        f"**Some runs behind this page are missing.** In the profile `{collected[0].profile}` the study "
        f"{'; '.join(states)}. Tables and figures that need the others say so. {', '.join(commands)} "
        f"{'makes' if len(commands) == 1 else 'make'} them."
    )


def _sweep(study: Study, missing: list[Experiment]) -> str:
    """The command that makes the missing runs of one data set, as code."""
    seeds = sorted({one.seed for one in missing})
    chosen = "" if seeds == SEEDS else f" --seeds {','.join(map(str, seeds))}"
    return f"`lscl sweep {study.name} --dataset {missing[0].dataset} --profile {study.profile}{chosen}`"


def changes_of(record: Record) -> dict[str, Any]:
    """What a run changes of its profile, without the digests of local files: {parameter: value}."""
    return {key: value for key, value in record["overrides"].items() if key not in LOCAL_FILES}


def variant_of(record: Record, study: str) -> str | None:
    """The name of a record's row in the tables of a study.

    Args:
        record: the run.
        study: a named set of runs.

    Returns:
        the name; None if the record is not in the study.

    Raises:
        LsclError: no such study.
    """
    given = changes_of(record)
    if study == "table1":
        return notes_of(record) if (record["method"], given) in main_table() else None
    return _variants(study, record["profile"], record["dataset"]).get(
        (record["method"], json.dumps(given, sort_keys=True))
    )


@lru_cache
def _variants(study: str, profile: str, dataset: str) -> dict[tuple[str, str], str]:
    """{(method, overrides): name} of every variant of a study."""
    values = {"profile": profile, "dataset": dataset}
    if study == "regimes":
        runs = [
            (writer, variant_run(values, regime_change(regime, writer, profile), SEEDS[0]))
            for regime in REGIMES
            for writer in WRITERS
        ]
    else:
        runs = [(name, variant_run(values, change, SEEDS[0])) for name, change in variants(study, profile).items()]
    return {(config.method, json.dumps(config.overrides(), sort_keys=True)): name for name, config in runs}


def rows_in_order(study: str, profile: str) -> list[str]:
    """The names of a study's rows in the order of its tables.

    Args:
        study: a named set of runs.
        profile: whose variants it has.

    Returns:
        the names; none for the main table, which has the order of the systems.
    """
    if study == "table1":
        return []
    return list(WRITERS if study == "regimes" else variants(study, profile))


def beside_every_block(table: pd.DataFrame) -> pd.DataFrame:
    """The writers by regime, sorted; one that adapts nothing has no block and is listed with every block.

    Args:
        table: rows of the study "regimes" with the columns images_per_class and block.

    Returns:
        pandas.DataFrame: the rows by data set, images and block, those without a block once for each.
    """
    regime, adapts = ["dataset", "images_per_class", "block"], table["method"] == METHODS.find_role("own")
    beside = table[~adapts].drop(columns="block").merge(table.loc[adapts, regime].drop_duplicates())
    return pd.concat([table[adapts], beside]).sort_values(regime, kind="stable")


# ---- Table 2: the components of Fed-LSCL


# The eight subsets of Table 2 are a full factorial design: four of them have a component and four do not.
_SUBSETS = {
    "whole": "WSO", "no O2D": "WS", "no SM-CF": "WO", "neither O2D nor SM-CF": "W",
    "static LoRA for the written one": "SO", "static LoRA, no O2D": "S", "static LoRA, no SM-CF": "O",
    "static LoRA, neither O2D nor SM-CF": "",
}  # fmt: skip
FACTORS = {"W": "written per image, not static", "S": "SM-CF", "O": "O2D"}
# 1 where a subset has a component, -1 where it lacks it: a row per subset, a column per component.
DESIGN = pd.DataFrame(
    {title: [1 if key in has else -1 for has in _SUBSETS.values()] for key, title in FACTORS.items()},
    index=list(_SUBSETS),
)


def component_effects(by_seed: pd.DataFrame) -> pd.DataFrame:
    """What each component adds: the mean of the four subsets with it minus the mean of the four without.

    Args:
        by_seed: one row per seed, the variants of the ablations in the columns.

    Returns:
        pandas.DataFrame: the rows that have all eight subsets, a component (FACTORS) in each column.
    """
    return by_seed.reindex(columns=DESIGN.index).dropna() @ DESIGN / 4


def component_marks(profile: str) -> pd.DataFrame:
    """What every variant of the ablations has of the three components: ✓, – or what stands in for it."""
    changes = variants("ablations", profile)
    return pd.DataFrame([_marks(change) for change in changes.values()], index=list(changes))


def _marks(change: dict[str, Any]) -> dict[str, str]:
    kinds = (("collaboration", "written", "LSCT"), ("continual", "consistency", "SM-CF"), ("o2d", "exact", "O2D"))
    names = {"none": "–", "static": "static", "cnn": "–", "sgd": "✓ gradient"}
    marks = {
        title: "✓" if change.get(key, usual) == usual else names.get(change[key], change[key])
        for key, usual, title in kinds
    }
    if change.get("consistency_compares") == "matrices":
        marks["SM-CF"] = "✓ A and B apart"
    return marks | ({"O2D": "–"} if change.get("collaboration") == "cnn" else {})  # no generator, nothing to fuse
