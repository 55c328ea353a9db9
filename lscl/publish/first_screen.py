"""What the README and the landing page show first: the finding, the picture of all systems, badges and addresses."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from lscl import files, paths
from lscl.errors import LsclError
from lscl.experiments.records import Record
from lscl.results import file_shapes
from lscl.results.animation import animated_round, round_in_words
from lscl.results.colours import HUES
from lscl.results.markdown import NO_RECORDS, source_line, source_note, to_markdown
from lscl.results.overview import (
    Dots,
    dot_plot,
    dot_plot_for_a_page,
    first_screen_records,
    five_rows,
    main_finding,
    picture_in_words,
    systems_as_dots,
)

DOTS, ROUND = "results/figures/first_dots.svg", "results/figures/round.svg"
BADGE = HUES[0].removeprefix("#")
NOT_PLAYED = "Nobody has played the round yet: `python benchmarks/played_round.py` does it."


def repository_address() -> str:
    """The repository's public address, a setting of _config.yml that stands nowhere else.

    Raises:
        LsclError: it does not stand there, or is no web address.
    """
    path = paths.root() / "_config.yml"
    found = files.read_yaml(path)
    for name in ("repository", "url"):
        found = found.get(name) if isinstance(found, dict) else None
    if (
        not isinstance(found, str)
        or urlsplit(found).scheme not in ("http", "https")
        or set(found) & set(' \t\n"\\<>()')
    ):
        raise LsclError(f"{path}: repository: url: must be a web address, found {found!r}")
    return found.rstrip("/")


def site_address(repository: str) -> str | None:
    """The address of the project's pages, which follows from that of a repository on GitHub; None elsewhere."""
    parts = urlsplit(repository)
    names = [name for name in parts.path.split("/") if name]
    if parts.hostname != "github.com" or len(names) != 2:
        return None
    return f"https://{names[0].lower()}.github.io/{names[1].removesuffix('.git')}/"


@dataclass(frozen=True)
class FirstScreen:
    """What the first screen shows; `read_first_screen` makes it once for all that is generated from it.

    Args:
        records: those behind its finding, its picture and its table.
        rows: `overview.systems_as_dots` of them.
        trace: the round that `benchmarks/played_round.py` has stored; None before.
    """

    records: list[Record]
    rows: list[Dots]
    trace: dict[str, Any] | None


def read_first_screen(profiles: Mapping[str, Iterable[Record]]) -> FirstScreen:
    """Choose the records of the first screen, group them by system, and read the played round.

    Args:
        profiles: {profile: its records}, the one with the most images first.

    Returns:
        what `first_pieces` and `readme_blocks` take.

    Raises:
        LsclError: the file of the played round is damaged.
    """
    records = first_screen_records(dict(profiles))
    return FirstScreen(records, systems_as_dots(records) if records else [], _played())


def first_pieces(screen: FirstScreen) -> dict[str, str]:
    """The generated files of the first screen.

    Args:
        screen: from `read_first_screen`.

    Returns:
        {path from the repository's root: text}.
    """
    rows, trace = screen.rows, screen.trace
    return {
        "results/tables/finding.md": f"{main_finding(screen.records, rows)}\n",
        "results/tables/first_dots.html": f"{dot_plot_for_a_page(rows)}\n",
        "results/tables/first_source.md": f"{source_line(screen.records) or NO_RECORDS}\n",
        "results/tables/round.html": f"{animated_round(trace, inline=True) if trace else f'<p>{NOT_PLAYED}</p>'}\n",
        DOTS: f"{dot_plot(rows)}\n",
        **({ROUND: f"{animated_round(trace)}\n"} if trace else {}),
    }


def readme_blocks(screen: FirstScreen) -> dict[str, str]:
    """The parts of the README that follow from settings and records, by the names of their markers.

    Args:
        screen: from `read_first_screen`.

    Returns:
        markdown by name.

    Raises:
        LsclError: a setting is missing, see `repository_address`.
    """
    rows, trace = screen.rows, screen.trace
    picture = f"![{picture_in_words(rows)}]({DOTS})" if rows else ""
    table = f"{to_markdown(five_rows(rows))}\n\n{source_note(screen.records)}" if rows else NO_RECORDS
    return {
        "badges": _badges(),
        "finding": "\n\n".join(part for part in (main_finding(screen.records, rows), picture) if part),
        "round": f"![{round_in_words(trace)}]({ROUND})" if trace else NOT_PLAYED,
        "results": table,
    }


def _played() -> dict[str, Any] | None:
    """The round that `benchmarks/played_round.py` has stored; None before."""
    path = paths.results() / "federation" / "round.json"
    return files.read_json(path, file_shapes.PlayedRound) if path.exists() else None


def _badges() -> str:
    """Badges of tests, licence and Python, and the ways to the site and its notebooks."""
    address, project = repository_address(), _project()
    site = site_address(address)
    python = quote(project["requires-python"].replace("-", "--"), safe="")
    licence = quote(project["license"].replace("-", "--"), safe="")
    shown = [
        f"[![tests]({address}/actions/workflows/test.yml/badge.svg)]({address}/actions/workflows/test.yml)",
        f"[![licence](https://img.shields.io/badge/licence-{licence}-{BADGE})](LICENSE)",
        f"[![Python](https://img.shields.io/badge/Python-{python}-{BADGE})](pyproject.toml)",
    ]
    read = f"**[Read the book]({site})**" if site else f"**[The repository]({address})**"
    return f"{' '.join(shown)}\n\n{read}"


def _project() -> dict[str, str]:
    path = paths.root() / "pyproject.toml"
    try:
        found = tomllib.loads(files.read_text(path))["project"]
        return {name: str(found[name]) for name in ("requires-python", "license")}
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise LsclError(f"{path}: [project] must have requires-python and license ({error})") from error
