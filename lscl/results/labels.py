"""The names of systems, scores, data sets and costs in tables and figures."""

from collections.abc import Iterable

import pandas as pd

from lscl.experiments.records import Record
from lscl.registry import DATASETS, METHODS, Labels, is_ours

METHOD_LABELS = Labels(METHODS)
DATASET_LABELS = Labels(DATASETS)
MASK_LABELS = {"task": "task-masked", "seen": "class-incremental", "all": "all classes"}
SCORE_HEADS = {mask: f"{text} %" for mask, text in MASK_LABELS.items()}
HEAD_LABELS = {"trained": "trained head", "ridge": "closed-form head"}  # on the same features
# Backward transfer and its two parts, see `frames.parts_of_forgetting`.
LOSSES = ("class-incremental", "with the task given: true loss", "the rest: more classes compete")
SCORES = ("task", "seen")  # the paper's score, and the class-incremental one
GROUPS = {"paper": "paper", "control": "control", "variant": "our variant", "added": "added"}  # of systems, in a table
GROUP_HEADINGS = {  # above their members in a figure
    "paper": "Systems of the paper",
    "control": "Controls, not in the paper",
    "variant": "Our variant, not in the paper",
    "added": "Added systems",
}
COLUMN_HEADS = {"label": "system"}  # what a column of a frame is called in a table, where the name differs
# Columns of `lscl.results.costs_frame`: their heads in a table, and the form of a number.
COST_LABELS = {
    "mb_up": ("MB up", ".2f"),
    "mb_down": ("MB down", ".2f"),
    "trained_parameters": ("trained parameters", ",.0f"),
    "tflop": ("TFLOP", ".3g"),
    "cpu_minutes": ("CPU minutes", ".1f"),
    "peak_memory_mb": ("peak memory MB", ".0f"),
}


def label_of(method: str) -> str:
    """The name of a system in tables."""
    return METHOD_LABELS.get(method, method)


def paper_names() -> dict[str, str]:
    """Our names of the systems in the paper's tables, by the names that they have there."""
    return {kind.paper_name: name for name, kind in METHODS.items() if kind.paper_name}


def methods_in_order() -> list[str]:
    """The systems in the order of the tables."""
    return list(METHOD_LABELS)


def training_free() -> list[str]:
    """The systems that train nothing, in the order of the tables: controls for all others."""
    return [name for name, kind in METHODS.items() if not kind.trains]


def group_of(method: str) -> str:
    """To which of the `GROUPS` a system belongs.

    Args:
        method: its name, which need not be registered here.

    Returns:
        "paper" for the systems in the paper's tables, "variant" for ours that grew out of the paper's system,
        "control" for our other ones, and "added" for those of notebooks and other packages.
    """
    kind = METHODS.get(method)
    if kind is None or not is_ours(kind):
        return "added"
    return "paper" if kind.paper_name else "variant" if kind.role == "variant" else "control"


def variants_of_ours() -> list[str]:
    """The systems that grew out of the paper's and are not in it, in the order of the tables."""
    return [name for name, kind in METHODS.items() if kind.role == "variant" and group_of(name) == "variant"]


def is_variant(label: str) -> bool:
    """Whether the label of a table's row is that of one of `variants_of_ours`, with or without notes in brackets."""
    return any(is_row_of(label, name) for name in variants_of_ours())


def is_training_free(label: str) -> bool:
    """Whether the label of a table's row is that of a system that trains nothing, with or without notes in brackets."""
    return any(is_row_of(label, name) for name in training_free())


def highlighted(labels: Iterable[str], best: str | None = None) -> list[str]:
    """The rows of a table that figures show in colour.

    Args:
        labels: of the rows.
        best: the best of the systems that are no control, if it shall be among them.

    Returns:
        The first row of the paper's system, the system that adapts nothing, the controls that train nothing, our
        variants, and the best, in this order.
    """
    names = list(labels)
    own = [name for name in names if is_row_of(name, METHODS.find_role("own"))][:1]
    floor = [name for name in names if is_row_of(name, METHODS.find_role("floor"))]
    chosen = [*own, *floor, *filter(is_training_free, names), *filter(is_variant, names)]
    chosen += [best] if best in names else []
    return list(dict.fromkeys(chosen))


def best_trained(scores: pd.Series) -> str | None:
    """The highest of a table's rows that is neither the paper's system, nor a control, nor a variant of ours.

    Args:
        scores: one number per label.

    Returns:
        its label; None if there is no such row.
    """
    controls = highlighted(scores.index)
    own = METHODS.find_role("own")
    others = scores[[name for name in scores.index if name not in controls and not is_row_of(name, own)]].dropna()
    return None if others.empty else str(others.idxmax())


def is_row_of(label: str, method: str) -> bool:
    """Whether a label of a table's row is that of a system, with or without notes in brackets.

    Args:
        label: of the row.
        method: the system's name.

    Returns:
        True if it is.
    """
    return label == label_of(method) or label.startswith(f"{label_of(method)} (")


def notes_of(record: Record) -> str:
    """What tells a run's row from others of its system: the system's `notes`, and what differs from the profile."""
    kind = METHODS.get(record["method"])
    said, changed = kind.notes if kind else {}, record["overrides"]
    named = [note for row, note in zip(kind.rows, kind.row_notes) if row == changed and note] if kind else []
    notes = [texts[record["config"][key]] for key, texts in said.items()]
    return ", ".join(
        notes + (named or [f"{key} = {value}" for key, value in sorted(changed.items()) if key not in said])
    )


def row_label(record: Record) -> str:
    """The name of a run's row in tables: the system, and `notes_of` it in brackets."""
    name, notes = label_of(record["method"]), notes_of(record)
    return f"{name} ({notes})" if notes else name
