"""Tables that several pages share, made of the frames as in the notebooks: filter, group, mean with interval."""

import pandas as pd

from lscl.results.frames import changes, final_rows
from lscl.results.labels import COST_LABELS, GROUPS, HEAD_LABELS, MASK_LABELS, SCORE_HEADS, SCORES, group_of
from lscl.results.statistics import estimates, gap_text

COUNTED = ("mb_up", "mb_down", "trained_parameters", "tflop")  # the costs that systems are compared by


def score_table(scores: pd.DataFrame) -> pd.DataFrame:
    """A row per system with its group (`labels.GROUPS`), mean ± half of the 95 % interval over n seeds.

    Accuracies in percent under the three masks after the last task, over all tasks of all clients; forgetting and
    backward transfer in points under the class-incremental mask.
    """
    keys = ["label", "seed"]
    by_seed = (
        final_rows(scores)
        .pivot_table("accuracy", keys, "mask", sort=False)[list(MASK_LABELS)]
        .rename(columns=SCORE_HEADS)
    )
    moved = changes(scores[scores["mask"] == "seen"]).groupby(keys)[["forgetting", "backward transfer"]].mean()
    table = estimates(by_seed.join(moved), "label")
    methods = scores.drop_duplicates("label").set_index("label")["method"]
    table.insert(0, "group", [GROUPS[group_of(methods[label])] for label in table.index])
    return table


def heads_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Both heads of every system on the same features: what the features still tell, beside what the head makes of it.

    Args:
        scores: rows of `lscl.results.frame` with head = None.

    Returns:
        A row per system whose closed-form head was tested: n, final accuracies of both heads under both scores, mean ±
        half of the 95 % interval, and the gain of the closed form in class-incremental points, seed by seed.
    """
    keys, end = ["label", "seed"], final_rows(scores[scores["mask"].isin(SCORES)])
    by_seed = end.pivot_table("accuracy", keys, ["mask", "head"], sort=False)
    by_seed = by_seed.reindex(columns=pd.MultiIndex.from_product([SCORES, HEAD_LABELS])).dropna()
    gain = by_seed["seen"]["ridge"] - by_seed["seen"]["trained"]
    by_seed.columns = [f"{MASK_LABELS[mask]} %, {HEAD_LABELS[head]}" for mask, head in by_seed.columns]
    return estimates(by_seed, "label").join(gap_text(gain, "label", "closed form minus trained, class-incremental"))


def cost_table(costs: pd.DataFrame) -> pd.DataFrame:
    """A row per system, means over the seeds: the columns of `labels.COST_LABELS`."""
    return format_numbers(costs.groupby("label", sort=False)[list(COST_LABELS)].mean(), COST_LABELS).rename_axis(
        "label"
    )


def cost_ratios(costs: pd.DataFrame) -> pd.DataFrame:
    """What every other system costs, as multiples of the first one's, over the seeds that both have.

    Args:
        costs: rows of `lscl.results.costs_frame` on one data set.

    Returns:
        a row per other system; a dash where the first one spends nothing, or where a number is not known.
    """
    counted = [COST_LABELS[cost][0] for cost in COUNTED]
    by_seed = costs.pivot_table(list(COUNTED), "seed", "label", sort=False, dropna=False)
    first, *others = costs["label"].unique()
    rows = {}
    for name in others:
        row = []
        for cost in COUNTED:
            pairs = by_seed[cost].reindex(columns=[first, name]).dropna()
            ours, theirs = pairs[first], pairs[name]
            row.append(f"{theirs.sum() / ours.sum():.2g}" if ours.any() else "–")
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index", columns=counted).rename_axis("label")


def format_numbers(numbers: pd.DataFrame, columns: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """Numbers as text, a dash for NaN.

    Args:
        numbers: a table of numbers.
        columns: {column: (head in the table, form of a number)}, in the order of the table.

    Returns:
        a table of these columns.
    """
    shown = {
        head: numbers[name].map(lambda value, form=form: "–" if pd.isna(value) else format(value, form))
        for name, (head, form) in columns.items()
    }
    return pd.DataFrame(shown)
