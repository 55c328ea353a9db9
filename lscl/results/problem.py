"""The figures and sentences of the chapters on forgetting: the timeline of clients and tasks, what is kept and lost."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from lscl.federation.masking import masked_cross_entropy
from lscl.results.colours import GROUND, HUES, INK, PANEL, SOFT
from lscl.results.figures import BookFigure, house_style
from lscl.results.statistics import Estimate, estimate


@house_style
def timeline(
    pictures: Sequence[Sequence[np.ndarray]], rounds: int, marked: Sequence[Sequence[int | None]] | None = None
) -> BookFigure:
    """Clients as rows, tasks as columns, and the rounds of each task as arrows to the server and back.

    Args:
        pictures: for each client and task a few images of its new classes, (n, H, W, 3) uint8.
        rounds: rounds of each task.
        marked: for each client and task the place of an image to frame, such as that of a shared class; None = none.

    Returns:
        one panel; time runs to the right.
    """
    clients, tasks = len(pictures), len(pictures[0])
    figure = BookFigure(figsize=(7.2, 1.15 + 0.95 * clients), layout="constrained")
    axes = figure.subplots()
    axes.add_patch(Rectangle((0, -1), tasks, 0.42, facecolor=PANEL, edgecolor=SOFT))
    axes.text(tasks / 2, -0.79, "server: sees what the clients send, never an image", ha="center", va="center")
    for t in range(tasks):
        for place in t + (np.arange(rounds) + 0.5) / rounds:
            axes.annotate("", (place, -0.02), (place, -0.56), arrowprops={"arrowstyle": "<->", "color": SOFT})
        for k in range(clients):
            frame = None if marked is None else marked[k][t]
            _cell(axes, t, k, pictures[k][t], frame)
    axes.set_yticks(np.arange(clients) + 0.5, [f"client {k + 1}" for k in range(clients)])
    axes.set_xticks(np.arange(tasks) + 0.5, [f"task {t + 1}" for t in range(tasks)])
    axes.set(
        xlim=(-0.02, tasks + 0.02), ylim=(clients + 0.02, -1.05), xlabel=f"time; each arrow is one of {rounds} rounds"
    )
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def _cell(axes: Axes, task: int, client: int, images: np.ndarray, frame: int | None) -> None:
    """The images of one client's task side by side. images: (n, H, W, 3)."""
    axes.add_patch(Rectangle((task, client), 1, 1, facecolor=GROUND, edgecolor=SOFT))
    size = 0.9 / len(images)
    for i, pixels in enumerate(images):
        left = task + 0.05 + i * size
        inset = axes.inset_axes((left, client + 0.18, 0.94 * size, 0.64), transform=axes.transData)
        inset.imshow(pixels)
        inset.set(xticks=[], yticks=[])
        inset.grid(False)
        for spine in inset.spines.values():
            spine.set(visible=i == frame, color=HUES[1], linewidth=3)


@house_style
def kept_and_lost(values: Mapping[str, Mapping[str, float]], label: str) -> BookFigure:
    """Accuracies before and after something, as arrows.

    Args:
        values: {what: {"before": accuracy, "after": accuracy}}, percent.
        label: what stands at the horizontal axis.

    Returns:
        one panel, a row each; the numbers stand at both ends.
    """
    figure = BookFigure(figsize=(6.5, 0.8 + 0.55 * len(values)), layout="constrained")
    axes = figure.subplots()
    for row, found in enumerate(values.values()):
        before, after = found["before"], found["after"]
        axes.annotate("", (after, row), (before, row), arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 1.6})
        axes.plot(before, row, "o", color=GROUND, markeredgecolor=HUES[0], markersize=9, markeredgewidth=2)
        axes.plot(after, row, "o", color=HUES[1], markersize=9)
        for value, side in ((before, 1 if before >= after else -1), (after, -1 if before >= after else 1)):
            axes.annotate(
                f"{value:.0f}",
                (value, row),
                (11 * side, 0),
                textcoords="offset points",
                va="center",
                ha="left" if side > 0 else "right",
            )
    axes.set(xlim=(-6, 106), ylim=(len(values) - 0.4, -0.6), xlabel=label)
    axes.set_yticks(range(len(values)), list(values))
    axes.grid(axis="x")
    axes.grid(False, axis="y")
    return figure


