"""One page of the book for every system, made from its class, the config and the records, so that nothing stands in two places."""

import inspect
import re
import sys
from functools import lru_cache
from types import ModuleType
from typing import Any

import pandas as pd

from lscl import files, paths
from lscl.config import chosen, experiment, fields
from lscl.experiments import sweeps
from lscl.experiments.records import Record, select
from lscl.publish.reference import show
from lscl.registry import METHODS
from lscl.results import report
from lscl.results.report import DATASET_LABELS, METHOD_LABELS

DATASETS = ("cifar100", "glyphs", "imagenet_r")
MADE = "% Made by `lscl pages` from the class, the config and the records: edit those."
RULE = (
    f"Every system got the same number of points, on seed {sweeps.TUNING_SEED} alone, which is in no other table. The highest class-incremental "
    f"accuracy after task {sweeps.TUNING_TASKS} decided."
)


def page(method: str, records: list[Record]) -> str:
    """The page of one system as markdown; `records` are those of the main table (`report.main_records`)."""
    kind, name = METHODS[method], METHOD_LABELS[method]
    idea, travels, heading, differences = description(method)
    parts = [
        MADE,
        f"({anchor(method)})=\n# {name}",
        f"`--method {method}`, in code `{kind.__module__}.{kind.__name__}`; all of them side by side: {{doc}}`/book/systems`.",
        f"## Idea\n\n{cited(idea)}",
        f"## What is trained and what travels\n\n{cited(travels)}",
        costs(method, records),
        f"## {heading}\n\n{cited(differences)}" if differences else "",
        "Where the paper itself is silent, and what we chose there: {doc}`/book/differences`." if kind.role == "own" else "",
        f"## Parameters\n\n{_read(method)}",
        f"## Results\n\n{results(method, records)}",
        f"## Tuning\n\n{tuning(method)}",
    ]
    return "\n\n".join(part for part in parts if part)


def _read(method: str) -> str:
    caption = f"{METHOD_LABELS[method]}: every parameter that its code reads"
    return report.numbered(parameters(method), caption, f"tab-{method}-values", markdown=("name", "meaning"))


def anchor(method: str) -> str:
    """The name by which other pages refer to a system's page."""
    return f"method-{method.replace('_', '-')}"


def description(method: str) -> tuple[str, str, str, str]:
    """A class's docstring in four: the idea, what is trained and travels, the heading of the numbered list, and that list with all behind it.

    The last two are empty where there is no list.
    """
    first, *rest = inspect.getdoc(METHODS[method]).split("\n\n")
    start = next((i for i, part in enumerate(rest) if re.search(r"^1\. ", part, re.MULTILINE)), len(rest))
    travels = "\n\n".join(_columns(part) for part in rest[:start])
    if start == len(rest):
        return first, travels, "", ""
    heading, listed = rest[start].split("\n", 1)
    return first, travels, heading.rstrip(":"), "\n\n".join([listed, *rest[start + 1 :]])


def _columns(text: str) -> str:
    """Lines that are set in columns stay so: they become a block of code of their own."""
    lines: list[str] = []
    for line in text.splitlines():
        if lines and line.startswith("    ") != lines[-1].startswith("    "):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def cited(text: str) -> str:
    """The text with a link to the bibliography behind every arXiv number that stands there."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", lambda found: f"{found[0]}{_citation(found[1])}", text)


def _citation(number: str) -> str:
    key = _bibliography().get(number)
    return f", {{cite}}`{key}`" if key else ""


def _bibliography() -> dict[str, str]:
    """The key of every entry of the bibliography that has an arXiv number; empty where there is no book."""
    path = paths.root() / "book" / "references.bib"
    return _keys(files.text(path)) if path.exists() else {}


@lru_cache
def _keys(bibliography: str) -> dict[str, str]:
    found = re.findall(r"^@\w+\{([^,]+),(.*?)(?=^@|\Z)", bibliography, re.MULTILINE | re.DOTALL)
    numbers = {key: re.search(r"arXiv:(\d{4}\.\d{5})", entry) for key, entry in found}
    return {number[1]: key for key, number in numbers.items() if number}


# ---- parameters


def names_of_parameters(method: str) -> list[str]:
    """The system's own parameters, and those of all systems that the modules of its class, of its parents and of their parts read."""
    kind = METHODS[method]
    modules = {sys.modules[base.__module__] for base in kind.__mro__ if hasattr(base, "phases")}
    homes = {getattr(value, "__module__", None) for module in modules for value in vars(module).values()}
    modules |= {sys.modules[name] for name in homes if name and name.startswith(("lscl.methods.parts", "lscl.models.cnn"))}
    read = {name for module in modules for name in re.findall(r"\bconfig\.(\w+)", _source(module))} & METHODS.core
    given = [*(set(point) for point in points_of(method)[:1]), *(kind.sizes.get(name, {}) | chosen(kind, name) for name in ("mini", "paper"))]
    return [name for name in fields() if name in read.union(kind.Parameters.model_fields, *given) - {"method", "seed"}]


