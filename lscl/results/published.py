"""The numbers that the paper prints, and our tables with them."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import pandas as pd

from lscl import files, paths
from lscl.errors import LsclError
from lscl.registry import METHODS
from lscl.results.frames import just_learned_rows
from lscl.results.labels import paper_names
from lscl.results.statistics import estimate

AT_THE_END = "all tasks, at the end"


def published_table1(dataset: str | None = None) -> pd.DataFrame:
    """Table 1 of the paper, on one data set or all.

    Returns:
        pandas.DataFrame: columns label (the paper's name), method (ours), venue, dataset, task (from 1), accuracy (%).

    Raises:
        LsclError: the file cannot be read or names a system that is not the paper's.
    """
    table = _read_published("paper_table1.csv", {"method": str, "venue": str, "dataset": str, "task": int}).rename(
        columns={"method": "label"}
    )
    names = paper_names()
    unnamed = set(table["label"]) - set(names)
    if unnamed:
        raise LsclError(f"paper_table1.csv: unknown system {', '.join(sorted(unnamed))}")
    table = table.assign(method=table["label"].map(names)).sort_values("task", kind="stable")
    return table if dataset is None else table[table["dataset"] == dataset]


def published_table2(dataset: str) -> pd.DataFrame:
    """Table 2 of the paper on one data set.

    Returns:
        pandas.DataFrame: columns variant (full = the whole system) and accuracy (%); no rows if it was not reported.
    """
    table = _read_published("paper_table2.csv", {"variant": str, "dataset": str})
    return table[table["dataset"] == dataset]


def published_final(dataset: str) -> float | None:
    """Table 2 of the paper, the whole system: final accuracy on all local tasks in percent; None if not reported."""
    table = published_table2(dataset)
    found = table[table["variant"] == "full"]["accuracy"]
    return None if found.empty else float(found.iloc[0])


def published_losses(dataset: str) -> list[float]:
    """Table 2 of the paper: the points by which each incomplete system lies below the whole one; [] if not reported."""
    table, whole = published_table2(dataset), published_final(dataset)
    return [] if whole is None else [whole - float(value) for value in table[table["variant"] != "full"]["accuracy"]]


def published_rows(dataset: str, methods: Iterable[str]) -> pd.DataFrame:
    """Table 1 of the paper as text; the row of Fed-LSCL also has its accuracy at the end, from the paper's Table 2.

    Args:
        dataset: one data set.
        methods: our names of systems.

    Returns:
        a row "<name>, published" for each system that the table reports, with its accuracy (%) after each task.
    """
    table, end = published_table1(dataset), published_final(dataset)
    rows = {}
    for method in methods:
        found = table[table["method"] == method]
        if len(found):
            row = {f"task {one.task}": f"{one.accuracy:.1f}" for one in found.itertuples()}
            row |= {AT_THE_END: f"{end:.1f}"} if METHODS[method].role == "own" and end is not None else {}
            rows[f"{found['label'].iloc[0]}, published"] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("label")


def add_published_rows(table: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Our table with the published rows and our gap to them.

    Args:
        table: a row per label, with columns "task 1" and so on.
        scores: what it was made of, on one data set: accuracies on the task just learned (`frames.just_learned_rows`).

    Returns:
        the table with each published row after the last row of its system, and a last column "gap" in points.
    """
    (dataset,), tasks, parts = scores["dataset"].unique(), scores["trained_task"].nunique(), []
    theirs = published_table1(dataset)
    ours = scores.groupby(["label", "seed", "trained_task"])["accuracy"].mean().groupby("label").mean()
    systems = scores.drop_duplicates("label").set_index("label")["method"][table.index]
    last = ~systems.duplicated(keep="last")
    for label, method in systems.items():
        accuracies = theirs.loc[theirs["method"] == method, "accuracy"]
        comparable = len(accuracies) == tasks
        parts.append(table.loc[[label]].assign(gap=f"{ours[label] - accuracies.mean():+.1f}" if comparable else "–"))
        if comparable and last[label]:
            parts.append(published_rows(dataset, [method]))
    return pd.concat(parts)[[*table.columns, "gap"]].fillna("–").rename_axis("label")


def add_published_table2(table: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Our table of the components with the rows of the paper's Table 2 below it.

    The paper does not say which row belongs to which variant, apart from the whole system.

    Args:
        table: a row per variant; columns LSCT, SM-CF and O2D with marks, "task-masked %", and others.
        scores: what it was made of, on one data set.

    Returns:
        the longer table.
    """
    (dataset,), marks, rows = scores["dataset"].unique(), ("LSCT", "SM-CF", "O2D"), {}
    for row in published_table2(dataset).itertuples():
        rows[f"published, {row.variant}"] = dict.fromkeys(marks, "✓" if row.variant == "full" else "?") | {
            "task-masked %": f"{row.accuracy:.1f}"
        }
    theirs = pd.DataFrame.from_dict(rows, orient="index")
    return pd.concat([table, theirs])[list(table.columns)].fillna("–").rename_axis("variant")


def beside_published(scores: pd.DataFrame) -> pd.DataFrame:
    """Accuracy on the task just learned, mean over the tasks: the paper's Table 1 and ours, as slopes join them.

    Args:
        scores: rows of `lscl.results.frame` on one data set, under the paper's score.

    Returns:
        pandas.DataFrame: a row per system that both have, its label in the index (the first of a system's rows);
            columns "published" and "measured here" (%), and "text", the measured one with its interval.
    """
    (dataset,), theirs = scores["dataset"].unique(), published_table1()
    theirs = theirs[theirs["dataset"] == dataset].groupby("method")["accuracy"].mean()
    first = scores.drop_duplicates("method").set_index("label")["method"]
    learned = just_learned_rows(scores[scores["label"].isin(first.index)])
    ours = learned.groupby(["label", "seed"], sort=False)["accuracy"].mean().groupby("label", sort=False).agg(estimate)
    rows = {
        label: {"published": theirs[first[label]], "measured here": found.mean, "text": str(found)}
        for label, found in ours.items()
        if first[label] in theirs
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["published", "measured here", "text"])


def coverage(methods: Iterable[str]) -> str:
    """A sentence about which of the paper's systems were measured and which are only quoted."""
    measured = set(methods)
    names = paper_names()
    quoted = [text for text, method in names.items() if method not in measured]
    if not quoted:
        return f"All {len(names)} systems of the paper's table were measured."
    measured_count = len(names) - len(quoted)
    return f"{measured_count} of the paper's {len(names)} systems were measured; quoted only: {', '.join(quoted)}."


def _read_published(name: str, columns: dict[str, type]) -> pd.DataFrame:
    path = _place(name)
    changed = path.stat().st_mtime_ns if path.exists() else None
    return _read(path, changed, tuple(columns.items())).copy()


@lru_cache
def _read(path: Path, _changed: int | None, columns: tuple[tuple[str, type], ...]) -> pd.DataFrame:
    """A file as it was when it was changed last: the pages of a book ask for the same numbers hundreds of times."""
    table = files.read_table(path, {**dict(columns), "accuracy": float})
    if not table["accuracy"].between(0, 100).all():
        raise LsclError(f"cannot read {path}: an accuracy is not in 0 to 100 percent")
    return table


def _place(name: str) -> Path:
    """A file of published numbers: among the results, else as setup.py packs it, else in the package's repository."""
    own, packed = paths.results() / "published" / name, Path(__file__).with_name("published_numbers") / name
    around = paths.repository()
    others = [packed, *([around / "results" / "published" / name] if around else [])]
    return own if own.exists() else next((path for path in others if path.exists()), own)
