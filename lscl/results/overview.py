"""The first screen in numbers: one finding in words, and one picture of every system under both scores.

The picture is an SVG written by hand, equal on every machine. It takes the colours of the page around it, and those of
a light or a dark screen where there is none.
"""

import html
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from lscl.errors import shorten
from lscl.experiments.records import Record, select
from lscl.registry import METHODS
from lscl.results.frames import final_by_seed, frame, main_records
from lscl.results.labels import DATASET_LABELS, MASK_LABELS, SCORES, label_of, row_label, training_free
from lscl.results.markdown import NO_RECORDS, plain_text
from lscl.results.statistics import Estimate, estimate

DATASET = "cifar100"  # of the first screen: the data set with published numbers that needs no registration
ENOUGH = 3  # seeds of a profile before the first screen moves to it
KINDS = ("own", "control", "best", "other")  # the paper's system, baselines without training, the best other one


@dataclass(frozen=True)
class Dots:
    """One row of the picture.

    Args:
        label: the system and its notes.
        kind: an entry of KINDS.
        method: the name of the system.
        found: {score: mean over the seeds, with its interval}.
    """

    label: str
    kind: str
    method: str
    found: dict[str, Estimate]


def first_screen_records(profiles: dict[str, Iterable[Record]]) -> list[Record]:
    """The records that the first screen shows: of the first profile with enough seeds, or of the last one.

    Args:
        profiles: {profile: its records}, the one with the most images first.

    Returns:
        the records of the main table on `DATASET`.
    """
    shown: list[Record] = []
    for found in profiles.values():
        shown = select(main_records(found), dataset=DATASET)
        own = {one["seed"] for one in select(shown, method=METHODS.find_role("own"), overrides={})}
        free = [select(shown, method=name, overrides={}) for name in training_free()]
        if any(len(own & {one["seed"] for one in group}) >= ENOUGH for group in free):
            return shown
    return shown


def systems_as_dots(records: Iterable[Record]) -> list[Dots]:
    """Every system under both scores.

    Args:
        records: those of one data set and profile.

    Returns:
        the rows, the highest class-incremental accuracy first.
    """
    scores = frame(records)
    methods = scores.drop_duplicates("label").set_index("label")["method"]
    by_seed = {mask: final_by_seed(scores, mask) for mask in SCORES}
    means = {
        label: {mask: estimate(table[label].dropna()) for mask, table in by_seed.items()} for label in methods.index
    }
    order = sorted(means, key=lambda label: -means[label]["seen"].mean)
    own, free = METHODS.find_role("own"), training_free()
    best = next((label for label in order if methods[label] not in (own, *free)), None)
    kind_of = lambda label: (
        "own"
        if methods[label] == own
        else "control"
        if methods[label] in free
        else "best"
        if label == best
        else "other"
    )
    return [Dots(label, kind_of(label), methods[label], means[label]) for label in order]


def reference_levels(rows: Iterable[Dots]) -> dict[str, Estimate]:
    """The highest accuracy that a baseline without training reaches under each score; empty without such a row."""
    free = [one for one in rows if one.kind == "control"]
    return {mask: max((one.found[mask] for one in free), key=lambda it: it.mean) for mask in SCORES} if free else {}


# ---- in words


def main_finding(records: Iterable[Record]) -> str:
    """The one finding of the first screen: the paper's system against the best baseline that trains nothing.

    Args:
        records: those of one data set and profile.

    Returns:
        sentences in markdown, whichever way the comparison went; they say so if it cannot be made yet.
    """
    found = list(records)
    if not found:
        return NO_RECORDS
    own = [row_label(one) for one in select(found, method=METHODS.find_role("own"), overrides={})]
    by_seed = final_by_seed(frame(found), "seen")
    free = [one.label for one in systems_as_dots(found) if one.kind == "control"]
    pairs = {name: by_seed[[own[0], name]].dropna() for name in free} if own else {}
    control = next((name for name, pair in pairs.items() if len(pair)), None)  # the best one comes first
    if control is None:
        name = label_of(METHODS.find_role("own"))
        return (
            f"The comparison of {name} with a baseline that trains nothing is not finished: no seed has both runs yet."
        )
    ours, theirs = (estimate(pairs[control][one]) for one in (own[0], control))
    gap = estimate(pairs[control][own[0]] - pairs[control][control])
    return f"{compare_in_words(label_of(METHODS.find_role('own')), control, ours, theirs, gap)} {_setting(found[0])}"