def _source(module: ModuleType) -> str:
    """The source of a module; nothing for the cells of a notebook."""
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        return ""


def points_of(method: str) -> list[dict[str, Any]]:
    """The points at which a system is tuned."""
    return sweeps.grids().get(method, [])


def parameters(method: str) -> pd.DataFrame:
    """Those parameters with their values in `mini` and `paper` on CIFAR-100, and what they mean."""
    made = {profile: experiment(profile=profile, dataset="cifar100", method=method).model_dump(mode="json") for profile in ("mini", "paper")}
    rows = {
        f"`{name}`": {profile: show(values[name]) for profile, values in made.items()} | {"meaning": fields()[name].description}
        for name in names_of_parameters(method)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


# ---- results


def costs(method: str, records: list[Record]) -> str:
    """What a run sent and took, by data set."""
    groups = {dataset: select(records, method=method, dataset=dataset) for dataset in DATASETS}
    found = [report.costs(group).assign(**{"data set": DATASET_LABELS[dataset]}) for dataset, group in groups.items() if group]
    if not found:
        return ""
    table = pd.concat(found)
    caption = (
        f"{METHOD_LABELS[method]}, measured in `mini`: MB (10⁶ bytes) per client and round, parameters that a client trains, time and memory of a run"
    )
    return report.captioned(table[["data set", *report.COSTS]], caption, f"tab-{method}-costs", [one for group in groups.values() for one in group])


def results(method: str, records: list[Record]) -> str:
    """Accuracies by data set, ours and published, and the difference from an own head, seed by seed."""
    return "\n\n".join(_results(method, dataset, records) for dataset in DATASETS)


def _results(method: str, dataset: str, records: list[Record]) -> str:
    here, title, floor = select(records, dataset=dataset), f"### {DATASET_LABELS[dataset]}", METHODS.of_role("floor")
    ours, control = select(here, method=method), select(here, method=floor)
    about, name = f"{METHOD_LABELS[method]} on {DATASET_LABELS[dataset]}", f"tab-{method}-{dataset}"
    if not ours:
        return f"{title}\n\n{_not_measured(method, dataset, about, name)}"
    caption = (
        f"{about}, profile `mini`: accuracy in % after each task, mean ± half of the 95 % interval over n seeds; the gap is ours minus published"
    )
    parts = [title, report.captioned(both_scores(ours, dataset), caption, name, ours)]
    if method != floor and control:
        table = report.compare({METHOD_LABELS[floor]: control, **report.cells(ours)}, "seen").rename_axis("system")
        caption = f"{about}: final class-incremental accuracy beside that of an own head without a federation, seed by seed"
        parts.append(report.captioned(table, caption, f"{name}-control", [*control, *ours]))
    return "\n\n".join(parts)


def both_scores(records: list[Record], dataset: str) -> pd.DataFrame:
    """The paper's table, and below it the class-incremental one, told apart by a column."""
    parts = []
    for mask, of in (("task", "task just learned"), ("seen", "all tasks so far")):
        parts.append(report.table1(records, dataset, mask))
        parts[-1].insert(0, "score", f"{report.MASK_LABELS[mask]}, {of}")
    return pd.concat(parts).fillna("–")


def _not_measured(method: str, dataset: str, about: str, name: str) -> str:
    """What makes the records, and what is published meanwhile."""
    command = f"`lscl sweep table1 --methods {method} --dataset {dataset} --profile mini`"
    state = f"Not yet measured: {command} makes the records." if dataset in sweeps.PLANS["mini"] else "Measured in the profile `paper` only."
    theirs = report.published_rows(method, dataset)
    if theirs.empty:
        return f"{state} Nothing is published."
    return f"{state}\n\n{report.numbered(theirs, f'{about}: published accuracy in %, on the task just learned', name)}"


# ---- tuning


def tuning(method: str) -> str:
    """The grid of a system with its scores, and the choice."""
    parts = []
    for name, found in report.tuning().items():
        own = found[found["system"] == METHOD_LABELS[method]].drop(columns="system")
        if len(own):
            caption = f"{METHOD_LABELS[method]}: the grid on {report.plain(name)}, accuracy in %"
            parts.append(f"{_choice(method, own)}\n\n{report.numbered(own, caption, f'tab-{method}-tuning-{len(parts)}', index=False)}")
    total = len(points_of(method))
    if not total:
        return "It has no grid: its values are those of the profile."
    waiting = f"No point of its grid of {total} is recorded yet: `lscl sweep tune --methods {method} --profile mini` makes them."
    return f"{RULE}\n\n" + ("\n\n".join(parts) if parts else waiting)


def _choice(method: str, tried: pd.DataFrame) -> str:
    """What the grid says is best, and what `mini` uses."""
    config = experiment(profile="mini", dataset="cifar100", method=method).model_dump()
    used = ", ".join(f"{name} = {config[name]:g}" for name in points_of(method)[0])
    best = tried.loc[tried["chosen"] != "", "values"]
    if best.empty:
        return f"{len(tried)} of {len(points_of(method))} points are recorded, so nothing is chosen yet; `mini` uses {used}."
    if used == best.iloc[0]:
        return f"Chosen: {used}.{_edges(method, config)}"
    return f"Best: {report.plain(best.iloc[0])}. Not yet in use: `mini` has {used}."


def _edges(method: str, config: dict[str, Any]) -> str:
    """Which chosen values are the smallest or largest of the grid's, so that better ones may lie beyond."""
    parts = []
    for name in points_of(method)[0]:
        edge = _edge(config[name], sorted({point[name] for point in points_of(method)}))
        parts += [f"`{name}` = {config[name]:g} is the {edge}"] if edge else []
    return f" At the edge of the grid: {' and '.join(parts)}, so a value beyond it might do better." if parts else ""


def _edge(value: float, tried: list[float]) -> str:
    """On which edge of the values that were tried, in order, this one lies; empty inside."""
    if value not in (tried[0], tried[-1]):
        return ""
    if len(tried) == 1:
        return "only one that was tried"
    smallest, largest = ("smaller of the two", "larger of the two") if len(tried) == 2 else ("smallest", "largest")
    return f"{smallest if value == tried[0] else largest} that {'were' if len(tried) == 2 else 'was'} tried"


# ---- overview


def overview(records: list[Record]) -> str:
    """All systems in one table, each with a link to its page, its idea, and what it costs and gives on CIFAR-100."""
    shown = select(records, dataset="cifar100", overrides={})
    rows = {}
    for method, name in METHOD_LABELS.items():
        idea = re.split(r"[.;] ", description(method)[0].replace("\n", " "))[0].rstrip(".")
        rows[f"{{ref}}`{name} <{anchor(method)}>`"] = {"idea": idea, **_in_short(select(shown, method=method))}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")
    caption = "The systems on CIFAR-100, profile `mini`: MB up per client and round; final accuracy, mean ± half of the 95 % interval over n seeds"
    return (
        report.captioned(table, caption, "tab-systems", shown, markdown=("system", "idea"))
        if shown
        else f"{report.numbered(table, caption, 'tab-systems', markdown=('system', 'idea'))}\n\n{report.NO_RECORDS}"
    )


def _in_short(group: list[Record]) -> dict[str, str]:
    columns = {"MB up": "–", "n": str(len(group)), **{f"{report.MASK_LABELS[mask]} %": "–" for mask in ("task", "seen")}}
    if not group:
        return columns
    sent = report.summary(report.traffic(one, "bytes_up") for one in group).mean
    found = [report.summary(report.final(one, mask) for one in group).estimate for mask in ("task", "seen")]
    return dict(zip(columns, [f"{sent:.2f}", str(len(group)), *found]))
