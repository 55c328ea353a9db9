"""The records of attacked runs (`lscl privacy`) as tidy tables, and what each system sends in words."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from lscl import paths
from lscl.errors import LsclError, pluralize
from lscl.experiments.privacy.gram_spectrum import KEPT
from lscl.experiments.privacy.measure import read_privacy
from lscl.registry import METHODS
from lscl.results.frames import first_dataset
from lscl.results.labels import label_of, methods_in_order
from lscl.results.markdown import commits_of, cpu_of, join_distinct, seeds_of, small_print
from lscl.results.statistics import estimate

ABOUT = ["dataset", "profile", "method", "label", "seed", "defence", "epsilon", "unit", "task", "seen", "mb_up"]
UPPER = "upper bound"  # in what an attacker knows: more than any server does
KEPT_IMAGES = re.compile(r"(\d+) kept images")  # there, too
SMALL_CHANGE = 0.5  # points of accuracy within which defences cost nothing
SCORE_NAMES = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "top1": "right image of its class",
    "auc": "membership, AUC",
    "tpr": "true positives at 1 % false ones",
    "held": "nearer to the client's images",
    "classes": "classes guessed",
}
# What a family of tensors says, for the table of what is sent; the first pattern that fits a name counts.
FAMILIES = (
    (r"images|counts", "number of images", "known to the server in any case"),
    (r"holds|classes", "classes of the task", "which classes the client has"),
    (r"features", "features of kept images", "the images, for whoever has the client's CNN"),
    (r"gram\.?.*", "Gram matrix", "who is in it, for whoever has the features' network"),
    (r"weight|bias", "generator", "traces of images and classes in its change"),
    (r"gradients", "gradients of single images", "the images, as far as they are not disguised"),
    (r"sums|means|prototypes", "class means", "a class of one image is that image's feature"),
    (r"cnn\..*", "CNN", "who trained it, by how sure it is; BatchNorm statistics of the images"),
    (r"(head|out|hidden)\..*", "head", "which classes the client has, by the rows that move"),
    (r"(pool|general|task|key|prompt).*", "prompts", "who trained them, together with the head"),
    (r"(lora\..*|A|B)", "LoRA", "who trained it, together with the head"),
)


def family_of(name: str) -> tuple[str, str]:
    """What a tensor is, and what its reader learns.

    Args:
        name: of the tensor in an upload.

    Returns:
        Two texts; the name itself, if it is of no known family.
    """
    for pattern, family, tells in FAMILIES:
        if re.fullmatch(pattern, name):
            return family, tells
    return name, "not said"


def attacked_records(profile: str) -> list[dict[str, Any]]:
    """Every record of attacked runs of a profile, from committed code, in the order of the tables.

    Args:
        profile: of the runs.

    Returns:
        The records.

    Raises:
        LsclError: a file is damaged, or was made with uncommitted code.
    """
    found = [read_privacy(path) for path in sorted(_folder(profile).glob("*.json"))]
    dirty = [one["name"] for one in found if one["dirty"]]
    if dirty:
        raise LsclError(
            f"record {dirty[0]} of results/privacy was made with uncommitted code: commit, then run it again"
        )
    return sorted(found, key=_place)


def _place(record: dict[str, Any]) -> tuple[Any, ...]:
    """The order of the tables: data set, system, without a defence and then as the system lists them, seed."""
    systems = methods_in_order()
    known = record["method"] in systems
    defences = ["", *(METHODS[record["method"]].defences if known else ())]
    place = defences.index(record["defence"]) if record["defence"] in defences else len(defences)
    return record["dataset"], systems.index(record["method"]) if known else len(systems), place, record["seed"]


def _folder(profile: str) -> Path:
    return paths.results() / "privacy" / profile


def _about(record: dict[str, Any]) -> dict[str, Any]:
    account = record["privacy"] or {"epsilon": np.nan, "unit": ""}
    return {
        "dataset": record["dataset"],
        "profile": record["profile"],
        "method": record["method"],
        "label": label_of(record["method"]),
        "seed": record["seed"],
        "defence": record["defence"],
        "epsilon": account["epsilon"],
        "unit": account["unit"],
        "task": record["accuracy"]["task"],
        "seen": record["accuracy"]["seen"],
        "mb_up": record["bytes_up"] / 1e6,
    }


def attacked_frame(profile: str) -> pd.DataFrame:
    """One row per attacked run: accuracy (%) after its task, epsilon of its noise (NaN without), megabytes up.

    Args:
        profile: of the runs.

    Returns:
        pandas.DataFrame: the columns of ABOUT.

    Raises:
        LsclError: as `attacked_records`.
    """
    return pd.DataFrame([_about(one) for one in attacked_records(profile)], columns=ABOUT)


def findings_frame(profile: str) -> pd.DataFrame:
    """One row per score of an attack, with its controls.

    Args:
        profile: of the runs.

    Returns:
        pandas.DataFrame: the columns of ABOUT, and attack, payload, knows, score, value, never_had, by_design, chance,
            count.

    Raises:
        LsclError: as `attacked_records`.
    """
    rows = [{**_about(one), **row} for one in attacked_records(profile) for row in _rows_for_all_seeds(one)]
    columns = [*ABOUT, "attack", "payload", "knows", "score", "value", "never_had", "by_design", "chance", "count"]
    return pd.DataFrame(rows, columns=columns)


def _rows_for_all_seeds(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The findings of a record; kept images in a Gram matrix are counted per class: their sum depends on the seed."""
    counts = {int(found[1]) for row in record["findings"] if (found := KEPT_IMAGES.search(row["knows"]))}
    names = [f"at most {pluralize(count, 'kept image')} of a class" for count in KEPT]
    known = dict(zip(sorted(counts), names if "features" in record["sent"] else ["all kept images"]))
    rename = lambda found: known[int(found[1])]
    return [{**row, "knows": KEPT_IMAGES.sub(rename, row["knows"])} for row in record["findings"]]


