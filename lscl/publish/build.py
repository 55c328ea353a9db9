"""Papermill runs the notebooks, Jupyter Book renders them; nothing is executed twice."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from rich.console import Console

from lscl import files, paths
from lscl.data.store import write_atomic
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.run import check_affordable, run
from lscl.experiments.sweeps import check_folder_is_read, plan
from lscl.models.cache import limit_bytes
from lscl.publish import freshness, pages, readme, watched_kernel
from lscl.registry import METHODS

BOOK_PARTS = ("book", "_config.yml", "results/tables", "results/figures")
# What builds the book. Nearly all that Sphinx makes lives to the end, so that Python need not look for unused objects,
# which would take a third of the time.
JUPYTER_BOOK = "import gc; gc.disable(); from jupyter_book.cli.main import main; main()"
KEPT = ("smoke", "demo")  # profiles in which `lscl reproduce` keeps the models of the paper's own system
NO_BOOK = "the book needs jupyter-book: pip install 'fed-lscl[book]', then the same command builds it"
UTF8 = {"PYTHONUTF8": "1", "LC_ALL": "C"}  # text is UTF-8 whatever the machine's locale is; it need not even exist


def own_kernel(declared: dict) -> type[AsyncKernelManager]:
    """A manager that starts a notebook's kernel in this Python, whatever kernels are installed.

    Args:
        declared: what the notebook may read under results/, see `lscl.publish.watched_kernel`.
    """

    class OwnKernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(
                argv=[
                    *(sys.executable, "-m", "lscl.publish.watched_kernel", "-f", "{connection_file}"),
                    "--log-level=ERROR",  # it would warn that it talks to its own machine unencrypted
                ],
                display_name="Python 3",
                language="python",
                env={**UTF8, watched_kernel.VARIABLE: json.dumps(declared)},
            )

    return OwnKernel


def reproduce(
    profile: str,
    data_dir: Path | None = None,
    weights: Path | None = None,
    book: bool = True,
    force: bool = False,
    store: bool = False,
) -> None:
    """Compute the missing runs of a profile, execute every notebook, and build the book from the executed notebooks.

    A notebook is executed again only if a part of its digest (`freshness.digest`) has changed.

    Args:
        profile: its name.
        data_dir: where the images lie.
        weights: a local checkpoint of the frozen ViT.
        book: build the book; without the package jupyter-book one line at the end says how to get it.
        force: execute every notebook, changed or not.
        store: write the executed notebooks back to notebooks/ without papermill's notes. If no run was there before,
            also write what all of it took and gave to results/expected/: minutes of a part are not those of the whole.

    Raises:
        LsclError: no data set of the profile reads `data_dir`, a notebook failed (its name and error), or the book did
            not build.
    """
    paths.check_clone("lscl reproduce")
    limit_bytes()  # refuses a bound that is no number, before anything else
    say, started = Console(stderr=True).print, time.perf_counter()
    runs, done = plan(profile, data_dir, weights), []
    check_folder_is_read({config.dataset for config in runs}, data_dir)
    notebooks = sorted((paths.root() / "notebooks").glob("[0-9]*.ipynb"))
    for notebook in notebooks:
        files.read_notebook(notebook)
    pages.pieces()  # refuses a damaged file before anything is computed
    missing = [config for config in runs if not records.find(config)]
    check_affordable(missing)
    for number, config in enumerate(runs, 1):
        say(f"run {number}/{len(runs)}: {config.name}")
        ours = METHODS[config.method].role == "own" and config.overrides() == {}
        done.append(run(config, keep_model=profile in KEPT and ours))
    runs_seconds, seconds = time.perf_counter() - started, {}
    pages.write_pages()
    places = {
        name: str(place.resolve()) if place else None for name, place in (("data_dir", data_dir), ("weights", weights))
    }
    for notebook in notebooks:
        target = paths.results() / "executed" / profile / notebook.name
        if not force and _is_fresh(notebook, target, profile, places):
            say(f"{notebook.name}: nothing has changed, kept")
        else:
            execute(notebook, target, profile, places)
        if store:
            executed = files.read_notebook(target)
            seconds[notebook.stem] = executed.metadata.papermill.duration
            freshness.store_digest(executed, profile, places)
            write_atomic(notebook, _clean(executed).encode())
    page = build_book(profile) if book and find_spec("jupyter_book") else None
    minutes = (time.perf_counter() - started) / 60
    if store and len(missing) == len(runs):
        readme.expect(profile, minutes, done, runs_seconds, seconds)
        pages.write_pages()
    for line in readme.compare_with_expected(profile, done):
        say(line)
    say(f"done in {minutes:.1f} minutes" + (f"; open {page}" if page else ""))
    if book and page is None:
        say(
            f"executed notebooks are in {paths.results() / 'executed' / profile}; {NO_BOOK}",
            soft_wrap=True,
            markup=False,
        )


def execute(notebook: Path, target: Path, profile: str, places: dict[str, str | None]) -> None:
    """Run one notebook through papermill in its own folder; parameters that equal the notebook's own are not injected.

    Args:
        notebook: the file to execute.
        target: where the executed one goes.
        profile: the parameter of that name.
        places: {"data_dir": ..., "weights": ...}, for the notebooks that have these parameters.

    Raises:
        LsclError: a cell failed, one read a file under results/ that the notebook does not declare, or the kernel died.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _digest_file(target).unlink(missing_ok=True)
    wanted = {"profile": profile, **places}
    source = files.read_notebook(notebook)  # or say what is wrong with it
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
            kernel_manager_class=own_kernel({"notebook": notebook.name, **freshness.declared_inputs(source, profile)}),
            cwd=str(notebook.parent),
            progress_bar=sys.stderr.isatty(),
            coalesce_streams=True,
        )
    except papermill.PapermillExecutionError as error:
        raise LsclError(f"{notebook.name}: {error.ename}: {error.evalue} (all outputs: {target})") from error
    except RuntimeError as error:  # nbclient's DeadKernelError, or jupyter_client's about a kernel that does not start
        raise LsclError(
            f"{notebook.name}: {error}, perhaps because memory ran out (outputs so far: {target})"
        ) from error
    write_atomic(_digest_file(target), json.dumps(freshness.digest(source, profile, places)).encode())


