"""Every comparison draws the values that it was given, each under its own name."""

import numpy as np
import pandas as pd
import pytest
from test_figures import lines, names_at_ends, narrow_page_is_legible

from lscl.results import colours, comparisons

SLOPES = pd.DataFrame(
    {"published": [97.0, 86.0, 30.0], "measured here": [77.0, 83.0, 80.0], "text": ["77.0 ± 0.6", "83 ± 5", "80.0"]},
    index=["Fed-LSCL (O2D exact)", "LoRM", "FedAvg + L2P"],
)
MATRIX = np.array([[90.0, np.nan], [61.2, 80.0]])
SCALE = pd.DataFrame(
    [("written", size, seed, gap + seed) for size, gap in ((5, -3.0), (500, 2.0)) for seed in (0, 1)]
    + [("whole", 60, 0, 1.0)],
    columns=["comparison", "images", "seed", "difference"],
)
KINDS = pd.DataFrame(
    {"private": [92.0, 85.0, 66.0, 50.0], "public": [68.0, 84.0, 36.0, 64.0]},
    index=pd.MultiIndex.from_product([["task", "seen"], ["Fed-LSCL (O2D exact)", "LoRM"]], names=["mask", "label"]),
)
TRIALS = pd.DataFrame(
    {"system": ["a", "a", "b"], "tasks": [1, 2, 2], "seen": [50.0, 40.0, 45.0], "chosen": [False, True, True]}
)
FIGURES = {
    "published_slopes": lambda: comparisons.published_slopes(SLOPES),
    "accuracy_matrices": lambda: comparisons.accuracy_matrices({"a": MATRIX, "b (x = 1, y = 2)": MATRIX + 1}),
    "differences_by_scale": lambda: comparisons.differences_by_scale(SCALE, "points"),
    "private_and_public": lambda: comparisons.private_and_public(KINDS),
    "trial_spread": lambda: comparisons.trial_spread(TRIALS, "%"),
}


def test_no_figure_function_is_left_out():
    public = {
        name
        for name, thing in vars(comparisons).items()
        if hasattr(thing, "__wrapped__") and thing.__module__ == comparisons.__name__
    }
    assert public == set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_it_is_legible_on_a_narrow_page(name):
    narrow_page_is_legible(FIGURES[name]())


def test_a_slope_joins_both_values_of_a_system():
    (axes,) = FIGURES["published_slopes"]().axes
    assert lines(axes) == {
        "Fed-LSCL (O2D exact)": ([0, 1], [97, 77]),
        "LoRM": ([0, 1], [86, 83]),
        "FedAvg + L2P": ([0, 1], [30, 80]),
    }
    drawn = {line.get_label(): line.get_color() for line in axes.lines}
    assert drawn["FedAvg + L2P"] == colours.NEUTRAL != drawn["LoRM"] != drawn["Fed-LSCL (O2D exact)"]
    texts = [" ".join(text.split()) for text in names_at_ends(axes)]
    assert {"LoRM 86.0", "83 ± 5 LoRM", "77.0 ± 0.6 Fed-LSCL (O2D exact)"} <= set(texts) and len(texts) == 6


def test_a_matrix_has_its_numbers_in_its_cells():
    first, second, _ = FIGURES["accuracy_matrices"]().axes
    assert (first.get_title(), second.get_title()) == ("a", "b\n(x = 1, y = 2)")
    assert {text.get_position(): text.get_text() for text in first.texts} == {(0, 0): "90", (0, 1): "61", (1, 1): "80"}
    assert np.array_equal(first.images[0].get_array().filled(np.nan), MATRIX, equal_nan=True)
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 100)


def test_a_difference_stands_over_its_number_of_images():
    (axes,) = FIGURES["differences_by_scale"]().axes
    written, whole = (bars.lines[0] for bars in axes.containers)
    assert written.get_ydata().tolist() == [-2.5, 2.5] and written.get_xdata() == pytest.approx([5, 500], rel=0.05)
    assert whole.get_ydata().tolist() == [1.0] and axes.get_xscale() == "log"
    (low, high) = (ends[:, 1] for ends in axes.containers[0].lines[2][0].get_segments())
    assert low == pytest.approx([-2.5 - 6.353, -2.5 + 6.353], abs=1e-3) and high[1] > 8


def test_private_and_public_classes_have_markers_of_their_own():
    task, seen = FIGURES["private_and_public"]().axes
    assert (task.get_title(), seen.get_title()) == ("task-masked", "class-incremental")
    for axes, mask in ((task, "task"), (seen, "seen")):
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        filled = [line.get_markerfacecolor() != colours.GROUND for line in dots]
        found = {(kind, line.get_ydata()[0]): line.get_xdata()[0] for kind, line in zip(filled, dots)}
        rows = KINDS.loc[mask]
        assert found == {
            (kind, place): row[0 if kind else 1] for place, row in enumerate(rows.to_numpy()) for kind in (True, False)
        }
        assert all(tick.label1.get_visible() for tick in axes.xaxis.get_major_ticks())


@pytest.mark.parametrize(("best", "colour"), [(None, colours.NEUTRAL), ("LoRM", colours.ROLES["best"])])
def test_the_caller_says_which_system_is_the_best_of_the_others(best, colour):
    for axes in comparisons.private_and_public(KINDS, best).axes:
        drawn = {line.get_ydata()[0]: line.get_color() for line in axes.lines}
        assert drawn == {0: colours.ROLES["own"], 1: colour}


def test_trials_lie_in_the_row_of_their_system():
    (axes,) = FIGURES["trial_spread"]().axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]
    assert lines(axes) == {"1 task": ([50], [0]), "2 tasks": ([40, 45], [0, 1]), "chosen": ([40, 45], [0, 1])}
