"""The first screen in numbers: one finding in words, and one picture of every system under both scores.

The picture is an SVG written by hand, equal on every machine. It takes the colours of the page around it, and those of
a light or a dark screen where there is none.
"""

import html
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from lscl.experiments.records import Record, select
from lscl.registry import METHODS
from lscl.results.colours import GRID, GROUND, INK, PAGE, ROLES, readable
from lscl.results.frames import final_by_seed, frame, table_records
from lscl.results.labels import (
    DATASET_LABELS,
    GROUP_HEADINGS,
    GROUPS,
    MASK_LABELS,
    SCORES,
    group_of,
    label_of,
    row_label,
    training_free,
    variants_of_ours,
)
from lscl.results.markdown import NO_RECORDS, plain_text
from lscl.results.statistics import Estimate, estimate

DATASET = "cifar100"  # of the first screen: the data set with published numbers that needs no registration
ENOUGH = 3  # seeds of a profile before the first screen moves to it


@dataclass(frozen=True)
class Dots:
    """One row of the picture.

    Args:
        label: the system and its notes.
        kind: its role in the picture, an entry of `colours.ROLES`.
        method: the name of the system.
        plain: whether its runs change nothing of their profile.
        found: {score: mean over the seeds, with its interval}.
    """

    label: str
    kind: str
    method: str
    plain: bool
    found: dict[str, Estimate]


def first_screen_records(profiles: dict[str, Iterable[Record]]) -> list[Record]:
    """The records that the first screen shows: of the first profile with enough seeds, or of the last one.

    Args:
        profiles: {profile: its records}, the one with the most images first.

    Returns:
        the records of the main table on `DATASET`, and those of our variants.
    """
    shown: list[Record] = []
    for found in profiles.values():
        shown = select(table_records(found), dataset=DATASET)
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
    every = list(records)
    scores, plain = frame(every), {row_label(one) for one in every if not one["overrides"]}
    methods = scores.drop_duplicates("label").set_index("label")["method"]
    by_seed = {mask: final_by_seed(scores, mask) for mask in SCORES}
    means = {
        label: {mask: estimate(table[label].dropna()) for mask, table in by_seed.items()} for label in methods.index
    }
    order = sorted(means, key=lambda label: -means[label]["seen"].mean)
    kinds = {
        **dict.fromkeys(variants_of_ours(), "variant"),
        METHODS.find_role("own"): "own",
        **dict.fromkeys(training_free(), "control"),
    }
    best = next((label for label in order if methods[label] not in kinds), None)
    kind_of = lambda label: kinds.get(methods[label], "best" if label == best else "other")
    return [Dots(label, kind_of(label), methods[label], label in plain, means[label]) for label in order]


def in_groups(rows: Iterable[Dots]) -> dict[str, list[Dots]]:
    """Rows by the groups of their systems.

    Args:
        rows: from `systems_as_dots`.

    Returns:
        {group: its rows, in their order}, for the groups of `labels.GROUPS` that have any.
    """
    every = list(rows)
    found = {group: [one for one in every if group_of(one.method) == group] for group in GROUPS}
    return {group: members for group, members in found.items() if members}


def reference_levels(rows: Iterable[Dots]) -> dict[str, Estimate]:
    """The highest accuracy that a baseline without training reaches under each score; empty without such a row."""
    free = [one for one in rows if one.kind == "control"]
    return {mask: max((one.found[mask] for one in free), key=lambda it: it.mean) for mask in SCORES} if free else {}


# ---- in words


UNTRAINED = "a closed-form classifier on the frozen features"


def main_finding(records: Iterable[Record], rows: Iterable[Dots]) -> str:
    """The one finding of the first screen: the paper's system against the best baseline that trains nothing.

    Args:
        records: those of one data set and profile.
        rows: `systems_as_dots` of them.

    Returns:
        sentences in markdown, whichever way the comparison went; they say so if it cannot be made yet.
    """
    found, every = list(records), list(rows)
    if not found:
        return NO_RECORDS
    own = [one.label for one in every if one.kind == "own" and one.plain]
    by_seed = final_by_seed(frame(found), "seen")
    free = [one.label for one in every if one.kind == "control"]
    pairs = {name: by_seed[[own[0], name]].dropna() for name in free} if own else {}
    control = next((name for name, pair in pairs.items() if len(pair)), None)  # the best one comes first
    if control is None:
        name = label_of(METHODS.find_role("own"))
        return f"The comparison of {name} with {UNTRAINED} is not finished: no seed has both runs yet."
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
    where, best = DATASET_LABELS[DATASET], UNTRAINED.replace("a closed", "the best closed")
    values = f"{name} reaches {_percent(ours)}, {_row_in_words(control)} {_percent(theirs)}"
    score = "class-incremental accuracy after the last task"
    shape = f".{gap.decimals}f"
    points, seeds = f"{abs(gap.mean):{shape}} points", f"n = {gap.n} seeds"
    if gap.n == 1:
        return (
            f"**One seed is recorded so far.** On {where}, {values}, which has no gradient training ({score}): "
            f"{points} apart. One seed has no interval, so this is not a finding yet."
        )
    ends = sorted(gap.side * end if gap.side else end for end in (gap.mean - gap.half_width, gap.mean + gap.half_width))
    interval = f"95 % interval {ends[0]:{shape}} to {ends[1]:{shape}}, {seeds}"
    sentence = {
        -1: f"On {where}, {UNTRAINED}, without gradient training, beats {name} by {points}",
        0: f"On {where}, {gap.n} seeds cannot separate {name} from {best}, without gradient training",
        1: f"On {where}, {name} beats {best}, without gradient training, by {points}",
    }[gap.side]
    return f"**{sentence}** ({interval}{'' if gap.side else ', system minus baseline'}): {values} ({score})."


