"""Hardware and times: measured times of commands, and estimates of the cost model for other cards."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import pandas as pd

from lscl import files, paths
from lscl.config import experiment
from lscl.errors import pluralize
from lscl.experiments import cost_model, sweeps
from lscl.experiments.cards import SHEETS, MeasuredStep, steps_on
from lscl.experiments.config_files import command_of
from lscl.experiments.records import Record, select
from lscl.experiments.rounding import expected_range
from lscl.registry import METHODS
from lscl.results import file_shapes
from lscl.results.frames import final_accuracy
from lscl.results.labels import DATASET_LABELS, SCORES, label_of
from lscl.results.markdown import code_text, wall_minutes

cost = lru_cache(cost_model.cost)  # some seconds for all systems, and the code alone decides it


def expected_profiles() -> list[dict[str, Any]]:
    """What whole profiles took and gave (`readme.expect`), by profile."""
    return [
        files.read_json(path, file_shapes.ExpectedProfile)
        for path in sorted((paths.results() / "expected").glob("*.json"))
    ]


def notebook_time(notebook: str, runs: bool = False) -> str | None:
    """How long a notebook took in `make demo`.

    Args:
        notebook: its name without ending.
        runs: count the runs that were made before it.

    Returns:
        the time and the number of cores, in words; None if nobody measured it.
    """
    for one in expected_profiles():
        if one["profile"] == "demo" and notebook in one["notebooks"]:
            seconds = one["notebooks"][notebook] + runs * one["runs_seconds"]
            return f"{duration(seconds)} on {one['hardware']['cores']} cores"
    return None


def duration(seconds: float) -> str:
    """A time in words, in steps of 5 seconds, or of half a minute from 100 seconds on."""
    return f"{max(5, 5 * round(seconds / 5))} seconds" if seconds < 100 else f"{round(seconds / 30) / 2:g} minutes"


def notebook_table() -> pd.DataFrame:
    """One row per notebook: the time it took in `make demo`."""
    rows = [
        (name, duration(seconds))
        for one in expected_profiles()
        if one["profile"] == "demo"
        for name, seconds in one["notebooks"].items()
    ]
    return pd.DataFrame([{"notebook": f"{{doc}}`/notebooks/{name}`", "time": taken} for name, taken in rows])


def measured_times(records: Iterable[Record]) -> pd.DataFrame:
    """One row per command, whole profiles first, then one run of every system: machine, minutes and accuracies."""
    rows = [
        {
            **_row(one["hardware"]),
            "command": code_text(one["command"]),
            **_found(one["minutes"], one["task"], one["seen"]),
        }
        for one in expected_profiles()
    ]
    for record in select(records, seed=sweeps.SEEDS[0]):
        accuracies = (final_accuracy(record, mask) for mask in SCORES)
        rows.append(
            {
                **_row(record["hardware"], record["config"]["threads"]),
                "command": code_text(command_of(record)),
                **_found(wall_minutes(record), *accuracies),
            }
        )
    return pd.DataFrame(rows)


def _row(hardware: dict, threads: int | None = None) -> dict[str, str]:
    used = f", {pluralize(threads, 'thread')} used" if threads else ""
    machine = f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB"
    return {"machine": f"{machine}, {hardware['gpu'] or 'no GPU'}{used}"}


def _found(minutes: float, task: float, seen: float) -> dict[str, str]:
    accuracies = {"task-masked %": expected_range(task), "class-incremental %": expected_range(seen)}
    return {"minutes": f"{minutes:.1f}", **accuracies}


def planned_cards() -> pd.DataFrame:
    """One row per card: what the profile paper takes.

    It has the hours of one run of Fed-LSCL and of the whole main table with its seeds, whether the card holds every
    run, and whether the hours follow steps that were timed on it or are computed.
    """
    rows = {}
    for name in cost_model.CARDS:
        machine = cost_model.find_card(name)
        rows[f"`{name}`"] = {"GPU memory GB": f"{machine.memory / 2**30:.0f}"}
        for dataset, seeds in sweeps.PLANS["paper"].items():
            every = main_costs(dataset)
            ours = next(one for one in every if one.config.method == METHODS.find_role("own"))
            title = DATASET_LABELS[dataset]
            hours = len(seeds) * sum(one.hours(machine) for one in every)
            rows[f"`{name}`"] |= {
                f"{title}: Fed-LSCL, hours": f"{ours.hours(machine):.1f}",
                f"{title}: all, {len(seeds)} seeds, hours": f"{hours:.0f}",
                f"{title}: all fit": "yes" if max(one.memory for one in every) <= machine.memory else "no",
                f"{title}: hours are": cost_model.basis_of(every, machine),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("card")


def main_costs(dataset: str) -> list[cost_model.Cost]:
    """What each row of the main table costs with one seed in the profile paper on a data set, in the table's order."""
    return [
        cost(experiment(profile="paper", dataset=dataset, method=method, **extra))
        for method, extra in sweeps.main_table()
    ]