def _setting(record: Record) -> str:
    """How large the runs behind the finding are: a small run allows a small conclusion."""
    config, clients = record["config"], len(record["bytes_up"][0])
    images = config.get("images_per_class") or "all"
    return (
        f"The runs have the profile `{record['profile']}`: {clients} clients with {config['tasks']} tasks each, "
        f"{images} training images per class, the frozen model `{config['foundation']}`."
    )


def compare_in_words(name: str, control: str, ours: Estimate, theirs: Estimate, gap: Estimate) -> str:
    """One paired comparison as a finding.

    Args:
        name: the system.
        control: the best baseline that trains nothing.
        ours: class-incremental accuracy of the system.
        theirs: that of the baseline, on the same seeds.
        gap: their difference, system minus baseline, seed by seed.

    Returns:
        sentences in markdown.
    """
    short, where = plain_text(control.split(" (")[0]), DATASET_LABELS[DATASET]
    values = f"{name} reaches {_percent(ours)}, {short} {_percent(theirs)}"
    score = "class-incremental accuracy after the last task"
    points, seeds = f"{abs(gap.mean):.1f} points", f"n = {gap.n} seeds"
    if gap.n == 1:
        return (
            f"**One seed is recorded so far.** On {where}, {values}, which trains nothing ({score}): {points} apart. "
            "One seed has no interval, so this is not a finding yet."
        )
    ends = sorted(gap.side * end if gap.side else end for end in (gap.mean - gap.half_width, gap.mean + gap.half_width))
    interval = f"95 % interval {ends[0]:.1f} to {ends[1]:.1f}, {seeds}"
    sentence = {
        -1: f"On {where}, a baseline that trains nothing beats {name} by {points}",
        0: f"On {where}, {gap.n} seeds cannot separate {name} from the best baseline that trains nothing",
        1: f"On {where}, {name} beats the best baseline that trains nothing by {points}",
    }[gap.side]
    return f"**{sentence}** ({interval}{'' if gap.side else ', system minus baseline'}): {values} ({score})."


def _percent(found: Estimate) -> str:
    return f"{found} %" if found.n == 1 else f"{found.mean:.1f} ± {found.half_width:.1f} %"


def picture_in_words(rows: list[Dots]) -> str:
    """What the picture shows, for those who do not see it: who is best and where the paper's system stands."""
    if not rows:
        return NO_RECORDS
    said = [
        f"Dot plot of {len(rows)} systems, a row each, the highest class-incremental accuracy first. "
        f"A filled dot is the class-incremental accuracy, a ring the task-masked one."
    ]
    for place, one in enumerate(rows, 1):
        if place == 1 or one.kind == "own":
            said.append(
                f"Row {place}, {one.label}: {one.found['seen'].mean:.1f} % class-incremental, "
                f"{one.found['task'].mean:.1f} % task-masked."
            )
    levels = reference_levels(rows)
    if levels:
        said.append(
            "Dashed lines mark the best baseline without training: "
            + " and ".join(f"{found.mean:.1f} % {MASK_LABELS[mask]}" for mask, found in levels.items())
            + "."
        )
    return " ".join(said)