def damages_frame(profile: str) -> pd.DataFrame:
    """One row per answer of a bad client, without and with the server's checks.

    Args:
        profile: of the runs.

    Returns:
        pandas.DataFrame: the columns of ABOUT, and answer, checks, outcome, and for the masks task and seen the
            accuracy (%) of the other clients that is lost: lost_task, lost_seen.

    Raises:
        LsclError: as `attacked_records`.
    """
    rows = [
        {
            **_about(one),
            **{name: row[name] for name in ("answer", "checks", "outcome")},
            **{f"lost_{mask}": row["honest"][mask] - row["attacked"][mask] for mask in ("task", "seen")},
        }
        for one in attacked_records(profile)
        for row in one["damages"]
    ]
    return pd.DataFrame(rows, columns=[*ABOUT, "answer", "checks", "outcome", "lost_task", "lost_seen"])


def fewer_digits(form: str) -> Callable[[pd.Series], str]:
    """A mean with half of its 95 % interval over the seeds, in a form of numbers, for `agg` of pandas."""

    def text(values: pd.Series) -> str:
        found = estimate(values)
        numbers = (found.mean, found.half_width)[: 1 + (found.n > 1)]
        return "–" if math.isnan(found.mean) else " ± ".join(format(one, form) for one in numbers)

    return text


def best_membership(findings: pd.DataFrame) -> pd.Series:
    """The highest membership AUC of a server on every run: no attacker has more than a server has.

    Args:
        findings: rows of `findings_frame`.

    Returns:
        the AUC by label, defence, dataset and seed; nothing for runs on which no such attack has a place.
    """
    rows = findings[(findings["score"] == "auc") & ~findings["knows"].str.contains(UPPER, regex=False)]
    return rows.groupby(["label", "defence", "dataset", "seed"])["value"].max().rename("auc")


