"""Papermill runs the notebooks, Jupyter Book renders them; nothing is executed twice."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
from rich.console import Console

from lscl import pages, paths, readme, records, stamps
from lscl.data.store import write_atomic
from lscl.errors import LsclError
from lscl.models.prefix_cache import limit_bytes
from lscl.run import affordable, run
from lscl.sweeps import plan

BOOK_PARTS = ("book", "_config.yml", "results/tables", "results/figures")


def reproduce(
    profile: str,
    data_dir: Path | None = None,
    weights: Path | None = None,
    book: bool = True,
    force: bool = False,
    store: bool = False,
) -> None:
    """Compute the missing runs of `profile`, execute every notebook, and build the book from the executed notebooks.

    A notebook is executed again only if it, the code or the records have changed. `store` writes the executed notebooks,
    without papermill's notes, back to notebooks/, and what all of it took and gave to results/expected/ for the README, the
    latter only if no run was there before: minutes of a part are not the minutes of the whole.

    Raises:
        LsclError: a notebook failed (its name and error), or the book did not build.
    """
    limit_bytes()  # a bound that is no number is said before anything else
    say, started = Console(stderr=True).print, time.perf_counter()
    runs, done = plan(profile, data_dir, weights), []
    missing = [config for config in runs if not records.find(config)]
    affordable(missing)
    for number, config in enumerate(runs, 1):
        say(f"run {number}/{len(runs)}: {config.name}")
        done.append(run(config))
    runs_seconds, seconds = time.perf_counter() - started, {}
    pages.write()
    places = {name: str(place.resolve()) if place else None for name, place in (("data_dir", data_dir), ("weights", weights))}
    for notebook in sorted((paths.root() / "notebooks").glob("[0-9]*.ipynb")):
        target = paths.results() / "executed" / profile / notebook.name
        if not force and _stamp_file(target).exists() and _stamp_file(target).read_text() == _stamp(notebook, profile, places):
            say(f"{notebook.name}: nothing has changed, kept")
        else:
            execute(notebook, target, profile, places)
        if store:
            executed = nbformat.read(target, 4)
            seconds[notebook.stem] = executed.metadata.papermill.duration
            stamps.stamp(executed)
            write_atomic(notebook, _clean(executed).encode())
    page = build_book(profile) if book else None
    minutes = (time.perf_counter() - started) / 60
    if store and len(missing) == len(runs):
        readme.expect(profile, minutes, done, runs_seconds, seconds)
        pages.write()
    say(f"done in {minutes:.1f} minutes" + (f"; open {page}" if page else ""))


def execute(notebook: Path, target: Path, profile: str, places: dict[str, str | None]) -> None:
    """Run one notebook through papermill in its own folder; parameters that equal the notebook's own are not injected.

    places: {"data_dir": ..., "weights": ...}, for the notebooks that have these parameters.

    Raises:
        LsclError: a cell failed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    wanted = {"profile": profile, **places}
    own = papermill.inspect_notebook(str(notebook))
    parameters = {
        name: value
        for name, value in wanted.items()
        if name in own and value is not None and own[name]["default"] not in (value, repr(value), f'"{value}"')
    }
    try:
        papermill.execute_notebook(
            str(notebook),
            str(target),
            parameters,
            kernel_name="python3",
            cwd=str(notebook.parent),
            progress_bar=sys.stderr.isatty(),
            coalesce_streams=True,
        )
    except papermill.PapermillExecutionError as error:
        raise LsclError(f"{notebook.name}: {error.ename}: {error.evalue} (all outputs: {target})") from error
    write_atomic(_stamp_file(target), _stamp(notebook, profile, places).encode())


def build_book(profile: str) -> Path:
    """Render the book with the notebooks executed in `profile`; -> its first page.

    Raises:
        LsclError: Jupyter Book reported an error or a warning.
    """
    source = paths.root() / "_build" / profile / "source"
    shutil.rmtree(source, ignore_errors=True)
    for part in BOOK_PARTS:
        origin = paths.root() / part
        if origin.is_dir():
            shutil.copytree(origin, source / part)
        elif origin.exists():
            (source / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, source / part)
    (source / "notebooks").mkdir(parents=True, exist_ok=True)
    for executed in sorted((paths.results() / "executed" / profile).glob("*.ipynb")):
        (source / "notebooks" / executed.name).write_text(_clean(nbformat.read(executed, 4)))
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(source),
        "--toc",
        str(source / "book" / "_toc.yml"),
    ]
    command += ["--path-output", str(source.parent), "-q", "-n", "-W", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        log = source.parent / "build.log"
        log.write_text(done.stdout + done.stderr)
        raise LsclError(f"the book did not build without warnings, see {log}")
    return source.parent / "_build" / "html" / "index.html"


def _clean(notebook: nbformat.NotebookNode) -> str:
    """The notebook without papermill's times and paths; an injected parameters cell is folded away."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags and "hide-input" not in tags:
            tags.append("hide-input")
    return nbformat.writes(notebook) + "\n"


def _stamp_file(target: Path) -> Path:
    return target.with_suffix(".stamp")


def _stamp(notebook: Path, profile: str, places: dict[str, str | None]) -> str:
    """A digest of all that decides a notebook's outputs: its cells and parameters, the code, the records, and what else is read from results/."""
    cells = [(cell.cell_type, cell.source) for cell in nbformat.read(notebook, 4).cells]
    total = hashlib.sha256(json.dumps([cells, profile, places, records.source()["code_digest"]]).encode())
    for pattern in ("runs/*/*.json", "tuning/*.json", "published/*.csv", "benchmarks/*.json"):
        for path in sorted(paths.results().glob(pattern)):
            total.update(path.read_bytes())
    return total.hexdigest()