def five_rows(records: Iterable[Record]) -> pd.DataFrame:
    """The README's table: the paper's system, what it is without its update, and the best of the others.

    Args:
        records: those of one data set and profile.

    Returns:
        at most five rows, the highest class-incremental accuracy first: n, and both scores as mean ± half of the 95 %
        interval; no rows without records.
    """
    found = list(records)
    rows = systems_as_dots(found) if found else []
    plain = {row_label(one) for one in found if not one["overrides"]}
    named = [
        next((one for one in rows if one.method == METHODS.find_role(role) and one.label in plain), None)
        for role in ("own", "floor")
    ]
    chosen = [one for one in [*named, *(one for one in rows if one.kind == "control")][:3] if one]
    chosen += [one for one in rows if one.kind in ("best", "other") and one not in chosen][: 5 - len(chosen)]
    table = {
        one.label: {"n": str(one.found["seen"].n)}
        | {f"{MASK_LABELS[mask]} %": str(one.found[mask]) for mask in reversed(SCORES)}
        for one in rows
        if one in chosen
    }
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("label")


# ---- as a picture


# Colours on a light and on a dark ground; each has a contrast of at least 3 to 1 there.
INKS = {
    "own": ("#0072B2", "#56B4E9"),
    "control": ("#C04E00", "#F0A04B"),
    "best": ("#00795A", "#3CC9A0"),
    "other": ("#6B6B6B", "#A3A3A3"),
    "text": ("#222222", "#E8E8E8"),
    "rule": ("#D5D5D5", "#4A4A4A"),
}
GROUNDS = ("#FFFFFF", "#121212")


