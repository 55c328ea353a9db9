"""Figures of the book in one style; the alt text of each stands in the metadata of the notebook's cell.

A notebook gets a figure as one SVG without a ground of its own. Its lines and texts have a light and a dark colour, and
the page's mode chooses; the colours of the data keep a contrast of at least 3 to 1 in both. Colour is for what a figure
is about: the paper's system, the controls, our variant and the best of the others. A system has the same colour in
every figure. All else is grey and differs in marker and dash.
"""

import hashlib
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.optimize import isotonic_regression
from torch import Tensor

from lscl.data.store import write_atomic
from lscl.errors import LsclError, pluralize, shorten
from lscl.models.vit import FrozenViT, LowRank
from lscl.registry import METHODS
from lscl.results.colours import CONTROLS, GRID, GROUND, HUES, INK, NEUTRAL, PAGE, ROLES, SOFT
from lscl.results.labels import (
    DATASET_LABELS,
    MASK_LABELS,
    best_trained,
    group_of,
    is_row_of,
    is_training_free,
    variants_of_ours,
)
from lscl.results.statistics import estimate, interval_of

MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (8, 2)))
LOOKS = len(HUES)
WIDTH = 5.8  # inches; a figure of this width is legible on a page of 400 pixels
HEAT, DIVERGING = "cividis", "RdBu_r"


def line_style(number: int) -> dict[str, Any]:
    """Colour, marker and dash of line `number`: each colour is used once; then grey with other markers and dashes."""
    other = (number + number // LOOKS) % LOOKS
    return {
        "color": HUES[number] if number < LOOKS else NEUTRAL,
        "marker": MARKERS[number % LOOKS],
        "linestyle": DASHES[other],
    }


def system_styles(labels: Iterable[str], best: str | None = None) -> dict[str, dict[str, Any]]:
    """How the lines or points of systems look: a system has the same colour in every figure, or it is grey.

    Args:
        labels: rows of a table, in their order.
        best: the best of the systems that are no control; it has a colour of its own.

    Returns:
        {label: colour, marker, dash, and the order of drawing}. A second row of a control has the colour of the first
        one with another marker and dash; a second row of the paper's system is grey.
    """
    looks, others, known = {}, count(LOOKS), system_colours()
    for name in labels:
        own = next((colour for system, colour in known.items() if is_row_of(name, system)), None)
        colour = own or (ROLES["best"] if name == best else NEUTRAL)
        if colour == NEUTRAL or any(look["color"] == colour for look in looks.values()):
            look = line_style(next(others))
            if colour != ROLES["own"]:
                look["color"] = colour
        else:
            look = line_style(HUES.index(colour))
        looks[name] = {**look, "zorder": {NEUTRAL: 2, ROLES["own"]: 4}.get(look["color"], 3)}
    return looks


def system_colours() -> dict[str, str]:
    """The systems that have a colour of their own in every figure: the paper's, the controls, and our variants."""
    controls = [name for name in METHODS if group_of(name) == "control"]
    return {
        METHODS.find_role("own"): ROLES["own"],
        **dict(zip(controls, CONTROLS)),
        **dict.fromkeys(variants_of_ours(), ROLES["variant"]),
    }


STYLE = {
    **sns.axes_style("ticks"),
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    "axes.facecolor": GROUND,
    "figure.dpi": 110,
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.edgecolor": SOFT,
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"], INK),
    "axes.prop_cycle": mpl.cycler(color=HUES),
    "image.interpolation": "none",  # an SVG then holds the pixels themselves
}
SVG_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "lscl", "font.sans-serif": ["DejaVu Sans"]}  # text stays text


class BookFigure(Figure):
    """A figure that pyplot knows nothing of (no double display) and that notebooks show as the value of a cell."""

    def _repr_svg_(self) -> str:
        drawn = io.StringIO()
        with mpl.rc_context(SVG_STYLE):
            self.savefig(
                drawn,
                format="svg",
                bbox_inches="tight",
                pad_inches=0.08,
                transparent=True,
                metadata={"Date": None, "Creator": None},
            )
        return themed(drawn.getvalue())


def themed(svg: str) -> str:
    """An SVG of matplotlib, made small, whose colours in `colours.PAGE` follow the mode of the page that shows it."""
    small = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    small = re.sub(r'(?<=<g) id="[^"]*"| transform="rotate\(-?0 [^"]*"', "", small)
    rounded = lambda tag: re.sub(r"(?<![\w#])-?\d+\.\d{3,}(?![\w.])", lambda one: f"{float(one[0]):.2f}", tag[0])
    small = re.sub(r"<[^>]*>", rounded, small)  # only places and lengths: what a reader sees keeps its digits
    small = " ".join(filter(None, map(str.strip, small.splitlines())))  # a notebook pays for each line
    names = {colour.lower(): f"--c{number}" for number, colour in enumerate(PAGE)}
    small = re.sub("|".join(names), lambda colour: f"var({names[colour[0]]})", small)
    prefix = f"f{hashlib.sha256(small.encode()).hexdigest()[:6]}-"  # pages may hold several figures in their own text
    styles = {
        text: f"{prefix}{number}" for number, text in enumerate(sorted(set(re.findall(r'style="([^"]*)"', small))))
    }
    small = re.sub(r'style="([^"]*)"', lambda style: f'class="{styles[style[1]]}"', small)
    light, dark = (
        ";".join(f"{name}:{pair[mode]}" for name, pair in zip(names.values(), PAGE.values())) for mode in (0, 1)
    )
    rules = f"svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}"
    rules += "".join(f".{name}{{{text}}}" for text, name in styles.items())
    return re.sub(r"(<svg [^>]*>)", lambda head: f"{head[1]}<style>{rules}</style>", small, count=1)


