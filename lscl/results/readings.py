"""Tables in plain words: which system is ahead, by how much, and what the components do."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations

import pandas as pd

from lscl.errors import LsclError, list_words
from lscl.results.labels import MASK_LABELS, best_trained, highlighted, is_training_free
from lscl.results.markdown import plain_text
from lscl.results.measurements import COMPONENT_WRITERS
from lscl.results.statistics import APART, ONE_SEED, TIED, Estimate, estimate

SAME_FEATURES = 0.1  # points; closed-form heads that differ by less read the same features
NUMBERS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six", 7: "Seven", 8: "Eight", 9: "Nine", 10: "Ten"}


def read_best(by_seed: pd.DataFrame, mask: str) -> str:
    """The best of all, and how far the best system that trains and the paper's own system are behind it.

    Args:
        by_seed: final accuracies (%) under `mask`, a row per seed and a column per system.
        mask: the score.

    Returns:
        sentences.
    """
    means = _complete(by_seed).mean()
    best, trained = means.idxmax(), best_trained(means)
    own = next(iter(highlighted(by_seed.columns)), None)
    seeds = by_seed[best].dropna()
    text = (
        f"Under the {MASK_LABELS[mask]} score {plain_text(best)} is the best of the paper's systems and the controls: "
        f"{estimate(seeds)} % (n = {len(seeds)})."
    )
    behind = {trained: "the best other system that trains", own: "the paper's own system"}
    for name, what in behind.items():
        gaps = (by_seed[best] - by_seed[name]).dropna() if name in by_seed and name != best else []
        if len(gaps):
            gap = estimate(gaps)
            text += f" {plain_text(name)}, {what}, is {gap} points lower (n = {gap.n})."
    return text


def _complete(by_seed: pd.DataFrame) -> pd.DataFrame:
    """The systems with the most seeds: means over other seeds do not compare with theirs."""
    counts = by_seed.count()
    return by_seed.loc[:, counts == counts.max()]


def read_ranking(by_seed: pd.DataFrame, mask: str) -> str:
    """Which system has the highest mean, how far the others are behind, and which the seeds cannot separate from it.

    Args:
        by_seed: final accuracies (%) under `mask`, a row per seed and a column per system.
        mask: the score.

    Returns:
        sentences.

    Raises:
        LsclError: two systems without a seed in common.
    """
    means = {name: estimate(values.dropna()) for name, values in by_seed.items()}
    best = _complete(by_seed).mean().idxmax()
    others = sorted(means.keys() - {best}, key=lambda name: (-means[name].mean, name))
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
    ahead = {name: gap for name, gap in behind.items() if gap.mean < 0}  # on fewer seeds
    behind = {name: gap for name, gap in behind.items() if gap.mean > 0}
    if ahead:
        said = "; ".join(f"{name} by {-gap.mean:.1f}" for name, gap in ahead.items())
        text.append(f"Ahead of it on the seeds in common: {said} points.")
    if behind:
        text.append(f"Behind it: {'; '.join(f'{name} by {gap} points' for name, gap in behind.items())}.")
    for n in sorted({gap.n for gap in tied.values()}):
        names = [f"{name} ({gap.signed} points)" for name, gap in tied.items() if gap.n == n]
        text.append(f"{NUMBERS.get(n, n)} seeds cannot separate it from {list_words(names, 'or')}.")
    if single:
        names = [
            f"{name} ({abs(gap.mean):.1f} points {'ahead' if gap.mean < 0 else 'behind'})"
            for name, gap in single.items()
        ]
        text.append(f"One seed in common, so no interval: {', '.join(names)}.")
    return " ".join(text)


EFFECTS = {1: "raises accuracy", 0: "does not measurably change accuracy", -1: "lowers accuracy"}
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
            f"{MASK_LABELS[mask]} {estimate(ours)} %, {_distance(gaps[-1])} {plain_text(best)} (n = {gaps[-1].n})"
        )
    ahead, told = sum(gap.mean > 0 for gap in gaps), sum(gap.side > 0 for gap in gaps)
    if ahead < len(gaps):
        verdict = LEADS["some" if ahead else "none"]
    else:
        verdict = LEADS["sure" if told == len(gaps) else "partly" if told else "unsure"]
    scores = " and ".join(MASK_LABELS[mask] for mask in end.index.unique("mask"))
    return f"{verdict.format(scores=scores)} Compared with the best other system: {'; '.join(said)}."


def _distance(gap: Estimate) -> str:
    """A difference as a distance, in words that go before the name of what is compared with."""
    away = replace(gap, mean=abs(gap.mean))
    return f"{away} points {'below' if gap.mean < 0 else 'above'}"


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
        alone = "" if rows["seed"].nunique() > 1 else " (one seed, so no difference can be separated from chance)"
        lists.append(f"At rate {rate:g} of the generator{alone}:\n\n{_read_rate(rows)}")
    return "\n\n".join(lists)


def _read_rate(rows: pd.DataFrame) -> str:
    """What the written update and the server's step do at one rate, as a list."""
    value = rows.pivot_table("value", "seed", ["measure", "images", "kind"])  # means over the tasks
    update, generator, step = (value[measure] for measure in ("update", "generator", "server_step"))
    training, test = (estimate(update[images, "own"] - update[images, "none"]) for images in ("training", "test"))
    about, elsewhere = (estimate(update[images, "own"] - update[images, "another"]) for images in ("training", "test"))
    overfits = training.side == 1 and test.side < 1
    lines = [
        f"- **The written update**, compared with no update under the same head, {_effect(training)} on training "
        f"images and {_effect(test)} on test images."
        + (" What is fitted to the training images and does not carry over is overfitting." if overfits else ""),
        f"- **What it says about its image:** with the update of another image, accuracy changes by "
        f"{replace(about, mean=-about.mean).signed} points on training images and by "
        f"{replace(elsewhere, mean=-elsewhere.mean).signed} on test images.",
    ]
    fused, mean = (estimate(generator["test", kind] - generator["test", "own"]) for kind in ("fused", "mean"))
    lines += [
        f"- **The server's step** {_effect(fused)} on the task at hand. "
        f"It moves the generator's weights by {step['test', 'weight'].mean():.1f} times what the round's training "
        f"moved them, its bias by {step['test', 'bias'].mean():.1f} times.",
        f"- **The mean of all clients' generators** in its place {_effect(mean)}.",
    ]
    return "\n".join(lines)


