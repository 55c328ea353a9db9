"""Tables and notes as markdown for the book: the one border where text of records and files enters a page."""

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pandas as pd

from lscl.errors import LsclError, pluralize
from lscl.experiments.records import Record
from lscl.experiments.rounding import machine_of
from lscl.results.frames import records_behind
from lscl.results.labels import COLUMN_HEADS, DATASET_LABELS

NO_RECORDS = "No run of `mini` is recorded: `lscl reproduce mini` computes them."
MISSING_RUNS = "*Nothing to show: the runs for this place are missing, see the note at the top of the page.*"


# ---- text


def plain_text(text: object) -> str:
    """Text from a record or another file, made safe for markdown and HTML.

    A sign that either could take for its own becomes an entity, and a line break becomes a space.
    """
    shown = " ".join(str(text).split())
    return _SIGNS.sub(lambda sign: f"&#{ord(sign[0])};", "".join(one for one in shown if one.isprintable()))


# Signs that start or end something in CommonMark, in MyST with its extensions, or in HTML. A lone "<" or "&", a pair
# of brackets without a target and a "_" inside a word or without a second one do not.
_SIGNS = re.compile(r"[`*{}$\\|~]|\](?=[(\[{:])|\[(?=\^)|<(?=\S)|&(?=[#\w])|(?<!\w)_(?=[^_]*_)|_(?=_)|(?<=_)_")


def code_text(text: object) -> str:
    """Text as a piece of code; as `plain_text` where a sign in it could end that."""
    shown = plain_text(text)
    return f"`{shown}`" if shown == str(text) else shown


def short_commit(commit: str | None, none: str = "installed package") -> str:
    """A commit as text.

    Args:
        commit: its hash; None if the code was of no repository.
        none: the text in that case.

    Returns:
        the first ten digits.
    """
    return commit[:10] if commit else none


def join_distinct(values: Iterable[object]) -> str:
    """The distinct values in alphabetical order, with commas, as `plain_text`."""
    return plain_text(", ".join(sorted({str(value) for value in values})))


def as_output(text: str) -> Any:
    """Markdown as the output of a notebook's cell.

    Args:
        text: markdown.

    Returns:
        what the notebook shows; None without text, as a page shows empty markdown as the name of its class.
    """
    from IPython.display import Markdown  # only notebooks have it

    return Markdown(text) if text else None


# ---- tables


