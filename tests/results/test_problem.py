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


LESS, MORE, OPEN = (10.0, 11.0, 12.0), (40.0, 42.0, 41.0), (40.0, 10.0, 22.0)


@pytest.mark.parametrize(
    ("kept", "free", "said"),
    [
        (LESS, MORE, "30.0 points less (95 % interval 27.5 to 32.5, n = 3)."),
        (LESS, MORE, "**Eq. 4 reduces forgetting.**"),
        (MORE, LESS, "30.0 points more (95 % interval 27.5 to 32.5, n = 3)."),
        (MORE, LESS, "**Eq. 4 makes forgetting worse.**"),
        ((10.0, 40.0, 20.0), OPEN, "**These seeds cannot show that Eq. 4 reduces forgetting.**"),
        ((10.0,), (40.0,), "in one seed, from which nothing can be concluded"),
    ],
)
def test_protection_is_said_as_the_seeds_went(kept, free, said):
    same = {"with": kept, "without": kept}
    assert said in problem.read_protection({"with": kept, "without": free}, same, {})


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (LESS, "**Eq. 4 reduces forgetting, and the client learns less that is new.** What was never learned"),
        ((50.0, 52.0, 51.0), "**Eq. 4 reduces forgetting, and the client learns more that is new.**"),
        (OPEN, "**Eq. 4 reduces forgetting.**"),
    ],
)
def test_less_forgetting_by_less_learning_is_said(after, said):
    learned = {"with": after, "without": MORE}
    text = problem.read_protection({"with": LESS, "without": MORE}, learned, {})
    assert said in text and (problem.NEVER_LEARNED in text) == (after == LESS)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ((50.0, 51.0, 49.0), "The accuracy on all tasks is lower: -30.0"),
        ((80.0, 81.0, 79.0), "The accuracy on all tasks does not change measurably: "),
        ((99.0, 99.5, 100.0), "The accuracy on all tasks is higher: +19.5"),
    ],
)
def test_the_price_is_said_as_well(after, said):
    forgotten = {"with": (1.0, 2.0, 3.0), "without": (4.0, 5.0, 7.0)}
    others = {"all tasks": {"with": after, "without": (80.0, 80.5, 79.5)}}
    assert said in problem.read_protection(forgotten, {"with": LESS, "without": MORE}, others)


@pytest.mark.parametrize(
    ("kept", "free", "says"),
    [
        (0.18, 1.34, "**7.44 times** as large, or 2.7 times as far. For two unrelated vectors"),
        (0.5, 0.6, "Here the equation slows the drift down, it does not stop it."),
        (0.001, 0.6, "Here the equation slows the drift down, almost to nothing."),
        (0.6, 0.54, "**0.90 times** as large, or 0.9 times as far."),
        (0.6, 0.54, "Here the equation does not slow the drift down."),
        (0.6, 0.599, "Here the equation makes no difference to the drift."),
        (0.0, 0.0, "0.00 without it. For two unrelated"),
    ],
)
def test_drift(kept, free, says):
    assert says in problem.read_drift(kept, free)
