"""The generated parts of the README: badges, finding, results, and what to expect; `lscl pages` writes them."""

import json
from pathlib import Path

import numpy as np

from lscl import paths
from lscl.config import experiment
from lscl.data.store import write_atomic
from lscl.errors import LsclError
from lscl.experiments import cost_model, records, sweeps
from lscl.experiments.cards import SHEETS
from lscl.experiments.config_files import command_of
from lscl.experiments.rounding import ALLOWED, expected_range
from lscl.publish import first_screen, hardware
from lscl.registry import METHODS
from lscl.results.frames import final_accuracy
from lscl.results.labels import MASK_LABELS, SCORES, label_of
from lscl.results.markdown import code_text, plain_text, wall_minutes
from lscl.results.published import published_final

SHOWN = ("mini", "full")  # profiles whose runs stand in the table, one of the paper's own system on each data set


def expect(
    profile: str, minutes: float, runs: list[records.Record], runs_seconds: float, notebooks: dict[str, float]
) -> Path:
    """Store what `lscl reproduce` took and gave on this machine, for README and book.

    Args:
        profile: its name.
        minutes: of all of it.
        runs: the records of the profile.
        runs_seconds: of computing them.
        notebooks: seconds of each, by name.

    Returns:
        the path of results/expected/<profile>.json.
    """
    ours = records.select(runs, method=METHODS.find_role("own"), overrides={})
    about = {
        "profile": profile,
        "command": "make demo" if profile == "demo" else f"lscl reproduce {profile}",
        "minutes": round(minutes, 1),
        "runs_seconds": round(runs_seconds, 1),
        "notebooks": {name: round(seconds, 1) for name, seconds in notebooks.items()},
        "hardware": records.hardware(),
        "commit": records.source()["commit"],
        **{mask: _mean(ours, mask) for mask in SCORES},
    }
    path = paths.results() / "expected" / f"{profile}.json"
    write_atomic(path, (json.dumps(about, indent=1) + "\n").encode())
    return path


def compare_with_expected(profile: str, runs: list[records.Record]) -> list[str]:
    """What a profile reached here beside what it is expected to reach.

    Args:
        profile: its name.
        runs: its records.

    Returns:
        a line for each score of the paper's own system, with the range that another processor may reach; a last line if
        one lies outside of it. No lines if nothing is expected.
    """
    known = next((one for one in hardware.expected_profiles() if one["profile"] == profile), None)
    ours = records.select(runs, method=METHODS.find_role("own"), overrides={})
    if known is None or not ours:
        return []
    reached = {mask: _mean(ours, mask) for mask in SCORES}
    lines = [
        f"{label_of(METHODS.find_role('own'))}, {MASK_LABELS[mask]}: {reached[mask]:.1f} %, expected "
        f"{expected_range(known[mask])} %"
        for mask in SCORES
    ]
    if any(abs(reached[mask] - known[mask]) > ALLOWED for mask in SCORES):
        lines.append(
            f"that is more than the {ALLOWED:g} points that another processor explains: please open an issue with the "
            f"records in {records.folder(profile)}"
        )
    return lines


def expected_table() -> str:
    """The markdown table, by hardware: command, minutes, accuracy of Fed-LSCL; what nobody has measured says so.

    Behind each accuracy stands the range in which it may lie on another processor.
    """
    rows = ["| hardware | command | minutes | Fed-LSCL, task-masked | class-incremental |", "|---|---|---:|---:|---:|"]
    for row in hardware.expected_profiles():
        scores = " | ".join(f"{expected_range(row[mask])} %" for mask in SCORES)
        rows.append(f"| {_machine(row['hardware'])} | {code_text(row['command'])} | {row['minutes']} | {scores} |")
    made = [one for profile in SHOWN for one in records.all_records(profile)]
    for record in records.select(made, method=METHODS.find_role("own"), seed=sweeps.SEEDS[0], overrides={}):
        command = command_of(record)
        scores = " | ".join(f"{expected_range(_mean([record], mask))} %" for mask in SCORES)
        rows.append(
            f"| {_machine(record['hardware'])} | {code_text(command)} | {wall_minutes(record):.1f} | {scores} |"
        )
    return "\n".join([*rows, *_planned_rows()])


def _planned_rows() -> list[str]:
    """Rows of the profile paper by the cost model: on a T4, and on every card whose steps were timed."""
    ours = hardware.cost(experiment(profile="paper", dataset="cifar100"))
    command = f"lscl run --method {METHODS.find_role('own')} --dataset cifar100 --profile paper"
    rows = []
    for name, sheet in SHEETS.items():
        card = cost_model.find_card(name)
        timed = card.timed_step(ours.config) is not None
        if timed or name == "t4":
            how = f"one {sheet.title}, by the cost model, {'from timed steps' if timed else 'not measured'}"
            rows.append(f"| {how} | `{command}` | {60 * ours.hours(card):.0f} | {_published()} | – |")
    return rows


def _published() -> str:
    found = published_final("cifar100")
    return "–" if found is None else f"{found:.1f} %, the paper's"


def _mean(runs: list[records.Record], mask: str) -> float:
    """Accuracy after the last task over all tasks, mean over runs, in percent."""
    return round(float(np.mean([final_accuracy(one, mask) for one in runs])), 1)


def _machine(hardware: dict) -> str:
    return plain_text(f"{hardware['cores']} cores, {hardware['gpu'] or 'no GPU'}")


def readme_text(before: str, screen: first_screen.FirstScreen) -> str:
    """The README with today's text between the two markers of each generated part.

    Args:
        before: the README as it is.
        screen: from `first_screen.read_first_screen`.

    Returns:
        the README as it has to be.

    Raises:
        LsclError: a marker is missing, stands twice, or they stand in the wrong order.
    """
    text = before
    for name, part in {**first_screen.readme_blocks(screen), "expected": expected_table()}.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if [text.count(one) for one in (begin, end)] != [1, 1] or text.index(begin) > text.index(end):
            raise LsclError(f"README.md must have {begin} and, below it, {end}, each once")
        text = f"{text.split(begin)[0]}{begin}\n{part}\n{end}{text.split(end)[1]}"
    return text
