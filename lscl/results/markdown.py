"""Tables and notes as markdown for the book: the one border where text of records and files enters a page."""

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pandas as pd

from lscl.errors import LsclError
from lscl.experiments.records import Record
from lscl.results.frames import records_behind
from lscl.results.labels import COLUMN_HEADS, DATASET_LABELS

NO_RECORDS = "There are no finished `mini` runs yet: `lscl reproduce mini` computes them."
NOT_MEASURED = "Not yet measured: the runs that this needs are among those missing above."


# ---- text


def plain_text(text: object) -> str:
    """Text that comes from a record or another file, as it enters markdown or HTML.

    Whatever either could take for a sign of its own is written as an entity, and a line break is a space.
    """
    shown = " ".join(str(text).split())
    return _SIGNS.sub(lambda sign: f"&#{ord(sign[0])};", "".join(one for one in shown if one.isprintable()))


# Signs that start or end something in CommonMark, in MyST with its extensions, or in HTML. A lone "<" or "&", a pair
# of brackets without a target and a "_" inside a word or without a second one do not.
_SIGNS = re.compile(r"[`*{}$\\|~]|\](?=[(\[{:])|\[(?=\^)|<(?=\S)|&(?=[#\w])|(?<!\w)_(?=[^_]*_)|_(?=_)|(?<=_)_")


def code_text(text: object) -> str:
    """The same as a piece of code; as `plain_text` where a sign in it could end that."""
    shown = plain_text(text)
    return f"`{shown}`" if shown == str(text) else shown


def short_commit(commit: str | None, none: str = "installed package") -> str:
    """The first ten digits of a commit, or `none`."""
    return commit[:10] if commit else none


def join_distinct(values: Iterable[object]) -> str:
    """Different values in order, with commas, as plain text."""
    return plain_text(", ".join(sorted({str(value) for value in values})))


# ---- tables


def to_markdown(table: pd.DataFrame, index: bool = True, markdown: Collection[str] = ()) -> str:
    """A pipe table; numbers stand right, and nothing in it depends on the moment or on memory addresses.

    Args:
        table: what to show; a missing value is a dash.
        index: whether its index is a column.
        markdown: columns that are markdown already; every other entry is taken as `plain_text`.
    """
    shown = table.reset_index() if index else table
    ready = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    writers = [ready if column in markdown else plain_text for column in shown.columns]
    rows = [
        [write("–" if pd.isna(value) else value) for write, value in zip(writers, row)]
        for row in shown.itertuples(index=False)
    ]
    rule = (
        "|".join("---:" if all(map(_numeric, column)) else ":---" for column in zip(*rows))
        if rows
        else ":---|" * len(writers)
    )
    head = [plain_text(COLUMN_HEADS.get(column, column)) for column in shown.columns]
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule.rstrip('|')}|", *(f"| {' | '.join(row)} |" for row in rows)])


def _numeric(value: str) -> bool:
    return value[:1] in {*"0123456789+-–−", ""}


def numbered_table(
    table: pd.DataFrame, caption: str, name: str, index: bool = True, markdown: Collection[str] = ()
) -> str:
    """A table with a number, a caption and an anchor `name`; see `to_markdown`."""
    return f":::{{table}} {caption}\n:name: {name}\n\n{to_markdown(table, index, markdown)}\n:::"


def captioned_table(
    table: pd.DataFrame,
    caption: str,
    name: str,
    source: pd.DataFrame | Iterable[Record],
    draft: bool = False,
    markdown: Collection[str] = (),
) -> str:
    """A `numbered_table`, and below it the records it came from, see `source_note`."""
    return f"{numbered_table(table, caption, name, markdown=markdown)}\n\n{source_note(source, draft)}"


