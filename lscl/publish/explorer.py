"""The data behind the interactive figure (book/explore.md), made of records; book/_static/explore.js draws it."""

import json
import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from lscl.experiments.records import Record
from lscl.results import figures
from lscl.results.colours import NEUTRAL
from lscl.results.frames import costs_frame, final_rows, frame, just_learned_rows
from lscl.results.labels import COST_LABELS, DATASET_LABELS, GROUP_HEADINGS, MASK_LABELS, best_trained, group_of
from lscl.results.markdown import NO_RECORDS
from lscl.results.published import published_table1
from lscl.results.statistics import estimate

PLOTLY_SYMBOLS = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "*": "star",
}
STROKES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}  # plotly's names; others are lengths
PAGE = """<div class="explore">
<noscript>The figure needs JavaScript; the tables of the results page have the same numbers.</noscript>
<script type="application/json" id="explore-data">{data}</script>
<fieldset><legend>view</legend></fieldset>
<div class="plot" id="explore-plot" role="group" aria-label="{alt}"></div>
<fieldset><legend>systems</legend></fieldset>
<details><summary>The numbers in the figure</summary><div class="scroll" tabindex="0"><table></table></div></details>
<script src="../_static/plotly/plotly-basic.min.js"></script>
<script src="../_static/explore.js"></script>
</div>"""
ALT = (
    "Accuracy of every system over the tasks or against its costs; the table below the figure has the numbers it shows"
)


def explorer_page(records: Iterable[Record]) -> str:
    """The figure as a piece of HTML with its data inside, so that it works from a file, without a server."""
    found = explorer_data(records)
    if not found:
        return f"<p>{NO_RECORDS}</p>"
    # No sign of HTML and no name in double braces is left in it; as JSON it reads the same.
    return PAGE.format(
        alt=ALT, data=json.dumps(found, separators=(",", ":")).replace("<", "\\u003c").replace("{{", "{\\u007b")
    )


def explorer_data(records: Iterable[Record]) -> dict[str, list[dict[str, Any]]]:
    """The data of the figure: {data set: systems}.

    Each system has name, group with its heading, look, seeds, accuracies {score: {of: triples by task}} and costs
    {name: triple}. A triple is [mean, half of the 95 % interval or None, n]. The first row of a system of the paper
    also has the published accuracies on the task just learned.
    """
    scores, costs = frame(records := list(records)), costs_frame(records)
    return {
        DATASET_LABELS[name]: _systems(*(table[table["dataset"] == name] for table in (scores, costs)))
        for name in sorted(scores["dataset"].unique())
    }


def _systems(scores: pd.DataFrame, costs: pd.DataFrame) -> list[dict[str, Any]]:
    (dataset,), theirs = scores["dataset"].unique(), published_table1()
    theirs, spent, found = theirs[theirs["dataset"] == dataset], dict(list(costs.groupby("label"))), []
    end = final_rows(scores[scores["mask"] == "seen"]).groupby("label", sort=False)["accuracy"].mean()
    looks = figures.system_styles(scores["label"].unique(), best_trained(end))
    firsts = set(scores.drop_duplicates("method")["label"])
    for name, own in scores.groupby("label", sort=False):
        found.append(
            {
                "name": name,
                "group": group_of(own["method"].iloc[0]),
                "heading": GROUP_HEADINGS[group_of(own["method"].iloc[0])],
                "look": _look(looks[name]),
                "seeds": spent[name]["seed"].tolist(),
                "accuracy": {text: _accuracies(own[own["mask"] == mask]) for mask, text in MASK_LABELS.items()},
                "costs": {head: _triple(spent[name][column]) for column, (head, _) in COST_LABELS.items()},
                "published": theirs.loc[theirs["method"] == own["method"].iloc[0], "accuracy"].tolist()
                if name in firsts
                else [],
            }
        )
    return found


def _accuracies(own: pd.DataFrame) -> dict[str, list]:
    """The triples of one score of one system, {which tasks: one triple per task}."""
    found = {}
    for which, rows in (("all tasks so far", own), ("the task just learned", just_learned_rows(own))):
        by_seed = rows.groupby(["trained_task", "seed"])["accuracy"].mean()
        found[which] = [_triple(values) for _, values in by_seed.groupby("trained_task")]
    return found


def _look(style: dict[str, Any]) -> dict[str, Any]:
    """A style of `figures.system_styles` in the words of plotly, whether it is in colour, and the order of drawing."""
    dash = style["linestyle"]
    dash = STROKES[dash] if isinstance(dash, str) else ",".join(f"{2 * length}px" for length in dash[1])
    symbol, colour = PLOTLY_SYMBOLS[style["marker"]], style["color"]
    return {"color": colour, "symbol": symbol, "dash": dash, "coloured": colour != NEUTRAL, "order": style["zorder"]}


def _triple(values: Iterable[float]) -> list[float | None]:
    found = estimate(values)
    return [None if math.isnan(value) else round(value, 3) for value in (found.mean, found.half_width)] + [found.n]
