"""All that code makes of the book and the README: pages, tables, the interactive figure, numbers in sentences."""

import json
import re
from itertools import zip_longest
from pathlib import Path

from lscl import __version__, files, paths
from lscl.data.store import write_atomic
from lscl.errors import LsclError
from lscl.experiments import cost_model, sweeps
from lscl.experiments.records import Record, all_records, select
from lscl.publish import (
    api_pages,
    benchmark_pages,
    explorer,
    first_screen,
    gpu_pages,
    hardware,
    method_pages,
    numbers,
    readme,
    reference,
    status,
    verified,
)
from lscl.results.frames import costs_frame, final_by_seed, frame, main_records, table_records
from lscl.results.labels import DATASET_LABELS, is_variant, methods_in_order
from lscl.results.markdown import NO_RECORDS, captioned_table, folded, numbered_table, source_line, source_note
from lscl.results.privacy import sent_table
from lscl.results.readings import read_best
from lscl.results.tables import cost_table, score_table


def pieces() -> dict[str, str]:
    """Every piece as it has to be today: {path from the repository's root: text}. Without records each says so."""
    paths.check_clone("lscl pages")
    everything = sweeps.reportable_records(all_records("mini"))
    records = main_records(everything)
    shown = table_records(everything)  # in tables that set our variants apart
    tables = {
        "config.md": numbered_table(
            reference.config_table(),
            "Every parameter, its value in each profile, and its meaning",
            "tab-config",
            markdown=("name", "meaning"),
        ),
        "method_values.md": numbered_table(
            reference.method_values(), "Values that belong to one system", "tab-method-values", index=False
        ),
        "systems.md": method_pages.overview(shown),
        "model_card.md": reference.model_card(),
        "backbones.md": reference.backbone_table(),
        "headline.md": headline(shown),
        "paper_plan.md": paper_plan(),
        "benchmarks.md": benchmark_pages.benchmark_page(),
        **{
            f"federation_{name}.md": benchmark_pages.federation_page(name) for name in benchmark_pages.FEDERATION_TABLES
        },
        "times.md": times(records),
        "notebooks.md": notebook_times(),
        "gpu.md": gpu_pages.gpu_page(),
        "cards.md": cards_page(),
        "verified.md": verified.outcome("mini"),
        "verified_privacy.md": verified.privacy_outcome("mini"),
        "status.md": status_tables(everything),
        "privacy.md": sent_by_systems(),
        numbers.FILE: json.dumps(numbers.numbers(records), indent=1, ensure_ascii=False),
        "explore.html": explorer.explorer_page(shown),
        "explore.md": sources(shown),
    }
    made = {f"results/tables/{name}": text + "\n" for name, text in tables.items()}
    screen = first_screen.read_first_screen({"full": all_records("full"), "mini": everything})  # more images first
    made |= first_screen.first_pieces(screen)
    made |= {f"book/methods/{method}.md": method_pages.page(method, shown) + "\n" for method in methods_in_order()}
    made |= {method_pages.figure_path(method): method_pages.drawing(method) + "\n" for method in methods_in_order()}
    made |= {f"book/api/{name}.md": text + "\n" for name, text in api_pages.pages().items()}
    page = paths.root() / "README.md"
    return (
        made
        | ({"README.md": readme.readme_text(files.read_text(page), screen)} if page.exists() else {})
        | notebook_heads()
        | contents()
    )


def sent_by_systems() -> str:
    """What each system sends and what the server reads from it, by the records of attacked runs."""
    table = sent_table("mini")
    if table.empty:
        return "Not yet measured. `lscl privacy` does it."
    caption = "What one client of each system sends in its first task, and whether the server needs more than sums"
    return numbered_table(table, caption, "tab-privacy-systems", index=False)


def contents() -> dict[str, str]:
    """The book's table of contents with a page for every system, in the order of the tables."""
    path = paths.root() / "book" / "_toc.yml"
    if not path.exists():
        return {}
    listed = "".join(f"          - file: book/methods/{method}\n" for method in methods_in_order())
    return {
        "book/_toc.yml": re.sub(
            r"(?:^ +- file: book/methods/\w+\n)+", listed, files.read_text(path), count=1, flags=re.MULTILINE
        )
    }


def notebook_heads() -> dict[str, str]:
    """Every notebook with the measured time, the repository's public address and the release in its first cells.

    The address is a setting of _config.yml and stands nowhere else; the release is the tag of this version; the time
    comes from results/expected/demo.json.
    """
    found = sorted((paths.root() / "notebooks").glob("[0-9]*.ipynb"))
    if not found:
        return {}
    address = first_screen.repository_address()
    cell = re.compile(r'((?P<name>REPOSITORY|RELEASE) = \\")[^"\\]*')  # as JSON has it
    values = {"REPOSITORY": address, "RELEASE": f"v{__version__}"}
    time = re.compile(r"(\*\*Takes\*\* \[)[^]]*?(, runs included)?\]")
    heads = {}
    for path in found:
        text = cell.sub(lambda kept: kept[1] + values[kept["name"]], files.read_text(path))
        heads[f"notebooks/{path.name}"] = time.sub(lambda kept, name=path.stem: _time(kept, name), text)
    return heads