def tables_by_dataset(
    rows: pd.DataFrame,
    make: Callable[[pd.DataFrame], pd.DataFrame],
    caption: str,
    name: str,
    missing: str = NO_RECORDS,
    note: Callable[[pd.DataFrame], str] | None = None,
) -> str:
    """A numbered table for each data set of a frame, with anchor tab-<name>-<data set>, and below it where it comes from.

    Args:
        rows: a frame of `lscl.results`, or what was filtered out of one.
        make: makes the table from the rows of one data set.
        caption, name: what the data set is added to.
        missing: what stands in place of a table without rows.
        note: what says where the rows of one data set come from, `source_note` if not given.

    Raises:
        LsclError: one table would have runs on several sets of images.
    """
    parts = []
    for dataset in sorted(rows["dataset"].unique()):
        part, title = rows[rows["dataset"] == dataset], DATASET_LABELS[dataset]
        table = make(part)
        if table.empty:
            parts.append(f"{title}: {missing}")
            continue
        anchor = f"tab-{name}-{dataset.replace('_', '-')}"
        parts.append(f"{numbered_table(table, f'{caption}, {title}.', anchor)}\n\n{(note or _one_set_of_images)(part)}")
    return "\n\n".join(parts) or missing


def _one_set_of_images(part: pd.DataFrame) -> str:
    images = sorted({one["data_digest"] for one in records_behind(part)})
    if len(images) > 1:
        raise LsclError(f"one table, one data_digest: the records have {', '.join(images)}")
    return source_note(part)


# ---- where numbers come from


def small_print(*parts: str) -> str:
    """The line under a table or figure that says where its numbers come from; without parts that are not empty there is none."""
    found = [part for part in parts if part]
    return f"<small>{'; '.join(found)}</small>" if found else ""


def commits_of(sources: Iterable[dict[str, Any]], none: str = "installed package") -> str:
    """The commits of records or other measurements, as a part of a `small_print`."""
    return f"commit {join_distinct(short_commit(one['commit'], none) for one in sources)}"


def seeds_of(sources: Iterable[dict[str, Any]]) -> str:
    """The seeds of records or other measurements, as a part of a `small_print`."""
    return f"seeds {', '.join(str(seed) for seed in sorted({one['seed'] for one in sources}))}"


def provenance(source: pd.DataFrame | Iterable[Record], draft: bool = False) -> str:
    """One line for under a table or figure: commits, seeds, n, machine, minutes, and the digests of data, partitions and weights.

    Args:
        source: a frame of `lscl.results`, whose maker has judged its drafts, or records.
        draft: let records of uncommitted code pass.

    Raises:
        LsclError: a record of uncommitted code, or no records.
    """
    group = records_behind(source)
    if not group:
        raise LsclError("no records to name: run something first")
    dirty = [one["name"] for one in group if one["dirty"]]
    if dirty and not draft and not isinstance(source, pd.DataFrame):
        raise LsclError(
            f"record {dirty[0]} was made with uncommitted code, it cannot stand behind a table or figure: commit, then run it again"
        )
    parts = [
        f"profile {group[0]['profile']}",
        commits_of(group),
        seeds_of(group),
        f"{len(group)} run{'s' if len(group) > 1 else ''}, {sum(map(wall_minutes, group)):.0f} minutes",
        join_distinct(f"{one['hardware']['cpu']}, {one['config']['threads']} threads" + _gpu(one) for one in group),
        f"data {join_distinct(one['data_digest'] for one in group)}",
        f"partitions {join_distinct(one['partition_digest'] for one in group)}",
        f"weights {join_distinct(one['weights_digest'] for one in group if one['weights_digest']) or 'none'}",
    ]
    if dirty:
        parts.insert(0, "DRAFT of uncommitted code, not a result")
    return "; ".join(parts) + "."


def _gpu(record: Record) -> str:
    gpu = record["hardware"]["gpu"]
    return f", {gpu}" if gpu else ""


def wall_minutes(record: Record) -> float:
    """Minutes by the clock of all phases of a run."""
    return sum(record["seconds"].values()) / 60


def source_note(source: pd.DataFrame | Iterable[Record], draft: bool = False) -> str:
    """The `provenance` of a table or figure in small print; nothing without records."""
    behind = source if isinstance(source, pd.DataFrame) else list(source)
    return small_print(provenance(behind, draft)) if len(behind) else ""