def _row_in_words(label: str) -> str:
    """The label of a row as part of a sentence."""
    name, _, notes = label.rstrip(")").partition(" (")
    return plain_text(f"{name} with {notes}" if notes else name)


def _percent(found: Estimate) -> str:
    return f"{found} %"


def picture_in_words(rows: list[Dots]) -> str:
    """What the picture shows, for those who do not see it: who is best and where the paper's system stands."""
    if not rows:
        return NO_RECORDS
    groups = in_groups(rows)
    said = [
        f"Dot plot of {len(rows)} systems, a row each{f' in {len(groups)} groups' if len(groups) > 1 else ''}, the "
        "highest class-incremental accuracy first. "
        "A filled dot is the class-incremental accuracy, a ring the task-masked one."
    ]
    for group, members in groups.items():
        shown = [
            f"row {place} of {len(members)}, {one.label}, {one.found['seen'].mean:.1f} % class-incremental and "
            f"{one.found['task'].mean:.1f} % task-masked"
            for place, one in enumerate(members, 1)
            if place == 1 or one.kind == "own"
        ]
        said.append(f"{GROUP_HEADINGS[group]}: {'; '.join(shown)}.")
    levels = reference_levels(rows)
    if levels:
        said.append(
            "Dashed lines mark the best baseline without training: "
            + " and ".join(f"{found.mean:.1f} % {MASK_LABELS[mask]}" for mask, found in levels.items())
            + "."
        )
    return " ".join(said)


def five_rows(rows: Iterable[Dots]) -> pd.DataFrame:
    """The README's table: the paper's system, what it is without its update, our variant, and the best of the others.

    Args:
        rows: from `systems_as_dots`.

    Returns:
        at most five rows, the highest class-incremental accuracy first: group, n, and both scores as mean ± half of
        the 95 % interval; no rows without records.
    """
    every = list(rows)
    named = [
        next((one for one in every if one.method == METHODS.find_role(role) and one.plain), None)
        for role in ("own", "floor")
    ]
    first_of = lambda kind: next((one for one in every if one.kind == kind), None)
    chosen = [one for one in [*named, first_of("control"), first_of("variant")] if one]
    chosen += [one for one in every if one.kind in ("best", "other") and one not in chosen][: 5 - len(chosen)]
    table = {
        one.label: {"group": GROUPS[group_of(one.method)], "n": str(one.found["seen"].n)}
        | {f"{MASK_LABELS[mask]} %": str(one.found[mask]) for mask in reversed(SCORES)}
        for one in every
        if one in chosen
    }
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("label")


# ---- as a picture


# Colours on a light and on a dark ground. They are those of text, whose contrast is at least 4.5 to 1.
INKS = {
    **{name: tuple(readable(hue, ground) for ground in PAGE[GROUND]) for name, hue in ROLES.items()},
    "text": PAGE[INK],
    "rule": PAGE[GRID],
}
NAME, NOTE = 14, 12  # pixels of a line


@dataclass(frozen=True)
class _Layout:
    """The measures of a form of the picture, in pixels.

    Args:
        width: of all of it.
        left: where the axis begins.
        top: of the first row.
        row: height of a row whose name fits in one line, its notes too.
        heading: height of a group's heading.
        letters: of a line of a name; a line of notes, whose letters are smaller, has room for `notes`.
        notes: letters of a line of notes.
    """

    width: int
    left: int
    top: int
    row: int
    heading: int
    letters: int
    notes: int


WIDE, NARROW = _Layout(720, 276, 46, 27, 27, 34, 42), _Layout(380, 12, 92, 40, 32, 44, 54)