def house_style(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Make a figure function draw in the book's style, whatever the reader's own settings are."""

    @wraps(draw)
    def wrapped(*args, **kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches and its axes (rows, columns)."""
    figure = BookFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _plain_ticks(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis as 0.01 or 1e-05: small exponents cannot be read on a narrow page."""
    low, high = axis.get_view_interval()
    if high < 100 * low:  # else powers of ten are enough
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _picture(axes: Axes, pixels: np.ndarray, title: str = "", size: float = 8.5) -> None:
    axes.imshow(pixels)
    axes.set_title(title, fontsize=size, pad=3)
    axes.set_axis_off()


def label_ends(
    axes: Axes,
    ends: Mapping[str, tuple[float, float]],
    colours: Mapping[str, str],
    texts: Mapping[str, str] | None = None,
    left: bool = False,
) -> None:
    """Write a name at the end of each line, moved up or down where names would overlap or leave the panel.

    Args:
        axes: the panel, with its final scales and with room for the names in its horizontal limits.
        ends: {name: (x, y) of the last point, in data}.
        colours: {name: colour of the line from the point to its name}.
        texts: {name: what is written}, if not the name itself.
        left: the ends are the left ones.
    """
    figure, size = axes.get_figure(), 9
    figure.get_layout_engine().execute(figure)
    axes.get_ylim()  # settles the limits
    wrapped = {name: textwrap.fill((texts or {}).get(name, name), 25) for name in ends}
    half = {name: size * 1.2 / 72 * figure.dpi * (text.count("\n") + 1) / 2 for name, text in wrapped.items()}  # pixels
    order = sorted(ends, key=lambda name: ends[name][1])
    at_ends = axes.transData.transform([ends[name] for name in order])
    gaps, panel = np.array([half[one] + half[other] for one, other in pairwise(order)]), axes.bbox
    places = _spread(at_ends[:, 1], gaps, panel.y0 + half[order[0]], panel.y1 - half[order[-1]])
    outermost = at_ends[:, 0].min() if left else at_ends[:, 0].max()
    for name, place in zip(order, axes.transAxes.inverted().transform([(outermost, place) for place in places])):
        axes.annotate(
            wrapped[name],
            ends[name],
            place + np.array([-0.07 if left else 0.07, 0]),
            textcoords=axes.transAxes,
            ha="right" if left else "left",
            va="center",
            fontsize=size,
            linespacing=1.05,
            arrowprops={  # an elbow: level beside its name, whatever the slope of the rest
                "arrowstyle": "-",
                "connectionstyle": f"arc,angleA={0 if left else 180},armA=9",
                "color": colours[name],
                "linewidth": 1.2,
                "patchA": None,
                "shrinkA": 2,
                "shrinkB": 3,
                "relpos": (1 if left else 0, 0.5),
            },
            annotation_clip=False,
        )


def _spread(places: np.ndarray, gaps: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """The nearest places (least squares) in the same order whose neighbours are at least `gaps` apart.

    They lie between the lowest and the highest where all of them have room there.
    """
    offsets = np.concatenate([[0], np.cumsum(gaps)])
    nearest = isotonic_regression(places - offsets).x
    most = highest - offsets[-1]
    return (nearest.clip(lowest, most) if lowest <= most else nearest) + offsets


# ---- 01 data


@house_style
def partition_picture(counts: np.ndarray) -> Figure:
    """Which client meets which class in which task, and how many images it has.

    Above, a row per client, a column per class and a colour per task; below, the images by client and task. The private
    classes of a client stand together in its order of tasks; public ones stand right, in the order of the first client.

    Args:
        counts: (clients, tasks, classes) training images.

    Returns:
        two panels, one below the other.
    """
    clients, tasks, _ = counts.shape
    held = counts.sum(1) > 0  # (clients, classes)
    used = np.flatnonzero(held.any(0))
    first = held[:, used].argmax(0)  # the first client that holds the class
    when = np.where(held, counts.argmax(1), np.nan)[:, used]
    when = when[:, np.lexsort((when[first, range(len(used))], first, held[:, used].sum(0)))]
    figure, ((top,), (bottom,)) = _figure(WIDTH, 2.4 + 0.56 * clients, 2, height_ratios=[clients + 2, clients + 1])
    palette = ListedColormap(sns.color_palette("viridis", tasks))
    mesh = top.pcolormesh(when, cmap=palette, norm=BoundaryNorm(np.arange(-0.5, tasks), tasks), rasterized=True)
    top.vlines(range(1, len(used)), 0, clients, GROUND, linewidth=0.4)
    top.hlines(range(1, clients), 0, len(used), GROUND, linewidth=1.2)
    top.set(
        xlabel=f"{len(used)} classes, private ones first",
        ylabel="client",
        yticks=np.arange(clients) + 0.5,
        yticklabels=range(1, clients + 1),
    )
    top.invert_yaxis()
    bar = figure.colorbar(mesh, ax=top, ticks=range(tasks), location="top", aspect=50, pad=0.02)
    bar.set_ticklabels(range(1, tasks + 1))
    bar.set_label("task in which the client meets the class")
    options = {
        "annot": True,
        "fmt": "d",
        "cbar": False,
        "annot_kws": {"size": 9},
        "linewidths": 0.5,
        "linecolor": GROUND,
    }
    sns.heatmap(
        counts.sum(2),
        ax=bottom,
        cmap=HEAT,
        xticklabels=range(1, tasks + 1),
        yticklabels=range(1, clients + 1),
        **options,
    )
    bottom.set(title="training images", xlabel="task", ylabel="client")
    bottom.tick_params(axis="y", rotation=0)
    for axes in (top, bottom):
        axes.grid(False)
    return figure


@house_style
def shares(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """How the images of the public classes fell to the clients: a stacked bar per class, the most uneven first.

    Args:
        counts: (clients, public classes) training images.
        names: of the public classes.

    Returns:
        one panel, a row per class.
    """
    figure, ((axes,),) = _figure(WIDTH, 1.1 + 0.21 * len(names))
    left, order = np.zeros(counts.shape[1]), np.argsort(-counts.max(0), kind="stable")
    for client, row in enumerate(counts[:, order]):
        axes.barh(
            range(len(row)),
            row,
            left=left,
            color=HUES[client % LOOKS],
            label=f"client {client + 1}",
            edgecolor=GROUND,
            linewidth=0.6,
        )
        left += row
    axes.set(xlabel="training images", ylabel="public class", ylim=(len(order) - 0.4, -0.6))
    axes.set_yticks(range(len(order)), [names[i] for i in order], fontsize=9)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    figure.legend(loc="outside upper center", ncols=min(4, len(counts)))
    return figure


@house_style
def concentration(shares: Mapping[str, np.ndarray]) -> Figure:
    """The largest share that one client gets of a class, as a distribution for each concentration.

    Args:
        shares: {concentration: (draws, clients) shares of a class}, each draw with sum 1.

    Returns:
        one panel: for each share (%), the draws (%) whose largest share is not above it.
    """
    figure, ((axes,),) = _figure(WIDTH, 2.8)
    for (name, drawn), colour, dash in zip(shares.items(), HUES, DASHES):
        largest = np.sort(100 * drawn.max(1))
        axes.plot(largest, np.linspace(0, 100, len(largest)), color=colour, linestyle=dash, label=name)
    axes.set(xlabel="largest share of one client, %", ylabel="public classes below, %", xlim=(0, 100))
    axes.legend(title="concentration")
    return figure


@house_style
def image_grid(images: np.ndarray, titles: Sequence[str], columns: int = 8, size: float = 0.95) -> Figure:
    """Images in rows, with short titles.

    Args:
        images: (n, H, W, 3) uint8.
        titles: one for each.
        columns: images in a row.
        size: inches of a side.

    Returns:
        a panel per image, and empty ones at the end of the last row.
    """
    rows = -(-len(images) // columns)
    figure, axes = _figure(size * columns, (size + 0.18) * rows, rows, columns)
    for place in axes.flat:
        place.set_axis_off()
    for place, pixels, title in zip(axes.flat, images, titles):
        _picture(place, pixels, title)
    return figure


@house_style
def class_scores(image: np.ndarray, scores: Sequence[tuple[str, float]], truth: str = "") -> Figure:
    """An image beside what a client sees in it.

    Args:
        image: (H, W, 3) uint8.
        scores: (name of a class, score between 0 and 1), the highest first.
        truth: the true class, written above the image; empty = unknown.

    Returns:
        the image on the left, a bar for each class on the right.
    """
    figure, axes = _figure(6.0, 0.6 + 0.28 * max(4, len(scores)), 1, 2, width_ratios=(1, 2))
    left, right = axes[0]
    _picture(left, image, truth)
    names, values = [shorten(name, 30) for name, _ in scores], [value for _, value in scores]
    places = np.arange(len(scores))
    bars = right.barh(places, values, color=HUES[0])
    right.bar_label(bars, [f"{100 * value:.1f} %" for value in values], padding=3, fontsize=9)
    right.set_yticks(places, names)
    right.invert_yaxis()
    right.set_xlim(0, 1.15 * max(values, default=1))
    right.set_xlabel("score")
    right.grid(False)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure to a file, in the format of its ending.

    Args:
        figure: what to write.
        path: the file, such as a .png, .svg or .pdf.

    Returns:
        the path.

    Raises:
        LsclError: an unknown ending, or the file cannot be written.
    """
    path, known, data = Path(path), figure.canvas.get_supported_filetypes(), io.BytesIO()
    if path.suffix[1:].lower() not in known:
        raise LsclError(f"cannot write {path}: a figure ends in {', '.join('.' + ending for ending in sorted(known))}")
    figure.savefig(data, format=path.suffix[1:].lower(), bbox_inches="tight")
    write_atomic(path, data.getvalue())
    return path


# ---- 02 collaboration


@house_style
def update_heatmaps(images: np.ndarray, deltas: np.ndarray, blocks: int = 12) -> Figure:
    """The updates B_i A_i that were written for a few images, as root mean square of each patch of entries.

    Args:
        images: (n, H, W, 3) uint8.
        deltas: (n, 3d, d), the updates of the fused qkv; its rows are the query, key and value parts.
        blocks: patches along d.

    Returns:
        a column per image: the image, and below it its update, all with one scale of colours.
    """
    n, _, width = deltas.shape
    step = width // blocks
    small = np.sqrt(
        np.square(deltas[:, : 3 * blocks * step, : blocks * step])
        .reshape(n, 3 * blocks, step, blocks, step)
        .mean((2, 4))
    )
    figure, axes = _figure(WIDTH, 4.4, 2, n, height_ratios=[1, 3])
    for place, pixels in zip(axes[0], images):
        _picture(place, pixels)
    for place, values in zip(axes[1], small):
        mesh = place.imshow(values, cmap=HEAT, vmin=0, vmax=small.max(), aspect="auto")
        place.set(xticks=[], yticks=[])
        place.grid(False)
        for edge in (blocks, 2 * blocks):
            place.axhline(edge - 0.5, color=GROUND, linewidth=1.5)
    axes[1, 0].set_yticks([blocks * (part + 0.5) for part in range(3)], ["query", "key", "value"])
    figure.colorbar(mesh, ax=axes[1], label="size of the entries", shrink=0.9)
    return figure


@house_style
def similarity_heatmap(matrix: np.ndarray, images: np.ndarray, label: str) -> Figure:
    """Pairwise values between images, with the images along both sides.

    Args:
        matrix: (n, n) values.
        images: (n, H, W, 3) uint8.
        label: what the values are.

    Returns:
        one panel with a scale of colours.
    """
    n = len(images)
    figure = BookFigure(figsize=(5.6, 4.8))
    axes = figure.add_axes((0.16, 0.14, 0.68, 0.8))
    sns.heatmap(
        matrix,
        ax=axes,
        cmap=HEAT,
        square=True,
        xticklabels=False,
        yticklabels=False,
        cbar_kws={"label": label, "shrink": 0.85},
        rasterized=True,  # hundreds of squares are smaller as one image
    )
    for i, pixels in enumerate(images):
        for bounds in ((-1.15, i + 0.05, 0.9, 0.9), (i + 0.05, n + 0.25, 0.9, 0.9)):
            inset = axes.inset_axes(bounds, transform=axes.transData)
            inset.imshow(pixels)
            inset.set_axis_off()
    return figure


@house_style
def update_sizes(parts: Mapping[str, np.ndarray]) -> Figure:
    """How large the parts of an update are.

    Args:
        parts: {name: (images,) Frobenius norms}.

    Returns:
        one panel: a row per part with a dot per image and a bar at their mean.
    """
    figure, ((axes,),) = _figure(WIDTH, 0.7 + 0.5 * len(parts))
    for row, (values, colour) in enumerate(zip(parts.values(), HUES)):
        axes.plot(values, row + np.linspace(-0.22, 0.22, len(values)), ".", color=colour, markersize=5)
        axes.plot([np.mean(values)] * 2, [row - 0.32, row + 0.32], color=INK, linewidth=1.6)
    axes.set(xlabel="Frobenius norm", yticks=range(len(parts)), yticklabels=list(parts), ylim=(len(parts) - 0.5, -0.5))
    axes.set_xlim(left=0)
    axes.grid(axis="x")
    axes.grid(False, axis="y")
    return figure


@torch.no_grad()
def cls_attention(foundation: FrozenViT, z: Tensor, update: LowRank | None = None) -> np.ndarray:
    """Attention of CLS to the patches in the adapted block, mean over the heads.

    Args:
        foundation: the frozen ViT.
        z: (b, N, d), the tokens in front of the adapted block.
        update: the written update of qkv; None = none.

    Returns:
        (b, side, side) shares of the attention; what is missing to 1 goes to CLS itself and other prefix tokens.

    Raises:
        LsclError: the ViT has no class token.
    """
    if foundation.vit.cls_token is None:
        raise LsclError("this ViT has no class token whose attention could be shown")
    block = foundation.vit.blocks[foundation.block]
    attention, x = block.attn, block.norm1(z)
    qkv = attention.qkv(x)
    if update is not None:
        qkv = update.add_to(qkv, x)
    q, k, _ = qkv.reshape(*x.shape[:2], 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
    weights = (attention.q_norm(q)[:, :, :1] @ attention.k_norm(k).transpose(-2, -1) * attention.scale).softmax(-1)
    patches = weights.mean(1)[:, 0, foundation.vit.num_prefix_tokens :]
    side = round(patches.shape[1] ** 0.5)
    return patches.reshape(-1, side, side).cpu().numpy()


@house_style
def attention(images: np.ndarray, off: np.ndarray, on: np.ndarray) -> Figure:
    """Where CLS looks without and with the written update, and the difference.

    Args:
        images: (n, H, W, 3) uint8.
        off: (n, side, side) attention without the update, from `cls_attention`.
        on: (n, side, side) attention with it.

    Returns:
        a column per image: the image, without, with, difference.
    """
    n, most, gap = len(images), max(off.max(), on.max()), np.abs(on - off).max()
    figure, axes = _figure(WIDTH, 4 * (WIDTH - 1.3) / n + 0.4, 4, n)
    for column in range(n):
        _picture(axes[0, column], images[column])
        for row, (values, low, high, colours) in enumerate(
            [(off, 0, most, HEAT), (on, 0, most, HEAT), (on - off, -gap, gap, DIVERGING)], 1
        ):
            mesh = axes[row, column].imshow(values[column], cmap=colours, vmin=low, vmax=high)
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, column].grid(False)
            if column == n - 1 and row > 1:
                figure.colorbar(mesh, ax=axes[1:3, :] if row == 2 else axes[3, :], shrink=0.8)
    for row, text in enumerate(["without", "with", "difference"], 1):
        axes[row, 0].set_ylabel(text)
    return figure


@house_style
def feature_change(before: np.ndarray, after: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """CLS features before and after the written updates, on the two main axes of both together.

    Args:
        before: (n, d) features of the frozen model.
        after: (n, d) features with the updates.
        labels: (n,) classes.
        names: of the classes, by label.

    Returns:
        two panels with equal axes.
    """
    both = np.concatenate([before, after])
    both = both - both.mean(0)
    flat = both @ np.linalg.svd(both, full_matrices=False)[2][:2].T
    figure, (panels,) = _figure(WIDTH, 3.9, 1, 2, sharex=True, sharey=True)
    for axes, points, title in zip(panels, np.split(flat, 2), ["frozen model", "with the written updates"]):
        for number, label in enumerate(np.unique(labels)):
            own = labels == label
            axes.scatter(
                *points[own].T,
                s=22,
                color=HUES[number % LOOKS],
                marker=MARKERS[number % LOOKS],
                label=names[label],
                linewidth=0,
            )
        axes.set(title=title, xlabel="first axis")
        axes.grid(False)
    panels[0].set_ylabel("second axis")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


@house_style
def losses(values: Mapping[str, Sequence[float]], label: str = "loss", x: str = "step") -> Figure:
    """A few curves over steps.

    Args:
        values: {name: one value per step}.
        label: what stands at the vertical axis.
        x: what stands at the horizontal axis.

    Returns:
        one panel; the steps count from 1.
    """
    figure, ((axes,),) = _figure(WIDTH, 2.8)
    for (name, y), colour, dash in zip(values.items(), HUES, DASHES):
        axes.plot(np.arange(1, len(y) + 1), y, color=colour, linestyle=dash, label=name)
    axes.set(xlabel=x, ylabel=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(values) > 1:
        axes.legend()
    return figure


# ---- 03 forgetting


@house_style
def forgetting_curves(acc: Mapping[str, np.ndarray], mask: str) -> Figure:
    """Accuracy on each task after every later one, mean over the clients.

    Args:
        acc: {variant: (t, clients, u) percent on task u after task t}.
        mask: the name of the score.

    Returns:
        a panel per variant, a line per task.
    """
    figure, (panels,) = _figure(max(6.5, 3.2 * len(acc)), 3, 1, len(acc), sharey=True)
    for axes, (name, values) in zip(panels, acc.items()):
        tasks = len(values)
        for u in range(tasks):
            axes.plot(range(u + 1, tasks + 1), values[u:, :, u].mean(1), label=f"task {u + 1}", **line_style(u))
        axes.set(title=name, xlabel="after task", xticks=range(1, tasks + 1), ylim=(0, 102))
    panels[0].set_ylabel(f"accuracy, %, {mask}")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), title="on the images of")
    return figure


@house_style
def grouped_bars(values: Mapping[str, Mapping[str, float]], label: str) -> Figure:
    """Grouped bars with their values on top.

    Args:
        values: {group: {series: value}}, every group with the same series.
        label: what stands at the vertical axis.

    Returns:
        one panel.
    """
    figure, ((axes,),) = _figure(WIDTH, 2.9)
    series = list(next(iter(values.values())))
    for number, name in enumerate(series):
        x = np.arange(len(values)) + (number - (len(series) - 1) / 2) * 0.8 / len(series)
        drawn = axes.bar(
            x, [group[name] for group in values.values()], 0.75 / len(series), color=HUES[number % LOOKS], label=name
        )
        axes.bar_label(drawn, fmt="%.3g", fontsize=9, padding=1)
    axes.set_xticks(range(len(values)), list(values))
    axes.set_ylabel(label)
    axes.margins(y=0.15)
    if len(series) > 1:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(series))
    return figure


# ---- 04 distillation


@house_style
def log_lines(
    lines: Mapping[str, Sequence[float]], places: Sequence[float], label: str, across: str = "passes over the teachers"
) -> Figure:
    """How positive numbers change with another one, both axes logarithmic.

    Args:
        lines: {name: one number per entry of `places`}.
        places: where they were taken, positive.
        label: what stands at the vertical axis.
        across: what stands at the horizontal axis.

    Returns:
        one panel.
    """
    figure, ((axes,),) = _figure(WIDTH, 3.1)
    for (name, values), colour, marker, dash in zip(lines.items(), HUES, MARKERS, DASHES):
        axes.plot(places, values, color=colour, marker=marker, linestyle=dash, label=name)
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel=label)
    _plain_ticks(axes.yaxis)
    axes.set_xticks(list(places), [f"{place:g}" for place in places])
    axes.minorticks_off()
    axes.legend()
    return figure