def fit_head(
    features: Tensor, labels: Tensor, classes: Sequence[int], start: Tensor, steps: int = 200, rate: float = 0.05
) -> Tensor:
    """Train a linear head on frozen features, only the classes at hand competing.

    Args:
        features: (n, d).
        labels: (n,) each in `classes`.
        classes: labels that compete.
        start: the head to start from, (C, d); it is not changed.
        steps: of Adam, each on all images.
        rate: the learning rate.

    Returns:
        the trained head, (C, d).
    """
    head, own = start.clone().requires_grad_(True), torch.tensor(list(classes))
    optimiser = torch.optim.Adam([head], lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        masked_cross_entropy(features @ head.T, labels, own).backward()
        optimiser.step()
    return head.detach()


def read_change(what: str, before: float, after: float) -> str:
    """What happened to an accuracy, in a sentence.

    Args:
        what: the subject, such as "client 1's accuracy on task 1".
        before: percent.
        after: percent.

    Returns:
        a sentence that says whether it fell, rose or stayed.
    """
    start = f"{what[:1].upper()}{what[1:]}"
    if f"{before:.0f}" == f"{after:.0f}":
        return f"{start} stays at {after:.0f} %."
    way = "falls" if after < before else "rises"
    return f"{start} {way} from {before:.0f} % to {after:.0f} %."


def scores_by_hand(
    scores: np.ndarray, labels: Sequence[int], names: Sequence[str], tasks: Sequence[Sequence[int]]
) -> dict[str, list[str]]:
    """What two masks make of the same scores, image by image.

    Args:
        scores: (images, classes), the model's scores.
        labels: the true class of each image.
        names: of the classes.
        tasks: the classes of each task.

    Returns:
        columns of a table: the image's true class, the answer under each mask, and whether it is right.
    """
    table: dict[str, list[str]] = {"image": [], "true class": [], "its task only": [], "all classes met": []}
    for number, (row, label) in enumerate(zip(scores, labels), 1):
        own = next(task for task in tasks if label in task)
        table["image"].append(str(number))
        table["true class"].append(names[label])
        for column, classes in (("its task only", own), ("all classes met", [one for task in tasks for one in task])):
            answer = max(classes, key=lambda one: row[one])
            table[column].append(f"{names[answer]} {'✓' if answer == label else '✗'}")
    return table


FORGETS = {  # by the side of zero on which the interval of what forgetting loses lies
    1: "Eq. 4 reduces forgetting",
    0: "These seeds cannot show that Eq. 4 reduces forgetting",
    -1: "Eq. 4 makes forgetting worse",
}
LEARNS = {1: "the client learns more that is new", -1: "the client learns less that is new"}
NEVER_LEARNED = "What was never learned cannot be forgotten."


def read_protection(
    forgotten: Mapping[str, Sequence[float]],
    learned: Mapping[str, Sequence[float]],
    others: Mapping[str, Mapping[str, Sequence[float]]],
) -> str:
    """Whether a term keeps a client from forgetting, or from learning what it could forget.

    Args:
        forgotten: {"with": forgetting in points with the term, "without": the same without it}, one per seed.
        learned: the same for the accuracy on new tasks right after they were learned, percent.
        others: {what: the same for another accuracy, percent}.

    Returns:
        a verdict and sentences with 95 % intervals, whichever way the seeds went.
    """
    kept, free = (np.asarray(forgotten[name], dtype=float) for name in ("with", "without"))
    less = estimate(free - kept)
    text = f"Forgetting is {kept.mean():.1f} points with Eq. 4 and {free.mean():.1f} without"
    if less.n == 1:
        return f"{text}, in one seed, from which nothing can be concluded."
    way = "less" if less.mean >= 0 else "more"
    ends = sorted(abs(less.mean) + sign * less.half_width for sign in (-1, 1))
    interval = f"95 % interval {ends[0]:.1f} to {ends[1]:.1f}, n = {less.n}"
    gap, new = _gap(learned), {name: np.mean(values) for name, values in learned.items()}
    verdict = ", and ".join([FORGETS[less.side], *filter(None, [LEARNS.get(gap.side)])])
    said = [
        f"{text}: {abs(less.mean):.1f} points {way} ({interval}).",
        f"Right after it was learned, a new task has {new['with']:.1f} % with Eq. 4 and {new['without']:.1f} % "
        f"without: {gap.mean:+.1f} points (95 % interval {gap.interval}).",
        f"**{verdict}.**",
    ]
    if (less.side, gap.side) == (1, -1):
        said.append(NEVER_LEARNED)
    for what, found in others.items():
        gap = _gap(found)
        changes = {1: "is higher", 0: "does not change measurably", -1: "is lower"}[gap.side]
        said.append(f"The accuracy on {what} {changes}: {gap.mean:+.1f} points (95 % interval {gap.interval}).")
    return " ".join(said)


def _gap(found: Mapping[str, Sequence[float]]) -> Estimate:
    """With the term minus without it, seed by seed."""
    return estimate(np.asarray(found["with"], dtype=float) - np.asarray(found["without"], dtype=float))


def read_drift(kept: float, free: float) -> str:
    """What Eq. 4 does to the drift of the features.

    Args:
        kept: their squared distance over their squared length, in a run with it.
        free: the same in a run without it.

    Returns:
        sentences.
    """
    text = f"At the end the squared distance is {kept:.2f} with Eq. 4 and {free:.2f} without it."
    if kept:
        text += f" That is **{free / kept:.2f} times** as large, or {(free / kept) ** 0.5:.1f} times as far."
    text += " For two unrelated vectors of equal length it is 2."
    if f"{free:.2f}" == f"{kept:.2f}":
        return f"{text} Here the equation makes no difference to the drift."
    if free < kept:
        return f"{text} Here the equation does not slow the drift down."
    ending = "it does not stop it" if f"{kept:.2f}" != "0.00" else "almost to nothing"
    return f"{text} Here the equation slows the drift down, {ending}."
