"""Records -> the data behind the page with the interactive figure (book/explore.md); book/_static/explore.js draws it in the browser."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lscl.experiments.records import Record, accuracy, select
from lscl.federation.metrics import average_so_far, current_task
from lscl.results import figures
from lscl.results.report import COSTS, DATASET_LABELS, MASK_LABELS, NO_RECORDS, cells, published, summary

OF = {"all tasks so far": average_so_far, "the task just learned": current_task}
SYMBOLS = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross", "X": "x", "*": "star"}
STROKES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}  # plotly's names; others are lengths
PAGE = """<div class="explore">
<noscript>The figure needs JavaScript; the same numbers stand in the tables of the results page.</noscript>
<script type="application/json" id="explore-data">{data}</script>
<fieldset aria-label="What to show"></fieldset>
<div class="plot" id="explore-plot" role="group" aria-label="{alt}"></div>
<script src="../_static/plotly/plotly-basic.min.js"></script>
<script src="../_static/explore.js"></script>
</div>"""
ALT = "Accuracy of every system over the tasks or against its costs; the same numbers stand in the tables of the results page"


def page(records: Iterable[Record]) -> str:
    """The figure as a piece of HTML with its data inside, so that it works from a file, without a server."""
    found = data(records)
    return (
        PAGE.format(alt=ALT, data=json.dumps(found, separators=(",", ":")).replace("<", "\\u003c").replace("{{", "{\\u007b"))
        if found
        else f"<p>{NO_RECORDS}</p>"
    )


def data(records: Iterable[Record]) -> dict[str, list[dict[str, Any]]]:
    """{data set: systems}, each with name, look, seeds, accuracies {score: {of: triples by task}} and costs {name: triple}.

    A triple is [mean, half of the 95 % interval or None, n]. A system of the paper has its published accuracies on the task just learned.
    """
    records = list(records)
    return {DATASET_LABELS[name]: _systems(select(records, dataset=name), name) for name in sorted({one["dataset"] for one in records})}


def _systems(records: list[Record], dataset: str) -> list[dict[str, Any]]:
    theirs = published()
    found = []
    for number, (name, group) in enumerate(cells(records).items()):
        paper = theirs[(theirs["method"] == group[0]["method"]) & (theirs["dataset"] == dataset)].sort_values("task")
        found.append(
            {
                "name": name,
                "look": _look(number),
                "seeds": [one["seed"] for one in group],
                "accuracy": {text: _accuracies(group, mask) for mask, text in MASK_LABELS.items()},
                "costs": {cost: _triple([of(one) for one in group]) for cost, (of, _) in COSTS.items()},
                "published": [float(value) for value in paper["accuracy"]],
            }
        )
    return found


def _accuracies(group: list[Record], mask: str) -> dict[str, list]:
    """The triples of one score, {of: one triple per task}."""
    return {of: [_triple(column) for column in np.array([value(accuracy(one, mask)) for one in group]).T] for of, value in OF.items()}


def _look(number: int) -> dict[str, str]:
    look = figures.look(number)
    dash = look["linestyle"]
    dash = STROKES[dash] if isinstance(dash, str) else ",".join(f"{2 * length}px" for length in dash[1])
    return {"color": look["color"], "symbol": SYMBOLS[look["marker"]], "dash": dash}


def _triple(values: Sequence[float]) -> list[float | None]:
    found = summary(values)
    return [None if math.isnan(value) else round(value, 3) for value in (found.mean, found.half_width)] + [found.n]
