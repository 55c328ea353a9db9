"""One page of the book for every system, made from its class, the config and the records."""

import inspect
import math
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lscl import files, paths
from lscl.config import NEEDS, OFFICIAL, PROFILES, chosen_values, experiment, fields
from lscl.experiments import sweeps
from lscl.experiments.records import Record, select
from lscl.experiments.tuning import (
    RUNGS,
    TRIALS,
    TUNING_SEED,
    first_values,
    read_studies,
    search_space,
    show_values,
    tuning_path,
)
from lscl.federation.search_space import axis_from_json
from lscl.publish.diagrams import diagram
from lscl.publish.reference import show
from lscl.registry import METHODS
from lscl.results.frames import costs_frame, final_by_seed, final_rows, frame, just_learned_rows
from lscl.results.labels import (
    DATASET_LABELS,
    GROUPS,
    HEAD_LABELS,
    MASK_LABELS,
    SCORE_HEADS,
    SCORES,
    group_of,
    label_of,
    methods_in_order,
)
from lscl.results.markdown import NO_RECORDS, captioned_table, numbered_table, plain_text, source_note
from lscl.results.measurements import tuning_frame
from lscl.results.published import AT_THE_END, add_published_rows, published_rows
from lscl.results.statistics import compare_with, estimates
from lscl.results.tables import cost_table, heads_table

SHOWN_DATASETS = ("cifar100", "glyphs", "imagenet_r")
MADE = "% Made by `lscl pages` from the class, the config and the records: edit those."
BUDGET = ", ".join(
    f"{count} until the end of {'all tasks' if task == math.inf else f'task {task}'}" for task, count in RUNGS
)
RULE = (
    f"Every system with a search space gets the same number of trials, {TRIALS}, on seed {TUNING_SEED}, which no table "
    "of results uses. Trial 0 has the values from before any tuning: those of the official code, of a port of it, or "
    f"of the profile. The others are points of the search space. Only the best trials continue: {BUDGET}. The highest "
    "class-incremental accuracy over the tasks so far wins."
)
*_MOST, _LAST = [f"`{name}`" for name in PROFILES if name != "smoke" and name not in OFFICIAL]
TUNED = f"{', '.join(_MOST)} and {_LAST}"  # profiles with the chosen values
MEMORY = (
    "A dash stands where a GPU did all runs. "
    "Memory is the highest of the process: after a larger run in the same process, a run shows at least that one's."
)
SENT_AGAIN = (
    "After the last round of a task every client gets the payload once more, for the test; MB down includes it."
)


def page(method: str, records: list[Record]) -> str:
    """The page of one system.

    Args:
        method: the system.
        records: those of the main table (`frames.main_records`), and those of our variants (`frames.variant_records`).

    Returns:
        markdown.
    """
    kind, name = METHODS[method], label_of(method)
    about = description(method)
    parts = [
        MADE,
        f"({anchor(method)})=\n# {name}",
        f"## Idea\n\n{about.idea}",
        _figure(method),
        f"## In formulas\n\n{link_citations(about.formulas)}\n\nLetters: {{doc}}`/book/notation`."
        if about.formulas
        else "",
        f"## What is trained and what travels\n\n{link_citations(about.travels)}",
        costs(method, records),
        f"## {about.heading}\n\n{link_citations(about.differences)}" if about.differences else "",
        "{doc}`/book/differences` lists everything that the paper leaves open." if kind.role == "own" else "",
        f"## Code\n\nRun it with `--method {method}`. The class is {{py:obj}}`{kind.__name__} "
        f"<{kind.__module__}.{kind.__name__}>`. {{doc}}`/book/systems` compares all systems.",
        f"## Parameters\n\n{_parameters(method)}",
        f"## Results\n\n{results_of(method, records)}",
        f"## Tuning\n\n{tuning(method)}",
    ]
    return "\n\n".join(part for part in parts if part)


def _parameters(method: str) -> str:
    caption = f"{label_of(method)}: every parameter that its code reads"
    return numbered_table(parameter_table(method), caption, f"tab-{method}-values", markdown=("name", "meaning"))