# ---- 05 results


def _titles(rows: pd.DataFrame, panel: str) -> dict[str, str]:
    """{value of the column `panel`: title}: the name of a score in tables, after its data set's if there is one."""
    where = ", ".join(DATASET_LABELS.get(name, name) for name in rows["dataset"].unique()) if "dataset" in rows else ""
    return {
        one: f"{where}, {MASK_LABELS.get(one, one)}" if where else MASK_LABELS.get(one, one)
        for one in rows[panel].unique()
    }


LEAST = 1.0  # points that an axis shows to either side at least, so that hundredths do not look like a difference
BROAD = 5
REFERENCE = {"color": INK, "linewidth": BROAD, "alpha": 0.3, "zorder": 0, "label": "best without training"}


def _control_curves(rows: pd.DataFrame, line: str, reference: pd.DataFrame | None) -> dict[str, pd.Series]:
    """{score: accuracy by task} of the control that is best at the end, among other rows or among the figure's own."""
    if reference is None:
        reference = rows[rows[line].map(is_training_free)] if line == "label" else rows[:0]
    found = {}
    for mask, own in reference.groupby("mask", sort=False):
        means = own.groupby(["label", "trained_task"])["accuracy"].mean().unstack("trained_task")
        found[mask] = means.loc[means.iloc[:, -1].idxmax()]
    return found


