"""Measurements other than records as tidy tables: tuning, growth with a size, components inside a run."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from lscl import files, paths
from lscl.errors import pluralize
from lscl.experiments.tuning import TUNING_SEED, read_studies, show_values, tuning_path
from lscl.results import file_shapes
from lscl.results.labels import DATASET_LABELS, label_of
from lscl.results.markdown import commits_of, plain_text, seeds_of, small_print

GROWTH = {
    "clients": "clients",
    "tasks": "tasks",
    "classes_per_task": "classes a task",
    "images_per_class": "images a class",
}
# What benchmarks/components.py measures: updates that the frozen model gets, and generators around a server step.
COMPONENT_WRITERS = {"written": "written per image", "static": "static LoRA"}
UPDATES = {"own": "the image's own", "another": "another image's", "mean": "one for all", "none": "none"}
GENERATORS = {"own": "as the client trained it", "fused": "as O2D returns it", "mean": "mean of all clients'"}


def measured_rows(path: Path, shape: Any) -> list[dict[str, Any]]:
    """The rows of a file of measurements.

    Args:
        path: of the file.
        shape: of each row, a class of `file_shapes` or a union of several.

    Returns:
        the rows; none if there is no such file.

    Raises:
        LsclError: a file that cannot be read, or of another shape.
    """
    return files.read_json(path, file_shapes.Rows[shape])["rows"] if path.exists() else []


def tuning_frame() -> pd.DataFrame:
    """Every recorded trial of the tuning.

    Returns:
        pandas.DataFrame: columns profile, dataset, method, seed, trial (its number), point (text), tasks (how many it
            played), seen (%) and task (%) after the last of these, NaN before the first, failed (why it could not go
            on, or empty), chosen.

    Raises:
        LsclError: a file that cannot be read.
    """
    rows = []
    for path in sorted((paths.results() / "tuning").glob("*.json")):
        profile, _, dataset = path.stem.partition("--")
        rows += [{"profile": profile, "dataset": dataset, **row} for row in _trial_rows(path)]
    columns = ["profile", "dataset", "method", "seed", "trial", "point", "tasks", "seen", "task", "failed", "chosen"]
    return pd.DataFrame(rows, columns=columns)


def _trial_rows(path: Path) -> list[dict[str, Any]]:
    return [
        {
            "method": method,
            "seed": TUNING_SEED,
            "trial": number,
            "point": show_values(trial["values"]),
            "tasks": len(trial["seen"]),
            **{mask: trial[mask][-1] if trial[mask] else math.nan for mask in ("seen", "task")},
            "failed": trial.get("failed") or "",
            "chosen": number == study["chosen"],
        }
        for method, study in read_studies(path).items()
        for number, trial in enumerate(study["trials"])
    ]


def trials_frame(profile: str, dataset: str, method: str) -> pd.DataFrame:
    """The trials of one system with a column for every axis of its search space, as `figures.trials` draws them.

    Args:
        profile: of the tuning.
        dataset: of the tuning.
        method: the system.

    Returns:
        pandas.DataFrame: a row per trial, columns tasks, seen, chosen and then the axes; in `attrs["log"]` the names of
            those that were drawn in the logarithm. No rows if it was not tuned.

    Raises:
        LsclError: a file that cannot be read.
    """
    study = read_studies(tuning_path(profile, dataset)).get(method)
    if study is None:
        return pd.DataFrame(columns=["tasks", "seen", "chosen"])
    rows = [
        {
            "tasks": len(trial["seen"]),
            "seen": trial["seen"][-1] if trial["seen"] else math.nan,
            "chosen": number == study["chosen"],
            **trial["values"],
        }
        for number, trial in enumerate(study["trials"])
    ]
    table = pd.DataFrame(rows)
    table.attrs["log"] = [name for name, axis in study["space"].items() if "log_range" in axis]
    return table


def growth_frame() -> pd.DataFrame:
    """How runs grow with one size (benchmarks/scaling.py): a row per system, size that grows and point.

    Returns:
        pandas.DataFrame: columns label, grows (what grows), size (how large it is), cpu_seconds, peak_memory_mb, and
            the fitted exponents time_exponent and memory_exponent of that system and size; no rows if it was never
            measured.

    Raises:
        LsclError: a file that cannot be read.
    """
    columns = ["label", "grows", "size", "cpu_seconds", "peak_memory_mb", "time_exponent", "memory_exponent"]
    rows = []
    for row in measured_rows(_scaling(), file_shapes.GrowthRow):
        about = (label_of(row["method"]), GROWTH[row["size"]])
        exponents = [row[f"{of}_exponent"]["ratio"] for of in ("time", "memory")]
        rows += [
            (*about, point[row["size"]], point["cpu_seconds"], point["peak_memory_mb"], *exponents)
            for point in row["points"]
        ]
    return pd.DataFrame(rows, columns=columns)


def growth_note() -> str:
    """Machine, threads and commit of `growth_frame` in small print; nothing if it was never measured."""
    if growth_frame().empty:
        return ""
    found = files.read_json(_scaling(), file_shapes.MeasuredBenchmark)
    return small_print(
        f"{plain_text(found['machine']['cpu'])}, {pluralize(found['threads'], 'thread')}, {commits_of([found])}"
    )


def _scaling() -> Path:
    return paths.results() / "benchmarks" / "scaling.json"


def components_frame(profile: str) -> pd.DataFrame:
    """What the components do inside a run (benchmarks/components.py): a row per seed, task, writer, rate and number.

    Returns:
        pandas.DataFrame: columns profile, dataset, writer (COMPONENT_WRITERS), rate (the generator's learning rate),
            seed, task, measure, images, kind, value. measure = update: accuracy (%) on training or test `images` with
            an update (UPDATES); generator: accuracy (%) on the test images with a generator (GENERATORS); server_step:
            how far the server moves its bias or weight, as a share of the round's training.

    Raises:
        LsclError: a file that cannot be read.
    """
    columns = ["profile", "dataset", "writer", "rate", "seed", "task", "measure", "images", "kind", "value"]
    rows = [
        (
            *(profile, dataset, COMPONENT_WRITERS[row["collaboration"]], row["lr_generator"]),
            *(row["seed"], row["task"], *number),
        )
        for dataset in DATASET_LABELS
        for row in measured_rows(
            _inside(profile, dataset), file_shapes.WrittenComponents | file_shapes.StaticComponents
        )
        for number in component_numbers(row)
    ]
    return pd.DataFrame(rows, columns=columns)


def _inside(profile: str, dataset: str) -> Path:
    return paths.results() / "components" / f"{profile}--{dataset}.json"


def component_numbers(row: dict[str, Any]) -> list[tuple[str, str, str, float]]:
    """(measure, images, kind, value) of every number of one row of benchmarks/components.py."""
    updates = [
        ("update", images, kind, value) for images, found in row["update"].items() for kind, value in found.items()
    ]
    return updates + [
        (measure, "test", kind, value)
        for measure in ("generator", "server_step")
        for kind, value in row[measure].items()
    ]


def components_note(part: pd.DataFrame) -> str:
    """Where the rows of `components_frame` of one profile and data set come from, in small print."""
    (profile,), (dataset,) = part["profile"].unique(), part["dataset"].unique()
    found = files.read_json(_inside(profile, dataset), file_shapes.Components)
    rows, code = found["rows"], commits_of([found]) + (", uncommitted changes" if found["dirty"] else "")
    recorded = [row["same_as_record"] for row in rows if row["same_as_record"] is not None]
    compared = f"{sum(recorded)} of {len(recorded)} rows of recorded runs have exactly the accuracies of their record"
    if others := len(rows) - len(recorded):
        compared += f", {pluralize(others, 'row')} of runs without a record"
    about = f"mean over the first {pluralize(found['tasks'], 'task')}"
    return small_print(f"profile {profile}", code, seeds_of(rows), about, plain_text(found["machine"]["cpu"]), compared)