def to_markdown(table: pd.DataFrame, index: bool = True, markdown: Collection[str] = ()) -> str:
    """A pipe table with numbers aligned right.

    Args:
        table: what to show; a missing value is a dash.
        index: whether its index is a column.
        markdown: columns that are markdown already; every other entry becomes `plain_text`.

    Returns:
        markdown without a caption.
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
    """A table with a number, a caption and an anchor.

    Args:
        table: what to show.
        caption: markdown.
        name: the anchor.
        index: as for `to_markdown`.
        markdown: as for `to_markdown`.

    Returns:
        markdown.
    """
    return f":::{{table}} {caption}\n:name: {name}\n\n{to_markdown(table, index, markdown)}\n:::"


def captioned_table(
    table: pd.DataFrame,
    caption: str,
    name: str,
    source: pd.DataFrame | Iterable[Record],
    draft: bool = False,
    markdown: Collection[str] = (),
) -> str:
    """A `numbered_table`, and below it the records it came from.

    Args:
        table: what to show.
        caption: markdown.
        name: the anchor.
        source: as for `source_note`.
        draft: as for `source_note`.
        markdown: as for `to_markdown`.

    Returns:
        markdown.

    Raises:
        LsclError: as `provenance`.
    """
    return f"{numbered_table(table, caption, name, markdown=markdown)}\n\n{source_note(source, draft)}"


def folded(title: str, text: str) -> str:
    """Markdown that a page shows after a click on its title; nothing without text.

    Args:
        title: plain text.
        text: markdown.

    Returns:
        markdown.
    """
    fence = ":" * (1 + max([3, *map(len, re.findall(r"^:{3,}", text, re.MULTILINE))]))  # longer than those inside
    return f"{fence}{{dropdown}} {title}\n\n{text}\n\n{fence}" if text else ""


def tables_by_dataset(
    rows: pd.DataFrame,
    make: Callable[[pd.DataFrame], pd.DataFrame],
    caption: str,
    name: str,
    missing: str = NO_RECORDS,
    note: Callable[[pd.DataFrame], str] | None = None,
    markdown: Collection[str] = (),
    least: int = 1,
) -> str:
    """A numbered table for each data set of a frame, and below it where it comes from; all but the first are folded.

    A data set for which `make` gives too few rows has no table.

    Args:
        rows: a frame of `lscl.results`, or a part of one.
        make: makes the table from the rows of one data set.
        caption: markdown; the name of the data set is added to it.
        name: gives the anchor tab-<name>-<data set>.
        missing: stands in place of the tables if there are none.
        note: says where the rows of one data set come from; None = `source_note`.
        markdown: as for `to_markdown`.
        least: how many rows a table needs; 2 where one row compares nothing.

    Returns:
        markdown; `missing` if there are no rows at all.

    Raises:
        LsclError: one table would have runs on several sets of images.
    """
    parts = []
    for dataset in sorted(rows["dataset"].unique()):
        part, title = rows[rows["dataset"] == dataset], DATASET_LABELS[dataset]
        table = make(part)
        if table.empty or len(table) < least:
            continue
        anchor = f"tab-{name}-{dataset.replace('_', '-')}"
        made = numbered_table(table, f"{caption}, {title}.", anchor, markdown=markdown)
        text = f"{made}\n\n{(note or _one_set_of_images)(part)}"
        parts.append(folded(f"The same on {title}", text) if parts else text)
    return "\n\n".join(parts) or missing


def _one_set_of_images(part: pd.DataFrame) -> str:
    images = sorted({one["data_digest"] for one in records_behind(part)})
    if len(images) > 1:
        raise LsclError(f"one table, one data_digest: the records have {', '.join(images)}")
    return source_note(part)


# ---- where numbers come from


def small_print(*parts: str) -> str:
    """The line below a table or figure that says where its numbers come from; empty if all parts are."""
    found = [part for part in parts if part]
    return f"<small>{'; '.join(found)}</small>" if found else ""


def commits_of(sources: Iterable[dict[str, Any]], none: str = "installed package") -> str:
    """The commits of records or other measurements, as a part of a `small_print`.

    Args:
        sources: each with an entry commit.
        none: the text for code of no repository.

    Returns:
        text.
    """
    return f"commit {join_distinct(short_commit(one['commit'], none) for one in sources)}"


def seeds_of(sources: Iterable[dict[str, Any]]) -> str:
    """The seeds of records or other measurements, as a part of a `small_print`."""
    return f"seeds {', '.join(str(seed) for seed in sorted({one['seed'] for one in sources}))}"


def provenance(source: pd.DataFrame | Iterable[Record], draft: bool = False) -> str:
    """Where the numbers of a table or figure come from.

    Args:
        source: a frame of `lscl.results`, whose drafts were judged when it was made, or records.
        draft: let records of uncommitted code pass.

    Returns:
        one line: profile, commits, seeds, runs, minutes, machines, and digests of data, partitions and weights.

    Raises:
        LsclError: a record of uncommitted code, or no records.
    """
    group = records_behind(source)
    if not group:
        raise LsclError("no records to name: run something first")
    dirty = [one["name"] for one in group if one["dirty"]]
    if dirty and not draft and not isinstance(source, pd.DataFrame):
        raise LsclError(
            f"record {dirty[0]} was made with uncommitted code, it cannot stand behind a table or figure: "
            "commit, then run it again"
        )
    parts = [
        f"profile {group[0]['profile']}",
        commits_of(group),
        seeds_of(group),
        f"{pluralize(len(group), 'run')}, {sum(map(wall_minutes, group)):.0f} minutes",
        join_distinct(cpu_of(one) + _gpu(one) for one in group),
        *_mixed(source),
        f"data {join_distinct(one['data_digest'] for one in group)}",
        f"partitions {join_distinct(one['partition_digest'] for one in group)}",
        f"weights {join_distinct(one['weights_digest'] for one in group if one['weights_digest']) or 'none'}",
    ]
    if dirty:
        parts.insert(0, "DRAFT of uncommitted code, not a result")
    return "; ".join(parts) + "."


def _mixed(source: pd.DataFrame | Iterable[Record]) -> list[str]:
    """Which rows of a frame have runs of several kinds of processor, one of which is moved as if by another seed."""
    if not isinstance(source, pd.DataFrame):
        return []
    rows = source.drop_duplicates("run")
    name = "variant" if rows["method"].nunique() == 1 and rows["variant"].nunique() > 1 else "label"
    kinds = rows.assign(machine=list(map(machine_of, records_behind(rows)))).groupby(name, sort=False)["machine"]
    mixed = [plain_text(one) for one, machines in kinds if machines.nunique() > 1]
    return [f"several kinds of processor in the rows {', '.join(mixed)}"] if mixed else []


def cpu_of(record: Record) -> str:
    """The processor of a run and the threads it used."""
    return f"{record['hardware']['cpu']} with {pluralize(record['config']['threads'], 'thread')}"


def _gpu(record: Record) -> str:
    gpu = record["hardware"]["gpu"]
    return f", {gpu}" if gpu else ""


def wall_minutes(record: Record) -> float:
    """Minutes by the clock of all phases of a run."""
    return sum(record["seconds"].values()) / 60


def source_line(source: pd.DataFrame | Iterable[Record], draft: bool = False) -> str:
    """The `provenance` of a table or figure in small print.

    Args:
        source: as for `provenance`.
        draft: as for `provenance`.

    Returns:
        markdown; empty without records.

    Raises:
        LsclError: as `provenance`.
    """
    behind = source if isinstance(source, pd.DataFrame) else list(source)
    return small_print(provenance(behind, draft)) if len(behind) else ""


def source_note(source: pd.DataFrame | Iterable[Record], draft: bool = False) -> str:
    """The `source_line` of a table or figure, folded: it is for those who doubt a number.

    Args:
        source: as for `provenance`.
        draft: as for `provenance`.

    Returns:
        markdown; empty without records.

    Raises:
        LsclError: as `provenance`.
    """
    line = source_line(source, draft)
    return f'<details class="source"><summary>Where these numbers come from</summary>{line}</details>' if line else ""
