"""What `benchmarks/gpu.py` measured on cards, as the book shows it: checks, steps compared with other ways, kept runs.

All of it comes from results/benchmarks/gpu--<card>.json; files made without a GPU are passed over.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pandas as pd

from lscl import files, paths
from lscl.experiments import sweeps
from lscl.experiments.cards import MeasuredStep, measured_steps
from lscl.experiments.records import Record, all_records, select
from lscl.publish import hardware
from lscl.results import file_shapes
from lscl.results.frames import final_accuracy
from lscl.results.labels import SCORE_HEADS, SCORES, label_of, row_label
from lscl.results.markdown import captioned_table, numbered_table, plain_text, short_commit, small_print, wall_minutes

NOT_MEASURED = "Nobody has measured a GPU yet. `python benchmarks/gpu.py --minutes 8 --out DIR` does."
WITHIN = 1.25  # by this factor a plan's memory may be off

Row = dict[str, Any]


def measured_cards() -> list[dict[str, Any]]:
    """The files of all cards: `machine`, `commit` and a row for each check.

    Raises:
        LsclError: a file that cannot be read, or of another shape.
    """
    found = sorted((paths.results() / "benchmarks").glob("gpu--*.json"))
    every = [files.read_json(path, file_shapes.GpuChecks) for path in found]
    return [one for one in every if one["machine"]["gpu"]]


def gpu_page() -> str:
    """All that was measured on cards, as markdown."""
    cards, steps = measured_cards(), measured_steps()
    if not cards:
        return NOT_MEASURED
    tables = [
        (checks_table(cards), "Checks on a GPU: how many passed, and their findings", "tab-gpu-checks"),
        (hardware.timed_steps(), "Timed training steps, profile `paper`, random weights", "tab-steps"),
        (summary_table(steps), "Timed steps by arithmetic and batch: median and range", "tab-gpu-summary"),
        (ways_table(cards), "Milliseconds of a training step, compared with other ways to compute it", "tab-gpu-ways"),
        (
            pace_table(cards),
            "Several runs of the mini model at once on one card: steps per second of all together",
            "tab-gpu-pace",
        ),
    ]
    parts = [_numbered(table, caption, name) for table, caption, name in tables if len(table)]
    return "\n\n".join([*parts, *_kept_runs(cards), _note(cards)])


def _numbered(table: pd.DataFrame, caption: str, name: str) -> str:
    return numbered_table(*_one_card(table, caption), name, index=False)


def _one_card(table: pd.DataFrame, caption: str) -> tuple[pd.DataFrame, str]:
    """A table and its caption; a single card is named in the caption and needs no column."""
    named = table["card"].unique()
    if len(named) > 1:
        return table, caption
    return table.drop(columns="card"), f"{caption}; {plain_text(named[0])}"


def _note(cards: Iterable[dict[str, Any]]) -> str:
    """Machines and commits behind the checks, in small print."""
    about = lambda one: f"{one['machine']['gpu']}, {one['machine']['cpu']}, {one['machine']['cores']} cores"
    return small_print(*(f"{about(one)}, commit {short_commit(one['commit'], 'none')}" for one in cards))


# ---- checks


def checks_table(cards: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per card and kind of check: how many passed, and what they found or why they were not made."""
    return pd.DataFrame(
        {
            "card": one["machine"]["gpu"],
            "check": title,
            "passed": f"{sum(row['outcome'] == 'passed' for row in rows)} of {len(rows)}",
            "found": "; ".join([*(text for text in [found(_passed(rows))] if text), *_others(rows)]),
        }
        for one in cards
        for start, (title, found) in KINDS.items()
        if (rows := [row for row in one["rows"] if row["check"].startswith(start)])
    )


def _passed(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["outcome"] == "passed"]


def _others(rows: Iterable[Row]) -> list[str]:
    """What did not pass, with its reason."""
    left = [row for row in rows if row["outcome"] != "passed"]
    return [f"{row['outcome']}: {row['check'].split('.', 1)[1]} ({row['reason']})" for row in left]


def _near_the_cpu(rows: list[Row]) -> str:
    if not rows:
        return ""
    repeats = sum(row["repeats"] for row in rows)
    furthest = max(row["points_apart"] for row in rows)
    return f"at most {furthest:g} points from the CPU; {repeats} repeat to the bit with deterministic kernels"


def _saying(text: str) -> Callable[[list[Row]], str]:
    return lambda rows: text if rows else ""


# By the beginning of the checks' names: what they are, and what those that passed have found.
KINDS: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "a.": ("every system, profile smoke", _near_the_cpu),
    "c.resume": (
        "a run killed in its second task, then resumed",
        _saying("the record of a run that was not killed"),
    ),
    "c.fp16": ("a run in fp16", _saying("finite losses; the scale of the gradients is saved")),
    "c.memory": ("a run with too little memory", _saying("one line that says what to lower")),
    "d.": (
        "notebooks executed on the GPU",
        lambda rows: ", ".join(row["check"].split(".", 1)[1].split("_")[0] for row in rows),
    ),
    "b1.": ("steps of every system", _saying("timed, see below")),
    "b2.": ("steps of Fed-LSCL in other arithmetics", _saying("timed, see below")),
    "b3.": ("steps of the other systems in other arithmetics", _saying("timed, see below")),
    "b4.": ("several runs at once", _saying("timed, see below")),
    "e.": ("records of the profile full", _saying("kept, see below")),
}


