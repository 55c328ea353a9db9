"""Tables in plain words: who is ahead and whether the seeds can tell, what a system costs, what the components do."""

import pandas as pd

from lscl.errors import LsclError
from lscl.results.labels import COST_LABELS, MASK_LABELS
from lscl.results.markdown import plain_text
from lscl.results.measurements import COMPONENT_WRITERS
from lscl.results.statistics import VERDICTS, Estimate, estimate


def read_ranking(by_seed: pd.DataFrame, mask: str, brief: bool = False) -> str:
    """Who has the highest mean, and who can be told apart from it.

    Args:
        by_seed: final accuracies (%) under `mask`, a row per seed and a column per system.
        mask: the score.
        brief: give the range of the points behind in place of each one's points and interval.

    Returns:
        sentences.

    Raises:
        LsclError: two systems without a seed in common.
    """
    means = {name: estimate(values.dropna()).mean for name, values in by_seed.items()}
    best, *others = sorted(means, key=lambda name: -means[name])
    gaps = {name: (by_seed[best] - by_seed[name]).dropna() for name in others}
    apart = [name for name, values in gaps.items() if values.empty]
    if apart:
        raise LsclError(f"{best} and {apart[0]} have no seed in common")
    found = {name: estimate(values) for name, values in gaps.items()}
    text = [f"Under the {MASK_LABELS[mask]} score the highest mean is that of {plain_text(best)}, {means[best]:.1f} %."]
    for verdict in VERDICTS:
        behind = {plain_text(name): gap for name, gap in found.items() if gap.verdict == verdict}
        if not behind:
            continue
        if brief:
            points = [f"{gap.mean:.1f}" for gap in behind.values()]
            said = f"{', '.join(behind)}, {' to '.join(dict.fromkeys((points[0], points[-1])))} points behind"
        else:
            said = "; ".join(f"{name} {_points_behind(gap)}" for name, gap in behind.items())
        text.append(f"{verdict[0].upper()}{verdict[1:]}: {said}.")
    return " ".join(text)


LEADS = {  # what a system's differences from the best other one come to
    "none": "It reaches the best under no score.",
    "some": "It is ahead under one score and behind under another.",
    "unsure": "It is ahead under every score, by less than these seeds can tell.",
    "partly": "It is ahead under every score; under one of them the seeds can tell.",
    "sure": "It is ahead under every score, and the seeds can tell.",
}


def read_lead(end: pd.DataFrame, name: str) -> str:
    """Whether a system reaches the best of all others under every score.

    Args:
        end: final accuracies (%), index (mask, seed), a column per system.
        name: the system; its seeds are compared, with the systems that have all of them.

    Returns:
        a verdict, and its difference from the best other system under each score; empty without a seed of its own.
    """
    gaps, said = [], []
    for mask, by_seed in end.groupby(level="mask", sort=False):
        ours = by_seed[name].dropna() if name in by_seed else pd.Series(dtype=float)
        others = by_seed.loc[ours.index].drop(columns=name, errors="ignore").dropna(axis=1)
        if ours.empty or others.empty:
            return ""
        best = others.mean().idxmax()
        gaps.append(estimate(ours - others[best]))
        said.append(
            f"{MASK_LABELS[mask]} {ours.mean():.1f} %, {gaps[-1].mean:+.1f} points from {plain_text(best)} "
            f"(n = {gaps[-1].n}, 95 % interval {gaps[-1].interval})"
        )
    ahead, told = sum(gap.mean > 0 for gap in gaps), sum(gap.side > 0 for gap in gaps)
    if ahead < len(gaps):
        verdict = LEADS["some" if ahead else "none"]
    else:
        verdict = LEADS["sure" if told == len(gaps) else "partly" if told else "unsure"]
    return f"{verdict} Against the best of all others: {'; '.join(said)}."


def _points_behind(gap: Estimate) -> str:
    spread = f" (95 % interval {gap.interval})" if gap.n > 1 else ""
    return f"{gap.mean:.1f} points behind{spread}"


def read_costs(costs: pd.DataFrame) -> str:
    """What the first system costs beside each other one, as a list in markdown.

    Bytes and parameters are counted, so they differ or do not. Processor time differs if the 95 % interval of the
    paired differences leaves out zero.

    Args:
        costs: rows of `lscl.results.costs_frame` on one data set.
    """
    lines = []
    for cost in ("mb_up", "mb_down", "trained_parameters", "cpu_minutes"):
        head, form = COST_LABELS[cost]
        by_seed = {name: rows.set_index("seed")[cost] for name, rows in costs.groupby("label", sort=False)}
        first, *others = by_seed
        measured = cost == "cpu_minutes"
        tied = "not told apart" if measured else "the same"
        sides: dict[str, list[str]] = {"less": [], "more": [], tied: []}
        for name in others:
            ours, theirs = by_seed[first].align(by_seed[name], join="inner")
            if ours.empty or not ours.any() or (ours + theirs).isna().any():
                continue
            gap = estimate(theirs - ours)
            margin = gap.half_width if measured else 0  # NaN for one seed, which is never told apart
            side = ("less" if gap.mean < 0 else "more") if abs(gap.mean) > margin else tied
            sides[side].append(f"{plain_text(name)} ({theirs.sum() / ours.sum():.2f} times)")
        told = "; ".join(f"{side}: {', '.join(found)}" for side, found in sides.items() if found)
        value = format(by_seed[first].mean(), form).replace("nan", "–")
        lines.append(
            f"- **{head}**, {value} for {plain_text(first)}"
            + (f". {told[:1].upper()}{told[1:]}." if told else "; nothing to compare.")
        )
    return "\n".join(lines)


