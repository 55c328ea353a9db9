"""All that the book and the README show and that code makes: pages, tables, the interactive figure, sentences with numbers."""

from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

import pandas as pd

from lscl import explore, method_pages, paths, plan, readme, reference, report, sweeps
from lscl.config import experiment
from lscl.data.store import write_atomic
from lscl.records import Record, all_records, select
from lscl.report import METHOD_LABELS


def pieces() -> dict[str, str]:
    """Every piece as it has to be today: {path from the repository's root: text}. Without records each says so."""
    records = report.main_records(all_records("mini"))
    tables = {
        "config.md": report.numbered(reference.config_table(), "Every parameter, its value in each profile, and what it means", "tab-config"),
        "method_values.md": report.numbered(reference.method_values(), "Values of single systems", "tab-method-values", index=False),
        "systems.md": method_pages.overview(records),
        "model_card.md": reference.model_card(),
        "headline.md": headline(records),
        "paper_plan.md": paper_plan(),
        "benchmarks.md": benchmarks(),
        **{f"federation_{name}.md": federation(name) for name in FEDERATION},
        "explore.html": explore.page(records),
    }
    made = {f"results/tables/{name}": text + "\n" for name, text in tables.items()}
    made |= {f"book/methods/{method}.md": method_pages.page(method, records) + "\n" for method in METHOD_LABELS}
    page = paths.root() / "README.md"
    return made | ({"README.md": readme.text(page.read_text())} if page.exists() else {})


def write() -> list[Path]:
    """Write every piece that is not as it has to be; -> the paths of all."""
    made = pieces()
    for name, text in made.items():
        if _read(name) != text:
            write_atomic(paths.root() / name, text.encode())
    return [paths.root() / name for name in made]


def stale() -> list[str]:
    """One line for every piece that is not what code, config and records give today: where, what stands there and what should."""
    found = []
    for name, text in pieces().items():
        before = _read(name)
        if before is None:
            found.append(f"{name} is missing")
        elif before != text:
            pairs = zip_longest(before.splitlines(), text.splitlines(), fillvalue="")
            number, (old, new) = next((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1])
            found.append(f"{name}, line {number}, has {_short(old)!r}; the records give {_short(new)!r}")
    return found


def _read(name: str) -> str | None:
    path = paths.root() / name
    return path.read_text() if path.exists() else None


def _short(text: str, most: int = 100) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


@lru_cache  # the code alone decides it
def paper_plan(card: str = "t4") -> str:
    """What one run of every system in the profile paper needs by the cost model, on one GPU, as markdown."""
    machine, parts = plan.card(card), []
    for dataset in sweeps.PLANS["paper"]:
        rows = {}
        for method, extra in sweeps.TABLE1:
            one = plan.cost(experiment(profile="paper", dataset=dataset, method=method, **extra))
            rows[" ".join([METHOD_LABELS[method], *(f"({key} = {value})" for key, value in extra.items())])] = {
                "GPU memory GB": f"{one.memory / 2**30:.1f}",
                "disk GB": f"{one.disk / 1e9:.1f}",
                "PFLOP, clients": f"{(one.flops - one.server) / 1e15:.1f}",
                "PFLOP, server": f"{one.server / 1e15:.1f}",
                "hours": f"{one.hours(machine):.1f}",
            }
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")
        caption = f"{report.DATASET_LABELS[dataset]}, profile `paper`, one seed, by the cost model; hours expected on the card `{card}`"
        parts.append(report.numbered(table, caption, f"tab-plan-{dataset}"))
    return "\n\n".join(parts)


def benchmarks() -> str:
    """Every recorded benchmark against its goal, as markdown."""
    table = report.benchmarks()
    caption = "Every recorded benchmark against its goal, the machine and the commit"
    return "No benchmark has been recorded yet." if table.empty else report.numbered(table, caption, "tab-benchmarks")


# A table of the page about federations: how it is made, from which part of the recorded measurements, and what it shows.
FEDERATION = {
    "parity": (report.parity, "parity", "What a federation was compared in with the same run in one process"),
    "wire": (report.wire, "parity", "Bytes on the wire and in payloads; overhead: kB beyond the payload, for each client and exchange"),
    "faults": (report.faults, "faults", "Faults that were tried and what came of them"),
    "scale": (report.scale, "scale", "Simulated clients: seconds, and memory of all processes together"),
}


def federation(name: str) -> str:
    """What was measured of real federations, one table with its source, as markdown."""
    make, part, caption = FEDERATION[name]
    table = make()
    if table.empty:
        return "Not measured yet: see `benchmarks/federation.py`."
    return f"{report.numbered(table, caption, f'tab-federation-{name}', index=False)}\n\n{report.federation_note(part)}"


def headline(records: list[Record]) -> str:
    """The introduction's table for each data set: scores, costs, seeds, and what they say, as markdown."""
    parts = []
    for dataset in ("cifar100", "glyphs"):
        chosen = select(records, dataset=dataset)
        if not chosen:
            continue
        table = report.scores(chosen)[["task-masked %", "class-incremental %", "forgetting"]].join(report.costs(chosen)[["MB up", "CPU minutes"]])
        table["seeds"] = [str(len(group)) for group in report.cells(chosen).values()]
        caption = f"{report.DATASET_LABELS[dataset]}, profile `mini`, mean ± standard deviation over the seeds"
        parts.append(f"{report.captioned(table, caption, f'tab-headline-{dataset}', chosen)}\n\n{report.reading(chosen, 'seen')}")
    return "\n\n".join(parts) if parts else report.NO_RECORDS