def build_book(profile: str) -> Path:
    """Render the book with the notebooks executed in a profile, and return the path of its first page.

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
        (source / "notebooks" / executed.name).write_text(_clean(files.read_notebook(executed)), encoding="utf-8")
    command = [
        sys.executable,
        "-c",
        JUPYTER_BOOK,
        "build",
        str(source),
        "--toc",
        str(source / "book" / "_toc.yml"),
    ]
    command += ["--path-output", str(source.parent), "-q", "-n", "-W", "--keep-going"]
    done = subprocess.run(command, env={**os.environ, **UTF8}, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode != 0:
        log = source.parent / "build.log"
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        raise LsclError(f"the book did not build without warnings, see {log}")
    return source.parent / "_build" / "html" / "index.html"


def _clean(notebook: nbformat.NotebookNode) -> str:
    """The notebook without papermill's times and paths; an injected parameters cell is hidden as the notebook's own is.

    Where the page shows the notebook's own values, the injected ones are folded.
    """
    notebook.metadata.pop("papermill", None)
    own = [one for cell in notebook.cells if "parameters" in (one := cell.metadata.get("tags", []))]
    hiding = "remove-input" if any("remove-input" in tags for tags in own) else "hide-input"
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags and hiding not in tags:
            tags.append(hiding)
    return nbformat.writes(notebook) + "\n"


def _digest_file(target: Path) -> Path:
    return target.with_suffix(".digest.json")


def _is_fresh(notebook: Path, target: Path, profile: str, places: dict[str, str | None]) -> bool:
    """Whether an executed notebook is what executing it again would give."""
    try:
        found = files.read_json(_digest_file(target), dict[str, Any])
    except LsclError:
        return False
    return target.exists() and found == freshness.digest(files.read_notebook(notebook), profile, places)
