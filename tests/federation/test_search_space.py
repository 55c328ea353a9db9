"""The axes of a search space."""

import pytest

from lscl.errors import LsclError
from lscl.federation.search_space import LogRange, OneOf, Range, axis_from_json

RATES, SHARES, RANKS, NAMES = LogRange(1e-4, 1), Range(0, 1), OneOf((1, 4, 16)), OneOf(("plain", "holders"))
AXES = (RATES, SHARES, RANKS, NAMES, OneOf((0.1, 1.0)))
every = pytest.mark.parametrize("axis", AXES, ids=str)


@pytest.mark.parametrize(
    ("axis", "value", "says"),
    [
        (RATES, 1e-4, "in the lowest tenth of the range"),
        (RATES, 2e-4, "in the lowest tenth of the range"),  # in the logarithm
        (RATES, 3e-4, ""),
        (RATES, 0.3, ""),
        (RATES, 0.5, "in the highest tenth of the range"),
        (SHARES, 0.05, "in the lowest tenth of the range"),
        (SHARES, 0.5, ""),
        (SHARES, 0.95, "in the highest tenth of the range"),
        (RANKS, 1, "the smallest of 1, 4, 16"),
        (RANKS, 4, ""),
        (RANKS, 16, "the largest of 1, 4, 16"),
        (OneOf((0.1, 1.0)), 0.1, "the smaller of 0.1, 1"),
        (OneOf((0.1, 1.0)), 1.0, "the larger of 0.1, 1"),
        (NAMES, "plain", ""),
    ],
)
def test_edges(axis, value, says):
    assert axis.edge(value) == says


@every
def test_an_axis_outlives_json_and_its_ends_outlive_optuna(axis):
    assert axis_from_json(axis.to_json()) == axis
    ends = axis.values if isinstance(axis, OneOf) else (axis.low, axis.high)
    for value in (ends[0], ends[-1]):
        assert value in axis and axis.from_drawn(axis.to_drawn(value)) == value
        assert axis.distribution()._contains(axis.to_drawn(value))


def test_what_is_outside_is_not_in_an_axis():
    assert 2 not in RATES and "x" not in RATES and 2 not in RANKS and "mean" not in NAMES


def test_drawn_numbers_have_few_digits_and_stay_inside():
    assert RATES.from_drawn(0.0123456) == 0.012 and LogRange(0.123, 1).from_drawn(0.1231) == 0.123


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Range(1, 1), "1 to 1: low must be a number below high"),
        (lambda: Range(0, float("nan")), "low must be a number below high"),
        (lambda: LogRange(0, 1), "0 to 1, log: low must be above 0"),
        (lambda: OneOf((1,)), "one of 1: needs two values or more, each once"),
        (lambda: OneOf((1, 1)), "needs two values or more, each once"),
        (lambda: OneOf((4, 1)), "one of 4, 1: numbers must be in order"),
        (lambda: axis_from_json({"cube": [1, 2]}), "no axis of a search space"),
        (lambda: axis_from_json({"range": [1]}), "allowed: range, log_range, one_of"),
        (lambda: axis_from_json({"range": ["a", "b"]}), "no axis of a search space"),
    ],
)
def test_what_is_no_axis_is_one_line(make, says, one_line):
    with pytest.raises(LsclError) as caught:
        make()
    one_line(caught, says)
