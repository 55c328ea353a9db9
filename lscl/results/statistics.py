"""Statistics of a few values, one per seed: means with intervals, paired differences, corrected p values.

"±" means one thing in all tables and figures: half the width of the 95 % t interval of the mean. A number has as many
digits as that interval allows.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from lscl.errors import LsclError
from lscl.results.labels import MASK_LABELS

ONE_SEED = "one seed"
TIED = "the interval contains zero"
APART = "the interval excludes zero"


@dataclass(frozen=True)
class Estimate:
    """The mean of n values, half the width of its 95 % t interval (NaN for n = 1), and p of the t test of a zero mean.

    Of paired differences, p is that of the paired t test. It is NaN for one value and for equal ones.
    """

    mean: float
    n: int
    half_width: float
    p: float = math.nan

    @property
    def decimals(self) -> int:
        """How many decimals the interval allows: two digits of a half-width that begins with 1.00 to 3.54, else one.

        This is the rule of the Particle Data Group, with at most two decimals. One value, or equal ones, have one.
        """
        if not self.half_width > 0 or math.isinf(self.half_width):
            return 1
        exponent = math.floor(math.log10(self.half_width))
        leading = self.half_width / 10**exponent
        return min(2, max(0, (1 if leading < 3.55 else 0) - exponent))

    def _text(self, value: float, sign: str = "") -> str:
        return format(value, f"{sign}z.{self.decimals}f")  # z: a zero has no minus

    def __str__(self) -> str:
        return f"{self._text(self.mean)}{self._spread}"

    @property
    def signed(self) -> str:
        """The mean with its sign, ± half of the 95 % interval: how a difference is written."""
        return f"{self._text(self.mean, '+')}{self._spread}"

    @property
    def _spread(self) -> str:
        return f" ± {self._text(self.half_width)}" if self.n > 1 else ""

    @property
    def interval(self) -> str:
        """The 95 % interval as text."""
        if self.n == 1:
            return "one seed, none"
        return f"{self._text(self.mean - self.half_width)} to {self._text(self.mean + self.half_width)}"

    @property
    def verdict(self) -> str:
        """What a difference allows to say: ONE_SEED, TIED or APART."""
        if self.n == 1:
            return ONE_SEED
        return APART if abs(self.mean) > self.half_width else TIED

    @property
    def side(self) -> int:
        """On which side of zero the interval lies wholly: 1, -1, or 0 if it holds zero or there is one value."""
        return int(np.sign(self.mean)) if self.verdict == APART else 0


def estimate(values: Iterable[float]) -> Estimate:
    """Mean, interval and t test of a few values, one per seed.

    Raises:
        LsclError: no values.
    """
    x = np.asarray(list(values), dtype=float)
    if len(x) == 0:
        raise LsclError("a mean needs at least one value")
    if len(x) == 1:
        return Estimate(float(x[0]), 1, math.nan)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Equal values warn: their interval has no width.
        warnings.simplefilter("ignore", RuntimeWarning)
        test = stats.ttest_1samp(x, 0.0)
        low, high = test.confidence_interval(0.95)
    spread = x.std() > 1e-9 * np.abs(x).max()  # else they differ by rounding only, and no t test has a meaning
    p = float(test.pvalue) if spread else math.nan
    return Estimate(float(x.mean()), len(x), float(high - low) / 2, p)


def mean_with_interval(values: Iterable[float]) -> str:
    """Mean ± half of the 95 % interval as text, for `agg` of pandas; a dash if a value was not measured."""
    found = estimate(values)
    return "–" if math.isnan(found.mean) else str(found)


def interval_of(values: Iterable[float]) -> tuple[float, float]:
    """Both ends of the 95 % interval, for `errorbar` of seaborn; those of one value are NaN."""
    found = estimate(values)
    return found.mean - found.half_width, found.mean + found.half_width


def estimates(by_seed: pd.DataFrame, by: str | list[str]) -> pd.DataFrame:
    """A table of means over the seeds.

    Args:
        by_seed: one row per seed and row of the table, numbers in the columns.
        by: the levels of its index that name the table's rows.

    Returns:
        a row per name: n, and every column as text, mean ± half of the 95 % interval.
    """
    rows = by_seed.groupby(by, sort=False)
    table = rows.agg(mean_with_interval)
    table.insert(0, "n", rows.size().astype(str))
    return table


def gap_text(differences: pd.Series, by: str | list[str], head: str) -> pd.DataFrame:
    """The mean of paired differences ± half of its 95 % interval, as a column of text.

    Args:
        differences: one value in points per seed and row of the table.
        by: the levels of its index that name the table's rows.
        head: the name of the column.

    Returns:
        a row per name.
    """
    return differences.groupby(by, sort=False).agg(lambda values: estimate(values).signed).to_frame(head)


def gaps_from(values: pd.Series, first: str, head: str) -> pd.DataFrame:
    """Every other row of a table minus one of them, seed by seed, as a column of text.

    Args:
        values: percent, index (name of the table's row, seed).
        first: the row to subtract.
        head: the name of the column.

    Returns:
        a row per other name that shares a seed with `first`; empty without that row.
    """
    name, seed = values.index.names
    if first not in values.index.get_level_values(name):
        return pd.DataFrame(columns=[head])
    gaps = values.drop(first, level=name).sub(values.xs(first, level=name), level=seed).dropna()
    return gap_text(gaps, name, head)


def differences_from(by_seed: pd.DataFrame, first: str) -> pd.DataFrame:
    """Every other column minus one, seed by seed.

    Args:
        by_seed: one row per seed, a column per variant.
        first: the column to subtract.

    Returns:
        the other columns, NaN where a seed is missing; empty if there is no such column, or no other shares a seed
        with it.
    """
    if first not in by_seed:
        return pd.DataFrame(index=by_seed.index[:0])
    return by_seed.sub(by_seed[first], axis=0).drop(columns=first).dropna(axis=1, how="all").dropna(axis=0, how="all")


def paired_tests(differences: pd.DataFrame) -> pd.DataFrame:
    """Paired differences as a table: a row per column of `differences`, and n.

    Under every score stand the difference in points ± half of its 95 % interval, and the p value of the paired t test,
    corrected for all rows (Holm).

    Args:
        differences: index (mask, seed), a column per row of the table, NaN where a seed is missing.
    """
    table = pd.DataFrame(index=differences.columns)
    for mask, found in differences.groupby(level="mask", sort=False):
        gaps = {name: estimate(values.dropna()) for name, values in found.items() if values.notna().any()}
        table["n"] = {name: str(gap.n) for name, gap in gaps.items()}
        table[f"{MASK_LABELS[mask]}, points"] = {name: gap.signed for name, gap in gaps.items()}
        table[f"p, {MASK_LABELS[mask]}"] = dict(zip(gaps, map(p_text, holm([gap.p for gap in gaps.values()]))))
    return table.fillna("–")


def compare_with(by_seed: pd.DataFrame, first: str) -> pd.DataFrame:
    """The mean of every column, and its paired difference from one of them, seed by seed.

    Args:
        by_seed: one row per seed, a column per row of the table.
        first: the column that the others are compared with.

    Returns:
        A row per column: n, the mean, and the difference, both ± half of their 95 % intervals, and the p value of the
        paired t test after Holm's correction for all rows. A column without a seed in common with `first` has dashes.
    """
    gaps = {name: estimate(values.dropna()) for name, values in differences_from(by_seed, first).items()}
    corrected = dict(zip(gaps, holm([gap.p for gap in gaps.values()])))
    rows = {}
    for name, values in by_seed.items():
        found = values.dropna()
        rows[name] = {"n": str(len(found)), "mean %": str(estimate(found)) if len(found) else "–"}
        rows[name][f"minus {first}, points"] = gaps[name].signed if name in gaps else "–"
        rows[name]["p, Holm"] = p_text(corrected[name]) if name in gaps else "–"
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("label")


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for as many tests as there are values (Holm 1979); NaN stays and does not count."""
    order = sorted((i for i, value in enumerate(values) if not math.isnan(value)), key=lambda i: values[i])
    adjusted, largest = [math.nan] * len(values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * values[i]))
        adjusted[i] = largest
    return adjusted


def p_text(value: float) -> str:
    """A p value as text; a dash for NaN."""
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