def anchor(method: str) -> str:
    """The name by which other pages refer to a system's page."""
    return f"method-{method.replace('_', '-')}"


def figure_path(method: str) -> str:
    """Where the diagram of a system lies, from the repository's root."""
    return f"book/figures/systems/{method}.svg"


def drawing(method: str) -> str:
    """The diagram of a system as SVG; empty if the system declares none."""
    sketch = METHODS[method].sketch
    return diagram(sketch, label_of(method)) if sketch else ""


def _figure(method: str) -> str:
    if METHODS[method].sketch is None:
        return ""
    caption = f"{label_of(method)} in one round: one of the clients below, the server above."
    return f"```{{live-figure}} /{figure_path(method)} fig-{method.replace('_', '-')}-diagram\n{caption}\n```"


class Description(NamedTuple):
    """The docstring of a system's class, in parts.

    Args:
        idea: its first paragraph.
        formulas: the paragraphs up to the list of what is trained; may be empty.
        travels: the list of what is trained and travels, and what follows it.
        heading: the heading of the numbered list; empty without one.
        differences: that list and all below it; empty without one.
    """

    idea: str
    formulas: str
    travels: str
    heading: str
    differences: str


def description(method: str) -> Description:
    """The docstring of a system's class, in parts."""
    first, *rest = inspect.getdoc(METHODS[method]).split("\n\n")
    start = next((i for i, part in enumerate(rest) if re.search(r"^1\. ", part, re.MULTILINE)), len(rest))
    facts = next((i for i, part in enumerate(rest[:start]) if part.startswith("- ")), 0)
    formulas, travels = "\n\n".join(rest[:facts]), "\n\n".join(map(_bold_labels, rest[facts:start]))
    if start == len(rest):
        return Description(first, formulas, travels, "", "")
    heading, listed = rest[start].split("\n", 1)
    return Description(first, formulas, travels, heading.rstrip(":"), "\n\n".join([listed, *rest[start + 1 :]]))


def _bold_labels(text: str) -> str:
    """A list whose entries begin with a label and a colon, with these labels in bold."""
    return re.sub(r"^- ([A-Z][^:]*?):", r"- **\1:**", text, flags=re.MULTILINE)


def link_citations(text: str) -> str:
    """The text with a link to the bibliography after every arXiv number in it."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", lambda found: f"{found[0]}{_citation(found[1])}", text)


def _citation(number: str) -> str:
    key = _bibliography().get(number)
    return f", {{cite}}`{key}`" if key else ""


def _bibliography() -> dict[str, str]:
    """The key of every entry of the bibliography that has an arXiv number; empty where there is no book."""
    path = paths.root() / "book" / "references.bib"
    return _keys(files.read_text(path)) if path.exists() else {}


@lru_cache
def _keys(bibliography: str) -> dict[str, str]:
    found = re.findall(r"^@\w+\{([^,]+),(.*?)(?=^@|\Z)", bibliography, re.MULTILINE | re.DOTALL)
    numbers = {key: re.search(r"arXiv:(\d{4}\.\d{5})", entry) for key, entry in found}
    return {number[1]: key for key, number in numbers.items() if number}


# ---- parameters


def names_of_parameters(method: str) -> list[str]:
    """The system's own parameters, and the core ones that the modules of its class, parents and parts read."""
    kind = METHODS[method]
    modules = {sys.modules[base.__module__] for base in kind.__mro__ if hasattr(base, "phases")}
    homes = {getattr(value, "__module__", None) for module in modules for value in vars(module).values()}
    modules |= {
        sys.modules[name] for name in homes if name and name.startswith(("lscl.methods.parts", "lscl.models.cnn"))
    }
    read = {name for module in modules for name in re.findall(r"\bconfig\.(\w+)", _source(module))} & METHODS.core
    given = [
        set(search_space(method)),
        *(kind.sizes.get(name, {}) | chosen_values(kind, name) for name in ("mini", "paper")),
        *(values for key, values in kind.sizes.items() if isinstance(key, tuple)),
    ]
    idle = {"method", "seed"} if kind.trains else {"method", "seed", *NEEDS["trains"]}
    return [name for name in fields() if name in read.union(kind.Parameters.model_fields, *given) - idle]


