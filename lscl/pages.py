"""The generated pieces of the book's pages, in results/tables: tables, descriptions, the interactive figure."""

from pathlib import Path

import pandas as pd

from lscl import explore, paths, plan, reference, report, sweeps
from lscl.config import experiment
from lscl.data.store import write_atomic
from lscl.records import Record, all_records, select


def write() -> list[Path]:
    """Write every piece that a page includes; -> their paths. Without records each says so."""
    records = report.main_records(all_records("mini"))
    texts = {
        "config.md": report.to_markdown(reference.config_table()),
        "method_values.md": report.to_markdown(reference.method_values(), index=False),
        "systems.md": reference.systems(),
        "model_card.md": reference.model_card(),
        "headline.md": headline(records),
        "paper_plan.md": paper_plan(),
        "benchmarks.md": benchmarks(),
        **{f"federation_{name}.md": federation(name) for name in FEDERATION},
        "explore.html": explore.page(records),
    }
    written = []
    for name, text in texts.items():
        written.append(paths.results() / "tables" / name)
        write_atomic(written[-1], (text + "\n").encode())
    return written


def paper_plan(card: str = "t4") -> str:
    """What one run of every system in the profile paper needs by the cost model, on one GPU, as markdown."""
    machine, parts = plan.card(card), []
    for dataset in sweeps.PLANS["paper"]:
        rows = {}
        for method, extra in sweeps.TABLE1:
            one = plan.cost(experiment(profile="paper", dataset=dataset, method=method, **extra))
            rows[" ".join([report.METHOD_LABELS[method], *(f"({key} = {value})" for key, value in extra.items())])] = {
                "GPU memory GB": f"{one.memory / 2**30:.1f}",
                "disk GB": f"{one.disk / 1e9:.1f}",
                "PFLOP, clients": f"{(one.flops - one.server) / 1e15:.1f}",
                "PFLOP, server": f"{one.server / 1e15:.1f}",
                "hours": f"{one.hours(machine):.1f}",
            }
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")
        parts.append(f"**{report.DATASET_LABELS[dataset]}**, one seed, hours expected on the card `{card}`\n\n{report.to_markdown(table)}")
    return "\n\n".join(parts)


def benchmarks() -> str:
    """Every recorded benchmark against its goal, as markdown."""
    table = report.benchmarks()
    return "No benchmark has been recorded yet." if table.empty else report.to_markdown(table)


# A piece of the page about federations: how its table is made, and from which part of the recorded measurements.
FEDERATION = {
    "parity": (report.parity, "parity"),
    "wire": (report.wire, "parity"),
    "faults": (report.faults, "faults"),
    "scale": (report.scale, "scale"),
}


def federation(name: str) -> str:
    """What was measured of real federations, one table with its source, as markdown."""
    make, part = FEDERATION[name]
    table = make()
    return (
        "Not measured yet: see `benchmarks/federation.py`."
        if table.empty
        else f"{report.to_markdown(table, False)}\n\n{report.federation_note(part)}"
    )


def headline(records: list[Record]) -> str:
    """The introduction's table for each data set: scores, costs, seeds, and what they say, as markdown."""
    parts = []
    for dataset in ("cifar100", "glyphs"):
        chosen = select(records, dataset=dataset)
        if not chosen:
            continue
        table = report.scores(chosen)[["task-masked %", "class-incremental %", "forgetting"]].join(report.costs(chosen)[["MB up", "CPU minutes"]])
        table["seeds"] = [str(len(group)) for group in report.cells(chosen).values()]
        title = f"**{report.DATASET_LABELS[dataset]}**, profile `mini`, mean ± standard deviation over the seeds"
        parts.append(f"{title}\n\n{report.to_markdown(table)}\n\n{report.reading(chosen, 'seen')}\n\n{report.source_note(chosen)}")
    return "\n\n".join(parts) if parts else report.NO_RECORDS