def dot_plot(rows: list[Dots], narrow: bool = False, inline: bool = False) -> str:
    """Every system as a row with its accuracy under both scores, 95 % intervals, and lines at the best control.

    Args:
        rows: from `systems_as_dots`.
        narrow: names above their rows, for screens of 400 pixels.
        inline: part of a page whose dark mode is `html[data-theme=dark]`, and hidden from screen readers, as the page
            says the same in words; else a file that follows the screen's preference.

    Returns:
        an SVG; its text is empty of line ends, as markdown ends a piece of HTML at an empty line.
    """
    width, left, step, top = (380, 12, 40, 92) if narrow else (720, 276, 27, 46)
    right, bottom = width - 16, top + step * len(rows)
    x = lambda percent: round(left + (right - left) * min(100.0, max(0.0, percent)) / 100, 1)
    parts = []
    for percent in range(0, 101, 20):
        parts.append(_line(x(percent), top - 4, x(percent), bottom + 2, "rule"))
        parts.append(_text(x(percent), bottom + 18, str(percent), "middle"))
    parts.append(_text((left + right) / 2, bottom + 38, "accuracy over all tasks at the end, %", "middle"))
    parts += _legend(left, narrow)
    for mask, found in reference_levels(rows).items():
        dash = "7 4" if mask == "seen" else "2 4"
        parts.append(_line(x(found.mean), top - 4, x(found.mean), bottom + 2, "control", f' stroke-dasharray="{dash}"'))
    for number, one in enumerate(rows):
        y = top + step * number + (29 if narrow else step / 2)
        parts.append(_name(one, left, y, narrow))
        parts += [_mark(x, y, one.found[mask], one.kind, mask == "seen") for mask in reversed(SCORES)]
    size = f'viewBox="0 0 {width} {bottom + 48}" width="{width}" height="{bottom + 48}"'
    about = (
        'aria-hidden="true" focusable="false"' if inline else f'role="img" aria-label="{_safe(picture_in_words(rows))}"'
    )
    kind = f"dots {'narrow' if narrow else 'wide'}"
    style = (
        ""
        if inline
        else f"<style>{_style('svg')} @media (prefers-color-scheme: dark) {{{_style('svg', True)}}}</style>"
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="{kind}" {size} {about}>{style}{"".join(parts)}</svg>'


def dot_plot_for_a_page(rows: list[Dots]) -> str:
    """Both forms of the picture for a page of the book: one for wide screens, one for narrow ones, and it in words.

    Args:
        rows: from `systems_as_dots`.

    Returns:
        HTML.
    """
    if not rows:
        return f"<p>{NO_RECORDS}</p>"
    style = f"{_style('.dots')} {_style('html[data-theme=dark] .dots', True)}"
    pictures = "".join(dot_plot(rows, narrow, inline=True) for narrow in (False, True))
    return (
        f'<div class="first-dots" role="img" aria-label="{_safe(picture_in_words(rows))}">'
        f"<style>{style}</style>{pictures}</div>"
    )


def _style(scope: str, dark: bool = False) -> str:
    """The colours of the parts of the picture, as CSS below a selector."""
    ground = f"var(--pst-color-background, {GROUNDS[dark]})"  # the book's theme has the variable
    halo = f"paint-order: stroke; stroke: {ground}; stroke-width: 3px"
    rules = [f"{scope} text {{font: 13px system-ui, sans-serif; fill: {INKS['text'][dark]}; {halo}}}"]
    rules.append(f"{scope} .note {{font-size: 11.5px; font-weight: 400; fill: {INKS['other'][dark]}}}")
    for name, inks in INKS.items():
        rules.append(f"{scope} .{name} {{stroke: {inks[dark]}; stroke-width: 2; fill: {inks[dark]}}}")
        rules.append(f"{scope} .{name}-text {{fill: {inks[dark]}; font-weight: 600}}")
    rules.append(f"{scope} .rule {{stroke-width: 1}} {scope} .ring {{fill: {ground}}}")
    return " ".join(rules)


def _safe(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=True).replace("{{", "&#123;{")


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{named}>{_safe(text)}</text>'


def _line(x: float, y: float, x2: float, y2: float, kind: str, more: str = "") -> str:
    return f'<line x1="{x:g}" y1="{y:g}" x2="{x2:g}" y2="{y2:g}" class="{kind}"{more}/>'


def _mark(x, y: float, found: Estimate, kind: str, filled: bool) -> str:
    """A dot or ring with its interval; one value has none."""
    half = found.half_width if found.n > 1 else 0.0
    bar = _line(x(found.mean - half), y, x(found.mean + half), y, kind) if half > 0 else ""
    return bar + f'<circle cx="{x(found.mean):g}" cy="{y:g}" r="5" class="{kind}{"" if filled else " ring"}"/>'


def _name(one: Dots, left: float, y: float, narrow: bool) -> str:
    """The name of a row, its notes smaller behind or below it."""
    name, _, notes = one.label.partition(" (")
    name, notes = shorten(name, 34), shorten(notes.removesuffix(")"), 34 if narrow else 46)
    kind = "" if one.kind == "other" else f"{one.kind}-text"
    if narrow:
        behind = f'<tspan class="note" dx="6">{_safe(notes)}</tspan>' if notes else ""
        return _text(left, y - 12, name, kind=kind).replace("</text>", f"{behind}</text>")
    place = y if notes else y + 4.5
    below = _text(left - 14, y + 11.5, notes, "end", "note") if notes else ""
    return _text(left - 14, place, name, "end", kind) + below


def _legend(left: float, narrow: bool) -> list[str]:
    """What dot, ring and dashed lines mean."""
    entries = [("seen", "class-incremental"), ("task", "task-masked"), ("line", "best without training")]
    places = (
        [(left + 6, 18), (left + 6, 40), (left + 6, 62)]
        if narrow
        else [(left + 6, 18), (left + 154, 18), (left + 268, 18)]
    )
    parts = []
    for (kind, text), (x, y) in zip(entries, places):
        if kind == "line":
            parts.append(_line(x - 5, y, x + 9, y, "control", ' stroke-dasharray="5 3"'))
        else:
            ring = "" if kind == "seen" else " ring"
            parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="5" class="text{ring}"/>')
        parts.append(_text(x + 15, y + 4.5, text))
    return parts
