"""Every figure function draws the values that it was given, each under its own name."""

import io
import re
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image

from lscl.errors import LsclError
from lscl.models.vit import LowRank, foundation
from lscl.registry import METHODS
from lscl.results import colours, figures
from lscl.results.labels import group_of, label_of

draw = np.random.default_rng(0)
IMAGES = draw.integers(0, 256, (4, 8, 8, 3), np.uint8)
COUNTS = np.zeros((2, 2, 6), int)  # class 4 and 5 are public, met in another order
for place in ((0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3), (0, 0, 4), (0, 1, 5), (1, 0, 5), (1, 1, 4)):
    COUNTS[place] = 3
ACC = np.array([[[90.0, np.nan]], [[60.0, 80.0]]])


def accuracies(values, masks=("task", "seen")):
    """Rows for `figures.curves`: {label: (seeds, tasks)}, the same under every score."""
    return pd.DataFrame(
        [
            {"mask": mask, "label": name, "seed": seed, "trained_task": task + 1, "accuracy": value}
            for mask in masks
            for name, table in values.items()
            for seed, line in enumerate(table)
            for task, value in enumerate(line)
        ]
    )


def variants(values, masks=("task", "seen")):
    """The same for the variants of one system."""
    return accuracies(values, masks).rename(columns={"label": "variant"})


def gaps(masks=("task", "seen"), **columns):
    """Differences for `figures.paired_differences`, the same under every score."""
    return pd.concat(
        {mask: pd.DataFrame(columns, index=pd.Index([42, 1999, 2024], name="seed")) for mask in masks}, names=["mask"]
    )


def classes(values, masks=("task", "seen")):
    """Rows for `figures.classes_of_clients`: {variant: clients x classes}, the same under every score."""
    return pd.DataFrame(
        [
            {"mask": mask, "variant": name, "client": k + 1, "accuracy": value}
            for mask in masks
            for name, clients in values.items()
            for k, found in enumerate(clients)
            for value in found
        ]
    )


TRAFFIC = pd.DataFrame({"x": np.ones(10), "y": np.arange(10.0), "nothing": np.zeros(10)}, index=np.arange(1, 11))
GROWTH = pd.DataFrame(
    [
        ("x", "clients", 1, 1.0),
        ("x", "clients", 2, 2.0),
        ("y", "clients", 1, 3.0),
        ("y", "clients", 2, 9.0),
        ("x", "tasks", 2, 2.0),
        ("x", "tasks", 4, 9.0),
    ],
    columns=["label", "grows", "size", "cpu_seconds"],
)

TRIED = pd.DataFrame(
    {
        "tasks": [1, 2, 2, 0],
        "seen": [50.0, 40.0, 45.0, np.nan],
        "chosen": [False, False, True, False],
        "lr": [1e-3, 1e-2, 1e-1, 1.0],
        "rank": [1, 2, 4, 8],
    }
)
TRIED.attrs["log"] = ["lr"]

NOISY = pd.DataFrame(
    {
        "label": ["a"] * 5,
        "seed": [1, 2, 1, 2, 1],
        "epsilon": [1.0, 1.0, 10.0, 10.0, np.nan],
        "unit": ["client"] * 4 + [""],
        "seen": [50, 52, 60, 64, 70],
    }
)

