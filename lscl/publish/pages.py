"""All that the book and the README show and that code makes: pages, tables, the interactive figure, sentences with numbers."""

import json
import re
from itertools import zip_longest
from pathlib import Path

from lscl import files, paths
from lscl.data.store import write_atomic
from lscl.errors import LsclError
from lscl.experiments import sweeps
from lscl.experiments.records import Record, all_records, select
from lscl.publish import api_pages, explorer, hardware, method_pages, numbers, readme, reference, status, verified
from lscl.results import report
from lscl.results.report import METHOD_LABELS


def pieces() -> dict[str, str]:
    """Every piece as it has to be today: {path from the repository's root: text}. Without records each says so."""
    everything = sweeps.reported(all_records("mini"))
    records = report.main_records(everything)
    tables = {
        "config.md": report.numbered(
            reference.config_table(), "Every parameter, its value in each profile, and what it means", "tab-config", markdown=("name", "meaning")
        ),
        "method_values.md": report.numbered(reference.method_values(), "Values of single systems", "tab-method-values", index=False),
        "systems.md": method_pages.overview(records),
        "model_card.md": reference.model_card(),
        "headline.md": headline(records),
        "paper_plan.md": paper_plan(),
        "benchmarks.md": benchmarks(),
        **{f"federation_{name}.md": federation(name) for name in FEDERATION},
        "times.md": times(records),
        "notebooks.md": notebook_times(),
        "cards.md": report.numbered(
            hardware.planned(), "Expected by the cost model, profile `paper`; nobody has measured it", "tab-cards", markdown=["card"]
        ),
        "verified.md": verified.outcome("mini"),
        "status.md": status_tables(everything),
        numbers.FILE: json.dumps(numbers.numbers(records), indent=1, ensure_ascii=False),
        "explore.html": explorer.page(records),
        "explore.md": sources(records),
    }
    made = {f"results/tables/{name}": text + "\n" for name, text in tables.items()}
    made |= {f"book/methods/{method}.md": method_pages.page(method, records) + "\n" for method in METHOD_LABELS}
    made |= {f"book/api/{name}.md": text + "\n" for name, text in api_pages.pages().items()}
    page = paths.root() / "README.md"
    return made | ({"README.md": readme.text(files.text(page))} if page.exists() else {}) | notebook_heads() | contents()


def contents() -> dict[str, str]:
    """The book's table of contents with a page for every system, in the order of the tables."""
    path = paths.root() / "book" / "_toc.yml"
    if not path.exists():
        return {}
    listed = "".join(f"          - file: book/methods/{method}\n" for method in METHOD_LABELS)
    return {"book/_toc.yml": re.sub(r"(?:^ +- file: book/methods/\w+\n)+", listed, files.text(path), count=1, flags=re.MULTILINE)}


def notebook_heads() -> dict[str, str]:
    """Every notebook with what its first cells take from elsewhere: the measured time, and the repository's public address.

    The address is a setting of _config.yml and stands nowhere else; the time comes from results/expected/demo.json.
    """
    found = sorted((paths.root() / "notebooks").glob("[0-9]*.ipynb"))
    if not found:
        return {}
    address = _address(paths.root() / "_config.yml")
    cell, time = re.compile(r'(REPOSITORY = \\")[^"\\]*'), re.compile(r"(\*\*Takes\*\* \[)[^]]*?(, runs included)?\]")  # as JSON has it
    heads = {}
    for path in found:
        text = cell.sub(lambda kept: kept[1] + address, files.text(path))
        heads[f"notebooks/{path.name}"] = time.sub(lambda kept, name=path.stem: _time(kept, name), text)
    return heads


def _address(path: Path) -> str:
    """The repository's public address in the settings.

    Raises:
        LsclError: it does not stand there.
    """
    found = files.settings(path)
    for name in ("repository", "url"):
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, str) or not re.fullmatch(r"https?://[^\s\"\\]+", found):
        raise LsclError(f"{path}: repository: url: must be a web address, found {found!r}")
    return found


def _time(kept: re.Match, notebook: str) -> str:
    """The matched words with the time that the notebook took when `make demo` was measured; as they are where nobody has measured it."""
    taken = hardware.notebook_time(notebook, runs=kept[2] is not None)
    return f"{kept[1]}{taken}{kept[2] or ''}]" if taken else kept[0]


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
    if path.exists() and not path.is_file():
        raise LsclError(f"cannot read {path}: not a regular file")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None


def _short(text: str, most: int = 100) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def paper_plan(card: str = "t4") -> str:
    """What one run of every system in the profile paper needs by the cost model, on one GPU, as markdown."""
    caption = "{}, profile `paper`, one seed, by the cost model; hours expected on the card `{}`"
    return "\n\n".join(
        report.numbered(hardware.each_system(dataset, card), caption.format(report.DATASET_LABELS[dataset], card), f"tab-plan-{dataset}")
        for dataset in sweeps.PLANS["paper"]
    )


def sources(records: list[Record]) -> str:
    """The records behind each part of the interactive figure, as markdown."""
    groups = {name: select(records, dataset=name) for name in report.DATASET_LABELS}
    return "\n\n".join(f"{report.DATASET_LABELS[name]}: {report.source_note(group)}" for name, group in groups.items() if group) or report.NO_RECORDS


def times(records: list[Record]) -> str:
    """What was measured where, as markdown."""
    table = hardware.measured(records)
    if table.empty:
        return report.NO_RECORDS
    caption = "Measured: the command, the machine, the minutes, and the accuracy to expect over all tasks at the end"
    return report.numbered(table, caption, "tab-times", index=False, markdown=["command"]) + (f"\n\n{report.source_note(records)}" if records else "")


def notebook_times() -> str:
    """What each page of notebooks took, as markdown."""
    table = hardware.notebooks()
    caption = "Measured with `make demo`: the time of each notebook, without what the runs before it took"
    return report.NO_RECORDS if table.empty else report.numbered(table, caption, "tab-notebooks", index=False, markdown=["notebook"])


def status_tables(records: list[Record]) -> str:
    """The state of the records, as markdown."""
    parts = [
        report.numbered(
            status.sets(records), "Runs that are recorded, by named set, profile `mini`", "tab-status-runs", index=False, markdown=["command"]
        )
    ]
    if records:
        about = "every record of the profile `mini` but those for tuning"
        parts.append(
            report.numbered(status.digests(records), f"Digests of what went in, {about}", "tab-status-digests", index=False, markdown=["digest"])
        )
        parts.append(report.numbered(status.versions(records), f"Versions and machines, {about}", "tab-status-versions", index=False))
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
        table = report.scores(chosen)[["n", "task-masked %", "class-incremental %", "forgetting"]].join(
            report.costs(chosen)[["MB up", "CPU minutes"]]
        )
        caption = f"{report.DATASET_LABELS[dataset]}, profile `mini`, mean ± half of the 95 % interval over n seeds"
        parts.append(f"{report.captioned(table, caption, f'tab-headline-{dataset}', chosen)}\n\n{report.reading(chosen, 'seen', brief=True)}")
    return "\n\n".join(parts) if parts else report.NO_RECORDS
