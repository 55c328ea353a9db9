"""Chapter 0: the timeline shows what it was given, and its sentences follow the numbers."""

import numpy as np
import pytest
import torch

from lscl.federation.masking import mask_logits
from lscl.results import problem

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


def test_the_timeline_has_a_cell_per_client_and_task_and_the_arrows_of_all_rounds():
    figure = problem.timeline([[IMAGES, IMAGES[:2]]] * 3, 4, [[1, None]] * 3)
    (axes,) = figure.axes
    assert [one.get_text() for one in axes.get_yticklabels()] == ["client 1", "client 2", "client 3"]
    assert [one.get_text() for one in axes.get_xticklabels()] == ["task 1", "task 2"]
    arrows = [one for one in axes.texts if getattr(one, "arrow_patch", None) is not None]
    insets = axes.child_axes
    framed = [inset for inset in insets if inset.spines["left"].get_visible()]
    assert len(arrows) == 2 * 4 and len(insets) == 3 * 5 and len(framed) == 3
    assert (insets[0].images[0].get_array() == IMAGES[0]).all()


def test_arrows_have_their_numbers_at_both_ends():
    (axes,) = problem.kept_and_lost(
        {"a": {"before": 90.0, "after": 40.0}, "b": {"before": 1.0, "after": 2.0}}, "%"
    ).axes
    assert [one.get_text() for one in axes.texts if one.get_text()] == ["90", "40", "1", "2"]
    assert [line.get_xdata()[0] for line in axes.lines] == [90.0, 40.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(90, 40, "falls from 90 % to 40 %"), (40, 90, "rises from"), (50.1, 50.2, "stays at 50")],
)
def test_a_change_is_said_as_it_went(before, after, said):
    text = problem.read_change("client 1's accuracy", before, after)
    assert text.startswith("Client 1's accuracy ") and said in text


def test_a_head_learns_its_classes_and_leaves_the_others_alone():
    features = torch.eye(4).repeat(3, 1)
    labels, start = torch.arange(4).repeat(3), torch.zeros(6, 4)
    chosen = labels < 2
    head = problem.fit_head(features[chosen], labels[chosen], [0, 1], start)
    assert (mask_logits(features[chosen] @ head.T, torch.tensor([0, 1])).argmax(1) == labels[chosen]).all()
    assert (head[2:] == 0).all() and (start == 0).all()


def test_the_two_scores_by_hand_are_those_of_the_library():
    scores, labels, tasks = np.array([[3.0, 1, 2, 0], [1, 2, 3, 0], [1, 2, 0, 0]]), [0, 1, 0], ((0, 1), (2, 3))
    table = problem.scores_by_hand(scores, labels, ["circle", "square", "star", "moon"], tasks)
    assert table["its task only"] == ["circle ✓", "square ✓", "square ✗"]
    assert table["all classes met"] == ["circle ✓", "star ✗", "square ✗"]
    for column, classes in (("its task only", [0, 1]), ("all classes met", [0, 1, 2, 3])):
        answers = mask_logits(torch.from_numpy(scores), torch.tensor(classes)).argmax(1)
        assert [cell.endswith("✓") for cell in table[column]] == (answers == torch.tensor(labels)).tolist()


@pytest.mark.parametrize(
    ("kept", "free", "said"),
    [
        (
            (10.0, 11.0, 12.0),
            (40.0, 42.0, 41.0),
            "30.0 points less (95 % interval 27.5 to 32.5, n = 3). **Here Eq. 4 vis",
        ),
        (
            (40.0, 42.0, 41.0),
            (10.0, 11.0, 12.0),
            "30.0 points more (95 % interval 27.5 to 32.5, n = 3). **Here Eq. 4 mak",
        ),
        ((10.0, 40.0, 20.0), (40.0, 10.0, 22.0), "**These seeds cannot show that Eq. 4 works.**"),
        ((10.0,), (40.0,), "in one seed, from which nothing can be concluded"),
    ],
)
def test_protection_is_said_as_the_seeds_went(kept, free, said):
    assert said in problem.read_protection({"with": kept, "without": free}, {})


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ((50.0, 51.0, 49.0), "the newest task is lower: -30.0"),
        ((80.0, 81.0, 79.0), "the newest task is not separable from no change: "),
        ((99.0, 99.5, 100.0), "the newest task is higher: +19.5"),
    ],
)
def test_the_price_is_said_as_well(after, said):
    forgotten = {"with": (1.0, 2.0, 3.0), "without": (4.0, 5.0, 7.0)}
    others = {"the newest task": {"with": after, "without": (80.0, 80.5, 79.5)}}
    assert said in problem.read_protection(forgotten, others)