def read_components(inside: pd.DataFrame) -> str:
    """What the written update and the server's step do, as a list in markdown; empty without runs that write per image.

    Args:
        inside: rows of `measurements.components_frame` on one data set.
    """
    rows = inside[inside["writer"] == COMPONENT_WRITERS["written"]]
    if rows.empty:
        return ""
    value = rows.pivot_table("value", "seed", ["measure", "images", "kind"])  # means over the tasks
    update, generator, step = (value[measure] for measure in ("update", "generator", "server_step"))
    training, test = (estimate(update[images, "own"] - update[images, "none"]) for images in ("training", "test"))
    about, elsewhere = (estimate(update[images, "own"] - update[images, "another"]) for images in ("training", "test"))
    gains = {1: "gains", 0: "shows neither gain nor loss", -1: "loses"}
    overfits = training.side == 1 and test.side < 1
    lines = [
        f"- **The written update {gains[training.side]} on training images and {gains[test.side]} on test images**, "
        f"against no update under the same head: {_gain(training)} and {_gain(test)}."
        + (" What is fitted to the training images and does not carry over is overfitting." if overfits else ""),
        f"- **What it says about its image:** with another image's update instead of the own one, accuracy changes by "
        f"{-about.mean:+.1f} points on training images and by {-elsewhere.mean:+.1f} on test images "
        f"(95 % interval of the loss there: {elsewhere.interval}).",
    ]
    fused, mean = (estimate(generator["test", kind] - generator["test", "own"]) for kind in ("fused", "mean"))
    changes = {1: "raises", 0: "cannot be seen to change", -1: "lowers"}
    lines += [
        f"- **The server's step {changes[fused.side]} the accuracy on the task at hand**: {_gain(fused)}. "
        f"It moves the generator's weights by {step['test', 'weight'].mean():.1f} times what the round's training "
        f"moved them, its bias by {step['test', 'bias'].mean():.1f} times.",
        f"- **The mean of all clients' generators {changes[mean.side]} it**: {_gain(mean)}.",
    ]
    return "\n".join(lines)


def _gain(gap: Estimate) -> str:
    return f"{gap.mean:+.1f} points ({'95 % interval ' if gap.n > 1 else ''}{gap.interval})"


def read_growth(grown: pd.DataFrame) -> str:
    """How the processor time grows with each size, by the fitted exponents as shown; empty without measurements.

    Args:
        grown: `measurements.growth_frame`.
    """
    kinds: dict[str, list[str]] = {
        "faster than in proportion": [],
        "in proportion, to a tenth of the exponent": [],
        "more slowly than that": [],
    }
    faster, even, slower = kinds.values()
    for (name, grows), exponents in grown.groupby(["label", "grows"], sort=False)["time_exponent"]:
        shown = f"{exponents.iloc[0]:.2f}"
        kind = faster if float(shown) > 1.1 else slower if float(shown) < 0.9 else even
        kind.append(f"{name} with the number of {grows.replace(' a ', ' in a ')} ({shown})")
    said = "; ".join(f"**{kind}**: {', '.join(found)}" for kind, found in kinds.items() if found)
    return f"Processor time grows {said}." if said else ""


def read_drift(kept: float, free: float) -> str:
    """What Eq. 4 does to the drift of the features.

    Args:
        kept: how far they moved in a run with it, as squared distance over squared length: two unrelated vectors of
            equal length are 2 apart.
        free: the same in a run without it.

    Returns:
        sentences.
    """
    times = f"{free / kept:.2f}" if kept else "inf"
    text = (
        f"At the end the features have moved by {kept:.2f} with Eq. 4 and by {free:.2f} without it, "
        f"**{times} times** as far; 2 means unrelated."
    )
    if times == "1.00":
        return f"{text} Here the equation makes no difference to the drift."
    if free < kept:
        return f"{text} Here the equation does not slow the drift down."
    return f"{text} Here the equation slows the drift down" + (
        ", it does not stop it." if f"{kept:.2f}" != "0.00" else ", almost to nothing."
    )