@house_style
def curves(
    rows: pd.DataFrame,
    line: str = "label",
    label: str = "accuracy, %, all tasks so far",
    bands: bool = True,
    reference: pd.DataFrame | None = None,
) -> Figure:
    """Accuracy over the tasks, mean over the seeds.

    Args:
        rows: one row per point and seed, columns mask, trained_task, accuracy, and `line`.
        line: the column that names the lines; the label of systems, or variants of one system.
        label: what stands at the vertical axis.
        bands: draw the 95 % t interval of each mean in colour, of three seeds or more; leave it out where too many
            lines overlap.
        reference: such rows of the controls that train nothing, with their names in the column label; the best of them
            is a broad line behind the others. None = those among `rows`, if systems are the lines.

    Returns:
        a panel per score, one below the other; every line has its name at its end. The axis spans at least two points.
    """
    titles, controls = _titles(rows, "mask"), _control_curves(rows, line, reference)
    names, end = list(rows[line].unique()), rows[rows["trained_task"] == rows["trained_task"].max()]
    looks = _looks_of_lines(
        names, end[end["mask"] == list(titles)[-1]].groupby(line)["accuracy"].mean(), line == "label"
    )
    height = max(3.2, 1.2 + 0.17 * sum(len(textwrap.wrap(name, 25)) for name in names))
    figure, places = _figure(WIDTH, height * len(titles), len(titles), 1)
    for axes, (mask, title) in zip(places.flat, titles.items()):
        ends, ticks = {}, sorted(rows["trained_task"].unique())
        for name, found in rows[rows["mask"] == mask].groupby(line, sort=False):
            points = found.groupby("trained_task")["accuracy"]
            mean, (low, high) = points.mean(), zip(*(interval_of(values) for _, values in points))
            axes.plot(mean.index, mean, markersize=4.5, label=name, **looks[name])
            ends[name] = (mean.index[-1], mean.iloc[-1])
            if bands and points.size().min() >= 3 and looks[name]["color"] != NEUTRAL:  # two have too wide an interval
                axes.fill_between(mean.index, low, high, color=looks[name]["color"], alpha=0.15, linewidth=0)
        shown = {name: looks[name]["color"] for name in ends}
        if mask in controls:
            axes.plot(controls[mask].index, controls[mask], **REFERENCE)
            if line != "label":
                ends[REFERENCE["label"]] = (controls[mask].index[-1], controls[mask].iloc[-1])
                shown[REFERENCE["label"]] = SOFT
        axes.set(xlabel="after task", ylabel=label, xticks=ticks)
        axes.set_title(title, loc="left")
        heights = [value for drawn in axes.lines for value in drawn.get_ydata()]  # wide bands may leave the panel
        middle, half = (max(heights) + min(heights)) / 2, (max(heights) - min(heights)) / 2
        half = max(1.12 * half, LEAST)
        axes.set_ylim(middle - half, middle + half)
        axes.set_xlim(ticks[0] - 0.2, ticks[-1] + 0.75 * max(1, ticks[-1] - ticks[0]))  # room for the names
        label_ends(axes, ends, shown)
    return figure


