"""Named sets of runs: the main table, the studies of the systems, the tuning; and running them."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from lscl.config import Experiment, check_options, check_profile, run_of_set
from lscl.errors import LsclError, unknown_name
from lscl.experiments import records
from lscl.experiments.run import RunBusy, check_affordable, run
from lscl.experiments.tuning import TUNING_SEED, Tuner, planned_runs
from lscl.models.cache import limit_bytes
from lscl.registry import DATASETS, METHODS

# What `lscl reproduce` and the results notebook show in each profile: seeds by data set.
SEEDS = [42, 1999, 2024]  # the paper's
PLANS: dict[str, dict[str, list[int]]] = {
    "smoke": {"glyphs": [42]},
    "demo": {"glyphs": [42]},
    "mini": {"cifar100": SEEDS, "glyphs": SEEDS},
    "full": {"cifar100": SEEDS},
    "colab": {"cifar100": [42]},
    "paper": {"cifar100": SEEDS, "imagenet_r": SEEDS},
}


def reportable_records(found: Iterable[records.Record]) -> list[records.Record]:
    """The records that may enter a table: all but those of the tuning seed."""
    return [one for one in found if one["seed"] != TUNING_SEED]


def main_table() -> list[tuple[str, dict[str, Any]]]:
    """The rows of the main table, quick ones first: method, and what differs from the profile."""
    return [(name, dict(row)) for name, kind in _in_turn() for row in kind.rows]


def _in_turn() -> list[tuple[str, Any]]:
    """The systems as sweeps run them: those that train nothing first, they take seconds."""
    return sorted(METHODS.items(), key=lambda item: (item[1].trains, item[1].turn))


def quick_systems(profile: str) -> list[str]:
    """The systems that `lscl reproduce` runs in a profile: all, or those that fit its time.

    The demo has ten minutes, a free GPU two hours.
    """
    return [name for name, kind in _in_turn() if profile in kind.quick] or [name for name, _ in _in_turn()]


def plan(
    profile: str,
    data_dir: Path | None = None,
    weights: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    seeds: Collection[int] | None = None,
    methods: Collection[str] = (),
) -> list[Experiment]:
    """Every run behind the main table of a profile.

    Args:
        profile: its name.
        data_dir: where the images lie.
        weights: a local checkpoint of the frozen ViT.
        changes: config fields of all runs; of the systems that read them. With `dataset` only this data set.
        seeds: in the place of the profile's own.
        methods: only the runs of these systems; empty = of all.

    Returns:
        the runs by data set and seed, quick ones first.

    Raises:
        LsclError: unknown profile or system, an impossible value, or a change that no run reads.
    """
    check_profile(profile)
    for method in methods:
        METHODS.find(method)
    given = dict(changes or {})
    values = {"data_dir": data_dir, "weights": weights, **given, "profile": profile}
    runs = [
        run_of_set({**values, "dataset": dataset}, {**extra, "method": method, "seed": seed})
        for dataset, usual in PLANS[profile].items()
        if given.get("dataset") in (None, dataset)
        for seed in (usual if seeds is None else seeds)
        for method, extra in main_table()
        if method in quick_systems(profile) and (not methods or method in methods)
    ]
    if runs:
        check_options(given, {one.method for one in runs})
    return runs


def check_folder_is_read(datasets: Collection[str], folder: Path | None) -> None:
    """Refuse a folder of images that none of some data sets reads.

    Args:
        datasets: names of the data sets; one that is not registered here may read it.
        folder: the folder; None = none was given.

    Raises:
        LsclError: the images of all of them come with the package.
    """
    sources = [DATASETS.get(name) for name in datasets]
    if folder is not None and sources and all(one and one.fixed and not one.download for one in sources):
        names = ", ".join(sorted(datasets))
        raise LsclError(f"data_dir = {folder}: the images of {names} come with the package: leave it out")


def study_owners() -> dict[str, str]:
    """The system of every study, by the study's name.

    Raises:
        LsclError: two systems have one of this name, or it is a set that every system is in.
    """
    found: dict[str, str] = {}
    for method, kind in METHODS.items():
        for name in kind.studies:
            if name in found or name in ("table1", "tune"):
                raise LsclError(
                    f"method {method!r}: there is a set of runs {name!r} already, give its study another name"
                )
            found[name] = method
    return found


def variants(name: str, profile: str) -> dict[str, dict[str, Any]]:
    """What the variants of a study change in a profile.

    Args:
        name: the study.
        profile: whose sizes the variants follow.

    Returns:
        {label in the tables: parameters of the config}.

    Raises:
        LsclError: no such study or profile.
    """
    check_profile(profile)
    owners = study_owners()
    if name not in owners:
        raise unknown_name("study", name, owners)
    owner = owners[name]
    whose = {} if METHODS[owner].role == "own" else {"method": owner}
    return {label: {**whose, **change} for label, change in METHODS[owner].studies[name](profile).items()}


def _study(name: str, values: dict[str, Any], seeds: list[int]) -> list[Experiment]:
    """Every variant of a study with every seed, without those that need more images of a class than there are.

    A run that is two variants, because its system does not read what differs, is there once.
    """
    images = DATASETS.find(values.get("dataset", "glyphs")).images
    most = images[0] if images else math.inf
    changes = [
        change
        for change in variants(name, values.get("profile", "demo")).values()
        if change.get("images_per_class", 0) <= most
    ]
    runs = (variant_run(values, change, seed) for seed in seeds for change in changes)
    return list({run.digest: run for run in runs}.values())


def variant_run(values: dict[str, Any], variant: dict[str, Any], seed: int) -> Experiment:
    """The run of one variant of a study.

    Args:
        values: the config of the whole study.
        variant: an entry of `variants`.
        seed: of the run.

    Returns:
        the run.
    """
    return run_of_set(values, {"method": METHODS.find_role("own"), **variant, "seed": seed})


@lru_cache
def _rows(profile: str, dataset: str, seed: int, _version: int) -> dict[str, dict[str, str]]:
    """{config digest: {name of a set: row}} of every set with one data set and seed, but for tuning."""
    values, rows = {"profile": profile, "dataset": dataset}, {}
    runs = [("table1", config.method, config) for config in table1(values, [seed])]
    for name in study_owners():
        runs += [(name, label, variant_run(values, change, seed)) for label, change in variants(name, profile).items()]
    for name, row, config in runs:
        rows.setdefault(config.digest, {})[name] = row
    return rows


def rows_of(record: records.Record) -> dict[str, str]:
    """The named sets that a record belongs to, with its row in each: {"table1": method, "blocks": "block 3", ...}."""
    return _rows(record["profile"], record["dataset"], record["seed"], METHODS.version).get(record["config_digest"], {})


def runs_of(name: str, values: dict[str, Any], seeds: list[int], methods: Collection[str] = ()) -> list[Experiment]:
    """The runs of a named set.

    Args:
        name: a key of `named_sets`.
        values: what the config of all its runs has.
        seeds: of the runs.
        methods: only the runs of these systems; empty = of all.

    Returns:
        the runs, seed by seed.

    Raises:
        LsclError: unknown set or method, or a value that no run of the set reads.
    """
    found = named_sets()
    if name not in found:
        raise unknown_name("sweep", name, found)
    for method in methods:
        METHODS.find(method)
    runs = [config for config in found[name](values, seeds) if not methods or config.method in methods]
    check_options(values, {config.method for config in runs} or methods)
    return runs


def share_of_runs(runs: list[Any], index: int, count: int) -> list[Any]:
    """The share of one batch task: every count-th run, whatever is finished already.

    Args:
        runs: all of them, or the systems to tune.
        index: the number of the task, from 0.
        count: how many tasks share the runs.

    Returns:
        its share.

    Raises:
        LsclError: no such task.
    """
    if not 0 <= index < count:
        raise LsclError(f"task_index = {index}: with task_count = {count} allowed are 0 to {count - 1}")
    return runs[index::count]


def sweep(
    name: str,
    values: dict[str, Any],
    seeds: list[int],
    list_only: bool = False,
    methods: Collection[str] = (),
    index: int = 0,
    count: int = 1,
) -> None:
    """Run what is missing of a named set; `tune` plays the trials that are due, see `lscl.experiments.tuning`.

    Several processes may sweep the same results folder: each takes the next run that no other is computing. A run that
    fails after another one went well does not stop the rest.

    Args:
        name: a key of `named_sets`.
        values: what the config of all its runs has.
        seeds: of the runs.
        list_only: print which runs are missing, and run nothing.
        methods: only the runs of these systems; empty = of all.
        index: the number of this batch task, from 0, see `share_of_runs`.
        count: how many batch tasks share the runs.

    Raises:
        LsclError: unknown set, method or task, code of no known commit (its runs could not be used), a run that this
            machine cannot hold, or, when all others are done, runs that failed.
    """
    limit_bytes()  # refuses a bound that is no number, before anything else
    if name == "tune":
        _tune(values, list_only, methods, index, count)
        return
    every = runs_of(name, values, seeds, methods)
    if not every:
        raise LsclError(_nothing(name, methods))
    runs = share_of_runs(every, index, count)
    for config in runs:
        print(f"{'done   ' if records.find(config) else 'missing'} {config.profile} {config.name}", flush=True)
    if list_only:
        return
    check_code()
    check_affordable([config for config in runs if not records.find(config)])
    failures, busy = Failures(len(runs)), []
    for wait, left in ((False, runs), (True, busy)):
        for config in left:
            try:
                with failures.passed_over(f"{config.profile} {config.name}"):
                    run(config, wait=wait)
            except RunBusy:
                busy.append(config)
    failures.check()


class Failures:
    """Runs that fail do not stop the others, once one went well: before that, the fault is likely one of them all.

    Args:
        count: how many runs there are.
    """

    def __init__(self, count: int):
        self.count = count
        self.went_well = False
        self.errors: list[LsclError] = []

    @contextmanager
    def passed_over(self, name: str) -> Iterator[None]:
        """Print and keep what makes the run inside the `with` block fail.

        Args:
            name: of the run.

        Raises:
            LsclError: the run is busy elsewhere, or it failed and none went well before it.
        """
        try:
            yield
            self.went_well = True
        except RunBusy:
            raise
        except LsclError as error:
            if not self.went_well:
                raise
            print(f"failed  {name}: {error}", flush=True)
            self.errors.append(error)

    def check(self) -> None:
        """Say at the end what failed.

        Raises:
            LsclError: at least one run failed.
        """
        if self.errors:
            failed = f"{len(self.errors)} of {self.count} runs failed"
            raise LsclError(f"{failed}, the others are done; the first one: {self.errors[0]}")


def _nothing(name: str, methods: Collection[str]) -> str:
    """Say that a named set has no run, or none of some systems."""
    return f"{name}: no run of this set is " + (f"of {', '.join(methods)}" if methods else "possible on this data set")


def check_code() -> None:
    """Refuse code whose runs could not be used.

    Raises:
        LsclError: it is of no known commit.
    """
    code = records.source()
    if code["dirty"] and code["commit"]:
        raise LsclError("uncommitted changes in lscl/: commit them first, runs of a dirty tree can never enter a table")
    if code["dirty"]:
        raise LsclError(
            "lscl/ is of no known commit: use a git clone, or an installed package as it was packed; "
            "other runs can never enter a table"
        )


def table1(values: dict[str, Any], seeds: list[int]) -> list[Experiment]:
    """Every system of the main table with every seed.

    Args:
        values: what the config of all runs has.
        seeds: of the runs.

    Returns:
        the runs, seed by seed.
    """
    return [
        run_of_set(values, {**extra, "method": method, "seed": seed})
        for seed in seeds
        for method, extra in main_table()
    ]


def tune(values: dict[str, Any], seeds: list[int]) -> list[Experiment]:
    """Every trial of every system on the tuning seed, as far as it plays; see `lscl.experiments.tuning`.

    Args:
        values: what the config of all runs has.
        seeds: without meaning here.

    Returns:
        the runs, system by system.
    """
    return planned_runs(values, _tunable())


def _tunable(methods: Collection[str] = ()) -> list[str]:
    """The systems that have something to tune, quick ones first."""
    return [name for name, kind in _in_turn() if kind.search_space and (not methods or name in methods)]


def _tune(values: dict[str, Any], list_only: bool, methods: Collection[str], index: int, count: int) -> None:
    """Tune this batch task's share of the systems: trials of one system depend on each other."""
    for method in methods:
        METHODS.find(method)
    check_options(values, methods or METHODS)
    if not _tunable(methods):
        raise LsclError(f"{_nothing('tune', methods)}: there is nothing to tune")
    tuner = Tuner(values, share_of_runs(_tunable(methods), index, count))
    if not list_only:
        check_code()
        check_affordable([config for configs in tuner.configs.values() for config in configs])
        tuner.tune()
    for line in [*tuner.lines(), *tuner.unused_choices()]:
        print(line, flush=True)


def named_sets() -> dict[str, Callable[[dict[str, Any], list[int]], list[Experiment]]]:
    """Every named set: the main table, the studies of the systems, and the tuning."""
    return {"table1": table1, **{name: partial(_study, name) for name in study_owners()}, "tune": tune}
