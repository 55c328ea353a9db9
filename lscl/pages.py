"""The generated pieces of the book's pages, in results/tables: tables, descriptions, the interactive figure."""

from pathlib import Path

from lscl import explore, paths, reference, report
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
        "explore.html": explore.page(records),
    }
    written = []
    for name, text in texts.items():
        written.append(paths.results() / "tables" / name)
        write_atomic(written[-1], (text + "\n").encode())
    return written


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