def _time(kept: re.Match, notebook: str) -> str:
    """The matched words with the measured time of the notebook in `make demo`; unchanged where nobody measured."""
    taken = hardware.notebook_time(notebook, runs=kept[2] is not None)
    return f"{kept[1]}{taken}{kept[2] or ''}]" if taken else kept[0]


def write_pages() -> list[Path]:
    """Write every piece that is not as it has to be, and return the paths of all pieces."""
    made = pieces()
    for name, text in made.items():
        if _read(name) != text:
            write_atomic(paths.root() / name, text.encode())
    return [paths.root() / name for name in made]


def stale_pages() -> list[str]:
    """One line for every piece that is not what code, config and records give today, with what it should say."""
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


def cards_page() -> str:
    """What the profile paper takes on every card, and the data sheets, as markdown."""
    timed = len(hardware.timed_steps()) > 0
    known = "hours follow timed steps where a row says so" if timed else "an estimate, not a measurement"
    tables = [
        numbered_table(
            hardware.planned_cards(),
            f"Estimated for each card, profile `paper`; {known}",
            "tab-cards",
            markdown=["card"],
        ),
        numbered_table(
            hardware.card_sheets(),
            "The cards by their data sheets: usable memory, bandwidth, dense rates; – = no such unit",
            "tab-sheets",
            markdown=["name"],
        ),
    ]
    return "\n\n".join(tables)


def planned_card() -> str:
    """The card of the plan of the profile paper: the first one with timed steps of it, else a T4."""
    every = hardware.main_costs(next(iter(sweeps.PLANS["paper"])))
    timed = [
        name for name in cost_model.CARDS if any(cost_model.find_card(name).timed_step(one.config) for one in every)
    ]
    return timed[0] if timed else "t4"


def paper_plan() -> str:
    """What one run of every system in the profile paper needs by the cost model, on one GPU, as markdown."""
    caption, card = "{}, profile `paper`, one seed, estimated by the cost model; hours on the card `{}`", planned_card()
    return "\n\n".join(
        numbered_table(
            hardware.planned_systems(dataset, card),
            caption.format(DATASET_LABELS[dataset], card),
            f"tab-plan-{dataset}",
        )
        for dataset in sweeps.PLANS["paper"]
    )


def sources(records: list[Record]) -> str:
    """The records behind each part of the interactive figure, as markdown."""
    groups = {name: select(records, dataset=name) for name in DATASET_LABELS}
    return (
        "\n\n".join(f"{DATASET_LABELS[name]}: {source_line(group)}" for name, group in groups.items() if group)
        or NO_RECORDS
    )


def times(records: list[Record]) -> str:
    """What was measured where, as markdown."""
    table = hardware.measured_times(records)
    if table.empty:
        return NO_RECORDS
    caption = "Measured: the command, the machine, the minutes, and the expected accuracy over all tasks at the end"
    return numbered_table(table, caption, "tab-times", index=False, markdown=["command"]) + (
        f"\n\n{source_note(records)}" if records else ""
    )


def notebook_times() -> str:
    """What each page of notebooks took, as markdown."""
    table = hardware.notebook_table()
    caption = "Measured with `make demo`: the time of each notebook, without the runs before it"
    return (
        NO_RECORDS
        if table.empty
        else numbered_table(table, caption, "tab-notebooks", index=False, markdown=["notebook"])
    )


def status_tables(records: list[Record]) -> str:
    """The state of the records, as markdown."""
    caption = "Recorded runs by named set, profile `mini`"
    parts = [numbered_table(status.set_table(records), caption, "tab-status-runs", index=False, markdown=["command"])]
    if records:
        about = "all records of the profile `mini` except those of the tuning"
        caption = f"Digests of the inputs, {about}"
        digests = numbered_table(
            status.digest_table(records), caption, "tab-status-digests", index=False, markdown=["digest"]
        )
        versions = numbered_table(
            status.version_table(records), f"Versions and machines, {about}", "tab-status-versions", index=False
        )
        parts += [
            folded("Digests of images, partitions and weights", digests),
            folded("Versions and machines", versions),
        ]
    return "\n\n".join(parts)


def headline(records: list[Record]) -> str:
    """The introduction's table for each data set: scores, costs, seeds, and what they say, as markdown."""
    scores, costs = frame(records), costs_frame(records)
    parts = []
    for dataset in ("cifar100", "glyphs"):
        here, spent = (table[table["dataset"] == dataset] for table in (scores, costs))
        if here.empty:
            continue
        found = score_table(here)
        table = found[["group", "n", "task-masked %", "class-incremental %", "forgetting"]].join(
            cost_table(spent)[["MB up", "TFLOP"]]
        )
        caption = (
            f"{DATASET_LABELS[dataset]}, profile `mini`, mean ± half of the 95 % interval over n seeds; "
            "MB up per client and TFLOP of all in a whole run"
        )
        by_seed = final_by_seed(here[~here["label"].map(is_variant)], "seen")
        shown = captioned_table(table, caption, f"tab-headline-{dataset}", here)
        parts.append(f"{shown}\n\n{read_best(by_seed, 'seen')}")
    return "\n\n".join(parts) if parts else NO_RECORDS
