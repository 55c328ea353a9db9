"""Tables in plain words: which system is ahead, by how much, and what the components do."""

from dataclasses import replace
from itertools import combinations

import pandas as pd

from lscl.errors import LsclError
from lscl.results.labels import MASK_LABELS, best_trained, highlighted, is_training_free
from lscl.results.markdown import plain_text
from lscl.results.measurements import COMPONENT_WRITERS
from lscl.results.statistics import APART, ONE_SEED, TIED, Estimate, estimate

NUMBERS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six", 7: "Seven", 8: "Eight", 9: "Nine", 10: "Ten"}


def read_ranking(by_seed: pd.DataFrame, mask: str, brief: bool = False) -> str:
    """Which system has the highest mean, how far the others are behind, and which the seeds cannot separate from it.

    Args:
        by_seed: final accuracies (%) under `mask`, a row per seed and a column per system.
        mask: the score.
        brief: give the range of the points behind in place of each one's points and interval.

    Returns:
        sentences.

    Raises:
        LsclError: two systems without a seed in common.
    """
    means = {name: estimate(values.dropna()) for name, values in by_seed.items()}
    best, *others = sorted(means, key=lambda name: -means[name].mean)
    pairs = {name: (by_seed[best] - by_seed[name]).dropna() for name in others}
    unpaired = [name for name, values in pairs.items() if values.empty]
    if unpaired:
        raise LsclError(f"{best} and {unpaired[0]} have no seed in common")
    gaps = {plain_text(name): estimate(values) for name, values in pairs.items()}
    first, seeds = f"{plain_text(best)} has the highest mean, {means[best]} %", f"(n = {means[best].n})"
    text = [f"Under the {MASK_LABELS[mask]} score {first} {seeds}."]
    behind, tied, single = (
        {name: gap for name, gap in gaps.items() if gap.verdict == one} for one in (APART, TIED, ONE_SEED)
    )
    if behind and brief:
        points = [f"{gap.mean:.1f}" for gap in behind.values()]
        text.append(f"Behind it by {' to '.join(dict.fromkeys((points[0], points[-1])))} points: {', '.join(behind)}.")
    elif behind:
        text.append(f"Behind it: {'; '.join(f'{name} by {gap} points' for name, gap in behind.items())}.")
    for n in sorted({gap.n for gap in tied.values()}):
        names = [name if brief else f"{name} ({gap.signed} points)" for name, gap in tied.items() if gap.n == n]
        text.append(f"{NUMBERS.get(n, n)} seeds cannot separate it from {_listed(names)}.")
    if single:
        names = [name if brief else f"{name} ({gap} points behind)" for name, gap in single.items()]
        text.append(f"One seed in common, so no interval: {', '.join(names)}.")
    return " ".join(text)


def _listed(names: list[str]) -> str:
    """Names with commas, and the word "or" before the last."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


LEADS = {  # what a system's differences from the best other one come to
    "none": "It is ahead of the best other system under none of the scores {scores}.",
    "some": "Of the scores {scores} it is ahead under one and behind under another.",
    "unsure": "It is ahead under the scores {scores}, but the seeds cannot separate its lead from zero.",
    "partly": "It is ahead under the scores {scores}; under one of them the interval of its lead excludes zero.",
    "sure": "It is ahead under the scores {scores}, and the intervals of its leads exclude zero.",
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
            f"{MASK_LABELS[mask]} {estimate(ours)} %, {gaps[-1].signed} points from {plain_text(best)} "
            f"(n = {gaps[-1].n})"
        )
    ahead, told = sum(gap.mean > 0 for gap in gaps), sum(gap.side > 0 for gap in gaps)
    if ahead < len(gaps):
        verdict = LEADS["some" if ahead else "none"]
    else:
        verdict = LEADS["sure" if told == len(gaps) else "partly" if told else "unsure"]
    scores = " and ".join(MASK_LABELS[mask] for mask in end.index.unique("mask"))
    return f"{verdict.format(scores=scores)} Compared with the best other system: {'; '.join(said)}."


def read_components(inside: pd.DataFrame) -> str:
    """What the written update and the server's step do, as a list in markdown for each rate of the generator.

    Args:
        inside: rows of `measurements.components_frame` on one data set.

    Returns:
        The lists; empty without runs that write per image.
    """
    written = inside[inside["writer"] == COMPONENT_WRITERS["written"]]
    lists = []
    for rate, rows in written.groupby("rate"):
        alone = "" if rows["seed"].nunique() > 1 else " (one seed, so no number can be told from chance)"
        lists.append(f"At rate {rate:g} of the generator{alone}:\n\n{_read_rate(rows)}")
    return "\n\n".join(lists)


def _read_rate(rows: pd.DataFrame) -> str:
    """What the written update and the server's step do at one rate, as a list."""
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
        f"- **What it says about its image:** with the update of another image, accuracy changes by "
        f"{replace(about, mean=-about.mean).signed} points on training images and by "
        f"{replace(elsewhere, mean=-elsewhere.mean).signed} on test images.",
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
    return f"{gap.signed} points"


def read_growth(grown: pd.DataFrame) -> str:
    """How the processor time grows with each size, by the fitted exponents as shown; empty without measurements.

    Args:
        grown: `measurements.growth_frame`.
    """
    kinds: dict[str, list[str]] = {
        "faster than in proportion": [],
        "in proportion (the exponent is 1 to within 0.1)": [],
        "more slowly than in proportion": [],
    }
    faster, even, slower = kinds.values()
    for (name, grows), exponents in grown.groupby(["label", "grows"], sort=False)["time_exponent"]:
        shown = f"{exponents.iloc[0]:.2f}"
        kind = faster if float(shown) > 1.1 else slower if float(shown) < 0.9 else even
        kind.append(f"{name} with the number of {grows.replace(' a ', ' in a ')} ({shown})")
    said = "; ".join(f"**{kind}**: {', '.join(found)}" for kind, found in kinds.items() if found)
    return f"Processor time grows {said}." if said else ""


