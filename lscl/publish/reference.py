"""Tables of the book about the code: parameters, values of single methods, the facts about the mini model."""

from typing import Any

import pandas as pd

from lscl import files, paths
from lscl.config import OFFICIAL, PROFILES, chosen_values, experiment, fields
from lscl.experiments.backbones import outcome_of, read_backbones
from lscl.models.cnn_weights import SMALL_WEIGHTS
from lscl.models.vit import WEIGHTS
from lscl.registry import DATASETS, METHODS
from lscl.results.labels import label_of
from lscl.results.markdown import numbered_table, plain_text


def config_table() -> pd.DataFrame:
    """Every field of the config with its value in each profile (on CIFAR-100) and what it means."""
    made = {profile: experiment(profile=profile, dataset="cifar100").model_dump(mode="json") for profile in PROFILES}
    rows = {}
    for name, field in fields().items():
        if name in ("method", "dataset", "profile", "seed"):
            values = dict.fromkeys(PROFILES, show(field.default)) | (
                {p: p for p in PROFILES} if name == "profile" else {}
            )
        else:
            values = {profile: show(values[name]) for profile, values in made.items()}
        rows[f"`{name}`"] = values | {"meaning": field.description}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


def method_values() -> pd.DataFrame:
    """The values that a profile has for one method alone: sizes, those for one data set, from tuning or from codes."""
    text = lambda values: ", ".join(f"{key} = {show(one)}" for key, one in values.items())
    rows = []
    for method, kind in METHODS.items():
        given = [(profile, "size", kind.sizes.get(profile)) for profile in PROFILES]
        for dataset in DATASETS:  # profiles with the same values for a data set share a row
            own = {key[0]: values for key, values in kind.sizes.items() if isinstance(key, tuple) and key[1] == dataset}
            alike = {text(values): values for values in own.values()}.values()
            given += [(", ".join(p for p in own if own[p] == values), dataset, values) for values in alike]
        given += [
            (profile, "from codes" if profile in OFFICIAL else "tuning", chosen_values(kind, profile))
            for profile in PROFILES
        ]
        mine = [
            {"method": label_of(method), "profile": profile, "why": why, "values": text(values)}
            for profile, why, values in given
            if values
        ]
        rows += sorted(mine, key=lambda row: row["why"])
    return pd.DataFrame(rows)


def backbone_table() -> str:
    """The networks that were tried as the frozen ViT, as markdown; see `lscl.experiments.backbones`."""
    found = read_backbones()
    if found is None:
        return "Nobody has tried yet. `lscl backbones --store` does."
    timm, tried = found
    rows = [
        {
            "network": f"`{one.name}`",
            "pixels": show(one.pixels or one.vit_size) if one.pixels or one.vit_size else "–",
            "tokens": show(one.tokens) if one.tokens else "–",
            "reads": one.reads or "–",
            "outcome": outcome_of(one),
        }
        for one in tried
    ]
    caption = f"Networks of timm {timm} that were tested as the frozen ViT"
    return numbered_table(pd.DataFrame(rows), caption, "tab-backbones", index=False, markdown=("network",))


def show(value: Any) -> str:
    """A value of the config as the tables write it."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def model_card() -> str:
    """The facts about the shipped networks that their descriptions and the probes hold, as markdown."""
    parts = []
    for weights, what, label in (
        (WEIGHTS, "mini model", "tab-model-facts"),
        (SMALL_WEIGHTS, "pre-trained small CNN", "tab-small-cnn-facts"),
    ):
        about = weights.with_suffix(".json")
        if about.exists():
            facts = _facts(files.read_json(about, dict[str, Any]))
            parts.append(numbered_table(facts, f"How the file of the {what} was made", label))
    for path in sorted((paths.results() / "probe").glob("*.json")):
        caption = f"Linear probe on the frozen features: {plain_text(path.stem.replace('--', ', '))} images a class"
        parts.append(numbered_table(_facts(files.read_json(path, dict[str, Any])), caption, f"tab-probe-{path.stem}"))
    return (
        "\n\n".join(parts) if parts else "This checkout does not contain the weights, so there are no figures to show."
    )


def _facts(values: dict[str, Any]) -> pd.DataFrame:
    text = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key}: {part}" for key, part in value.items())
        elif isinstance(value, list):
            value = f"{len(value)}: " + ", ".join(str(part) for part in value)
        text[name.replace("_", " ")] = {"value": str(value)}
    return pd.DataFrame.from_dict(text, orient="index").rename_axis("fact")
