"""Figures that compare all systems at a glance: with the paper, task by task, by class and by the amount of data."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lscl.errors import pluralize
from lscl.results.figures import (
    GROUND,
    HEAT,
    INK,
    WIDTH,
    BookFigure,
    house_style,
    label_ends,
    line_style,
    system_styles,
)
from lscl.results.labels import MASK_LABELS, best_trained
from lscl.results.statistics import estimate

SIDES = ("published", "measured here")


@house_style
def published_slopes(rows: pd.DataFrame) -> Figure:
    """Published and measured accuracy of each system, joined by a line: crossing lines are another order.

    Args:
        rows: a row per system, its label in the index: the columns of SIDES (%), and "text", the measured one as text.

    Returns:
        one panel with the published values on the left and ours on the right.
    """
    figure = BookFigure(figsize=(WIDTH, max(3.6, 1.4 + 0.33 * len(rows))), layout="constrained")
    axes = figure.subplots()
    looks = system_styles(rows.index, best_trained(rows[SIDES[1]]))
    for name, row in rows.iterrows():
        axes.plot((0, 1), row[list(SIDES)].astype(float), label=name, **{**looks[name], "linestyle": "-"})
    axes.set_xlim(-1.5, 2.5)  # room for the names
    axes.set_xticks((0, 1), SIDES)
    axes.set(ylabel="accuracy on the task just learned, %, task-masked")
    axes.grid(True, axis="x")
    colours = {name: look["color"] for name, look in looks.items()}
    for x, side in enumerate(SIDES):
        shown = rows["text"] if x else rows[side].map("{:.1f}".format)
        texts = {name: f"{shown[name]}  {name}" if x else f"{name}  {shown[name]}" for name in rows.index}
        label_ends(axes, {name: (x, rows.loc[name, side]) for name in rows.index}, colours, texts, left=not x)
    return figure


@house_style
def accuracy_matrices(matrices: Mapping[str, np.ndarray], columns: int = 3) -> Figure:
    """R[t, u]: accuracy on the test images of task u after training on task t, for each system.

    Args:
        matrices: {system: (tasks, tasks) percent, NaN where u > t}.
        columns: panels side by side.

    Returns:
        a panel per system: tasks trained downwards, tasks tested to the right, all with one scale of colours.
    """
    columns = min(columns, len(matrices))
    rows = -(-len(matrices) // columns)
    figure = BookFigure(figsize=(WIDTH, 2.15 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(matrices) :]:
        axes.set_visible(False)
    for axes, (name, values) in zip(grid.flat, matrices.items()):
        mesh = axes.imshow(values, cmap=HEAT, vmin=0, vmax=100)
        for (trained, tested), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "#000000" if value > 55 else "#ffffff"  # of the text on the map
                axes.text(tested, trained, f"{value:.0f}", ha="center", va="center", fontsize=8.5, color=ink)
        ticks = range(len(values))
        axes.set_xticks(ticks, [str(task + 1) for task in ticks])
        axes.set_yticks(ticks, [str(task + 1) for task in ticks])
        axes.set_title("\n".join(_two_lines(name)), fontsize=9.5)
        axes.grid(False)
        for edge in ("left", "bottom"):
            axes.spines[edge].set_visible(False)
        axes.tick_params(length=0)
    for axes in grid[:, 0]:
        axes.set_ylabel("after task")
    for place in range(max(0, len(matrices) - columns), len(matrices)):
        grid.flat[place].set_xlabel("on the images of task")
    figure.colorbar(mesh, ax=grid, location="top", aspect=50, shrink=0.7, label="accuracy, %")
    return figure


def _two_lines(name: str, fits: int = 0) -> list[str]:
    """A label with its notes in brackets, if it has any, on a line of their own; one that fits stays on one line."""
    start, bracket, notes = name.partition(" (")
    if len(name) <= fits:
        return [name]
    if len(notes) > 24:
        notes = f"{notes.split(', ')[0]}, …)"
    return [start, f"({notes}"] if bracket else [start]


@house_style
def differences_by_scale(rows: pd.DataFrame, label: str) -> Figure:
    """A difference between systems against the number of training images, mean and 95 % interval over the seeds.

    Args:
        rows: a row per seed and point: columns comparison (a line each), images (of a class), difference (points).
        label: what stands at the vertical axis.

    Returns:
        one panel with a logarithmic horizontal axis and a line at zero.
    """
    figure = BookFigure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=INK, linestyle="--", linewidth=1)
    names = list(rows["comparison"].unique())
    for number, name in enumerate(names):
        found = rows[rows["comparison"] == name].groupby("images")["difference"].agg(estimate)
        places = found.index.to_numpy(float) * 1.05 ** (number - (len(names) - 1) / 2)  # side by side
        spread = [one.half_width if one.n > 1 else 0.0 for one in found]
        axes.errorbar(places, [one.mean for one in found], spread, label=name, capsize=3, **line_style(number))
    sizes = sorted(rows["images"].unique())
    axes.set(xscale="log", xlabel="training images per class", ylabel=label)
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    figure.legend(loc="outside upper center", ncols=1)
    return figure


@house_style
def private_and_public(rows: pd.DataFrame, best: str | None = None) -> Figure:
    """Final accuracy of each system on classes that one client has, and on those that all have.

    Args:
        rows: index (mask, label), columns "private" and "public" (%).
        best: the best other system by its accuracy on all classes, which stands in colour. It does not follow from
            `rows`, because there are more classes of one kind than of the other.

    Returns:
        a panel per score, one below the other: a row per system, two markers joined by a line.
    """
    masks = list(rows.index.unique("mask"))
    names = list(rows.index.unique("label"))
    figure = BookFigure(figsize=(WIDTH, (1.0 + 0.27 * len(names)) * len(masks) + 0.3), layout="constrained")
    grid = figure.subplots(len(masks), 1, squeeze=False, sharex=True)
    looks = system_styles(names, best)
    for axes, mask in zip(grid.flat, masks):
        for place, name in enumerate(names):
            if (mask, name) not in rows.index:
                continue
            private, public = rows.loc[(mask, name), ["private", "public"]]
            colour = looks[name]["color"]
            axes.plot((private, public), (place, place), color=colour, linewidth=1.5, zorder=2)
            axes.plot(private, place, "o", color=colour, markersize=7, label="private" if place == 0 else None)
            axes.plot(
                public, place, "o", color=colour, markerfacecolor=GROUND, markersize=7, markeredgewidth=1.8,
                label="public" if place == 0 else None,
            )  # fmt: skip
        axes.set_yticks(range(len(names)), ["\n".join(_two_lines(name, 24)) for name in names], fontsize=9)
        axes.tick_params(labelbottom=True)
        axes.invert_yaxis()
        axes.set(title=MASK_LABELS[mask], xlabel="final accuracy, %")
        axes.grid(True, axis="x")
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, title="classes")
    return figure


@house_style
def trial_spread(trials: pd.DataFrame, label: str) -> Figure:
    """What every trial of the tuning scored: a row per system; the chosen trial has a ring.

    A score is that after the last task that a trial played, so trials of different lengths have markers of their own.

    Args:
        trials: columns system, tasks, seen (%), chosen.
        label: what stands at the horizontal axis.

    Returns:
        one panel.
    """
    names, lengths = list(trials["system"].unique()), sorted(trials.loc[trials["tasks"] > 0, "tasks"].unique())
    figure = BookFigure(figsize=(WIDTH, 1.2 + 0.28 * len(names)), layout="constrained")
    axes = figure.subplots()
    rows = trials["system"].map(names.index)
    for number, tasks in enumerate(lengths):
        found = trials["tasks"] == tasks
        style = {**line_style(number), "linestyle": "none"}
        axes.plot(trials.loc[found, "seen"], rows[found], markersize=5, label=pluralize(tasks, "task"), **style)
    ring = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none"}
    axes.plot(trials.loc[trials["chosen"], "seen"], rows[trials["chosen"]], "o", label="chosen", **ring)
    axes.set_yticks(range(len(names)), names, fontsize=9.5)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(True, axis="both")
    figure.legend(loc="outside upper center", ncols=len(lengths) + 1)
    return figure
