"""Which records exist and which are missing, with versions and data: the page about the state of the book."""

from collections import Counter
from collections.abc import Iterable

import pandas as pd

from lscl.experiments import sweeps
from lscl.experiments.records import Record
from lscl.results.labels import DATASET_LABELS
from lscl.results.markdown import code_text, cpu_of, short_commit, wall_minutes

NAMED_SETS = {
    "table1": "the main table", "ablations": "components (Table 2)", "blocks": "adapted block (Fig. 3)",
    "cnns": "different CNNs (Fig. 4)", "buffers": "buffer size (Fig. 5)", "regimes": "writers by regime",
    "larger_rate": "components at a larger rate", "repaired": "our variant, step by step",
}  # fmt: skip


def set_table(records: Iterable[Record], profile: str = "mini") -> pd.DataFrame:
    """How many runs of each named set are recorded.

    Args:
        records: all of the profile.
        profile: its name.

    Returns:
        a row per named set and data set: the command, runs recorded and wanted, minutes, and commits of their code.
    """
    records, rows = list(records), []
    for dataset, seeds in sweeps.PLANS[profile].items():
        for name, title in NAMED_SETS.items():
            wanted = {config.digest for config in sweeps.runs_of(name, {"profile": profile, "dataset": dataset}, seeds)}
            found = [one for one in records if one["dataset"] == dataset and one["config_digest"] in wanted]
            rows.append(
                {
                    "set": title,
                    "data set": DATASET_LABELS[dataset],
                    "command": f"`lscl sweep {name} --dataset {dataset} --profile {profile}`",
                    "runs": f"{len(found)} of {len(wanted)}",
                    "minutes": f"{sum(map(wall_minutes, found)):.0f}",
                    "commits": ", ".join(sorted({short_commit(one["commit"]) for one in found})) or "–",
                }
            )
    return pd.DataFrame(rows)


def digest_table(records: Iterable[Record]) -> pd.DataFrame:
    """The inputs of the records: images, partitions and frozen models by digest, with the number of runs."""
    kinds = {"data_digest": "images", "partition_digest": "partition", "weights_digest": "frozen model"}
    count = Counter((kind, one["dataset"], one[key]) for one in records for key, kind in kinds.items() if one[key])
    order = list(kinds.values())
    rows = sorted(count.items(), key=lambda item: (order.index(item[0][0]), item[0]))
    return pd.DataFrame(
        {"what": kind, "data set": DATASET_LABELS[dataset], "digest": code_text(digest), "runs": str(runs)}
        for (kind, dataset, digest), runs in rows
    )


def version_table(records: Iterable[Record]) -> pd.DataFrame:
    """Versions and machines that the records name, with the number of runs."""
    count: Counter = Counter()
    for one in records:
        count.update((name, number) for name, number in one["versions"].items())
        count.update(
            [
                ("processor", cpu_of(one)),
                ("GPU", one["hardware"]["gpu"] or "none"),
            ]
        )
    return pd.DataFrame({"what": name, "version": value, "runs": str(runs)} for (name, value), runs in count.items())