def _looks_of_lines(names: Sequence[str], scores: pd.Series, systems: bool) -> dict[str, dict[str, Any]]:
    """The styles of systems, the best that is no control in colour, or of variants, each in a colour of its own."""
    if not systems:
        return {name: line_style(number) for number, name in enumerate(names)}
    return system_styles(names, best_trained(scores))


@house_style
def labelled_points(points: pd.DataFrame, x: str, y: str) -> Figure:
    """One point per system, with its name beside it; the horizontal axis is logarithmic beyond its smallest value.

    Args:
        points: its index holds the labels of the systems.
        x: the column along the horizontal axis, and what stands there; zero has a place of its own at the left.
        y: the column along the vertical axis, and what stands there.

    Returns:
        one panel.
    """
    figure, ((axes,),) = _figure(WIDTH, max(3.4, 1.4 + 0.2 * len(points)))
    looks = system_styles(points.index, best_trained(points[y]))
    for name, point in points.iterrows():
        axes.plot(point[x], point[y], markersize=8, label=name, **{**looks[name], "linestyle": "none"})
    positive = points[x][points[x] > 0]
    if len(positive):
        axes.set_xscale("symlog", linthresh=positive.min(), linscale=0.7)
        decades = 10.0 ** np.arange(math.ceil(math.log10(positive.min())), math.ceil(math.log10(positive.max())) + 1)
        axes.set_xticks([0, *decades], ["0", *(f"{one:g}" for one in decades)])
        axes.minorticks_off()
        axes.set_xlim(-0.3 * positive.min(), decades[-1] * 10 ** (0.5 * max(2, len(decades))))  # room for the names
    axes.set(xlabel=x, ylabel=y)
    label_ends(
        axes,
        {name: (point[x], point[y]) for name, point in points.iterrows()},
        {name: look["color"] for name, look in looks.items()},
    )
    return figure


