"""The paper's Table 2 and its studies (Fig. 3, 4 and 5): the records of a named sweep, and the tables and curves made of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lscl.config import Experiment, check_profile
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.records import Record, accuracy
from lscl.experiments.run import run
from lscl.experiments.sweeps import PLANS, SEEDS, variant_run, variants
from lscl.federation.metrics import average_so_far, forgetting
from lscl.methods.parts.fed_lscl_studies import CNNS
from lscl.results.report import DATASET_LABELS, MASK_LABELS, Paired, captioned, cost_row, final, holm, p_text, published_table2, summary

SCORES = ("task", "seen")  # the paper's score, and the class-incremental one


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
        total, seeds = len(self.records) + len(self.missing), sorted({one.seed for one in self.missing})
        command = f"lscl sweep {self.name} --dataset {self.dataset} --profile {self.profile}"
        command += "" if seeds == SEEDS else f" --seeds {','.join(map(str, seeds))}"
        return f"**Not yet measured: {len(self.missing)} of {total} runs of this study.** `{command}` makes them."


def collect(
    name: str,
    profile: str,
    dataset: str,
    seeds: Iterable[int] = SEEDS,
    compute: bool = False,
    data_dir: Path | str | None = None,
    weights: Path | str | None = None,
) -> Study:
    """The records of the study `name` (see `sweeps.variants`); with `compute`, runs without a record are computed first.

    Raises:
        LsclError: no such study, profile or data set; records of one study with several sets of images or weights, or of one of its
            seeds with several partitions.
    """
    found: dict[str, list[Record]] = {}
    missing = []
    labels = variants(name, profile)
    for label, change in labels.items():
        for seed in sorted(seeds):
            config = variant_run({"profile": profile, "dataset": dataset, "data_dir": data_dir, "weights": weights}, change, seed)
            record = run(config, quiet=True) if compute else records.find(config)
            if record is None:
                missing.append(config)
            else:
                found.setdefault(label, []).append(record)
    _same_data(found, name)
    return Study(name, profile, dataset, tuple(labels), found, missing)


def profile_shown(profile: str, compute: bool) -> str:
    """The profile whose records a page shows: one that computes nothing shows the committed records of `mini` for smoke and demo."""
    return "mini" if profile in ("smoke", "demo") and not compute else profile


def of_profile(name: str, profile: str, compute: bool = False, data_dir: Path | str | None = None, weights: Path | str | None = None) -> list[Study]:
    """The study `name` on every data set of the profile shown; with `compute`, missing runs are computed first."""
    check_profile(profile)
    profile = profile_shown(profile, compute)
    return [collect(name, profile, dataset, seeds, compute, data_dir, weights) for dataset, seeds in PLANS[profile].items()]


def shown(studies: Sequence[Study]) -> list[Study]:
    """The studies that have records, or the first alone if none has."""
    return [one for one in studies if one.found] or list(studies[:1])


def status(studies: Sequence[Study]) -> str:
    """How much of a study is measured on each data set, and the command for the rest, as a list in markdown."""
    lines = []
    for one in studies:
        start = f"- {DATASET_LABELS[one.dataset]}, profile `{one.profile}`:"
        if not one.missing:
            lines.append(f"{start} all {len(one.records)} runs are measured.")
            continue
        lines.append(f"{start} {one.note}")
        if one.found:
            without = [label for label in one.labels if label not in one.found]
            lines[-1] += f" So the tables have {len(one.records)} runs" + (f", and no row for: {', '.join(without)}." if without else ".")
    return "\n".join(lines)


def by_dataset(studies: Sequence[Study], make: Callable[[Study], pd.DataFrame], caption: str, name: str) -> str:
    """The table that `make` makes on each data set that has records, with number, caption, anchor and provenance, as markdown.

    An empty one says what is missing instead. The anchor is tab-<name>-<data set>.
    """
    parts = []
    for study in shown(studies):
        table, where = make(study), DATASET_LABELS[study.dataset]
        if table.empty:
            parts.append(f"{where}: {study.note}")
        else:
            anchor = f"tab-{name}-{study.dataset.replace('_', '-')}"
            parts.append(captioned(table, f"{caption}, {where}.", anchor, study.records, study.draft))
    return "\n\n".join(parts)


def _same_data(found: dict[str, list[Record]], name: str) -> None:
    for key in ("data_digest", "weights_digest"):
        values = sorted({one[key] for group in found.values() for one in group if one[key] is not None})
        if len(values) > 1:
            raise LsclError(f"study {name}: its records have several of {key} ({', '.join(values)}), run them again with one version")
    partitions: dict[int, set[str]] = {}
    for one in (one for group in found.values() for one in group):
        partitions.setdefault(one["seed"], set()).add(one["partition_digest"])
    for seed, values in partitions.items():
        if len(values) > 1:
            raise LsclError(f"study {name}: its records of seed {seed} were trained on different partitions ({', '.join(sorted(values))})")


def _rows(study: Study, of: Callable[[list[Record]], dict[str, str]]) -> pd.DataFrame:
    """One row per variant that has records, made of them."""
    return pd.DataFrame.from_dict({label: of(group) for label, group in study.found.items()}, orient="index").rename_axis("variant")


def scores(study: Study) -> pd.DataFrame:
    """One row per measured variant: n, final accuracies and forgetting (class-incremental); mean ± half of the 95 % t interval.

    The task-masked column is the score of the paper's Table 2.
    """

    def row(group: list[Record]) -> dict[str, str]:
        values = {"n": str(len(group))}
        values |= {f"{MASK_LABELS[mask]} %": summary(final(one, mask) for one in group).estimate for mask in SCORES}
        return values | {"forgetting": summary(forgetting(accuracy(one, "seen")) for one in group).estimate}

    return _rows(study, row)


def components(study: Study) -> pd.DataFrame:
    """The paper's Table 2: `scores` with what each variant has of the three components, and the published rows below.

    Which published row belongs to which variant is not known, apart from the whole system.
    """
    measured = scores(study)
    changes = variants(study.name, study.profile)
    marks = pd.DataFrame([_marks(changes[label]) for label in measured.index], measured.index, list(_marks({})))
    table = marks.join(measured)
    for row in published_table2(study.dataset).itertuples():
        cells = dict.fromkeys(marks.columns, "✓" if row.variant == "full" else "?") | dict.fromkeys(measured.columns, "–")
        table.loc[f"published, {row.variant}", list(cells)] = cells | {"task-masked %": f"{row.accuracy:.1f}"}
    return table.rename_axis("variant")


def _marks(change: dict[str, Any]) -> dict[str, str]:
    """What a variant has of the three components: ✓, – or what stands in for it."""
    kinds = (("collaboration", "written", "LSCT"), ("continual", "consistency", "SM-CF"), ("o2d", "exact", "O2D"))
    names = {"none": "–", "static": "static", "cnn": "–", "sgd": "✓ gradient"}
    marks = {title: "✓" if change.get(key, usual) == usual else names.get(change[key], change[key]) for key, usual, title in kinds}
    return marks | ({"O2D": "–"} if change.get("collaboration") == "cnn" else {})  # no generator, nothing to fuse


def costs(study: Study) -> pd.DataFrame:
    """One row per variant: n, and the costs of the main table (`report.COSTS`), means over the seeds."""
    return _rows(study, lambda group: {"n": str(len(group)), **cost_row(group)})


def against(study: Study, first: str) -> pd.DataFrame:
    """Every variant minus `first`, final accuracy, paired over the seeds; see `_gaps`. Empty if `first` or all others are not yet measured."""
    gaps = {mask: {label: Paired(summary(values)) for label, values in differences(study, first, mask).items()} for mask in SCORES}
    return _gaps(gaps).rename_axis(f"minus {first}")


def _gaps(gaps: dict[str, dict[str, Paired]]) -> pd.DataFrame:
    """One row per label: n, and under every score the difference in points, its 95 % t interval, and p of the paired t test.

    gaps: {mask: {label: difference}}. The p values are corrected for all rows (Holm).
    """
    table = pd.DataFrame({"n": {label: str(gap.difference.n) for label, gap in next(iter(gaps.values())).items()}})
    for mask, found in gaps.items():
        several = {label: gap.difference.n > 1 for label, gap in found.items()}
        table[f"{MASK_LABELS[mask]}, points"] = {label: f"{gap.difference.mean:+.1f}" for label, gap in found.items()}
        table[f"95 % interval, {MASK_LABELS[mask]}"] = {label: gap.difference.interval if several[label] else "–" for label, gap in found.items()}
        table[f"p, {MASK_LABELS[mask]}"] = dict(zip(found, map(p_text, holm([gap.p for gap in found.values()]))))
    return table


# The eight subsets of Table 2 are a full factorial design: each component is present in four of them and absent in four.
_SUBSETS = {
    "whole": "WSO", "no O2D": "WS", "no SM-CF": "WO", "neither O2D nor SM-CF": "W",
    "static LoRA for the written one": "SO", "static LoRA, no O2D": "S", "static LoRA, no SM-CF": "O", "static LoRA, neither O2D nor SM-CF": "",
}  # fmt: skip
FACTORS = {"W": "written per image, not static", "S": "SM-CF", "O": "O2D"}


def added(study: Study, mask: str) -> dict[str, np.ndarray]:
    """What each component (a name in FACTORS) adds to the final accuracy under `mask`, in points: {component: (seeds,)}.

    Mean over the four subsets with it minus mean over the four without, for every seed that has all eight; empty if none has.
    """
    scores = [{one["seed"]: final(one, mask) for one in study.found.get(label, [])} for label in _SUBSETS]
    seeds = sorted(set.intersection(*map(set, scores)))
    table = np.array([[found[seed] for found in scores] for seed in seeds])  # (seeds, subsets)
    sides = {name: np.array([1 if key in has else -1 for has in _SUBSETS.values()]) for key, name in FACTORS.items()}
    return {name: table @ side / 4 for name, side in sides.items()} if seeds else {}


def effects(study: Study) -> pd.DataFrame:
    """`added` as a table, see `_gaps`. Empty if no seed has all subsets."""
    gaps = {mask: {name: Paired(summary(values)) for name, values in added(study, mask).items()} for mask in SCORES}
    return _gaps(gaps).rename_axis("component")


# ---- curves


def curves(study: Study, mask: str, of: Callable = average_so_far) -> dict[str, np.ndarray]:
    """Accuracy after each task by variant: {label: (seeds, tasks)}; `of` is `average_so_far` or `current_task`."""
    return {label: np.array([of(accuracy(one, mask)) for one in group]) for label, group in study.found.items()}


def differences(study: Study, first: str, mask: str) -> dict[str, np.ndarray]:
    """Final accuracy of every other variant minus that of `first`, over the seeds that both have: {label: (seeds,)}."""
    scores = {label: {one["seed"]: final(one, mask) for one in group} for label, group in study.found.items()}
    start = scores.pop(first, {})
    found = {label: np.array([values[seed] - start[seed] for seed in values if seed in start]) for label, values in scores.items()}
    return {label: values for label, values in found.items() if len(values)}


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


def own_cnn(study: Study) -> pd.DataFrame:
    """One row per client: its accuracy over all its tasks with its own CNN minus that with the CNN of all, paired over the seeds.

    See `_gaps`. Empty without a seed that has both.
    """
    common, mixed = ({one["seed"]: one for one in study.found.get(label, [])} for label in CNNS)
    seeds = sorted(common.keys() & mixed.keys())
    gaps: dict[str, dict[str, Paired]] = {mask: {} for mask in SCORES}
    for mask, found in gaps.items():
        by_client = lambda one, mask=mask: accuracy(one, mask)[-1].mean(1)
        table = np.array([by_client(mixed[seed]) - by_client(common[seed]) for seed in seeds])  # (seeds, clients)
        names = cnn_names(mixed[seeds[0]]) if seeds else []
        found |= {f"client {k + 1}, {name}": Paired(summary(column)) for k, (name, column) in enumerate(zip(names, table.T))}
    return _gaps(gaps).rename_axis("own minus common CNN")
