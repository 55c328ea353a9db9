"""Records -> tables and sentences. Every number that the book shows passes through here."""

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lscl import files, paths
from lscl.config import WHERE_AND_HOW
from lscl.errors import LsclError
from lscl.experiments.records import Record, accuracy, folder, select
from lscl.experiments.sweeps import main_table, reported, variant_run
from lscl.federation.metrics import average_so_far, backward_transfer, current_task, forgetting
from lscl.methods.parts.fed_lscl_studies import REGIMES, WRITERS, regime_change
from lscl.registry import DATASETS, METHODS, Labels
from lscl.results import file_shapes

METHOD_LABELS = Labels(METHODS)
MASK_LABELS = {"task": "task-masked", "seen": "class-incremental", "all": "all classes"}
DATASET_LABELS = Labels(DATASETS)
AT_THE_END = "all tasks, at the end"
NO_RECORDS = "There are no finished `mini` runs yet: `lscl reproduce mini` computes them."


# ---- statistics


@dataclass(frozen=True)
class Summary:
    """n values: mean, sample standard deviation, and half the width of the 95 % t interval of the mean (NaN for n = 1)."""

    mean: float
    n: int
    half_width: float
    sd: float

    @property
    def estimate(self) -> str:
        """The mean and half the width of its 95 % interval as text: what ± means in every table of this package."""
        return f"{self.mean:.1f} ± {self.half_width:.1f}" if self.n > 1 else f"{self.mean:.1f}"

    @property
    def interval(self) -> str:
        """The 95 % interval as text."""
        return f"{self.mean - self.half_width:.1f} to {self.mean + self.half_width:.1f}" if self.n > 1 else "one seed, none"


def summary(values: Iterable[float]) -> Summary:
    """Mean, spread and uncertainty of a few values, one per seed.

    Raises:
        LsclError: no values.
    """
    x = np.asarray(list(values), dtype=float)
    if len(x) == 0:
        raise LsclError("a summary needs at least one value")
    if len(x) == 1:
        return Summary(float(x[0]), 1, math.nan, math.nan)
    sd = float(x.std(ddof=1))
    return Summary(float(x.mean()), len(x), float(stats.t.ppf(0.975, len(x) - 1)) * sd / math.sqrt(len(x)), sd)


# ---- records -> cells (one system in one profile on one data set, several seeds)


def label(record: Record) -> str:
    """The system's name in tables: method, what its `notes` always say, and what else differs from the profile."""
    said = METHODS[record["method"]].notes if record["method"] in METHODS else {}
    notes = [texts[record["config"][key]] for key, texts in said.items()]
    notes += [f"{key} = {value}" for key, value in sorted(record["overrides"].items()) if key not in said]
    name = METHOD_LABELS.get(record["method"], record["method"])
    return f"{name} ({', '.join(notes)})" if notes else name


def main_records(records: Iterable[Record]) -> list[Record]:
    """The records behind the main table: its systems, without the tuning seed."""
    rows = main_table()
    return [one for one in reported(records) if (one["method"], one["overrides"]) in rows]


def cells(records: Iterable[Record], draft: bool = False) -> dict[str, list[Record]]:
    """The records of each system by label, in the order of the tables and of the seeds.

    Raises:
        LsclError: nothing to group; records of several data sets, profiles or image sets; in one cell a seed twice, or other
            values, weights or data; or a record of uncommitted code (`draft` lets it pass, for looking at runs in progress).
    """
    grouped: dict[str, list[Record]] = {}
    methods = list(METHOD_LABELS)
    place = lambda one: (methods.index(one["method"]) if one["method"] in methods else len(methods), label(one), one["seed"])
    for record in sorted(records, key=place):
        if record["dirty"] and not draft:
            raise LsclError(f"record {record['name']} was made with uncommitted code, it cannot enter a table: commit, then run it again")
        grouped.setdefault(label(record), []).append(record)
    everything = [one for group in grouped.values() for one in group]
    if not everything:
        raise LsclError("no records to make a table of: run something first")
    for key in ("dataset", "profile", "data_digest"):
        found = sorted({one[key] for one in everything})
        if len(found) > 1:
            raise LsclError(f"one table, one {key}: the records have {', '.join(found)}")
    for name, group in grouped.items():
        if len({one["seed"] for one in group}) < len(group):
            raise LsclError(f"{name}: a seed occurs twice")
        if len({_same_in_a_cell(one) for one in group}) > 1:
            raise LsclError(f"{name}: the records differ in more than the seed (config, weights or data): run them again with one version")
    return grouped


def _same_in_a_cell(record: Record) -> str:
    config = {key: value for key, value in record["config"].items() if key not in {"seed", *WHERE_AND_HOW}}
    return json.dumps([config, record["data_digest"], record["weights_digest"]], sort_keys=True)


def final(record: Record, mask: str) -> float:
    """Accuracy in percent after the last task, mean over clients and all their tasks."""
    return float(average_so_far(accuracy(record, mask))[-1])


def curves(records: Iterable[Record], mask: str, of: Callable = average_so_far, draft: bool = False) -> dict[str, np.ndarray]:
    """Accuracy after each task by system: {label: (seeds, tasks)}; `of` is `average_so_far` or `current_task`."""
    return {name: np.array([of(accuracy(one, mask)) for one in group]) for name, group in cells(records, draft).items()}


# ---- published numbers


