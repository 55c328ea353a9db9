"""What the components of Fed-LSCL do inside a run (results/components/, made by benchmarks/components.py): tables and sentences."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lscl import files, paths
from lscl.results import file_shapes
from lscl.results.report import APART, DATASET_LABELS, Paired, Summary, measured_rows, numbered, plain, short_commit, summary

SPLITS = ("training", "test")
UPDATES = {"own": "the image's own", "another": "another image's", "mean": "one for all", "none": "none"}
GENERATORS = {"own": "as the client trained it", "fused": "as O2D returns it", "mean": "mean of all clients'"}
WRITERS = {"written": "written per image", "static": "static LoRA"}


def rows(profile: str, dataset: str) -> list[dict[str, Any]]:
    """The recorded rows, one per seed, task and kind of update; none if that was never run.

    Raises:
        LsclError: a file that cannot be read.
    """
    return measured_rows(_path(profile, dataset), file_shapes.Written | file_shapes.Static)


def _path(profile: str, dataset: str) -> Path:
    return paths.results() / "components" / f"{profile}--{dataset}.json"


def by_seed(found: list[dict[str, Any]], collaboration: str, *keys: str) -> np.ndarray:
    """The value at `keys` of every seed's rows, mean over the tasks: (seeds,); empty if these rows have no such value."""
    values: dict[int, list[float]] = {}
    for row in found:
        value: Any = row if row["collaboration"] == collaboration else {}
        for key in keys:
            value = value.get(key, {})
        if not isinstance(value, dict):
            values.setdefault(row["seed"], []).append(value)
    return np.array([np.mean(values[seed]) for seed in sorted(values)])


def updates(found: list[dict[str, Any]]) -> pd.DataFrame:
    """Accuracy on the task just learned with other updates than the image's own, and what the own one adds to the frozen model."""
    table = {}
    for collaboration, name in WRITERS.items():
        for split in SPLITS:
            values = {title: by_seed(found, collaboration, "update", split, key) for key, title in UPDATES.items()}
            if not len(values[UPDATES["own"]]):
                continue
            row = {title: summary(of).estimate if len(of) else "–" for title, of in values.items()}
            gap = summary(values[UPDATES["own"]] - values[UPDATES["none"]])
            table[f"{name}, {split} images"] = row | {"own minus none": f"{gap.mean:+.1f}", "95 % interval": gap.interval}
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("update")


def server(found: list[dict[str, Any]]) -> pd.DataFrame:
    """Accuracy on the task just learned around a server step, and how far it moves a generator, as a share of the round's training."""
    table = {}
    for collaboration, name in WRITERS.items():
        values = {title: by_seed(found, collaboration, "generator", key) for key, title in GENERATORS.items()}
        own, *others = values.values()
        if not len(own):
            continue
        row = {title: summary(of).estimate for title, of in values.items()}
        for other, title in zip(others, ("O2D", "mean")):
            gap = summary(other - own)
            row |= {f"{title} minus trained": f"{gap.mean:+.1f}", f"95 % interval, {title}": gap.interval}
        for part, title in (("bias", "step, bias"), ("weight", "step, weights")):
            steps = by_seed(found, collaboration, "server_step", part)
            row[title] = f"{steps.mean():.1f}" if len(steps) else "–"
        table[name] = row
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("generator")


def side(gap: Summary) -> int:
    """On which side of zero the 95 % interval lies wholly: 1, -1, or 0 if it holds zero or there is one seed."""
    return int(np.sign(gap.mean)) if Paired(gap).verdict == APART else 0


def reading(found: list[dict[str, Any]]) -> str:
    """What the tables say about the written update and the server's step, in plain words, as a list in markdown; empty without rows."""
    if not any(row["collaboration"] == "written" for row in found):
        return ""
    value = lambda *keys: by_seed(found, "written", *keys)
    own, none = ({split: value("update", split, key) for split in SPLITS} for key in ("own", "none"))
    training, test = (summary(own[split] - none[split]) for split in SPLITS)
    about = {split: summary(own[split] - value("update", split, "another")) for split in SPLITS}
    spread = lambda gap: f"{gap.mean:+.1f} points ({'95 % interval ' if gap.n > 1 else ''}{gap.interval})"
    gains = {1: "gains", 0: "shows neither gain nor loss", -1: "loses"}
    lines = [
        f"- **The written update {gains[side(training)]} on training images and {gains[side(test)]} on test images**, against no update "
        f"under the same head: {spread(training)} and {spread(test)}."
        + (" What is fitted to the training images and does not carry over is overfitting." if side(training) == 1 and side(test) < 1 else ""),
        f"- **What it says about its image:** with another image's update instead of the own one, accuracy changes by "
        f"{-about['training'].mean:+.1f} points on training images and by {-about['test'].mean:+.1f} on test images "
        f"(95 % interval of the loss there: {about['test'].interval}).",
    ]
    step, mean = (summary(value("generator", kind) - value("generator", "own")) for kind in ("fused", "mean"))
    changes = {1: "raises", 0: "cannot be seen to change", -1: "lowers"}
    weights, bias = (value("server_step", part).mean() for part in ("weight", "bias"))
    lines += [
        f"- **The server's step {changes[side(step)]} the accuracy on the task at hand**: {spread(step)}. It moves the generator's weights "
        f"by {weights:.1f} times what the round's training moved them, its bias by {bias:.1f} times.",
        f"- **The mean of all clients' generators {changes[side(mean)]} it**: {spread(mean)}.",
    ]
    return "\n".join(lines)


def shown(profile: str, make: Callable[[list[dict[str, Any]]], pd.DataFrame], caption: str, name: str) -> str:
    """The table that `make` makes on each data set that has rows, with number, caption, anchor tab-<name>-<data set> and source, as markdown."""
    parts = []
    for dataset, title in DATASET_LABELS.items():
        found = rows(profile, dataset)
        if found:
            table = numbered(make(found), f"{caption}, {title}.", f"tab-{name}-{dataset.replace('_', '-')}")
            parts.append(f"{table}\n\n{note(profile, dataset)}")
    return "\n\n".join(parts) or "Not measured yet: see `benchmarks/components.py`."


def readings(profile: str) -> str:
    """`reading` for each data set that has rows, as markdown."""
    found = {title: reading(rows(profile, dataset)) for dataset, title in DATASET_LABELS.items()}
    return "\n\n".join(f"**{title}**\n\n{text}" for title, text in found.items() if text)


def note(profile: str, dataset: str) -> str:
    """Where the rows come from, in small print."""
    found = files.from_json(_path(profile, dataset), file_shapes.Components)
    group = found["rows"]
    seeds = ", ".join(map(str, sorted({row["seed"] for row in group})))
    compared = sum(bool(row["same_as_record"]) for row in group)
    code = short_commit(found["commit"]) + (", uncommitted changes" if found["dirty"] else "")
    return (
        f"<small>profile {profile}; commit {code}; seeds {seeds}; mean over the first {found['tasks']} tasks; {plain(found['machine']['cpu'])}; "
        f"{compared} of {len(group)} rows are of runs with exactly the accuracies of their record</small>"
    )
