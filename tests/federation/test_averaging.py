"""Weighted averages of uploads."""

import pytest
import torch

from lscl.federation.averaging import average, average_rows, clip_changes, coordinate_median


def test_the_average_is_weighted_by_hand():
    states = {
        0: {"w": torch.tensor([[1.0, 4.0]]), "b": torch.tensor(2.0)},
        3: {"w": torch.tensor([[5.0, 0.0]]), "b": torch.tensor(-2.0)},
    }
    merged = average(states, {0: 30.0, 3: 10.0})
    assert merged["w"].tolist() == [[2.0, 3.0]] and merged["b"].item() == 1.0


def test_of_integer_buffers_the_largest_is_taken():
    states = {
        0: {"count": torch.tensor(7), "at": torch.tensor([1, 9])},
        1: {"count": torch.tensor(4), "at": torch.tensor([2, 3])},
    }
    merged = average(states, {0: 1.0, 1: 9.0})
    assert merged["count"].item() == 7 and merged["at"].tolist() == [2, 9]
    assert merged["count"].dtype == torch.int64


def test_float_buffers_are_averaged_in_their_own_type():
    states = {k: {"mean": torch.full((2,), k, dtype=torch.float16)} for k in range(3)}
    merged = average(states, {0: 1.0, 1: 1.0, 2: 2.0})
    assert merged["mean"].dtype == torch.float16 and merged["mean"].tolist() == [1.25, 1.25]


def test_one_state_alone_is_returned_exactly():
    state = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0)), "n": torch.tensor([3])}
    merged = average({4: state}, {4: 37.0})
    assert torch.equal(merged["w"], state["w"]) and torch.equal(merged["n"], state["n"])


def test_the_average_is_exact_in_float64():
    states = {k: {"w": torch.tensor([1e8, 1e-8, 1.0])} for k in range(7)}
    assert torch.equal(average(states, {k: 0.1 + k for k in range(7)})["w"], states[0]["w"])


def test_a_row_is_averaged_over_those_that_trained_it():
    before = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [9.0, 8.0]])
    rows = {
        0: torch.tensor([[1.0, 2.0], [4.0, 4.0], [7.0, 7.0], [0.0, 0.0]]),
        1: torch.tensor([[5.0, 6.0], [6.0, 8.0], [3.0, 1.0], [0.0, 0.0]]),
    }
    holders = {0: torch.tensor([True, True, False, False]), 1: torch.tensor([False, True, True, False])}
    merged = average_rows(before, rows, holders, {0: 30.0, 1: 10.0})
    assert merged.tolist() == [[1.0, 2.0], [4.5, 5.0], [3.0, 1.0], [9.0, 8.0]]
    assert before.tolist()[0] == [0.0, 0.0]


def test_rows_of_a_bias_are_single_numbers():
    rows = {0: torch.tensor([1.0, 2.0, 3.0]), 1: torch.tensor([3.0, 4.0, 5.0])}
    holders = {0: torch.tensor([True, True, False]), 1: torch.tensor([True, False, False])}
    assert average_rows(torch.zeros(3), rows, holders, {0: 1.0, 1: 1.0}).tolist() == [2.0, 2.0, 0.0]


def test_rows_that_everybody_holds_are_the_plain_average():
    rows = {k: torch.randn(3, 2, generator=torch.Generator().manual_seed(k)) for k in range(3)}
    holders, weights = {k: torch.ones(3, dtype=torch.bool) for k in range(3)}, {0: 5.0, 1: 1.0, 2: 2.0}
    assert torch.allclose(
        average_rows(torch.zeros(3, 2), rows, holders, weights),
        average({k: {"w": rows[k]} for k in rows}, weights)["w"],
    )


@pytest.mark.parametrize("weights", [{0: 0.0, 1: 0.0}, {0: -3.0, 1: 3.0}, {0: -3.0, 1: 1.0}])
def test_without_a_positive_sum_of_weights_all_count_the_same(weights):
    states = {0: {"w": torch.tensor([1.0, 2.0])}, 1: {"w": torch.tensor([3.0, 6.0])}}
    assert average(states, weights)["w"].tolist() == [2.0, 4.0]
    rows, holders = {k: state["w"] for k, state in states.items()}, {k: torch.ones(2, dtype=torch.bool) for k in states}
    assert average_rows(torch.tensor([7.0, 8.0]), rows, holders, weights).tolist() == [7.0, 8.0]


def test_changes_longer_than_the_median_one_are_shortened_to_it():
    before = {"w": torch.zeros(2), "n": torch.tensor(1)}
    states = {k: {"w": torch.tensor([length, 0.0]), "n": torch.tensor(k)} for k, length in enumerate((1.0, 2.0, -90.0))}
    clipped = clip_changes(states, before)
    assert [clipped[k]["w"].tolist() for k in range(3)] == [[1.0, 0.0], [2.0, 0.0], [-2.0, 0.0]]
    assert [int(clipped[k]["n"]) for k in range(3)] == [0, 1, 2]


def test_the_median_is_taken_number_by_number():
    states = {
        k: {"w": torch.tensor(row), "n": torch.tensor(k)} for k, row in enumerate(([1.0, 9], [2, -1e9], [1e9, 5]))
    }
    merged = coordinate_median(states)
    assert merged["w"].tolist() == [2.0, 5.0] and int(merged["n"]) == 2
    assert coordinate_median({k: states[k] for k in (0, 1)})["w"].tolist()[0] == 1.5


def test_unchanged_states_stay_as_they_are():
    before = {"w": torch.ones(3)}
    assert torch.equal(clip_changes({0: before, 1: before}, before)[1]["w"], before["w"])