FIGURES = {
    "partition_picture": lambda: figures.partition_picture(COUNTS),
    "shares": lambda: figures.shares(COUNTS.sum(1)[:, 4:], ["e", "f"]),
    "concentration": lambda: figures.concentration({"1": draw.dirichlet(np.ones(3), 9)}),
    "image_grid": lambda: figures.image_grid(IMAGES, list("abcd"), columns=3),
    "class_scores": lambda: figures.class_scores(IMAGES[0], [("a", 0.7), ("b", 0.2), ("b", 0.1)], "a"),
    "update_heatmaps": lambda: figures.update_heatmaps(IMAGES, draw.normal(size=(4, 72, 24))),
    "similarity_heatmap": lambda: figures.similarity_heatmap(np.eye(4), IMAGES, "cosine"),
    "update_sizes": lambda: figures.update_sizes({"A": draw.uniform(size=5), "B": draw.uniform(size=5)}),
    "attention": lambda: figures.attention(IMAGES, draw.uniform(size=(4, 3, 3)), draw.uniform(size=(4, 3, 3))),
    "feature_change": lambda: figures.feature_change(*draw.normal(size=(2, 9, 5)), np.arange(9) % 3, list("abc")),
    "reconstructions_by_attacker": lambda: figures.reconstructions_by_attacker(
        {"true": np.hstack(IMAGES), "attacker": np.hstack(IMAGES[::-1])}
    ),
    "price_of_noise": lambda: figures.price_of_noise(NOISY, "seen", "class-incremental, %"),
    "losses": lambda: figures.losses({"a": [3, 2, 1], "b": [1, 2, 3]}),
    "forgetting_curves": lambda: figures.forgetting_curves({"with": ACC, "without": ACC}, "task-masked"),
    "grouped_bars": lambda: figures.grouped_bars({"one": {"a": 1, "b": 2}, "two": {"a": 3, "b": 4}}, "kB"),
    "trial_slices": lambda: figures.trial_slices({"LoRM": TRIED}, "class-incremental %"),
    "log_lines": lambda: figures.log_lines({"lr 1": [1, 0.1, 0.01]}, [1, 10, 100], "gap"),
    "curves": lambda: figures.curves(accuracies({"x": draw.uniform(size=(3, 5)), "y": draw.uniform(size=(1, 5))})),
    "sheets": lambda: figures.sheets({"a": IMAGES[0], "b": IMAGES[1], "c": IMAGES[2]}),
    "paired_differences": lambda: figures.paired_differences(gaps(x=[1.0, 2, 3], y=[2.0, np.nan, np.nan]), "points"),
    "classes_of_clients": lambda: figures.classes_of_clients(classes({"a": [[10.0, 30], [50, 70]]}), ["a", "b"], "%"),
    "traffic_by_task": lambda: figures.traffic_by_task({"up": TRAFFIC, "down": TRAFFIC * 2}, "MB"),
    "log_dots": lambda: figures.log_dots(pd.DataFrame({"a": [1, 3], "b": [2, 4]}, index=["x", "y"]), "minutes"),
    "growth": lambda: figures.growth(GROWTH, "cpu_seconds", "seconds"),
    "labelled_points": lambda: figures.labelled_points(
        pd.DataFrame({"MB": [0, 3], "%": [50, 55]}, index=["a", "b"]), "MB", "%"
    ),
}


# ---- what is drawn where: a figure whose values or names are swapped fails here