def _source(module: ModuleType) -> str:
    """The source of a module; nothing for the cells of a notebook."""
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        return ""


def parameter_table(method: str) -> pd.DataFrame:
    """The parameters of a system with their values in `mini` and `paper` on CIFAR-100, and what they mean."""
    made = {
        profile: experiment(profile=profile, dataset="cifar100", method=method).model_dump(mode="json")
        for profile in ("mini", "paper")
    }
    rows = {
        f"`{name}`": {profile: show(values[name]) for profile, values in made.items()}
        | {"meaning": fields()[name].description}
        for name in names_of_parameters(method)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


# ---- results


def costs(method: str, records: list[Record]) -> str:
    """What a run sent and how long it took, by data set.

    Args:
        method: the system.
        records: those of the main table.

    Returns:
        markdown; empty without records of the system.
    """
    runs = select(records, method=method)
    own, tables = costs_frame(runs), []
    for dataset in SHOWN_DATASETS:
        table = cost_table(own[own["dataset"] == dataset])
        table.insert(0, "data set", DATASET_LABELS[dataset])
        tables.append(table)
    if own.empty:
        return ""
    caption = (
        f"{label_of(method)}, measured in `mini`: MB (10⁶ bytes) per client in a whole run, "
        "trained parameters per client, operations of all, and time and memory of the runs without a GPU"
    )
    notes = " ".join([MEMORY, *([SENT_AGAIN] if all(map(sent_again, runs)) else [])])
    return f"{captioned_table(pd.concat(tables), caption, f'tab-{method}-costs', runs)}\n\n{notes}"


def sent_again(record: Record) -> bool:
    """Whether the download of every task's last round came twice: for the training, and for the test."""
    down = np.array(record["bytes_down"])  # (exchanges, clients)
    each = len(down) // len(record["accuracy"]["task"])
    return each > 1 and bool(down.any()) and bool((down[each - 1 :: each] == 2 * down[each - 2 :: each]).all())


def results_of(method: str, records: list[Record]) -> str:
    """Accuracies by data set, ours and published, and the difference from the local head, seed by seed.

    Args:
        method: the system.
        records: those of the main table.

    Returns:
        markdown.
    """
    runs = [one for one in records if one["method"] in (method, METHODS.find_role("floor"))]
    return "\n\n".join(_results(method, dataset, select(runs, dataset=dataset)) for dataset in SHOWN_DATASETS)


def _results(method: str, dataset: str, runs: list[Record]) -> str:
    scores, title, floor = frame(runs), f"### {DATASET_LABELS[dataset]}", METHODS.find_role("floor")
    ours = scores[scores["method"] == method]
    about, name = f"{label_of(method)} on {DATASET_LABELS[dataset]}", f"tab-{method}-{dataset}"
    if ours.empty:
        return f"{title}\n\n{_not_measured(method, dataset, about, name)}"
    caption = (
        f"{about}, profile `mini`: accuracy in % after each task, mean ± half of the 95 % interval over n seeds; "
        "gap = ours minus published"
    )
    parts = [title, captioned_table(both_scores(ours), caption, name, select(runs, method=method))]
    if method != floor and floor in scores["method"].unique():
        by_seed = final_by_seed(scores, "seen")
        table = compare_with(by_seed[[label_of(floor), *ours["label"].unique()]], label_of(floor))
        caption = (
            f"{about}: final class-incremental accuracy compared with a local head without a federation, seed by seed"
        )
        parts.append(captioned_table(table, caption, f"{name}-control", runs))
    heads = heads_table(frame([one for one in runs if one["method"] == method], head=None))
    if len(heads):
        # Not every system trains its head.
        heads.columns = [
            name.replace(HEAD_LABELS["trained"], "its own head").replace("minus trained", "minus its own")
            for name in heads.columns
        ]
        caption = f"{about}: final accuracy of its own head and of a closed-form head on the same features, in %"
        parts.append(captioned_table(heads, caption, f"{name}-heads", select(runs, method=method)))
    return "\n\n".join(parts)


def both_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """The paper's table of scores on one data set and, below it, the class-incremental one, named in a column."""
    keys, (task, seen) = ["label", "seed"], (scores[scores["mask"] == mask] for mask in SCORES)
    learned = just_learned_rows(task).pivot_table("accuracy", keys, "trained_task", sort=False).add_prefix("task ")
    at_end = final_rows(task).groupby(keys)["accuracy"].mean().rename(AT_THE_END)
    so_far = seen.pivot_table("accuracy", keys, "trained_task", sort=False).add_prefix("task ")
    paper = add_published_rows(estimates(learned.join(at_end), "label"), just_learned_rows(task))
    paper.insert(0, "score", f"{MASK_LABELS['task']}, task just learned")
    incremental = estimates(so_far, "label")
    incremental.insert(0, "score", f"{MASK_LABELS['seen']}, all tasks so far")
    return pd.concat([paper, incremental]).fillna("–").rename_axis("system")


def _not_measured(method: str, dataset: str, about: str, name: str) -> str:
    """The command that makes the records, and the published values."""
    kind = METHODS[method]
    name_of_set = "table1" if kind.rows else next(iter(kind.studies), "table1")
    command = f"`lscl sweep {name_of_set} --methods {method} --dataset {dataset} --profile mini`"
    state = (
        f"No runs are recorded. {command} makes them."
        if dataset in sweeps.PLANS["mini"]
        else "Only the profile `paper` runs this data set."
    )
    theirs = published_rows(dataset, [method]).drop(columns=AT_THE_END, errors="ignore")
    if theirs.empty:
        return f"{state} No published values exist."
    return f"{state}\n\n{numbered_table(theirs, f'{about}: published accuracy in %, on the task just learned', name)}"


# ---- tuning


def tuning(method: str) -> str:
    """The search space of a system, its trials with their scores, and the choice."""
    space = search_space(method)
    if not space:
        return "This system has nothing to tune. It uses the values of the profile."
    found, parts = tuning_frame(), []
    for (profile, dataset), own in found[found["method"] == method].groupby(["profile", "dataset"]):
        where = f"{plain_text(profile)}, {DATASET_LABELS.get(dataset, plain_text(dataset))}"
        caption, name = f"{label_of(method)}: the trials on {where}", f"tab-{method}-tuning-{len(parts)}"
        said = _choice(method, profile, dataset, own)
        parts.append(f"{said}\n\n{numbered_table(trial_table(own), caption, name, index=False)}")
    command = f"`lscl sweep tune --methods {method} --profile mini`"
    axes = "\n".join(f"- `{name}`: {axis}" for name, axis in space.items())
    waiting = f"No trial is recorded yet. {command} runs them."
    shown = "\n\n".join([*parts, *_untried_rows(method)]) if parts else waiting
    return f"{RULE}\n\nThe search space:\n\n{axes}\n\n{shown}"


def _untried_rows(method: str) -> list[str]:
    """What holds for the rows of the main table that change something, which no trial did."""
    said = []
    for row in filter(None, METHODS[method].rows):
        name = f"The row with {plain_text(show_values(row))} of the main table"
        said.append(
            f"{name} has values that these trials did not choose. *What is trained* above says how they were found."
            if set(row) & set(search_space(method))
            else f"{name} uses the same chosen values. No trial ran with it."
        )
    return said


def trial_table(points: pd.DataFrame) -> pd.DataFrame:
    """Trials (`measurements.tuning_frame`) as text, those with the most finished tasks first."""
    points = points.sort_values(["tasks", "seen"], ascending=False, kind="stable")
    scores = {f"{MASK_LABELS[mask]} %": points[mask].map("{:.1f}".format).replace("nan", "–") for mask in SCORES[::-1]}
    return pd.DataFrame(
        {
            "trial": points["trial"],
            "values": points["point"],
            "tasks": points["tasks"].astype(str) + points["failed"].map(lambda why: ", then diverged" if why else ""),
            **scores,
            "chosen": points["chosen"].map({True: "✓", False: ""}),
        }
    )


def _choice(method: str, profile: str, dataset: str, tried: pd.DataFrame) -> str:
    """Where the trials ran, the best values by them, and those that the profile uses."""
    study = read_studies(tuning_path(profile, dataset))[method]
    where = f"All trials ran in `{profile}` on {DATASET_LABELS.get(dataset, plain_text(dataset))}"
    first = _first_trial(method, profile, dataset, study["trials"][0]["values"])
    if study["chosen"] is None:
        done = f"{int((tried['tasks'] > 0).sum())} of {len(tried)} trials are through the first task"
        return f"{where}.{first} {done}, so no values are chosen yet."
    best = study["trials"][study["chosen"]]["values"]
    used = experiment(profile=profile, dataset=dataset, method=method).model_dump()
    used = {name: used[name] for name in best}
    said = f"Chosen: {plain_text(show_values(best))}.{edges(study['space'], best)}"
    if used != best:
        return f"{where}.{first} {said} The profile `{profile}` still uses {plain_text(show_values(used))}."
    return f"{where}. {TUNED} use the chosen values, on every data set.{first} {said}"


def _first_trial(method: str, profile: str, dataset: str, tried: Mapping[str, Any]) -> str:
    """What trial 0 had other than a first trial would have today; empty if nothing."""
    today = first_values(method, {"profile": profile, "dataset": dataset})
    other = {name: value for name, value in tried.items() if name in today and today[name] != value}
    if not other:
        return ""
    now = plain_text(show_values({name: today[name] for name in other}))
    return f" Trial 0 had {plain_text(show_values(other))}, the value of the profile then; it would have {now} today."


def edges(space: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """Which chosen values lie at an edge of their axis, so that values beyond it may be better.

    Args:
        space: {parameter: axis}, as a file of trials has it.
        chosen: the chosen trial.

    Returns:
        a sentence; empty if every value lies inside.
    """
    found = {name: axis_from_json(axis).edge(chosen[name]) for name, axis in space.items()}
    parts = [f"{show_values({name: chosen[name]})} is {edge}" for name, edge in found.items() if edge]
    return f" At an edge of the search space: {'; '.join(parts)}. A value beyond it may be better." if parts else ""


# ---- overview


def overview(records: list[Record]) -> str:
    """All systems in one table: a link to each page, the idea, costs and accuracy on CIFAR-100."""
    shown = select(records, dataset="cifar100", overrides={})
    scores, costs = final_rows(frame(shown)), costs_frame(shown)
    by_seed = scores.pivot_table("accuracy", ["method", "seed"], "mask", sort=False).reindex(columns=list(SCORES))
    found = estimates(by_seed, "method").rename(columns=SCORE_HEADS)
    found.insert(0, "MB up", costs.groupby("method")["mb_up"].mean().map("{:.2f}".format))
    rows = {
        method: {
            "system": f"{{ref}}`{label_of(method)} <{anchor(method)}>`",
            "group": GROUPS[group_of(method)],
            "idea": _idea(method),
        }
        for method in methods_in_order()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").join(found).set_index("system")
    caption = (
        "The systems on CIFAR-100, profile `mini`: MB up per client in a whole run; "
        "final accuracy, mean ± half of the 95 % interval over n seeds"
    )
    table["n"] = table["n"].astype(object).fillna("0")
    text = numbered_table(table, caption, "tab-systems", markdown=("system", "idea"))
    return f"{text}\n\n{source_note(shown) or NO_RECORDS}"


def _idea(method: str) -> str:
    """The first sentence of a system's docstring, whole."""
    return re.split(r"(?<=\.) ", description(method).idea.replace("\n", " "))[0].rstrip(".")