def _effect(gap: Estimate) -> str:
    """A difference of accuracy in words: with a verdict if there is an interval, as the bare number if not."""
    says = "changes accuracy by" if gap.n == 1 else EFFECTS[gap.side]
    return f"{says} {gap.signed} points" if gap.n == 1 else f"{says} ({gap.signed} points)"


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
        names = found.columns[found.notna().any()]
        controls, trained = ([name for name in names if is_training_free(name) is free] for free in (True, False))
        if not controls or not trained:
            continue
        best = _complete(found[controls]).mean().idxmax()
        beaten = sum((found[best] - found[name]).mean() > 0 for name in trained)  # on the seeds that both have
        line = (
            f"- *{MASK_LABELS[mask]}.* The best control, {plain_text(best)}, has {estimate(found[best].dropna())} %. "
            f"It is ahead of {beaten} of the {len(trained)} rows of systems that train."
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


def read_forgetting(parts: pd.DataFrame, names: Iterable[str]) -> str:
    """How much systems lose to later tasks, and how much of it is lost with the task given, as a list in markdown.

    Args:
        parts: see `frames.parts_of_forgetting`.
        names: the systems to speak of; those without a row are left out.

    Returns:
        a line per system, about its trained head; empty without one.
    """
    means, lines = parts.xs("trained", level="head").groupby("label").mean(), []
    for name in filter(means.index.__contains__, names):
        whole, given, _ = means.loc[name]
        lines.append(
            f"- {plain_text(name)} {_moved(whole)} as later tasks come; with the task given it {_moved(given)}."
        )
    return "\n".join(lines)


def _moved(points: float) -> str:
    """Backward transfer in words; what rounds to 0.0 is none."""
    if abs(points) < 0.05:
        return "loses nothing"
    return f"{'gains' if points > 0 else 'loses'} {abs(points):.1f} points"


def read_frozen(end: pd.DataFrame, frozen: str) -> str:
    """Which systems' features read like the frozen ones, so that their runs cannot show what adapting the ViT does.

    Args:
        end: final accuracies (%), index (label, seed), columns of `labels.HEAD_LABELS`.
        frozen: the label of a system whose features are the frozen ones.

    Returns:
        two sentences; empty if there is no other such system.
    """
    closed = end["ridge"].unstack("label")
    if frozen not in closed:
        return ""
    apart = closed.drop(columns=frozen).sub(closed[frozen], axis=0).abs().max().dropna()
    same = apart[apart < SAME_FEATURES]
    if same.empty:
        return ""
    names, points = ", ".join(map(plain_text, same.index)), f"{max(0.01, same.max()):.2f} points"
    return (
        f"A closed-form head on the features of {names} has the accuracy of one on the frozen features: they are at "
        f"most {points} apart in any seed. In these runs the ViT is not adapted, or so little that no score shows it."
    )


def read_worth(by_seed: pd.DataFrame, whole: str, worth: Mapping[str, str]) -> str:
    """What a system gains over each of some variants of it, in words.

    Args:
        by_seed: accuracies (%), a row per seed and a column per variant.
        whole: the system.
        worth: {variant: what the whole system has in its place}.

    Returns:
        sentences; empty without a variant that has a seed in common with the system.
    """
    said = []
    for variant, what in worth.items():
        gaps = (by_seed[whole] - by_seed[variant]).dropna() if {whole, variant} <= set(by_seed) else []
        if len(gaps):
            gap = estimate(gaps)
            said.append(f"{what} is worth {gap.signed} points (n = {gap.n}).")
    return " ".join(said)


def read_kinds(kinds: pd.DataFrame, best: str | None) -> str:
    """Where systems are good, on private or on public classes, as a list in markdown.

    Args:
        kinds: final accuracies (%), index (mask, label), columns private and public.
        best: the best other system; None = there is none.

    Returns:
        a line per score; empty if no class is public.
    """
    if not {"private", "public"} <= set(kinds.columns):
        return ""
    lines = []
    for mask, found in kinds.dropna().groupby(level="mask", sort=False):
        rows = found.droplevel("mask")
        names = dict.fromkeys([*highlighted(rows.index)[:2], *([best] if best in rows.index else [])])
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