def paper_names() -> dict[str, str]:
    """Our names of the systems in the paper's tables, by the names that they have there."""
    return {kind.paper_name: name for name, kind in METHODS.items() if kind.paper_name}


def published() -> pd.DataFrame:
    """Table 1 of the paper: columns label (the paper's name), method (ours), venue, dataset, task (from 1), accuracy in percent."""
    table = _read_published("paper_table1.csv", {"method": str, "venue": str, "dataset": str, "task": int}).rename(columns={"method": "label"})
    names = paper_names()
    unknown = set(table["label"]) - set(names)
    if unknown:
        raise LsclError(f"paper_table1.csv: unknown system {', '.join(sorted(unknown))}")
    return table.assign(method=table["label"].map(names))


def published_table2(dataset: str) -> pd.DataFrame:
    """Table 2 of the paper on one data set: columns variant (full = the whole system) and accuracy in percent; empty if not reported."""
    table = _read_published("paper_table2.csv", {"variant": str, "dataset": str})
    return table[table["dataset"] == dataset]


def published_rows(method: str, dataset: str) -> pd.DataFrame:
    """What Table 1 of the paper says of one system on one data set: one row, or none if it is not reported."""
    table = published()
    found = table[(table["method"] == method) & (table["dataset"] == dataset)].sort_values("task")
    row = {f"task {one.task}": f"{one.accuracy:.1f}" for one in found.itertuples()}
    return pd.DataFrame([row] if row else [], index=[f"{found['label'].iloc[0]}, published"] if row else []).rename_axis("system")


def published_final(dataset: str) -> float | None:
    """Table 2 of the paper, the whole system: final accuracy on all local tasks in percent; None if not reported."""
    table = published_table2(dataset)
    found = table[table["variant"] == "full"]["accuracy"]
    return None if found.empty else float(found.iloc[0])


def published_losses(dataset: str) -> list[float]:
    """Table 2 of the paper: by how many points each incomplete system lies below the whole one; empty if not reported."""
    table, whole = published_table2(dataset), published_final(dataset)
    return [] if whole is None else [whole - float(value) for value in table[table["variant"] != "full"]["accuracy"]]


def _read_published(name: str, columns: dict[str, type]) -> pd.DataFrame:
    path = paths.results() / "published" / name
    table = files.table(path, {**columns, "accuracy": float})
    if not table["accuracy"].between(0, 100).all():
        raise LsclError(f"cannot read {path}: an accuracy is not in 0 to 100 percent")
    return table


# ---- tables