def noise_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with noise on the first data set that has any, and those without noise of the same systems.

    Args:
        runs: rows of `attacked_frame`.

    Returns:
        some of them; none if no run has noise.
    """
    noisy = first_dataset(runs.dropna(subset="epsilon"))
    same = runs["method"].isin(noisy["method"]) & runs["dataset"].isin(noisy["dataset"])
    return runs[same & ((runs["defence"] == "") | runs["epsilon"].notna())]


def read_price(runs: pd.DataFrame) -> str:
    """Say what the defences of the paper's system cost, and what it means if they cost nothing.

    Args:
        runs: rows of `attacked_frame`.

    Returns:
        markdown: a sentence or two; nothing without a defended run.
    """
    own = runs[runs["method"] == METHODS.find_role("own")]
    scores = own.pivot_table("seen", ["label", "dataset", "seed"], "defence", sort=False)
    if "" not in scores or len(scores.columns) == 1:
        return ""
    label, most = scores.index[0][0], float(scores.sub(scores[""], axis=0).abs().max(axis=None))
    if most > SMALL_CHANGE:
        return f"A defence of {label} changes its accuracy by up to {most:.1f} points."
    return (
        f"No defence of {label} changes its accuracy by more than {most:.1f} points. At "
        "these settings its written updates change little, so neither noise nor a bad client can take "
        "much away. The rows do not say what privacy costs where the updates matter."
    )


def sent_table(profile: str) -> pd.DataFrame:
    """What each system sends, what its reader learns, and whether secure aggregation could hide it.

    Args:
        profile: of the records; those of runs without a defence count.

    Returns:
        pandas.DataFrame: a row per system and family of tensors; no rows without records.

    Raises:
        LsclError: as `attacked_records`.
    """
    rows = {}
    for record in attacked_records(profile):
        if record["defence"]:
            continue
        for name, shape in record["sent"].items():
            family, tells = family_of(name)
            key = (label_of(record["method"]), family)
            numbers, only_sums = rows.get(key, ({}, True))[0], rows.get(key, ({}, True))[1]
            numbers[name] = int(np.prod(shape))
            rows[key] = numbers, only_sums and name in record["summed"], tells
    table = [
        {
            "system": system,
            "what goes up": family,
            "numbers": f"{sum(numbers.values()):,}",
            "what the server reads": tells,
            "sums are enough": "yes" if only_sums else "no",
        }
        for (system, family), (numbers, only_sums, tells) in rows.items()
    ]
    columns = ["system", "what goes up", "numbers", "what the server reads", "sums are enough"]
    return pd.DataFrame(table, columns=columns)


def reconstructions(profile: str, dataset: str, seed: int) -> dict[str, np.ndarray]:
    """The pictures of a feature inversion: {what is seen: (H, n W, 3) uint8}, from the record of the undefended run.

    Args:
        profile: of the run.
        dataset: of the run.
        seed: of the run.

    Returns:
        A row of images by its name; empty without a picture.

    Raises:
        LsclError: as `attacked_records`.
    """
    for record in attacked_records(profile):
        path = _folder(profile) / f"{record['name']}.png"
        same = (record["dataset"], record["seed"], record["defence"]) == (dataset, seed, "")
        if same and "sheet" in record and path.exists():
            pixels, names = np.asarray(Image.open(path).convert("RGB")), record["sheet"]["rows"]
            return dict(zip(names, np.split(pixels, len(names))))
    return {}


def privacy_note(part: pd.DataFrame) -> str:
    """Where the rows of a frame of attacked runs come from, in small print; nothing without rows.

    Args:
        part: rows of `attacked_frame`, `findings_frame` or `damages_frame`, of one profile.

    Returns:
        markdown.
    """
    if part.empty:
        return ""
    known = set(part[["dataset", "method", "seed", "defence"]].itertuples(index=False, name=None))
    behind = [
        one
        for one in attacked_records(part["profile"].iloc[0])
        if (one["dataset"], one["method"], one["seed"], one["defence"]) in known
    ]
    machine = join_distinct(cpu_of(one) for one in behind)
    minutes = sum(sum(one["seconds"].values()) for one in behind) / 60
    count = f"{pluralize(len(behind), 'run')}, {minutes:.0f} minutes"
    return small_print(
        f"profile {behind[0]['profile']}, first task", commits_of(behind), seeds_of(behind), count, machine
    )
