"""The paper's Table 2 and its studies (Fig. 3, 4 and 5): the records of a named sweep, and the tables and curves made of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lscl import paths, records
from lscl.config import Experiment
from lscl.errors import LsclError
from lscl.evaluation import average_so_far, forgetting
from lscl.records import Record, accuracy
from lscl.report import MASK_LABELS, compare, final, summary
from lscl.run import run
from lscl.sweeps import SEEDS, variant_run, variants

MISSING = "not yet measured"


@dataclass(frozen=True)
class Study:
    """The records of a sweep by the labels of its variants, in the order of the tables and of the seeds.

    labels: all variants; found: those that have a record; missing: the runs without one.
    """

    name: str
    profile: str
    dataset: str
    labels: tuple[str, ...]
    found: dict[str, list[Record]]
    missing: list[Experiment] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        """All records of the study."""
        return [one for group in self.found.values() for one in group]

    @property
    def draft(self) -> bool:
        """Whether some record was made with uncommitted code."""
        return any(one["dirty"] for one in self.records)

    @property
    def note(self) -> str:
        """What is not yet measured, and the command that measures it; empty if nothing is."""
        if not self.missing:
            return ""
        total = len(self.records) + len(self.missing)
        command = f"lscl sweep {self.name} --dataset {self.dataset} --profile {self.profile}"
        return f"**Not yet measured: {len(self.missing)} of {total} runs of this study.** `{command}` makes them."

    def between(self, first: str) -> dict[str, list[Record]]:
        """The groups with `first` in front, to compare all others with it."""
        return {first: self.found[first], **{name: group for name, group in self.found.items() if name != first}}


def collect(name: str, profile: str, dataset: str, seeds: Iterable[int] = SEEDS, compute: bool = False, data_dir: Path | str | None = None) -> Study:
    """The records of the study `name` (see `sweeps.variants`); with `compute`, runs without a record are computed first.

    Raises:
        LsclError: no such study, profile or data set; records of one study with several sets of images or weights.
    """
    found: dict[str, list[Record]] = {}
    missing = []
    labels = variants(name, profile)
    for label, change in labels.items():
        for seed in sorted(seeds):
            config = variant_run({"profile": profile, "dataset": dataset, "data_dir": data_dir}, change, seed)
            record = run(config, quiet=True) if compute else records.find(config)
            if record is None:
                missing.append(config)
            else:
                found.setdefault(label, []).append(record)
    _same_data(found, name)
    return Study(name, profile, dataset, tuple(labels), found, missing)


def _same_data(found: dict[str, list[Record]], name: str) -> None:
    for key in ("data_digest", "weights_digest"):
        values = sorted({one[key] for group in found.values() for one in group if one[key] is not None})
        if len(values) > 1:
            raise LsclError(f"study {name}: its records have several of {key} ({', '.join(values)}), run them again with one version")


def _rows(study: Study, of: Callable[[list[Record]], dict[str, str]]) -> pd.DataFrame:
    """One row per variant; those without a record say so in the first column, with dashes behind."""
    rows = {label: of(study.found[label]) for label in study.labels if label in study.found}
    columns = list(next(iter(rows.values()))) if rows else ["seeds"]
    empty = dict(zip(columns, [MISSING, *["–"] * (len(columns) - 1)]))
    return pd.DataFrame.from_dict({label: rows.get(label, empty) for label in study.labels}, orient="index").rename_axis("variant")


def scores(study: Study) -> pd.DataFrame:
    """One row per variant: n, final accuracy under every mask, forgetting (class-incremental); mean ± half of the 95 % t interval.

    The task-masked column is the score of the paper's Table 2.
    """

    def row(group: list[Record]) -> dict[str, str]:
        values = {"n": str(len(group))}
        values |= {f"{text} %": summary(final(one, mask) for one in group).estimate for mask, text in MASK_LABELS.items()}
        return values | {"forgetting": summary(forgetting(accuracy(one, "seen")) for one in group).estimate}

    return _rows(study, row)


def components(study: Study) -> pd.DataFrame:
    """The paper's Table 2: `scores` with what each variant has of the three components, and the published rows below.

    Which published row belongs to which variant is not known, apart from the whole system.
    """
    measured = scores(study)
    changes = variants(study.name, study.profile)
    marks = pd.DataFrame.from_dict({label: _marks(changes[label]) for label in measured.index}, orient="index")
    table = marks.join(measured)
    theirs = pd.read_csv(paths.results() / "published" / "paper_table2.csv")
    for row in theirs[theirs["dataset"] == study.dataset].itertuples():
        cells = dict.fromkeys(table.columns, "–") | {"task-masked %": f"{row.accuracy:.1f}"}
        cells |= dict.fromkeys(marks.columns, "✓" if row.variant == "full" else "?")
        table.loc[f"published, {row.variant}"] = cells
    return table.rename_axis("variant")


def _marks(change: dict[str, Any]) -> dict[str, str]:
    """What a variant has of the three components: ✓, – or what stands in for it."""
    kinds = (("collaboration", "written", "LSCT"), ("continual", "consistency", "SM-CF"), ("o2d", "exact", "O2D"))
    names = {"none": "–", "static": "static", "cnn": "–", "sgd": "✓ gradient"}
    marks = {title: "✓" if change.get(key, usual) == usual else names.get(change[key], change[key]) for key, usual, title in kinds}
    return marks | ({"O2D": "–"} if change.get("collaboration") == "cnn" else {})  # no generator, nothing to fuse


def against(study: Study, first: str, mask: str) -> pd.DataFrame:
    """Every variant beside `first`, paired over the seeds, see `report.compare`; empty if `first` is not yet measured."""
    if first not in study.found:
        return pd.DataFrame()
    return compare(study.between(first), mask).rename_axis("variant")


def curves(study: Study, mask: str, of: Callable = average_so_far) -> dict[str, np.ndarray]:
    """Accuracy after each task by variant: {label: (seeds, tasks)}; `of` is `average_so_far` or `current_task`."""
    return {label: np.array([of(accuracy(one, mask)) for one in group]) for label, group in study.found.items()}


def finals(study: Study, mask: str) -> dict[str, np.ndarray]:
    """Final accuracy by variant: {label: (seeds,)}."""
    return {label: np.array([final(one, mask) for one in group]) for label, group in study.found.items()}


# ---- Fig. 4: clients with CNNs of their own


def cnn_names(record: Record) -> list[str]:
    """The CNN of every client."""
    names = [name.strip() for name in record["config"]["cnn"].split(",")]
    return [names[k % len(names)] for k in range(record["config"]["clients"])]


def class_accuracies(group: Iterable[Record], mask: str) -> list[np.ndarray]:
    """After the last task, accuracy of every class of every client in percent under `mask`, all seeds together: clients x (classes of all seeds,)."""
    place = list(MASK_LABELS).index(mask)
    found = [{int(k): [values[place] for values in classes.values()] for k, classes in one["per_class"].items()} for one in group]
    return [np.concatenate([np.asarray(one[k], float) for one in found]) for k in sorted(found[0])]


def by_cnn(study: Study, label: str, mask: str) -> pd.DataFrame:
    """One row per client of the variant `label`: its CNN, trained parameters, accuracy over its classes (mean, worst tenth, lowest), n seeds.

    The mean is ± half of the 95 % t interval over the seeds; the other two are taken over the classes of all seeds. Empty if not yet measured.
    """
    group = study.found.get(label, [])
    rows = {}
    for k, classes in enumerate(class_accuracies(group, mask) if group else []):
        rows[f"client {k + 1}"] = {
            "CNN": cnn_names(group[0])[k],
            "trained parameters": f"{np.mean([one['trained_parameters'][k] for one in group]):,.0f}",
            "n": str(len(group)),
            "mean %": summary(class_accuracies([one], mask)[k].mean() for one in group).estimate,
            "tenth of the classes below %": f"{np.quantile(classes, 0.1):.1f}",
            "lowest class %": f"{classes.min():.1f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("client")