def lines(axes):
    """{label: (x, y) as lists} of the lines of a panel that have one."""
    return {
        line.get_label(): tuple(map(list, line.get_data()))
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def heights(axes):
    """{series: {group: height}} of the bars of a panel, by the ticks below them."""
    names = dict(zip(axes.get_xticks(), (text.get_text() for text in axes.get_xticklabels())))
    middle = lambda bar: bar.get_x() + bar.get_width() / 2
    nearest = lambda bar: names[min(names, key=lambda tick: abs(tick - middle(bar)))]
    return {drawn.get_label(): {nearest(bar): bar.get_height() for bar in drawn} for drawn in axes.containers}


def test_bars_stand_over_their_group_and_carry_their_value():
    values = {"one": {"a": 1, "b": 2}, "two": {"a": 3, "b": 4}}
    (axes,) = figures.grouped_bars(values, "kB").axes
    assert heights(axes) == {"a": {"one": 1, "two": 3}, "b": {"one": 2, "two": 4}}
    assert [text.get_text() for text in axes.texts] == ["1", "3", "2", "4"]
    colours = {drawn.get_label(): drawn[0].get_facecolor() for drawn in axes.containers}
    legend = {
        text.get_text(): patch.get_facecolor()
        for text, patch in zip(axes.get_legend().get_texts(), axes.get_legend().get_patches())
    }
    assert legend == colours


def test_a_row_has_a_dot_for_each_of_its_positive_numbers():
    rows = pd.DataFrame({"train": [1.0, 300], "evaluate": [0.0, 4]}, index=["x", "y"])
    (axes,) = figures.log_dots(rows, "minutes").axes
    assert axes.get_xscale() == "log" and labels_of(axes.get_yticklabels()) == ["x", "y"] and axes.yaxis_inverted()
    drawn = {name: (x, y) for name, (x, y) in lines(axes).items()}
    assert drawn["train"] == ([1, 300], [0, 1]) and drawn["evaluate"][0][1] == 4 and np.isnan(drawn["evaluate"][0][0])


def test_shares_of_public_classes():
    (axes,) = figures.shares(np.array([[5, 1], [2, 9]]), ["e", "f"]).axes
    rows = labels_of(axes.get_yticklabels())
    drawn = {
        bars.get_label(): {rows[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in bars}
        for bars in axes.containers
    }
    assert drawn == {"client 1": {"e": 5, "f": 1}, "client 2": {"e": 2, "f": 9}}
    assert {bar.get_x() for bar in axes.containers[1]} == {5, 1} and rows == ["f", "e"] and axes.yaxis_inverted()


def test_a_curve_is_the_mean_of_its_seeds_with_its_interval():
    three, two = [[80, 70], [81, 73], [82, 76]], [[49, 40], [51, 40]]
    figure = figures.curves(variants({"x": three, "y": two}), "variant")
    assert [axes.get_title("left") for axes in figure.axes] == ["task-masked", "class-incremental"]
    for axes in figure.axes:
        assert lines(axes) == {"x": ([1, 2], [81, 73]), "y": ([1, 2], [50, 40])}
        (band,) = axes.collections  # two seeds have none
        bounds = band.get_paths()[0].vertices
        at_one = bounds[bounds[:, 0] == 1][:, 1]
        assert (at_one.min(), at_one.max()) == pytest.approx((81 - 2.484, 81 + 2.484), abs=1e-3)
    plain = figures.curves(variants({"x": three}), "variant", bands=False)
    assert not plain.axes[0].collections


def names_at_ends(axes):
    """The names that lines have at their ends, from top to bottom."""
    found = [text for text in axes.texts if getattr(text, "arrow_patch", None) is not None]
    return [text.get_text() for text in sorted(found, key=lambda text: -text.get_position()[1])]


def references(figure):
    """Where the broad line of the best control is, by panel: its x and y."""
    return {
        axes.get_title("left") or axes.get_title(): [
            line.get_xydata().tolist() for line in axes.lines if line.get_linewidth() == 5
        ]
        for axes in figure.axes
    }


def test_the_best_control_among_the_systems_is_a_broad_line_behind_them():
    rows = accuracies({"x": [[80, 70]], "federated ridge": [[60, 65], [62, 67]], label_of("local_ridge"): [[66, 60]]})
    figure = figures.curves(rows)
    assert references(figure) == {name: [[[1, 61], [2, 66]]] for name in ("task-masked", "class-incremental")}
    assert not figure.legends and names_at_ends(figure.axes[0]) == ["x", "federated ridge", label_of("local_ridge")]
    assert not any(references(figures.curves(accuracies({"x": [[80, 70]]}))).values())


def test_figures_of_variants_are_given_their_controls():
    rows, control = accuracies({"x": [[80, 70]]}), accuracies({"anything": [[60, 66]]}, ("seen",))
    found = references(figures.curves(rows.rename(columns={"label": "variant"}), "variant", reference=control))
    assert found == {"task-masked": [], "class-incremental": [[[1, 60], [2, 66]]]}
    drawn = figures.curves(rows.rename(columns={"label": "variant"}), "variant", reference=control)
    assert [names_at_ends(axes) for axes in drawn.axes] == [["x"], ["x", "best without training"]]
    both = figures.paired_differences(gaps(near=[1.0, 2, 3]), "points", reference={"seen": 4.0})
    assert [[x for x, _ in line] for (line,) in filter(None, references(both).values())] == [[4.0, 4.0]]
    beyond = figures.paired_differences(gaps(near=[1.0, 2, 3]), "points", 3, {"seen": 4.0, "task": -2.0})
    assert [[x for x, _ in line] for (line,) in references(beyond).values()] == [[-2.0, -2.0], [3, 3]]
    assert not [text for axes in beyond.axes for text in axes.texts]
    assert sorted(labels_of(beyond.legends[0].get_texts())) == [
        "best without training",
        "best without training, class-incremental: +4.0, beyond the edge",
    ]
    dots = figures.classes_of_clients(classes({"a": [[10.0, 30]]}), ["a"], "%", reference={"task": 55.0})
    assert [[y for _, y in line] for (line,) in filter(None, references(dots).values())] == [[55.0, 55.0]]


def test_a_panel_names_its_data_set_if_that_is_known():
    rows = accuracies({"x": [[80, 70]]}).assign(dataset="cifar100")
    assert figures.curves(rows).axes[0].get_title("left") == "CIFAR-100, task-masked"


def test_a_point_stands_at_its_own_values():
    (axes,) = FIGURES["labelled_points"]().axes
    assert lines(axes) == {"a": ([0], [50]), "b": ([3], [55])} and (axes.get_xlabel(), axes.get_ylabel()) == ("MB", "%")
    assert axes.get_xscale() == "symlog" and labels_of(axes.get_xticklabels())[0] == "0"
    assert names_at_ends(axes) == ["b", "a"]


def test_a_difference_has_its_mean_interval_and_seeds():
    (axes, _) = figures.paired_differences(gaps(near=[1.0, 2, 3], once=[7.0, np.nan, np.nan]), "points").axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["near", "once"]
    seeds = {
        line.get_ydata()[0] - 0.22: sorted(line.get_xdata())
        for line in axes.lines
        if line.get_marker() == "|" and line.get_markersize() == 7
    }
    assert seeds == {0: [1, 2, 3], 1: [7]}
    near, once = axes.containers
    assert [bar[0].get_xydata().tolist() for bar in (near, once)] == [[[2, 0]], [[7, 1]]]
    (interval,) = near[2][0].get_segments()
    assert interval[:, 0] == pytest.approx([2 - 2.4841, 2 + 2.4841], abs=1e-3) and not once[2]


def test_every_score_has_its_own_panel_of_differences():
    both = pd.concat([gaps(("task",), x=[1.0, 2, 3]), gaps(("seen",), x=[4.0, 5, 6])])
    figure = figures.paired_differences(both, "points")
    assert {axes.get_title(): axes.containers[0][0].get_xdata()[0] for axes in figure.axes} == {
        "task-masked": 2,
        "class-incremental": 5,
    }


def test_every_score_has_its_own_panel_of_curves_and_classes():
    rows = [accuracies({"x": [[80, 70]]}, ("task",)), accuracies({"x": [[30, 20]]}, ("seen",))]
    panels = figures.curves(pd.concat(rows)).axes
    drawn = {axes.get_title("left"): lines(axes)["x"][1] for axes in panels}
    assert drawn == {"task-masked": [80, 70], "class-incremental": [30, 20]}
    rows = [classes({"a": [[90.0]]}, ("task",)), classes({"a": [[40.0]]}, ("seen",))]
    panels = figures.classes_of_clients(pd.concat(rows), ["one"], "%").axes
    assert {axes.get_title(): axes.lines[0].get_ydata()[0] for axes in panels} == {
        "task-masked": 90,
        "class-incremental": 40,
    }


def test_an_axis_of_differences_shows_a_point_to_either_side_and_a_panel_of_curves_two():
    (axes, _) = figures.paired_differences(gaps(near=[0.04, 0.05, 0.06]), "points").axes
    assert axes.get_xlim() == (-1, 1)
    (axes, _) = figures.paired_differences(gaps(far=[3.0, 4, 5]), "points").axes
    assert axes.get_xlim()[0] == -1 and axes.get_xlim()[1] > 5
    low, high = figures.curves(variants({"x": [[80, 80.1]]}), "variant").axes[0].get_ylim()
    assert (low, high) == pytest.approx((79.05, 81.05))


def test_a_difference_beyond_the_limit_is_an_arrow_with_its_number():
    (axes, _) = figures.paired_differences(gaps(near=[1.0, 2, 3], far=[-41.0, -42, -43]), "points", limit=10).axes
    assert axes.get_xlim() == (-10, 10)
    assert [text.get_text() for text in axes.texts] == ["-42.0"]
    assert [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "<"] == [[[-10, 1]]]


def test_every_class_is_a_dot_of_its_client_and_variant():
    values = {"a": [[30.0, 10], [50, 70]], "b": [[20.0, 20], [90, 80]]}
    for axes in figures.classes_of_clients(classes(values), ["one", "two"], "%").axes:
        dots = [line for line in axes.lines if line.get_linestyle() == "None"]
        found = {(round(np.mean(line.get_xdata())), line.get_color()): list(line.get_ydata()) for line in dots}
        blue, red = colours.HUES[:2]
        assert found == {(0, blue): [10, 30], (1, blue): [50, 70], (0, red): [20, 20], (1, red): [80, 90]}
        assert sorted(line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "-") == [
            20,
            20,
            60,
            85,
        ]  # the means


def test_traffic_has_a_line_for_each_system_that_sends():
    up, down = figures.traffic_by_task({"up": TRAFFIC, "down": TRAFFIC * 2}, "MB").axes
    assert set(lines(up)) == {"x", "y"} and lines(down)["x"][1] == [2] * 10
    assert (
        lines(up)["y"][0] == TRAFFIC.index.tolist()
        and lines(up)["y"][1][1:] == list(range(1, 10))
        and np.isnan(lines(up)["y"][1][0])
    )


def test_growth_is_drawn_by_size_beside_a_linear_one():
    first, second = FIGURES["growth"]().axes[:2]
    assert (first.get_title(), second.get_title()) == ("clients", "tasks")
    assert lines(first) == {"x": ([1, 2], [1, 2]), "y": ([1, 2], [3, 9]), "linear": ([1, 2], [1, 2])}
    assert [list(line.get_ydata()) for line in second.lines] == [[2, 9], [2, 4]]


def test_losses_convergence_and_forgetting_have_their_names():
    assert lines(figures.losses({"a": [3, 2], "b": [1, 5]}).axes[0]) == {"a": ([1, 2], [3, 2]), "b": ([1, 2], [1, 5])}
    (axes,) = figures.log_lines({"lr 1": [1, 0.1], "lr 2": [2, 0.2]}, [1, 10], "gap").axes
    assert lines(axes) == {"lr 1": ([1, 10], [1, 0.1]), "lr 2": ([1, 10], [2, 0.2])}
    first, second = figures.forgetting_curves({"with": ACC, "without": ACC + 5}, "task-masked").axes
    assert (first.get_title(), second.get_title()) == ("with", "without")
    assert lines(first) == {"task 1": ([1, 2], [90, 60]), "task 2": ([2], [80])} and lines(second)["task 1"] == (
        [1, 2],
        [95, 65],
    )


def shown(axes):
    """The pixels or values of a panel that shows one image; None for an empty one."""
    return np.asarray(axes.images[0].get_array()) if axes.images else None


def labels_of(ticks):
    return [text.get_text() for text in ticks]


def test_a_class_has_the_colour_of_its_task_in_the_row_of_its_client():
    counts = COUNTS.copy()
    counts[0, 0, 0], counts[1, 1, 3] = 5, 7
    left, right, bar = figures.partition_picture(counts).axes
    mesh = left.collections[0]
    held = np.ma.filled(mesh.get_array().astype(float), np.nan)
    np.testing.assert_equal(held, [[0, 1, np.nan, np.nan, 0, 1], [np.nan, np.nan, 0, 1, 1, 0]])
    assert [mesh.norm(task) for task in (0, 1)] == [0, mesh.cmap.N - 1] and labels_of(bar.get_xticklabels()) == [
        "1",
        "2",
    ]
    assert labels_of(left.get_yticklabels()) == labels_of(right.get_yticklabels()) == ["1", "2"]
    assert left.yaxis_inverted() and right.yaxis_inverted()
    assert labels_of(right.texts) == ["8", "6", "6", "10"] and labels_of(right.get_xticklabels()) == ["1", "2"]


def test_a_concentration_has_the_largest_share_of_each_draw():
    even, uneven = np.array([[0.5, 0.5], [0.4, 0.6]]), np.array([[0.9, 0.1], [0.2, 0.8]])
    drawn = lines(figures.concentration({"10": even, "0.1": uneven}).axes[0])
    assert {name: list(map(round, x)) for name, (x, _) in drawn.items()} == {"10": [50, 60], "0.1": [80, 90]}
    assert [y for _, y in drawn.values()] == [[0, 100]] * 2


def test_every_image_has_its_title():
    for places in (
        figures.image_grid(IMAGES[:3], list("abc"), columns=2).axes,
        figures.sheets(dict(zip("abc", IMAGES))).axes,
    ):
        assert [axes.get_title() for axes in places] == ["a", "b", "c", ""]
        assert all(np.array_equal(shown(axes), pixels) for axes, pixels in zip(places, IMAGES[:3]))
        assert shown(places[3]) is None


def test_a_score_stands_beside_its_class_and_the_image_on_the_left():
    left, right = figures.class_scores(IMAGES[1], [("a", 0.75), ("b", 0.25)], "b").axes
    assert (np.asarray(left.images[0].get_array()) == IMAGES[1]).all() and left.get_title() == "b"
    assert [bar.get_width() for bar in right.patches] == [0.75, 0.25]
    assert [text.get_text() for text in right.get_yticklabels()] == ["a", "b"] and right.yaxis_inverted()


def test_a_figure_is_written_in_the_format_of_its_ending(tmp_path, one_line):
    figure = FIGURES["losses"]()
    assert figures.save_figure(figure, tmp_path / "new" / "one.svg").read_text("utf-8").startswith("<?xml")
    with pytest.raises(LsclError) as caught:
        figures.save_figure(figure, tmp_path / "one.txt")
    one_line(caught, "one.txt", ".png")


def test_an_update_stands_below_its_image_in_three_parts():
    sizes = np.arange(1.0, 13).reshape(2, 6, 1) * [1, 2]  # (images, 3 parts of 2 patches, 2 patches)
    deltas = sizes.repeat(2, 1).repeat(2, 2) * draw.choice([-1, 1], (2, 12, 4))
    places = figures.update_heatmaps(IMAGES[:2], deltas, blocks=2).axes
    for k in range(2):
        assert np.array_equal(shown(places[k]), IMAGES[k])
        assert shown(places[2 + k]) == pytest.approx(sizes[k])
        assert places[2 + k].images[0].get_clim() == (0, 24)
        assert [line.get_ydata()[0] for line in places[2 + k].lines] == [1.5, 3.5]
    assert labels_of(places[2].get_yticklabels()) == ["query", "key", "value"]
    assert list(places[2].get_yticks()) == [1, 3, 5]


def test_a_similarity_stands_between_the_images_of_its_row_and_column():
    figure = figures.similarity_heatmap(np.array([[1, 0.2], [0.7, 0.9]]), IMAGES[:2], "cosine")
    axes = figure.axes[0]
    assert axes.collections[0].get_array().reshape(2, 2).tolist() == [[1, 0.2], [0.7, 0.9]] and axes.yaxis_inverted()
    figure.draw_without_rendering()
    places = set()
    for inset in axes.child_axes:
        box = inset.get_window_extent()
        x, y = axes.transData.inverted().transform([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
        side, number = ("row", int(y)) if x < 0 else ("column", int(x))
        assert np.array_equal(shown(inset), IMAGES[number])
        places.add((side, number))
    assert places == {("row", 0), ("row", 1), ("column", 0), ("column", 1)}


def test_a_part_of_an_update_has_a_dot_per_image_and_its_mean():
    (axes,) = figures.update_sizes({"A": np.array([1.0, 3]), "B": np.array([5.0, 9])}).axes
    names = labels_of(axes.get_yticklabels())
    rows = [(names[round(np.mean(line.get_ydata()))], line.get_marker(), list(line.get_xdata())) for line in axes.lines]
    assert rows == [("A", ".", [1, 3]), ("A", "None", [2, 2]), ("B", ".", [5, 9]), ("B", "None", [7, 7])]


def test_attention_stands_below_its_image_without_with_and_as_their_difference():
    off, on = np.arange(8.0).reshape(2, 2, 2), np.arange(8.0).reshape(2, 2, 2)[:, ::-1] * 2
    places = np.reshape(figures.attention(IMAGES[:2], off, on).axes[:8], (4, 2))
    for column in range(2):
        expected = (IMAGES[column], off[column], on[column], on[column] - off[column])
        assert all(np.array_equal(shown(axes), values) for axes, values in zip(places[:, column], expected))
        assert [axes.images[0].get_clim() for axes in places[1:, column]] == [(0, 14), (0, 14), (-9, 9)]
    assert [axes.get_ylabel() for axes in places[1:, 0]] == ["without", "with", "difference"]


def test_features_keep_their_distances_classes_and_sides():
    before, after, labels = draw.normal(size=(5, 2)), 3 + draw.normal(size=(5, 2)), np.array([2, 0, 2, 0, 2])
    panels = figures.feature_change(before, after, labels, ["a", "b", "c"]).axes
    assert [axes.get_title() for axes in panels] == ["frozen model", "with the written updates"]
    found = np.empty((2, 5, 2))
    for axes, points in zip(panels, found):
        drawn = {one.get_label(): np.asarray(one.get_offsets()) for one in axes.collections}
        assert set(drawn) == {"a", "c"}
        points[labels == 0], points[labels == 2] = drawn["a"], drawn["c"]
    distances = lambda points: np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert distances(found.reshape(10, 2)) == pytest.approx(distances(np.concatenate([before, after])))


# ---- how it looks


def pixels(figure):
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return np.asarray(Image.open(drawn).convert("RGB"))


@pytest.mark.parametrize("name", FIGURES)
def test_something_is_drawn(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    assert len(np.unique(pixels(figure).reshape(-1, 3), axis=0)) > 5
    assert len(figure.axes) > 0


def test_no_figure_function_is_left_out():
    public = {name for name, thing in vars(figures).items() if hasattr(thing, "__wrapped__")} - {
        "cls_attention"
    }  # it only computes
    assert public == set(FIGURES)


def test_a_notebook_gets_one_small_svg_for_both_modes():
    figure = FIGURES["curves"]()
    svg = figure._repr_svg_()
    assert svg.startswith("<svg") and svg == figure._repr_svg_()  # the same bytes every time
    rules = svg[svg.index("<style>") : svg.index("</style>")]
    light, dark = rules.split("@media (prefers-color-scheme:dark)")
    for pair in colours.PAGE.values():
        assert pair[0] in light and pair[1] in dark
    body = svg[svg.index("</style>") :].lower()
    assert not any(colour.lower() in svg[: svg.index("<style>")] + body for colour in colours.PAGE)
    assert "class-incremental" in svg and "<metadata" not in svg and len(svg) < 40_000
    used = set(re.findall(r'class="([^"]+)"', body))
    assert used and all(f".{name}{{" in rules for name in used)


def test_small_numbers_in_a_figure_keep_their_digits_and_places_do_not():
    rates = [1.4e-05, 0.0001, 0.0005, 0.123456]
    svg = figures.log_lines({"a": [1.0, 2, 3, 4]}, rates, "share")._repr_svg_()
    assert all(f">{rate:g}</text>" in svg for rate in rates)
    drawn = "".join(re.findall(r' d="([^"]*)"', svg))
    assert drawn and not re.search(r"\d\.\d{3}", drawn)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_legible_on_a_narrow_page(name):
    narrow_page_is_legible(FIGURES[name]())


def narrow_page_is_legible(figure, width=360, least=7.0):
    """The smallest text of a figure, in pixels, where the figure is shrunk to a page of 400 pixels with its margins."""
    figure.draw_without_rendering()
    shown = [text for text in figure.findobj(mpl.text.Text) if text.get_text().strip() and text.get_visible()]
    smallest = min(text.get_fontsize() * (0.7 if "^{" in text.get_text() else 1) for text in shown)  # exponents
    assert smallest * min(1.0, width / (figure.get_figwidth() * 96)) * 96 / 72 >= least


def test_a_system_has_one_colour_in_every_figure_and_the_best_of_the_others_has_one():
    names = [
        "Fed-LSCL (O2D exact)",
        "Fed-LSCL (O2D gradient)",
        *map(str, range(12)),
        label_of("local_head"),
        "federated ridge",
        "federated ridge (2,000 random features)",
    ]
    looks = figures.system_styles(names, "7")
    shown = {name: look["color"] for name, look in looks.items() if look["color"] != colours.NEUTRAL}
    ridge = colours.ROLES["control"]
    assert shown == {
        "Fed-LSCL (O2D exact)": colours.ROLES["own"],
        "7": colours.ROLES["best"],
        label_of("local_head"): figures.system_colours()["local_head"],
        "federated ridge": ridge,
        "federated ridge (2,000 random features)": ridge,
    }
    triples = {(look["color"], look["marker"], look["linestyle"]) for look in looks.values()}
    assert len(triples) == len(names)
    fewer = figures.system_styles(names[:1:-1], "3")
    assert {fewer[name]["color"] for name in names[-2:]} == {ridge} and fewer["3"]["color"] == shown["7"]
    orders = {name: look["zorder"] for name, look in looks.items()}
    assert orders["0"] < orders["7"] < orders[names[0]]


def test_every_control_and_variant_has_a_colour_of_its_own():
    ours = {name for name in METHODS if group_of(name) in ("control", "variant")}
    found = figures.system_colours()
    assert set(found) == {*ours, METHODS.find_role("own")} and found["fed_ridge"] == colours.ROLES["control"]
    assert {*found.values(), colours.ROLES["best"]} == set(colours.HUES) and len(set(found.values())) == len(found)


def test_names_at_the_ends_keep_their_order_and_do_not_overlap():
    rows = variants({str(i): [[50, 50 + i / 100]] for i in range(8)}, ("task",))
    figure = figures.curves(rows, "variant")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert names_at_ends(axes) == [str(i) for i in range(7, -1, -1)]
    boxes = sorted((mpl.text.Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in pairwise(boxes))
    assert boxes[-1].y1 <= axes.bbox.y1 + 1  # all lines end at the top of the panel


def test_a_line_to_a_name_reaches_it_level_at_its_middle():
    figure = figures.curves(variants({str(i): [[50, 50 + i / 100]] for i in range(8)}, ("task",)), "variant")
    figure.draw_without_rendering()
    for text in figure.axes[0].texts:
        start, elbow = text.arrow_patch.get_path().vertices[:2]
        box = mpl.text.Text.get_window_extent(text)
        (x, y), (_, level) = text.arrow_patch.get_transform().transform([start, elbow])
        assert y == pytest.approx((box.y0 + box.y1) / 2, abs=1.5) and level == pytest.approx(y, abs=0.01)
        assert 0 < box.x0 - x < 6


def test_names_without_room_in_the_panel_keep_their_distance():
    places = figures._spread(np.array([1.0, 1.0, 1.0]), np.array([5.0, 5.0]), 0.0, 8.0)
    assert np.diff(places).tolist() == [5, 5] and places.mean() == pytest.approx(1)


def test_the_readers_style_is_left_alone():
    before = dict(mpl.rcParams)
    FIGURES["grouped_bars"]()
    assert dict(mpl.rcParams) == before


def test_more_systems_than_colours():
    many = {str(i): draw.uniform(size=(2, 3)) for i in range(figures.LOOKS + 2)}
    drawn = [line for line in figures.curves(accuracies(many)).axes[0].lines if not line.get_label().startswith("_")]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in drawn}) == figures.LOOKS + 2


class TestAttention:
    def test_rows_sum_to_less_than_one(self):
        model = foundation("tiny", 1)
        z = model.prefix(
            torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        )
        maps = figures.cls_attention(model, z)
        assert maps.shape == (3, 4, 4)
        sums = maps.sum((1, 2))
        assert (sums > 0).all() and (sums < 1).all()  # the rest is CLS's attention to itself

    @pytest.mark.parametrize("adapted", [False, True])
    def test_it_is_the_attention_that_the_block_uses(self, monkeypatch, adapted):
        """Queries and keys are caught where the block itself hands them to the attention."""
        model, rng = foundation("tiny", 1), torch.Generator().manual_seed(1)
        z = model.prefix(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=rng))
        update = (
            LowRank(torch.randn(2, 4, 32, generator=rng), torch.randn(2, 96, 4, generator=rng), 0.05)
            if adapted
            else None
        )
        caught, real = [], F.scaled_dot_product_attention
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: caught.append((q, k)) or real(q, k, v))
        model.suffix(z, update, keep=None)
        q, k = caught[0]
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)[:, :, 0, 1:].mean(1).reshape(2, 4, 4)
        assert figures.cls_attention(model, z, update) == pytest.approx(weights.detach().numpy(), abs=1e-6)


def test_trials_have_a_panel_for_every_axis_and_a_ring_around_the_choice():
    trials = TRIED
    other = pd.DataFrame(trials.drop(columns="rank"))
    other.attrs = {}
    figure = figures.trial_slices({"LoRM": trials, "own head": other}, "class-incremental %", columns=2)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [(axes.get_title(), axes.get_xlabel(), axes.get_xscale()) for axes in shown] == [
        ("LoRM", "lr", "log"),
        ("LoRM", "rank", "linear"),
        ("own head", "lr", "linear"),
    ]
    for axes in shown:
        x = trials[axes.get_xlabel()]
        assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines] == [
            ([x[0]], [50.0]),
            ([x[1], x[2]], [40.0, 45.0]),
            ([x[2]], [45.0]),
        ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1 task", "2 tasks", "chosen"]
    with pytest.raises(LsclError, match="no trial has a score yet"):
        figures.trial_slices({"LoRM": trials.iloc[3:]}, "class-incremental %")


def test_rows_of_reconstructions_have_their_names():
    rows = {name: np.full((4, 12, 3), value, np.uint8) for name, value in (("true image", 9), ("own CNN", 200))}
    figure = figures.reconstructions_by_attacker(rows)
    assert [axes.get_title() for axes in figure.axes] == ["true image", "own CNN"]
    assert [int(axes.images[0].get_array()[0, 0, 0]) for axes in figure.axes] == [9, 200]


def test_noise_has_a_line_per_system_over_epsilon_and_a_level_without():
    rows = pd.DataFrame(
        [("A", seed, epsilon, "client", 50 + 10 * (epsilon > 1) + seed) for seed in (0, 1) for epsilon in (0.1, 10.0)]
        + [("A", 0, np.nan, "", 75.0), ("B", 0, 3.0, "image", 20.0)],
        columns=["label", "seed", "epsilon", "unit", "seen"],
    )
    (axes,) = figures.price_of_noise(rows, "seen", "class-incremental, %").axes
    means, _, bars = axes.containers[0].lines
    assert means.get_xdata().tolist() == [0.1, 10.0] and means.get_ydata().tolist() == [50.5, 60.5]
    assert bars[0].get_segments()[0][:, 1] == pytest.approx([50.5 - 6.353, 50.5 + 6.353], abs=0.01)
    assert axes.get_xscale() == "log" and axes.get_xlabel().startswith("epsilon")
    level = next(line for line in axes.lines if list(line.get_ydata()) == [75.0, 75.0])
    assert level.get_color() == means.get_color()
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == ["A, epsilon per client", "B, epsilon per image"]