def table1(records: Iterable[Record], dataset: str, mask: str = "task", draft: bool = False) -> pd.DataFrame:
    """The paper's Table 1, mean ± half of the 95 % t interval over n seeds.

    mask = task: as in the paper, accuracy after each task on the task just learned, that task given. A published row follows every
    system that the paper reports on this data set; the last column of our rows is ours minus published, mean over the tasks.
    Other masks: accuracy after each task on all tasks so far, for which nothing is published.

    Raises:
        LsclError: records that must not stand in one table, see `cells`.
    """
    theirs, rows = published(), {}
    groups = cells(select(records, dataset=dataset), draft)
    methods = [group[0]["method"] for group in groups.values()]
    of = current_task if mask == "task" else average_so_far
    for place, (name, group) in enumerate(groups.items()):
        by_task = np.array([of(accuracy(one, mask)) for one in group])  # (seeds, tasks)
        columns = [f"task {t + 1}" for t in range(by_task.shape[1])]
        rows[name] = {"n": str(len(group)), **dict(zip(columns, (summary(column).estimate for column in by_task.T)))}
        if mask != "task":
            continue
        paper = theirs[(theirs["method"] == methods[place]) & (theirs["dataset"] == dataset)].sort_values("task")
        comparable = len(paper) == len(columns)
        rows[name] |= {AT_THE_END: summary(final(one, "task") for one in group).estimate}
        rows[name] |= {"gap": f"{by_task.mean() - paper['accuracy'].mean():+.1f}" if comparable else "–"}
        if comparable and methods[place] not in methods[place + 1 :]:  # behind the last of this method's rows
            end = published_final(dataset) if METHODS[methods[place]].role == "own" else None
            row = {"n": "–", **dict(zip(columns, (f"{value:.1f}" for value in paper["accuracy"])))}
            rows[f"{paper['label'].iloc[0]}, published"] = row | {AT_THE_END: "–" if end is None else f"{end:.1f}", "gap": "–"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")


def per_client(records: Iterable[Record], mask: str, draft: bool = False) -> pd.DataFrame:
    """Final accuracy of every client over all its tasks under `mask`, mean ± half of the 95 % t interval over the seeds.

    The partition of a seed decides what a client has, so the rows of one client differ between seeds in more than a draw.
    """
    rows = {}
    for name, group in cells(records, draft).items():
        by_client = np.array([accuracy(one, mask)[-1].mean(1) for one in group])  # (seeds, clients)
        columns = {f"client {k + 1}": summary(column).estimate for k, column in enumerate(by_client.T)}
        rows[name] = {"n": str(len(group)), **columns, "best minus worst": summary(by_client.max(1) - by_client.min(1)).estimate}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")


def scores(records: Iterable[Record], draft: bool = False) -> pd.DataFrame:
    """One row per system: final accuracies under the three masks, forgetting and backward transfer.

    Accuracies in percent after the last task over all tasks of all clients; forgetting and backward transfer in percentage points
    under the class-incremental mask. Mean ± half of the 95 % t interval over n seeds.
    """
    columns: dict[str, Callable[[Record], float]] = {
        **{f"{text} %": lambda one, mask=mask: final(one, mask) for mask, text in MASK_LABELS.items()},
        "forgetting": lambda one: forgetting(accuracy(one, "seen")),
        "backward transfer": lambda one: backward_transfer(accuracy(one, "seen")),
    }
    rows = {}
    for name, group in cells(records, draft).items():
        rows[name] = {"n": str(len(group)), **{column: summary(map(of, group)).estimate for column, of in columns.items()}}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")


def costs(records: Iterable[Record], draft: bool = False) -> pd.DataFrame:
    """One row per system, means over the seeds: MB (10^6 bytes) per client and round, trained parameters of a client, processor time, memory."""
    rows = {name: cost_row(group) for name, group in cells(records, draft).items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")


def cost_row(group: Iterable[Record]) -> dict[str, str]:
    """The costs of one system or variant, means over its records, as text."""
    group = list(group)
    return {column: format(summary(map(of, group)).mean, form).replace("nan", "–") for column, (of, form) in COSTS.items()}


def traffic(record: Record, side: str) -> float:
    """MB (10^6 bytes) per client and round, `side` = bytes_up or bytes_down; further exchanges of a task count as part of its rounds."""
    rounds = len(record["accuracy"]["task"]) * record["config"]["rounds"]
    return float(np.sum(record[side])) / len(record[side][0]) / rounds / 1e6


def traffic_by_round(record: Record, side: str) -> np.ndarray:
    """MB (10^6 bytes) of every exchange, mean over the clients, `side` = bytes_up or bytes_down: (exchanges,)."""
    return np.array(record[side], float).mean(1) / 1e6


def minutes(record: Record) -> float:
    """Minutes of all phases of a run."""
    return sum(record["seconds"].values()) / 60


def cpu_minutes(record: Record) -> float:
    """Minutes of processor time of all rounds, NaN in records from before it was measured; preparation, which is cached, left out."""
    return record.get("cpu_seconds", math.nan) / 60


# What a run costs, and the form of its number in a table.
COSTS: dict[str, tuple[Callable[[Record], float], str]] = {
    "MB up": (lambda one: traffic(one, "bytes_up"), ".2f"),
    "MB down": (lambda one: traffic(one, "bytes_down"), ".2f"),
    "trained parameters": (lambda one: float(np.mean(one["trained_parameters"])), ",.0f"),
    "CPU minutes": (cpu_minutes, ".1f"),
    "peak memory MB": (lambda one: float(one["peak_memory_mb"]), ".0f"),
}


def travels(records: Iterable[Record], draft: bool = False) -> pd.DataFrame:
    """One row per system, means over the seeds: MB up and down per client and round, up in the first and last round, GB of the whole run.

    The last column is that whole amount as a multiple of the first system's.
    """
    groups, rows, whole = cells(records, draft), {}, {}
    mean = lambda of, group: float(np.mean([of(one) for one in group]))
    for name, group in groups.items():
        whole[name] = mean(lambda one: (np.sum(one["bytes_up"]) + np.sum(one["bytes_down"])) / 1e9, group)
        rows[name] = {"n": str(len(group))}
        rows[name] |= {column: f"{mean(COSTS[column][0], group):.2f}" for column in ("MB up", "MB down")}
        rows[name] |= {f"up, {text} round": f"{mean(lambda one, i=i: traffic_by_round(one, 'bytes_up')[i], group):.2f}" for text, i in _ENDS.items()}
        start = next(iter(whole.values()))
        rows[name] |= {"GB, all clients and rounds": f"{whole[name]:.3f}", "times the first": f"{whole[name] / start:.2f}" if start else "–"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")


_ENDS = {"first": 0, "last": -1}


def efforts(records: Iterable[Record], draft: bool = False) -> pd.DataFrame:
    """One row per system, mean ± half of the 95 % t interval over the seeds: trained parameters of a client, processor time, images, memory.

    Images are those that optimisers have seen, kept and made ones among them; in records that do not say how many these were, the images
    of the tasks in every pass. Memory is the highest of the process.
    """
    rows = {}
    for name, group in cells(records, draft).items():
        seconds = [60 * cpu_minutes(one) for one in group]
        images = [one.get("optimised_images", one["trained_images"]) for one in group]
        rows[name] = {
            "n": str(len(group)),
            "trained parameters": cost_row(group)["trained parameters"],
            "trained images": f"{np.mean(images):,.0f}",
            "CPU seconds": "–" if np.isnan(seconds).any() else summary(seconds).estimate,
            "images per CPU second": f"{sum(images) / sum(seconds):,.0f}".replace("nan", "–"),
            "peak memory MB": cost_row(group)["peak memory MB"],
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")


def phases(records: Iterable[Record], draft: bool = False) -> dict[str, dict[str, float]]:
    """Processor minutes of a run by phase, means over the seeds: {system: {phase: minutes}}; preparation, which is cached, left out.

    Processor time is measured for the whole of a run and shared out as its seconds by the clock are, phase by phase: what else the machine does
    slows all phases of a run alike, on average. A system with a record from before it was measured is left out.
    """
    found = {}
    for name, group in cells(records, draft).items():
        whole = [cpu_minutes(one) for one in group]
        if np.isfinite(whole).all():
            seconds = np.array([[one["seconds"][key] for key in PHASES] for one in group])
            found[name] = dict(zip(PHASES, (np.array(whole)[:, None] * seconds / seconds.sum(1, keepdims=True)).mean(0).tolist(), strict=True))
    return found


PHASES = ("train", "aggregate", "evaluate")


def cost_reading(records: Iterable[Record], draft: bool = False) -> str:
    """What the first system costs beside each other one, in plain words, as a list in markdown.

    Bytes and parameters are counted, so they differ or do not; processor time differs if the 95 % interval of the paired differences
    leaves out zero.
    """
    first, *others = groups = cells(records, draft)
    lines = []
    for cost in ("MB up", "MB down", "trained parameters", "CPU minutes"):
        of, form = COSTS[cost]
        measured = cost == "CPU minutes"
        tied = "not told apart" if measured else "the same"
        sides: dict[str, list[str]] = {"less": [], "more": [], tied: []}
        for name in others:
            pairs = np.array([(of(a), of(b)) for a in groups[first] for b in groups[name] if a["seed"] == b["seed"]]).reshape(-1, 2)
            if not np.isfinite(pairs).all() or not pairs[:, 0].any():
                continue
            gap = summary(pairs[:, 1] - pairs[:, 0])
            told = abs(gap.mean) > (gap.half_width if measured else 0)  # the interval of one seed is NaN: never told apart
            side = ("less" if gap.mean < 0 else "more") if told else tied
            sides[side].append(f"{plain(name)} ({pairs[:, 1].sum() / pairs[:, 0].sum():.2f} times)")
        told = "; ".join(f"{side}: {', '.join(found)}" for side, found in sides.items() if found)
        value = cost_row(groups[first])[cost]
        lines.append(f"- **{cost}**, {value} for {plain(first)}" + (f". {told[:1].upper()}{told[1:]}." if told else "; nothing to compare."))
    return "\n".join(lines)


def sheets(records: Iterable[Record]) -> dict[str, Path]:
    """Images that servers made, as files beside the records: {"TARGET, after task 1": path}, first and last sheet of a run.

    Of every method that leaves any, the run of its first record in the order given, see `drawn_by`.
    """
    found: dict[str, Path] = {}
    for record in drawn_by(records):
        made = _sheets_of(record)
        for path in made[:: max(1, len(made) - 1)]:
            found[f"{METHOD_LABELS[record['method']]}, after task {path.stem.rpartition('--task')[2]}"] = path
    return found


def drawn_by(records: Iterable[Record]) -> list[Record]:
    """The records whose `sheets` are shown: of every method the first that has any."""
    group = list(records)
    with_sheets = ([record for record in select(group, method=method) if _sheets_of(record)] for method in METHOD_LABELS)
    return [found[0] for found in with_sheets if found]


def _sheets_of(record: Record) -> list[Path]:
    return sorted((folder(record["profile"]) / "sheets").glob(f"*--{record['config_digest']}--task*.png"))


ONE_SEED = "with one seed nothing can be concluded"
TIED = "not told apart from it by these seeds, the interval holding zero"
APART = "told apart from it, the interval leaving out zero"
VERDICTS = (ONE_SEED, TIED, APART)


@dataclass(frozen=True)
class Paired:
    """Difference of two systems over the seeds that both have, in percentage points."""

    difference: Summary

    @property
    def p(self) -> float:
        """p value of the paired t test of no difference, two-sided; NaN for one seed."""
        found = self.difference
        if found.n == 1:
            return math.nan
        if found.sd == 0:
            return float(found.mean == 0)
        return float(2 * stats.t.sf(abs(found.mean) / (found.sd / math.sqrt(found.n)), found.n - 1))

    @property
    def verdict(self) -> str:
        """What the difference allows to say."""
        found = self.difference
        if found.n == 1:
            return ONE_SEED
        return TIED if abs(found.mean) <= found.half_width else APART


def paired(ours: Sequence[Record], others: Sequence[Record], mask: str) -> Paired:
    """Compare two systems seed by seed on the same partitions, final accuracy under `mask`, `ours` minus `others`.

    Raises:
        LsclError: no seed in common, or other partitions.
    """
    pairs = [(a, b) for a in ours for b in others if a["seed"] == b["seed"]]
    if not pairs:
        raise LsclError(f"{label(ours[0])} and {label(others[0])} have no seed in common")
    for a, b in pairs:
        if a["partition_digest"] != b["partition_digest"]:
            raise LsclError(f"{a['name']} and {b['name']} were trained on different partitions")
    return Paired(summary(final(a, mask) - final(b, mask) for a, b in pairs))


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for as many tests as there are values (Holm 1979); NaN stays and does not count."""
    order = sorted((i for i, value in enumerate(values) if not math.isnan(value)), key=lambda i: values[i])
    adjusted, largest = [math.nan] * len(values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * values[i]))
        adjusted[i] = largest
    return adjusted


def intervals(records: Iterable[Record], mask: str, draft: bool = False) -> pd.DataFrame:
    """`compare` with one row per system, each against the first."""
    return compare(cells(records, draft), mask).rename_axis("system")


def compare(groups: Mapping[str, Sequence[Record]], mask: str) -> pd.DataFrame:
    """Final accuracy of each group with n and its 95 % interval; its paired difference from the first group, seed by seed.

    The difference comes with its 95 % interval, the p value of the paired t test, and that value after Holm's correction for all
    rows. A group without a seed in common with the first has dashes.
    """
    first, rows = next(iter(groups)), {}
    seeds = {one["seed"] for one in groups[first]}
    gaps = {name: paired(group, groups[first], mask) for name, group in groups.items() if name != first and seeds & {one["seed"] for one in group}}
    corrected = dict(zip(gaps, holm([gap.p for gap in gaps.values()])))
    for name, group in groups.items():
        found = summary(final(one, mask) for one in group)
        rows[name] = {"mean %": f"{found.mean:.1f}", "n": str(found.n), "95 % interval": found.interval}
        if name not in gaps:
            rows[name] |= dict.fromkeys((f"minus {first}", "95 % interval of the difference", "p", "p, Holm"), "–")
            continue
        gap = gaps[name].difference
        rows[name] |= {f"minus {first}": f"{gap.mean:+.1f}", "95 % interval of the difference": gap.interval}
        rows[name] |= {"p": p_text(gaps[name].p), "p, Holm": p_text(corrected[name])}
    return pd.DataFrame.from_dict(rows, orient="index")


def p_text(value: float) -> str:
    """A p value as text; a dash for NaN."""
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def reading(records: Iterable[Record], mask: str, draft: bool = False, brief: bool = False) -> str:
    """What the final accuracies under `mask` say, in plain words: who is ahead, and whether the seeds can tell.

    brief: the range of the points behind in place of each one's points and interval.
    """
    groups = cells(records, draft)
    found = {name: summary(final(one, mask) for one in group) for name, group in groups.items()}
    order = sorted(found, key=lambda name: -found[name].mean)
    best = order[0]
    gaps = {name: paired(groups[best], groups[name], mask) for name in order[1:]}
    text = [f"Under the {MASK_LABELS[mask]} score the highest mean is that of {plain(best)}, {found[best].mean:.1f} %."]
    for verdict in VERDICTS:
        behind = {plain(name): gap for name, gap in gaps.items() if gap.verdict == verdict}
        if not behind:
            continue
        if brief:
            points = [f"{gap.difference.mean:.1f}" for gap in behind.values()]
            said = f"{', '.join(behind)}, {' to '.join(dict.fromkeys((points[0], points[-1])))} points behind"
        else:
            said = "; ".join(f"{name} {_points(gap)}" for name, gap in behind.items())
        text.append(f"{verdict[0].upper()}{verdict[1:]}: {said}.")
    return " ".join(text)


def _points(gap: Paired) -> str:
    spread = f" (95 % interval {gap.difference.interval})" if gap.difference.n > 1 else ""
    return f"{gap.difference.mean:.1f} points behind{spread}"


def coverage(records: Iterable[Record]) -> str:
    """Which of the paper's systems were measured and which are only quoted."""
    measured = {one["method"] for one in records}
    names = {method: text for text, method in paper_names().items()}
    quoted = [text for method, text in names.items() if method not in measured]
    if not quoted:
        return f"All {len(names)} systems of the paper's table were measured."
    return f"{len(names) - len(quoted)} of the paper's {len(names)} systems were measured; quoted only: {', '.join(quoted)}."


def writers(records: Iterable[Record]) -> pd.DataFrame:
    """When writing per image helps: task-masked accuracy of every writer in every regime, and the best written one minus the static one.

    One task, no federation (`lscl sweep regimes`); mean ± half of the 95 % t interval over the n seeds that all writers of a regime have.
    The best written one is chosen by its mean, so its lead is an upper bound. Empty if there are no such records.
    """
    records = [one for one in records if one["config"]["tasks"] == 1 and one["config"]["o2d"] == "none"]
    by_digest = {one["config_digest"]: one for one in records}
    cells_of = sorted({(one["dataset"], one["profile"]) for one in records})
    seeds, rows = sorted({one["seed"] for one in records}), {}
    for dataset, profile in cells_of:
        for regime in REGIMES:
            digests = {
                name: [variant_run({"dataset": dataset, "profile": profile}, regime_change(regime, name), seed).digest for seed in seeds]
                for name in WRITERS
            }
            common = [i for i in range(len(seeds)) if all(found[i] in by_digest for found in digests.values())]
            if not common:
                continue
            values = {name: np.array([final(by_digest[found[i]], "task") for i in common]) for name, found in digests.items()}
            _, static, *written = values
            best = max(written, key=lambda name: values[name].mean())
            gap = summary(values[best] - values[static])
            name = f"{DATASET_LABELS[dataset]}, {regime['images_per_class']} images a class, block {regime['block']}"
            rows[name] = {"n": str(len(common)), **{key: summary(found).estimate for key, found in values.items()}}
            rows[name] |= {"best written minus static": f"{gap.mean:+.1f}", "95 % interval": gap.interval}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("regime")


def provenance(records: Iterable[Record], draft: bool = False) -> str:
    """One line for under a table or figure: commits, seeds, n, machine, minutes, and the digests of data, partitions and weights.

    Raises:
        LsclError: a record of uncommitted code (`draft` lets it pass), or no records.
    """
    group = list(records)
    if not group:
        raise LsclError("no records to name: run something first")
    dirty = [one["name"] for one in group if one["dirty"]]
    if dirty and not draft:
        raise LsclError(f"record {dirty[0]} was made with uncommitted code, it cannot stand behind a table or figure: commit, then run it again")
    short = lambda values: plain(", ".join(sorted({str(value) for value in values})))
    machines = short(f"{one['hardware']['cpu']}, {one['config']['threads']} threads" + _gpu(one) for one in group)
    parts = [
        f"profile {group[0]['profile']}",
        f"commit {short((one['commit'] or 'installed package')[:10] for one in group)}",
        f"seeds {', '.join(str(seed) for seed in sorted({one['seed'] for one in group}))}",
        f"{len(group)} run{'s' if len(group) > 1 else ''}, {sum(map(minutes, group)):.0f} minutes",
        machines,
        f"data {short(one['data_digest'] for one in group)}",
        f"partitions {short(one['partition_digest'] for one in group)}",
        f"weights {short(one['weights_digest'] for one in group if one['weights_digest']) or 'none'}",
    ]
    if dirty:
        parts.insert(0, "DRAFT of uncommitted code, not a result")
    return "; ".join(parts) + "."


def _gpu(record: Record) -> str:
    gpu = record["hardware"]["gpu"]
    return f", {gpu}" if gpu else ""


def tuning() -> dict[str, pd.DataFrame]:
    """The tuning grids that were recorded: {"mini, CIFAR-100": rows with system, point, both scores, chosen}.

    Raises:
        LsclError: a file that cannot be read.
    """
    found = {}
    for path in sorted((paths.results() / "tuning").glob("*.json")):
        saved = files.from_json(path, file_shapes.Grid | list[file_shapes.Point])
        rows = saved["rows"] if isinstance(saved, dict) else saved
        best = saved.get("best", {}) if isinstance(saved, dict) else {}
        if not rows:
            continue
        profile, _, dataset = path.stem.partition("--")
        found[f"{profile}, {DATASET_LABELS.get(dataset, dataset)}" if dataset else profile] = pd.DataFrame(
            {
                "system": METHOD_LABELS.get(row["method"], row["method"]),
                "values": ", ".join(f"{key} = {value:g}" for key, value in row.get("point", row.get("overrides", {})).items()),
                "class-incremental %": f"{row['class_incremental']:.1f}",
                "task-masked %": f"{row['task_masked']:.1f}",
                "chosen": "✓" if best.get(row["method"]) == row.get("point") else "",
                "seed": str(row["seed"]),
            }
            for row in rows
        )
    return found


def benchmarks() -> pd.DataFrame:
    """Every recorded benchmark: its ratio, the goal, whether it is met, machine and commit; parts of one follow it. Empty if there are none.

    Raises:
        LsclError: a file that cannot be read.
    """
    rows = {}
    for path in sorted((paths.results() / "benchmarks").glob("*.json")):
        found = files.from_json(path, file_shapes.Benchmark)
        try:
            rows[found["name"]] = _benchmark(found) | {"machine": found["machine"]["cpu"], "commit": (found["commit"] or "–")[:10]}
            parts = {"": found}
            for row in found.get("rows", []):
                parts[", ".join(str(row[key]) for key in ("size", "method", "phase", "case") if key in row)] = row
            for name, part in parts.items():
                inner = {
                    f"{name} {key.replace('_', ' ')}".strip(): value for key, value in part.items() if isinstance(value, dict) and "ratio" in value
                }
                for label_of, value in ({name: part} | inner).items():
                    if label_of and "ratio" in value:
                        rows[f"{found['name']}: {label_of}"] = _benchmark(value) | {"machine": "", "commit": ""}
        except (ValueError, LookupError, TypeError) as error:
            raise LsclError(f"cannot read the benchmark {path}: {type(error).__name__} {error}") from error
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("benchmark")


GROWTH = {"clients": "clients", "tasks": "tasks", "classes_per_task": "classes a task", "images_per_class": "images a class"}


def growth() -> list[dict[str, Any]]:
    """The rows of benchmarks/scaling.py, see there; none if it was never run.

    Raises:
        LsclError: a file that cannot be read.
    """
    return measured_rows(_scaling(), file_shapes.Growing)


def growth_reading(rows: list[dict[str, Any]]) -> str:
    """With which sizes the processor time grows how, in plain words, by the fitted exponents as `exponents` shows them."""
    kinds: dict[str, list[str]] = {"faster than in proportion": [], "in proportion, to a tenth of the exponent": [], "more slowly than that": []}
    for row in rows:
        shown = f"{row['time_exponent']['ratio']:.2f}"
        faster, even, slower = kinds.values()
        kind = faster if float(shown) > 1.1 else slower if float(shown) < 0.9 else even
        kind.append(f"{METHOD_LABELS[row['method']]} with the number of {GROWTH[row['size']].replace(' a ', ' in a ')} ({shown})")
    return "Processor time grows " + "; ".join(f"**{kind}**: {', '.join(found)}" for kind, found in kinds.items() if found) + "." if rows else ""


def growth_note() -> str:
    """Machine, threads and commit of `growth` in small print; nothing if it was never run."""
    if not growth():
        return ""
    found = files.from_json(_scaling(), file_shapes.Measured)
    return f"<small>{plain(found['machine']['cpu'])}, {found['threads']} threads, commit {short_commit(found['commit'])}</small>"


def _scaling() -> Path:
    return paths.results() / "benchmarks" / "scaling.json"


def measured_rows(path: Path, shape: Any) -> list[dict[str, Any]]:
    """The rows, each of this shape, of a file of measurements; none if there is no such file.

    Raises:
        LsclError: a file that cannot be read, or of another shape.
    """
    return files.from_json(path, file_shapes.Rows[shape])["rows"] if path.exists() else []


def growth_panels(rows: list[dict[str, Any]], key: str) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """What `figures.growth` draws of these rows. key: cpu_seconds or peak_memory_mb."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in rows:
        points = [point[row["size"]] for point in row["points"]], [point[key] for point in row["points"]]
        panels.setdefault(GROWTH[row["size"]], {})[METHOD_LABELS[row["method"]]] = points
    return panels


def exponents(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per system and size: the sizes, and the fitted exponents of processor time and peak memory."""
    return pd.DataFrame(
        [
            {
                "system": METHOD_LABELS[row["method"]],
                "grows": GROWTH[row["size"]],
                "sizes": ", ".join(f"{point[row['size']]:g}" for point in row["points"]),
                "exponent of time": f"{row['time_exponent']['ratio']:.2f}",
                "exponent of memory": f"{row['memory_exponent']['ratio']:.2f}",
            }
            for row in rows
        ]
    )


def _benchmark(found: dict[str, Any]) -> dict[str, str]:
    goal, ratio, lower = found.get("goal"), found["ratio"], found["better"] == "lower"
    if goal is None:
        return {"measured": f"{ratio:g}", "goal": "–", "met": "–"}
    met = ratio <= goal if lower else ratio >= goal
    return {"measured": f"{ratio:g}", "goal": f"{'at most' if lower else 'at least'} {goal:g}", "met": "yes" if met else "no"}


# ---- federations over Flower (results/federation/, made by benchmarks/federation.py)


def federation(part: str) -> list[dict[str, Any]]:
    """The recorded rows of one part: parity, faults or scale; none if it was never run.

    Raises:
        LsclError: a file that cannot be read.
    """
    return measured_rows(paths.results() / "federation" / f"{part}.json", file_shapes.FEDERATION[part])


def parity() -> pd.DataFrame:
    """Every federation against the same run in one process: what was compared and what differed."""
    rows = [
        {
            "system": METHOD_LABELS[row["method"]],
            "profile": row["profile"],
            "transport": {"tls": "processes over TLS", "simulation": "Flower's simulation"}[row["transport"]],
            "accuracies compared": row["accuracies"],
            "byte counts compared": row["byte_counts"],
            "differs": ", ".join(row["differs"]) or "nothing",
        }
        for row in federation("parity")
    ]
    return pd.DataFrame(rows)


def wire() -> pd.DataFrame:
    """Bytes between SuperLink and nodes, TLS and HTTP and questions for work included, against the payloads among them.

    overhead: kB beyond the payload for each client and exchange, up and down. It grows with the seconds that an exchange takes,
    for nodes ask for work all the time.
    """
    rows = []
    for row in federation("parity"):
        if row.get("wire_up") is None:
            continue
        messages, shown = row["clients"] * sum(row["exchanges"]), {"system": METHOD_LABELS[row["method"]], "profile": row["profile"]}
        for side in ("up", "down"):
            payload, sent = sum(row[f"payload_{side}"]), sum(row[f"wire_{side}"])
            shown |= {f"payload MB {side}": f"{payload / 1e6:.2f}", f"wire MB {side}": f"{sent / 1e6:.2f}"}
            shown[f"overhead kB {side}"] = f"{(sent - payload) / 1e3 / messages:.1f}"
        rows.append({**shown, "seconds of an exchange": f"{row['seconds'] / sum(row['exchanges']):.0f}"})
    return pd.DataFrame(rows)


def faults() -> pd.DataFrame:
    """Every fault that was tried, how often, and its outcome."""
    rows = []
    for row in federation("faults"):
        if row["fault"] == "client killed":
            points = row["points"]
            missed, back = sum(point["rounds_missed"] for point in points), sum(point["came_back"] for point in points)
            busy = sum(point["while_it_computed"] for point in points)
            outcome = (
                f"{row['rounds_finished']} of {row['rounds']} rounds finished; {missed} answers missing in all; back in a later round {back} times"
            )
            rows.append({"fault": f"SIGKILL to a client, {busy} times while it computed", "times": len(points), "outcome": outcome})
        elif row["fault"] == "server killed":
            outcome = f"{row['finished_rounds']} of {row['of']} rounds were finished; went on after round {row['resumed_after']}; {row['then']}"
            rows.append({"fault": f"SIGKILL to the server {row['killed']}", "times": 1, "outcome": outcome})
        else:
            went = f"{row['rounds_finished']} of {row['rounds']} rounds finished; left out:"
            rows += [{"fault": f"payload: {one['kind']}", "times": 1, "outcome": f"{went} {one['server_says']}"} for one in row["bad_payloads"]]
            rows += [{"fault": f"node: {one['node']}", "times": 1, "outcome": f"not let in: {one['says']}"} for one in row["strangers"]]
    return pd.DataFrame(rows)


def scale() -> pd.DataFrame:
    """Flower's simulation of many clients."""
    rows = [
        {
            "clients": row["clients"],
            "rounds": row["rounds"],
            "seconds per exchange": row["seconds_per_exchange"],
            "CPU seconds per exchange": row["cpu_seconds_per_exchange"],
            "memory MB behind the first round": row["memory_mb"][0],
            "behind the last": row["memory_mb"][-1],
            "differs from one process": ", ".join(row["differs_from_one_process"]) or "nothing",
        }
        for row in federation("scale")
    ]
    return pd.DataFrame(rows)


def federation_note(part: str) -> str:
    """Machines, commits and version of Flower behind the rows of a part, in small print."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in federation(part):
        groups.setdefault(f"{row['machine']['cpu']}, {row['machine']['cores']} cores, flwr {row['flwr']}", []).append(row)
    notes = []
    for machine, rows in sorted(groups.items()):
        loads = sorted({round(row["machine"]["load"]) for row in rows})
        load = f"load {loads[0]}" + (f" to {loads[-1]}" if len(loads) > 1 else "")
        commits = ", ".join(sorted({short_commit(row["commit"], "–") for row in rows}))
        notes.append(f"{plain(machine)}, {load} before a row began, commit {commits}")
    return f"<small>{'; '.join(notes)}</small>"


# ---- text


def drift_reading(kept: float, free: float) -> str:
    """What Eq. 4 does to the drift of the features, in plain words, from how far they moved in a run with it (`kept`) and in one without (`free`).

    Both as squared distance over squared length: two unrelated vectors of equal length are 2 apart.
    """
    times = f"{free / kept:.2f}" if kept else "inf"
    text = f"At the end the features have moved by {kept:.2f} with Eq. 4 and by {free:.2f} without it, **{times} times** as far; 2 means unrelated."
    if times == "1.00":
        return f"{text} Here the equation makes no difference to the drift."
    if free < kept:
        return f"{text} Here the equation does not slow the drift down."
    return f"{text} Here the equation slows the drift down" + (", it does not stop it." if f"{kept:.2f}" != "0.00" else ", almost to nothing.")


def plain(text: object) -> str:
    """Text that comes from a record or another file, as it enters markdown or HTML: whatever either could take for a sign of its own is
    written as an entity, and a line break is a space."""
    shown = " ".join(str(text).split())
    return _SIGNS.sub(lambda signs: "".join(f"&#{ord(one)};" for one in signs[0]), "".join(one for one in shown if one.isprintable()))


# Signs that start or end something in CommonMark, in MyST with its extensions, or in HTML. A lone "<" or "&", a pair
# of brackets without a target and a "_" inside a word or without a second one do not.
_SIGNS = re.compile(r"[`*{}$\\|~]|\](?=[(\[{:])|\[(?=\^)|<(?=\S)|&(?=[#\w])|(?<!\w)_(?=[^_]*_)|__")


def code(text: object) -> str:
    """The same as a piece of code; as `plain` text where a sign in it could end that."""
    shown = plain(text)
    return f"`{shown}`" if shown == str(text) else shown


def short_commit(commit: str | None, none: str = "installed package") -> str:
    """The first ten digits of a commit, or `none`."""
    return plain((commit or none)[:10]) if commit else none


def to_markdown(table: pd.DataFrame, index: bool = True, markdown: Collection[str] = ()) -> str:
    """A pipe table; numbers stand right, and nothing in it depends on the moment or on memory addresses.

    Every entry is taken as `plain` text but those of the columns named in `markdown`, which are markdown already.
    """
    shown = table.reset_index() if index else table
    ready = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    head = "| " + " | ".join(map(plain, shown.columns)) + " |"
    numeric = [all(_numeric(value) for value in shown[column]) for column in shown.columns]
    rule = "|" + "|".join("---:" if right else ":---" for right in numeric) + "|"
    writers = [ready if column in markdown else plain for column in shown.columns]
    rows = ("| " + " | ".join(write(value) for write, value in zip(writers, row)) + " |" for row in shown.itertuples(index=False))
    return "\n".join([head, rule, *rows])


def _numeric(value: Any) -> bool:
    return str(value)[:1] in {*"0123456789+-–−", ""}


def numbered(table: pd.DataFrame, caption: str, name: str, index: bool = True, markdown: Collection[str] = ()) -> str:
    """A table with a number, a caption and an anchor `name`, as markdown for the book; see `to_markdown`."""
    return f":::{{table}} {caption}\n:name: {name}\n\n{to_markdown(table, index, markdown)}\n:::"


def captioned(table: pd.DataFrame, caption: str, name: str, records: Iterable[Record], draft: bool = False, markdown: Collection[str] = ()) -> str:
    """A `numbered` table, and below it the records it came from."""
    return f"{numbered(table, caption, name, markdown=markdown)}\n\n{source_note(records, draft)}"


def source_note(records: Iterable[Record], draft: bool = False) -> str:
    """The records behind a table or figure in small print; nothing without records."""
    group = list(records)
    return f"<small>{provenance(group, draft)}</small>" if group else ""


def by_dataset(records: Iterable[Record], make: Callable[[list[Record]], pd.DataFrame], caption: str, name: str, draft: bool = False) -> str:
    """The table that `make` makes of the records of each data set, with number, caption, anchor tab-<name>-<data set> and provenance, as markdown."""
    records = list(records)
    parts = []
    for dataset in sorted({record["dataset"] for record in records}):
        group = select(records, dataset=dataset)
        anchor = f"tab-{name}-{dataset.replace('_', '-')}"
        parts.append(captioned(make(group), f"{caption}, {DATASET_LABELS[dataset]}.", anchor, group, draft))
    return "\n\n".join(parts) if parts else NO_RECORDS