def read_controls(by_seed: pd.DataFrame) -> str:
    """How the best control that trains nothing compares with the systems that train, as a list in markdown.

    Args:
        by_seed: final accuracies (%), index (mask, seed), a column per system.

    Returns:
        a line per score with a control and a trained system; empty without any.
    """
    lines = []
    for mask, found in by_seed.groupby(level="mask", sort=False):
        means = found.mean().dropna()
        controls, trained = ([name for name in means.index if is_training_free(name) is free] for free in (True, False))
        if not controls or not trained:
            continue
        best = means[controls].idxmax()
        beaten = sum(means[best] > means[name] for name in trained)
        line = (
            f"- *{MASK_LABELS[mask]}.* The best control, {plain_text(best)}, has {estimate(found[best].dropna())} %. "
            f"It is ahead of {beaten} of the {len(trained)} systems that train."
        )
        own = next(iter(highlighted(trained)), None)
        gaps = (found[own] - found[best]).dropna() if own else pd.Series(dtype=float)
        if len(gaps):
            gap = estimate(gaps)
            line += f" {plain_text(own)} minus this control is {gap.signed} points (n = {gap.n})."
        lines.append(line)
    return "\n".join(lines)


def read_heads(end: pd.DataFrame) -> str:
    """For which systems the closed-form head is better than the trained one, under the class-incremental score.

    Args:
        end: final accuracies (%), index (label, seed), columns of `labels.HEAD_LABELS`.

    Returns:
        sentences; empty without a system that has both.
    """
    rows = end.dropna()
    gaps = {
        plain_text(name): estimate(found["ridge"] - found["trained"])
        for name, found in rows.groupby("label", sort=False)
    }
    groups = {
        "The closed form is better for": [name for name, gap in gaps.items() if gap.side > 0],
        "The trained head is better for": [name for name, gap in gaps.items() if gap.side < 0],
        "The seeds cannot separate the two heads for": [name for name, gap in gaps.items() if gap.verdict == TIED],
        "One seed, so no interval:": [
            f"{name} ({gap.signed} points)" for name, gap in gaps.items() if gap.verdict == ONE_SEED
        ],
    }
    return " ".join(f"{text} {', '.join(names)}." for text, names in groups.items() if names)


def read_kinds(kinds: pd.DataFrame) -> str:
    """Where systems are good, on private or on public classes, as a list in markdown.

    Args:
        kinds: final accuracies (%), index (mask, label), columns private and public.

    Returns:
        a line per score; empty if no class is public.
    """
    if not {"private", "public"} <= set(kinds.columns):
        return ""
    lines = []
    for mask, found in kinds.dropna().groupby(level="mask", sort=False):
        rows = found.droplevel("mask")
        best = best_trained(rows.mean(axis=1))
        names = dict.fromkeys([*highlighted(rows.index)[:2], *([best] if best else [])])
        said = [
            f"{plain_text(name)} has {rows.loc[name, 'private']:.0f} % on private classes and "
            f"{rows.loc[name, 'public']:.0f} % on public ones"
            for name in names
        ]
        better = int((rows["private"] > rows["public"]).sum())
        lines.append(
            f"- *{MASK_LABELS[mask]}.* {'; '.join(said)}. "
            f"{better} of {len(rows)} systems are better on private classes than on public ones."
        )
    return "\n".join(lines)


def read_scale(points: pd.DataFrame) -> str:
    """From which number of images on a difference is positive, as a list in markdown.

    Args:
        points: a row per seed and point: columns comparison, images, difference (points).

    Returns:
        a line per comparison; empty without rows.
    """
    lines = []
    for name, rows in points.groupby("comparison", sort=False):
        found = rows.groupby("images")["difference"].agg(estimate)
        values = [f"{gap.signed} at {images:g} (n = {gap.n})" for images, gap in found.items()]
        above = [f"{images:g}" for images, gap in found.items() if gap.side > 0]
        below = [f"{images:g}" for images, gap in found.items() if gap.side < 0]
        sides = [
            f"{side} zero at {' and '.join(sizes)}" for side, sizes in (("above", above), ("below", below)) if sizes
        ]
        single = all(gap.n == 1 for gap in found)
        verdict = "One seed has no interval" if single else "No interval excludes zero"
        verdict = f"The interval is {', '.join(sides)}" if sides else verdict
        lines.append(f"- *{name}*, in points, by images per class: {', '.join(values)}. {verdict}.")
    return "\n".join(lines)


def read_order(slopes: pd.DataFrame) -> str:
    """How far the order of the systems is the paper's.

    Args:
        slopes: see `published.beside_published`.

    Returns:
        sentences; empty for fewer than two systems.
    """
    pairs = list(combinations(slopes.index, 2))
    if not pairs:
        return ""
    theirs, ours = slopes["published"], slopes["measured here"]
    same = sum((theirs[one] - theirs[other]) * (ours[one] - ours[other]) > 0 for one, other in pairs)
    text = f"Of the {len(pairs)} pairs of systems, {same} have the same order as in the paper."
    for name in highlighted(slopes.index)[:1]:
        places = [int((column > column[name]).sum()) + 1 for column in (theirs, ours)]
        text += f" {plain_text(name)} is number {places[0]} of {len(slopes)} in the paper and number {places[1]} here."
    return text
