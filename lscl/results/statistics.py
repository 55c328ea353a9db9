"""Statistics of a few values, one per seed: means with intervals, paired differences, corrected p values.

"±" means one thing in all tables and figures: half the width of the 95 % t interval of the mean.
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

ONE_SEED = "with one seed nothing can be concluded"
TIED = "not told apart from it by these seeds, the interval holding zero"
APART = "told apart from it, the interval leaving out zero"
VERDICTS = (ONE_SEED, TIED, APART)


@dataclass(frozen=True)
class Estimate:
    """The mean of n values, half the width of its 95 % t interval (NaN for n = 1), and p of the t test of a zero mean.

    Of paired differences, p is that of the paired t test.
    """

    mean: float
    n: int
    half_width: float
    p: float = math.nan

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.half_width:.1f}" if self.n > 1 else f"{self.mean:.1f}"

    @property
    def interval(self) -> str:
        """The 95 % interval as text."""
        return (
            f"{self.mean - self.half_width:.1f} to {self.mean + self.half_width:.1f}"
            if self.n > 1
            else "one seed, none"
        )

    @property
    def verdict(self) -> str:
        """What a difference allows to say: an entry of VERDICTS."""
        if self.n == 1:
            return ONE_SEED
        return TIED if abs(self.mean) <= self.half_width else APART

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
        # Equal values warn: their interval has no width, and p is 0 or, at zero, 1.
        warnings.simplefilter("ignore", RuntimeWarning)
        test = stats.ttest_1samp(x, 0.0)
        low, high = test.confidence_interval(0.95)
    p = float(test.pvalue) if x.std() > 0 else float(x.mean() == 0)
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


def gap_text(differences: pd.Series, by: str | list[str], head: str, interval: str = "95 % interval") -> pd.DataFrame:
    """The mean of paired differences and its 95 % interval, as two columns of text.

    Args:
        differences: one value in points per seed and row of the table.
        by: the levels of its index that name the table's rows.
        head: the name of the first column.
        interval: the name of the second column.

    Returns:
        a row per name.
    """
    gaps = {name: estimate(values) for name, values in differences.groupby(by, sort=False)}
    table = {name: {head: f"{gap.mean:+.1f}", interval: gap.interval} for name, gap in gaps.items()}
    return pd.DataFrame.from_dict(table, orient="index")


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
    """Paired t tests as a table: a row per column of `differences`, and n.

    Under every score stand the difference in points, its 95 % interval, and the p value, corrected for all rows (Holm).

    Args:
        differences: index (mask, seed), a column per row of the table, NaN where a seed is missing.
    """
    table = pd.DataFrame(index=differences.columns)
    for mask, found in differences.groupby(level="mask", sort=False):
        gaps = {name: estimate(values.dropna()) for name, values in found.items()}
        table["n"] = {name: str(gap.n) for name, gap in gaps.items()}
        table[f"{MASK_LABELS[mask]}, points"] = {name: f"{gap.mean:+.1f}" for name, gap in gaps.items()}
        intervals = {name: gap.interval if gap.n > 1 else "–" for name, gap in gaps.items()}
        table[f"95 % interval, {MASK_LABELS[mask]}"] = intervals
        table[f"p, {MASK_LABELS[mask]}"] = dict(zip(gaps, map(p_text, holm([gap.p for gap in gaps.values()]))))
    return table


def compare_with(by_seed: pd.DataFrame, first: str) -> pd.DataFrame:
    """Mean, n and 95 % interval of every column, and its paired difference from one of them, seed by seed.

    Args:
        by_seed: one row per seed, a column per row of the table.
        first: the column that the others are compared with.

    Returns:
        a row per column; the difference has its 95 % interval, the p value of the paired t test, and that value after
        Holm's correction for all rows. A column without a seed in common with `first` has dashes there.
    """
    found = {name: estimate(values.dropna()) for name, values in by_seed.items()}
    gaps = {name: estimate(values.dropna()) for name, values in differences_from(by_seed, first).items()}
    corrected = dict(zip(gaps, holm([gap.p for gap in gaps.values()])))
    rows = {}
    for name, one in found.items():
        rows[name] = {"mean %": f"{one.mean:.1f}", "n": str(one.n), "95 % interval": one.interval}
        if name not in gaps:
            rows[name] |= dict.fromkeys((f"minus {first}", "95 % interval of the difference", "p", "p, Holm"), "–")
            continue
        rows[name] |= {
            f"minus {first}": f"{gaps[name].mean:+.1f}",
            "95 % interval of the difference": gaps[name].interval,
        }
        rows[name] |= {"p": p_text(gaps[name].p), "p, Holm": p_text(corrected[name])}
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