@house_style
def sheets(pictures: Mapping[str, np.ndarray]) -> Figure:
    """Pictures with titles, two in a row, hardly enlarged, as pixels cost bytes.

    Args:
        pictures: {title: (H, W, 3) uint8}, all of one size.

    Returns:
        a panel per picture.
    """
    rows = -(-len(pictures) // 2)
    height, width, _ = next(iter(pictures.values())).shape
    lines = max(title.count("\n") for title in pictures)  # of a title, beyond the first
    figure, axes = _figure(5.4, rows * (0.35 + 0.17 * lines + 2.5 * height / width), rows, 2)
    for place in axes.flat:
        place.set_axis_off()
    for place, (title, pixels) in zip(axes.flat, pictures.items()):
        _picture(place, pixels, title, 10)
    return figure


# ---- 06 to 08 studies


@house_style
def paired_differences(
    differences: pd.DataFrame, label: str, limit: float = math.inf, reference: Mapping[str, float] | None = None
) -> Figure:
    """Paired differences: mean, 95 % t interval, and a tick per seed.

    Args:
        differences: index (mask, seed), a column per variant, see `statistics.differences_from`.
        label: what stands at the horizontal axis.
        limit: a mean farther from zero is an arrow at the edge with its number, so that the others stay readable.
        reference: {score: where the best control that trains nothing stands on this axis}, a broad line; at the
            edge if it lies outside, and the legend then has its number.

    Returns:
        a panel per score with a line at zero, a row per variant. The axis shows at least one point to either side.
    """
    names, masks = list(differences.columns), differences.index.unique("mask")
    figure, places = _figure(WIDTH, (1.1 + 0.27 * len(names)) * len(masks), len(masks), 1)
    for axes, mask in zip(places.flat, masks):
        for row, name in enumerate(names):
            values = differences.loc[mask, name].dropna()
            gap = estimate(values)
            if abs(gap.mean) > limit:
                edge, side = math.copysign(limit, gap.mean), "left" if gap.mean < 0 else "right"
                axes.plot(edge, row, "<" if gap.mean < 0 else ">", color=HUES[0], markersize=7, clip_on=False)
                axes.annotate(
                    f"{gap.mean:+.1f}",
                    (edge, row),
                    (-math.copysign(9, gap.mean), 0),
                    textcoords="offset points",
                    ha=side,
                    va="center",
                )
                continue
            axes.plot(values, np.full(len(values), row + 0.22), "|", color=HUES[1], markersize=7, markeredgewidth=1.6)
            half = gap.half_width if gap.n > 1 else None
            axes.errorbar(gap.mean, row, xerr=half, fmt="o", color=HUES[0], markersize=5, capsize=3)
        low, high = axes.get_xlim() if limit == math.inf else (-limit, limit)
        axes.set_xlim(min(low, -LEAST), max(high, LEAST))
        axes.axvline(0, color=INK, linestyle="--", linewidth=1)
        if mask in (reference or {}):
            _reference_line(axes, reference[mask], MASK_LABELS[mask])
        axes.set(title=MASK_LABELS[mask], xlabel=label, ylim=(len(names) - 0.4, -0.6))
        axes.set_yticks(range(len(names)), [textwrap.fill(name, 22) for name in names], fontsize=9.5)
        axes.grid(axis="x")
    broad = {line.get_label(): line for axes in places.flat for line in axes.lines if line.get_linewidth() == BROAD}
    if broad:
        figure.legend(handles=broad.values(), loc="outside lower center")
    return figure


def _reference_line(axes: Axes, value: float, score: str) -> None:
    """The best control on the horizontal axis, which stays as it is: from outside, the line comes to its edge."""
    low, high = axes.get_xlim()
    shown = max(low, min(high, value))
    label = REFERENCE["label"] if shown == value else f"{REFERENCE['label']}, {score}: {value:+.1f}, beyond the edge"
    axes.axvline(shown, **{**REFERENCE, "label": label})
    axes.set_xlim(low, high)


@house_style
def classes_of_clients(
    classes: pd.DataFrame, names: Sequence[str], label: str, reference: Mapping[str, float] | None = None
) -> Figure:
    """One dot per class of each client, all seeds together, and a bar at their mean; the variants side by side.

    Args:
        classes: rows of `lscl.results.classes_frame`.
        names: what stands under each client.
        label: what stands at the vertical axis.
        reference: {score: mean accuracy of the best control that trains nothing}, a broad line.

    Returns:
        a panel per score, one below the other.
    """
    titles, groups = _titles(classes[["mask"]], "mask"), list(classes["variant"].unique())
    figure, places = _figure(WIDTH, 2.9 * len(titles), len(titles), 1, sharex=True, sharey=True)
    for (axes,), (mask, title) in zip(places, titles.items()):
        for (group, client), found in classes[classes["mask"] == mask].groupby(["variant", "client"], sort=False)[
            "accuracy"
        ]:
            number, values = groups.index(group), np.sort(found)
            middle = client - 1 + (number - (len(groups) - 1) / 2) * 0.8 / len(groups)
            x = middle + np.linspace(-0.28, 0.28, len(values)) / len(groups)
            style = {
                "color": HUES[number % LOOKS],
                "marker": MARKERS[number % LOOKS],
                "label": group if client == 1 else None,
            }
            axes.plot(x, values, markersize=3.5, alpha=0.7, linestyle="none", **style)
            axes.plot(
                [middle - 0.3 / len(groups), middle + 0.3 / len(groups)], [values.mean()] * 2, color=INK, linewidth=1.8
            )
        if mask in (reference or {}):
            axes.axhline(reference[mask], **REFERENCE)
        axes.set(title=title, ylabel=label, ylim=(-3, 103))
    places[-1, 0].set_xticks(range(len(names)), [name.replace("_", "_\n") for name in names], fontsize=9)
    figure.legend(*places[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(titles))
    return figure


# ---- 09 costs


@house_style
def traffic_by_task(panels: Mapping[str, pd.DataFrame], label: str) -> Figure:
    """What travels in each task, on a logarithmic axis.

    Args:
        panels: {title: a row per task, from 1, and a column per system}; what is zero is left out.
        label: what stands at the vertical axis.

    Returns:
        a panel per direction, one below the other, and a line per system with its name at its end.
    """
    systems = list(dict.fromkeys(name for found in panels.values() for name in found))
    looks = system_styles(systems)
    height = max(3.2, 1.2 + 0.17 * sum(len(textwrap.wrap(name, 25)) for name in systems))
    figure, places = _figure(WIDTH, height * len(panels), len(panels), 1)
    for axes, (title, found) in zip(places.flat, panels.items()):
        ends = {}
        for name, values in found.items():
            own = values.dropna()
            if own.any():
                marks = {"markersize": 4, "markevery": max(1, len(own) // 6)}
                axes.plot(own.index, own.where(own > 0), label=name, **marks, **looks[name])
                ends[name] = (own.index[-1], own[own > 0].iloc[-1])
        last = round(found.index.max())
        axes.set(xlabel="task", ylabel=label, yscale="log", xticks=range(1, last + 1), xlim=(0.8, 1.75 * last))
        axes.set_title(title, loc="left")
        axes.grid(axis="x")
        _plain_ticks(axes.yaxis)
        if ends:
            label_ends(axes, ends, {name: looks[name]["color"] for name in ends})
    return figure


@house_style
def growth(rows: pd.DataFrame, column: str, label: str) -> Figure:
    """How a quantity grows with sizes: on logarithmic axes slopes are exponents, and one line shows linear growth.

    Args:
        rows: columns grows (a panel each), label (a line each), size, and `column`.
        column: the quantity.
        label: what stands at the vertical axis.

    Returns:
        a panel per kind of size.
    """
    kinds = list(rows["grows"].unique())
    rows_of_panels = -(-len(kinds) // 2)
    figure, grid = _figure(WIDTH, 2.7 * rows_of_panels + 0.3, rows_of_panels, min(2, len(kinds)), sharey=True)
    row = list(grid.flat)
    for empty in row[len(kinds) :]:
        empty.set_visible(False)
    for axes, kind in zip(row, kinds):
        lines = list(rows[rows["grows"] == kind].groupby("label", sort=False))
        for number, (name, found) in enumerate(lines):
            axes.plot(
                found["size"], found[column], label=name if axes is row[0] else None, markersize=4, **line_style(number)
            )
        sizes, start = lines[0][1]["size"], lines[0][1].iloc[0]
        linear = start[column] * sizes / start["size"]
        axes.plot(sizes, linear, color=SOFT, lw=0.8, label="linear" if axes is row[0] else None, zorder=0)
        axes.set(xscale="log", yscale="log", title=kind, xticks=list(sizes), xticklabels=[f"{one:g}" for one in sizes])
        axes.minorticks_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(label)
    row[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    row[0].yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


@house_style
def trial_slices(tried: Mapping[str, pd.DataFrame], label: str, columns: int = 2) -> Figure:
    """What the trials of systems scored along every axis of their search spaces; the chosen one has a ring.

    A score is that after the last task that a trial played, so trials of different lengths have markers of their own.

    Args:
        tried: {name of a system: its trials, as `measurements.trials_frame` makes them}.
        label: what stands at the vertical axes.
        columns: panels side by side.

    Returns:
        a panel per system and axis.

    Raises:
        LsclError: no trial has a score.
    """
    about = ("tasks", "seen", "chosen")
    panels = [(name, axis) for name, trials in tried.items() for axis in trials if axis not in about]
    lengths = sorted({tasks for trials in tried.values() for tasks in trials["tasks"] if tasks > 0})
    if not lengths:
        raise LsclError("no trial has a score yet: lscl sweep tune makes them")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, grid = _figure(WIDTH, 1.9 * rows + 0.5, rows, columns)
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_visible(False)
            continue
        name, axis = panels[place]
        for number, tasks in enumerate(lengths):
            found = tried[name][tried[name]["tasks"] == tasks]
            style = {**line_style(number), "linestyle": "", "markersize": 4.5}
            axes.plot(found[axis], found["seen"], label=pluralize(tasks, "task"), **style)
        best = tried[name][tried[name]["chosen"]]
        ring = {"markersize": 10, "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": ""}
        axes.plot(best[axis], best["seen"], "o", label="chosen", **ring)
        axes.set(xlabel=axis, title=name)
        if axis in tried[name].attrs.get("log", ()):
            axes.set_xscale("log")
            _plain_ticks(axes.xaxis)
        axes.tick_params(labelsize=9)
        axes.minorticks_off()
        if place % columns == 0:
            axes.set_ylabel(label)
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@house_style
def log_dots(rows: pd.DataFrame, label: str) -> Figure:
    """One row per row of a table, a marker for each column, on a logarithmic axis; what is not positive is left out.

    Args:
        rows: numbers; the index names the rows, the columns the markers.
        label: what stands at the horizontal axis.

    Returns:
        one panel.
    """
    names = [textwrap.fill(name, 28) for name in rows.index]
    figure, ((axes,),) = _figure(WIDTH, 1.3 + 0.3 * sum(name.count("\n") / 2 + 1 for name in names))
    for number, (part, values) in enumerate(rows.items()):
        style = {**line_style(number), "linestyle": "none"}
        axes.plot(values.where(values > 0), range(len(rows)), label=part, markersize=7, **style)
    axes.set_yticks(range(len(rows)), names, fontsize=9.5)
    axes.invert_yaxis()
    axes.set(xlabel=label, xscale="log")
    _plain_ticks(axes.xaxis)
    axes.grid(True, axis="both")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3)
    return figure


# ---- privacy


@house_style
def reconstructions_by_attacker(rows: Mapping[str, np.ndarray]) -> Figure:
    """Rows of images: the true ones, what attackers make of a payload, and images that nobody had.

    Args:
        rows: {name: images beside each other, (H, n W, 3) uint8}.

    Returns:
        a panel per row, its name above it.
    """
    height, width, _ = next(iter(rows.values())).shape
    figure, axes = _figure(WIDTH, (WIDTH * height / width + 0.25) * len(rows), len(rows))
    for place, (name, pixels) in zip(axes.flat, rows.items()):
        _picture(place, pixels, name, 9)
    return figure


@house_style
def price_of_noise(rows: pd.DataFrame, column: str, label: str) -> Figure:
    """Accuracy against the epsilon of the noise, a line per system, with 95 % intervals; a level without noise.

    Args:
        rows: one per run: label, seed, epsilon (NaN without noise), unit (what epsilon hides), and `column`.
        column: what stands at the vertical axis.
        label: its name.

    Returns:
        one panel; the legend names the unit of each system's epsilon.
    """
    figure, ((axes,),) = _figure(WIDTH, 3.6)
    for number, (name, own) in enumerate(rows.groupby("label", sort=False)):
        style = line_style(number)
        noisy = own.dropna(subset="epsilon")
        found = noisy.groupby("epsilon")[column].agg(estimate)
        spread = [0.0 if math.isnan(one.half_width) else one.half_width for one in found]
        shown = f"{name}, epsilon per {' or '.join(noisy['unit'].unique())}"
        axes.errorbar(list(found.index), [one.mean for one in found], spread, label=shown, capsize=2, **style)
        plain = own[own["epsilon"].isna()][column]
        if len(plain):
            axes.axhline(plain.mean(), color=style["color"], linewidth=0.8, alpha=0.6)
    axes.set(xscale="log", xlabel="epsilon of a run's first task (smaller is more private)", ylabel=label)
    _plain_ticks(axes.xaxis)
    axes.legend()
    return figure