# ---- steps


def summary_table(steps: Iterable[MeasuredStep]) -> pd.DataFrame:
    """One row per card, arithmetic and batch: ratio to bare products, waiting, and the plan's memory, over systems."""
    groups: dict[tuple[str, str, int], list[MeasuredStep]] = {}
    for step in sorted(steps, key=lambda one: (one.device, one.batch, one.arithmetic)):
        groups.setdefault((step.device, step.arithmetic, step.batch), []).append(step)
    return pd.DataFrame(_summary(found) for found in groups.values())


def _summary(steps: list[MeasuredStep]) -> dict[str, str]:
    """The row of steps that share card, arithmetic and batch."""
    first, plans = steps[0], [one.plan_to_peak for one in steps]
    return {
        "card": first.device,
        "arithmetic": first.arithmetic,
        "batch": str(first.batch),
        "steps": str(len(steps)),
        "time to bare products": _spread([one.ratio_to_bare for one in steps], ".2f"),
        "GPU idle %": _spread([None if one.waiting is None else 100 * one.waiting for one in steps], ".0f"),
        "memory, planned to measured": _spread(plans, ".2f"),
        f"plan within a factor of {WITHIN:g}": _count_within(plans),
    }


def _count_within(ratios: Iterable[float | None]) -> str:
    known = [one for one in ratios if one is not None]
    return f"{sum(1 / WITHIN <= one <= WITHIN for one in known)} of {len(known)}" if known else "–"


def _spread(values: Iterable[float | None], form: str) -> str:
    """The median, and the range if there are several; a dash without values."""
    known = pd.Series([one for one in values if one is not None], dtype=float)
    if known.empty:
        return "–"
    middle, least, most = (f"{one:{form}}" for one in (known.median(), known.min(), known.max()))
    return middle if len(known) == 1 else f"{middle} ({least} to {most})"


WAYS = {
    "seconds": "as in a run",
    "placed_seconds": "all images on the GPU",
    "plain_seconds": "a weight per image, formed",
    "peft_seconds": "peft's static LoRA alone",
    "peft_and_cnn_seconds": "peft's static LoRA and the CNN",
}


def ways_table(cards: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per compared step: a run's own, the same with all on the GPU, the plain way, and peft's static LoRA."""
    show = lambda seconds: "–" if seconds is None else f"{1e3 * seconds:.1f}"
    return pd.DataFrame(
        {
            "card": one["machine"]["gpu"],
            "system": label_of(row["method"]),
            "arithmetic": row["mode"],
            "batch": str(row["batch"]),
            **{title: show(row.get(name)) for name, title in WAYS.items()},
        }
        for one in cards
        for row in _passed(one["rows"])
        if row.get("plain_seconds") is not None
    )


def pace_table(cards: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per card and number of processes: steps a second of all together, and how many times those of one."""
    rows = []
    for one in cards:
        for found in (row["steps_per_second"] for row in _passed(one["rows"]) if "steps_per_second" in row):
            alone = next(iter(found.values()))
            rows += [
                {"card": one["machine"]["gpu"], "runs": n, "steps/s": f"{rate:.0f}", "gain": f"{rate / alone:.1f}"}
                for n, rate in found.items()
            ]
    return pd.DataFrame(rows)


# ---- runs


def _kept_runs(cards: Collection[dict[str, Any]]) -> list[str]:
    """The runs of the profile full on these cards, as markdown; nothing if there are none."""
    names = {one["machine"]["gpu"] for one in cards}
    kept = [one for one in select(all_records("full"), seed=sweeps.SEEDS[0]) if one["hardware"]["gpu"] in names]
    caption = "Runs of the profile `full` on a GPU, CIFAR-100; several runs shared a card, so one alone takes less time"
    return [captioned_table(*_one_card(runs_table(kept), caption), "tab-gpu-full", kept)] if kept else []


def runs_table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per run: its card, minutes with and without preparation, images a second, and accuracies at the end."""
    return (
        pd.DataFrame(
            {
                "card": one["hardware"]["gpu"],
                "minutes": f"{wall_minutes(one):.1f}",
                "training minutes": f"{one['seconds']['train'] / 60:.1f}",
                "training images/s": _images_per_second(one),
                **{SCORE_HEADS[mask]: f"{final_accuracy(one, mask):.1f}" for mask in SCORES},
            }
            for one in records
        )
        .set_axis([row_label(one) for one in records])
        .rename_axis("system")
    )


def _images_per_second(record: Record) -> str:
    found = record.get("optimised_images")
    return f"{found / record['seconds']['train']:.0f}" if found else "–"