def card_sheets() -> pd.DataFrame:
    """One row per card: what its data sheet says, with the source and its date."""
    rate = lambda value: "–" if value is None else f"{value:g}"
    rows = {
        f"`{name}`": {
            "card": sheet.title,
            "GB": f"{sheet.memory:g}",
            "GB/s": f"{sheet.bandwidth:g}",
            **{f"TFLOP/s, {kind}": rate(getattr(sheet, kind)) for kind in ("fp32", "tf32", "bf16", "fp16")},
            "source": f"{sheet.source}, {sheet.dated}",
        }
        for name, sheet in SHEETS.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


def timed_steps() -> pd.DataFrame:
    """One row per training step that `benchmarks/gpu.py` timed on a card: measured and estimated time."""
    return pd.DataFrame([_timed(step, name) for name, sheet in SHEETS.items() for step in steps_on(sheet.device)])


def _timed(step: MeasuredStep, card: str) -> dict[str, str]:
    """A timed step, compared with the estimate of the cost model for such a step in the profile paper."""
    arithmetic = {"tf32": {"tf32": True}, "compiled": {"precision": "bf16", "compile": True}}
    values = arithmetic.get(step.arithmetic, {"precision": step.arithmetic})
    config = experiment(profile="paper", dataset="cifar100", method=step.method, batch=step.batch, **values)
    alike = config.foundation.split(".")[0] == step.vit
    computed = cost_model.seconds_of(config, cost_model.CARDS[card])
    memory = None if step.peak is None or step.planned is None else f"{step.planned / 1e9:.1f} / {step.peak / 1e9:.1f}"
    return {
        "card": step.device,
        "system": label_of(step.method),
        "arithmetic": step.arithmetic,
        "batch": str(step.batch),
        "ms measured": f"{1e3 * step.seconds:.1f}",
        "ms computed": f"{1e3 * computed:.1f}" if alike else "–",
        "images/s": f"{step.images_per_second:.0f}",
        "to bare products": "–" if step.ratio_to_bare is None else f"{step.ratio_to_bare:.2f}",
        "GPU idle %": "–" if step.waiting is None else f"{100 * step.waiting:.0f}",
        "GB planned / measured": memory or "–",
    }


def planned_systems(dataset: str, card: str = "t4") -> pd.DataFrame:
    """What one run of every system in the profile paper needs by the cost model.

    Args:
        dataset: one data set.
        card: a key of `cost_model.CARDS`.

    Returns:
        a row per system, with hours on that card.

    Raises:
        LsclError: no such card.
    """
    machine, rows = cost_model.find_card(card), {}
    for one, (method, extra) in zip(main_costs(dataset), sweeps.main_table(), strict=True):
        rows[" ".join([label_of(method), *(f"({key} = {value})" for key, value in extra.items())])] = {
            "GPU memory GB": f"{one.memory / 2**30:.1f}",
            "disk GB": f"{one.disk / 1e9:.1f}",
            "PFLOP, clients": f"{(one.flops - one.server) / 1e15:.1f}",
            "PFLOP, server": f"{one.server / 1e15:.1f}",
            "hours": f"{one.hours(machine):.1f}",
            "hours are": machine.basis(one.config),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")
