"""The axes of a system's search space: ranges of its parameters that tuning draws trials from.

Each axis knows its Optuna distribution, how a drawn number becomes a value, and whether a value lies at an edge, so
that better ones may lie beyond.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lscl.errors import LsclError

if TYPE_CHECKING:  # an optional package
    from optuna.distributions import BaseDistribution

EDGE = 0.1  # a value in this share of a range, at either end, lies at an edge
DIGITS = 2  # significant digits of drawn numbers, so that they can be read and typed

Value = int | float | str | bool


@dataclass(frozen=True)
class Range:
    """All numbers from low to high, drawn uniformly.

    Args:
        low: the smallest.
        high: the largest.

    Raises:
        LsclError: there are none.
    """

    low: float
    high: float
    kind: ClassVar[str] = "range"
    log: ClassVar[bool] = False

    def __post_init__(self):
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise LsclError(f"{self}: low must be a number below high")

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def distribution(self) -> "BaseDistribution":
        """The axis as Optuna has it."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log)

    def to_drawn(self, value: Value) -> float:
        """The number that Optuna has for a value."""
        return float(value)

    def from_drawn(self, drawn: float) -> float:
        """The value of a number that Optuna drew, which is rounded to a few digits."""
        return min(max(float(f"{drawn:.{DIGITS}g}"), self.low), self.high)

    def place(self, value: float) -> float:
        """Where a value lies: 0 = at the lower end, 1 = at the upper one."""
        return (value - self.low) / (self.high - self.low)

    def edge(self, value: Value) -> str:
        """At which edge a value lies, in words; empty inside."""
        place = self.place(value)
        if EDGE < place < 1 - EDGE:
            return ""
        return f"in the {'lowest' if place <= EDGE else 'highest'} tenth of the range"

    def to_json(self) -> dict[str, list[Value]]:
        """The axis in JSON's types, see `axis_from_json`."""
        return {self.kind: [self.low, self.high]}

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"


@dataclass(frozen=True)
class LogRange(Range):
    """All positive numbers from low to high, drawn uniformly in their logarithm.

    Args:
        low: the smallest.
        high: the largest.

    Raises:
        LsclError: there are none.
    """

    kind: ClassVar[str] = "log_range"
    log: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.low <= 0:
            raise LsclError(f"{self}: low must be above 0")

    def place(self, value: float) -> float:
        """Where a value lies, in the logarithm: 0 = at the lower end, 1 = at the upper one."""
        return math.log(value / self.low) / math.log(self.high / self.low)


@dataclass(frozen=True)
class OneOf:
    """One of a few values, each as likely. Numbers have an order, and so edges; texts have none.

    Args:
        values: all of them, numbers in order.

    Raises:
        LsclError: fewer than two, the same twice, or numbers that are not in order.
    """

    values: tuple[Value, ...]
    kind: ClassVar[str] = "one_of"

    def __post_init__(self):
        if len(set(self.values)) != len(self.values) or len(self.values) < 2:
            raise LsclError(f"one of {self}: needs two values or more, each once")
        if self.ordered and list(self.values) != sorted(self.values):
            raise LsclError(f"one of {self}: numbers must be in order")

    @property
    def ordered(self) -> bool:
        """Whether the values are numbers."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def distribution(self) -> "BaseDistribution":
        """The places of the values as Optuna has them: its quasi-random sampler knows no categories."""
        from optuna.distributions import IntDistribution

        return IntDistribution(0, len(self.values) - 1)

    def to_drawn(self, value: Value) -> int:
        """The number that Optuna has for a value."""
        return self.values.index(value)

    def from_drawn(self, drawn: float) -> Value:
        """The value of a number that Optuna drew."""
        return self.values[int(drawn)]

    def edge(self, value: Value) -> str:
        """At which edge a value lies, in words; empty inside, and for texts."""
        if not self.ordered or value not in (self.values[0], self.values[-1]):
            return ""
        smallest, largest = ("smaller", "larger") if len(self.values) == 2 else ("smallest", "largest")
        return f"the {smallest if value == self.values[0] else largest} of {self}"

    def to_json(self) -> dict[str, list[Value]]:
        """The axis in JSON's types, see `axis_from_json`."""
        return {self.kind: list(self.values)}

    def __str__(self) -> str:
        return ", ".join(format(value, "g") if isinstance(value, float) else str(value) for value in self.values)


Axis = Range | OneOf
KINDS: dict[str, Any] = {one.kind: one for one in (Range, LogRange, OneOf)}


def axis_from_json(found: dict[str, list[Value]]) -> Axis:
    """Make an axis from what its `to_json` gave.

    Args:
        found: {kind: bounds or values}.

    Returns:
        the axis.

    Raises:
        LsclError: there is no such axis.
    """
    if len(found) == 1 and (kind := next(iter(found))) in KINDS:
        given = found[kind]
        if kind == OneOf.kind:
            return OneOf(tuple(given))
        if len(given) == 2 and all(isinstance(one, int | float) for one in given):
            return KINDS[kind](*given)
    raise LsclError(f"no axis of a search space: {str(found)[:200]!r} (allowed: {', '.join(KINDS)})")