def dot_plot(rows: list[Dots], narrow: bool = False, inline: bool = False) -> str:
    """Every system as a row with its accuracy under both scores, 95 % intervals, and lines at the best control.

    Args:
        rows: from `systems_as_dots`; those of one group stand together under a heading.
        narrow: names above their rows, for screens of 400 pixels.
        inline: part of a page whose dark mode is `html[data-theme=dark]`, and hidden from screen readers, as the page
            says the same in words; else a file that follows the screen's preference.

    Returns:
        an SVG; its text is empty of line ends, as markdown ends a piece of HTML at an empty line.
    """
    form = NARROW if narrow else WIDE
    left, right = form.left, form.width - 16
    x = lambda percent: round(left + (right - left) * min(100.0, max(0.0, percent)) / 100, 1)
    lines, bottom = _rows(rows, form, x, narrow)
    parts = []
    for percent in range(0, 101, 20):
        parts.append(_line(x(percent), form.top - 4, x(percent), bottom + 2, "rule"))
        parts.append(_text(x(percent), bottom + 18, str(percent), "middle"))
    parts.append(_text((left + right) / 2, bottom + 38, "accuracy over all tasks at the end, %", "middle"))
    parts += _legend(left, narrow)
    for mask, found in reference_levels(rows).items():
        dash = ' stroke-dasharray="7 4"' if mask == "seen" else ' stroke-dasharray="2 4"'
        parts.append(_line(x(found.mean), form.top - 4, x(found.mean), bottom + 2, "control", dash))
    parts += lines
    size = f'viewBox="0 0 {form.width} {bottom + 48:g}" width="{form.width}" height="{bottom + 48:g}"'
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


def _rows(rows: list[Dots], form: _Layout, x: Callable[[float], float], narrow: bool) -> tuple[list[str], float]:
    """The groups one below the other; x: percent -> pixels.

    Returns:
        the parts of the picture, and where the last row ends.
    """
    parts, y, groups = [], float(form.top), in_groups(rows)
    for number, (group, members) in enumerate(groups.items()):
        if len(groups) > 1:
            if number:
                parts.append(_line(4, y + 5, form.width - 4, y + 5, "rule"))
            parts.append(_text(form.left if narrow else 8, y + form.heading - 9, GROUP_HEADINGS[group], kind="heading"))
            y += form.heading
        for one in members:
            name, middle, height = (_name_above if narrow else _name_beside)(one, y, form)
            parts += name
            parts += [_mark(x, middle, one.found[mask], one.kind, mask == "seen") for mask in reversed(SCORES)]
            y += height
    return parts, y


def _lines_of(one: Dots, form: _Layout) -> tuple[list[str], list[str]]:
    """A label as lines: those of the name, and those of the notes in brackets. Nothing is cut."""
    name, _, notes = one.label.partition(" (")
    return textwrap.wrap(name, form.letters), textwrap.wrap(notes.removesuffix(")"), form.notes)


def _name_beside(one: Dots, y: float, form: _Layout) -> tuple[list[str], float, float]:
    """The name left of its row, the notes smaller below it; y: top of the row.

    Returns:
        the parts of the picture, the height of the marks, and the height of the row.
    """
    names, notes = _lines_of(one, form)
    text = NAME * len(names) + NOTE * len(notes)
    height = max(form.row, text + 1)
    top, kind, end = y + (height - text) / 2, _kind_of_name(one), form.left - 14
    parts = [_text(end, top + 11.5 + NAME * i, line, "end", kind) for i, line in enumerate(names)]
    below = top + NAME * len(names) + 9.5
    parts += [_text(end, below + NOTE * i, line, "end", "note") for i, line in enumerate(notes)]
    return parts, y + height / 2, height


def _name_above(one: Dots, y: float, form: _Layout) -> tuple[list[str], float, float]:
    """The name above its row, the notes smaller behind it, or below it where they do not fit; as `_name_beside`."""
    names, notes = _lines_of(one, form)
    kind, first = _kind_of_name(one), y + 17
    behind = len(names) == len(notes) == 1 and len(names[0]) / form.letters + len(notes[0]) / form.notes < 1
    parts = [_text(form.left, first + NAME * i, line, kind=kind) for i, line in enumerate(names)]
    if behind:
        tail = f'<tspan class="note" dx="6">{_safe(notes[0])}</tspan></text>'
        parts[0], notes = parts[0].replace("</text>", tail), []
    below = first + NAME * (len(names) - 1) + NOTE + 1
    parts += [_text(form.left, below + NOTE * i, line, kind="note") for i, line in enumerate(notes)]
    more = NAME * (len(names) - 1) + (NOTE + 1) * len(notes)
    return parts, first + 12 + more, form.row + more


def _kind_of_name(one: Dots) -> str:
    return "" if one.kind == "other" else f"{one.kind}-text"


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
    ground = f"var(--pst-color-background, {PAGE[GROUND][dark]})"  # the book's theme has the variable
    halo = f"paint-order: stroke; stroke: {ground}; stroke-width: 3px"
    rules = [f"{scope} text {{font: 13px system-ui, sans-serif; fill: {INKS['text'][dark]}; {halo}}}"]
    rules.append(f"{scope} .note {{font-size: 11.5px; font-weight: 400; fill: {INKS['other'][dark]}}}")
    rules.append(f"{scope} .heading {{font-size: 12px; font-weight: 600; fill: {INKS['other'][dark]}}}")
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
