"""All results as tidy tables: one row per measured number, and in the columns before it what it was measured of.

Every table and figure of the book is a filter, a group and a mean of these. The first columns are the same in all of
them: dataset, profile, method, variant, label, seed, and `run`, the record's place below results/runs, from which
`records_behind` finds it again. `label` is the system's name in tables; `variant` tells the row from others of the same
system or study.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lscl import paths
from lscl.config import WHERE_AND_HOW, Experiment, check_profile, experiment_class, fields
from lscl.errors import LsclError, unknown_name
from lscl.experiments.cost_model import cost, has_known_size
from lscl.experiments.records import Record, accuracy, all_records, folder, read_record, scores_of
from lscl.experiments.sweeps import reportable_records
from lscl.federation.metrics import HEADS, MASKS, RIDGE_MASKS, average_so_far
from lscl.registry import METHODS
from lscl.results import studies
from lscl.results.labels import LOSSES, SCORES, methods_in_order, notes_of, row_label, training_free, variants_of_ours

Runs = str | Iterable[Record]
RUN = ["dataset", "profile", "method", "variant", "label", "seed", "run"]
# Parameters that decide which images a run reads, and who gets which of them.
IMAGE_FIELDS = (
    "images_per_class",
    "test_images_per_class",
    "eval_split",
    "image_size",
    "duplicates",
    "folder_digest",
)
PARTITION_FIELDS = (
    *IMAGE_FIELDS,
    "seed",
    "clients",
    "tasks",
    "classes_per_task",
    "private_classes",
    "dirichlet",
    "min_share",
)


def frame(
    runs: Runs,
    dataset: str | None = None,
    study: str | None = None,
    values: Sequence[str] = (),
    draft: bool = False,
    head: str | None = "trained",
) -> pd.DataFrame:
    """Every accuracy: one row per run, mask, client, task after which it was measured, and task on whose test images.

    Args:
        runs: a profile, for all its runs but those for tuning; or records.
        dataset: only this data set.
        study: only the runs of this named set (`lscl sweep`), with its own names of rows in the column `variant`.
        values: parameters of the config that become columns, to filter and group by.
        draft: let runs of uncommitted code pass, for looking at what is in progress.
        head: only this head: "trained", the system's own; "ridge", the closed-form one on the system's own features,
            of the runs that tested it, without the mask all; None = both.

    Returns:
        pandas.DataFrame: the columns of all frames, `values`, and head, mask (task, seen, all), client, trained_task,
            tested_task (from 1), accuracy (%); in the order of the tables and of the seeds; no rows without runs.

    Raises:
        LsclError: unknown profile, study or parameter; runs of uncommitted code; in one row of a table a seed twice, or
            runs that differ in more than the seed; runs of one data set with other images, weights or partitions than
            their configs say.
    """
    columns = ["head", "mask", "client", "trained_task", "tested_task", "accuracy"]
    return _tidy(runs, dataset, study, values, draft, columns, partial(_accuracies, heads=_heads(head)))


def costs_frame(
    runs: Runs, dataset: str | None = None, study: str | None = None, values: Sequence[str] = (), draft: bool = False
) -> pd.DataFrame:
    """What every run cost: one row per run.

    Args:
        runs: as for `frame`.
        dataset: as for `frame`.
        study: as for `frame`.
        values: as for `frame`.
        draft: as for `frame`.

    Returns:
        pandas.DataFrame: the columns of all frames, `values`, and clients; bytes_up, bytes_down (all clients, whole
            run); mb_up, mb_down (MB of 10^6 bytes per client, whole run); trained_parameters (mean over the clients);
            trained_images (those that optimisers have seen, kept and made ones among them; in records that do not say,
            the images of the tasks in every pass); tflop (10^12 FLOPs of clients and server, as the plan computes
            them, NaN if the system does not declare its costs); cpu_seconds and cpu_minutes (all rounds); cpu_train,
            cpu_aggregate, cpu_evaluate (minutes of the processor, shared out like the seconds by the clock: other work
            of the machine slows all phases of a run alike, on average); prepare, train, aggregate, evaluate (seconds
            by the clock); peak_memory_mb (highest of the process). Processor time and memory are NaN for a run on a
            GPU, which does most of its work elsewhere, and where a record does not say.

    Raises:
        LsclError: as for `frame`.
    """
    columns = ["clients", "bytes_up", "bytes_down", "mb_up", "mb_down", "trained_parameters", "trained_images", "tflop"]
    columns += [
        "cpu_seconds",
        "cpu_minutes",
        *(f"cpu_{phase}" for phase in ROUND_PHASES),
        "prepare",
        *ROUND_PHASES,
        "peak_memory_mb",
    ]
    return _tidy(runs, dataset, study, values, draft, columns, lambda record: [_costs(record)])


def traffic_frame(
    runs: Runs, dataset: str | None = None, study: str | None = None, values: Sequence[str] = (), draft: bool = False
) -> pd.DataFrame:
    """Bytes of every exchange: one row per run, exchange and client.

    Args:
        runs: as for `frame`.
        dataset: as for `frame`.
        study: as for `frame`.
        values: as for `frame`.
        draft: as for `frame`.

    Returns:
        pandas.DataFrame: the columns of all frames, `values`, and exchange, task, client (all from 1), bytes_up,
            bytes_down.

    Raises:
        LsclError: as for `frame`.
    """
    return _tidy(
        runs, dataset, study, values, draft, ["exchange", "task", "client", "bytes_up", "bytes_down"], _traffic
    )


def classes_frame(
    runs: Runs,
    dataset: str | None = None,
    study: str | None = None,
    values: Sequence[str] = (),
    draft: bool = False,
    head: str | None = "trained",
) -> pd.DataFrame:
    """Accuracy of every class after the last task: one row per run, client, class and mask.

    Args:
        runs: as for `frame`.
        dataset: as for `frame`.
        study: as for `frame`.
        values: as for `frame`.
        draft: as for `frame`.
        head: as for `frame`.

    Returns:
        pandas.DataFrame: the columns of all frames, `values`, and head, client, cnn, trained_parameters (both the
            client's), class, mask, accuracy (%).

    Raises:
        LsclError: as for `frame`.
    """
    return _tidy(
        runs,
        dataset,
        study,
        values,
        draft,
        ["head", "client", "cnn", "trained_parameters", "class", "mask", "accuracy"],
        partial(_classes, heads=_heads(head)),
    )


# ---- what one record gives


ROUND_PHASES = ("train", "aggregate", "evaluate")  # the phases of a round; the preparation before them is cached


def _heads(head: str | None) -> tuple[str, ...]:
    if head not in (None, *HEADS):
        raise unknown_name("head", head, HEADS)
    return HEADS if head is None else (head,)


def _accuracies(record: Record, heads: Sequence[str]) -> list[tuple]:
    masks = [(head, mask) for head in heads for mask in MASKS if mask in scores_of(record, head).get("accuracy", ())]
    found = [(*one, accuracy(record, one[1], one[0])) for one in masks]  # acc: (t, k, u), NaN for u > t
    return [
        (head, mask, k + 1, t + 1, u + 1, acc[t, k, u])
        for head, mask, acc in found
        for t in range(len(acc))
        for k in range(acc.shape[1])
        for u in range(t + 1)
    ]


def _costs(record: Record) -> tuple:
    clients, on_gpu = len(record["bytes_up"][0]), record["device"] != "cpu"
    up, down = (float(np.sum(record[side])) for side in ("bytes_up", "bytes_down"))
    seconds = np.nan if on_gpu else record.get("cpu_seconds", np.nan)
    traffic = [up, down, up / clients / 1e6, down / clients / 1e6]
    trained = [
        float(np.mean(record["trained_parameters"])),
        record.get("optimised_images", record.get("trained_images", np.nan)),
        _flops(record) / 1e12,
    ]
    phases = np.array([record["seconds"].get(phase, np.nan) for phase in ROUND_PHASES])
    shares = seconds / 60 * phases / phases.sum()
    return (
        clients,
        *traffic,
        *trained,
        seconds,
        seconds / 60,
        *shares,
        record["seconds"]["prepare"],
        *phases,
        np.nan if on_gpu else record["peak_memory_mb"],
    )


def _flops(record: Record) -> float:
    """What the plan computes for a run; NaN where it cannot tell."""
    config = _config(record)
    return _planned_flops(config, METHODS[config.method]) if has_known_size(config) else np.nan


@lru_cache(maxsize=1000)
def _planned_flops(config: Experiment, kind: type) -> float:
    """The FLOPs of a config; `kind` is the system that is registered under its name."""
    return cost(config).flops


def _config(record: Record) -> Experiment:
    return experiment_class().model_validate(record["config"])


def _traffic(record: Record) -> list[tuple]:
    up, down = record["bytes_up"], record["bytes_down"]  # (exchanges, clients)
    return [
        (i + 1, task + 1, k + 1, up[i][k], down[i][k])
        for i, task in enumerate(_tasks_of_exchanges(record))
        for k in range(len(up[i]))
    ]


def _tasks_of_exchanges(record: Record) -> list[int]:
    """The task of every exchange, from 0: tasks without training have one each, those with training share the rest."""
    config, kind = _config(record), METHODS[record["method"]]
    trains = [kind.trains_in(config, task) for task in range(len(record["accuracy"]["task"]))]
    rounds = (len(record["bytes_up"]) - trains.count(False)) // max(1, trains.count(True))
    return [task for task, trained in enumerate(trains) for _ in range(rounds if trained else 1)]


def _classes(record: Record, heads: Sequence[str]) -> list[tuple]:
    names = [name.strip() for name in record["config"].get("cnn", "none").split(",")]  # dealt out in turn
    about = lambda k: (k + 1, names[k % len(names)], record["trained_parameters"][k])
    found = [
        (head, int(k), classes)
        for head in heads
        for k, classes in sorted(scores_of(record, head).get("per_class", {}).items(), key=lambda item: int(item[0]))
    ]
    return [
        (head, *about(k), int(label), mask, float(value))
        for head, k, classes in found
        for label, values in classes.items()
        for mask, value in zip(MASKS if head == "trained" else RIDGE_MASKS, values, strict=True)
    ]


def _tidy(
    runs: str | Iterable[Record],
    dataset: str | None,
    study: str | None,
    values: Sequence[str],
    draft: bool,
    columns: list[str],
    rows_of: Callable[[Record], list[tuple]],
) -> pd.DataFrame:
    if isinstance(runs, str):
        sys.audit(studies.AUDITED, runs, study or "")
    found = check_comparable(runs_of_study(_records(runs), study, dataset), draft)
    parts = []
    for variant, record in found:
        unknown_values = [name for name in values if name not in fields()]
        if unknown_values:
            raise unknown_name("parameter", unknown_values[0], fields())
        place = folder(record["profile"], record["dirty"]).relative_to(paths.results() / "runs") / record["name"]
        about = {name: record[name] for name in ("dataset", "profile", "method", "seed")}
        about |= {"variant": variant, "label": row_label(record), "run": str(place)} | {
            name: record["config"].get(name, fields()[name].default) for name in values
        }
        parts.append(pd.DataFrame(rows_of(record), columns=columns).assign(**about))
    order = [*RUN, *values, *columns]
    return pd.concat(parts, ignore_index=True)[order] if parts else pd.DataFrame(columns=order)


# ---- which records


def main_records(found: Iterable[Record]) -> list[Record]:
    """The records behind the main table: its systems, without the tuning seed."""
    return [one for one in reportable_records(found) if studies.variant_of(one, "table1") is not None]


def variant_records(found: Iterable[Record]) -> list[Record]:
    """The plain runs of our variants, which no row of the main table has: they change nothing of their profile.

    Tables and figures show them as a group of their own. No claim and no ranking counts them.

    Args:
        found: any records of one profile.

    Returns:
        those of `labels.variants_of_ours`, without the tuning seed.
    """
    ours = variants_of_ours()
    return [one for one in reportable_records(found) if one["method"] in ours and not studies.changes_of(one)]


def table_records(runs: Runs) -> list[Record]:
    """The records that tables and figures of all systems show: those of the main table, then our variants' plain runs.

    Args:
        runs: as for `frame`, of one profile.

    Returns:
        no record of the tuning seed.
    """
    every = _records(runs)
    return [*main_records(every), *variant_records(every)]


def _records(runs: str | Iterable[Record]) -> list[Record]:
    if not isinstance(runs, str):
        return list(runs)
    check_profile(runs)
    return reportable_records(all_records(runs))


def runs_of_study(found: Iterable[Record], study: str | None, dataset: str | None = None) -> list[tuple[str, Record]]:
    """The records of a study, each with its variant, in the order of the tables and of the seeds.

    Args:
        found: records of one profile.
        study: a named set of runs; None = no choice, and the variant is `labels.notes_of`.
        dataset: only records on this data set.

    Returns:
        (variant, record) pairs.
    """
    order = methods_in_order()
    place = lambda one: (
        order.index(one["method"]) if one["method"] in order else len(order),
        row_label(one),
        one["seed"],
    )
    chosen = [one for one in sorted(found, key=place) if dataset in (None, one["dataset"])]
    if study is None:
        return [(notes_of(one), one) for one in chosen]
    named = [(studies.variant_of(one, study), one) for one in chosen]
    rows = studies.rows_in_order(study, chosen[0]["profile"]) if chosen else []
    return sorted(
        ((name, one) for name, one in named if name is not None), key=lambda pair: rows.index(pair[0]) if rows else 0
    )


def check_comparable(found: Sequence[tuple[str, Record]], draft: bool = False) -> Sequence[tuple[str, Record]]:
    """Check that records may stand in one table.

    Args:
        found: (variant, record) pairs.
        draft: let records of uncommitted code pass.

    Returns:
        the same pairs.

    Raises:
        LsclError: see `frame`.
    """
    before: dict[tuple, Any] = {}
    for _, record in found:
        if record["dirty"] and not draft:
            raise LsclError(
                f"record {record['name']} was made with uncommitted code, it cannot enter a table: "
                "commit, then run it again"
            )
        row = (record["dataset"], row_label(record), record["seed"])
        if row in before:
            raise LsclError(f"{row[1]}: a seed occurs twice")
        before[row] = record["name"]
        for key, value, message in _must_agree(record):
            if value is not None and before.setdefault(key, value) != value:
                raise LsclError(message.format(*sorted((str(before[key]), str(value)))))
    return found


def _must_agree(record: Record) -> list[tuple[tuple, Any, str]]:
    """(key, value, message): records with one key must have one value, or the message with both values is the error."""
    config, dataset, name = record["config"], record["dataset"], row_label(record)
    several = "one table, one {}: the records have {{}}, {{}}"
    images, parts = (tuple(config.get(field) for field in fields) for fields in (IMAGE_FIELDS, PARTITION_FIELDS))
    same = json.dumps(
        {key: value for key, value in config.items() if key not in {"seed", *WHERE_AND_HOW}}, sort_keys=True
    )
    differs = (
        f"{name}: the records differ in more than the seed (config, weights or data): run them again with one version"
    )
    elsewhere = f"{name}: the records of seed {record['seed']} were trained on different partitions ({{}}, {{}})"
    return [
        (("profile",), record["profile"], several.format("profile")),
        (("images", dataset, *images), record["data_digest"], several.format("data_digest")),
        (("row", dataset, name), (same, record["weights_digest"]), differs),
        (
            ("weights", dataset, config.get("foundation"), config.get("weights_sha256")),
            record["weights_digest"],
            several.format("weights_digest"),
        ),
        (("partition", dataset, *parts), record["partition_digest"], elsewhere),
    ]


def records_behind(table: pd.DataFrame | Iterable[Record]) -> list[Record]:
    """The records of a frame, or of a part of one, in its order; records are handed back as they are.

    Raises:
        LsclError: one that cannot be read any more.
    """
    if not isinstance(table, pd.DataFrame):
        return list(table)
    files = [paths.results() / "runs" / f"{run}.json" for run in table["run"].unique()]
    return [_read_once(path, path.stat().st_mtime_ns if path.exists() else 0) for path in files]


@lru_cache(maxsize=1000)
def _read_once(path: Path, changed: int) -> Record:
    """A record; `changed` tells whether the file is still the one that was read before."""
    return read_record(path)


# ---- parts of a frame


def first_dataset(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows on the first data set, for a figure that has room for one."""
    return rows[rows["dataset"] == rows["dataset"].min()]


def compared_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a figure of a study; none if they have one variant only, which compares nothing.

    Args:
        rows: with the column variant.
    """
    return rows if rows["variant"].nunique() > 1 else rows[:0]


def common_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the seeds that all variants have, so that means over the seeds compare like with like.

    Args:
        rows: with the columns variant and seed.
    """
    variants = rows.groupby("seed")["variant"].transform("nunique")
    return rows[variants == rows["variant"].nunique()]


def final_accuracy(record: Record, mask: str) -> float:
    """Accuracy of one record after the last task, mean over clients and all their tasks.

    Args:
        record: the run.
        mask: task, seen or all.

    Returns:
        percent.
    """
    return float(average_so_far(accuracy(record, mask))[-1])


def final_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows after the last task of each run: their mean over clients and tasks is the paper's Table 2."""
    return scores[scores["trained_task"] == scores.groupby("run")["trained_task"].transform("max")]


def final_by_seed(scores: pd.DataFrame, mask: str, columns: str = "label") -> pd.DataFrame:
    """Final accuracies under one score, as paired comparisons need them.

    Args:
        scores: rows of `frame` on one data set.
        mask: the score: task, seen or all.
        columns: the column that becomes the table's columns, label or variant.

    Returns:
        percent, a row per seed and a column per system or variant; NaN where a seed is missing.
    """
    return final_rows(scores[scores["mask"] == mask]).pivot_table("accuracy", "seed", columns, sort=False)


def just_learned_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows about the task just learned: their mean over the clients is the paper's Table 1."""
    return scores[scores["trained_task"] == scores["tested_task"]]


def best_control(scores: pd.DataFrame, shown: pd.DataFrame | None = None) -> pd.DataFrame:
    """The training-free control with the highest final accuracy, for each data set and score.

    Args:
        scores: rows of `frame`.
        shown: rows of a figure: only their data sets and scores; None = all.

    Returns:
        Its rows, after all tasks; none if no control was measured.
    """
    keys = ["dataset", "mask"]
    rows = scores[scores["method"].isin(training_free())]
    if shown is not None:
        rows = rows[rows["dataset"].isin(shown["dataset"]) & rows["mask"].isin(shown["mask"])]
    means = final_rows(rows).groupby([*keys, "label"], sort=False)["accuracy"].mean().reset_index()
    best = means.loc[means.groupby(keys, sort=False)["accuracy"].idxmax(), [*keys, "label"]]
    return rows.merge(best, on=[*keys, "label"])


def control_levels(scores: pd.DataFrame, shown: pd.DataFrame, base: str | None = None) -> dict[str, float]:
    """Where the best training-free control stands in a figure.

    Args:
        scores: rows of `frame`, the controls among them.
        shown: rows of the figure, on one data set.
        base: the variant that the figure subtracts; None = nothing is subtracted.

    Returns:
        {score: its final accuracy, or its lead in points over the variant's}; without the scores that lack either.

    Raises:
        LsclError: rows on two data sets, whose levels differ.
    """
    if shown["dataset"].nunique() > 1:
        raise LsclError(
            f"a figure with the level of the best control has one data set, not {shown['dataset'].nunique()}"
        )
    by_seed = lambda rows: final_rows(rows).groupby(["mask", "seed"])["accuracy"].mean()
    level = by_seed(best_control(scores, shown))
    if base is not None:
        level = level - by_seed(shown[shown["variant"] == base])  # NaN for a seed that only one of them has
    return level.groupby("mask").mean().dropna().to_dict()


def accuracy_matrix(scores: pd.DataFrame, label: str) -> np.ndarray:
    """R[t, u]: accuracy on the images of task u after task t, mean over clients and seeds.

    Args:
        scores: rows of `frame` on one data set, under one score.
        label: the system.

    Returns:
        (tasks, tasks) percent, NaN where u > t.
    """
    own = scores[scores["label"] == label]
    return own.pivot_table("accuracy", "trained_task", "tested_task").to_numpy()


def by_kind_of_class(classes: pd.DataFrame) -> pd.DataFrame:
    """Which classes are private to one client, and which all clients have.

    Args:
        classes: rows of `classes_frame`.

    Returns:
        the rows with a column kind, "private" or "public".
    """
    holders = classes.groupby(["run", "class"])["client"].transform("nunique")
    clients = classes.groupby("run")["client"].transform("nunique")
    return classes.assign(kind=np.where((holders == clients) & (clients > 1), "public", "private"))


def changes(scores: pd.DataFrame) -> pd.DataFrame:
    """How every task but the last fared since it was learned: one row per run, head, mask, client and such a task.

    Returns:
        pandas.DataFrame: the columns of all frames, head, mask, client, tested_task, and in points "forgetting" (the
            highest accuracy before the last task minus the one at the end, Chaudhry et al. 2018) and "backward
            transfer" (accuracy at the end minus the one when just learned, Lopez-Paz and Ranzato 2017).
    """
    keys = [*RUN, "head", "mask", "client", "tested_task"]
    at_end, learned = (part.set_index(keys)["accuracy"] for part in (final_rows(scores), just_learned_rows(scores)))
    last = scores.groupby("run")["trained_task"].transform("max")
    before = scores[(scores["trained_task"] < last) & (scores["tested_task"] < last)]
    best = before.groupby(keys, sort=False)["accuracy"].max()
    moved = pd.DataFrame(
        {"forgetting": best - at_end.reindex(best.index), "backward transfer": (at_end - learned).reindex(best.index)}
    )
    return moved.reset_index()


def parts_of_forgetting(scores: pd.DataFrame) -> pd.DataFrame:
    """Backward transfer in two parts: what is lost with the task given, and what the growing number of classes adds.

    With the task given, the same classes compete as when the task was new, so a loss is a true one. Under the
    class-incremental mask more classes compete after every task. That costs accuracy even where nothing is lost.

    Args:
        scores: rows of `lscl.results.frame`; with head = None both heads have a row.

    Returns:
        pandas.DataFrame: index (label, head, seed); in points the columns of `labels.LOSSES`: the class-incremental
            backward transfer, the task-masked one, and the first minus the second. Negative = lost.
    """
    moved = changes(scores[scores["mask"].isin(SCORES)])
    given, whole = SCORES
    by_mask = moved.pivot_table("backward transfer", ["label", "head", "seed"], "mask", sort=False)
    found = by_mask.reindex(columns=list(SCORES)).dropna()
    columns = (found[whole], found[given], found[whole] - found[given])
    return pd.DataFrame(dict(zip(LOSSES, columns, strict=True)))
